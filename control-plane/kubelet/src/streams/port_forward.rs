//! Connections into a pod (`k8s.io/kubelet/pkg/cri/streaming/portforward`): to a port of its loopback, in its own
//! network namespace.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netlink::Namespace;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Gone, Writer};
use super::upgrade::{Protocol, Transport};
use super::{spdy, websocket};

/// How long a connection within a pod may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long one half of a pair may wait for the other (`streamCreationTimeout` of upstream's server).
const PAIR_LIMIT: Duration = Duration::from_secs(30);
/// Most ports of one connection in plain WebSocket channels, of which there are 256, two for each.
const MOST_PORTS: usize = 100;

/// How ports are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// SPDY, a pair of streams for each connection.
    Streams,
    /// The same in a WebSocket (KEP-4006, kubectl 1.31 and later).
    Tunnel,
    /// A pair of WebSocket channels for each port of the query, one connection each.
    Channels,
}

/// All that is spoken.
pub const PROTOCOLS: [Protocol<Style>; 3] = [
    Protocol {
        transport: Transport::Spdy,
        name: "portforward.k8s.io",
        meaning: Style::Streams,
    },
    Protocol {
        transport: Transport::WebSocket,
        name: "SPDY/3.1+portforward.k8s.io",
        meaning: Style::Tunnel,
    },
    Protocol {
        transport: Transport::WebSocket,
        name: "v4.channel.k8s.io",
        meaning: Style::Channels,
    },
];

/// The pod that connections lead into.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its network namespace; `None` = the node's own.
    pub netns: Option<PathBuf>,
    /// How it is called in messages.
    pub name: String,
}

/// Why there is no connection, in upstream's words.
#[derive(Debug, thiserror::Error)]
#[error(
    "error forwarding port {port} to pod {pod}: failed to connect to localhost:{port} in its network namespace, {why}"
)]
struct ForwardError {
    port: u16,
    pod: String,
    why: String,
}

/// Serves a client until it goes.
pub async fn serve(style: Style, socket: DuplexStream, target: Target, ports: Vec<u16>) {
    match style {
        Style::Streams => by_streams(socket, target).await,
        Style::Tunnel => by_streams(websocket::tunnel(websocket::open(socket).await), target).await,
        Style::Channels => by_channels(socket, target, ports).await,
    }
}

/// The ports that a query names: `ports=80,443`, or several `ports` or `port`.
pub fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name == "ports" || name == "port" {
            for port in value.split(',') {
                match port.parse() {
                    Ok(port @ 1..) if ports.len() < MOST_PORTS => ports.push(port),
                    Ok(1..) => return Err(format!("more than {MOST_PORTS} ports")),
                    _ => return Err(format!("invalid port {port:?}")),
                }
            }
        }
    }
    Ok(ports)
}

/// Pairs streams by their `requestid` and connects each pair to its port.
async fn by_streams(socket: impl AsyncRead + AsyncWrite + Send + 'static, target: Target) {
    let (connection, mut opened) = spdy::open(socket);
    let target = Arc::new(target);
    let mut halves: HashMap<String, (Instant, spdy::Stream)> = HashMap::new();
    let mut pairs = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = connection.gone() => return,
            Some(_) = pairs.join_next(), if !pairs.is_empty() => continue,
            stream = opened.recv() => match stream {
                Some(stream) => stream,
                None => return,
            },
        };
        // Clients of the first version name no request: their pairs follow from the port.
        let request = match stream.header("requestid") {
            "" => format!("port {}", stream.header("port")),
            request => request.to_owned(),
        };
        // What waits holds a place among the connection's streams: there are never more of them than these.
        halves.retain(|_, (since, _)| since.elapsed() < PAIR_LIMIT);
        let Some((_, other)) = halves.remove(&request) else {
            halves.insert(request, (Instant::now(), stream));
            continue;
        };
        let is_error = |stream: &spdy::Stream| stream.header("streamtype") == "error";
        let (data, error) = match is_error(&stream) {
            true => (other, stream),
            false => (stream, other),
        };
        if !is_error(&error) || data.header("streamtype") != "data" {
            continue;
        }
        let target = Arc::clone(&target);
        pairs.spawn(async move {
            let outcome = match data.header("port").parse() {
                Ok(port @ 1..) => forward(&target, port, data.input, &data.output).await,
                _ => Ok(()),
            };
            if let Err(failure) = outcome {
                let _ = error.output.send(Bytes::from(failure.to_string())).await;
            }
            let _ = data.output.end().await;
            let _ = error.output.end().await;
        });
    }
}

