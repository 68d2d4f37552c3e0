//! `spec.healthCheckNodePort`: on it a load balancer asks whether this node has endpoints of the Service, so that it
//! sends traffic of policy Local only where it is not dropped.
//!
//! ```text
//! proxy's thread ─ Arc<HealthChecks> ─► listeners (pure: who has which port) ─► ports that are opened and closed
//! ```
//!
//! A port that cannot be opened is tried again, shown on `/healthz`, and stops no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dns::http;
use ipnetwork::IpNetwork;
use model::{ObjectName, with_causes};
use netlink::{Kernel, Netlink};
use nix::sys::socket::{setsockopt, sockopt};
use proxy::ServicePlan;
use proxy::plan::HealthCheck;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::progress::ProxyProgress;
use super::supervisor::Part;
use crate::backoff::Backoff;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How soon an address is listened on that the node got.
const AUDIT: Duration = Duration::from_secs(30);

/// Connections that wait to be accepted.
const QUEUE: u32 = 128;

/// The endpoints that this node has, for load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What load balancers shall be told, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// By Service.
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// The networks on whose addresses of this node node ports are served.
    pub networks: BTreeSet<IpNetwork>,
}

impl HealthChecks {
    /// The checks of these Services that are not as the plans say, with what they say.
    #[must_use]
    pub fn differences<'s>(
        &self,
        plans: &BTreeMap<ObjectName, Arc<ServicePlan>>,
        services: impl IntoIterator<Item = &'s ObjectName>,
    ) -> BTreeMap<ObjectName, Option<HealthCheck>> {
        let wanted = services.into_iter().map(|service| {
            let check = plans.get(service).and_then(|plan| plan.health);
            (service, check)
        });
        wanted
            .filter(|(service, check)| self.checks.get(*service) != check.as_ref())
            .map(|(service, check)| (service.clone(), check))
            .collect()
    }

    /// Takes what [`Self::differences`] found.
    pub fn update(
        &mut self,
        differences: BTreeMap<ObjectName, Option<HealthCheck>>,
        networks: BTreeSet<IpNetwork>,
    ) {
        for (service, check) in differences {
            match check {
                Some(check) => self.checks.insert(service, check),
                None => self.checks.remove(&service),
            };
        }
        self.networks = networks;
    }

    /// Whether it depends on which addresses the node has where to listen.
    fn depends_on_addresses(&self) -> bool {
        !self.checks.is_empty() && self.networks.iter().any(|network| listens_on(network).is_none())
    }
}

/// Who is asked at which address and port, and what of it there is no place for.
fn listeners(wanted: &HealthChecks, own: &[IpAddr]) -> (BTreeMap<SocketAddr, ObjectName>, Vec<String>) {
    let addresses = listening_addresses(&wanted.networks, own);
    let mut ports: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    let mut problems = Vec::new();
    for (service, check) in &wanted.checks {
        let owner = *ports.entry(check.port.get()).or_insert(service);
        if owner != service {
            problems.push(format!("port {} of {service} is {owner}'s", check.port));
        }
    }
    let everywhere = ports.into_iter().flat_map(|(port, service)| {
        let addresses = addresses.iter();
        addresses.map(move |address| (SocketAddr::new(*address, port), service.clone()))
    });
    (everywhere.collect(), problems)
}

/// The addresses to listen on: one that means all, where all are wanted.
fn listening_addresses(networks: &BTreeSet<IpNetwork>, own: &[IpAddr]) -> BTreeSet<IpAddr> {
    let certain: BTreeSet<_> = networks.iter().filter_map(listens_on).collect();
    let own = own.iter().filter(|address| !is_link_local(address));
    let within = own.filter(|address| networks.iter().any(|network| network.contains(**address)));
    let mut addresses: BTreeSet<_> = within.copied().chain(certain).collect();
    for all in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        if addresses.contains(&all) {
            addresses.retain(|address| address.is_ipv4() != all.is_ipv4() || *address == all);
        }
    }
    addresses
}

