//! `causeway up --network vpc-eni`: clusters whose pods have addresses of a VPC, and what pods and people do on them.
//! EC2 is asked by AWS's SDK, from outside the nodes.
//!
//! A harness of its own, because there is one cluster at a time on a machine, and it has to come down at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use netlink::Namespace;
use serde_json::Value;
use tests::cluster::{Cluster, Scenario, everything, example, process_of, run_trials};
use tests::process::{Place, installed};
use tests::{http, wait};
use vpc_eni::ec2::{Ec2 as _, Eni, Metadata as _, Which};
use vpc_eni_sdk::{Client, CredentialSource, ImdsMetadata, Settings, Timeouts};

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(120);
/// For a hundred and fifty pods, or until what came for them is given back: cool-down, rests between steps, and the youth
/// of interfaces count.
const AT_LAST: Duration = Duration::from_secs(300);

const NODES: u8 = 3;
/// So many addresses a node keeps ready.
const WARM: usize = 2;

/// What is done on a cluster, in order.
type Scenarios = &'static [(&'static str, Scenario)];

/// Flags of `causeway up`, and what is done on it.
const CLUSTERS: [(&[&str], Scenarios); 2] = [
    (
        &[
            "--network",
            "vpc-eni",
            "--vpc-eni",
            "WARM_IP_TARGET=2",
            "--vpc-eni",
            "IP_COOLDOWN_PERIOD=5",
        ],
        &[
            ("pods_have_addresses_that_their_nodes_interfaces_own", addresses),
            ("pods_reach_services_by_address_and_by_name", services),
            ("node_ports_answer_from_outside_on_every_node", node_ports),
            ("interfaces_and_addresses_follow_pods_to_150", up_to_150),
            (
                "pods_of_every_interface_reach_each_other_across_nodes",
                all_reach_all,
            ),
            (
                "pods_leave_the_vpc_with_their_nodes_addresses",
                leave_as_their_nodes,
            ),
            ("a_vpc_and_agents_that_are_killed_cost_no_pod_its_address", killed),
            ("interfaces_and_addresses_follow_pods_back_to_3", back_to_3),
        ],
    ),
    (
        &[
            "--nodes",
            "2",
            "--network",
            "vpc-eni",
            "--instance-type",
            "t3.small",
            "--vpc-eni",
            "AWS_VPC_K8S_CNI_EXTERNALSNAT=true",
        ],
        &[(
            "with_external_snat_pods_leave_the_vpc_with_their_own_addresses",
            leave_as_themselves,
        )],
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runnable = tests::privileged("clusters whose pods have addresses of a VPC");
    if arguments.list || !runnable {
        let names = CLUSTERS.iter().flat_map(|(_, scenarios)| *scenarios);
        let trials = names.map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let mut passed = true;
    for (number, (flags, scenarios)) in CLUSTERS.iter().enumerate() {
        let state_dir = PathBuf::from(format!("/var/lib/cwt-vpc-{}-{number}", std::process::id()));
        passed &= run_trials(&arguments, &state_dir, flags, scenarios) && nothing_is_left();
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Of the router, on this machine.
fn nothing_is_left() -> bool {
    let print = |program: &str, arguments: &[&str]| {
        let path = installed(program).with_context(|| format!("no {program}"))?;
        let output = Command::new(path).args(arguments).output()?;
        ensure!(output.status.success(), "{program}: {}", everything(&output));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let look = || {
        let links = print("ip", &["-d", "link"])?;
        let routes = print("ip", &["route"])?;
        let tables = print("nft", &["list", "tables"])?;
        let is_left = links.contains("fake-vpc") || routes.contains("172.30.") || tables.contains("fake-vpc");
        ensure!(!is_left, "after down:\n{links}\n{routes}\n{tables}");
        Ok(())
    };
    look().inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

/// What EC2 says of a node, and what its agent and the API server say.
struct Node {
    name: String,
    address: Ipv4Addr,
    interfaces: Vec<Eni>,
    /// `awscni_total_ip_addresses`, `awscni_assigned_ip_addresses`.
    told: [usize; 2],
    pods: BTreeMap<String, Ipv4Addr>,
}

impl Node {
    fn secondary(&self) -> usize {
        self.interfaces.iter().map(|eni| eni.secondary.len()).sum()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, assigned] = self.told;
        write!(
            f,
            "{}: {} pods, {} interfaces with {} addresses; its agent has {total}, gave {assigned}",
            self.name,
            self.pods.len(),
            self.interfaces.len(),
            self.secondary(),
        )
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// All interfaces of a node's instance: the metadata service on the node tells which instance it is.
fn interfaces(node: &Namespace) -> Result<Vec<Eni>> {
    let instance = node.run(|| {
        runtime()?.block_on(async { anyhow::Ok(ImdsMetadata::new(None)?.identity().await?.instance) })
    })??;
    runtime()?.block_on(async {
        let client = Client::new(Settings {
            region: "eu-west-1".to_owned(),
            endpoint: Some("http://172.30.0.1:8773".to_owned()),
            credentials: CredentialSource::fixed("AKIDEXAMPLE", "secret"),
            timeouts: Timeouts::default(),
        })
        .await?;
        Ok(client.interfaces(&Which::AttachedTo(instance)).await?)
    })
}

/// The pods that have addresses of their own, by node.
fn pods(cluster: &Cluster) -> Result<BTreeMap<String, BTreeMap<String, Ipv4Addr>>> {
    let list: Value = serde_json::from_str(&cluster.run(&["get", "pods", "-A", "-o", "json"])?)?;
    let mut by_node: BTreeMap<String, BTreeMap<String, Ipv4Addr>> = BTreeMap::new();
    for pod in list["items"].as_array().context("a list")? {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let (Some(node), Some(address)) = (text("/spec/nodeName"), text("/status/podIP")) else {
            continue;
        };
        let is_over = matches!(text("/status/phase"), Some("Succeeded" | "Failed"));
        if is_over || pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
            continue;
        }
        let name = text("/metadata/uid").context("a uid")?;
        by_node
            .entry(node.to_owned())
            .or_default()
            .insert(name.to_owned(), address.parse()?);
    }
    Ok(by_node)
}

fn look(cluster: &Cluster) -> Result<Vec<Node>> {
    let mut pods = pods(cluster)?;
    let look_at = |number: u8| {
        let name = format!("node-{number}");
        let namespace = Namespace::named(&format!("causeway-{name}"))?;
        let page =
            namespace.run(|| http::get(SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)), "/metrics"))??;
        let sample = |metric: &str| -> Result<usize> {
            let line = page
                .lines()
                .find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("{metric}: {page}"))?.parse()?)
        };
        Ok(Node {
            address: Ipv4Addr::new(172, 30, 0, 10 + number),
            interfaces: interfaces(&namespace)?,
            told: [
                sample("awscni_total_ip_addresses")?,
                sample("awscni_assigned_ip_addresses")?,
            ],
            pods: pods.remove(&name).unwrap_or_default(),
            name,
        })
    };
    (1..=NODES).map(look_at).collect()
}

/// What is wrong where nothing moves: each pod's address is of an interface of its node, and each node has what its pods
/// have and what it keeps ready, EC2's word and its agent's being the same.
fn faults(nodes: &[Node]) -> Vec<String> {
    let mut faults = Vec::new();
    for node in nodes {
        let owned: BTreeSet<Ipv4Addr> = node
            .interfaces
            .iter()
            .flat_map(|eni| eni.secondary.clone())
            .collect();
        let given: BTreeSet<Ipv4Addr> = node.pods.values().copied().collect();
        if given.len() != node.pods.len() || !given.is_subset(&owned) {
            faults.push(format!("{node}: pods have {given:?}, it owns {owned:?}"));
        }
        if node.told != [owned.len(), given.len()] || owned.len() != given.len() + WARM {
            faults.push(node.to_string());
        }
        // Fourteen each besides their own (m5.xlarge).
        let needed = owned.len().div_ceil(14).max(1);
        if node.interfaces.len() != needed {
            faults.push(format!("{node}: {needed} would do"));
        }
    }
    faults
}

/// Waits until nothing is wrong, and tells what there is.
#[track_caller]
fn settle(cluster: &Cluster, pods: usize) {
    let nodes = wait::until(&format!("all is right with {pods} pods"), AT_LAST, || {
        let nodes = look(cluster).map_err(|error| vec![format!("{error:#}")])?;
        let mut faults = faults(&nodes);
        let there: usize = nodes.iter().map(|node| node.pods.len()).sum();
        if there != pods {
            faults.push(format!("{there} pods"));
        }
        if faults.is_empty() { Ok(nodes) } else { Err(faults) }
    });
    for node in nodes {
        println!("{node}");
    }
}

fn scale(cluster: &Cluster, pods: usize) -> Result<()> {
    cluster.run(&["scale", "deployment/hello", &format!("--replicas={pods}")])?;
    let ready = [
        "get",
        "deployment/hello",
        "-o",
        "jsonpath={.status.replicas}/{.status.readyReplicas}",
    ];
    cluster.await_output(&ready, &format!("{pods}/{pods}"), AT_LAST);
    settle(cluster, pods);
    Ok(())
}

fn addresses(cluster: &Cluster) -> Result<()> {
    cluster.apply(&example("hello.yaml")?)?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    settle(cluster, 3);
    let nodes = look(cluster)?;
    ensure!(
        nodes.iter().all(|node| node.pods.len() == 1),
        "{:?}",
        pods(cluster)?
    );
    Ok(())
}

fn services(cluster: &Cluster) -> Result<()> {
    cluster.apply(&example("clients.yaml")?)?;
    for node in 1..=NODES {
        let pod = format!("client-node-{node}");
        let phase = ["get", "pod", &pod, "-o", "jsonpath={.status.phase}"];
        cluster.await_output(&phase, "Succeeded", LATER);
        for container in ["by-ip", "by-name"] {
            let log = cluster.run(&["logs", &pod, "-c", container])?;
            let answers = log.lines().filter(|line| line.split(' ').nth(1) == Some("200"));
            ensure!(answers.count() == 40, "{pod} {container}: {log}");
        }
    }
    cluster.run(&["delete", "pod", "-l", "app=client"])?;
    Ok(())
}

fn node_ports(cluster: &Cluster) -> Result<()> {
    for node in look(cluster)? {
        let to = SocketAddr::from((node.address, 30080));
        let mut answered = BTreeSet::new();
        for _ in 0..40 {
            let answer = http::get(to, "/").with_context(|| format!("asking {to}"))?;
            answered.extend(
                answer
                    .lines()
                    .find(|line| line.starts_with("hostname: "))
                    .map(str::to_owned),
            );
        }
        // Forty random choices miss one of three pods once in three million runs.
        ensure!(answered.len() == 3, "{to}: {answered:?}");
    }
    Ok(())
}

fn up_to_150(cluster: &Cluster) -> Result<()> {
    for pods in [30, 150] {
        scale(cluster, pods)?;
    }
    Ok(())
}

fn back_to_3(cluster: &Cluster) -> Result<()> {
    scale(cluster, 3)
}

/// A pod of each interface of each node, with its process's place.
fn one_of_each_interface(nodes: &[Node]) -> Result<Vec<(Ipv4Addr, Ipv4Addr, Place)>> {
    let mut found = Vec::new();
    for node in nodes {
        for eni in &node.interfaces {
            let pod = node
                .pods
                .iter()
                .find(|(_, address)| eni.secondary.contains(address));
            let Some((uid, address)) = pod else { continue };
            let place = Place::beside(process_of(uid).with_context(|| format!("{uid} has no process"))?)?;
            found.push((node.address, *address, place));
        }
    }
    Ok(found)
}

fn connect(from: &Place, to: SocketAddr) -> Result<TcpStream> {
    let namespace = from.namespace.as_ref().context("a namespace")?;
    let connected = namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    connected.with_context(|| format!("connecting to {to}"))
}

fn all_reach_all(cluster: &Cluster) -> Result<()> {
    let pods = one_of_each_interface(&look(cluster)?)?;
    ensure!(
        pods.len() == 12,
        "four interfaces on each of three nodes: {}",
        pods.len()
    );
    for (_, own, from) in &pods {
        for (_, to, _) in &pods {
            connect(from, SocketAddr::from((*to, 8080))).with_context(|| format!("from {own}"))?;
        }
    }
    Ok(())
}

/// Somebody outside the VPC, on this machine, who tells each visitor its address.
struct Outside {
    at: SocketAddr,
    server: Option<JoinHandle<()>>,
}

impl Outside {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    fn open() -> Result<Self> {
        Self::ip("replace")?;
        let listener = TcpListener::bind((Self::ADDRESS, 0))?;
        let at = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Ok(peer) = stream.peer_addr() else { continue };
                if peer.ip() == IpAddr::V4(Self::ADDRESS) {
                    return;
                }
                // Who is gone need not know.
                let _ = write!(stream, "{}", peer.ip());
            }
        });
        Ok(Self {
            at,
            server: Some(server),
        })
    }

    fn ip(verb: &str) -> Result<()> {
        let address = format!("{}/32", Self::ADDRESS);
        let status = Command::new("ip")
            .args(["address", verb, &address, "dev", "lo"])
            .status()?;
        ensure!(status.success(), "ip address {verb} {address}: {status}");
        Ok(())
    }

    /// Who a pod is there.
    fn sees(&self, from: &Place) -> Result<IpAddr> {
        let mut stream = connect(from, self.at)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text)?;
        text.parse().with_context(|| format!("an address: {text}"))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // A visit by itself ends it.
        if TcpStream::connect(self.at).is_ok()
            && let Some(server) = self.server.take()
        {
            let _ = server.join();
        }
        if let Err(error) = Self::ip("del") {
            eprintln!("{error:#}");
        }
    }
}

