//! A command's streams, between a client and what runs (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Gone, Writer};
use super::upgrade::{Protocol, Transport};
use super::{spdy, websocket};
use crate::exec::{DRAIN_LIMIT, ExecError, Process, Streams};
use crate::terminal::{Size, Terminal};

/// How long a SPDY client may take to open its streams (`DefaultStreamCreationTimeout`).
const CREATION_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of one size of the terminal.
const LONGEST_SIZE: usize = 1 << 10;

/// Both versions of WebSocket channels are served alike: the fifth has one more channel. Of SPDY's the fourth alone
/// tells exit codes; every client since Kubernetes 1.4 offers it.
pub const PROTOCOLS: [Protocol<Transport>; 3] = [
    protocol(Transport::WebSocket, "v5.channel.k8s.io"),
    protocol(Transport::WebSocket, "v4.channel.k8s.io"),
    protocol(Transport::Spdy, "v4.channel.k8s.io"),
];

const fn protocol(transport: Transport, name: &'static str) -> Protocol<Transport> {
    Protocol {
        transport,
        name,
        meaning: transport,
    }
}

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// It writes to the command.
    pub stdin: bool,
    /// It reads standard output.
    pub stdout: bool,
    /// It reads standard error; never with a terminal.
    pub stderr: bool,
    /// The command has a terminal.
    pub terminal: bool,
}

/// A client's side of a command.
pub struct Client {
    connection: Connection,
    /// What it types.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// The sizes of its terminal.
    pub sizes: Option<Sizes>,
    /// Where standard output goes.
    pub stdout: Option<Writer>,
    /// Where standard error goes.
    pub stderr: Option<Writer>,
    status: Writer,
    // They hold the streams open.
    _opened: Vec<spdy::Stream>,
}

impl Client {
    /// The client's side, when it has opened what it asked for; `None` when it does not.
    pub async fn open(transport: Transport, socket: DuplexStream, wanted: Wanted) -> Option<Self> {
        match transport {
            Transport::WebSocket => Some(Self::by_channels(socket, wanted).await),
            Transport::Spdy => Self::by_streams(socket, wanted).await,
        }
    }

    async fn by_channels(socket: DuplexStream, wanted: Wanted) -> Self {
        let socket = websocket::open(socket).await;
        let (connection, mut inputs) = websocket::channels(socket, &[0, 4]);
        let (sizes, stdin) = (inputs.pop(), inputs.pop());
        let client = Self {
            stdin: stdin.filter(|_| wanted.stdin),
            sizes: sizes.filter(|_| wanted.terminal).map(Sizes::of),
            stdout: wanted.stdout.then(|| connection.writer(1)),
            stderr: wanted.stderr.then(|| connection.writer(2)),
            status: connection.writer(3),
            connection,
            _opened: Vec::new(),
        };
        // An empty message tells that the streams are there, as every server of this protocol does.
        let first = client
            .stdout
            .as_ref()
            .or(client.stderr.as_ref())
            .unwrap_or(&client.status);
        let _ = first.frame(Bytes::new()).await;
        client
    }

    async fn by_streams(socket: DuplexStream, wanted: Wanted) -> Option<Self> {
        let (connection, mut opened) = spdy::open(socket);
        let mut missing: Vec<&str> = [
            (true, "error"),
            (wanted.stdin, "stdin"),
            (wanted.stdout, "stdout"),
            (wanted.stderr, "stderr"),
            (wanted.terminal, "resize"),
        ]
        .into_iter()
        .filter_map(|(wanted, name)| wanted.then_some(name))
        .collect();
        let mut streams = HashMap::new();
        let all = async {
            while !missing.is_empty() {
                let stream = opened.recv().await?;
                let kind = stream.header("streamtype").to_owned();
                missing.retain(|name| *name != kind);
                streams.insert(kind, stream);
            }
            Some(())
        };
        tokio::time::timeout(CREATION_LIMIT, all).await.ok().flatten()?;
        let mut input = |name: &str| {
            let stream: Option<&mut spdy::Stream> = streams.get_mut(name);
            stream.map(|stream| std::mem::replace(&mut stream.input, mpsc::channel(1).1))
        };
        let (stdin, sizes) = (input("stdin"), input("resize"));
        let output = |name: &str| streams.get(name).map(|stream| stream.output.clone());
        Some(Self {
            stdin: stdin.filter(|_| wanted.stdin),
            sizes: sizes.filter(|_| wanted.terminal).map(Sizes::of),
            stdout: output("stdout"),
            stderr: output("stderr"),
            status: output("error")?,
            connection,
            _opened: streams.into_values().collect(),
        })
    }

    /// Tells the outcome, and ends the connection.
    pub async fn finish(self, outcome: Result<i32, String>) {
        let status = status(outcome).to_string();
        let told = async {
            self.status.send(Bytes::from(status)).await?;
            for writer in [Some(&self.status), self.stdout.as_ref(), self.stderr.as_ref()]
                .into_iter()
                .flatten()
            {
                writer.end().await?;
            }
            Ok::<(), Gone>(())
        };
        let told = tokio::select! {
            told = told => told,
            () = self.connection.gone() => Err(Gone),
        };
        if told.is_ok() {
            self.connection.close().await;
        }
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        self.connection.gone().await;
    }
}

/// Sizes of a client's terminal: JSON texts, one after the other.
pub struct Sizes {
    pieces: mpsc::Receiver<Bytes>,
    text: BytesMut,
}

