//! SPDY/3.1 (draft-mbelshe-httpbis-spdy-00) as far as kubectl speaks it: streams that the client opens, data both ways.
//!
//! The peers (`moby/spdystream`) neither keep nor announce flow control windows, so neither does this side: what
//! bounds a stream is that frames are read only as fast as they are taken.

mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::connection::{CHUNK, Connection, Frame, Writer};
use headers::{HeaderReader, HeaderWriter, Malformed};

/// Streams of one connection at a time. A connection through `kubectl port-forward` takes two.
const MOST_STREAMS: usize = 512;
/// Streams that were opened and not yet looked at.
const WAITING_STREAMS: usize = 16;
/// Pieces of data that wait on one stream.
const WAITING_PIECES: usize = 2;
/// Largest control frame, in bytes: kubectl's have less than 200.
const LARGEST_CONTROL: usize = 16 << 10;

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const PROTOCOL_ERROR: u32 = 1;
const INVALID_STREAM: u32 = 2;
const REFUSED_STREAM: u32 = 3;

/// A client that breaks the protocol.
#[derive(Debug, thiserror::Error)]
enum SpdyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Headers(#[from] Malformed),
    #[error("version {0:#x} is not SPDY/3")]
    Version(u16),
    #[error("a control frame of {0} bytes")]
    TooLarge(usize),
    #[error("a control frame of type {0} is cut short")]
    Short(u16),
    #[error("the client is gone")]
    Gone,
}

/// A stream that the client opened.
#[derive(Debug)]
pub struct Stream {
    /// Its headers, in their order.
    pub headers: Vec<(String, String)>,
    /// What the client sends.
    pub input: mpsc::Receiver<Bytes>,
    /// What is sent to it.
    pub output: Writer,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        let mut named = self.headers.iter().filter(|(key, _)| key == name);
        named.next().map_or("", |(_, value)| value)
    }
}

/// Serves a connection that has switched to SPDY: its streams as the client opens them.
pub fn open<S>(socket: S) -> (Connection, mpsc::Receiver<Stream>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(socket);
    let (frames, outgoing) = Connection::queue();
    let (opened, streams) = mpsc::channel(WAITING_STREAMS);
    let reader = Reader {
        socket: BufReader::with_capacity(CHUNK, read),
        headers: HeaderReader::default(),
        inputs: HashMap::new(),
        newest: 0,
        places: Arc::new(Semaphore::new(MOST_STREAMS)),
        opened,
        frames: frames.clone(),
    };
    let reading = async move {
        if let Err(error) = reader.run().await {
            tracing::debug!(%error, "SPDY connection ended");
        }
    };
    (Connection::start(frames, reading, send(write, outgoing)), streams)
}

/// `[control:1][version:15][type:16]` or `[0:1][stream:31]`, then `[flags:8][length:24]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, flags: u8, length: usize },
}

impl Head {
    fn parse(first: u32, second: u32) -> Result<Self, SpdyError> {
        let [flags, high, middle, low] = second.to_be_bytes();
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let [a, b, c, d] = first.to_be_bytes();
        let (version, kind) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match version {
            VERSION => Ok(Self::Control { kind, flags, length }),
            _ if version & 0x8000 != 0 => Err(SpdyError::Version(version & 0x7fff)),
            _ => Ok(Self::Data {
                stream: first,
                flags,
                length,
            }),
        }
    }
}

