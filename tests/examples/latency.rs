//! What a Service costs: request-response and new connections through a ClusterIP, beside plain pod-to-pod on a node
//! without any of our rules, in the same run.
//!
//! ```text
//! latency [--datapath ebpf|nftables] [--fast-path on|off] [--services N] [--cycles N]
//!
//! direct      client pod ── node without rules ── server pod       client → server
//! again       the same once more: what the machine's noise alone makes of it
//! tracked     client pod ── node that masquerades other addresses ── server pod: what connection tracking costs by
//!             itself, as on any node whose pods reach the world
//! ClusterIP   client pod ── node with our rules ── server pod      client → ClusterIP
//! ```
//! Our node has the fast path between its pods, as the agent sets it up (default: on).
//!
//! Root; everything is in network namespaces of its own. How it is measured: `tests::rr`.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ebpf::FastPath;
use ebpf::abi::pods::Hop;
use ebpf::fast_path::Origin;
use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};
use netlink::Kernel;
use proxy::{Config, DatapathKind, Proxy, Settings};
use tests::bpffs::Bpffs;
use tests::cgroup::Cgroup;
use tests::process::Place;
use tests::rr::{BLOCK, Worker, client, compare, serve};
use tests::topology::{Host, pod};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
const PORT: u16 = 8080;

const NAMES: [&str; 4] = ["direct", "again", "tracked", "ClusterIP"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "client") {
        return client(arguments.get(1).context("an address")?.parse()?);
    }
    let options = Options::parse(&arguments)?;
    println!(
        "{} with {} Services, fast path {}, {} cycles of {BLOCK} requests",
        options.datapath,
        options.services,
        if options.fast_path { "on" } else { "off" },
        options.cycles
    );
    let ruled = Node::new("ruled")?;
    let bare = Node::new("bare")?;
    let tracked = Node::new("tracked")?;
    for rule in [
        "add table ip other",
        "add chain ip other postrouting { type nat hook postrouting priority 100; }",
        "add rule ip other postrouting ip saddr 192.0.2.0/24 masquerade",
    ] {
        let added = tracked.node.command("nft", &[rule])?;
        ensure!(added.status.success(), "nft {rule}: {}", added.stderr);
    }
    let cgroup = Cgroup::new("latency")?;
    let bpffs = Bpffs::mount("latency")?;
    let kind = match options.datapath.as_str() {
        "ebpf" => DatapathKind::Ebpf {
            cgroup: cgroup.path().to_path_buf(),
            pin_dir: bpffs.path().join("proxy"),
        },
        "nftables" => DatapathKind::Nftables,
        other => bail!("--datapath {other}: ebpf or nftables"),
    };
    let pods = "10.244.0.0/16".parse().context("invariant: a network")?;
    let config = Config {
        settings: Settings::new("node-1".into(), [pods]),
        datapath: kind,
    };
    let mut proxy = ruled.node.run(|| Proxy::open(&config))??;
    let report = proxy.sync(&cluster(options.services));
    ensure!(
        report.failures.is_empty() && report.common_failures.is_empty(),
        "{report:?}"
    );
    let _fast_path = options
        .fast_path
        .then(|| ruled.fast_path(&bpffs.path().join("node")))
        .transpose()?;
    let in_cgroup = |host: &Host| Place {
        cgroup: Some(cgroup.path().to_path_buf()),
        ..host.place()
    };
    let mut direct = Worker::start(&bare.client.place(), (SERVER, PORT).into())?;
    let mut again = Worker::start(&bare.client.place(), (SERVER, PORT).into())?;
    let mut tracking = Worker::start(&tracked.client.place(), (SERVER, PORT).into())?;
    let mut service = Worker::start(&in_cgroup(&ruled.client), (VIP, 80).into())?;
    let workers = [&mut direct, &mut again, &mut tracking, &mut service];
    let arms = NAMES.into_iter().zip(workers);
    compare(&mut arms.collect::<Vec<_>>(), options.cycles)
}

