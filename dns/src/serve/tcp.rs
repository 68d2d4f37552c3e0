//! TCP (RFC 7766): queries of a connection are answered as they get ready, and idle connections end. A client that is
//! never idle keeps its slots.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::chain::{Client, Outcome, Server, Worker};
use crate::metrics::{Shard, Transport};

/// How long a connection may stay without a query (RFC 7766 §6.2.3 leaves the length to the server).
const IDLE: Duration = Duration::from_secs(10);
/// How long a client may take to read one answer.
const WRITE: Duration = Duration::from_secs(5);
/// Connections per listening address.
const MAX_CONNECTIONS: usize = 1024;
/// Queries of one connection that are worked on at once; more wait in the socket.
const MAX_PIPELINED: usize = 64;
/// Pause after `accept` failed, so that being out of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    server: Arc<ArcSwap<Server>>,
    shard: Arc<Shard>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => return,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let client = Client {
                    address,
                    transport: Transport::Tcp,
                };
                let connection = serve_connection(stream, client, Arc::clone(&server), Arc::clone(&shard));
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        ended = connection => if let Err(error) = ended {
                            tracing::debug!(client = %address, %error, "connection failed");
                        },
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    client: Client,
    server: Arc<ArcSwap<Server>>,
    shard: Arc<Shard>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    let (replies, queue) = mpsc::channel(MAX_PIPELINED);
    let writing = write_replies(to, queue);
    let reading = read_queries(from, client, server, shard, replies);
    // The reader's end closes the queue; the writer then writes what is left. The writer's failure ends the reader.
    tokio::pin!(writing, reading);
    tokio::select! {
        ended = &mut writing => ended,
        ended = &mut reading => { let written = writing.await; ended.and(written) }
    }
}

async fn read_queries(
    from: OwnedReadHalf,
    client: Client,
    server: Arc<ArcSwap<Server>>,
    shard: Arc<Shard>,
    replies: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut worker = Worker::new(Arc::clone(&shard));
    let slots = Arc::new(Semaphore::new(MAX_PIPELINED));
    loop {
        let packet = match timeout(IDLE, read_frame(&mut from)).await {
            Ok(Ok(packet)) => packet,
            // The client is done, or has been silent for too long.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        };
        let mut reply = Vec::with_capacity(512);
        let server = server.load_full();
        match server.answer_now(&packet, client, &mut worker, &mut reply) {
            Outcome::Reply => {
                if replies.send(reply).await.is_err() {
                    return Ok(());
                }
            }
            Outcome::Silence => {}
            Outcome::Later => {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return Ok(());
                };
                let (shard, replies) = (Arc::clone(&shard), replies.clone());
                tokio::spawn(async move {
                    if let Some(reply) = server.answer(&packet, client, &shard).await {
                        // A client that went away needs no reply.
                        let _ = replies.send(reply).await;
                    }
                    drop(slot);
                });
            }
        }
    }
}

/// One message: two bytes of length in front (RFC 1035 §4.2.2).
async fn read_frame(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; usize::from(from.read_u16().await?)];
    from.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_replies(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut frame = Vec::with_capacity(1024);
    while let Some(reply) = queue.recv().await {
        frame.clear();
        frame.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        frame.extend_from_slice(&reply);
        let written = timeout(WRITE, to.write_all(&frame)).await;
        written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))??;
    }
    Ok(())
}
