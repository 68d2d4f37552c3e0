//! A node with its surroundings, in network namespaces. IPv6 has the same shape: `fd00:77::50` is the outside's address,
//! `fd00:244:1::2` the first pod's.
//!
//! ```text
//! outside  172.30.77.50 ── 172.30.77.11 node ┬── 10.244.1.1  near   10.244.1.2   endpoint, pod of this node
//! stranger 172.30.79.66 ── 172.30.79.11      ├── 10.244.4.1  near2  10.244.4.2   the same
//! beyond   172.30.78.12 ── 172.30.78.11      ├── 10.244.2.1  far    10.244.2.2   endpoint, pod of another node
//!          VIP, BALANCER,                    ├── 10.244.5.1  far2   10.244.5.2   the same
//!          EXTERNAL                          └── 10.244.3.1  pod    10.244.3.2   pod of this node, no endpoint,
//!                                                                                serves itself on loopback
//! ```
//! `beyond` is the rest of the world, another node included: what this node does not translate ends and is answered
//! there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use model::Removal;
use proxy::{Chains, Config, DatapathKind, Proxy, Settings};
use tests::bpffs::Bpffs;
use tests::cgroup::Cgroup;
use tests::process::{Place, command, run_in};
use tests::topology::{Host, connect};
use tests::wait;

use super::cluster::{
    ADMIN_TARGET_PORT, BALANCER, EXTERNAL, FAMILIES, NODE, OTHER_NODE, OUTSIDE, POD_LINK, Pair, SECOND,
    SERVERS, STRANGER, TARGET_PORT, TCP, UDP, VIP,
};
use super::servers::{serve_sctp, serve_tcp, serve_udp};

/// The node's address on the stranger's network. No Node object tells it.
const TOWARDS_STRANGER: Pair = Pair {
    v4: Ipv4Addr::new(172, 30, 79, 11),
    v6: Ipv6Addr::new(0xfd00, 0x79, 0, 0, 0, 0, 0, 0x11),
};

/// All of it; taken down on drop.
pub struct Surroundings {
    pub node: Host,
    pub outside: Host,
    pub stranger: Host,
    pub beyond: Host,
    pub pod: Host,
    /// In the order of [`SERVERS`].
    pub servers: Vec<Host>,
    pub cgroup: Cgroup,
    pub bpffs: Bpffs,
}

/// Attempts of one kind, in the words of `knock`.
pub struct Knocks {
    /// Those of one lane come one after the other.
    pub lane: String,
    pub how: &'static str,
    pub count: usize,
    /// Between attempts, which then end as soon as they differ.
    pub pause: Option<Duration>,
    /// Taken in turn.
    pub addresses: Vec<SocketAddr>,
}

