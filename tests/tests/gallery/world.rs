//! The cluster, and names for what is in it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use ebpf::abi::pods::Tunnel;
use ebpf::abi::service::{Frontend, FrontendKey};
use netlink::{Kernel as _, Namespace, Netlink};
use serde_json::Value;
use tests::cluster::{Cluster, everything, process_of, program};
use tests::process::{self, Output, Place, installed};
use tests::tracked::Entries;
use tests::wait;

use super::row::Blow;

/// For pods and rollouts.
const LATER: Duration = Duration::from_secs(60);

/// A server on node-2 behind Services of several kinds, and its client on node-1.
const OBJECTS: &str = include_str!("objects.yaml");

/// Where something is done.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// The machine that the nodes stand on, which is outside of the cluster.
    Outside,
    /// The network namespace of a node.
    Node(u8),
    /// The client's pod, on node-1.
    Client,
    /// The server's pod, on node-2.
    Server,
}

/// What doctor said.
#[derive(Debug)]
pub struct Report {
    /// Each finding.
    pub findings: Vec<Finding>,
}

/// One thing that it found.
#[derive(Debug)]
pub struct Finding {
    /// What kind of thing it is.
    pub id: String,
    /// What it is about.
    pub object: String,
    /// What was seen.
    pub evidence: String,
}

/// The cluster that rows share.
pub struct World {
    /// Of two nodes.
    pub cluster: Cluster,
}

