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
//! Root; everything is in network namespaces of its own. Each cycle runs all four forwards and backwards, a block of
//! requests each; what is printed is the median over cycles of the ratio of the blocks' medians to those of `direct`,
//! with the 95 % interval of that median (order statistics).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebpf::FastPath;
use ebpf::abi::pods::Pod;
use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};
use netlink::Kernel;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proxy::{Config, DatapathKind, Proxy, Settings};
use tests::bpffs::Bpffs;
use tests::cgroup::Cgroup;
use tests::process::{Place, command};
use tests::topology::{Host, pod};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
const PORT: u16 = 8080;

const NAMES: [&str; 4] = ["direct", "again", "tracked", "ClusterIP"];

/// Requests in a block.
const BLOCK: usize = 1500;

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
    for what in ["rr", "crr"] {
        let mut cycles = Vec::new();
        for _ in 0..options.cycles {
            let workers = [&mut direct, &mut again, &mut tracking, &mut service];
            let mut sums = [0.0; NAMES.len()];
            for index in (0..NAMES.len()).chain((0..NAMES.len()).rev()) {
                sums[index] += workers[index].block(what)?;
            }
            cycles.push(sums);
        }
        print(what, &cycles);
    }
    Ok(())
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

fn print(what: &str, cycles: &[[f64; NAMES.len()]]) {
    for (index, name) in NAMES.into_iter().enumerate() {
        let mut medians: Vec<f64> = cycles.iter().map(|sums| sums[index] / 2000.0).collect();
        medians.sort_by(f64::total_cmp);
        let mut ratios: Vec<f64> = cycles.iter().map(|sums| sums[index] / sums[0]).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = interval(ratios.len());
        let middle = cycles.len() / 2;
        println!(
            "{what:<4} {name:<10} p50 {:>6.2} µs   / direct {:.4}  (95 %: {:.4} to {:.4})",
            medians[middle], ratios[middle], ratios[low], ratios[high]
        );
    }
}

/// Ranks between which the median of the population lies in 95 of 100 cases (normal approximation of the binomial).
fn interval(count: usize) -> (usize, usize) {
    let half = 0.98 * (count as f64).sqrt();
    let middle = count as f64 / 2.0;
    let low = (middle - half).floor().max(0.0) as usize;
    let high = ((middle + half).ceil() as usize).min(count.saturating_sub(1));
    (low, high)
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
                path.ensure_attached(device)?;
            }
            Ok(path)
        })?
    }
}

fn entry(node: &Host, device: &str, pod: &Host) -> Result<Pod> {
    let link = |host: &Host, name| host.netlink()?.link_named(name)?.context("a device");
    let (near, far) = (link(node, device)?, link(pod, "eth0")?);
    Ok(Pod {
        ifindex: near.index,
        mtu: far.mtu,
        pod_mac: far.mac.context("a MAC address")?,
        host_mac: near.mac.context("a MAC address")?,
    })
}

/// Answers each byte with a byte.
fn serve(listener: &TcpListener) {
    let _ = pin(1); // a machine with one core measures, too
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut stream = stream;
            let _ = pin(1);
            let _ = stream.set_nodelay(true);
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                if stream.write_all(&byte).is_err() {
                    return;
                }
            }
        });
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}

/// A client in a process of its own, which measures a block when it is told to.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start(place: &Place, to: SocketAddr) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut command: Command = command(place, program);
        command
            .args(["client", &to.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let namespace = place.namespace.as_ref().context("a namespace")?;
        let mut child = namespace.run(|| command.spawn())??;
        Ok(Self {
            input: child.stdin.take().context("piped")?,
            output: BufReader::new(child.stdout.take().context("piped")?),
            child,
        })
    }

    /// The median of a block, in nanoseconds.
    fn block(&mut self, what: &str) -> Result<f64> {
        writeln!(self.input, "{what}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim()
            .parse()
            .with_context(|| format!("the client printed {line:?}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already
        let _ = self.child.wait();
    }
}

fn client(to: SocketAddr) -> Result<()> {
    let _ = pin(0);
    let mut kept = open(to)?;
    for line in std::io::stdin().lines() {
        let mut samples = Vec::with_capacity(BLOCK);
        for _ in 0..BLOCK {
            let started = Instant::now();
            match line.as_deref().unwrap_or_default() {
                "rr" => exchange(&mut kept)?,
                _ => {
                    let mut stream = open(to)?;
                    exchange(&mut stream)?;
                    samples.push(started.elapsed());
                    // A reset instead of TIME_WAIT: ports must last for all blocks.
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &nix::libc::linger {
                            l_onoff: 1,
                            l_linger: 0,
                        },
                    )?;
                    continue;
                }
            }
            samples.push(started.elapsed());
        }
        samples.sort_unstable();
        println!("{}", samples[samples.len() / 2].as_nanos());
    }
    Ok(())
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
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
        addresses: vec![address],
    };
    let mut service = Service::new(ObjectName::new("default", name), kind);
    service.ports = vec![ServicePort::new(Protocol::Tcp, number(80))];
    service
}

fn slice(service: &str, address: IpAddr) -> EndpointSlice {
    let mut endpoint = Endpoint::new(address);
    endpoint.node = Some("node-1".into());
    EndpointSlice {
        name: ObjectName::new("default", service),
        service: service.into(),
        family: IpFamily::V4,
        endpoints: vec![endpoint],
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: number(PORT),
        }],
        last_change: None,
    }
}