impl Sizes {
    fn of(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self {
            pieces,
            text: BytesMut::new(),
        }
    }

    /// The next size; `None` when there will be no more. May be cancelled.
    pub async fn next(&mut self) -> Option<Size> {
        loop {
            let mut texts = serde_json::Deserializer::from_slice(&self.text).into_iter();
            match texts.next() {
                Some(Ok(size)) => {
                    let _ = self.text.split_to(texts.byte_offset());
                    return Some(size);
                }
                Some(Err(error)) if !error.is_eof() => return None,
                _ => {}
            }
            let piece = self.pieces.recv().await?;
            if self.text.len() + piece.len() > LONGEST_SIZE {
                return None;
            }
            self.text.extend_from_slice(&piece);
        }
    }
}

/// Carries bytes between a client and its command until that ends: its exit code. `None` when the client went away;
/// the command then has lost its streams, and goes on if it can do without.
pub async fn carry(process: Process, client: &mut Client) -> Option<Result<i32, ExecError>> {
    let Process { streams, mut ending } = process;
    let ended = CancellationToken::new();
    let (stdin, sizes) = (client.stdin.take(), client.sizes.take());
    let client = &*client;
    let mut talk = pin!(async {
        match streams {
            Streams::Terminal(terminal) => on_terminal(terminal, stdin, sizes, client, &ended).await,
            Streams::Pipes {
                stdin: pipe,
                stdout,
                stderr,
            } => tokio::select! {
                outcome = async { tokio::try_join!(
                    copy(stdout, client.stdout.as_ref(), &ended),
                    copy(stderr, client.stderr.as_ref(), &ended),
                ) } => outcome.map(|_| ()),
                never = unending(type_in(stdin, pipe)) => match never {},
            },
        }
    });
    let mut gone = pin!(client.gone());
    // Output may end before the command does, and what the command wrote last is read after its end.
    tokio::select! {
        code = ending.code() => {
            ended.cancel();
            tokio::select! {
                talked = &mut talk => talked.ok().map(|()| code),
                () = &mut gone => None,
            }
        }
        talked = &mut talk => {
            talked.ok()?;
            tokio::select! {
                code = ending.code() => Some(code),
                () = &mut gone => None,
            }
        }
        () = &mut gone => None,
    }
}

async fn on_terminal(
    terminal: Terminal,
    stdin: Option<mpsc::Receiver<Bytes>>,
    sizes: Option<Sizes>,
    client: &Client,
    ended: &CancellationToken,
) -> Result<(), Gone> {
    tokio::select! {
        outcome = copy(terminal.clone(), client.stdout.as_ref(), ended) => outcome,
        never = unending(type_in(stdin, Some(terminal.clone()))) => match never {},
        never = unending(follow(sizes, &terminal)) => match never {},
    }
}

/// Does its work, and leaves the end to others.
async fn unending(work: impl Future<Output = ()>) -> Infallible {
    work.await;
    std::future::pending().await
}

async fn copy(
    from: impl AsyncRead + Unpin,
    to: Option<&Writer>,
    ended: &CancellationToken,
) -> Result<(), Gone> {
    match to {
        Some(writer) => writer.copy(from, ended, DRAIN_LIMIT).await,
        None => {
            let mut from = from;
            // Nobody listens, which the command must not notice.
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            Ok(())
        }
    }
}

/// Writes all that a client types, then closes.
async fn type_in(keys: Option<mpsc::Receiver<Bytes>>, to: Option<impl AsyncWrite + Unpin>) {
    let (Some(mut keys), Some(mut to)) = (keys, to) else {
        return;
    };
    while let Some(bytes) = keys.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn follow(sizes: Option<Sizes>, terminal: &Terminal) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.next().await {
        if let Err(error) = terminal.resize(size) {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

/// The `Status` that tells a client how its command ended (`remotecommand.v4WriteStatusFunc`).
fn status(outcome: Result<i32, String>) -> Value {
    match outcome {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(why) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": format!("Internal error occurred: {why}"),
            "details": { "causes": [{ "message": why }] }, "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_are_read_however_their_text_arrives() {
        let size = |width, height| Size { width, height };
        for pieces in [
            &[
                "{\"Width\":80,\"Height\":24}\n",
                "{\"Width\":100,\"Height\":30}\n",
            ][..],
            &[
                "{\"Width\":80,\"Hei",
                "ght\":24}{\"Width\":100,",
                "\"Height\":30}",
            ],
            &["{\"Width\":80,\"Height\":24}{\"Width\":100,\"Height\":30} nonsense"],
        ] {
            let (sender, receiver) = mpsc::channel(8);
            for piece in pieces {
                sender.send(Bytes::from(*piece)).await.expect("received");
            }
            drop(sender);
            let mut sizes = Sizes::of(receiver);
            let mut seen = Vec::new();
            while let Some(size) = sizes.next().await {
                seen.push(size);
            }
            assert_eq!(seen, [size(80, 24), size(100, 30)], "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_size_without_end_is_not_kept() {
        let (sender, receiver) = mpsc::channel(1);
        let endless =
            tokio::spawn(async move { while sender.send(Bytes::from_static(&[b' '; 512])).await.is_ok() {} });
        assert_eq!(Sizes::of(receiver).next().await, None);
        endless.await.expect("the sender is told");
    }
}