impl World {
    /// Brings it up, and waits until all of it works and nothing is found.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up() -> anyhow::Result<Self> {
        let state_dir = PathBuf::from(format!("/var/lib/cwt-gallery-{}", std::process::id()));
        let cluster = Cluster::up(&state_dir, &["--nodes", "2", "--datapath", "ebpf"])?;
        let world = Self { cluster };
        world.cluster.apply(OBJECTS)?;
        world
            .cluster
            .run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
        let phase = ["get", "pod", "client", "-o", "jsonpath={.status.phase}"];
        world.cluster.await_output(&phase, "Running", LATER);
        wait::until("all works", LATER, || world.is_whole());
        Ok(world)
    }

    /// Takes it down.
    ///
    /// # Errors
    /// With what `causeway down` said, when it failed.
    pub fn down(&self) -> anyhow::Result<()> {
        let output = self.cluster.causeway("down", &[])?;
        ensure!(output.status.success(), "causeway down: {}", everything(&output));
        Ok(())
    }

    /// Whether the client is served by address and by name, and no node finds anything.
    ///
    /// # Errors
    /// With what is not so.
    pub fn is_whole(&self) -> anyhow::Result<()> {
        let is_silent = |node| {
            let report = self.doctor(node)?;
            ensure!(report.findings.is_empty(), "doctor of node-{node}: {report:?}");
            Ok(())
        };
        std::thread::scope(|scope| {
            let doctors = [1, 2].map(|node| scope.spawn(move || is_silent(node)));
            let served = self.is_served();
            for doctor in doctors {
                doctor
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            served
        })
    }

    fn is_served(&self) -> anyhow::Result<()> {
        let facts = self.facts()?;
        let fact = |name: &str| facts.get(name).with_context(|| format!("there is no {name}"));
        for to in [
            format!("{}:80", fact("vip")?),
            format!("{}:8080", fact("web-ip")?),
        ] {
            self.fetch(At::Client, &to).context(to)?;
        }
        let query = "dig +short +tries=1 +time=1 @10.96.0.10 web.default.svc.cluster.local";
        let named = self.run(At::Client, query)?;
        ensure!(named.stdout.trim() == fact("vip")?, "{named:?}");
        Ok(())
    }

    /// What is where at this moment.
    ///
    /// # Errors
    /// When the cluster does not tell, or has not all of it.
    pub fn facts(&self) -> anyhow::Result<BTreeMap<&'static str, String>> {
        let text = self
            .cluster
            .run(&["get", "pods,services", "-o", "json"])
            .context("what there is")?;
        let list: Value = serde_json::from_str(&text)?;
        let items = list["items"].as_array().context("a list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of_kind = |kind: &'static str| items.iter().filter(move |item| item["kind"] == kind);
        let pod = |app: &'static str| {
            let mut pods = of_kind("Pod").filter(move |pod| {
                pod["metadata"]["labels"]["app"] == app && pod["metadata"]["deletionTimestamp"].is_null()
            });
            pods.next()
        };
        let mut facts = BTreeMap::new();
        for (app, name, ip, veth, node) in [
            ("web", "web", "web-ip", "web-veth", 2),
            ("client", "client", "client-ip", "client-veth", 1),
        ] {
            let Some(pod) = pod(app) else { continue };
            let address = text(&pod["status"]["podIP"]);
            facts.extend(device_to(node, &address)?.map(|device| (veth, device)));
            facts.insert(name, text(&pod["metadata"]["name"]));
            facts.insert(ip, address);
        }
        for (service, name) in [("web", "vip"), ("own", "own-vip"), ("echo", "echo-vip")] {
            let service = of_kind("Service").find(|found| found["metadata"]["name"] == service);
            facts.extend(service.map(|service| (name, text(&service["spec"]["clusterIP"]))));
        }
        for (node, address, tunnel_mac, subnet, vtep, underlay_mac) in [
            (1, "node-1", "mac-1", "subnet-1", "vtep-1", "underlay-mac-1"),
            (2, "node-2", "mac-2", "subnet-2", "vtep-2", "underlay-mac-2"),
        ] {
            facts.insert(address, node_address(node).to_string());
            facts.extend(mac(node, "eth0")?.map(|mac| (underlay_mac, mac)));
            facts.extend(mac(node, "flannel.1")?.map(|mac| (tunnel_mac, mac)));
            if let Some(network) = tunnel_address(node)? {
                facts.insert(subnet, format!("{network}/24"));
                facts.insert(vtep, network);
            }
        }
        let most = netlink::sysctl::read("net/netfilter/nf_conntrack_max")?;
        facts.insert("most-tracked", most);
        facts.insert("pins", self.pins(1)?.display().to_string());
        Ok(facts)
    }

    /// Where something is done.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn place(&self, at: At) -> anyhow::Result<Place> {
        Ok(match at {
            At::Outside => Place::default(),
            At::Node(node) => Place {
                namespace: Some(namespace(node)?),
                cgroup: None,
            },
            At::Client | At::Server => Place::beside(self.process(at)?)?,
        })
    }

    /// A process of a pod.
    ///
    /// # Errors
    /// When there is none, or it is no pod.
    pub fn process(&self, at: At) -> anyhow::Result<u32> {
        let app = match at {
            At::Client => "client",
            At::Server => "web",
            At::Outside | At::Node(_) => bail!("{at:?} is no pod"),
        };
        let label = format!("app={app}");
        let uids = "jsonpath={.items[*].metadata.uid}";
        let uids = self.cluster.run(&["get", "pods", "-l", &label, "-o", uids])?;
        let process = uids.split_whitespace().find_map(process_of);
        process.with_context(|| format!("no process of {app}"))
    }

    /// Runs a command, words with single spaces between them.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, at: At, words: &str) -> anyhow::Result<Output> {
        run_at(&self.place(at)?, words)
    }

    /// Asks for a page.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn fetch(&self, at: At, to: &str) -> anyhow::Result<()> {
        let _: SocketAddr = to.parse().with_context(|| to.to_owned())?;
        let place = self.place(at)?;
        let mut command = process::command(&place, program("testserver"));
        command.args(["fetch", &format!("http://{to}/"), "--timeout-ms", "1000"]);
        let output = process::run_in(&place, &mut command, b"")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// Runs a `causeway` command with the configurations of these nodes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ask(&self, command: &str, arguments: &[&str], nodes: &[u8]) -> anyhow::Result<Output> {
        let mut causeway = std::process::Command::new(program("causeway"));
        causeway.arg(command).args(arguments).env_remove("NODE_NAME");
        for node in nodes {
            causeway.arg("--config").arg(self.node_file(*node, "agent.yaml"));
        }
        process::run_in(&Place::default(), &mut causeway, b"")
    }

    /// Whether a bundle of a node explains the same, word for word, as the node does.
    ///
    /// # Errors
    /// With both, where they differ, and when there is no bundle.
    pub fn bundle_explains_alike(&self, node: u8, ends: &str) -> anyhow::Result<()> {
        let path = self.cluster.state_dir().join(format!("cwt-bundle-{node}.tar.gz"));
        let file = path.to_str().context("a path of UTF-8")?;
        let made = self.ask("bundle", &["--force", "-o", file], &[node])?;
        ensure!(matches!(made.status.code(), Some(0 | 1)), "{made:?}");
        let ends: Vec<&str> = ends.split(' ').collect();
        let live = self.ask("explain", &ends, &[node])?;
        let replayed = self.ask("bundle", &[&["replay", file, "explain"], &ends[..]].concat(), &[])?;
        // `causeway down` leaves what is not its own.
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        ensure!(
            (replayed.status.code(), &replayed.stdout) == (live.status.code(), &live.stdout),
            "{replayed:?}\n{live:?}"
        );
        Ok(())
    }

    /// What doctor finds on a node.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn doctor(&self, node: u8) -> anyhow::Result<Report> {
        let output = self.ask("doctor", &["-o", "json"], &[node])?;
        let Ok(report) = serde_json::from_str::<Value>(&output.stdout) else {
            bail!("doctor of node-{node}: {output:?}");
        };
        let findings = report["findings"].as_array().context("findings")?;
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let findings = findings.iter().map(|finding| Finding {
            id: text(finding, "id"),
            object: text(finding, "object"),
            evidence: text(finding, "evidence"),
        });
        Ok(Report {
            findings: findings.collect(),
        })
    }

    /// Asks a node's DNS server for a name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn dns_query(&self, node: u8, name: &str) -> anyhow::Result<Output> {
        let place = self.place(At::Node(node))?;
        let mut causeway = process::command(&place, program("causeway"));
        causeway
            .args(["dns", "query", name, "--conf"])
            .arg(self.node_file(node, "Corefile"));
        process::run_in(&place, &mut causeway, b"")
    }

    /// Where the agent of a node pins its maps and links. The BPF file system is the node's own.
    fn pins(&self, node: u8) -> anyhow::Result<PathBuf> {
        let agent = self.cluster.pid(&format!("node-{node}-agent"))?;
        let layout = format!("v{}", ebpf::abi::LAYOUT);
        Ok(PathBuf::from(format!("/proc/{agent}/root/sys/fs/bpf/causeway")).join(layout))
    }

    /// Takes all frontends out of the socket hook's map on node-1.
    ///
    /// # Errors
    /// When there is no such map.
    pub fn forget_frontends(&self) -> anyhow::Result<()> {
        let data = MapData::from_pin(self.pins(1)?.join("FRONTENDS"))?;
        let mut map: HashMap<_, FrontendKey, Frontend> = HashMap::try_from(Map::HashMap(data))?;
        for key in map.keys().collect::<Result<Vec<_>, _>>()? {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// What keeps telling node-1's programs between pods to wrap packets for another network.
    ///
    /// # Errors
    /// When there is no such map.
    pub fn lead_astray(&self) -> anyhow::Result<Blow> {
        let mut tunnels = self.tunnels()?;
        Ok(Box::new(move || of_network(&mut tunnels, 77)))
    }

    /// Puts that right.
    ///
    /// # Errors
    /// When there is no such map.
    pub fn lead_back(&self) -> anyhow::Result<()> {
        of_network(&mut self.tunnels()?, 1)
    }

    fn tunnels(&self) -> anyhow::Result<Array<MapData, Tunnel>> {
        let layout = format!("pods/v{}", ebpf::abi::pods::LAYOUT);
        let data = MapData::from_pin(self.pins(1)?.with_file_name(layout).join("TUNNELS"))?;
        Ok(Array::try_from(Map::Array(data))?)
    }

    /// What keeps connection tracking's table of node-1 full.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn fill_tracked(&self) -> anyhow::Result<Blow> {
        let mut entries = Entries::in_namespace(&namespace(1)?)?;
        Ok(Box::new(move || Ok(entries.fill()?)))
    }

    /// Takes away what filled it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn empty_tracked(&self) -> anyhow::Result<()> {
        Ok(Entries::in_namespace(&namespace(1)?)?.clear()?)
    }

    /// Runs `etcdctl` as the administrator; a value goes behind the arguments, where it is not empty.
    ///
    /// # Errors
    /// When it fails.
    pub fn etcdctl(&self, arguments: &str, value: &str) -> anyhow::Result<String> {
        let pki = self.cluster.state_dir().join("pki");
        let mut command = std::process::Command::new(installed("etcdctl").context("no etcdctl")?);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", "https://127.0.0.1:2379"])
            .arg("--cacert")
            .arg(pki.join("ca.crt"))
            .arg("--cert")
            .arg(pki.join("admin.crt"))
            .arg("--key")
            .arg(pki.join("admin.key"))
            .args(arguments.split(' '));
        if !value.is_empty() {
            command.arg(value);
        }
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "etcdctl {arguments}: {}",
            everything(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until both nodes have their leases.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn await_leases(&self) -> anyhow::Result<()> {
        let list = || self.etcdctl("get --prefix --keys-only /coreos.com/network/subnets/", "");
        let leases = |list: &anyhow::Result<String>| {
            let list = list.as_deref().unwrap_or_default();
            list.lines().filter(|line| !line.is_empty()).count()
        };
        wait::until_value("two leases", LATER, list, |list| leases(list) == 2).map(drop)
    }

    fn node_file(&self, node: u8, name: &str) -> PathBuf {
        let nodes = self.cluster.state_dir().join("nodes");
        nodes.join(format!("node-{node}")).join(name)
    }
}

/// Says of which network packets of IPv4 are that programs wrap.
fn of_network(tunnels: &mut Array<MapData, Tunnel>, identifier: u32) -> anyhow::Result<()> {
    let tunnel = tunnels.get(&Tunnel::V4, 0)?;
    let vni = Tunnel::vni(identifier);
    Ok(tunnels.set(Tunnel::V4, Tunnel { vni, ..tunnel }, 0)?)
}

/// Runs a command, words with single spaces between them.
///
/// # Errors
/// When it cannot be started.
pub fn run_at(place: &Place, words: &str) -> anyhow::Result<Output> {
    let mut words = words.split(' ');
    let program = words.next().unwrap_or_default();
    let mut command = process::command(place, program);
    command.args(words);
    process::run_in(place, &mut command, b"")
}

fn namespace(node: u8) -> netlink::Result<Namespace> {
    Namespace::named(&format!("causeway-node-{node}"))
}

const fn node_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + node)
}

fn mac(node: u8, device: &str) -> anyhow::Result<Option<String>> {
    let link = Netlink::open_in(&namespace(node)?)?.link_named(device)?;
    let octets = link.and_then(|link| link.mac);
    Ok(octets.map(|octets| octets.map(|octet| format!("{octet:02x}")).join(":")))
}

/// The tunnel's own address is its subnet's first.
fn tunnel_address(node: u8) -> anyhow::Result<Option<String>> {
    let mut kernel = Netlink::open_in(&namespace(node)?)?;
    let Some(link) = kernel.link_named("flannel.1")? else {
        return Ok(None);
    };
    let addresses = kernel.addresses(Some(link.index))?;
    let v4 = addresses.iter().find(|address| address.network.is_ipv4());
    Ok(v4.map(|address| address.network.ip().to_string()))
}

/// The node's end of a pod's device.
fn device_to(node: u8, pod: &str) -> anyhow::Result<Option<String>> {
    let Ok(pod) = pod.parse() else { return Ok(None) };
    let mut kernel = Netlink::open_in(&namespace(node)?)?;
    let Some(index) = kernel.route_to(pod)?.and_then(|route| route.link) else {
        return Ok(None);
    };
    Ok(kernel.link_at(index)?.map(|link| link.name))
}
