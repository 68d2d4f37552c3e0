//! Hosts and LANs made of network namespaces, built in code and removed on drop.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lan = tests::topology::Lan::new("pair", "172.30.9.0/24".parse()?, 2)?;
//! let [a, b] = lan.hosts.as_slice() else { unreachable!() };
//! assert_eq!(a.address.to_string(), "172.30.9.11");
//! b.host.run(|| std::net::UdpSocket::bind("0.0.0.0:9"))??;
//! # Ok(())
//! # }
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, ensure};
use ipnetwork::{IpNetwork, Ipv4Network};
use netlink::{Address, Kernel, LinkChange, Namespace, Netlink, NewLink, NewLinkKind, VethPeer, sysctl};

use crate::process::{self, Output, Place};
use crate::{is_stale, unique_name};

/// First host of a [`Lan`]: `.11`, as the bundled cluster numbers its nodes.
const FIRST_HOST: u32 = 11;

/// A host: a network namespace with its loopback up, removed on drop.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
}

impl Host {
    /// Makes a host. The label is for people: it is part of the namespace's name.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_stale);
        let name = unique_name(label);
        let namespace = Namespace::create(&name)?;
        let host = Self { name, namespace };
        let mut kernel = host.netlink()?;
        let loopback = kernel
            .link_named("lo")?
            .context("a namespace has a loopback device")?;
        kernel.change_link(loopback.index, &LinkChange::up())?;
        Ok(host)
    }

    /// The name under `/run/netns`, for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of the pin, as a CNI runtime gives it in `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", netlink::netns::PIN_DIRECTORY, self.name)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The place for processes on this host.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            namespace: Some(self.namespace.clone()),
            cgroup: None,
        }
    }

    /// A netlink socket on this host.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn netlink(&self) -> Result<Netlink> {
        Ok(Netlink::open_in(&self.namespace)?)
    }

    /// Runs a closure on this host: sockets that it opens belong to it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.namespace.run(work)?)
    }

    /// Runs a program on this host to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        process::run_in(&self.place(), Command::new(program).args(arguments), b"")
    }

    /// Writes a kernel setting of this host, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such setting.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        Ok(self.run(|| sysctl::write(setting, value))??)
    }

    /// Gives a device of this host an address, which can be used at once: nobody is asked whether it is taken.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn add_address(&self, device: &str, network: IpNetwork) -> Result<()> {
        let mut kernel = self.netlink()?;
        let link = kernel
            .link_named(device)?
            .with_context(|| format!("no device {device}"))?;
        let address = Address {
            no_dad: network.is_ipv6(),
            ..Address::global(link.index, network)
        };
        Ok(kernel.add_address(&address)?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(&self.name) {
            eprintln!("left behind: {error}");
        }
    }
}

/// Joins two hosts by a virtual cable, both ends up.
///
/// # Errors
/// When a device name is taken.
pub fn connect(a: (&Host, &str), b: (&Host, &str)) -> Result<()> {
    let mut kernel = a.0.netlink()?;
    let peer = VethPeer {
        name: b.1.to_owned(),
        mac: None,
        mtu: None,
        namespace: Some(b.0.namespace.clone()),
    };
    let near = kernel.create_link(&NewLink::new(a.1, NewLinkKind::Veth(peer)))?;
    kernel.change_link(near.index, &LinkChange::up())?;
    let mut far_kernel = b.0.netlink()?;
    let far = far_kernel.link_named(b.1)?.context("the cable has a far end")?;
    Ok(far_kernel.change_link(far.index, &LinkChange::up())?)
}

/// A pod on a node: a host whose only way is the node, in a network of 24 bits of its own. The node's end has the name
/// of the pod.
///
/// # Errors
/// When the name or the network is taken.
pub fn pod(node: &Host, label: &str, address: Ipv4Addr) -> Result<Host> {
    let host = Host::new(label)?;
    connect((node, label), (&host, "eth0"))?;
    let [a, b, c, _] = address.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    node.add_address(label, format!("{gateway}/24").parse()?)?;
    host.add_address("eth0", format!("{address}/24").parse()?)?;
    // Not bbr, which paces; a kernel that lets namespaces choose nothing keeps to what it has.
    let _ = host.set("net/ipv4/tcp_congestion_control", "cubic");
    let route = host.command("ip", &["route", "add", "default", "via", &gateway.to_string()])?;
    ensure!(route.status.success(), "ip route: {}", route.stderr);
    Ok(host)
}

/// Node number `own` of `192.168.77.0/24`, whose `eth0` leads to node number `other`, reaches that one's `pods` through a
/// VXLAN device `vx` (77, UDP port 8472).
///
/// # Errors
/// When a device or a route cannot be made.
pub fn join_by_vxlan(node: &Host, (own, other): (u8, u8), pods: Ipv4Network) -> Result<()> {
    node.add_address("eth0", format!("192.168.77.{own}/24").parse()?)?;
    node.set("net/ipv4/ip_forward", "1")?;
    let gateway = pods.network();
    let lines = [
        format!(
            "ip link add vx address 02:00:00:00:00:0{own} type vxlan id 77 dstport 8472 local 192.168.77.{own} dev eth0 \
             nolearning"
        ),
        "ip link set vx up".to_owned(),
        format!("ip route add {pods} via {gateway} dev vx onlink"),
        format!("ip neigh add {gateway} lladdr 02:00:00:00:00:0{other} dev vx nud permanent"),
        format!("bridge fdb append 02:00:00:00:00:0{other} dev vx dst 192.168.77.{other}"),
    ];
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let output = node.command(words[0], &words[1..])?;
        ensure!(output.status.success(), "{line}: {}", output.stderr);
    }
    Ok(())
}

