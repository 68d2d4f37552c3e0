//! Streams to an upstream: TCP, or TLS over it (RFC 7858), kept for the next question while they are idle.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::question::Judgement;

/// The most idle streams to one upstream.
const MAX_IDLE: usize = 64;

/// How upstreams are talked to by TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that their certificates must have. Default: their addresses.
    pub server_name: Option<String>,
    /// Certificates of those who sign theirs. Default: the system's.
    pub authorities: Option<PathBuf>,
    /// Our own certificate and its key. Default: none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or a key.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The system has no certificates of authorities.
    #[error("the system has no certificates of authorities; name a file of them")]
    NoAuthorities,
    /// A certificate and a key that are not a pair, or an authority's that is none.
    #[error("certificates that cannot be used: {0}")]
    Certificates(#[from] rustls::Error),
    /// The name to verify is none.
    #[error("{0:?} is no server name")]
    ServerName(String),
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn connector(&self) -> Result<TlsConnector, TlsError> {
        self.verified_name()?;
        let roots = trusted(self.authorities.as_deref())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?)?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn verified_name(&self) -> Result<Option<ServerName<'static>>, TlsError> {
        let name = self.server_name.clone();
        let parsed =
            name.map(|name| ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name)));
        parsed.transpose()
    }
}

/// Those whose signatures are good: of a file, or the system's.
pub(crate) fn trusted(authorities: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoAuthorities);
    }
    Ok(roots)
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(file_error(path))?;
    read.collect::<Result<_, _>>().map_err(file_error(path))
}

pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> TlsError {
    |source| TlsError::File {
        path: path.to_owned(),
        source,
    }
}

/// A stream that questions go over, whatever lies under it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The streams to one upstream.
pub(super) struct Connections {
    address: SocketAddr,
    security: Security,
    /// How long one is kept without a question.
    expire: Duration,
    /// Since when each is idle, the longest first.
    idle: Mutex<Vec<(Instant, Box<dyn Stream>)>>,
    /// Questions that found an idle stream, and those that did not.
    pub(super) reused: AtomicU64,
    pub(super) opened: AtomicU64,
}

enum Security {
    Plain,
    Tls(TlsConnector, ServerName<'static>),
    /// What was said when TLS was to be set up.
    Broken(String),
}

impl Connections {
    pub(super) fn new(address: SocketAddr, tls: Option<&Tls>, expire: Duration) -> Self {
        let by_tls = |tls: &Tls| -> Result<Security, TlsError> {
            let name = tls
                .verified_name()?
                .unwrap_or_else(|| ServerName::from(address.ip()));
            Ok(Security::Tls(tls.connector()?, name))
        };
        Self {
            address,
            security: match tls.map(by_tls) {
                None => Security::Plain,
                Some(Ok(security)) => security,
                Some(Err(error)) => Security::Broken(error.to_string()),
            },
            expire,
            idle: Mutex::default(),
            reused: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    /// Sends a packet and reads one. An idle stream that the other side has closed meanwhile costs a new one, and so
    /// does one where something else comes than the answer: a stream that is out of step is closed.
    pub(super) async fn exchange(
        &self,
        packet: &[u8],
        judge: impl Fn(&[u8]) -> Judgement,
    ) -> io::Result<(Vec<u8>, Judgement)> {
        if let Some(mut stream) = self.take_idle() {
            self.reused.fetch_add(1, Ordering::Relaxed);
            if let Ok(response) = exchange(&mut stream, packet).await {
                let judgement = judge(&response);
                if judgement != Judgement::Foreign {
                    self.put_idle(stream);
                    return Ok((response, judgement));
                }
            }
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut stream = self.open().await?;
        let response = exchange(&mut stream, packet).await?;
        let judgement = judge(&response);
        if judgement != Judgement::Foreign {
            self.put_idle(stream);
        }
        Ok((response, judgement))
    }

    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let (connector, name) = match &self.security {
            Security::Broken(why) => return Err(io::Error::other(why.clone())),
            Security::Plain => return Ok(Box::new(self.connect().await?)),
            Security::Tls(connector, name) => (connector, name),
        };
        let stream = self.connect().await?;
        Ok(Box::new(connector.connect(name.clone(), stream).await?))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn take_idle(&self) -> Option<Box<dyn Stream>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < self.expire);
        idle.pop().map(|(_, stream)| stream)
    }

    fn put_idle(&self, stream: Box<dyn Stream>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), stream));
        }
    }
}

/// One message each way, two bytes of length in front (RFC 1035 §4.2.2).
async fn exchange(stream: &mut Box<dyn Stream>, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut framed = Vec::with_capacity(packet.len() + 2);
    framed.extend_from_slice(&(packet.len() as u16).to_be_bytes());
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await?;
    stream.flush().await?;
    let mut response = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut response).await?;
    Ok(response)
}
