//! A cluster with a server and a client on each node, and what trials do with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::cluster::{Cluster, process_of};
use tests::route::{Route, Unserved};

use crate::client::{Client, SOON};

/// The pods that serve, one on each node.
pub const SERVERS: [&str; 3] = ["server-1", "server-2", "server-3"];
/// Those that also have the label `some: "yes"`: none is on node-3.
pub const SOME: [&str; 2] = ["server-1", "server-2"];

/// The host's address on the nodes' network: who is outside comes from it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 1);

/// A cluster that is up.
pub struct World {
    /// What carries out Services.
    pub datapath: String,
    /// kubectl and more.
    pub cluster: Cluster,
    /// A pod on each node that does nothing else.
    pub clients: Vec<Client>,
    /// The pods that serve, as clients.
    pub servers: Vec<Client>,
    /// A process of each node.
    pub nodes: Vec<Client>,
    /// The host.
    pub outside: Client,
    /// The host by IPv6.
    pub outside_v6: Client,
    /// Goes after the cluster that needs it.
    _unserved: Unserved,
    _program: Program,
}

/// Where the nodes' subnets are kept in the cluster of a datapath.
pub fn leases(datapath: &str) -> &'static str {
    if datapath == "nftables" {
        "kubernetes"
    } else {
        "etcd"
    }
}

impl World {
    /// Brings it up.
    pub fn up(datapath: &str) -> anyhow::Result<Self> {
        let state_dir = PathBuf::from(format!("/var/lib/cwt-services-{}-{datapath}", std::process::id()));
        let flags = [
            "--datapath",
            datapath,
            "--service-cidr",
            "10.96.0.0/12,fd00:10:96::/112",
            "--underlay-cidr",
            "172.30.0.0/24,fd00:172:30::/64",
            "--pod-cidr",
            "10.244.0.0/16,fd00:10:244::/48",
            "--allow-external-ips",
            // Services do not care, so one of the three shows that everything works with either.
            "--leases",
            leases(datapath),
        ];
        let cluster = Cluster::up(&state_dir, &flags)?;
        cluster.apply(&pods().to_string())?;
        cluster.run(&["wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s"])?;
        // Not in the state directory: that goes with the cluster only if nothing else is in it.
        let program = Program::new(datapath);
        let pods = cluster.run(&["get", "pods", "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let clients = in_pods(&pods, "client", &program.0)?;
        let servers = in_pods(&pods, "server", &program.0)?;
        let nodes = (1..=3).map(|n| Client::on_node(&format!("node-{n}"), node_address(n), &program.0));
        Ok(Self {
            datapath: datapath.to_owned(),
            clients,
            servers,
            nodes: nodes.collect::<anyhow::Result<_>>()?,
            outside: Client::outside(OUTSIDE.into(), &program.0),
            outside_v6: Client::outside(OUTSIDE_V6.into(), &program.0),
            _unserved: Unserved::new()?,
            cluster,
            _program: program,
        })
    }

    /// The clients in pods and on nodes.
    pub fn inside(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().chain(&self.nodes)
    }

    /// Runs a trial, and prints the processes' logs when it fails.
    pub fn watch(&self, trial: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        struct Failing<'a>(&'a World);
        impl Drop for Failing<'_> {
            fn drop(&mut self) {
                self.0.cluster.print_logs();
            }
        }
        let failing = Failing(self);
        trial(self)?;
        std::mem::forget(failing);
        Ok(())
    }

    /// Makes an object, which is removed when dropped.
    pub fn make(&self, manifest: &Value) -> anyhow::Result<Object<'_>> {
        let kind = manifest["kind"].as_str().context("kind")?;
        let name = manifest["metadata"]["name"].as_str().context("name")?;
        Ok(Object {
            cluster: &self.cluster,
            reference: format!("{}/{name}", kind.to_lowercase()),
            content: self.cluster.apply_and_read(manifest)?,
        })
    }

    /// Makes a Service of the servers, port 80 with both protocols. `spec` says what else it has.
    pub fn service(&self, name: &str, spec: &Value) -> anyhow::Result<Object<'_>> {
        let mut whole = json!({
            "selector": {"app": "server"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http"},
                {"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"},
            ],
        });
        for (key, value) in spec.as_object().context("a spec")? {
            whole[key] = value.clone();
        }
        self.make(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": whole}))
    }

    /// Sends, outside of the cluster, what goes to `address` to a node. The route is removed when dropped.
    pub fn route(&self, address: &str, node: u8) -> anyhow::Result<Route> {
        let route = match address.parse()? {
            IpAddr::V4(address) => format!("{address}/32 via {}", node_address(node)),
            IpAddr::V6(address) => format!("{address}/128 via {}", node_address_v6(node)),
        };
        Route::add(route)
    }

    /// Changes a line of every agent's configuration, and has the agents read it.
    pub fn reconfigure_agents(&self, from: &str, to: &str) -> anyhow::Result<()> {
        for n in 1..=3 {
            let path = format!("nodes/node-{n}/agent.yaml");
            let path = self.cluster.state_dir().join(path);
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.contains(from), "no {from:?} in {text}");
            std::fs::write(&path, text.replace(from, to))?;
        }
        let agents = ["node-1-agent", "node-2-agent", "node-3-agent"];
        self.cluster
            .signal_and_await_successors(&agents, Signal::SIGTERM, SOON)
    }
}

/// A node's address.
pub fn node_address(number: u8) -> IpAddr {
    Ipv4Addr::new(172, 30, 0, 10 + number).into()
}

