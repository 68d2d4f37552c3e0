//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP to what runs in the cluster, for who may reach this server
//! only (apimachinery `pkg/util/proxy`, `pkg/registry/core/*/rest`).
//!
//! This server stands outside the pod network. What leads into a pod goes through a connection of the pod's kubelet.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use rand::seq::IteratorRandom as _;
use serde_json::Value;

use super::Api;
use crate::kubelet::{self, Stream};
use crate::object::{self, Fields};
use crate::request::ResourcePath;
use crate::resources::Resource;
use crate::status::{Failure, Result};

/// Headers that belong to one connection (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// `name`, `name:port` or `scheme:name:port` (apimachinery `SplitSchemeNamePort`).
#[derive(Debug, PartialEq, Eq)]
struct Destination<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Destination<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https");
        (known && !name.is_empty()).then_some(Self {
            https: scheme == "https",
            name,
            port,
        })
    }
}

impl Api {
    /// Passes a request on, and its answer back.
    pub(super) async fn proxy(
        &self,
        resource: &'static Resource,
        path: &ResourcePath,
        parts: Parts,
        body: Incoming,
        client: Option<kubelet::Client>,
    ) -> Result<Response<Body>> {
        let base = base_path(path);
        let rest = rest_of(parts.uri.path()).to_owned();
        if rest.is_empty() && (parts.method == Method::GET || parts.method == Method::HEAD) {
            return redirect(&base, parts.uri.query());
        }
        let id = path.name.as_deref().unwrap_or_default();
        let destination = Destination::parse(id)
            .ok_or_else(|| Failure::bad_request(format!("invalid {} request {id:?}", resource.plural)))?;
        let stream = match resource.kind {
            "Pod" => self.stream_to_pod(resource, path, &destination).await?,
            "Service" => self.stream_to_service(resource, path, &destination).await?,
            "Node" => self.stream_to_node(resource, &destination).await?,
            _ => return Err(Failure::no_such_path()),
        };
        let upgrading = parts.headers.contains_key(header::UPGRADE);
        let request = outgoing(parts, &rest, upgrading, body)?;
        let answer = kubelet::send(stream, request)
            .await
            .map_err(|error| unreachable(&error))?;
        if let Some(client) = client.filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS) {
            return Ok(kubelet::splice(client, answer));
        }
        Ok(incoming(answer, &base))
    }

    async fn stream_to_pod(
        &self,
        resource: &Resource,
        path: &ResourcePath,
        destination: &Destination<'_>,
    ) -> Result<Stream> {
        let pod = self
            .look_up(resource, path.namespace.as_deref(), destination.name)
            .await?;
        let pod = pod.ok_or_else(|| Failure::not_found(resource, destination.name))?;
        let first = || {
            let mut ports = pod
                .list("spec.containers")
                .iter()
                .flat_map(|container| container.list("ports"));
            ports.next().and_then(|port| port.int("containerPort"))
        };
        let port = match destination.port {
            "" => first().unwrap_or(if destination.https { 443 } else { 80 }),
            named => port_number(named)?,
        };
        self.stream_into(&pod, port, destination.https).await
    }

    /// To a random endpoint that is ready.
    async fn stream_to_service(
        &self,
        resource: &Resource,
        path: &ResourcePath,
        destination: &Destination<'_>,
    ) -> Result<Stream> {
        let name = destination.name;
        let service = self.look_up(resource, path.namespace.as_deref(), name).await?;
        let service = service.ok_or_else(|| Failure::not_found(resource, name))?;
        let port = service_port(&service, destination.port).ok_or_else(|| {
            Failure::unavailable(format!(
                "no service port {:?} found for service {name:?}",
                destination.port
            ))
        })?;
        let endpoints = self.registry.kind("", "Endpoints");
        let endpoints = self.look_up(endpoints, path.namespace.as_deref(), name).await?;
        let endpoints = endpoints.unwrap_or_default();
        let (address, port) = endpoint(&endpoints, port)
            .ok_or_else(|| Failure::unavailable(format!("no endpoints available for service {name:?}")))?;
        let pods = self.registry.kind("", "Pod");
        let pod = address.text("targetRef.name");
        let found = self.look_up(pods, path.namespace.as_deref(), pod).await?;
        let found = found.ok_or_else(|| Failure::not_found(pods, pod))?;
        self.stream_into(&found, port, destination.https).await
    }

    async fn stream_to_node(&self, resource: &Resource, destination: &Destination<'_>) -> Result<Stream> {
        let node = self.look_up(resource, None, destination.name).await?;
        let node = node.ok_or_else(|| Failure::not_found(resource, destination.name))?;
        let kubelet = self.kubelets.address(&node)?;
        let port = match destination.port {
            "" => i64::from(kubelet.port()),
            named => port_number(named)?,
        };
        if port == i64::from(kubelet.port()) {
            return self.kubelets.connect(&node).await;
        }
        let address = socket_address(kubelet.ip(), port)?;
        let stream = self.kubelets.connect_plainly(address).await?;
        let stream = stream.map_err(|error| unreachable(&error))?;
        self.dressed(stream, destination.https).await
    }

    async fn dressed(&self, stream: Stream, https: bool) -> Result<Stream> {
        match https {
            true => self
                .kubelets
                .tls_with_anybody(stream)
                .await
                .map_err(|error| unreachable(&error)),
            false => Ok(stream),
        }
    }

    /// To a pod's port, from its node.
    async fn stream_into(&self, pod: &Value, port: i64, https: bool) -> Result<Stream> {
        let node = self.node_of(pod).await?;
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        let path = format!("/dial/{namespace}/{name}/{port}");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        let mut answer = self.kubelets.forward(&node, Method::GET, &path, &headers).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(unreachable(&kubelet::refusal(answer).await.message));
        }
        let upgraded = hyper::upgrade::on(&mut answer)
            .await
            .map_err(|error| unreachable(&error))?;
        self.dressed(Box::new(hyper_util::rt::TokioIo::new(upgraded)), https)
            .await
    }
}

