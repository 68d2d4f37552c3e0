//! What the cluster has by itself: the Service by which pods reach the API server, and the one by which they
//! reach DNS, with the nodes' servers as its endpoints. Their namespaces come from the API server.
//!
//! Upstream's API server looks after most of this; where it does, the configuration leaves it out here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Node, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DeleteParams;
use model::ObjectName;

use crate::Context;
use crate::cache::{Cache, Object, name_of};
use crate::config::KubernetesService;
use crate::error::Error;
use crate::nodes::condition;
use crate::queue::{Next, Queue, Reconcile, drive};

/// Where these Services live: what could not be made without its namespace is made when that comes.
const NAMESPACES: [&str; 2] = ["default", "kube-system"];
const KUBERNETES: &str = "kubernetes";
const DNS: &str = "kube-dns";

/// Runs the controller. Its only key is the cluster.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    queue.add(());
    let ours = |name: &ObjectName| {
        (name.namespace == "default" && name.name == KUBERNETES)
            || (name.namespace == "kube-system" && name.name == DNS)
            || (name.namespace.is_empty() && NAMESPACES.contains(&&*name.name))
    };
    macro_rules! follow {
        ($cache:ident) => {{
            let queue = Arc::clone(&queue);
            context.caches.$cache.subscribe(move |change| {
                if change
                    .states()
                    .next()
                    .is_some_and(|object| ours(&name_of(&**object)))
                {
                    queue.add(());
                }
            })
        }};
    }
    let nodes = {
        let queue = Arc::clone(&queue);
        context.caches.nodes.subscribe(move |_| queue.add(()))
    };
    let _subscriptions = (
        nodes,
        follow!(namespaces),
        follow!(services),
        follow!(endpoints),
        follow!(slices),
    );
    drive(&queue, &Controller(context), 1).await;
    Ok(())
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ();
    const NAME: &'static str = "builtin";

    async fn reconcile(&self, (): &()) -> Result<Next, Error> {
        let caches = &self.0.caches;
        let same_slice =
            |a: &EndpointSlice, b: &EndpointSlice| a.endpoints == b.endpoints && a.ports == b.ports;
        if let Some(config) = &self.0.config.kubernetes_service {
            ensure(&caches.services, kubernetes_service(config), same_service).await?;
            ensure(&caches.endpoints, kubernetes_endpoints(config), |a, b| {
                a.subsets == b.subsets
            })
            .await?;
            ensure(&caches.slices, kubernetes_slice(config), same_slice).await?;
        }
        if let Some(address) = self.0.config.cluster_dns {
            ensure(&caches.services, dns_service(address), same_service).await?;
            let slices = dns_slices(address, &caches.nodes.list());
            let first_unwanted = slices.len();
            for slice in slices {
                ensure(&caches.slices, slice, same_slice).await?;
            }
            let left = (first_unwanted..).map_while(|number| caches.slices.get(&dns_slice_name(number)));
            for slice in left.collect::<Vec<_>>() {
                caches.slices.delete(&*slice, DeleteParams::default()).await?;
            }
        }
        Ok(Next::OnChange)
    }
}

/// Creates `wanted`, or replaces what is there if it is not the same.
async fn ensure<K: Object>(cache: &Cache<K>, wanted: K, same: impl Fn(&K, &K) -> bool) -> Result<(), Error> {
    let Some(stored) = cache.get(&name_of(&wanted)) else {
        return match cache.create(&wanted).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        };
    };
    if same(&stored, &wanted) {
        return Ok(());
    }
    let mut changed = wanted;
    let labels = changed.meta().labels.clone();
    *changed.meta_mut() = ObjectMeta {
        labels,
        ..stored.meta().clone()
    };
    cache.replace(&changed).await.map(drop)
}