/// Two channels for each port: data, and errors. Each begins with its port, little-endian.
async fn by_channels(socket: DuplexStream, target: Target, ports: Vec<u16>) {
    let inputs: Vec<u8> = (0..ports.len())
        .filter_map(|index| u8::try_from(2 * index).ok())
        .collect();
    let (connection, receivers) = websocket::channels(websocket::open(socket).await, &inputs);
    let mut forwards = JoinSet::new();
    for ((port, input), channel) in ports.into_iter().zip(receivers).zip((0..).step_by(2)) {
        let (data, error) = (connection.writer(channel), connection.writer(channel + 1));
        let target = target.clone();
        forwards.spawn(async move {
            let announced = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.frame(announced.clone()).await.is_err() || error.frame(announced).await.is_err() {
                return;
            }
            if let Err(failure) = forward(&target, port, input, &data).await {
                let _ = error.send(Bytes::from(failure.to_string())).await;
            }
        });
    }
    tokio::select! {
        () = connection.gone() => return,
        () = async { while forwards.join_next().await.is_some() {} } => {}
    }
    connection.close().await;
}

/// Connects, and carries bytes both ways until both have ended.
async fn forward(
    target: &Target,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    output: &Writer,
) -> Result<(), ForwardError> {
    let failed = |why: String| ForwardError {
        port,
        pod: target.name.clone(),
        why,
    };
    let socket = connect(target.netns.clone(), port).await.map_err(failed)?;
    let (read, mut write) = socket.into_split();
    let inward = async {
        while let Some(bytes) = input.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let never = CancellationToken::new();
    let outward = async {
        output.copy(read, &never, Duration::ZERO).await?;
        output.end().await
    };
    let mut inward = std::pin::pin!(inward);
    // When the pod has said all, what the client still says is for nobody.
    let outcome: Result<(), Gone> = tokio::select! {
        outcome = outward => outcome,
        () = async { inward.as_mut().await; std::future::pending().await } => Ok(()),
    };
    if outcome.is_err() {
        tracing::debug!(port, "a client left a connection into a pod");
    }
    Ok(())
}

/// A connection within the namespace, by IPv4 or else IPv6. The thread that makes it belongs to the namespace; the
/// connection then works from everywhere.
async fn connect(netns: Option<PathBuf>, port: u16) -> Result<TcpStream, String> {
    let dial = move || -> Result<std::net::TcpStream, String> {
        let to = |address: SocketAddr| std::net::TcpStream::connect_timeout(&address, CONNECT_LIMIT);
        let both = || {
            to((Ipv4Addr::LOCALHOST, port).into()).or_else(|ipv4| {
                to((Ipv6Addr::LOCALHOST, port).into()).map_err(|ipv6| format!("IPv4: {ipv4} IPv6: {ipv6}"))
            })
        };
        match netns {
            None => both(),
            Some(path) => {
                let namespace = Namespace::open(path).map_err(|error| error.to_string())?;
                namespace.run(both).map_err(|error| error.to_string())?
            }
        }
    };
    let socket = tokio::task::spawn_blocking(dial)
        .await
        .map_err(|error| error.to_string())??;
    let ready = |socket: std::net::TcpStream| -> io::Result<TcpStream> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        TcpStream::from_std(socket)
    };
    ready(socket).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_query() {
        let too_many = vec!["1"; MOST_PORTS + 1].join(",");
        for (query, expected) in [
            ("ports=80%2C443", Ok(vec![80, 443])),
            ("ports=80&ports=81&port=82", Ok(vec![80, 81, 82])),
            ("", Ok(vec![])),
            ("ports=0", Err("invalid port \"0\"".to_owned())),
            ("ports=65536", Err("invalid port \"65536\"".to_owned())),
            (
                &format!("ports={too_many}"),
                Err("more than 100 ports".to_owned()),
            ),
        ] {
            assert_eq!(ports(query), expected, "{query}");
        }
    }
}
