//! The connection to the API server.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::requests::{Accepted, WatchRequests};

/// A server that is gone without a word is noticed after 10 + 3 × 3 seconds. kube-rs alone would wait for the watch
/// to time out, 295 seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

/// Data that the server does not acknowledge for this long ends the connection (RFC 5482); keep-alive probes are
/// not sent while data is outstanding.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the API server is and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiSource {
    /// A kubeconfig file. None = the service account of the pod that this process runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Replaces the server's host.
    pub host: Option<String>,
    /// Replaces the server's port.
    pub port: Option<u16>,
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
    /// Reads the credentials and makes a client, which tells the path of each watch that is accepted.
    ///
    /// # Errors
    /// [`ConnectError`] when the credentials cannot be used.
    pub(super) async fn client(&self, accepted: Accepted) -> Result<Client, ConnectError> {
        let mut config = self.credentials().await?;
        self.replace_server(&mut config)?;
        client(&config, accepted).map_err(ConnectError::Tls)
    }

    /// When the kubeconfig was written last. A change means that credentials were rotated.
    pub(super) fn written(&self) -> Option<SystemTime> {
        std::fs::metadata(self.kubeconfig.as_ref()?).ok()?.modified().ok()
    }

    async fn credentials(&self) -> Result<Config, ConnectError> {
        let Some(path) = &self.kubeconfig else {
            // The environment has no server where the pod's Services are not served yet; the host is then given.
            let in_cluster = Config::incluster_env().or_else(|error| {
                if self.host.is_some() {
                    Config::incluster_dns()
                } else {
                    Err(error)
                }
            });
            return in_cluster.map_err(ConnectError::ServiceAccount);
        };
        let error = |source| ConnectError::Kubeconfig {
            path: path.clone(),
            source,
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(error)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(error)
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

fn client(config: &Config, accepted: Accepted) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(WatchRequests::new(http, accepted));
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
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
                kubeconfig: None,
                host: host.map(str::to_owned),
                port,
            };
            let mut config = Config::new(server.parse().expect("valid"));
            source.replace_server(&mut config).expect("valid");
            assert_eq!(config.cluster_url.to_string(), expected);
        }
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
