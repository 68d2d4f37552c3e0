//! Whoever is attached to a container: `kubectl attach` and `kubectl run -i`, by way of the kubelet.
//!
//! The shim listens at [`super::state::ContainerDir::attach`]. Both sides send messages:
//! `[kind:1][length:4 be][payload]`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log::Stream;
use crate::terminal::{self, shortened};

/// Most bytes in one message.
pub const LONGEST_PAYLOAD: usize = 64 << 10;
/// Most who are attached at a time.
const MOST_CLIENTS: usize = 16;
/// What may wait for one that does not read, in bytes. Then it is sent away: neither the container nor its log waits.
const MOST_UNSENT: usize = 1 << 20;
/// What may wait for a container that does not read, in bytes. Then nobody is read from.
const MOST_UNTYPED: usize = LONGEST_PAYLOAD;
/// How long those who are attached may take to read a container's last words.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the container's standard input. An empty one tells that there may be more.
    Stdin,
    /// From its standard output, or its terminal.
    Stdout,
    /// From its standard error.
    Stderr,
    /// A new size of the terminal, as JSON.
    Size,
    /// There will be no more input.
    EndOfStdin,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Size,
        Self::EndOfStdin,
    ];

    /// The kind of a message by its first byte.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The beginning of a message whose payload has `length` bytes, at most [`LONGEST_PAYLOAD`].
pub fn header(kind: Kind, length: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind as u8, a, b, c, d]
}

/// A container's standard input.
#[derive(Debug)]
pub struct Keyboard {
    /// Not blocking.
    pub to: File,
    /// It ends with the first who was attached (`stdinOnce`). Never that of a terminal.
    pub once: bool,
}

/// All who are attached, and what they type.
#[derive(Debug)]
pub struct Audience {
    listener: UnixListener,
    clients: Vec<Client>,
    keyboard: Option<Keyboard>,
    untyped: VecDeque<u8>,
    last_typed: bool,
    terminal: Option<File>,
}

#[derive(Debug)]
struct Client {
    socket: UnixStream,
    unread: Vec<u8>,
    unsent: VecDeque<u8>,
    /// It has the container's input.
    types: bool,
    left: bool,
}

impl Audience {
    /// Listens at a path. Without a keyboard nobody types, without a terminal sizes are of no use.
    pub fn listen(path: &Path, keyboard: Option<Keyboard>, terminal: Option<File>) -> io::Result<Self> {
        let (_directory, short) = shortened(path)?;
        let listener = UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: Vec::new(),
            keyboard,
            untyped: VecDeque::new(),
            last_typed: false,
            terminal,
        })
    }

    /// Everything that it waits for, in an order that [`Self::attend`] knows.
    pub fn waits(&self) -> Vec<PollFd<'_>> {
        fn wait(fd: BorrowedFd<'_>, interest: PollFlags) -> PollFd<'_> {
            PollFd::new(fd, interest)
        }
        let when = |condition: bool, flag: PollFlags| if condition { flag } else { PollFlags::empty() };
        let mut waits = vec![wait(
            self.listener.as_fd(),
            when(self.clients.len() < MOST_CLIENTS, PollFlags::POLLIN),
        )];
        let hears = self.untyped.len() < MOST_UNTYPED;
        waits.extend(self.clients.iter().map(|client| {
            let reads = when(hears, PollFlags::POLLIN);
            let writes = when(!client.unsent.is_empty(), PollFlags::POLLOUT);
            wait(client.socket.as_fd(), reads | writes)
        }));
        let typing = self.keyboard.as_ref().filter(|_| !self.untyped.is_empty());
        waits.extend(typing.map(|keyboard| wait(keyboard.to.as_fd(), PollFlags::POLLOUT)));
        waits
    }

    /// Does what can be done without waiting, by what [`Self::waits`] told.
    pub fn attend(&mut self, ready: &[PollFlags]) {
        let hears = self.untyped.len() < MOST_UNTYPED;
        let flags = |index: usize| ready.get(index).copied().unwrap_or(PollFlags::empty());
        for index in 0..self.clients.len() {
            let flags = flags(index + 1);
            if flags.contains(PollFlags::POLLOUT) {
                self.clients.get_mut(index).map(Client::send);
            }
            if hears && !flags.is_empty() {
                self.hear(index);
            } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
                && let Some(client) = self.clients.get_mut(index)
            {
                client.left = true;
            }
        }
        let mut gone = self.clients.extract_if(.., |client| client.left);
        if gone.any(|client| client.types) {
            self.last_typed |= self.keyboard.as_ref().is_some_and(|keyboard| keyboard.once);
        }
        gone.for_each(drop);
        self.type_on();
        if flags(0).contains(PollFlags::POLLIN)
            && let Ok((socket, _)) = self.listener.accept()
            && socket.set_nonblocking(true).is_ok()
        {
            self.clients.push(Client {
                socket,
                unread: Vec::new(),
                unsent: VecDeque::new(),
                types: false,
                left: false,
            });
        }
    }

    /// Shows output to all.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        for client in &mut self.clients {
            client.unsent.extend(header(kind, bytes.len()));
            client.unsent.extend(bytes);
            client.send();
            client.left |= client.unsent.len() > MOST_UNSENT;
        }
    }

    /// Gives those who are attached a moment for what they have not read.
    pub fn dismiss(mut self) {
        let end = Instant::now() + FAREWELL;
        loop {
            self.clients.iter_mut().for_each(Client::send);
            self.clients
                .retain(|client| !client.left && !client.unsent.is_empty());
            let left = end.saturating_duration_since(Instant::now());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let mut waits: Vec<PollFd> = self
                .clients
                .iter()
                .map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT))
                .collect();
            let _ = poll(
                &mut waits,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
            );
        }
    }

    fn hear(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        client.receive();
        while let Some((kind, payload)) = client.message() {
            match kind {
                Some(Kind::Stdin) => {
                    client.types = true;
                    if self.keyboard.is_some() {
                        self.untyped.extend(payload);
                    }
                }
                Some(Kind::EndOfStdin) => {
                    self.last_typed |= self.keyboard.as_ref().is_some_and(|keyboard| keyboard.once);
                }
                Some(Kind::Size) => {
                    if let (Some(terminal), Ok(size)) = (&self.terminal, serde_json::from_slice(&payload)) {
                        let _ = terminal::resize(terminal, size);
                    }
                }
                _ => {}
            }
        }
    }

    fn type_on(&mut self) {
        let Some(keyboard) = &mut self.keyboard else {
            return;
        };
        while !self.untyped.is_empty() {
            match keyboard.to.write(self.untyped.as_slices().0) {
                Ok(length) => drop(self.untyped.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The container has closed it.
                Err(_) => {
                    self.untyped.clear();
                    self.last_typed = true;
                }
            }
        }
        if self.last_typed {
            self.keyboard = None;
        }
    }
}

impl Client {
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.socket.write(self.unsent.as_slices().0) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.left = true;
                    return;
                }
            }
        }
    }

    /// Reads once.
    fn receive(&mut self) {
        let mut buffer = [0; 16 << 10];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.left = true,
            Ok(length) => self.unread.extend(buffer.iter().take(length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.left = true,
        }
    }

    /// The next whole message. One that is too long ends the connection.
    fn message(&mut self) -> Option<(Option<Kind>, Vec<u8>)> {
        let (&[kind, a, b, c, d], rest) = self.unread.split_first_chunk::<5>()?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > LONGEST_PAYLOAD {
            self.left = true;
            return None;
        }
        let payload = rest.get(..length)?.to_vec();
        self.unread.drain(..5 + length);
        Some((Kind::of(kind), payload))
    }
}
