//! One client's connection, whichever protocol it speaks: numbered streams in frames.
//!
//! Everything in it is bounded: a reader that waits until what it read is taken, a writer that waits for the client.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most bytes of one frame to a client.
pub const CHUNK: usize = 16 << 10;
/// Frames that wait for a client that does not read.
const WAITING_FRAMES: usize = 8;
/// How long a client may take to end a connection whose work is done.
pub const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

/// What is told to the client.
#[derive(Debug)]
pub enum Frame {
    /// Bytes on a stream.
    Data {
        /// Which.
        stream: u32,
        /// At most [`CHUNK`].
        bytes: Bytes,
    },
    /// A stream has no more bytes.
    End(u32),
    /// The client may use the stream that it opened (SPDY).
    Accept(u32),
    /// It may not (SPDY).
    Refuse {
        /// Which.
        stream: u32,
        /// Why: a status of RST_STREAM.
        status: u32,
    },
    /// The answer to a ping (SPDY).
    Pong(u32),
    /// That was all.
    Farewell,
}

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

/// Where one stream is written to.
#[derive(Clone, Debug)]
pub struct Writer {
    stream: u32,
    frames: mpsc::Sender<Frame>,
}

impl Writer {
    /// For a stream by its number.
    pub fn new(stream: u32, frames: &mpsc::Sender<Frame>) -> Self {
        Self {
            stream,
            frames: frames.clone(),
        }
    }

    /// Sends bytes, in as many frames as they need; waits for the client.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(CHUNK));
            self.frame(piece).await?;
        }
        Ok(())
    }

    /// Sends one frame, which may be empty.
    pub async fn frame(&self, bytes: Bytes) -> Result<(), Gone> {
        let stream = self.stream;
        self.frames
            .send(Frame::Data { stream, bytes })
            .await
            .map_err(|_| Gone)
    }

    /// Ends the stream.
    pub async fn end(&self) -> Result<(), Gone> {
        self.frames.send(Frame::End(self.stream)).await.map_err(|_| Gone)
    }

    /// Copies all that there is to read; once `ended`, only what comes without a pause of `patience`.
    pub async fn copy(
        &self,
        mut from: impl AsyncRead + Unpin,
        ended: &CancellationToken,
        patience: Duration,
    ) -> Result<(), Gone> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let paused = async {
                ended.cancelled().await;
                tokio::time::sleep(patience).await;
            };
            let length = tokio::select! {
                read = from.read(&mut buffer) => read.unwrap_or(0),
                () = paused => 0,
            };
            match buffer.get(..length) {
                Some(bytes) if length > 0 => self.send(Bytes::copy_from_slice(bytes)).await?,
                _ => return Ok(()),
            }
        }
    }
}

/// A connection with its two tasks, which end with it.
#[derive(Debug)]
pub struct Connection {
    frames: mpsc::Sender<Frame>,
    gone: CancellationToken,
    tasks: JoinSet<()>,
}

impl Connection {
    /// Makes the queue of frames to the client.
    pub fn queue() -> (mpsc::Sender<Frame>, mpsc::Receiver<Frame>) {
        mpsc::channel(WAITING_FRAMES)
    }

    /// Starts both directions. The client is gone when reading ends, or writing fails.
    pub fn start(
        frames: mpsc::Sender<Frame>,
        reading: impl Future<Output = ()> + Send + 'static,
        writing: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> Self {
        let gone = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let end = gone.clone().drop_guard();
        tasks.spawn(async move {
            let _end = end;
            reading.await;
        });
        let end = gone.clone();
        tasks.spawn(async move {
            if let Err(error) = writing.await {
                tracing::debug!(%error, "stream to a client broke");
                end.cancel();
            }
        });
        Self { frames, gone, tasks }
    }

    /// A writer for a stream.
    pub fn writer(&self, stream: u32) -> Writer {
        Writer::new(stream, &self.frames)
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Ends the connection: the client first, since what it has not read yet would be lost.
    pub async fn close(mut self) {
        let farewell = async {
            if self.frames.send(Frame::Farewell).await.is_ok() {
                self.gone.cancelled().await;
            }
        };
        if tokio::time::timeout(FAREWELL_LIMIT, farewell).await.is_err() {
            tracing::debug!("a client did not end its connection in time");
        }
        self.tasks.abort_all();
    }
}
