//! The connection to the API server.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, ListParams};
use kube::client::{Body, ConfigExt};
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use kube::{Client, Config};
use model::NodeName;
use sha2::{Digest as _, Sha256};
use tower::{BoxError, ServiceBuilder};

use super::calls::Calls;
use super::kubeconfig;
use super::requests::{Asked, Heard, WatchRequests};
use crate::backoff::Backoff;

/// A server that is gone without a word is noticed after 10 + 3 × 3 seconds. kube-rs alone would wait for the watch
/// to time out, 295 seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

/// Data that the server does not acknowledge for this long ends the connection (RFC 5482); keep-alive probes are
/// not sent while data is outstanding.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// A connection keeps the buffer that its fastest moment needed, and a watch lasts: hyper's own limit is six times as
/// much, and no list comes any sooner by it.
const LARGEST_READ_BYTES: usize = 64 << 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct ApiSource {
    /// What tells both.
    pub credentials: Credentials,
    /// Replaces the server's host.
    pub host: Option<String>,
    /// Replaces the server's port.
    pub port: Option<u16>,
    /// Where requests are counted.
    pub calls: Calls,
}

/// Who speaks to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The API server's, as `v1.33.2`.
    pub server: String,
    /// That of the kubelet of a node; none where there is no such node.
    pub kubelet: Option<String>,
    /// How many pods that one takes (`status.allocatable`), where it says so.
    pub most_pods: Option<u32>,
}

/// Why versions are not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionsError {
    /// There is no connection to try.
    #[error("connect to the API server")]
    Connect(#[from] ConnectError),
    /// It does not answer.
    #[error("ask the API server")]
    Ask(#[from] kube::Error),
}

/// What tells where the API server is and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// The service account of the pod that this process runs in.
    #[default]
    ServiceAccount,
    /// A kubeconfig.
    Kubeconfig {
        /// Its files: of several the first that says something is right.
        paths: Vec<PathBuf>,
        /// One of its contexts. None = its current one.
        context: Option<String>,
    },
    /// A server's URL; without certificates for one that asks nobody who it is.
    Endpoint {
        /// The URL.
        url: String,
        /// What `https` needs.
        tls: Option<TlsFiles>,
    },
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signed the server's.
    pub authority: PathBuf,
}

impl From<Option<PathBuf>> for Credentials {
    /// A kubeconfig, where there is one.
    fn from(path: Option<PathBuf>) -> Self {
        path.map_or(Self::ServiceAccount, |path| Self::Kubeconfig {
            paths: vec![path],
            context: None,
        })
    }
}

