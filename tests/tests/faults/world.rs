//! A node with an agent, its pods, and Services.
//!
//! ```text
//! outside  172.30.8.1, fd00:8::1 ── 172.30.8.11 node ┬── 10.244.1.1  servers  10.244.1.2 and on: endpoints
//!                                                    └── 10.244.9.1  pod      10.244.9.2: clients
//! ```
//! IPv6 has the same shape: `fd00:244:1::2` and on. The Service `web` is at [`VIP`], and on the node at [`NODE_PORT`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::bpffs::Bpffs;
use tests::cluster::program;
use tests::ledger::{Ledger, rules};
use tests::node::Node;
use tests::probe::{self, Attempts, Flows, Kind};
use tests::process::{self, Place, Process};
use tests::topology::{Host, connect};
use tests::wait;

use crate::DEADLINE;

/// Addresses of `web`.
pub const VIP: &str = "10.96.0.7";
pub const VIP_V6: &str = "fd00:96::7";

/// Where the node's DNS server is; the agent gives the address to the node.
pub const DNS: &str = "10.96.0.10";

/// TCP and UDP.
pub const PORT: u16 = 80;
pub const NODE_PORT: u16 = 30_080;
pub const TARGET_PORT: u16 = 8080;

const SERVERS: u16 = 4;

/// What is to be found of leaks, losses and writes.
pub const NOTHING: [&str; 0] = [];

pub const DATAPATHS: [&str; 2] = ["nftables", "ebpf"];

