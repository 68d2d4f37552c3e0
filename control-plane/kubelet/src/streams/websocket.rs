//! Streams in a WebSocket, one channel each: the first byte of a message is the channel's number
//! (`k8s.io/streaming/pkg/httpstream/wsstream`; KEP-4006 for version 5).

use std::io;

use bytes::{Buf as _, Bytes};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
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

/// Takes over a connection that has switched to WebSocket.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(socket: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE))
        .max_write_buffer_size(LARGEST_MESSAGE);
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}

/// Serves channels. `read` are those on which the client writes: for each its number, and what comes on it.
pub fn channels<S>(socket: WebSocketStream<S>, read: &[u8]) -> (Connection, Vec<mpsc::Receiver<Bytes>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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

async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<S>>,
    mut inputs: Vec<(u8, mpsc::Sender<Bytes>)>,
) {
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

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
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
pub fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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

#[cfg(test)]
mod tests {
    use super::*;

    type Client = WebSocketStream<DuplexStream>;

    async fn connected() -> (Client, WebSocketStream<DuplexStream>) {
        let (client, server) = tokio::io::duplex(4 * CHUNK);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        (client, open(server).await)
    }

    async fn say(client: &mut Client, bytes: &[u8]) {
        client.send(Message::binary(bytes.to_vec())).await.expect("said");
    }

    async fn hear(client: &mut Client) -> Option<Vec<u8>> {
        match client.next().await? {
            Ok(Message::Binary(bytes)) => Some(bytes.to_vec()),
            Ok(Message::Close(_)) => None,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_go_to_the_channels_that_their_first_byte_names() {
        let (mut client, server) = connected().await;
        let (connection, mut inputs) = channels(server, &[0, 4]);
        let (mut sizes, mut stdin) = (inputs.pop().expect("two"), inputs.pop().expect("one"));
        for message in [
            &b"\x00one"[..],
            b"",
            b"\x09nobody",
            b"\x04size",
            b"\x00two",
            b"\xff\x00",
            b"\x00late",
        ] {
            say(&mut client, message).await;
        }
        client.send(Message::text("\u{4}text")).await.expect("said");
        assert_eq!(stdin.recv().await, Some(Bytes::from_static(b"one")));
        assert_eq!(sizes.recv().await, Some(Bytes::from_static(b"size")));
        assert_eq!(stdin.recv().await, Some(Bytes::from_static(b"two")));
        // Version 5 has closed it.
        assert_eq!(stdin.recv().await, None);
        assert_eq!(sizes.recv().await, Some(Bytes::from_static(b"text")));
        let stdout = connection.writer(1);
        stdout.send(Bytes::from(vec![7; CHUNK + 1])).await.expect("sent");
        assert_eq!(hear(&mut client).await, Some([&[1][..], &[7; CHUNK]].concat()));
        assert_eq!(hear(&mut client).await, Some(vec![1, 7]));
        let closed = tokio::spawn(connection.close());
        assert_eq!(hear(&mut client).await, None);
        assert!(client.next().await.is_none());
        closed.await.expect("closed when the client has");
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_ends_the_connection() {
        let (mut client, server) = connected().await;
        let (connection, mut inputs) = channels(server, &[0]);
        // Its head alone tells: nothing of it is kept.
        let sending = client.send(Message::binary(vec![0; LARGEST_MESSAGE + 1]));
        tokio::select! {
            () = connection.gone() => {}
            _ = sending => connection.gone().await,
        }
        assert_eq!(inputs.pop().expect("one").recv().await, None);
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes_whatever_their_messages() {
        let (mut client, server) = connected().await;
        let mut tunnel = tunnel(server);
        say(&mut client, b"a").await;
        say(&mut client, b"bc").await;
        let mut bytes = [0; 3];
        tunnel.read_exact(&mut bytes).await.expect("read");
        assert_eq!(&bytes, b"abc");
        tunnel.write_all(b"answer").await.expect("written");
        assert_eq!(hear(&mut client).await, Some(b"answer".to_vec()));
        client.close(None).await.expect("closed");
        assert_eq!(tunnel.read(&mut bytes).await.expect("the end"), 0);
    }
}
