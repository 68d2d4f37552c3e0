//! Probes: thresholds as a pure state; HTTP, HTTPS, TCP and gRPC checks from the node's network namespace, and commands
//! in the container.

mod grpc_health;
mod https;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::runtime::Runtime;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeds.
    Startup,
    /// Decides whether Services send traffic.
    Readiness,
    /// Restarts the container.
    Liveness,
}

impl ProbeKind {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    /// Its definition in a container.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// Thresholds and times of one probe, with Kubernetes' defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first check.
    pub initial_delay: Duration,
    /// Between checks.
    pub period: Duration,
    /// For one check.
    pub timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    /// Of a probe.
    pub fn of(probe: &Probe) -> Self {
        let at_least = |value: Option<i32>, default: u32, least: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(default)
                .max(least)
        };
        let seconds = |value, default, least| Duration::from_secs(u64::from(at_least(value, default, least)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: at_least(probe.success_threshold, 1, 1),
            failures: at_least(probe.failure_threshold, 3, 1),
        }
    }
}

/// Counts equal outcomes in a row until they pass a threshold.
#[derive(Clone, Copy, Debug)]
pub struct ProbeState {
    timing: Timing,
    last: Option<bool>,
    run: u32,
}

impl ProbeState {
    /// Before the first check.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            last: None,
            run: 0,
        }
    }

    /// Takes one outcome; the probe's result when the threshold is reached by it or was before.
    pub fn record(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let threshold = if success {
            self.timing.successes
        } else {
            self.timing.failures
        };
        (self.run >= threshold).then_some(success)
    }
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The container, over the network.
    Network(Request),
    /// A command in the container; exit code 0 is success.
    Exec(Vec<String>),
}

/// A question over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A GET; 200 to 399 is success.
    Http {
        /// By TLS, whatever the certificate.
        encrypted: bool,
        /// Where.
        address: SocketAddr,
        /// `Host` header, when the probe sets it.
        host: Option<String>,
        /// Path and query.
        path: String,
        /// More headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp(SocketAddr),
    /// The health check of gRPC (`grpc.health.v1`); `SERVING` is success.
    Grpc {
        /// Where.
        address: SocketAddr,
        /// Whose health; empty = the server's.
        service: String,
    },
}

impl Check {
    /// The check of a probe; the error says what is not supported or not resolvable.
    pub fn of(probe: &Probe, container: &Container, pod_ip: IpAddr) -> Result<Self, String> {
        match &probe.exec {
            Some(exec) => Ok(Self::Exec(exec.command.clone().unwrap_or_default())),
            None => Request::of(probe, container, pod_ip).map(Self::Network),
        }
    }

    /// Runs it once for a container; the error is the text of an `Unhealthy` event.
    pub async fn run(&self, timeout: Duration, runtime: &Runtime, container_id: &str) -> Result<(), String> {
        match self {
            Self::Network(request) => request.run(timeout).await,
            Self::Exec(command) => run_inside(runtime, container_id, command, timeout).await,
        }
    }
}