impl Surroundings {
    /// Builds it and starts servers that answer `NAME CLIENT-ADDRESS`: on endpoints and `beyond`, and on `pod` on its
    /// own loopback, on the node ports' numbers.
    pub fn build() -> Result<Self> {
        let node = host("node")?;
        let servers = SERVERS
            .iter()
            .map(|server| wired(&node, server.name, server.gateway, server.address));
        let all = Self {
            outside: wired(&node, "outside", NODE, OUTSIDE)?,
            stranger: wired(&node, "stranger", TOWARDS_STRANGER, STRANGER)?,
            beyond: wired(&node, "beyond", SECOND, OTHER_NODE)?,
            pod: wired(&node, "pod", POD_LINK.1, POD_LINK.0)?,
            servers: servers.collect::<Result<_>>()?,
            node,
            cgroup: Cgroup::new("proxy")?,
            bpffs: Bpffs::mount("proxy")?,
        };
        all.node.set("net/ipv4/ip_forward", "1")?;
        all.node.set("net/ipv6/conf/all/forwarding", "1")?;
        // By default a client that is refused by ICMP several times a second hears nothing.
        all.node.set("net/ipv4/icmp_ratelimit", "0")?;
        all.node.set("net/ipv6/icmp/ratelimit", "0")?;
        for (gateway, source) in OTHER_NODE.both().into_iter().zip(NODE.both()) {
            let (gateway, source) = (gateway.to_string(), source.to_string());
            ip(
                &all.node,
                &["route", "add", "default", "via", &gateway, "src", &source],
            )?;
        }
        for (server, host) in SERVERS.iter().zip(&all.servers) {
            serve_tcp(host, server.name, (Ipv6Addr::UNSPECIFIED, TARGET_PORT).into())?;
            serve_udp(host, server.name, (Ipv6Addr::UNSPECIFIED, TARGET_PORT).into())?;
            serve_sctp(host, server.name, TARGET_PORT)?;
        }
        serve_tcp(
            all.near(),
            "near-admin",
            (Ipv6Addr::UNSPECIFIED, ADMIN_TARGET_PORT).into(),
        )?;
        serve_tcp(
            all.far(),
            "far-admin",
            (Ipv6Addr::UNSPECIFIED, ADMIN_TARGET_PORT).into(),
        )?;
        for loopback in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            serve_tcp(&all.pod, "pod", (loopback, TCP.1).into())?;
            serve_udp(&all.pod, "pod", (loopback, UDP.1).into())?;
        }
        all.serve_beyond()?;
        Ok(all)
    }

    /// On UDP each address answers for itself.
    fn serve_beyond(&self) -> Result<()> {
        for address in [VIP, BALANCER, EXTERNAL].into_iter().flat_map(Pair::both) {
            self.beyond.add_address("lo", address.into())?;
            await_usable(&self.beyond, address);
        }
        for port in [TCP.0, TCP.0 + 1, TCP.1] {
            serve_tcp(&self.beyond, "beyond", (Ipv6Addr::UNSPECIFIED, port).into())?;
        }
        for address in [VIP, BALANCER, EXTERNAL, OTHER_NODE]
            .into_iter()
            .flat_map(Pair::both)
        {
            for port in [UDP.0, UDP.0 + 1, UDP.1] {
                serve_udp(&self.beyond, "beyond", (address, port).into())?;
            }
        }
        Ok(())
    }

    pub fn near(&self) -> &Host {
        &self.servers[0]
    }

    pub fn far(&self) -> &Host {
        &self.servers[1]
    }

    /// A proxy of the node.
    pub fn proxy(&self, settings: Settings, datapath: DatapathKind) -> Result<Proxy> {
        let config = Config { settings, datapath };
        Ok(self.node.run(|| Proxy::open(&config))??)
    }

    pub fn hook(&self) -> DatapathKind {
        DatapathKind::Ebpf {
            cgroup: self.cgroup.path().to_path_buf(),
            pin_dir: self.pins(),
        }
    }

    fn pins(&self) -> PathBuf {
        self.bpffs.path().join("proxy")
    }

    /// Takes every datapath's traces out of the node.
    #[track_caller]
    pub fn uninstall(&self) -> Removal {
        let (pins, families) = (self.pins(), FAMILIES.into());
        let removal = self
            .node
            .run(move || Proxy::uninstall(&pins, Chains::Ours, &families));
        let removal = removal.expect("entered");
        assert!(removal.failed.is_empty(), "{:?}", removal.failed);
        removal
    }

    /// What `knock` prints on a host, a line for each attempt, by the place in the list.
    pub fn knock(&self, from: &Host, knocks: &[Knocks]) -> Result<Vec<Vec<String>>> {
        let of_node = [&self.node, &self.pod, &self.servers[0], &self.servers[2]];
        let of_node = of_node.iter().any(|host| host.name() == from.name());
        let cgroup = of_node.then(|| self.cgroup.path().to_path_buf());
        let place = Place {
            cgroup,
            ..from.place()
        };
        let mut command = command(&place, env!("CARGO_BIN_EXE_knock"));
        let output = run_in(&place, &mut command, input(knocks).as_bytes())?;
        ensure!(output.status.success(), "knock: {output:?}");
        let mut results = vec![Vec::new(); knocks.len()];
        for line in output.stdout.lines() {
            let (number, result) = line.split_once(' ').context("a number and a result")?;
            let results = results.get_mut(number.parse::<usize>()?);
            results
                .context("a number that was given")?
                .push(result.to_owned());
        }
        Ok(results)
    }

    /// The same for a single attempt.
    pub fn knock_once(&self, from: &Host, how: &'static str, to: SocketAddr) -> Result<String> {
        let knocks = Knocks {
            lane: "only".to_owned(),
            how,
            count: 1,
            pause: None,
            addresses: vec![to],
        };
        let results = self.knock(from, &[knocks])?;
        results.concat().pop().context("a result")
    }

    /// The proxy's tables as `nft` prints them.
    pub fn ruleset(&self) -> String {
        let output = self
            .node
            .command("nft", &["list", "ruleset"])
            .expect("nft is installed");
        output.stdout
    }

    /// Makes the node forget all flows, so that a port that is used again starts a new one.
    pub fn forget_flows(&self) -> Result<()> {
        let output = self.node.command("conntrack", &["-F"])?;
        ensure!(output.status.success(), "conntrack: {}", output.stderr);
        Ok(())
    }
}

fn input(knocks: &[Knocks]) -> String {
    let lines = knocks.iter().map(|knocks| {
        let addresses: Vec<_> = knocks.addresses.iter().map(SocketAddr::to_string).collect();
        let Knocks {
            lane,
            how,
            count,
            pause,
            ..
        } = knocks;
        let pause = pause.map_or(String::new(), |pause| format!("/{}", pause.as_millis()));
        format!("{lane} {how} {count}{pause} {}\n", addresses.join(","))
    });
    lines.collect()
}

/// A host that does not look for others with its addresses.
fn host(label: &str) -> Result<Host> {
    let host = Host::new(label)?;
    host.set("net/ipv6/conf/default/accept_dad", "0")?;
    Ok(host)
}

fn wired(node: &Host, label: &str, gateway: Pair, address: Pair) -> Result<Host> {
    let host = host(label)?;
    connect((node, label), (&host, "eth0"))?;
    for (gateway, address) in gateway.both().into_iter().zip(address.both()) {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        node.add_address(label, format!("{gateway}/{prefix}").parse()?)?;
        host.add_address("eth0", format!("{address}/{prefix}").parse()?)?;
        ip(&host, &["route", "add", "default", "via", &gateway.to_string()])?;
        await_usable(node, gateway);
        await_usable(&host, address);
    }
    Ok(host)
}

/// The kernel makes an address of IPv6 usable in its own time.
#[track_caller]
fn await_usable(host: &Host, address: IpAddr) {
    wait::until("the address can be used", Duration::from_secs(5), || {
        host.run(|| UdpSocket::bind((address, 0)))?
            .map_err(anyhow::Error::from)
    });
}

pub fn ip(host: &Host, arguments: &[&str]) -> Result<()> {
    let output = host.command("ip", arguments)?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", output.stderr);
    Ok(())
}

/// A command that runs a test of this very program, for tests that need a process of their own.
pub fn this_program(test: &str) -> Command {
    let mut command =
        Command::new(std::env::current_exe().expect("invariant: the kernel names this program"));
    command.args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"]);
    command
}
