//! Requests that end at a pod's node: logs, and the streams of exec, attach and port-forward. Bytes are passed on; the
//! kubelet speaks the protocols.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::object::{self, Fields};
use crate::serve::Busy;
use crate::status::{Failure, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_PORT: u16 = 10250;
/// A kubelet's reason is a line.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// Dials kubelets with the API server's client certificate.
#[derive(Clone)]
pub struct Kubelets {
    tls: TlsConnector,
    /// Without a certificate, and without a look at the other side's.
    unchecked: TlsConnector,
    reach: Reach,
}

/// Where a Node may say that it is. This server's own certificate opens everything here, and whoever writes Nodes may
/// not: without a bound a Node at this server's address would lend that certificate to all who may use `nodes/proxy`.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Where this server listens.
    pub own: Vec<SocketAddr>,
    /// Addresses of this machine where nodes are all the same.
    pub nearby: Vec<IpAddr>,
}

impl Reach {
    /// Refuses what is never a node's (`IsProxyableHostname` of `pkg/proxy/util`), and what is this machine.
    pub fn check(&self, address: SocketAddr) -> Result<()> {
        let ip = address.ip().to_canonical();
        let own = self.own.iter().any(|own| own.port() == address.port()) && is_of_this_machine(ip);
        let never = ip.is_unspecified() || ip.is_multicast() || is_link_local(ip);
        let near = ip.is_loopback() || is_of_this_machine(ip);
        match own || never || near && !self.nearby.contains(&ip) {
            true => Err(Failure::bad_request("address not allowed")),
            false => Ok(()),
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// What is sent to an address of this machine comes from that address.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Nothing is sent: the kernel only chooses an address.
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, DEFAULT_PORT))?;
        socket.local_addr()
    });
    chosen.is_ok_and(|chosen| chosen.ip() == ip)
}

impl Kubelets {
    /// `config` trusts the cluster's CA and carries the client certificate.
    pub fn new(config: Arc<rustls::ClientConfig>, reach: Reach) -> Self {
        let provider = config.crypto_provider().clone();
        let unchecked = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("invariant: the provider's versions served for the other configuration")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        Kubelets {
            tls: TlsConnector::from(config),
            unchecked: TlsConnector::from(Arc::new(unchecked)),
            reach,
        }
    }

    /// TLS with whoever answers: upstream's proxy checks no certificate of a pod or service either, since none is
    /// known. No name is asked for.
    pub async fn tls_with_anybody(&self, stream: Stream) -> std::io::Result<Stream> {
        let nobody = ServerName::IpAddress(IpAddr::from(Ipv4Addr::UNSPECIFIED).into());
        let dial = tokio::time::timeout(CONNECT_TIMEOUT, self.unchecked.connect(nobody, stream));
        Ok(Box::new(dial.await.map_err(std::io::Error::from)??))
    }

    /// Where the kubelet of a node listens.
    pub fn address(&self, node: &Value) -> Result<SocketAddr> {
        let address = kubelet_address(node)?;
        self.reach.check(address)?;
        Ok(address)
    }

    /// A plain connection to a port of a node.
    pub async fn connect_plainly(&self, address: SocketAddr) -> Result<std::io::Result<Stream>> {
        self.reach.check(address)?;
        Ok(connect(address).await)
    }

    /// GET (or POST, when a stream is asked for) at the kubelet of `node`; the answer's body streams.
    pub async fn forward(
        &self,
        node: &Value,
        method: Method,
        path_and_query: &str,
        headers: &HeaderMap,
    ) -> Result<Response<hyper::body::Incoming>> {
        let address = self.address(node)?;
        let stream = self.connect(node).await?;
        let unreachable = |why: &dyn std::fmt::Display| unreachable(node, address, why);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path_and_query
            .parse()
            .map_err(|_| Failure::bad_request("bad path"))?;
        for (key, value) in headers
            .iter()
            .filter(|(key, _)| is_streaming_header(key.as_str()))
        {
            request.headers_mut().append(key.clone(), value.clone());
        }
        let host = HeaderValue::from_str(&address.to_string()).map_err(|error| unreachable(&error))?;
        request.headers_mut().insert("host", host);
        send(stream, request).await.map_err(|error| unreachable(&error))
    }

    /// A connection to the kubelet of `node`, over which HTTP is spoken.
    pub async fn connect(&self, node: &Value) -> Result<Stream> {
        let address = self.address(node)?;
        let name = ServerName::IpAddress(address.ip().into());
        let dial = async { self.tls.connect(name, TcpStream::connect(address).await?).await };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial)
            .await
            .map_err(|_| unreachable(node, address, &"timed out"))?
            .map_err(|error| unreachable(node, address, &error))?;
        Ok(Box::new(stream))
    }
}

