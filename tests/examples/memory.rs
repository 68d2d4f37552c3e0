//! What a node with nothing to do costs: `causeway node` as it is built beside this program, and the DNS server that it
//! feeds, against an API server that lists many Services, until all of them are programmed and nothing changes.
//!
//! ```text
//! memory [--datapath ebpf|nftables] [--services N] [--endpoints N] [--idle SECONDS]     default: ebpf 10000 10 5
//!
//! API's list      what the API server itself needs to list the EndpointSlices, and how large that list is
//! ready           from the agent's start until every Service is in the kernel, and the processor time that it took
//! again           the same for an agent that is started where another one left everything in the kernel
//! doctor          how long `causeway doctor` took, the middle one of five, and what it found
//! resident        VmRSS when it was idle for so long: memory of its own, and pages of its program (which are shared
//!                 with the page cache, and given back when memory is short)
//! peak            VmHWM: the most that it ever had
//! DNS             the same of the DNS server
//! together        both, with the pages of the program that they share counted once (Pss)
//! idle            processor time of both while they were idle, in parts of one core; the audit of the kernel's state
//!                 comes every few seconds, so 60 seconds and more say something
//! ```
//! Root; everything is in a network namespace, a cgroup and a BPF file system of its own. Figures of a debug build say
//! nothing: `cargo build --release -p node && cargo run --release -p tests --example memory`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::bpffs::Bpffs;
use tests::cgroup::Cgroup;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::ledger::Holdings;
use tests::process::{Place, Process, command, run_in};
use tests::topology::{Host, Lan};
use tests::wait;

const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_256);
const DEADLINE: Duration = Duration::from_secs(120);
/// What follows a start, as the allocator's return of memory, is over after so long.
const SETTLED: Duration = Duration::from_secs(5);

/// How often doctor is asked.
const DOCTORS: usize = 5;

/// Nodes that the endpoints are spread over, in three zones.
const NODES: u32 = 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = Options::parse(&arguments)?;
    println!(
        "{} with {} Services of {} endpoints",
        options.datapath, options.services, options.endpoints
    );
    let lan = Lan::new("memory", "172.30.8.0/24".parse()?, 1)?;
    let host = &lan.hosts.first().context("one was asked for")?.host;
    let route = host.command("ip", &["route", "add", "default", "via", "172.30.8.1"])?;
    ensure!(route.status.success(), "ip route: {}", route.stderr);
    let api = FakeApi::start_on(host.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
    fill(&api, &options);
    let list = "/apis/discovery.k8s.io/v1/endpointslices";
    let started = Instant::now();
    let length = get(host, api.address(), list)?.len();
    println!("API's list  {:>8.2?}, {} MiB", started.elapsed(), length >> 20);

    let (cgroup, bpffs) = (Cgroup::new("memory")?, Bpffs::mount("memory")?);
    let directory = Directory::new("memory");
    let config = configure(&directory, &api, &options, &cgroup, &bpffs)?;
    let place = Place {
        cgroup: Some(cgroup.path().to_owned()),
        ..host.place()
    };
    let start = |name| -> Result<Process> {
        let started = Instant::now();
        let mut node = command(&place, causeway()?);
        node.args(["node", "--config"])
            .arg(&config)
            .env_remove("NODE_NAME");
        let agent = Process::spawn(&place, &mut node)?;
        wait::until("the proxy works", DEADLINE, || match proxy_state(host) {
            Ok(state) if state == "working" => Ok(()),
            other => Err(other),
        });
        let (ready, busy) = (started.elapsed(), processor_time(&[("agent", agent.pid())])?);
        println!("{name:<11} {ready:>8.2?}, {busy:.2?} of a processor");
        Ok(agent)
    };
    start("ready")?.kill();
    let agent = start("again")?;
    let dns = start_dns(host, &directory)?;

    ask_doctor(host, &config)?;
    let processes = [("resident", agent.pid()), ("DNS", dns.pid())];
    // What is measured is what a node without a change holds and does.
    std::thread::sleep(SETTLED);
    let before = processor_time(&processes)?;
    std::thread::sleep(options.idle);
    let busy = processor_time(&processes)?.saturating_sub(before);
    for (name, pid) in processes {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |field| mib(&status, field);
        println!(
            "{name:<11} {:>5.1} MiB: {:.1} of its own, {:.1} of files; peak {:.1} MiB",
            mib("VmRSS")?,
            mib("RssAnon")?,
            mib("RssFile")?,
            mib("VmHWM")?
        );
    }
    let together = processes.iter().map(|(_, pid)| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        mib(&rollup, "Pss")
    });
    println!("together    {:>5.1} MiB", together.sum::<Result<f64>>()?);
    let share = busy.as_secs_f64() / options.idle.as_secs_f64();
    println!("idle        {:>5.2} % of a core", share * 100.0);
    Ok(())
}

/// Processor time that the processes have had so far.
fn processor_time(processes: &[(&str, u32)]) -> Result<Duration> {
    let ticks = processes.iter().map(|(_, pid)| Ok(Holdings::of(*pid)?.cpu_ticks));
    Ok(Duration::from_millis(10 * ticks.sum::<Result<u64>>()?))
}

struct Options {
    datapath: String,
    services: u32,
    endpoints: u32,
    idle: Duration,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            datapath: "ebpf".to_owned(),
            services: 10_000,
            endpoints: 10,
            idle: Duration::from_secs(5),
        };
        for pair in arguments.chunks(2) {
            match pair {
                [name, value] if name == "--datapath" => options.datapath.clone_from(value),
                [name, value] if name == "--services" => options.services = value.parse()?,
                [name, value] if name == "--endpoints" => options.endpoints = value.parse()?,
                [name, value] if name == "--idle" => options.idle = Duration::from_secs(value.parse()?),
                _ => bail!(
                    "usage: memory [--datapath ebpf|nftables] [--services N] [--endpoints N] [--idle SECONDS]"
                ),
            }
        }
        Ok(options)
    }
}

