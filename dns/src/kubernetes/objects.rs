//! Where the objects come from that the `kubernetes` plugin answers of.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

/// Who tells of the cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Objects {
    /// The node's agent, by this socket.
    Agent(PathBuf),
    /// An API server, which this process watches itself.
    Api(ApiServer),
}

/// An API server, and what is watched there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiServer {
    /// How it is reached.
    pub access: Access,
    /// Label selector of Services, EndpointSlices and Pods. Default: all of them.
    pub labels: Option<String>,
    /// Label selector of Namespaces. Default: all of them.
    pub namespace_labels: Option<String>,
    /// Whether EndpointSlices are watched. Default: yes.
    pub endpoints: bool,
    /// Whether Pods are watched. Default: no.
    pub pods: bool,
}

/// How an API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// As the service account of the pod that this process runs in.
    #[default]
    ServiceAccount,
    /// By a kubeconfig file.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// One of its contexts. None = its current one.
        context: Option<String>,
    },
    /// By a URL.
    Endpoint {
        /// The URL.
        url: String,
        /// Who we are. None = nobody.
        tls: Option<TlsFiles>,
    },
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TlsFiles {
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signed the server's.
    pub authority: PathBuf,
}

impl Objects {
    /// What the snapshot's file is called: like the socket, so that two agents' may share a directory.
    pub(super) fn file_stem(&self) -> &OsStr {
        match self {
            Self::Agent(socket) => socket.file_stem().unwrap_or("dns".as_ref()),
            Self::Api(_) => "api".as_ref(),
        }
    }
}

impl Default for ApiServer {
    fn default() -> Self {
        Self {
            access: Access::default(),
            labels: None,
            namespace_labels: None,
            endpoints: true,
            pods: false,
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(socket) => write!(f, "{}", socket.display()),
            Self::Api(server) => write!(f, "{}", server.access),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount => f.write_str("service account"),
            Self::Kubeconfig { file, context: None } => write!(f, "{}", file.display()),
            Self::Kubeconfig {
                file,
                context: Some(context),
            } => write!(f, "{} {context}", file.display()),
            Self::Endpoint { url, .. } => f.write_str(url),
        }
    }
}