/// Addresses never change once a Service has them, and most fields have defaults: only ports are compared.
fn same_service(stored: &Service, wanted: &Service) -> bool {
    let ports = |service: &Service| -> Vec<(Option<String>, i32, Option<IntOrString>)> {
        let ports = service
            .spec
            .as_ref()
            .and_then(|spec| spec.ports.clone())
            .unwrap_or_default();
        ports
            .into_iter()
            .map(|port| (port.name, port.port, port.target_port))
            .collect()
    };
    let address = |service: &Service| service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone());
    if address(stored) != address(wanted) {
        tracing::warn!(service = %name_of(stored), have = ?address(stored), want = ?address(wanted),
            "service has another address than configured");
        return true;
    }
    ports(stored) == ports(wanted)
}

fn meta(namespace: &str, name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    let labels: BTreeMap<_, _> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: (!labels.is_empty()).then_some(labels),
        ..ObjectMeta::default()
    }
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn service(metadata: ObjectMeta, address: IpAddr, ports: Vec<ServicePort>) -> Service {
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        cluster_ip: Some(address.to_string()),
        cluster_ips: Some(vec![address.to_string()]),
        ip_families: Some(vec![family(&address).to_owned()]),
        ip_family_policy: Some("SingleStack".to_owned()),
        internal_traffic_policy: Some("Cluster".to_owned()),
        session_affinity: Some("None".to_owned()),
        ports: Some(ports),
        ..ServiceSpec::default()
    };
    Service {
        metadata,
        spec: Some(spec),
        status: None,
    }
}

fn port(name: &str, protocol: &str, port: u16, target: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: i32::from(port),
        target_port: Some(IntOrString::Int(i32::from(target))),
        ..ServicePort::default()
    }
}

fn kubernetes_service(config: &KubernetesService) -> Service {
    let labels = [("component", "apiserver"), ("provider", "kubernetes")];
    let ports = vec![port("https", "TCP", config.port, config.target_port)];
    service(meta("default", KUBERNETES, &labels), config.cluster_ip, ports)
}

/// Of the Service's own family: an Endpoints object and a slice hold only one.
fn addresses(config: &KubernetesService) -> Vec<IpAddr> {
    let mut addresses = config.addresses.clone();
    addresses.retain(|address| address.is_ipv4() == config.cluster_ip.is_ipv4());
    addresses.sort();
    addresses.dedup();
    addresses
}

fn kubernetes_endpoints(config: &KubernetesService) -> Endpoints {
    let address = |ip: IpAddr| EndpointAddress {
        ip: ip.to_string(),
        ..EndpointAddress::default()
    };
    let port = EndpointPort {
        name: Some("https".to_owned()),
        port: i32::from(config.target_port),
        protocol: Some("TCP".to_owned()),
        app_protocol: None,
    };
    Endpoints {
        // The slice is written here as well, and must not be mirrored from this.
        metadata: meta(
            "default",
            KUBERNETES,
            &[("endpointslice.kubernetes.io/skip-mirror", "true")],
        ),
        subsets: Some(vec![EndpointSubset {
            addresses: Some(addresses(config).into_iter().map(address).collect()),
            not_ready_addresses: None,
            ports: Some(vec![port]),
        }]),
    }
}

fn kubernetes_slice(config: &KubernetesService) -> EndpointSlice {
    let endpoint = |ip: IpAddr| Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            ..EndpointConditions::default()
        }),
        ..Endpoint::default()
    };
    let port = SlicePort {
        name: Some("https".to_owned()),
        port: Some(i32::from(config.target_port)),
        protocol: Some("TCP".to_owned()),
        app_protocol: None,
    };
    EndpointSlice {
        metadata: meta(
            "default",
            KUBERNETES,
            &[("kubernetes.io/service-name", KUBERNETES)],
        ),
        address_type: family(&config.cluster_ip).to_owned(),
        endpoints: addresses(config).into_iter().map(endpoint).collect(),
        ports: Some(vec![port]),
    }
}