/// Does the same with each, side by side: most of it is waiting.
pub fn on_each_datapath(check: impl Fn(&'static str) -> Result<()> + Sync) -> Result<()> {
    let check = &check;
    std::thread::scope(|scope| {
        let checks = DATAPATHS.map(|datapath| scope.spawn(move || check(datapath)));
        let results = checks.map(|check| check.join());
        let results = results.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        results.into_iter().collect()
    })
}

/// Lets a fault last for so long: that is what is injected.
#[track_caller]
pub fn outlast(fault: Duration) {
    let began = Instant::now();
    wait::until_value(
        "the fault lasts",
        fault + DEADLINE,
        || began.elapsed(),
        |lasted| *lasted >= fault,
    );
}

/// All of it; taken down on drop.
pub struct World {
    pub node: Node,
    /// Its servers run until the end of the test.
    pub servers: Host,
    pub pod: Host,
    pub bpffs: Bpffs,
    pub datapath: &'static str,
    has_dns: bool,
}

/// Version 4, and 6, of the address of a server.
pub fn server(number: u16) -> [IpAddr; 2] {
    let v4 = [10, 244, 1, u8::try_from(number).expect("few servers") + 1];
    let v6 = [0xfd00, 0x244, 1, 0, 0, 0, 0, number + 1];
    [v4.into(), v6.into()]
}

pub fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

impl World {
    /// Builds it, with servers 1 to 4 and no agent yet.
    pub fn build(label: &str, datapath: &'static str) -> Result<Self> {
        let node = Node::new(label)?;
        let host = node.host();
        host.set("net/ipv6/conf/all/forwarding", "1")?;
        host.set("net/ipv6/conf/default/accept_dad", "0")?;
        give(host, "eth0", "fd00:8::11/64")?;
        give(&node.lan.switch, "br0", "fd00:8::1/64")?;
        ip(host, &["-6", "route", "add", "default", "via", "fd00:8::1"])?;
        let servers = pod(host, "servers", 1)?;
        let client = pod(host, "pod", 9)?;
        for [v4, v6] in (2..=SERVERS).map(server) {
            give(&servers, "eth0", &format!("{v4}/24"))?;
            give(&servers, "eth0", &format!("{v6}/64"))?;
        }
        [host, &servers, &client].into_iter().for_each(settle);
        for address in (1..=SERVERS).flat_map(server) {
            probe::serve(&servers, (address, TARGET_PORT).into())?;
        }
        Ok(Self {
            node,
            servers,
            pod: client,
            bpffs: Bpffs::mount(label)?,
            datapath,
            has_dns: false,
        })
    }

    /// The same, with `web` on these servers, and an agent that programmed it.
    pub fn with_agent(label: &str, datapath: &'static str, endpoints: &[u16]) -> Result<(Self, Agent)> {
        Ok(Self::build(label, datapath)?.begin(endpoints))
    }

    /// The node shall have the cluster's DNS address, for [`World::start_dns`].
    pub fn with_dns(self) -> Self {
        Self {
            has_dns: true,
            ..self
        }
    }

    /// With `web` on these servers, and an agent that programmed it.
    pub fn begin(self, endpoints: &[u16]) -> (Self, Agent) {
        self.put_web(endpoints);
        let agent = self.start_agent();
        self.node.until_working("proxy");
        (self, agent)
    }

    pub fn put_web(&self, endpoints: &[u16]) {
        self.node.api.put(web());
        self.put_endpoints(endpoints);
    }

    /// Makes these servers the endpoints of `web`.
    pub fn put_endpoints(&self, endpoints: &[u16]) {
        self.put_endpoints_of("web", endpoints, &READY);
    }

    pub fn put_endpoints_of(&self, service: &str, endpoints: &[u16], conditions: &Conditions) {
        for slice in slices(service, endpoints, conditions) {
            self.node.api.put(slice);
        }
    }

    /// `edit` is laid over what the proxy is told.
    pub fn configure(&self, edit: &Value) -> std::path::PathBuf {
        let mut proxy = json!({
            "datapath": self.datapath, "podNetworks": ["10.244.0.0/16", "fd00:244::/32"],
            "cgroup": self.node.cgroup.path(), "pinDir": self.pin_dir(),
        });
        for (key, value) in edit.as_object().into_iter().flatten() {
            proxy[key] = value.clone();
        }
        let mut config = json!({ "proxy": proxy });
        if self.has_dns {
            config["dns"] = json!({"address": DNS});
        }
        self.node.configure(config)
    }

    pub fn start_agent(&self) -> Agent {
        let config = self.configure(&json!({}));
        let place = self.node.place();
        Agent::spawn(
            &place,
            process::command(&place, program("causeway"))
                .arg("node")
                .arg("--config")
                .arg(config),
        )
    }

    /// The node's DNS server, fed by the agent, once it knows the cluster.
    pub fn start_dns(&self) -> Result<Process> {
        let mut dns = self.start_dns_with("", "")?;
        dns.await_line("the cluster's objects are complete", DEADLINE);
        Ok(dns)
    }

    /// The same with more plugins, and more server blocks, before it knows anything.
    pub fn start_dns_with(&self, plugins: &str, blocks: &str) -> Result<Process> {
        let directory = self.node.directory.path().display();
        let corefile = format!(
            ".:53 {{\n bind {DNS}\n kubernetes cluster.local {{\n feed {directory}/dns.sock\n state {directory}\n }}\n \
             {plugins}\n}}\n{blocks}"
        );
        let corefile = self.node.directory.write("Corefile", &corefile);
        let place = self.node.place();
        let mut command = process::command(&place, program("causeway"));
        let mut dns = Process::spawn(&place, command.arg("dns").arg("--conf").arg(corefile))?;
        dns.await_line("serving", DEADLINE);
        Ok(dns)
    }

    pub fn pin_dir(&self) -> std::path::PathBuf {
        self.bpffs.path().join("causeway")
    }

    /// Where pods' processes run.
    pub fn pod_place(&self) -> Place {
        Place {
            cgroup: Some(self.node.cgroup.path().to_owned()),
            ..self.pod.place()
        }
    }

    pub fn outside(&self) -> &Host {
        &self.node.lan.switch
    }

    /// Connections to `web` from everywhere: the pod to both ClusterIPs, the outside to the node port.
    pub fn connections(&self, per_second: u32) -> Result<Vec<Attempts>> {
        let pod = self.pod_place();
        let outside = self.outside().place();
        [
            (&pod, socket(VIP, PORT)),
            (&pod, socket(VIP_V6, PORT)),
            (&outside, socket("172.30.8.11", NODE_PORT)),
        ]
        .into_iter()
        .map(|(place, to)| Attempts::start(place, Kind::Connections, to, per_second))
        .collect()
    }

    /// The pod's queries for the address of `web`, to the node's DNS server.
    pub fn queries(&self, per_second: u32) -> Result<Attempts> {
        let name = "web.default.svc.cluster.local";
        Attempts::start_queries(&self.pod_place(), name, socket(DNS, 53), per_second)
    }

    /// Long-lived flows of the pod to `web`.
    pub fn flows(&self, count: u32, per_second: u32) -> Result<Flows> {
        Flows::start(&self.pod_place(), socket(VIP, PORT), count, per_second)
    }

    pub fn rules(&self) -> BTreeSet<String> {
        rules(&self.node.host().place()).expect("nft is installed")
    }

    pub fn ledger(&self) -> Result<Ledger> {
        Ledger::of(&self.node.host().place(), self.bpffs.path())
    }

    pub fn nft(&self, words: &[&str]) -> Result<()> {
        let output = self.node.host().command("nft", words)?;
        ensure!(output.status.success(), "nft {words:?}: {}", output.stderr);
        Ok(())
    }

    /// Prints each change of nftables from now on.
    pub fn monitor_rules(&self) -> Result<Process> {
        let place = self.node.host().place();
        let monitor = Process::spawn(&place, process::command(&place, "nft").arg("monitor"))?;
        // It listens once it shows a change of ours.
        wait::until("nft monitor listens", DEADLINE, || {
            let table = ["inet", "cwt-canary"];
            let _ = self.nft(&["add", "table", table[0], table[1]]);
            let _ = self.nft(&["delete", "table", table[0], table[1]]);
            if monitor.output().contains("cwt-canary") {
                Ok(())
            } else {
                Err(monitor.output())
            }
        });
        Ok(monitor)
    }
}

/// What others than this module wrote to nftables, by a monitor's words.
pub fn rule_changes(monitor: &Process) -> Vec<String> {
    let output = monitor.output();
    let lines = output
        .lines()
        .filter(|line| !line.contains("cwt-canary") && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// An agent that tells what it writes.
pub struct Agent(pub Process);

impl Agent {
    pub fn spawn(place: &Place, command: &mut std::process::Command) -> Self {
        command
            .env_remove("NODE_NAME")
            .env("CAUSEWAY_LOG", "info,causeway::agent::service_proxy=debug");
        Self(Process::spawn(place, command).expect("the agent starts"))
    }

    /// Lines of its log about a write to the kernel's Services.
    pub fn writes(&self) -> Vec<String> {
        let output = self.0.output();
        let told = |line: &&str| {
            line.contains("Services programmed")
                || line.contains("somebody changed what the proxy programmed")
        };
        let lines = output.lines().filter(told);
        lines
            .filter(|line| !line.contains(" writes=0 "))
            .map(str::to_owned)
            .collect()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.pid())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }
}

/// Of an endpoint: ready, serving, terminating.
pub type Conditions = [bool; 3];

pub const READY: Conditions = [true, true, false];
pub const TERMINATING: Conditions = [false, true, true];

pub fn web() -> Value {
    service("web", VIP, VIP_V6, Some(NODE_PORT))
}

pub fn service(name: &str, v4: &str, v6: &str, node_port: Option<u16>) -> Value {
    let ports = ["TCP", "UDP"].map(|protocol| {
        let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT});
        if let Some(node_port) = node_port {
            port["nodePort"] = node_port.into();
        }
        port
    });
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": if node_port.is_some() { "NodePort" } else { "ClusterIP" },
            "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"], "ports": ports,
        },
    })
}

