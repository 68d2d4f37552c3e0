//! TCP (RFC 7766) and TLS over it (RFC 7858): queries of a connection are answered as they get ready. No client has more
//! than its share of the connections, and none has one for ever: an idle one ends, and one that is old, or whose client
//! does not read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::slots::{Slot, Slots};
use super::{LAST_ANSWERS, keepalive};
use crate::chain::{Arrived, Client, Outcome, Server, Worker};
use crate::metrics::{Shard, Transport};

/// What a connection may take (RFC 7766 §6.2.3 leaves it to the server).
const LIMITS: Limits = Limits {
    idle: Duration::from_secs(10),
    lifetime: Duration::from_secs(300),
    write: Duration::from_secs(5),
};
/// Connections per listening address.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one client.
const SHARE: usize = MAX_CONNECTIONS / 4;
/// Queries of one connection that are worked on at once; more wait in the socket.
const MAX_PIPELINED: usize = 64;
/// Pause after `accept` failed, so that being out of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a query is still waited for at the end: it may be on its way.
const LAST_QUERY: Duration = Duration::from_millis(100);
/// What is reserved for a query before it comes.
const USUAL_QUERY: usize = 512;

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How long it may stay without a whole query.
    idle: Duration,
    /// How long queries are read from it; clients of many servers spread over them anew.
    lifetime: Duration,
    /// How long the client may take to read one answer, or to shake hands.
    write: Duration,
}

/// What all connections of one address share.
#[derive(Clone)]
pub struct Listening {
    /// What is answered by; another one may come between two queries.
    pub server: Arc<ArcSwap<Server>>,
    /// Who the server is by TLS, for connections that begin; `None` = it is not asked by TLS.
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Where queries are counted.
    pub shard: Arc<Shard>,
    /// Ends accepting, and then the connections.
    pub shutdown: CancellationToken,
}

/// Accepts connections until shutdown, and then answers what has been asked.
pub async fn serve(listener: TcpListener, listening: Listening) {
    let slots = Slots::new(MAX_CONNECTIONS, SHARE);
    let connections = TaskTracker::new();
    let accept = listening.accept(&listener, &slots, &connections);
    listening.shutdown.run_until_cancelled(accept).await;
    // Who has connected already may have asked.
    let accept_last = async {
        while let Some(Ok((stream, address))) = listener.accept().now_or_never() {
            let place = slots.free().await;
            listening.start(stream, address, slots.give(place, address.ip()), &connections);
        }
    };
    let _too_many = timeout(LAST_QUERY, accept_last).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}

