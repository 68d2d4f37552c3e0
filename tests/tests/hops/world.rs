//! The cluster, and the hops that `causeway trace` tells on it, in words that a table can have.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::cluster::{Cluster, everything, program};
use tests::process::{self, Output, Place};
use tests::wait;

use super::rows::Row;

/// Until connections take the fast path, and for whatever else is awaited.
const SOON: Duration = Duration::from_secs(20);

/// A server on node-2 behind a Service, and a client on node-1.
const OBJECTS: &str = include_str!("objects.yaml");

/// Ports of servers. All others are chosen by a kernel, and rows leave them out.
const SERVED: [u16; 5] = [53, 8080, 9000, 30080, 30090];

pub struct World {
    pub cluster: Cluster,
    /// What the addresses of the cluster are called in rows.
    names: BTreeMap<String, &'static str>,
    /// The same of words in braces.
    facts: BTreeMap<&'static str, String>,
}

/// What was seen of a packet there, and of its reply.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: Option<i32>,
    verdict: String,
    service: Option<String>,
    there: Vec<String>,
    back: Vec<String>,
}

impl World {
    pub fn up(datapath: &str) -> anyhow::Result<Self> {
        let state_dir = PathBuf::from(format!("/var/lib/cwt-hops-{}-{datapath}", std::process::id()));
        let flags = [
            "--nodes",
            "2",
            "--datapath",
            datapath,
            "--service-cidr",
            "10.96.0.0/12,fd00:10:96::/112",
            "--underlay-cidr",
            "172.30.0.0/24,fd00:172:30::/64",
            "--pod-cidr",
            // Tests of pod networks may run beside this one.
            "10.245.0.0/16,fd00:10:245::/48",
        ];
        let cluster = Cluster::up(&state_dir, &flags)?;
        cluster.apply(OBJECTS)?;
        cluster.run(&["wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s"])?;
        let list: Value =
            serde_json::from_str(&cluster.run(&["get", "pods,services,nodes", "-o", "json"])?)?;
        let mut facts = BTreeMap::new();
        for (kind, name, path, words) in [
            ("Pod", "client", "/status/podIPs", ["client", "client-6"]),
            ("Pod", "server", "/status/podIPs", ["server", "server-6"]),
            ("Service", "web", "/spec/clusterIPs", ["web", "web-6"]),
        ] {
            let mut items = list["items"].as_array().context("a list")?.iter();
            let item = items.find(|item| item["kind"] == kind && item["metadata"]["name"] == name);
            let addresses = item.and_then(|item| item.pointer(path)?.as_array());
            let addresses = addresses.with_context(|| format!("{kind} {name} has no addresses"))?;
            for (word, address) in words.into_iter().zip(addresses) {
                let text = address["ip"].as_str().or(address.as_str());
                facts.insert(word, text.context("an address")?.to_owned());
            }
        }
        for (word, address) in [
            ("outside", "172.30.0.1"),
            ("node-1", "172.30.0.11"),
            ("node-1-6", "fd00:172:30::b"),
            ("node-2", "172.30.0.12"),
            ("node-2-6", "fd00:172:30::c"),
            ("dns", "10.96.0.10"),
        ] {
            facts.insert(word, address.to_owned());
        }
        for (word, device) in [("tunnel-1", "flannel.1"), ("tunnel-1-6", "flannel-v6.1")] {
            facts.insert(word, own_address("causeway-node-1", device)?);
        }
        let names = facts.iter().map(|(word, address)| (address.clone(), *word));
        Ok(Self {
            cluster,
            names: names.collect(),
            facts,
        })
    }

    pub fn down(&self) -> anyhow::Result<()> {
        let output = self.cluster.causeway("down", &[])?;
        ensure!(output.status.success(), "causeway down: {}", everything(&output));
        Ok(())
    }

    /// Follows a probe until it goes as the row says: the first connections may be there before the fast path is.
    pub fn check(&self, row: &Row) -> anyhow::Result<()> {
        let owned = |lines: &[&str]| lines.iter().flat_map(|line| leg(line)).collect();
        let wanted = Told {
            code: Some(row.code),
            verdict: row.verdict.to_owned(),
            service: row.service.map(str::to_owned),
            there: owned(row.there),
            back: owned(row.back),
        };
        let told = || -> anyhow::Result<()> {
            let told = self.told(row)?;
            ensure!(told == wanted, "{told:#?}\nwanted: {wanted:#?}");
            Ok(())
        };
        wait::until(row.name, SOON, told);
        Ok(())
    }