/// Services beside `web`, so that a start has something to read.
pub fn put_others(world: &World, count: u16) {
    for number in 1..=count {
        let name = format!("other-{number}");
        let service = service(
            &name,
            &format!("10.96.1.{number}"),
            &format!("fd00:96::1:{number:x}"),
            None,
        );
        world.node.api.put(service);
        world.put_endpoints_of(&name, &[1, 2, 3], &READY);
    }
}

/// One for each version of IP.
pub fn slices(service: &str, endpoints: &[u16], [ready, serving, terminating]: &Conditions) -> [Value; 2] {
    [("IPv4", 0), ("IPv6", 1)].map(|(family, index)| {
        let endpoints = endpoints.iter().map(|number| {
            let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
            json!({"addresses": [server(*number)[index]], "conditions": conditions, "nodeName": "node-1"})
        });
        let ports = ["tcp", "udp"]
            .map(|name| json!({"name": name, "protocol": name.to_uppercase(), "port": TARGET_PORT}));
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": format!("{service}-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family, "endpoints": endpoints.collect::<Vec<_>>(), "ports": ports,
        })
    })
}

fn pod(node: &Host, name: &str, number: u16) -> Result<Host> {
    let host = Host::new(name)?;
    // Addresses can be used at once: nobody else has them.
    host.set("net/ipv6/conf/default/accept_dad", "0")?;
    connect((node, name), (&host, "eth0"))?;
    give(node, name, &format!("10.244.{number}.1/24"))?;
    give(node, name, &format!("fd00:244:{number}::1/64"))?;
    give(&host, "eth0", &format!("10.244.{number}.2/24"))?;
    give(&host, "eth0", &format!("fd00:244:{number}::2/64"))?;
    ip(
        &host,
        &["route", "add", "default", "via", &format!("10.244.{number}.1")],
    )?;
    ip(
        &host,
        &[
            "-6",
            "route",
            "add",
            "default",
            "via",
            &format!("fd00:244:{number}::1"),
        ],
    )?;
    Ok(host)
}