/// The agent, as it was built with this program.
fn causeway() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own
        .ancestors()
        .nth(2)
        .context("an example is below its profile's directory")?
        .join("causeway");
    ensure!(
        path.exists(),
        "{} is missing: cargo build --release -p node",
        path.display()
    );
    Ok(path)
}

/// Writes the agent's configuration, and says where.
fn configure(
    directory: &Directory,
    api: &FakeApi,
    options: &Options,
    cgroup: &Cgroup,
    bpffs: &Bpffs,
) -> Result<PathBuf> {
    let kubeconfig = directory.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig)?;
    let config = json!({
        "nodeName": "node-1",
        "kubernetes": {"kubeconfig": kubeconfig},
        "proxy": {
            "datapath": options.datapath, "podNetworks": ["10.128.0.0/10"],
            "cgroup": cgroup.path(), "pinDir": bpffs.path().join("causeway"),
        },
        "dns": {"feedSocket": directory.path().join("dns.sock")},
        "stateDir": directory.path().join("state"),
        "healthBind": HEALTH.to_string(),
        "metricsBind": "127.0.0.1:10249",
    });
    Ok(directory.write("node.yaml", &config.to_string()))
}

/// The node's DNS server, once it has what the agent sends.
fn start_dns(host: &Host, directory: &Directory) -> Result<Process> {
    let socket = directory.path().join("dns.sock");
    let kubernetes = format!("kubernetes cluster.local {{\n feed {}\n }}", socket.display());
    let corefile = directory.write(
        "Corefile",
        &format!(".:53 {{\n bind 127.0.0.1\n {kubernetes}\n cache\n}}\n"),
    );
    let place = host.place();
    let mut server = command(&place, causeway()?);
    let mut dns = Process::spawn(&place, server.arg("dns").arg("--conf").arg(corefile))?;
    dns.await_line("the cluster's objects are complete", DEADLINE);
    Ok(dns)
}

/// Asks the agent for what is wrong.
fn ask_doctor(host: &Host, config: &Path) -> Result<()> {
    let place = host.place();
    let mut took = Vec::new();
    let mut said = String::new();
    for _ in 0..DOCTORS {
        let mut doctor = command(&place, causeway()?);
        doctor
            .args(["doctor", "--config"])
            .arg(config)
            .env_remove("NODE_NAME");
        let started = Instant::now();
        let output = run_in(&place, &mut doctor, b"")?;
        took.push(started.elapsed());
        said = output.stdout;
        ensure!(!said.is_empty(), "doctor: {}", output.stderr);
    }
    took.sort();
    let middle = took.get(DOCTORS / 2).context("it was asked")?;
    println!(
        "doctor      {middle:>8.2?}, {}",
        said.lines().last().unwrap_or_default()
    );
    Ok(())
}

/// Asks a server in the host's namespace and returns its whole answer.
fn get(host: &Host, server: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let answer = host.run(move || {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    })?;
    Ok(answer?)
}

fn proxy_state(host: &Host) -> Result<String> {
    let answer = get(host, HEALTH, "/healthz")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a body")?;
    let health: Value = serde_json::from_str(body)?;
    let state = health["parts"]["proxy"]["state"].as_str();
    Ok(state.context("the proxy has a state")?.to_owned())
}

/// A field of `/proc/PID/status`, or of `smaps_rollup`, that is given in kB.
fn mib(status: &str, field: &str) -> Result<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib.with_context(|| format!("no {field} in {status}"))?.parse()?;
    Ok(kib / 1024.0)
}

/// Objects as a cluster has them, with the fields that a data plane does not read.
fn fill(api: &FakeApi, options: &Options) {
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
    for number in 0..NODES {
        api.put(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node(number), "labels": {"topology.kubernetes.io/zone": zone(number)}},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("172.30.8.{}", 11 + number)}]},
        }));
    }
    for number in 0..options.services {
        api.put(service(number));
        api.put(slice(number, options.endpoints));
    }
}

fn node(number: u32) -> String {
    format!("node-{}", number % NODES + 1)
}

fn zone(number: u32) -> String {
    format!("zone-{}", number % NODES % 3 + 1)
}

fn address(base: [u8; 4], offset: u32) -> String {
    Ipv4Addr::from(u32::from_be_bytes(base) + offset + 1).to_string()
}

fn uid(number: u32) -> String {
    format!("7c8e2f4e-53c1-4b0f-9b39-{number:012}")
}

fn service(number: u32) -> Value {
    let address = address([10, 96, 0, 0], number);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": format!("web-{number}"), "namespace": "default", "uid": uid(number),
            "creationTimestamp": "2025-01-01T00:00:00Z", "labels": {"app": format!("web-{number}")},
        },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP",
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app": format!("web-{number}")}, "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(number: u32, endpoints: u32) -> Value {
    let endpoint = |index| {
        let pod = number * endpoints + index;
        json!({
            "addresses": [address([10, 128, 0, 0], number * 32 + index)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": node(pod), "zone": zone(pod),
            "targetRef": {
                "kind": "Pod", "namespace": "default", "uid": uid(pod),
                "name": format!("web-{number}-5b95d558d7-{index:05}"),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("web-{number}-x7k2p"), "generateName": format!("web-{number}-"),
            "namespace": "default", "uid": uid(number), "creationTimestamp": "2025-01-01T00:00:00Z",
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2025-01-01T00:00:00Z"},
            "labels": {
                "app": format!("web-{number}"), "kubernetes.io/service-name": format!("web-{number}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": format!("web-{number}"), "uid": uid(number),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}
