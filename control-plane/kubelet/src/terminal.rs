//! The master side of a process's terminal.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

use crate::disk::{DiskError, OnPath};
use crate::readiness;

/// Size of a terminal in characters, as clients send it (`remotecommand.TerminalSize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A terminal: what is written to it is typed, what is read is what its processes print, to the end when none of them
/// has it any more. When the last copy goes, the kernel hangs it up: its processes get SIGHUP.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes over the master of a terminal.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let registered = readiness::registered(master, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self(Arc::new(registered)))
    }

    /// Tells the processes a new size (SIGWINCH).
    pub fn resize(&self, size: Size) -> io::Result<()> {
        resize(&*self.0, size)
    }
}

/// Tells the processes of a terminal its new size.
pub fn resize(master: &impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match guard.try_io(|master| Ok(rustix::io::read(master, space)?)) {
                Ok(Ok(length)) => buffer.advance(length),
                // The last process has closed it.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => continue,
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(outcome) = guard.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of input is typed (^D), not told.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where the runtime hands a terminal over.
#[derive(Debug)]
pub struct ConsoleSocket(UnixListener);

impl ConsoleSocket {
    /// Listens at a path, which may be longer than an address of a socket: it is reached by way of its directory.
    pub fn bind(path: &Path) -> Result<Self, DiskError> {
        bind(path).on("listen on", path).map(Self)
    }

    /// Waits for the terminal.
    pub async fn terminal(&self) -> io::Result<Terminal> {
        let (connection, _) = self.0.accept().await?;
        let master = connection
            .async_io(Interest::READABLE, || receive(&connection))
            .await?;
        Terminal::new(master)
    }
}

/// Listens at a path of any length.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_directory, short) = shortened(path)?;
    UnixListener::bind(short)
}

/// Connects to a path of any length.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = shortened(path)?;
    UnixStream::connect(short).await
}

/// The same file by a short path, for as long as the descriptor is open.
pub fn shortened(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = File::open(parent)?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    Ok((directory, short))
}

/// One message with one descriptor (`SCM_RIGHTS`), as OCI runtimes send it.
pub fn receive(connection: &impl AsFd) -> io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [io::IoSliceMut::new(&mut name)];
    recvmsg(connection, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}