/// 503 in upstream's words.
fn unreachable(why: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(format!("error trying to reach service: {why}"))
}

fn port_number(port: &str) -> Result<i64> {
    let number = port.parse().ok().filter(|number| (1..=65535).contains(number));
    number.ok_or_else(|| Failure::bad_request(format!("invalid port {port:?}")))
}

fn socket_address(ip: IpAddr, port: i64) -> Result<SocketAddr> {
    let port = u16::try_from(port).map_err(|error| unreachable(&error))?;
    Ok(SocketAddr::new(ip, port))
}

/// The port of a Service by name or number, or its only one.
fn service_port<'a>(service: &'a Value, wanted: &str) -> Option<&'a Value> {
    let ports = service.list("spec.ports");
    match (wanted, ports) {
        ("", [only]) => Some(only),
        ("", _) => None,
        _ => {
            let number = wanted.parse().ok();
            let mut named = ports.iter();
            named.find(|port| port.text("name") == wanted || number.is_some() && port.int("port") == number)
        }
    }
}

/// A pod's address of the Endpoints that has a port of the Service's port's name, and the port's number.
fn endpoint<'a>(endpoints: &'a Value, port: &Value) -> Option<(&'a Value, i64)> {
    let subsets = endpoints.list("subsets").iter();
    let with_port = subsets.filter_map(|subset| {
        let mut ports = subset.list("ports").iter();
        let number = ports
            .find(|one| one.text("name") == port.text("name"))?
            .int("port")?;
        // What is no pod's may be any place that this server reaches, and its writer does not.
        let addresses = subset.list("addresses").iter();
        let of_pods = addresses.filter(|address| address.text("targetRef.kind") == "Pod");
        Some(of_pods.map(move |address| (address, number)))
    });
    with_port.flatten().choose(&mut rand::rng())
}

/// The path up to and with `/proxy`.
fn base_path(path: &ResourcePath) -> String {
    let root = match path.group.as_str() {
        "" => format!("/api/{}", path.version),
        group => format!("/apis/{group}/{}", path.version),
    };
    let namespace = path
        .namespace
        .as_ref()
        .map(|name| format!("/namespaces/{name}"))
        .unwrap_or_default();
    let name = path.name.as_deref().unwrap_or_default();
    format!("{root}{namespace}/{}/{name}/proxy", path.resource)
}

/// What stands behind `/proxy`, as the client wrote it.
fn rest_of(path: &str) -> &str {
    // `/api/v1/namespaces/a/pods/b/proxy/…` and `/api/v1/nodes/a/proxy/…`: no name of an object can be `proxy` with
    // a resource's place before it.
    let before = match path.starts_with("/api/v1/namespaces/") {
        true => 7,
        false => 5,
    };
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    slashes
        .nth(before)
        .map_or("", |at| path.get(at..).unwrap_or_default())
}