struct Reader<R> {
    socket: BufReader<R>,
    headers: HeaderReader,
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    newest: u32,
    places: Arc<Semaphore>,
    opened: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Frame>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), SpdyError> {
        loop {
            let first = match self.socket.read_u32().await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                first => first?,
            };
            match Head::parse(first, self.socket.read_u32().await?)? {
                Head::Data {
                    stream,
                    flags,
                    length,
                } => self.data(stream, flags, length).await?,
                Head::Control { length, .. } if length > LARGEST_CONTROL => {
                    return Err(SpdyError::TooLarge(length));
                }
                Head::Control { kind: GOAWAY, .. } => return Ok(()),
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.socket.read_exact(&mut payload).await?;
                    self.control(kind, flags, &payload).await?;
                }
            }
        }
    }

    /// Hands data on piece by piece: a frame may have 16 MiB.
    async fn data(&mut self, stream: u32, flags: u8, length: usize) -> Result<(), SpdyError> {
        if !self.inputs.contains_key(&stream) && stream > self.newest {
            self.answer(Frame::Refuse {
                stream,
                status: INVALID_STREAM,
            })
            .await?;
        }
        let mut left = length;
        while left > 0 {
            let mut piece = vec![0; left.min(CHUNK)];
            self.socket.read_exact(&mut piece).await?;
            left -= piece.len();
            if let Some(input) = self.inputs.get(&stream)
                && input.send(Bytes::from(piece)).await.is_err()
            {
                self.inputs.remove(&stream);
            }
        }
        if flags & FIN != 0 {
            self.inputs.remove(&stream);
        }
        Ok(())
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<(), SpdyError> {
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or(SpdyError::Short(kind))
        };
        match kind {
            // [stream:4][associated:4][priority:1][slot:1][headers]
            SYN_STREAM => {
                let headers = self
                    .headers
                    .read(payload.get(10..).ok_or(SpdyError::Short(kind))?)?;
                self.open(number(0)? & 0x7fff_ffff, flags, headers).await
            }
            // The headers of both directions are one compressed stream: each block has to be read.
            SYN_REPLY | HEADERS => {
                self.headers
                    .read(payload.get(4..).ok_or(SpdyError::Short(kind))?)?;
                Ok(())
            }
            RST_STREAM => {
                self.inputs.remove(&(number(0)? & 0x7fff_ffff));
                Ok(())
            }
            PING => self.answer(Frame::Pong(number(0)?)).await,
            // SETTINGS, WINDOW_UPDATE and whatever else may be ignored.
            _ => Ok(()),
        }
    }

    async fn open(
        &mut self,
        stream: u32,
        flags: u8,
        headers: Vec<(String, String)>,
    ) -> Result<(), SpdyError> {
        let refuse = |status| Frame::Refuse { stream, status };
        if stream.is_multiple_of(2) || stream <= self.newest {
            return self.answer(refuse(PROTOCOL_ERROR)).await;
        }
        self.newest = stream;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return self.answer(refuse(REFUSED_STREAM)).await;
        };
        self.inputs.retain(|_, input| !input.is_closed());
        let (sender, input) = mpsc::channel(WAITING_PIECES);
        if flags & FIN == 0 {
            self.inputs.insert(stream, sender);
        }
        self.answer(Frame::Accept(stream)).await?;
        let opened = Stream {
            headers,
            input,
            output: Writer::new(stream, &self.frames),
            _place: place,
        };
        self.opened.send(opened).await.map_err(|_| SpdyError::Gone)
    }

    /// Not by a shared reference: a socket need not be `Sync`.
    async fn answer(&mut self, frame: Frame) -> Result<(), SpdyError> {
        self.frames.send(frame).await.map_err(|_| SpdyError::Gone)
    }
}

async fn send<S: AsyncWrite>(mut socket: WriteHalf<S>, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut headers = HeaderWriter::default();
    let mut newest = 0;
    while let Some(frame) = frames.recv().await {
        if let Frame::Accept(stream) = frame {
            newest = stream;
        }
        let last = matches!(frame, Frame::Farewell);
        socket.write_all(&encoded(frame, newest, &mut headers)?).await?;
        socket.flush().await?;
        if last {
            return socket.shutdown().await;
        }
    }
    Ok(())
}

fn encoded(frame: Frame, newest: u32, headers: &mut HeaderWriter) -> io::Result<Vec<u8>> {
    Ok(match frame {
        Frame::Data { stream, bytes } => data(stream, 0, &bytes),
        Frame::End(stream) => data(stream, FIN, &[]),
        Frame::Accept(stream) => control(
            SYN_REPLY,
            &[&stream.to_be_bytes(), &*headers.write(&[])?].concat(),
        ),
        Frame::Refuse { stream, status } => control(RST_STREAM, &words(stream, status)),
        Frame::Pong(id) => control(PING, &id.to_be_bytes()),
        Frame::Farewell => control(GOAWAY, &words(newest, 0)),
    })
}

fn words(first: u32, second: u32) -> [u8; 8] {
    (u64::from(first) << 32 | u64::from(second)).to_be_bytes()
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    framed([VERSION.to_be_bytes(), kind.to_be_bytes()].concat(), 0, payload)
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    framed(stream.to_be_bytes().to_vec(), flags, payload)
}

/// Payloads are far shorter than the 16 MiB that a length can say.
fn framed(mut frame: Vec<u8>, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, middle, low] = payload.len().to_be_bytes();
    frame.extend([flags, high, middle, low]);
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests;
