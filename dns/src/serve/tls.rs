//! DNS over TLS for clients (RFC 7858): what the plugin `tls` says.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::server::WebPkiClientVerifier;

use crate::forward::{TlsError, certificates, private_key, trusted};

/// Who has to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nobody.
    #[default]
    None,
    /// Who has one shows a good one.
    IfGiven,
    /// Everybody.
    Required,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of those who sign the clients'. Default: the system's.
    pub authorities: Option<PathBuf>,
}

/// Who this server is to clients by TLS. Two are equal where their files say the same.
#[derive(Clone)]
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    clients: ClientAuth,
    /// Those whose clients are let in.
    authorities: Vec<TrustAnchor<'static>>,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn read(files: &Files, clients: ClientAuth) -> Result<Self, TlsError> {
        let certificates = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions()?;
        let mut authorities = Vec::new();
        let builder = match clients {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::IfGiven | ClientAuth::Required => {
                let roots = trusted(files.authorities.as_deref())?;
                authorities.clone_from(&roots.roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match clients {
                    ClientAuth::Required => verifier,
                    _ => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|_| TlsError::NoAuthorities)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(certificates.clone(), key.clone_key())?;
        Ok(Self {
            certificates,
            key: Arc::new(key),
            clients,
            authorities,
            config: Arc::new(config),
        })
    }

    /// How handshakes are made.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            certificates,
            key,
            clients,
            authorities,
            config: _,
        } = self;
        (certificates, key, clients, authorities)
            == (
                &other.certificates,
                &other.key,
                &other.clients,
                &other.authorities,
            )
    }
}

impl Eq for Identity {}

/// Without the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Identity");
        text.field("clients", &self.clients).finish_non_exhaustive()
    }
}