fn redirect(base: &str, query: Option<&str>) -> Result<Response<Body>> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let location =
        HeaderValue::from_str(&format!("{base}/{query}")).map_err(|_| Failure::bad_request("bad path"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The request as the other side gets it: with the client's host, without its credentials.
fn outgoing(parts: Parts, rest: &str, upgrading: bool, body: Incoming) -> Result<Request<Incoming>> {
    let path = if rest.is_empty() { "/" } else { rest };
    let query = parts
        .uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = format!("{path}{query}")
        .parse()
        .map_err(|_| Failure::bad_request("bad path"))?;
    let mut headers = parts.headers;
    let speaks_for = |name: &&HeaderName| name.as_str().starts_with("impersonate-");
    let credentials: Vec<HeaderName> = headers.keys().filter(speaks_for).cloned().collect();
    for name in credentials.iter().chain([&header::AUTHORIZATION]) {
        headers.remove(name);
    }
    let kept = |name: &HeaderName| upgrading && (*name == header::CONNECTION || *name == header::UPGRADE);
    for name in HOP_BY_HOP.iter().filter(|name| !kept(name)) {
        headers.remove(name);
    }
    if !headers.contains_key(header::HOST)
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(header::HOST, host);
    }
    *request.headers_mut() = headers;
    Ok(request)
}

/// The answer as the client gets it. Where it leads to another place of the same host, that place has this path too.
fn incoming(answer: Response<Incoming>, base: &str) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    let headers = response.headers_mut();
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    let moved = headers
        .get(header::LOCATION)
        .and_then(|location| location.to_str().ok());
    if let Some(path) = moved.filter(|location| location.starts_with('/') && !location.starts_with("//"))
        && let Ok(location) = HeaderValue::from_str(&format!("{base}{path}"))
    {
        headers.insert(header::LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn destinations_have_a_scheme_a_name_and_a_port() {
        let some = |https, name, port| Some(Destination { https, name, port });
        for (id, expected) in [
            ("a", some(false, "a", "")),
            ("a:80", some(false, "a", "80")),
            ("http:a:web", some(false, "a", "web")),
            ("https:a:", some(true, "a", "")),
            ("ftp:a:1", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(Destination::parse(id), expected, "{id}");
        }
    }

    #[test]
    fn the_rest_of_the_path_stays_as_it_was_written() {
        for (path, expected) in [
            ("/api/v1/namespaces/a/pods/b:80/proxy/x%2Fy//z", "/x%2Fy//z"),
            ("/api/v1/namespaces/a/services/b/proxy/", "/"),
            ("/api/v1/namespaces/a/services/b/proxy", ""),
            ("/api/v1/namespaces/a/pods/proxy/proxy/proxy/", "/proxy/"),
            ("/api/v1/nodes/n/proxy/healthz", "/healthz"),
            ("/api/v1/nodes/n/proxy", ""),
        ] {
            assert_eq!(rest_of(path), expected, "{path}");
        }
    }

    #[test]
    fn a_services_port_leads_to_the_endpoints_port_of_its_name() {
        let service =
            json!({ "spec": { "ports": [{ "name": "web", "port": 80 }, { "name": "admin", "port": 81 }] } });
        let single = json!({ "spec": { "ports": [{ "port": 80 }] } });
        // What is no pod's is passed over.
        let of_pod = json!({ "ip": "10.0.0.1", "targetRef": { "kind": "Pod", "name": "p" } });
        let endpoints = json!({ "subsets": [
            { "addresses": [{ "ip": "127.0.0.1" }, of_pod], "ports": [{ "name": "web", "port": 8080 }, { "port": 9090 }] },
            { "notReadyAddresses": [{ "ip": "10.0.0.2" }], "ports": [{ "name": "admin", "port": 8081 }] },
        ] });
        for (service, wanted, expected) in [
            (&service, "web", Some(("10.0.0.1", 8080))),
            (&service, "80", Some(("10.0.0.1", 8080))),
            (&service, "81", None),
            (&service, "", None),
            (&service, "nothing", None),
            (&single, "", Some(("10.0.0.1", 9090))),
        ] {
            let found = service_port(service, wanted).and_then(|port| endpoint(&endpoints, port));
            let found = found.map(|(address, port)| (address.text("ip"), port));
            assert_eq!(found, expected, "{wanted}");
        }
    }
}