/// No selector: every node has a server of its own, which is no pod.
fn dns_service(address: IpAddr) -> Service {
    let labels = [
        ("k8s-app", DNS),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    let ports = DNS_PORTS.map(|(name, protocol, number)| port(name, protocol, number, number));
    service(meta("kube-system", DNS, &labels), address, ports.into())
}

const DNS_PORTS: [(&str, &str, u16); 3] = [
    ("dns", "UDP", 53),
    ("dns-tcp", "TCP", 53),
    ("metrics", "TCP", 9153),
];

/// The API server takes no more endpoints in one slice.
const MAX_ENDPOINTS: usize = 1000;

/// The name of the slice of this number, from 0.
fn dns_slice_name(number: usize) -> ObjectName {
    let name = match number {
        0 => DNS.to_owned(),
        _ => format!("{DNS}-{number}"),
    };
    ObjectName::new("kube-system", name)
}

/// The servers of the nodes that are ready, in the order of their names, in as many slices as they need, and in one at
/// least. They answer for a node whose own one does not.
fn dns_slices(address: IpAddr, nodes: &[Arc<Node>]) -> Vec<EndpointSlice> {
    let mut endpoints: Vec<_> = nodes
        .iter()
        .filter_map(|node| dns_endpoint(node, address.is_ipv4()))
        .collect();
    endpoints.sort_by(|one, other| one.node_name.cmp(&other.node_name));
    let slices = endpoints.len().div_ceil(MAX_ENDPOINTS).max(1);
    let slice = |number: usize| {
        let endpoints = endpoints.iter().skip(number * MAX_ENDPOINTS).take(MAX_ENDPOINTS);
        dns_slice(address, number, endpoints.cloned().collect())
    };
    (0..slices).map(slice).collect()
}

fn dns_slice(address: IpAddr, number: usize, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ObjectName { namespace, name } = dns_slice_name(number);
    let ports = DNS_PORTS.map(|(name, protocol, number)| SlicePort {
        name: Some(name.to_owned()),
        port: Some(i32::from(number)),
        protocol: Some(protocol.to_owned()),
        app_protocol: None,
    });
    EndpointSlice {
        metadata: meta(&namespace, &name, &[("kubernetes.io/service-name", DNS)]),
        address_type: family(&address).to_owned(),
        endpoints,
        ports: Some(ports.into()),
    }
}

fn dns_endpoint(node: &Node, is_ipv4: bool) -> Option<Endpoint> {
    condition(node, "Ready").filter(|ready| ready.status == "True")?;
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    let mut internal = internal.filter_map(|address| address.address.parse::<IpAddr>().ok());
    Some(Endpoint {
        addresses: vec![internal.find(|address| address.is_ipv4() == is_ipv4)?.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            ..EndpointConditions::default()
        }),
        node_name: node.metadata.name.clone(),
        ..Endpoint::default()
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, NodeStatus};

    use super::*;

    fn node(number: u16) -> Arc<Node> {
        let [high, low] = number.to_be_bytes();
        let status = NodeStatus {
            addresses: Some(vec![NodeAddress {
                address: format!("10.0.{high}.{low}"),
                type_: "InternalIP".to_owned(),
            }]),
            conditions: Some(vec![NodeCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        };
        Arc::new(Node {
            metadata: meta("", &format!("n{number:05}"), &[]),
            status: Some(status),
            ..Node::default()
        })
    }

    #[test]
    fn more_servers_than_a_slice_holds_are_in_several_each_once() {
        let address: IpAddr = [10, 96, 0, 10].into();
        for (nodes, expected) in [
            (0, &[("kube-dns", 0)][..]),
            (1000, &[("kube-dns", 1000)]),
            (
                2345,
                &[("kube-dns", 1000), ("kube-dns-1", 1000), ("kube-dns-2", 345)],
            ),
        ] {
            let nodes: Vec<_> = (0..nodes).rev().map(node).collect();
            let slices = dns_slices(address, &nodes);
            let named: Vec<_> = slices
                .iter()
                .map(|slice| {
                    (
                        slice.metadata.name.as_deref().unwrap_or_default(),
                        slice.endpoints.len(),
                    )
                })
                .collect();
            assert_eq!(named, expected);
            let told = slices.iter().flat_map(|slice| &slice.endpoints);
            let told: Vec<_> = told.filter_map(|endpoint| endpoint.node_name.clone()).collect();
            let mut all: Vec<_> = nodes
                .iter()
                .filter_map(|node| node.metadata.name.clone())
                .collect();
            all.sort();
            assert_eq!(told, all);
        }
    }
}