/// A host on a [`Lan`]; its device is `eth0`.
#[derive(Debug)]
pub struct LanHost {
    /// The host.
    pub host: Host,
    /// Its address on the LAN.
    pub address: Ipv4Addr,
}

/// A LAN: hosts joined by a bridge that stands in a namespace of its own, at the network's first address.
#[derive(Debug)]
pub struct Lan {
    /// The bridge's host.
    pub switch: Host,
    /// The hosts, `.11` and on.
    pub hosts: Vec<LanHost>,
    /// The network.
    pub network: Ipv4Network,
}

impl Lan {
    /// Builds a LAN with that many hosts.
    ///
    /// # Errors
    /// When namespaces or devices cannot be made, or the network is too small.
    pub fn new(label: &str, network: Ipv4Network, hosts: u32) -> Result<Self> {
        let switch = Host::new(&format!("{label}-lan"))?;
        let mut kernel = switch.netlink()?;
        let bridge = kernel.create_link(&NewLink::new("br0", NewLinkKind::Bridge))?;
        kernel.change_link(bridge.index, &LinkChange::up())?;
        // A switch has no packet filter. Kernels without `br_netfilter` have no such settings.
        for tables in ["iptables", "ip6tables", "arptables"] {
            let _ = switch.set(&format!("net/bridge/bridge-nf-call-{tables}"), "0");
        }
        let mut lan = Self {
            switch,
            hosts: Vec::new(),
            network,
        };
        lan.switch.add_address("br0", lan.address(1)?)?;
        for number in 0..hosts {
            lan.add_host(&format!("{label}-{}", number + 1))?;
        }
        Ok(lan)
    }

    /// Adds a host at the next address.
    ///
    /// # Errors
    /// When the network is full, or namespaces cannot be made.
    pub fn add_host(&mut self, label: &str) -> Result<&LanHost> {
        let number = u32::try_from(self.hosts.len()).context("number of hosts")?;
        let network = self.address(FIRST_HOST + number)?;
        let host = Host::new(label)?;
        let port = format!("port{number}");
        connect((&host, "eth0"), (&self.switch, &port))?;
        host.add_address("eth0", network)?;
        let mut kernel = self.switch.netlink()?;
        let bridge = kernel.link_named("br0")?.context("the LAN has its bridge")?;
        let end = kernel.link_named(&port)?.context("the cable has its end")?;
        kernel.change_link(end.index, &LinkChange::master(bridge.index))?;
        let IpAddr::V4(address) = network.ip() else {
            anyhow::bail!("a LAN is IPv4")
        };
        self.hosts.push(LanHost { host, address });
        self.hosts.last().context("just pushed")
    }

    fn address(&self, number: u32) -> Result<IpNetwork> {
        let address = self
            .network
            .nth(number)
            .context("the LAN's network is too small")?;
        Ok(IpNetwork::new(address.into(), self.network.prefix())?)
    }
}

/// Removes namespaces that killed tests left behind.
fn remove_stale() {
    let Ok(names) = Namespace::pinned() else { return };
    for name in names.iter().filter(|name| is_stale(name)) {
        if let Err(error) = Namespace::delete(name) {
            eprintln!("left behind by an earlier test: {error}");
        }
    }
}

#[cfg(test)]
mod privileged {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    #[test]
    fn hosts_on_a_lan_reach_each_other_and_vanish_with_it() {
        if !crate::privileged("hosts on a LAN reach each other") {
            return;
        }
        let lan = Lan::new("kit", "172.30.9.0/24".parse().expect("network"), 2).expect("build");
        let [a, b] = lan.hosts.as_slice() else {
            panic!("two hosts")
        };
        let server = b
            .host
            .run(|| UdpSocket::bind((b.address, 7000)))
            .expect("enter")
            .expect("bind");
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("timeout");
        let client = a
            .host
            .run(|| UdpSocket::bind((a.address, 0)))
            .expect("enter")
            .expect("bind");
        client.send_to(b"hello", (b.address, 7000)).expect("send");
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).expect("receive");
        assert_eq!(
            (&buffer[..length], from.ip()),
            (b"hello".as_slice(), IpAddr::from(a.address))
        );

        let output = a.host.command("cat", &["/proc/net/dev"]).expect("run");
        assert!(output.stdout.contains("eth0:"), "{output:?}");

        let names: Vec<String> = [&lan.switch, &a.host, &b.host]
            .map(|host| host.name().to_owned())
            .into();
        drop(lan);
        let left = Namespace::pinned().expect("list");
        assert!(names.iter().all(|name| !left.contains(name)), "{left:?}");
    }
}
