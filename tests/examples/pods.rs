//! What the pod network costs between pods: request-response and new connections, beside the plain kernel, in the same
//! run.
//!
//! ```text
//! pods [--cycles N]
//!
//! veth    two namespaces and a veth between them             the least that there is
//! again   the same once more: what the machine's noise alone makes of it
//! near    two pods of one node, by agent and CNI plugin
//!
//! plain   two hosts with a VXLAN device made by `ip`, a namespace behind each, no rules anywhere
//! again   the same once more
//! ruled   the same with the tables that flannel makes for the pod network: forwarding allowed, masquerade
//! far     two pods of two nodes, by agent and CNI plugin, anti-spoofing on
//! ```
//! Root, and Debian's etcd; everything is in network namespaces of its own. How it is measured: `tests::rr`. The agents are
//! the program beside this one: build it with the same profile.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail, ensure};
use tests::network::{Network, Pod};
use tests::rr::{BLOCK, Worker, client, compare, serve};
use tests::topology::{Host, Lan, connect, pod};

const PORT: u16 = 8080;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cycles = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["client", address] => return client(address.parse()?),
        [] => 60,
        ["--cycles", cycles] => cycles.parse()?,
        _ => bail!("usage: pods [--cycles N]"),
    };
    println!("{cycles} cycles of {BLOCK} requests");
    let network = Network::new("what the pod network costs", "pods", 2).context("needs root and etcd")?;
    let [client, near, far] =
        [(0, "client"), (0, "near"), (1, "far")].map(|(node, id)| network.pod(node, id));
    for pod in [&near, &far] {
        listen(&pod.host, pod.address)?;
    }

    // The programs come by the kernel's word that there is a device: a connection before them takes the stack.
    for number in 0..2 {
        network.await_fast_path(number);
    }

    let veth = Veth::new()?;
    let mut arms = [veth.worker()?, veth.worker()?, to(&client, &near)?];
    let [direct, again, short] = &mut arms;
    compare(&mut [("veth", direct), ("again", again), ("near", short)], cycles)?;
    let (plain, ruled) = (Plain::new("plain", 10)?, Plain::new("ruled", 11)?);
    ruled.add_rules()?;
    let mut arms = [
        plain.worker()?,
        plain.worker()?,
        ruled.worker()?,
        to(&client, &far)?,
    ];
    let [direct, again, behind_rules, long] = &mut arms;
    compare(
        &mut [
            ("plain", direct),
            ("again", again),
            ("ruled", behind_rules),
            ("far", long),
        ],
        cycles,
    )?;
    for number in 0..2 {
        let counters = ebpf::fast_path::counters(&network.pins(number))?.unwrap_or_default();
        let told: Vec<_> = counters
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        println!("fast path of node {number}: {}", told.join(", "));
    }
    Ok(())
}

fn to(from: &Pod, to: &Pod) -> Result<Worker> {
    unpaced(&from.host);
    Worker::start(&from.host.place(), (to.address, PORT).into())
}

/// Not bbr, which paces; a kernel that lets namespaces choose nothing keeps to what it has.
fn unpaced(host: &Host) {
    let _ = host.set("net/ipv4/tcp_congestion_control", "cubic");
}

fn listen(host: &Host, address: IpAddr) -> Result<()> {
    unpaced(host);
    let listener = host.run(|| TcpListener::bind((address, PORT)))??;
    std::thread::spawn(move || serve(&listener));
    Ok(())
}

/// Two namespaces and a veth.
struct Veth {
    client: Host,
    _server: Host,
}

impl Veth {
    const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn new() -> Result<Self> {
        let (client, server) = (Host::new("veth-a")?, Host::new("veth-b")?);
        unpaced(&client);
        connect((&client, "eth0"), (&server, "eth0"))?;
        client.add_address("eth0", "192.0.2.1/24".parse()?)?;
        server.add_address("eth0", "192.0.2.2/24".parse()?)?;
        listen(&server, Self::SERVER)?;
        Ok(Self {
            client,
            _server: server,
        })
    }

