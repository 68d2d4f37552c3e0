//! The ways between a client and a server that are measured against each other.
//!
//! ```text
//! veth        client ── server
//! routed      client ── node without any rule ── server
//! nftables    client ── node with our rules   ── server     to the address of a Service
//! ebpf        client ── node with our rules   ── server     likewise, by the socket hook
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use anyhow::{Context as _, Result, ensure};
use proxy::{Config, DatapathKind, Proxy, Settings};

use crate::lab::{Bpffs, Cgroup, Host};
use crate::load::{Block, Operation, Worker};
use crate::services;

/// Where servers listen, and Services.
const PORT: NonZeroU16 = NonZeroU16::new(8080).expect("invariant: it is not 0");

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);

/// How many Services a proxy of ours has.
const SERVICES: u32 = 100;

/// A kind of way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One cable between both.
    Veth,
    /// A node between both, with a cable to each, which forwards.
    Routed,
    /// A Service's address, by our rules of nftables.
    Nftables,
    /// A Service's address, by our socket hook.
    Ebpf,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Veth, Self::Routed, Self::Nftables, Self::Ebpf];

    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Routed => "routed",
            Self::Nftables => "causeway nftables",
            Self::Ebpf => "causeway ebpf",
        }
    }

    /// What it is, in a sentence.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Veth => "two pods joined by one virtual cable",
            Self::Routed => "two pods on a node that forwards, without any rule",
            Self::Nftables => "to one of 100 ClusterIPs, by our rules of nftables",
            Self::Ebpf => "to one of 100 ClusterIPs, by our socket hook in the client's cgroup",
        }
    }

    /// Whether it is this project's work.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Nftables | Self::Ebpf)
    }

    /// Builds it. `program` is one that calls [`crate::load::work`].
    ///
    /// # Errors
    /// When namespaces, devices or rules cannot be made.
    pub fn build(self, program: &[String]) -> Result<Built> {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        let (mut node, mut service) = (None, None);
        match self {
            Self::Veth => {
                client.connect("eth0", &server, "eth0")?;
                client.give("eth0", CLIENT, 16)?;
                server.give("eth0", SERVER, 16)?;
            }
            Self::Routed => node = Some(node_between(&client, &server)?),
            Self::Nftables | Self::Ebpf => {
                let between = node_between(&client, &server)?;
                service = Some(Served::on(&between, self == Self::Ebpf)?);
                node = Some(between);
            }
        }
        let server_address = SocketAddr::from((SERVER, PORT.get())).to_string();
        let serve = |protocol: &[&str]| {
            let arguments = [&["serve", &server_address], protocol].concat();
            Worker::start(server.namespace(), program, &arguments)
        };
        let (tcp, udp) = (serve(&[])?, serve(&["--udp"])?);
        let asked = if service.is_some() {
            services::FIRST
        } else {
            SERVER
        };
        let asked = SocketAddr::from((asked, PORT.get())).to_string();
        let cgroup = service.as_ref().and_then(Served::cgroup);
        let arguments: Vec<&str> = ["ask", &asked].into_iter().chain(cgroup.as_deref()).collect();
        Ok(Built {
            client: Worker::start(client.namespace(), program, &arguments)?,
            tcp,
            udp,
            _service: service,
            _hosts: node.into_iter().chain([client, server]).collect(),
        })
    }
}

fn node_between(client: &Host, server: &Host) -> Result<Host> {
    let node = Host::new("node")?;
    for (pod, device, address) in [(client, "client", CLIENT), (server, "server", SERVER)] {
        let [a, b, c, _] = address.octets();
        let gateway = Ipv4Addr::new(a, b, c, 1);
        node.connect(device, pod, "eth0")?;
        node.give(device, gateway, 24)?;
        pod.give("eth0", address, 24)?;
        pod.leave_by("eth0", gateway)?;
    }
    node.set("net/ipv4/ip_forward", "1")?;
    Ok(node)
}

/// Services that a proxy of ours serves on a node.
struct Served {
    _proxy: Proxy,
    hooked: Option<(Cgroup, Bpffs)>,
}

impl Served {
    fn on(node: &Host, by_hook: bool) -> Result<Self> {
        let hooked = by_hook
            .then(|| anyhow::Ok((Cgroup::new()?, Bpffs::mount()?)))
            .transpose()?;
        let datapath = match &hooked {
            Some((cgroup, bpffs)) => DatapathKind::Ebpf {
                cgroup: cgroup.path().to_owned(),
                pin_dir: bpffs.path().join("proxy"),
            },
            None => DatapathKind::Nftables,
        };
        let pods = "10.244.0.0/16".parse().context("invariant: a network")?;
        let config = Config {
            settings: Settings::new("node-1".into(), [pods]),
            datapath,
        };
        let mut proxy = node.namespace().run(|| Proxy::open(&config))??;
        let report = proxy.sync(&services::snapshot(SERVICES, SERVER, PORT));
        let is_served = report.failures.is_empty() && report.common_failures.is_empty();
        ensure!(is_served, "{report:?}");
        Ok(Self {
            _proxy: proxy,
            hooked,
        })
    }

    /// Where clients must be.
    fn cgroup(&self) -> Option<String> {
        let (cgroup, _) = self.hooked.as_ref()?;
        Some(cgroup.path().display().to_string())
    }
}

/// A way that stands. Its workers end before what they use goes.
pub struct Built {
    client: Worker,
    tcp: Worker,
    udp: Worker,
    _service: Option<Served>,
    _hosts: Vec<Host>,
}

impl Built {
    /// Measures a block: its processor time is both ends', and what the kernel does for them in their name.
    ///
    /// # Errors
    /// When a worker ended.
    pub fn measure(&mut self, operation: Operation) -> Result<Block> {
        let server = match operation {
            Operation::TcpRr | Operation::TcpCrr => &mut self.tcp,
            Operation::UdpRr => &mut self.udp,
        };
        let count = operation.block();
        let before = server.cpu()?;
        let mut block = self.client.measure(operation, count)?;
        let of_server = server
            .cpu()?
            .checked_sub(before)
            .context("processor time goes on")?;
        // The server answers what the client does before it counts, too: a tenth more.
        block.cpu += of_server.as_secs_f64() * 1e6 / (count + count / 10) as f64;
        Ok(block)
    }
}
