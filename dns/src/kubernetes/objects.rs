//! Where the objects come from that the `kubernetes` plugin answers of.

use std::fmt;
use std::path::PathBuf;

/// File names are bounded by 255 bytes.
const LONGEST_STEM: usize = 200;

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
    /// What the snapshot's file is called, so that several sources may share a directory: like the socket, or like the
    /// API server and what is watched there.
    pub(super) fn file_stem(&self) -> String {
        match self {
            Self::Agent(socket) => {
                let stem = socket.file_stem().unwrap_or("dns".as_ref());
                stem.to_string_lossy().into_owned()
            }
            Self::Api(server) => server.file_stem(),
        }
    }
}

impl ApiServer {
    fn file_stem(&self) -> String {
        let Self {
            access,
            labels,
            namespace_labels,
            endpoints,
            pods,
        } = self;
        let mut stem = format!("api {access}");
        for (name, selector) in [("labels", labels), ("namespace-labels", namespace_labels)] {
            stem.extend(selector.iter().map(|selector| format!(" {name} {selector}")));
        }
        stem.push_str(if *endpoints { "" } else { " noendpoints" });
        stem.push_str(if *pods { " pods" } else { "" });
        let plain = stem.chars().map(|letter| match letter {
            letter if letter.is_ascii_alphanumeric() => letter,
            _ => '-',
        });
        plain.take(LONGEST_STEM).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_a_snapshot_of_its_own() {
        let url = "http://127.0.0.1:6443".to_owned();
        let by_url = ApiServer {
            access: Access::Endpoint { url, tls: None },
            ..ApiServer::default()
        };
        let selected = ApiServer {
            labels: Some("a in (b)".to_owned()),
            endpoints: false,
            pods: true,
            ..ApiServer::default()
        };
        let long = ApiServer {
            labels: Some("x".repeat(300)),
            ..ApiServer::default()
        };
        for (objects, expected) in [
            (Objects::Agent("/run/causeway/dns.sock".into()), "dns".to_owned()),
            (
                Objects::Api(ApiServer::default()),
                "api-service-account".to_owned(),
            ),
            (Objects::Api(by_url), "api-http---127-0-0-1-6443".to_owned()),
            (
                Objects::Api(selected),
                "api-service-account-labels-a-in--b--noendpoints-pods".to_owned(),
            ),
            (
                Objects::Api(long),
                format!("api-service-account-labels-{}", "x".repeat(173)),
            ),
        ] {
            assert_eq!(objects.file_stem(), expected);
        }
    }
}