    fn worker(&self) -> Result<Worker> {
        Worker::start(&self.client.place(), (Self::SERVER, PORT).into())
    }
}

/// Two hosts, what flannel's host path is made of, and nothing else.
struct Plain {
    client: Host,
    _server: Host,
    lan: Lan,
}

impl Plain {
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 250, 1, 2);

    fn new(label: &str, network: u8) -> Result<Self> {
        let lan = Lan::new(label, format!("172.30.{network}.0/24").parse()?, 2)?;
        let mut pods = Vec::new();
        for (number, host) in lan.hosts.iter().enumerate() {
            let other = &lan.hosts[1 - number];
            let pod_address = Ipv4Addr::new(10, 250, u8::try_from(number)?, 2);
            let lines = [
                format!(
                    "link add vx0 address 02:00:00:00:01:0{number} type vxlan id 7 dev eth0 local {} dstport 8472 nolearning udpcsum",
                    host.address
                ),
                format!("address add 10.250.{number}.0/32 dev vx0"),
                "link set vx0 up".to_owned(),
                format!(
                    "neighbour add 10.250.{0}.0 lladdr 02:00:00:00:01:0{0} dev vx0 nud permanent",
                    1 - number
                ),
                format!(
                    "route add 10.250.{0}.0/24 via 10.250.{0}.0 dev vx0 onlink",
                    1 - number
                ),
            ];
            for line in lines {
                run(&host.host, "ip", &line)?;
            }
            let entry = format!(
                "fdb add 02:00:00:00:01:0{} dev vx0 dst {}",
                1 - number,
                other.address
            );
            run(&host.host, "bridge", &entry)?;
            host.host.set("net/ipv4/ip_forward", "1")?;
            let pod = pod(&host.host, &format!("{label}-{number}"), pod_address)?;
            run(&pod, "ip", "link set eth0 mtu 1450")?;
            pods.push(pod);
        }
        let [client, server] = <[Host; 2]>::try_from(pods).ok().context("two hosts")?;
        listen(&server, Self::SERVER.into())?;
        Ok(Self {
            client,
            _server: server,
            lan,
        })
    }

    /// What flanneld asks nftables for (`pkg/trafficmngr/nftables`), for these pods.
    fn add_rules(&self) -> Result<()> {
        const NETWORK: &str = "10.250.0.0/16";
        for (number, host) in self.lan.hosts.iter().enumerate() {
            let own = format!("10.250.{number}.0/24");
            for line in [
                "table ip flannel".to_owned(),
                "chain ip flannel forward { type filter hook forward priority 0 ; policy accept ; }"
                    .to_owned(),
                format!("rule ip flannel forward ip saddr {NETWORK} accept"),
                format!("rule ip flannel forward ip daddr {NETWORK} accept"),
                "chain ip flannel postrtg { type nat hook postrouting priority 100 ; }".to_owned(),
                "rule ip flannel postrtg meta mark 0x4000 return".to_owned(),
                format!("rule ip flannel postrtg ip saddr {own} ip daddr {NETWORK} return"),
                format!("rule ip flannel postrtg ip saddr {NETWORK} ip daddr {own} return"),
                format!("rule ip flannel postrtg ip saddr != {own} ip daddr {NETWORK} return"),
                format!("rule ip flannel postrtg ip saddr {NETWORK} ip daddr != 224.0.0.0/4 masquerade"),
            ] {
                run(&host.host, "nft", &format!("add {line}"))?;
            }
        }
        Ok(())
    }

    fn worker(&self) -> Result<Worker> {
        Worker::start(&self.client.place(), (Self::SERVER, PORT).into())
    }
}

fn run(host: &Host, program: &str, line: &str) -> Result<()> {
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = host.command(program, &arguments)?;
    ensure!(output.status.success(), "{program} {line}: {}", output.stderr);
    Ok(())
}