impl Listening {
    async fn accept(&self, listener: &TcpListener, slots: &Arc<Slots>, connections: &TaskTracker) {
        loop {
            let place = slots.free().await;
            match listener.accept().await {
                Ok((stream, address)) => {
                    self.start(stream, address, slots.give(place, address.ip()), connections);
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection that has a place; closes it where its client has enough of them.
    fn start(&self, stream: TcpStream, address: SocketAddr, slot: Option<Slot>, connections: &TaskTracker) {
        let Some(slot) = slot else {
            self.shard.refused_connections.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let connection = Connection {
            client: Client {
                address,
                transport: Transport::Tcp,
            },
            limits: LIMITS,
            end: Instant::now() + LIMITS.lifetime,
            listening: self.clone(),
        };
        connections.spawn(async move {
            let (shard, client) = (Arc::clone(&connection.listening.shard), connection.client);
            if let Some(Err(error)) = super::survived(&shard, client, connection.serve(stream)).await {
                tracing::debug!(client = %address, %error, "connection failed");
            }
            drop(slot);
        });
    }
}

/// One client's connection.
struct Connection {
    client: Client,
    limits: Limits,
    /// When no more queries are read from it.
    end: Instant,
    listening: Listening,
}

impl Connection {
    async fn serve(self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let shutdown = self.listening.shutdown.clone();
        let last = async {
            shutdown.cancelled().await;
            sleep(LAST_ANSWERS).await;
        };
        tokio::select! {
            ended = self.exchange_by(stream) => ended,
            () = last => Ok(()),
        }
    }

    async fn exchange_by(self, stream: TcpStream) -> io::Result<()> {
        let Some(config) = &self.listening.tls else {
            return self.exchange(stream).await;
        };
        let handshake = TlsAcceptor::from(config.load_full()).accept(stream);
        let stream = within(self.limits.write, handshake).await?;
        self.exchange(stream).await
    }

    async fn exchange(self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (from, to) = tokio::io::split(stream);
        let (replies, queue) = mpsc::channel(MAX_PIPELINED);
        let writing = write_replies(to, queue, self.limits.write);
        let reading = self.read_queries(from, replies);
        // The reader's end closes the queue; the writer then writes what is left. The writer's failure ends the reader.
        tokio::pin!(writing, reading);
        tokio::select! {
            ended = &mut writing => ended,
            ended = &mut reading => { let written = writing.await; ended.and(written) }
        }
    }

    async fn read_queries(
        &self,
        from: impl AsyncRead + Unpin,
        replies: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        let Listening { server, shard, .. } = &self.listening;
        let mut from = BufReader::new(from);
        let mut worker = Worker::new(Arc::clone(shard));
        let slots = Arc::new(Semaphore::new(MAX_PIPELINED));
        while let Some(packet) = self.next_query(&mut from).await? {
            let idle = keepalive::is_asked(&packet).then(|| self.idle());
            let mut reply = Vec::with_capacity(USUAL_QUERY);
            let server = server.load_full();
            let arrived = Arrived::now(&packet, self.client);
            match server.answer_now(arrived, &mut worker, &mut reply) {
                Outcome::Reply => {
                    if replies.send(told(reply, idle)).await.is_err() {
                        return Ok(());
                    }
                }
                Outcome::Silence => {}
                Outcome::Later(denial) => {
                    let read_at = arrived.at;
                    let slot = Arc::clone(&slots).acquire_owned().await;
                    let (shard, replies, client) = (Arc::clone(shard), replies.clone(), self.client);
                    tokio::spawn(async move {
                        let arrived = Arrived {
                            packet: &packet,
                            client,
                            at: read_at,
                        };
                        let answer = server.answer(arrived, denial, &shard);
                        if let Some(Some(reply)) = super::survived(&shard, client, answer).await {
                            // A client that went away needs no reply.
                            let _ = replies.send(told(reply, idle)).await;
                        }
                        drop(slot);
                    });
                }
            }
        }
        Ok(())
    }

    /// `None` = the client is done, or has been silent for too long, or the connection is too old.
    async fn next_query(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        let last = async {
            self.listening.shutdown.cancelled().await;
            sleep(LAST_QUERY).await;
        };
        let read = tokio::select! {
            read = timeout_at(self.end.min(Instant::now() + self.limits.idle), read_frame(from)) => read,
            () = last => return Ok(None),
        };
        match read {
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Ok(read) => read.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// For how long the client may be silent from now on.
    fn idle(&self) -> Duration {
        if self.listening.shutdown.is_cancelled() {
            return Duration::ZERO;
        }
        let rest = self.end.saturating_duration_since(Instant::now());
        self.limits.idle.min(rest)
    }
}

/// An answer, and for how long the connection may be idle where the client asked.
fn told(mut reply: Vec<u8>, idle: Option<Duration>) -> Vec<u8> {
    if let Some(idle) = idle {
        keepalive::tell(&mut reply, idle);
    }
    reply
}

/// One message: two bytes of length in front (RFC 1035 §4.2.2). The memory for it comes with its bytes.
async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u16().await?;
    let mut packet = Vec::with_capacity(USUAL_QUERY.min(length.into()));
    from.take(length.into()).read_to_end(&mut packet).await?;
    if packet.len() < usize::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(packet)
}

async fn write_replies(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    limit: Duration,
) -> io::Result<()> {
    let mut frame = Vec::with_capacity(1024);
    while let Some(reply) = queue.recv().await {
        frame.clear();
        frame.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        frame.extend_from_slice(&reply);
        let write = async {
            to.write_all(&frame).await?;
            to.flush().await
        };
        within(limit, write).await?;
    }
    within(limit, to.shutdown()).await
}

/// Waits no longer for a client.
async fn within<T>(limit: Duration, exchanged: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "the client is too slow");
    timeout(limit, exchanged).await.map_err(|_| too_slow())?
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::metrics::Registry;
    use crate::name::Name;
    use crate::question::{query_packet, rtype};

    /// More than any test takes.
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);
    const LIMITS: Limits = Limits {
        idle: LONG,
        lifetime: LONG,
        write: LONG,
    };

    /// A connection that answers REFUSED whatever is asked, the client's end of it, and how it ends.
    fn connect(limits: Limits) -> (DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let connection = Connection {
            client: Client {
                address: ([127, 0, 0, 1], 1).into(),
                transport: Transport::Tcp,
            },
            limits,
            end: Instant::now() + limits.lifetime,
            listening: Listening {
                server: Arc::new(ArcSwap::from_pointee(Server::new(Vec::new(), 0))),
                tls: None,
                shard: Registry::new(Vec::new()).shard(),
                shutdown: CancellationToken::new(),
            },
        };
        (client, tokio::spawn(connection.exchange(server)))
    }

    fn query() -> Vec<u8> {
        let packet = query_packet(1, Name::parse("a.example").expect("name").wire(), rtype::A);
        [&(packet.len() as u16).to_be_bytes()[..], &packet].concat()
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_or_never_ends_is_sent_away() {
        for begun in [&[][..], &[0xff, 0xff, 1, 2, 3]] {
            let (mut client, ended) = connect(Limits {
                idle: SHORT,
                ..LIMITS
            });
            client.write_all(begun).await.expect("written");
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.expect("its end");
            assert_eq!(rest, Vec::<u8>::new());
            ended.await.expect("no panic").expect("a good end");
        }
    }

    #[tokio::test]
    async fn a_client_that_never_stops_asking_is_sent_away_with_whole_answers() {
        let (client, ended) = connect(Limits {
            lifetime: SHORT,
            ..LIMITS
        });
        let (mut from, mut to) = tokio::io::split(client);
        let asking = tokio::spawn(async move { while to.write_all(&query()).await.is_ok() {} });
        let mut answers = Vec::new();
        from.read_to_end(&mut answers).await.expect("its end");
        assert!(!answers.is_empty() && answers.len().is_multiple_of(query().len()));
        ended.await.expect("no panic").expect("a good end");
        drop(from);
        asking.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_sent_away() {
        let (mut client, ended) = connect(Limits {
            write: SHORT,
            ..LIMITS
        });
        while client.write_all(&query()).await.is_ok() {}
        let error = ended.await.expect("no panic").expect_err("a failure");
        assert_eq!(error.to_string(), "the client is too slow");
    }

    #[tokio::test]
    async fn what_was_asked_before_the_end_is_answered() {
        let (mut client, ended) = connect(LIMITS);
        client.write_all(&query().repeat(3)).await.expect("written");
        client.shutdown().await.expect("half closed");
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.expect("its end");
        assert_eq!(answers.len(), 3 * query().len());
        ended.await.expect("no panic").expect("a good end");
    }
}
