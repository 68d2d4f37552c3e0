//! Streams in a WebSocket, one channel each: the first byte of a message is the channel's number
//! (`k8s.io/streaming/pkg/httpstream/wsstream`; KEP-4006 for version 5).

use std::io;

use bytes::{Buf as _, Bytes};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::connection::{CHUNK, Connection, Frame};

/// Largest message from a client, in bytes. kubectl's have 32 KiB.
const LARGEST_MESSAGE: usize = 1 << 20;
/// Messages that wait on one channel.
const WAITING_MESSAGES: usize = 2;
/// The channel on which version 5 closes others; its message holds their numbers.
const CLOSE_CHANNEL: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Takes over a connection that has switched to WebSocket.
pub async fn open(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE))
        .max_write_buffer_size(LARGEST_MESSAGE);
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

/// Serves channels. `read` are those on which the client writes: for each its number, and what comes on it.
pub fn channels(socket: Socket, read: &[u8]) -> (Connection, Vec<mpsc::Receiver<Bytes>>) {
    let (sink, stream) = socket.split();
    let (frames, outgoing) = Connection::queue();
    let (inputs, receivers) = read
        .iter()
        .map(|channel| {
            let (sender, receiver) = mpsc::channel(WAITING_MESSAGES);
            ((*channel, sender), receiver)
        })
        .unzip();
    let connection = Connection::start(frames, deliver(stream, inputs), write(sink, outgoing));
    (connection, receivers)
}

async fn deliver(mut stream: SplitStream<Socket>, mut inputs: Vec<(u8, mpsc::Sender<Bytes>)>) {
    while let Some(message) = stream.next().await {
        let mut bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => Bytes::from(text),
            // Pings are answered, and a close too, by the socket itself.
            Ok(_) => continue,
            Err(error) => return tracing::debug!(%error, "WebSocket ended"),
        };
        let Some(&channel) = bytes.first() else {
            continue;
        };
        bytes.advance(1);
        if channel == CLOSE_CHANNEL {
            inputs.retain(|(input, _)| !bytes.contains(input));
        } else if let Some((_, input)) = inputs.iter().find(|(input, _)| *input == channel) {
            // Whoever has stopped to listen loses what comes.
            let _ = input.send(bytes).await;
        }
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        let message = match frame {
            Frame::Data { stream, bytes } => {
                let channel = u8::try_from(stream).unwrap_or(CLOSE_CHANNEL);
                Message::binary([&[channel], &*bytes].concat())
            }
            Frame::Farewell => Message::Close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: "".into(),
            })),
            Frame::End(_) | Frame::Accept(_) | Frame::Refuse { .. } | Frame::Pong(_) => continue,
        };
        sink.send(message).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// The bytes that another protocol sends through a WebSocket, in messages of any size.
pub fn tunnel(socket: Socket) -> DuplexStream {
    let (inner, outer) = tokio::io::duplex(4 * CHUNK);
    let (mut sink, mut stream) = socket.split();
    let (mut from_inside, mut to_inside) = tokio::io::split(inner);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message
                && to_inside.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _ = to_inside.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from_inside.read(&mut buffer).await {
            let message = Message::binary(buffer.get(..length).unwrap_or_default().to_vec());
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    outer
}