/// Runs a command in a container for at most `limit`; the error is what it said when it failed, or why it did not run.
pub async fn run_inside(
    runtime: &Runtime,
    container_id: &str,
    command: &[String],
    limit: Duration,
) -> Result<(), String> {
    match runtime.exec_output(container_id, command, limit).await {
        Ok(ended) if ended.code == 0 => Ok(()),
        Ok(ended) => Err(String::from_utf8_lossy(&ended.output).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Request {
    fn of(probe: &Probe, container: &Container, pod_ip: IpAddr) -> Result<Self, String> {
        let port_of = |port: &IntOrString| resolve_port(port, container);
        let address = |host: Option<&str>, port| match host.filter(|host| !host.is_empty()) {
            None => Ok(SocketAddr::new(pod_ip, port)),
            Some(host) => host
                .parse()
                .map(|ip| SocketAddr::new(ip, port))
                .map_err(|_| format!("probe host {host:?} is not an address: names are not supported yet")),
        };
        if let Some(http) = &probe.http_get {
            let headers: Vec<(String, String)> = http
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect();
            let path = http
                .path
                .clone()
                .filter(|path| !path.is_empty())
                .unwrap_or_else(|| "/".to_owned());
            return Ok(Self::Http {
                encrypted: http.scheme.as_deref() == Some("HTTPS"),
                address: address(http.host.as_deref(), port_of(&http.port)?)?,
                host: headers
                    .iter()
                    .find(|(n, _)| n.eq_ignore_ascii_case("host"))
                    .map(|(_, v)| v.clone()),
                path: if path.starts_with('/') {
                    path
                } else {
                    format!("/{path}")
                },
                headers: headers
                    .into_iter()
                    .filter(|(n, _)| !n.eq_ignore_ascii_case("host"))
                    .collect(),
            });
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Ok(Self::Tcp(address(tcp.host.as_deref(), port_of(&tcp.port)?)?));
        }
        if let Some(grpc) = &probe.grpc {
            return Ok(Self::Grpc {
                address: address(None, port_of(&IntOrString::Int(grpc.port))?)?,
                service: grpc.service.clone().unwrap_or_default(),
            });
        }
        Err("it asks nothing that this kubelet knows".to_owned())
    }

    async fn run(&self, timeout: Duration) -> Result<(), String> {
        match tokio::time::timeout(timeout, self.attempt()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(match self {
                Self::Http {
                    encrypted,
                    address,
                    path,
                    ..
                } => format!(
                    "Get \"{}://{address}{path}\": context deadline exceeded (Client.Timeout exceeded while \
                     awaiting headers)",
                    scheme(*encrypted)
                ),
                Self::Tcp(address) => format!("dial tcp {address}: i/o timeout"),
                Self::Grpc { .. } => format!("timeout: health rpc did not complete within {timeout:?}"),
            }),
        }
    }

    async fn attempt(&self) -> Result<(), String> {
        match self {
            Self::Tcp(address) => connect(*address).await.map(drop),
            Self::Grpc { address, service } => grpc_health::check(*address, service).await,
            Self::Http {
                encrypted,
                address,
                host,
                path,
                headers,
            } => {
                let failed =
                    |text: String| format!("Get \"{}://{address}{path}\": {text}", scheme(*encrypted));
                let stream = connect(*address).await.map_err(failed)?;
                let host = host.clone().unwrap_or_else(|| address.to_string());
                let status = if *encrypted {
                    let stream = https::connect(stream, address.ip()).await;
                    get(
                        stream.map_err(|error| failed(error.to_string()))?,
                        host,
                        path,
                        headers,
                    )
                    .await
                } else {
                    get(stream, host, path, headers).await
                };
                let status = status.map_err(|error| failed(error.to_string()))?;
                match status.as_u16() {
                    200..=399 => Ok(()),
                    code => Err(format!("HTTP probe failed with statuscode: {code}")),
                }
            }
        }
    }
}

fn scheme(encrypted: bool) -> &'static str {
    if encrypted { "https" } else { "http" }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {address}: {reason}")
    })
}

/// One GET on a connection of its own.
pub(crate) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: String,
    path: &str,
    headers: &[(String, String)],
) -> anyhow::Result<http::StatusCode> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = http::Request::get(path)
        .header("Host", host)
        .header("User-Agent", "kube-probe/1.33")
        .header("Accept", "*/*")
        .header("Connection", "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let response = sender.send_request(request.body(String::new())?).await?;
    let status = response.status();
    // Read the (small) body, so that the server can end in order.
    let _ = response.into_body().collect().await;
    connection.abort();
    Ok(status)
}

/// A port by number, or by its name in the container.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port),
        },
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
        .ok_or_else(|| format!("port {port:?} of the probe is not a port of the container"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).expect("a valid probe")
    }

    #[test]
    fn results_need_their_threshold_in_a_row() {
        let timing = Timing::of(&probe(json!({"successThreshold": 2, "failureThreshold": 3})));
        let mut state = ProbeState::new(timing);
        let seen: Vec<Option<bool>> = [
            false, false, true, true, true, false, true, false, false, false, false,
        ]
        .map(|success| state.record(success))
        .to_vec();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(seen, [None, None, None, yes, yes, None, None, None, None, no, no]);
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let timing = Timing::of(&probe(json!({})));
        let expected = Timing {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            successes: 1,
            failures: 3,
        };
        assert_eq!(timing, expected);
    }

    #[test]
    fn a_check_finds_its_port_by_name() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}))
                .expect("a valid container");
        let ip = "10.244.1.2".parse().expect("an address");
        let check = |value| Check::of(&probe(value), &container, ip);
        let expected = Request::Http {
            encrypted: false,
            address: "10.244.1.2:8080".parse().expect("an address"),
            host: None,
            path: "/readyz".to_owned(),
            headers: Vec::new(),
        };
        assert_eq!(
            check(json!({"httpGet": {"path": "readyz", "port": "http"}})),
            Ok(Check::Network(expected))
        );
        let tcp = Request::Tcp("10.244.1.2:81".parse().expect("an address"));
        assert_eq!(check(json!({"tcpSocket": {"port": 81}})), Ok(Check::Network(tcp)));
        let grpc = Request::Grpc {
            address: "10.244.1.2:82".parse().expect("an address"),
            service: "web".to_owned(),
        };
        assert_eq!(
            check(json!({"grpc": {"port": 82, "service": "web"}})),
            Ok(Check::Network(grpc))
        );
        assert!(check(json!({"tcpSocket": {"port": "no"}})).is_err());
        assert!(check(json!({})).is_err());
        let command = vec!["cat".to_owned(), "/x".to_owned()];
        assert_eq!(
            check(json!({"exec": {"command": command}})),
            Ok(Check::Exec(command))
        );
    }
}