/// An address that can be used at once, on a device that was there before that was the default.
fn give(host: &Host, device: &str, network: &str) -> Result<()> {
    host.set(&format!("net/ipv6/conf/{device}/accept_dad"), "0")?;
    host.add_address(device, network.parse()?)
}

/// Waits until every address of a host can be used.
fn settle(host: &Host) {
    let tentative = || host.command("ip", &["-o", "-6", "address", "show", "tentative"]);
    wait::until("addresses are usable", DEADLINE, || match tentative() {
        Ok(output) if output.stdout.is_empty() => Ok(()),
        seen => Err(seen),
    });
}

pub fn ip(host: &Host, arguments: &[&str]) -> Result<()> {
    let output = host.command("ip", arguments)?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", output.stderr);
    Ok(())
}

/// What the maps of the hook have, in words: for comparing. Reading them changes nothing.
pub fn hook_maps(world: &World) -> Result<Vec<String>> {
    let hook = open_hook(world)?;
    Ok(vec![
        format!("{:?}", hook.frontends.entries()?),
        format!("{:?}", hook.slots.entries()?),
        format!("{:?}", hook.endpoints.entries()?),
    ])
}

/// The hook as an agent left it: opening it changes nothing where it is in order.
pub fn open_hook(world: &World) -> Result<ebpf::SocketHook> {
    let config = ebpf::HookConfig {
        cgroup: world.node.cgroup.path().to_owned(),
        pin_dir: world.pin_dir(),
        capacity: ebpf::Capacity::default(),
        loopback: true,
    };
    Ok(world.node.host().run(|| ebpf::SocketHook::open(&config))??)
}

/// What is in the kernel is what the API says: the next agent changes nothing of it, and the one after that finds
/// nothing to write at all. The first may sweep lists of endpoints that were replaced just before its start.
#[track_caller]
pub fn assert_in_place(world: &World, mut agent: Agent) -> Agent {
    let seen = || {
        let hook = (world.datapath == "ebpf").then(|| open_hook(world).expect("it is in order"));
        let frontends = hook.map(|hook| hook.frontends.entries().expect("readable"));
        (world.rules(), frontends)
    };
    let before = seen();
    for _ in 0..2 {
        agent.0.kill();
        agent = world.start_agent();
        world.node.until_working("proxy");
        assert_eq!(seen(), before);
    }
    assert_eq!(agent.writes(), NOTHING);
    agent
}

/// The one directory below the pins, for the present layout.
pub fn layout(pin_dir: &Path) -> Result<std::path::PathBuf> {
    let mut layouts = std::fs::read_dir(pin_dir)?.flatten();
    let layout = layouts.next().map(|entry| entry.path());
    layout.ok_or_else(|| anyhow::anyhow!("no pins in {}", pin_dir.display()))
}