/// Takes every certificate whose key the other side has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unreachable(node: &Value, address: SocketAddr, why: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(format!(
        "error dialing the kubelet of node {} at {address}: {why}",
        object::name(node)
    ))
}

/// Bytes both ways.
pub trait Bidirectional: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bidirectional for S {}

/// A connection of any kind.
pub type Stream = Box<dyn Bidirectional>;

async fn connect(address: SocketAddr) -> std::io::Result<Stream> {
    let dial = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial)
        .await
        .map_err(std::io::Error::from)?;
    Ok(Box::new(stream?))
}

/// Sends one request over a connection; the answer's body streams, and it may switch protocols.
pub async fn send<B>(stream: Stream, request: Request<B>) -> hyper::Result<Response<hyper::body::Incoming>>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node ended");
        }
    });
    sender.send_request(request).await
}

/// Headers that choose and establish a streaming protocol.
fn is_streaming_header(name: &str) -> bool {
    matches!(name, "connection" | "upgrade" | "x-stream-protocol-version")
        || name.starts_with("sec-websocket-")
}

/// Where a Node says that its kubelet listens.
fn kubelet_address(node: &Value) -> Result<SocketAddr> {
    let addresses = node.list("status.addresses");
    let internal = addresses
        .iter()
        .find(|one| one.text("type") == "InternalIP")
        .map(|one| one.text("address"));
    let ip: IpAddr = internal
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| Failure::unavailable(format!("node {} has no InternalIP", object::name(node))))?;
    let port = node
        .int("status.daemonEndpoints.kubeletEndpoint.Port")
        .and_then(|port| u16::try_from(port).ok());
    Ok(SocketAddr::new(
        ip,
        port.filter(|port| *port != 0).unwrap_or(DEFAULT_PORT),
    ))
}

/// What a kubelet refused, as the Status that clients print; without one kubectl says "unknown reason".
pub async fn refusal(answer: Response<hyper::body::Incoming>) -> Failure {
    let code = answer.status();
    let text = match Limited::new(answer.into_body(), MAX_REFUSAL_BYTES)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(error) => format!("the kubelet answers {code}, and its reason cannot be read: {error}"),
    };
    Failure::by_kubelet(code, text)
}

/// Passes a kubelet's plain answer on.
pub fn pass_on(answer: Response<hyper::body::Incoming>) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    if let Some(kind) = parts.headers.get("content-type") {
        response.headers_mut().insert("content-type", kind.clone());
    }
    response
}

/// A client's connection that is to be upgraded, and what says that it is in use.
pub struct Client {
    pub(crate) upgrade: hyper::upgrade::OnUpgrade,
    pub(crate) busy: Arc<Busy>,
}

/// Joins the client's upgraded connection to the kubelet's, once both have switched protocols.
pub fn splice(client: Client, mut answer: Response<hyper::body::Incoming>) -> Response<Body> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return pass_on(answer);
    }
    let kubelet = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let Client { upgrade, busy: _busy } = client;
        let (Ok(client), Ok(kubelet)) = tokio::join!(upgrade, kubelet) else {
            return;
        };
        let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await {
            tracing::debug!(%error, "stream between client and kubelet broke");
            // Where one side breaks off, the other is still told that this is the end.
            let _ = tokio::join!(client.shutdown(), kubelet.shutdown());
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (key, value) in answer
        .headers()
        .iter()
        .filter(|(key, _)| is_streaming_header(key.as_str()))
    {
        response.headers_mut().append(key.clone(), value.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_is_this_machine_or_where_no_node_can_be() {
        let reach = |nearby: &[&str]| Reach {
            own: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6443))],
            nearby: nearby.iter().map(|ip| ip.parse().expect("an address")).collect(),
        };
        let (strict, lenient) = (reach(&[]), reach(&["127.0.0.1", "192.0.2.7"]));
        for (reach, address, expected) in [
            (&strict, "192.0.2.7:10250", true),
            (&strict, "192.0.2.7:6443", true),
            (&strict, "[2001:db8::7]:10250", true),
            (&strict, "127.0.0.1:10250", false),
            (&strict, "127.1.2.3:80", false),
            (&strict, "[::1]:10250", false),
            (&strict, "[::ffff:127.0.0.1]:10250", false),
            (&strict, "0.0.0.0:10250", false),
            (&strict, "169.254.169.254:80", false),
            (&strict, "[fe80::1]:10250", false),
            (&strict, "224.0.0.1:10250", false),
            (&lenient, "127.0.0.1:10250", true),
            (&lenient, "127.0.0.1:6443", false),
            (&lenient, "127.0.0.2:10250", false),
        ] {
            let address = address.parse().expect("an address and a port");
            assert_eq!(reach.check(address).is_ok(), expected, "{address} {reach:?}");
        }
    }
}