    fn told(&self, row: &Row) -> anyhow::Result<Told> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.trace(&self.filled(row.ends))?;
        let story: Value = serde_json::from_str(&stdout).with_context(|| format!("{stdout}{stderr}"))?;
        ensure!(story["lostEvents"] == 0, "{stdout}");
        let service = story["service"].as_object().map(|service| {
            let text = |key: &str| service.get(key).and_then(Value::as_str);
            let endpoint = text("endpoint").map_or_else(|| "nobody".to_owned(), |at| self.end(at));
            let [name, by] = ["name", "by"].map(|key| text(key).unwrap_or_default());
            format!("{name} of {} -> {endpoint} {by}", service["endpoints"])
        });
        let hops = |is_reply: bool| {
            let mut packets = story["packets"].as_array().into_iter().flatten();
            let packet = packets.find(|packet| packet["isReply"] == is_reply);
            packet.map_or_else(Vec::new, |packet| self.hops(packet))
        };
        Ok(Told {
            code: status.code(),
            verdict: story["verdict"].as_str().unwrap_or_default().to_owned(),
            service,
            there: hops(false),
            back: hops(true),
        })
    }

    /// A probe, followed to its end.
    fn trace(&self, ends: &str) -> anyhow::Result<Output> {
        let mut command = Command::new(program("causeway"));
        command
            .args(["trace", ends, "--inject", "-o", "json"])
            .env_remove("NODE_NAME");
        for node in ["node-1", "node-2"] {
            let file = self
                .cluster
                .state_dir()
                .join("nodes")
                .join(node)
                .join("agent.yaml");
            command.arg("--config").arg(file);
        }
        process::run_in(&Place::default(), &mut command, b"")
    }

    /// With the addresses of the words in braces.
    fn filled(&self, text: &str) -> String {
        let fill =
            |text: String, (word, address): (&&str, &String)| text.replace(&format!("{{{word}}}"), address);
        self.facts.iter().fold(text.to_owned(), fill)
    }

    /// Where a packet was seen, by which device, what happened, and who sends to whom where that is new. What ended it is
    /// left out: what was read in silence has no end.
    fn hops(&self, packet: &Value) -> Vec<String> {
        let mut before = String::new();
        let hops = packet["hops"].as_array().into_iter().flatten();
        let line = |hop: &Value| {
            let text = |key: &str| hop[key].as_str().unwrap_or_default().to_owned();
            let device = text("device");
            // Devices of pods have numbers in their names.
            let device = match device.strip_prefix("cw") {
                Some(number) if !number.starts_with('-') => "cw…",
                _ => &device,
            };
            let mut parts = vec![text("at"), device.to_owned(), text("kind")];
            parts.extend(hop["reason"].as_str().map(str::to_owned));
            let flow = self.flow(&hop["header"]);
            if flow != before {
                parts.push(flow.clone());
                before = flow;
            }
            let wrapping = &hop["wrapping"];
            if !wrapping.is_null() {
                parts.push(format!("in VXLAN {}", self.flow(wrapping)));
            }
            (hop["kind"] != "consumed").then(|| parts.join(" "))
        };
        hops.filter_map(line).collect()
    }

    fn flow(&self, flow: &Value) -> String {
        let end = |end: &str| self.end(flow[end].as_str().unwrap_or_default());
        let [source, destination] = ["source", "destination"].map(end);
        format!("{source} > {destination}")
    }

    /// An address by its name, with the port of a server.
    fn end(&self, text: &str) -> String {
        let Ok(end) = text.parse::<SocketAddr>() else {
            return text.to_owned();
        };
        let address = end.ip().to_string();
        let name = self.names.get(&address).map_or(address.as_str(), |name| *name);
        match SERVED.contains(&end.port()) {
            true => format!("{name}:{}", end.port()),
            false => name.to_owned(),
        }
    }
}

/// The hops of a leg, or the one hop that a line names.
fn leg(line: &str) -> Vec<String> {
    let Some((from, to)) = line.split_once(" ==> ") else {
        return vec![line.to_owned()];
    };
    let node = |name: &str| name.trim_end_matches("-6").to_owned();
    let hops = [
        format!("causeway-{} eth0 sent", node(from)),
        // Each node's cable to the LAN's bridge, as the machine has it.
        format!("host cw-{} received", node(from)),
        format!("host cw-{} sent", node(to)),
        format!("causeway-{} eth0 received", node(to)),
    ];
    hops.map(|hop| format!("{hop} in VXLAN {from} > {to}")).to_vec()
}

/// The address that a device of a namespace has for packets that leave the link.
fn own_address(namespace: &str, device: &str) -> anyhow::Result<String> {
    use netlink::{Kernel as _, Namespace, Netlink};
    let mut kernel = Netlink::open_in(&Namespace::named(namespace)?)?;
    let address = || -> anyhow::Result<String> {
        let link = kernel
            .link_named(device)?
            .with_context(|| format!("no {device}"))?;
        let addresses = kernel.addresses(Some(link.index))?;
        let mut addresses = addresses.iter().map(|address| address.network.ip().to_string());
        addresses
            .find(|address| !address.starts_with("fe80"))
            .with_context(|| format!("{device} has no address"))
    };
    Ok(wait::until("the tunnel's address", SOON, address))
}