struct Options {
    datapath: String,
    fast_path: bool,
    services: u32,
    cycles: usize,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            datapath: "ebpf".to_owned(),
            fast_path: true,
            services: 10,
            cycles: 60,
        };
        for pair in arguments.chunks(2) {
            match pair {
                [name, value] if name == "--datapath" => options.datapath.clone_from(value),
                [name, value] if name == "--fast-path" && ["on", "off"].contains(&value.as_str()) => {
                    options.fast_path = value == "on";
                }
                [name, value] if name == "--services" => options.services = value.parse()?,
                [name, value] if name == "--cycles" => options.cycles = value.parse()?,
                _ => bail!(
                    "usage: latency [--datapath ebpf|nftables] [--fast-path on|off] [--services N] [--cycles N]"
                ),
            }
        }
        Ok(options)
    }
}

/// A node with a client and a server pod.
struct Node {
    node: Host,
    client: Host,
    server: Host,
}

impl Node {
    fn new(label: &str) -> Result<Self> {
        let node = Host::new(label)?;
        let client = pod(&node, "client", CLIENT)?;
        let server = pod(&node, "server", SERVER)?;
        node.set("net/ipv4/ip_forward", "1")?;
        let listener = server.run(|| TcpListener::bind((SERVER, PORT)))??;
        std::thread::spawn(move || serve(&listener));
        Ok(Self { node, client, server })
    }

    /// What the agent does for the pods of its node.
    fn fast_path(&self, pin_dir: &Path) -> Result<FastPath> {
        let pods = [("client", CLIENT, &self.client), ("server", SERVER, &self.server)];
        let entries =
            pods.map(|(device, address, host)| anyhow::Ok((address, entry(&self.node, device, host)?)));
        self.node.run(|| {
            let mut path = FastPath::open(pin_dir)?;
            path.renew(Duration::from_secs(24 * 3600))?;
            for (entry, (device, ..)) in entries.into_iter().zip(pods) {
                let (address, pod) = entry?;
                path.pods.insert(address.into(), pod)?;
                path.ensure_attached(device, Origin::Pod)?;
            }
            Ok(path)
        })?
    }
}

fn entry(node: &Host, device: &str, pod: &Host) -> Result<Hop> {
    let link = |host: &Host, name| host.netlink()?.link_named(name)?.context("a device");
    let (near, far) = (link(node, device)?, link(pod, "eth0")?);
    Ok(Hop {
        ifindex: near.index,
        mtu: far.mtu,
        there: far.mac.context("a MAC address")?,
        here: near.mac.context("a MAC address")?,
    })
}

/// That many Services; the first one's endpoint is the server.
fn cluster(services: u32) -> Snapshot {
    let mut state = Snapshot::default();
    for number in 0..services.max(1) {
        let name = format!("web-{number:05}");
        let octets = (u32::from(VIP) + number).into();
        let endpoint = if number == 0 {
            SERVER
        } else {
            (0x0a80_0001 + number).into()
        };
        state.apply(Change::Service(service(&name, Ipv4Addr::into(octets))));
        state.apply(Change::EndpointSlice(slice(&name, endpoint.into())));
    }
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        state.apply(Change::Synced(kind));
    }
    state
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN)
}

fn service(name: &str, address: IpAddr) -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: [address].into(),
    };
    let mut service = Service::new(ObjectName::new("default", name), kind);
    service.ports = [ServicePort::new(Protocol::Tcp, number(80))].into();
    service
}

fn slice(service: &str, address: IpAddr) -> EndpointSlice {
    let mut endpoint = Endpoint::new(address);
    endpoint.node = Some("node-1".into());
    EndpointSlice {
        name: ObjectName::new("default", service),
        service: service.into(),
        family: IpFamily::V4,
        endpoints: vec![endpoint].into(),
        ports: [EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: number(PORT),
        }]
        .into(),
        last_change: None,
    }
}