/// A node's IPv6 address: it counts as IPv4 does.
pub fn node_address_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 10 + u16::from(number)).into()
}

/// All nodes' addresses with a port.
pub fn on_every_node(port: u16) -> [SocketAddr; 3] {
    [1, 2, 3].map(|n| SocketAddr::new(node_address(n), port))
}

/// An object of the API, removed when dropped.
pub struct Object<'a> {
    cluster: &'a Cluster,
    reference: String,
    /// As it was read last.
    pub content: Value,
}

impl Object<'_> {
    /// Changes its specification by a merge patch; `null` removes a field.
    pub fn patch(&mut self, spec: &Value) -> anyhow::Result<()> {
        self.merge(&json!({ "spec": spec }), &[])
    }

    /// Gives a load balancer's address to a Service, as its controller would.
    pub fn set_load_balancer(&mut self, address: &str) -> anyhow::Result<()> {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
        self.merge(&status, &["--subresource=status"])
    }

    fn merge(&mut self, patch: &Value, options: &[&str]) -> anyhow::Result<()> {
        let patch = patch.to_string();
        let words = [
            "patch",
            &self.reference,
            "-o",
            "json",
            "--type=merge",
            "-p",
            &patch,
        ];
        let text = self.cluster.run(&[&words, options].concat())?;
        self.content = serde_json::from_str(&text)?;
        Ok(())
    }

    /// Sets labels, or removes one that is written `name-`.
    pub fn label(&self, label: &str) -> anyhow::Result<()> {
        self.cluster.run(&["label", &self.reference, label])?;
        Ok(())
    }

    /// Scales a Deployment.
    pub fn scale(&self, replicas: u8) -> anyhow::Result<()> {
        self.cluster
            .run(&["scale", &self.reference, &format!("--replicas={replicas}")])?;
        Ok(())
    }

    /// A Service's ClusterIP and port.
    pub fn cluster_ip(&self) -> anyhow::Result<SocketAddr> {
        let address = self.content["spec"]["clusterIP"]
            .as_str()
            .context("no clusterIP")?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// A Service's ClusterIP of the second family, and port.
    pub fn second_cluster_ip(&self) -> anyhow::Result<SocketAddr> {
        let address = self.content["spec"]["clusterIPs"][1].as_str();
        let address = address.with_context(|| format!("one ClusterIP: {}", self.content["spec"]))?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// A Service's node port, of both protocols.
    pub fn node_port(&self) -> anyhow::Result<u16> {
        self.port(&self.content["spec"]["ports"][0]["nodePort"])
    }

    /// The port of its health checks.
    pub fn health_check_node_port(&self) -> anyhow::Result<u16> {
        self.port(&self.content["spec"]["healthCheckNodePort"])
    }

    fn port(&self, value: &Value) -> anyhow::Result<u16> {
        let number = value
            .as_u64()
            .with_context(|| format!("no port in {}", self.content))?;
        Ok(u16::try_from(number)?)
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        let removed = self.cluster.run(&["delete", &self.reference, "--wait=false"]);
        if let Err(error) = removed {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Where the test server's program is copied to, out of a container; removed when dropped.
struct Program(PathBuf);

impl Program {
    fn new(label: &str) -> Self {
        let name = format!("cwt-services-{}-{label}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server and a client on each node.
fn pods() -> Value {
    let numbers = 1..=3;
    let pod = |name: String, node: u8, labels: Value, container: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": format!("node-{node}")},
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        })
    };
    let servers = numbers.clone().map(|n| {
        let labels =
            json!({"app": "server", "some": if n < 3 { "yes" } else { "no" }, "on": format!("node-{n}")});
        pod(
            format!("server-{n}"),
            n,
            labels,
            server_container("/readyz", 8080),
        )
    });
    let clients = numbers.clone().map(|n| {
        let container =
            json!({"name": "client", "image": "causeway/testserver:v1", "args": ["sleep", "infinity"]});
        pod(format!("client-{n}"), n, json!({"app": "client"}), container)
    });
    json!({"apiVersion": "v1", "kind": "List", "items": servers.chain(clients).collect::<Vec<_>>()})
}

/// A container that serves HTTP on this port and UDP on the next one, and is ready while it answers this path.
pub fn server_container(ready_path: &str, port: u16) -> Value {
    let (http, udp) = (format!(":{port}"), format!(":{}", port + 1));
    json!({
        "name": "server", "image": "causeway/testserver:v1",
        "args": ["serve", "--http", http, "--udp", udp],
        "ports": [
            {"name": "http", "containerPort": port},
            {"name": "udp", "containerPort": port + 1, "protocol": "UDP"},
        ],
        "readinessProbe": {"httpGet": {"path": ready_path, "port": "http"}, "periodSeconds": 1},
    })
}

/// Clients in the pods with this label `app`, by their names.
fn in_pods(pods: &Value, app: &str, program: &Path) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for pod in pods["items"].as_array().context("pods")? {
        if pod["metadata"]["labels"]["app"] == app {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let name = text(&pod["metadata"]["name"]).context("name")?;
            let uid = text(&pod["metadata"]["uid"]).context("uid")?;
            let address = text(&pod["status"]["podIP"]).context("podIP")?;
            let pid = process_of(&uid).with_context(|| format!("{name} has no process"))?;
            if !program.exists() {
                std::fs::copy(format!("/proc/{pid}/exe"), program)?;
            }
            clients.push(Client::in_pod(&name, address.parse()?, pid, program)?);
        }
    }
    clients.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(clients)
}
