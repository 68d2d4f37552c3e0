//! Where the objects come from that the `kubernetes` plugin answers of.

use std::fmt;
use std::path::PathBuf;

/// File names are bounded by 255 bytes.
const LONGEST_NAME: usize = 200;

/// Who tells of the cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Objects {
    /// The node's agent.
    Agent(Agent),
    /// An API server, which this process watches itself.
    Api(ApiServer),
}

/// The node's agent, and what of its objects is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Agent {
    /// The socket at which it listens.
    pub socket: PathBuf,
    /// Whether endpoints keep the names of their pods.
    pub pod_names: bool,
}

impl<P: Into<PathBuf>> From<P> for Agent {
    fn from(socket: P) -> Self {
        Self {
            socket: socket.into(),
            pod_names: false,
        }
    }
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
    /// Whether endpoints keep the names of their pods. Default: no.
    pub pod_names: bool,
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
    /// Whether endpoints keep the names of their pods: in a large cluster these are half of what is known.
    #[must_use]
    pub fn pod_names(&self) -> bool {
        match self {
            Self::Agent(agent) => agent.pod_names,
            Self::Api(server) => server.pod_names,
        }
    }

    /// The same with these names.
    #[must_use]
    pub fn with_pod_names(mut self) -> Self {
        match &mut self {
            Self::Agent(agent) => agent.pod_names = true,
            Self::Api(server) => server.pod_names = true,
        }
        self
    }

    /// What the snapshot's file is called, so that several sources may share a directory: somewhat like the socket, or
    /// the API server and what is watched there, with a number behind it that is another one for another source.
    pub(super) fn file_stem(&self) -> String {
        let (name, whole) = match self {
            Self::Agent(Agent { socket, pod_names }) => {
                let stem = socket.file_stem().unwrap_or("dns".as_ref());
                let whole = format!("{}{}", socket.display(), note(*pod_names, POD_NAMES));
                (stem.to_string_lossy().into_owned(), whole)
            }
            Self::Api(server) => {
                let name = server.description();
                let whole = match &server.access {
                    Access::Endpoint { tls: Some(files), .. } => {
                        format!("{name} as {}", files.certificate.display())
                    }
                    _ => name.clone(),
                };
                (name, whole)
            }
        };
        let plain = name.chars().map(|letter| match letter {
            letter if letter.is_ascii_alphanumeric() => letter,
            _ => '-',
        });
        let plain: String = plain.take(LONGEST_NAME).collect();
        format!("{plain}-{:016x}", fingerprint(whole.as_bytes()))
    }
}

/// What tells a source whose endpoints keep the names of their pods from one whose do not: its snapshot is no other's.
const POD_NAMES: &str = " pod-names";

fn note(is_so: bool, text: &str) -> &str {
    if is_so { text } else { "" }
}

/// FNV-1a: the same in every build, as the name of a file has to be.
fn fingerprint(bytes: &[u8]) -> u64 {
    const START: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let steps = bytes.iter();
    steps.fold(START, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

impl ApiServer {
    fn description(&self) -> String {
        let Self {
            access,
            labels,
            namespace_labels,
            endpoints,
            pods,
            pod_names,
        } = self;
        let mut text = format!("api {access}");
        for (name, selector) in [("labels", labels), ("namespace-labels", namespace_labels)] {
            text.extend(selector.iter().map(|selector| format!(" {name} {selector}")));
        }
        text.push_str(note(!endpoints, " noendpoints"));
        text.push_str(note(*pods, " pods"));
        text.push_str(note(*pod_names, POD_NAMES));
        text
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
            pod_names: false,
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "{}", agent.socket.display()),
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_source_has_a_snapshot_of_its_own() {
        let by_url = |host: &str| {
            let url = format!("http://{host}:6443");
            ApiServer {
                access: Access::Endpoint { url, tls: None },
                ..ApiServer::default()
            }
        };
        let selected = ApiServer {
            labels: Some("a in (b)".to_owned()),
            endpoints: false,
            pods: true,
            ..ApiServer::default()
        };
        let long = |last: char| {
            let labels = "x".repeat(300) + &last.to_string();
            Objects::Api(ApiServer {
                labels: Some(labels),
                ..ApiServer::default()
            })
        };
        let xs = "x".repeat(173);
        let mut stems = BTreeSet::new();
        for (objects, expected) in [
            (Objects::Agent("/run/causeway/dns.sock".into()), "dns"),
            (Objects::Agent("/run/other/dns.sock".into()), "dns"),
            (
                Objects::Agent("/run/causeway/dns.sock".into()).with_pod_names(),
                "dns",
            ),
            (Objects::Api(ApiServer::default()), "api-service-account"),
            (
                Objects::Api(ApiServer::default()).with_pod_names(),
                "api-service-account-pod-names",
            ),
            (Objects::Api(by_url("a.b")), "api-http---a-b-6443"),
            (Objects::Api(by_url("a-b")), "api-http---a-b-6443"),
            (
                Objects::Api(selected),
                "api-service-account-labels-a-in--b--noendpoints-pods",
            ),
            (long('y'), &format!("api-service-account-labels-{xs}")),
            (long('z'), &format!("api-service-account-labels-{xs}")),
        ] {
            let stem = objects.file_stem();
            let (name, number) = stem.rsplit_once('-').expect("a number");
            assert_eq!((name, number.len()), (expected, 16), "{stem}");
            assert!(stems.insert(stem), "{objects:?} has the name of another");
        }
        // What is on disk has to be found by the next build.
        let agent = Objects::Agent("/run/causeway/dns.sock".into());
        assert_eq!(agent.file_stem(), "dns-3e2860e3460582dc");
    }
}