/// The address to listen on for a network, where it does not depend on those that the node has.
fn listens_on(network: &IpNetwork) -> Option<IpAddr> {
    let whole = if network.is_ipv4() { 32 } else { 128 };
    (network.prefix() == 0 || network.prefix() == whole).then(|| network.network())
}

/// An address that means nothing without its device.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Serves the health checks that the proxy asks for, until shutdown.
///
/// # Errors
/// When nobody tells of health checks any more.
pub async fn serve(
    progress: Arc<ProxyProgress>,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut wanted = progress.health_checks.subscribe();
    let mut ports = Ports::new(progress);
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let checks = wanted.borrow_and_update().clone();
        let own = if checks.depends_on_addresses() {
            let read = tokio::task::spawn_blocking(own_addresses).await;
            read.map_err(Into::into).flatten()
        } else {
            Ok(Vec::new())
        };
        let pause = match ports.look(&checks, own).await.as_slice() {
            [] => {
                part.works();
                backoff.reset();
                AUDIT
            }
            problems => {
                part.fails(&problems.join("; "));
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = wanted.changed() => changed.context("the proxy's progress is gone")?,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn own_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let addresses = Netlink::open()?.addresses(None)?;
    Ok(addresses.iter().map(|address| address.network.ip()).collect())
}

/// A port that is open for a Service.
struct Open {
    service: ObjectName,
    serving: AbortOnDropHandle<()>,
}

/// The ports that are open.
struct Ports {
    progress: Arc<ProxyProgress>,
    /// The node's addresses when they were last read.
    own: Vec<IpAddr>,
    open: BTreeMap<SocketAddr, Open>,
}

impl Ports {
    fn new(progress: Arc<ProxyProgress>) -> Self {
        Self {
            progress,
            own: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    /// The same as [`Self::put`]. Where the node's addresses could not be read, the last ones hold: a port that is open
    /// stays so.
    async fn look(&mut self, wanted: &HealthChecks, own: anyhow::Result<Vec<IpAddr>>) -> Vec<String> {
        let problem = match own {
            Ok(own) => {
                self.own = own;
                None
            }
            Err(error) => Some(format!("read addresses: {error:#}")),
        };
        let own = self.own.clone();
        let mut problems = self.put(wanted, &own).await;
        problems.extend(problem);
        problems
    }

    /// Closes and opens until it is as wanted, as far as it can be, and returns what cannot.
    async fn put(&mut self, wanted: &HealthChecks, own: &[IpAddr]) -> Vec<String> {
        let (listeners, mut problems) = listeners(wanted, own);
        let surplus = self.open.extract_if(.., |address, open| {
            listeners.get(address) != Some(&open.service) || open.serving.is_finished()
        });
        for (address, open) in surplus.collect::<Vec<_>>() {
            close(open).await;
            tracing::info!(%address, "health check port closed");
        }
        for (address, service) in listeners {
            if self.open.contains_key(&address) {
                continue;
            }
            match bind(address) {
                Ok(listener) => {
                    tracing::info!(%address, %service, "health check port opened");
                    self.serve(address, service, listener);
                }
                Err(error) => problems.push(format!(
                    "listen on {address} for {service}: {}",
                    with_causes(&error)
                )),
            }
        }
        problems
    }

    fn serve(&mut self, address: SocketAddr, service: ObjectName, listener: TcpListener) {
        let asked = Asked {
            service: service.clone(),
            checks: self.progress.health_checks.subscribe(),
            progress: self.progress.clone(),
        };
        let router = Router::new().fallback(answer).with_state(asked);
        let serving = AbortOnDropHandle::new(tokio::spawn(http::serve(listener, router)));
        self.open.insert(address, Open { service, serving });
    }
}

/// Returns when the port is free for the next.
async fn close(open: Open) {
    open.serving.abort();
    let _ended = open.serving.await;
}

/// Listens, on an IPv6 address for IPv6 alone, so that one that means all does not take the IPv4 port too.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// What a port knows of its Service.
#[derive(Clone)]
struct Asked {
    service: ObjectName,
    checks: watch::Receiver<Arc<HealthChecks>>,
    progress: Arc<ProxyProgress>,
}

async fn answer(State(asked): State<Asked>) -> Response {
    let ready_here = {
        let checks = asked.checks.borrow();
        let check = checks.checks.get(&asked.service);
        check.map_or(0, |check| check.ready_here)
    };
    told(&asked.service, ready_here, asked.progress.in_time())
}

/// kube-proxy's words: whoever reads its answers can read these.
fn told(service: &ObjectName, ready_here: usize, in_time: bool) -> Response {
    let code = if ready_here > 0 && in_time {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, ready_here.to_string()),
    ];
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": ready_here,
        "serviceProxyHealthy": in_time,
    });
    (code, headers, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn checks(checks: &[(&str, u16, usize)], networks: &[&str]) -> HealthChecks {
        let check = |(service, port, ready_here): &(&str, u16, usize)| {
            let port = NonZeroU16::new(*port).expect("no port is 0");
            let check = HealthCheck {
                port,
                ready_here: *ready_here,
            };
            (ObjectName::new("default", *service), check)
        };
        HealthChecks {
            checks: checks.iter().map(check).collect(),
            networks: networks
                .iter()
                .map(|network| network.parse().expect("a network"))
                .collect(),
        }
    }

    #[track_caller]
    fn check_listeners(wanted: &HealthChecks, expected: &[(&str, &str)], problems: &[&str]) {
        let own = [
            "127.0.0.1",
            "192.0.2.7",
            "10.0.0.7",
            "::1",
            "2001:db8::7",
            "fe80::7",
        ];
        let own = own.map(|address| address.parse().expect("an address"));
        let (listeners, told) = listeners(wanted, &own);
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(address, service)| (address.to_string(), service.name.to_string()))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(address, service)| ((*address).to_owned(), (*service).to_owned()))
            .collect();
        assert_eq!(listeners, expected, "for {wanted:?}");
        assert_eq!(told, problems, "for {wanted:?}");
    }

    #[test]
    fn ports_are_opened_on_the_addresses_of_node_ports() {
        let web: &[_] = &[("web", 32_000, 1)];
        check_listeners(&checks(web, &[]), &[], &[]);
        check_listeners(&checks(&[], &["0.0.0.0/0"]), &[], &[]);
        check_listeners(
            &checks(web, &["0.0.0.0/0", "::/0"]),
            &[("0.0.0.0:32000", "web"), ("[::]:32000", "web")],
            &[],
        );
        check_listeners(
            &checks(web, &["192.0.2.0/24", "2001:db8::/32", "fe80::/10"]),
            &[("192.0.2.7:32000", "web"), ("[2001:db8::7]:32000", "web")],
            &[],
        );
        // All of one family, and part of the other.
        check_listeners(
            &checks(web, &["0.0.0.0/0", "192.0.2.0/24", "2001:db8::/32"]),
            &[("0.0.0.0:32000", "web"), ("[2001:db8::7]:32000", "web")],
            &[],
        );
        // An address that the node does not have yet is tried, and told.
        check_listeners(
            &checks(web, &["192.0.2.99/32"]),
            &[("192.0.2.99:32000", "web")],
            &[],
        );
    }

    #[test]
    fn a_port_that_two_services_want_is_the_first_ones_by_name() {
        check_listeners(
            &checks(&[("web", 32_000, 1), ("api", 32_000, 1)], &["0.0.0.0/0"]),
            &[("0.0.0.0:32000", "api")],
            &["port 32000 of default/web is default/api's"],
        );
    }

    fn response_text(response: &Response, name: &str) -> String {
        let value = response.headers().get(name).expect(name);
        value.to_str().expect("text").to_owned()
    }

    #[tokio::test]
    async fn answers_are_kube_proxys() {
        let service = ObjectName::new("default", "web");
        let rows = [(2, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)];
        for (ready_here, in_time, code) in rows {
            let response = told(&service, ready_here, in_time);
            assert_eq!(response.status().as_u16(), code);
            assert_eq!(response_text(&response, "content-type"), "application/json");
            assert_eq!(response_text(&response, "x-content-type-options"), "nosniff");
            assert_eq!(
                response_text(&response, "x-load-balancing-endpoint-weight"),
                ready_here.to_string()
            );
            let body = axum::body::to_bytes(response.into_body(), 4096)
                .await
                .expect("in memory");
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let expected = json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": ready_here, "serviceProxyHealthy": in_time,
            });
            assert_eq!(body, expected);
        }
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /any/path HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// A port that nobody has at this moment.
    async fn free_port() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        listener.local_addr().expect("bound").port()
    }

    #[tokio::test]
    async fn ports_come_and_go_with_their_services_and_one_that_is_taken_stops_no_other() {
        let progress = Arc::new(ProxyProgress::default());
        let mut ports = Ports::new(progress.clone());
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let taken_port = taken.local_addr().expect("bound").port();
        let port = free_port().await;
        let both = checks(&[("taken", taken_port, 1), ("web", port, 1)], &["127.0.0.1/32"]);
        progress.health_checks.send_replace(Arc::new(both.clone()));

        let problems = ports.put(&both, &[]).await;
        let expected = format!(
            "listen on 127.0.0.1:{taken_port} for default/taken: Address already in use (os error 98)"
        );
        assert_eq!(problems, [expected]);
        assert!(ask(port).await.expect("open").starts_with("HTTP/1.0 200"));

        drop(taken);
        assert_eq!(ports.put(&both, &[]).await, Vec::<String>::new());
        assert!(
            ask(taken_port)
                .await
                .expect("open")
                .contains("\"name\":\"taken\"")
        );

        // The same port for another Service: the first one's answers are not given any more.
        let other = checks(&[("other", port, 0)], &["127.0.0.1/32"]);
        progress.health_checks.send_replace(Arc::new(other.clone()));
        assert_eq!(ports.put(&other, &[]).await, Vec::<String>::new());
        let answer = ask(port).await.expect("open");
        assert!(
            answer.starts_with("HTTP/1.0 503") && answer.contains("\"name\":\"other\""),
            "{answer}"
        );
        ask(taken_port).await.expect_err("its Service is gone");

        assert_eq!(
            ports.put(&HealthChecks::default(), &[]).await,
            Vec::<String>::new()
        );
        ask(port).await.expect_err("its Service is gone");
    }

    #[tokio::test]
    async fn addresses_that_cannot_be_read_close_no_port() {
        let (port, other_port) = (free_port().await, free_port().await);
        let loopback: &[_] = &["127.0.0.0/8"];
        let web = checks(&[("web", port, 1)], loopback);
        let both = checks(&[("web", port, 1), ("other", other_port, 1)], loopback);
        let own = || Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        let unreadable = || Err(anyhow::anyhow!("no buffer space").context("netlink"));
        let problem = "read addresses: netlink: no buffer space";
        let mut ports = Ports::new(Arc::default());
        assert_eq!(
            ports.look(&web, unreadable()).await,
            [problem],
            "nor were they ever"
        );
        ask(port).await.expect_err("nobody knows where");
        assert_eq!(ports.look(&web, own()).await, Vec::<String>::new());
        assert_eq!(ports.look(&both, unreadable()).await, [problem]);
        assert!(ask(port).await.is_ok(), "it stays open");
        assert!(ask(other_port).await.is_ok(), "the last addresses hold");
        assert_eq!(ports.look(&web, unreadable()).await, [problem]);
        ask(other_port).await.expect_err("its Service is gone");
        assert_eq!(ports.look(&web, own()).await, Vec::<String>::new());
        assert!(ask(port).await.is_ok());
    }

    #[tokio::test]
    async fn ipv4_and_ipv6_ports_stand_beside_each_other() {
        let port = free_port().await;
        let all = checks(&[("web", port, 1)], &["0.0.0.0/0", "::/0"]);
        let mut ports = Ports::new(Arc::default());
        let problems = ports.put(&all, &[]).await;
        let without_ipv6 = !std::path::Path::new("/proc/sys/net/ipv6").exists();
        assert!(problems.is_empty() || without_ipv6, "{problems:?}");
        assert!(ask(port).await.is_ok());
    }
}
