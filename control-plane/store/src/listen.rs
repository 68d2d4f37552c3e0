//! From a listening socket to a connection that is known to be allowed in.
//!
//! Handshakes run beside each other and end after a while, so that a client that says nothing delays nobody.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{config::TlsFiles, scope::Scope};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// After an accept that failed (too many open files) the next is tried after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address was given.
    #[error("no address to listen on")]
    NoAddress,
    /// Without TLS the store is open to all who can connect.
    #[error("{addr} is not a loopback address, and listening there needs TLS")]
    Unprotected {
        /// Where.
        addr: SocketAddr,
    },
    /// Another socket has the address.
    #[error("{addr} is in use")]
    AddressInUse {
        /// Which.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Bind {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A PEM file cannot be read.
    #[error("cannot read {path}")]
    ReadPem {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The client CA's file holds no certificate that can be used.
    #[error("cannot use the client CA in {path}")]
    ClientCa {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// Certificate and key do not make a server.
    #[error("cannot use the certificate in {path}")]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Listens on every address, or on none.
pub async fn bind(addrs: &[SocketAddr], tls: bool) -> Result<Vec<TcpListener>, Error> {
    if addrs.is_empty() {
        return Err(Error::NoAddress);
    }
    if let Some(addr) = addrs.iter().find(|addr| !tls && !addr.ip().is_loopback()) {
        return Err(Error::Unprotected { addr: *addr });
    }
    let mut listeners = Vec::with_capacity(addrs.len());
    for addr in addrs {
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => Error::AddressInUse { addr: *addr },
                _ => Error::Bind { addr: *addr, source },
            })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Reads the files. Only clients with a certificate of the client CA come in.
pub fn tls_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, Error> {
    let TlsFiles { cert, key, client_ca } = files;
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(client_ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .build()
        .map_err(|source| Error::ClientCa {
            path: client_ca.clone(),
            source,
        })?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| Error::ReadPem {
        path: key.clone(),
        source,
    })?;
    let chain = certificates(cert)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, private)
        })
        .map_err(|source| Error::Certificate {
            path: cert.clone(),
            source,
        })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| Error::ReadPem {
            path: path.to_owned(),
            source,
        })
}

/// Accepts on one listener until the token is cancelled, and hands on the connections that may come in.
pub async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = handshakes.join_next() => continue,
            incoming = listener.accept() => incoming,
        };
        match incoming {
            Ok((stream, peer)) => {
                handshakes.spawn(welcome(stream, peer, tls.clone(), accepted.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    // A delayed small answer is the worst that happens without it.
    let _ = stream.set_nodelay(true);
    let connection = match tls {
        None => Ok(Connection {
            stream: Transport::Plain(stream),
            scope: Scope::All,
        }),
        Some(tls) => match timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
            Ok(Ok(stream)) => identify(stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    };
    match connection {
        // The receiver is gone when the server stops.
        Ok(connection) => drop(accepted.send(Ok(connection)).await),
        Err(error) => tracing::debug!(%peer, %error, "turned a client away"),
    }
}

fn identify(stream: TlsStream<TcpStream>) -> io::Result<Connection> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let scope = certificate
        .and_then(|der| Scope::of_certificate(der))
        .ok_or_else(|| io::Error::other("the client's certificate opens nothing here"))?;
    Ok(Connection {
        stream: Transport::Tls(Box::new(stream)),
        scope,
    })
}

/// A connection that was let in, with what its client may touch.
#[derive(Debug)]
pub struct Connection {
    stream: Transport,
    scope: Scope,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Scope;

    fn connect_info(&self) -> Scope {
        self.scope.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