fn leave_as_their_nodes(cluster: &Cluster) -> Result<()> {
    let outside = Outside::open()?;
    for (node, own, place) in one_of_each_interface(&look(cluster)?)? {
        let seen = outside.sees(&place).with_context(|| format!("from {own}"))?;
        ensure!(
            seen == IpAddr::V4(node),
            "{own} is seen as {seen}, its node is {node}"
        );
    }
    Ok(())
}

fn leave_as_themselves(cluster: &Cluster) -> Result<()> {
    cluster.apply(&example("hello.yaml")?)?;
    cluster.run(&["scale", "deployment/hello", "--replicas=12"])?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let outside = Outside::open()?;
    for (uid, own) in pods(cluster)?.into_values().flatten() {
        let place = Place::beside(process_of(&uid).with_context(|| format!("{uid} has no process"))?)?;
        let seen = outside.sees(&place).with_context(|| format!("from {own}"))?;
        ensure!(seen == IpAddr::V4(own), "{own} is seen as {seen}");
    }
    Ok(())
}

fn killed(cluster: &Cluster) -> Result<()> {
    let before = pods(cluster)?;
    for name in ["vpc", "node-1-agent", "vpc", "node-2-agent", "node-3-agent"] {
        cluster.kill_and_await_successor(name, SOON)?;
    }
    settle(cluster, 150);
    ensure!(pods(cluster)? == before, "pods are others than before");
    all_reach_all(cluster)?;
    leave_as_their_nodes(cluster)
}