/// Why there is no connection to try.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read or used.
    #[error("use kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The URL or the certificates of a server cannot be used.
    #[error("use the API server {url}")]
    Endpoint {
        /// The URL.
        url: String,
        /// What is wrong.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// There is no usable service account.
    #[error("use the pod's service account (is kubernetes.kubeconfig missing in the configuration?)")]
    ServiceAccount(#[source] kube::config::InClusterError),
    /// Host and port do not make an address.
    #[error("replace the server by {authority}")]
    Server {
        /// `host:port`.
        authority: String,
        /// What is wrong with it.
        #[source]
        source: http::Error,
    },
    /// Keys or certificates cannot be used.
    #[error("set up TLS")]
    Tls(#[source] kube::Error),
}

impl ApiSource {
    /// Reads the credentials and makes a client, which tells what the server says to each request.
    ///
    /// # Errors
    /// [`ConnectError`] when the credentials cannot be used.
    pub(super) async fn client(&self, heard: Heard) -> Result<Client, ConnectError> {
        let mut config = self.credentials().await?;
        self.replace_server(&mut config)?;
        client(&config, heard, self.calls.clone()).map_err(ConnectError::Tls)
    }

    /// The server's host, an address or a name; none where the credentials cannot be used, which is told elsewhere.
    pub async fn server_host(&self) -> Option<String> {
        let mut config = self.credentials().await.ok()?;
        self.replace_server(&mut config).ok()?;
        let host = config.cluster_url.host()?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }

    /// Asks for two versions: small questions, of which the server answers the first to everybody.
    ///
    /// # Errors
    /// When it does not answer, or not so. That there is no such node is no error.
    pub async fn versions(&self, node: &NodeName) -> Result<Versions, VersionsError> {
        let client = self.client(Arc::new(|_, _| {})).await?;
        let server = client.apiserver_version().await?.git_version;
        let this_node = ListParams::default().fields(&format!("metadata.name={node}"));
        let nodes = Api::<core::Node>::all(client).list(&this_node).await?;
        let status = nodes.items.into_iter().find_map(|node| node.status);
        let (info, allocatable) =
            status.map_or((None, None), |status| (status.node_info, status.allocatable));
        let most_pods = allocatable.and_then(|amounts| super::vpc_facts::pods(&amounts.get("pods")?.0));
        Ok(Versions {
            server,
            kubelet: info.map(|info| info.kubelet_version),
            most_pods,
        })
    }

    /// What the files of the credentials say, as digests: a change means that they were rotated. When they were written
    /// tells nothing, since kubelet writes all of a volume anew when one of them changes.
    pub(super) fn digests(&self) -> Vec<Option<[u8; 32]>> {
        let digest = |path: &PathBuf| Some(Sha256::digest(std::fs::read(path).ok()?).into());
        self.files().iter().map(digest).collect()
    }

    /// Files of tokens are not among them: they change every hour, kube-rs reads them every minute, and a server that
    /// wants another token says so.
    fn files(&self) -> Vec<PathBuf> {
        match &self.credentials {
            Credentials::ServiceAccount => vec![Path::new(SERVICE_ACCOUNT).join("ca.crt")],
            Credentials::Kubeconfig { paths, .. } => {
                let named = paths.iter().flat_map(|path| files_in(path));
                paths.iter().cloned().chain(named).collect()
            }
            Credentials::Endpoint { tls: Some(tls), .. } => {
                let TlsFiles {
                    certificate,
                    key,
                    authority,
                } = tls.clone();
                vec![certificate, key, authority]
            }
            Credentials::Endpoint { tls: None, .. } => Vec::new(),
        }
    }

    /// Where the server is and who we are to it, but for a host or a port that replaces the server's.
    ///
    /// # Errors
    /// [`ConnectError`] when the credentials cannot be used.
    pub(super) async fn credentials(&self) -> Result<Config, ConnectError> {
        match &self.credentials {
            Credentials::ServiceAccount => {
                // The environment has no server where the pod's Services are not served yet; the host is then given.
                let in_cluster = Config::incluster_env().or_else(|error| {
                    if self.host.is_some() {
                        Config::incluster_dns()
                    } else {
                        Err(error)
                    }
                });
                in_cluster.map_err(ConnectError::ServiceAccount)
            }
            Credentials::Kubeconfig { paths, context } => {
                let options = KubeConfigOptions {
                    context: context.clone(),
                    ..KubeConfigOptions::default()
                };
                let config = Config::from_custom_kubeconfig(kubeconfig::merged(paths)?, &options).await;
                config.map_err(|source| ConnectError::Kubeconfig {
                    path: listed(paths),
                    source,
                })
            }
            Credentials::Endpoint { url, tls } => {
                let kubeconfig = kubeconfig_of(url, tls.as_ref());
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
                config.map_err(|source| ConnectError::Endpoint {
                    url: url.clone(),
                    source,
                })
            }
        }
    }

    fn replace_server(&self, config: &mut Config) -> Result<(), ConnectError> {
        if self.host.is_none() && self.port.is_none() {
            return Ok(());
        }
        let url = &config.cluster_url;
        let host = self.host.as_deref().or(url.host()).unwrap_or_default();
        let default_port = if url.scheme_str() == Some("http") { 80 } else { 443 };
        let port = self.port.or(url.port_u16()).unwrap_or(default_port);
        let bare_v6 = host.contains(':') && !host.starts_with('[');
        let authority = if bare_v6 {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let replaced = http::Uri::builder()
            .scheme(url.scheme_str().unwrap_or("https"))
            .authority(authority.as_str())
            .path_and_query(url.path())
            .build();
        config.cluster_url = replaced.map_err(|source| ConnectError::Server { authority, source })?;
        Ok(())
    }
}

/// A client that is made when it is needed first, and made anew after a failure: credentials may have been replaced
/// meanwhile.
pub(super) struct Connection<'s> {
    source: &'s ApiSource,
    client: Option<Client>,
    asked: Asked,
}

impl<'s> Connection<'s> {
    /// To that server; nothing is done yet.
    pub(super) fn to(source: &'s ApiSource) -> Self {
        Self {
            source,
            client: None,
            asked: Asked::default(),
        }
    }

    /// The client.
    ///
    /// # Errors
    /// [`ConnectError`] when the credentials cannot be used.
    pub(super) async fn client(&mut self) -> Result<Client, ConnectError> {
        if self.client.is_none() {
            self.client = Some(self.source.client(self.asked.heard()).await?);
        }
        Ok(self.client.clone().expect("invariant: it was made"))
    }

    /// Gives the client up after a failure. How long to wait before the next attempt: at least as long as the server
    /// asked for.
    pub(super) fn failed(&mut self, backoff: &mut Backoff) -> Duration {
        self.client = None;
        backoff.next_delay().max(self.asked.left(Instant::now()))
    }
}

/// Several files as one, as `KUBECONFIG` lists them: for people, since a name may have a colon of its own.
fn listed(paths: &[PathBuf]) -> PathBuf {
    let paths: Vec<&OsStr> = paths.iter().map(|path| path.as_os_str()).collect();
    paths.join(OsStr::new(":")).into()
}

/// The files of certificates and keys that a kubeconfig names instead of saying what is in them.
fn files_in(kubeconfig: &Path) -> Vec<PathBuf> {
    let Ok(kubeconfig) = Kubeconfig::read_from(kubeconfig) else {
        return Vec::new();
    };
    let clusters = kubeconfig.clusters.into_iter();
    let authorities = clusters.filter_map(|named| named.cluster?.certificate_authority);
    let users = kubeconfig
        .auth_infos
        .into_iter()
        .filter_map(|named| named.auth_info);
    let theirs = users.flat_map(|user| [user.client_certificate, user.client_key]);
    authorities.chain(theirs.flatten()).map(PathBuf::from).collect()
}

/// What a kubeconfig file would say of a server.
fn kubeconfig_of(url: &str, tls: Option<&TlsFiles>) -> Kubeconfig {
    let name = "endpoint".to_owned();
    let file = |file: fn(&TlsFiles) -> &PathBuf| tls.map(|tls| file(tls).to_string_lossy().into_owned());
    Kubeconfig {
        clusters: vec![NamedCluster {
            name: name.clone(),
            cluster: Some(Cluster {
                server: Some(url.to_owned()),
                certificate_authority: file(|tls| &tls.authority),
                ..Cluster::default()
            }),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name.clone(),
            auth_info: Some(AuthInfo {
                client_certificate: file(|tls| &tls.certificate),
                client_key: file(|tls| &tls.key),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: name.clone(),
            context: Some(Context {
                cluster: name.clone(),
                user: Some(name.clone()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(name),
        ..Kubeconfig::default()
    }
}

fn client(config: &Config, heard: Heard, calls: Calls) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let http = HttpClient::builder(TokioExecutor::new())
        .http1_max_buf_size(LARGEST_READ_BYTES)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(WatchRequests::new(http, heard, calls));
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use ::tests::directory::Directory;
    use ::tests::fake_api::FakeApi;

    use super::*;

    #[test]
    fn host_and_port_of_the_server_are_replaced_each_alone_or_together() {
        let rows = [
            ("https://127.0.0.1:6443", None, None, "https://127.0.0.1:6443/"),
            (
                "https://127.0.0.1:6443",
                Some("172.30.0.1"),
                None,
                "https://172.30.0.1:6443/",
            ),
            (
                "https://api.example",
                None,
                Some(6443),
                "https://api.example:6443/",
            ),
            (
                "https://api.example",
                Some("fd00::1"),
                None,
                "https://[fd00::1]:443/",
            ),
            (
                "http://127.0.0.1:8080/prefix",
                Some("api"),
                Some(80),
                "http://api:80/prefix",
            ),
        ];
        for (server, host, port, expected) in rows {
            let source = ApiSource {
                credentials: Credentials::ServiceAccount,
                host: host.map(str::to_owned),
                port,
                ..ApiSource::default()
            };
            let mut config = Config::new(server.parse().expect("valid"));
            source.replace_server(&mut config).expect("valid");
            assert_eq!(config.cluster_url.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named_whatever_its_name() {
        let directory = Directory::new("colons");
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, "{apiVersion: v1, kind: Config}").expect("written");
            path
        };
        let (colon, plain) = (file("a:b"), file("c"));
        let told = |paths: &[&PathBuf]| {
            let source = ApiSource {
                credentials: Credentials::Kubeconfig {
                    paths: paths.iter().map(|path| (*path).clone()).collect(),
                    context: Some("none".to_owned()),
                },
                ..ApiSource::default()
            };
            async move { source.credentials().await.expect_err("no context").to_string() }
        };
        assert_eq!(
            told(&[&colon]).await,
            format!("use kubeconfig {}", colon.display())
        );
        assert_eq!(
            told(&[&colon, &plain]).await,
            format!("use kubeconfig {}:{}", colon.display(), plain.display())
        );
    }

    #[tokio::test]
    async fn a_url_alone_or_with_files_leads_to_a_server() {
        let files = |directory: &str| TlsFiles {
            certificate: format!("{directory}/c.pem").into(),
            key: format!("{directory}/k.pem").into(),
            authority: format!("{directory}/a.pem").into(),
        };
        let config = |url: &str, tls: Option<TlsFiles>| {
            let url = url.to_owned();
            let source = ApiSource {
                credentials: Credentials::Endpoint { url, tls },
                ..ApiSource::default()
            };
            async move { source.credentials().await }
        };
        let plain = config("http://127.0.0.1:8080", None).await.expect("a server");
        assert_eq!(plain.cluster_url.to_string(), "http://127.0.0.1:8080/");
        let missing = config("https://api.example", Some(files("/nonexistent"))).await;
        let missing = model::with_causes(&missing.expect_err("no such file"));
        assert!(
            missing.starts_with("use the API server https://api.example: "),
            "{missing}"
        );
        assert!(missing.contains("/nonexistent/a.pem"), "{missing}");
        let no_url = config("a b", None).await.expect_err("no URL");
        assert_eq!(no_url.to_string(), "use the API server a b");
    }

    #[test]
    fn credentials_are_rotated_when_a_certificate_is_another_and_not_when_all_is_written_anew() {
        let directory = Directory::new("rotated");
        let put = |name: &str, text: &str| drop(directory.write(name, text));
        put(
            "kubeconfig",
            "{clusters: [{name: a, cluster: {server: 'https://a', certificate-authority: ca.crt}}],
              users: [{name: a, user: {client-certificate: client.crt, client-key: client.key, tokenFile: token}}]}",
        );
        for name in ["ca.crt", "client.crt", "client.key", "token"] {
            put(name, "old");
        }
        let source = ApiSource {
            credentials: Some(directory.path().join("kubeconfig")).into(),
            ..ApiSource::default()
        };
        for (name, text, rotated) in [
            ("ca.crt", "old", false),
            ("token", "new", false),
            ("ca.crt", "new", true),
            ("client.crt", "new", true),
            ("client.key", "new", true),
            ("kubeconfig", "{}", true),
        ] {
            let before = source.digests();
            put(name, text);
            assert_eq!(source.digests() != before, rotated, "{name}: {text}");
        }
    }

    #[tokio::test]
    async fn after_a_failure_the_server_is_left_alone_as_long_as_it_asked() {
        let api = FakeApi::start().expect("loopback is there");
        api.behave(|behaviour| {
            (behaviour.fail_next, behaviour.retry_after) = (vec![429], 7);
            behaviour.refuses_by_text = true;
        });
        let directory = Directory::new("connection");
        let path = directory.path().join("kubeconfig");
        api.write_kubeconfig(&path).expect("own directory");
        let source = ApiSource {
            credentials: Some(path).into(),
            ..ApiSource::default()
        };
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut connection = Connection::to(&source);
        assert!(
            connection.failed(&mut backoff) < Duration::from_secs(1),
            "it asked for nothing"
        );
        let before = Instant::now();
        let client = connection.client().await.expect("a client");
        client.apiserver_version().await.expect_err("refused");
        let delay = connection.failed(&mut backoff);
        assert!(delay + before.elapsed() >= Duration::from_secs(7), "{delay:?}");
        let client = connection.client().await.expect("a new client");
        client.apiserver_version().await.expect("it answers again");
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let source = ApiSource {
            host: Some("a b".to_owned()),
            ..ApiSource::default()
        };
        let mut config = Config::new("https://127.0.0.1".parse().expect("valid"));
        let error = source.replace_server(&mut config).expect_err("no host");
        assert_eq!(error.to_string(), "replace the server by a b:443");
    }
}
