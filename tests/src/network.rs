//! A pod network: nodes of a LAN, each with an agent, an etcd and a fake API server on the LAN's own host, and pods that the
//! CNI plugin wires.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bpffs::Bpffs;
use crate::cgroup::Cgroup;
use crate::cluster::{program, programs};
use crate::directory::Directory;
use crate::fake_api::FakeApi;
use crate::ledger::Ledger;
use crate::probe::{self, Attempts, Flows, Kind};
use crate::process::{self, Output, Place, Process};
use crate::topology::{Host, Lan};
use crate::{etcd, wait};

/// For anything that is awaited.
pub const SOON: Duration = Duration::from_secs(30);

/// Where pods serve.
const PORT: u16 = 7000;

const ETCD: &str = "http://172.30.8.1:2379";

/// A pod: a namespace that the plugin wired.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub host: Host,
    /// Its container's id.
    pub id: String,
    /// Number of its node.
    pub node: usize,
    /// Its address.
    pub address: IpAddr,
}

impl Pod {
    /// Where it serves.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Ran {
    /// Whether it succeeded.
    pub success: bool,
    /// What it printed.
    pub output: Value,
}

/// Runs the plugin as a runtime does, for `eth0` of a pod that is called as its container; it asks the agent at `socket`.
///
/// # Errors
/// When it cannot be run.
pub fn run_plugin(place: &Place, socket: &Path, command: &str, id: &str, netns: &str) -> Result<Output> {
    let mut plugin = process::command(place, programs().join("causeway-cni"));
    plugin.env("CNI_COMMAND", command).env("CNI_PATH", programs());
    if command != "STATUS" {
        plugin
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={id}"));
    }
    let config = json!({"cniVersion": "1.1.0", "name": "causeway", "type": "causeway-cni", "socket": socket});
    process::run_in(place, &mut plugin, config.to_string().as_bytes())
}

/// Processes end before what they stand on goes: fields are dropped in this order.
#[derive(Debug)]
pub struct Network {
    /// The agents, by the number of their node.
    pub agents: Vec<Option<Process>>,
    /// Where leases are.
    pub etcd: Option<Process>,
    api: FakeApi,
    cgroup: Cgroup,
    bpffs: Bpffs,
    /// For files.
    pub directory: Directory,
    /// The nodes.
    pub lan: Lan,
    etcd_program: PathBuf,
    datapath: &'static str,
    /// The cluster's DNS address, where agents that start from now on shall give it to their nodes.
    pub dns: Option<&'static str>,
}

impl Network {
    /// A LAN with an etcd and agents on all of its hosts. None where that cannot be, which is told.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn new(fault: &str, label: &str, nodes: u32) -> Option<Self> {
        let mut network = Self::without_agents(fault, label, nodes, "ebpf")?;
        network.start_agents();
        Some(network)
    }

    /// The same before there is an agent; they will have this datapath.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn without_agents(fault: &str, label: &str, nodes: u32, datapath: &'static str) -> Option<Self> {
        if !crate::privileged(fault) {
            return None;
        }
        let Some(etcd_program) = etcd::program() else {
            crate::skipped(fault, "no etcd on PATH or in target/tools (run ./setup.sh test)");
            return None;
        };
        let lan = Lan::new(label, "172.30.8.0/24".parse().expect("a network"), nodes).expect("a LAN");
        let listener = lan.switch.run(|| TcpListener::bind("172.30.8.1:0"));
        let api = FakeApi::start_on(listener.expect("entered").expect("bound")).expect("it serves");
        let directory = Directory::new(label);
        api.write_kubeconfig(&directory.path().join("kubeconfig"))
            .expect("written");
        let mut network = Self {
            agents: Vec::new(),
            etcd: None,
            api,
            cgroup: Cgroup::new(label).expect("a cgroup"),
            bpffs: Bpffs::mount(label).expect("a BPF file system"),
            directory,
            lan,
            etcd_program,
            datapath,
            dns: None,
        };
        network.start_etcd();
        for number in 0..network.lan.hosts.len() {
            network.api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{number}")},
                "status": {"addresses": [{"type": "InternalIP", "address": network.lan.hosts[number].address}]},
            }));
            network.agents.push(None);
        }
        Some(network)
    }

    /// Starts the agents of all nodes, and waits until they serve.
    #[track_caller]
    pub fn start_agents(&mut self) {
        for number in 0..self.lan.hosts.len() {
            self.start_agent(number);
        }
        for number in 0..self.lan.hosts.len() {
            self.await_ready(number);
        }
    }

    /// A node's namespace.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.lan.hosts[number].host
    }

    /// Of a file of a node's agent.
    #[must_use]
    pub fn path(&self, number: usize, name: &str) -> PathBuf {
        self.directory.path().join(format!("node-{number}")).join(name)
    }

    /// Starts the etcd, with the data that it had.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_etcd(&mut self) {
        let data = self.directory.path().join("etcd").display().to_string();
        let place = self.lan.switch.place();
        self.etcd = Some(etcd::start_at(&place, &self.etcd_program, &data, ETCD).expect("etcd starts"));
    }

    /// Runs etcdctl.
    ///
    /// # Errors
    /// When it fails.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let sibling = self.etcd_program.with_file_name("etcdctl");
        let mut command = Command::new(if sibling.exists() {
            sibling
        } else {
            "etcdctl".into()
        });
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", ETCD])
            .args(arguments);
        let output = process::run_in(&self.lan.switch.place(), &mut command, b"")?;
        ensure!(
            output.status.success(),
            "etcdctl {arguments:?}: {}",
            output.stderr
        );
        Ok(output.stdout)
    }

    /// The key and value of each node's lease.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn leases(&self) -> Result<Vec<(String, Value)>> {
        let listed = self.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"])?;
        let lines: Vec<&str> = listed.lines().collect();
        let pairs = lines.chunks_exact(2);
        pairs
            .map(|pair| Ok((pair[0].to_owned(), serde_json::from_str(pair[1])?)))
            .collect()
    }

    /// The key of a node's lease.
    ///
    /// # Errors
    /// When there is none.
    pub fn lease_of(&self, number: usize) -> Result<String> {
        let address = self.lan.hosts[number].address.to_string();
        let leases = self.leases()?;
        let lease = leases
            .into_iter()
            .find(|(_, lease)| lease["PublicIP"] == *address);
        Ok(lease.with_context(|| format!("no lease of {address}"))?.0)
    }

    /// Writes a node's configuration, and returns where it is.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn configure(&self, number: usize) -> PathBuf {
        let path = |name: &str| self.path(number, name);
        let config = json!({
            "nodeName": format!("node-{number}"),
            "kubernetes": {"kubeconfig": self.directory.path().join("kubeconfig")},
            "proxy": {"datapath": self.datapath, "cgroup": self.cgroup.path(), "pinDir": self.pins(number)},
            "dns": {"feedSocket": path("dns.sock"), "address": self.dns},
            "stateDir": path("state"),
            "healthBind": "127.0.0.1:10256",
            "metricsBind": "127.0.0.1:10249",
            "network": {
                "etcd": {"endpoints": [ETCD]},
                "config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
                "interface": "eth0",
                "subnetEnv": path("subnet.env"),
            },
            "cni": {"socket": path("cni.sock"), "confDir": path("net.d")},
        });
        std::fs::create_dir_all(path("")).expect("a directory");
        let file = path("node.yaml");
        std::fs::write(&file, config.to_string()).expect("written");
        file
    }

    /// The place for processes in a pod, whose connections the socket hooks see.
    #[must_use]
    pub fn inside(&self, pod: &Pod) -> Place {
        Place {
            cgroup: Some(self.cgroup.path().to_path_buf()),
            ..pod.host.place()
        }
    }

    /// Where a node's maps and links are pinned.
    #[must_use]
    pub fn pins(&self, number: usize) -> PathBuf {
        self.bpffs.path().join(format!("node-{number}"))
    }

    /// An agent, whoever looks after it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn agent(&self, number: usize) -> Process {
        let place = self.host(number).place();
        let mut command = process::command(&place, program("causeway"));
        command.arg("node").arg("--config").arg(self.configure(number));
        Process::spawn(&place, command.env_remove("NODE_NAME")).expect("the agent starts")
    }

    /// Gives the API an object.
    pub fn put(&self, object: Value) {
        self.api.put(object);
    }

    /// Starts a node's agent.
    pub fn start_agent(&mut self, number: usize) {
        self.agents[number] = Some(self.agent(number));
    }

    /// Kills a node's agent.
    pub fn kill_agent(&mut self, number: usize) {
        self.agents[number] = None;
    }

    /// Sends a signal to a process of the network.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(process: Option<&Process>, signal: Signal) {
        let pid = process.expect("it runs").pid();
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("it is there");
    }

    /// The agent answers the plugin, and has the node's routes to the others.
    #[track_caller]
    pub fn await_ready(&self, number: usize) {
        let others = self.agents.iter().flatten().count() - 1;
        wait::until_value(
            "a route for each other node",
            SOON,
            || self.routes(number).len(),
            |routes| *routes == others,
        );
        wait::until("the agent answers the plugin", SOON, || {
            let ran = self.cni(number, "STATUS", "status", "");
            if ran.success { Ok(()) } else { Err(ran) }
        });
    }

    /// Routes to other nodes' subnets.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn routes(&self, number: usize) -> Vec<String> {
        let output = self
            .host(number)
            .command("ip", &["route", "show", "proto", "213"]);
        let output = output.expect("ip runs").stdout;
        let routes = output.lines().filter(|line| line.contains(" via "));
        routes.map(str::to_owned).collect()
    }

    /// Runs the plugin as a runtime does.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn cni(&self, number: usize, command: &str, id: &str, netns: &str) -> Ran {
        let place = self.host(number).place();
        let output = run_plugin(&place, &self.path(number, "cni.sock"), command, id, netns);
        let output = output.expect("the plugin runs");
        Ran {
            success: output.status.success(),
            output: serde_json::from_str(&output.stdout).unwrap_or(Value::Null),
        }
    }

    /// A pod that serves.
    ///
    /// # Panics
    /// When the plugin refuses it.
    #[must_use]
    pub fn pod(&self, number: usize, id: &str) -> Pod {
        let host = Host::new(id).expect("a namespace");
        let ran = self.cni(number, "ADD", id, &host.path());
        assert!(ran.success, "{ran:?}");
        let address = ran.output["ips"][0]["address"].as_str().expect("an address");
        let address = address
            .split('/')
            .next()
            .expect("a text")
            .parse()
            .expect("an address");
        let pod = Pod {
            host,
            id: id.to_owned(),
            node: number,
            address,
        };
        probe::serve(&pod.host, pod.server()).expect("it listens");
        pod
    }

    /// Waits until every pod's device, and the tunnel's, has the program of the fast path.
    #[track_caller]
    pub fn await_fast_path(&self, number: usize) {
        wait::until("the programs are attached", SOON, || {
            let links = self.host(number).command("ip", &["-o", "link", "show"]);
            let links = links.expect("ip runs").stdout;
            let devices = [": cw", ": flannel", ": eth0"];
            let devices: usize = devices.iter().map(|device| links.matches(device).count()).sum();
            let attached = self.attached(number);
            if attached == devices {
                Ok(())
            } else {
                Err((attached, devices))
            }
        });
    }

    /// How many devices of a node have the program of the fast path.
    #[must_use]
    pub fn attached(&self, number: usize) -> usize {
        let pins = self.pins(number).join("pods/v4/links");
        std::fs::read_dir(pins).map_or(0, Iterator::count)
    }

    /// Takes a pod from the network.
    ///
    /// # Panics
    /// When the plugin fails.
    pub fn delete(&self, pod: &Pod) {
        let ran = self.cni(pod.node, "DEL", &pod.id, &pod.host.path());
        assert!(ran.success, "{ran:?}");
    }

    /// What a node has, once its devices have their addresses for good.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn ledger(&self, number: usize) -> Ledger {
        wait::until_value(
            "no address is tentative",
            SOON,
            || {
                let show = ["-6", "address", "show", "tentative"];
                self.host(number).command("ip", &show).expect("ip runs").stdout
            },
            String::is_empty,
        );
        Ledger::of(&self.host(number).place(), &self.pins(number)).expect("readable")
    }

    /// Routes, neighbours and forwarding entries that packets to pods take, and the tunnel's device.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn entries(&self, number: usize) -> Vec<String> {
        let host = self.host(number);
        let shown: [(&str, &[&str]); 4] = [
            ("ip", &["route", "show", "proto", "213"]),
            ("ip", &["neighbour", "show", "nud", "permanent"]),
            ("bridge", &["fdb", "show", "dev", "flannel.1"]),
            ("ip", &["-o", "-d", "link", "show", "flannel.1"]),
        ];
        let lines = shown.iter().flat_map(|(program, arguments)| {
            // A device that is not there has nothing to show.
            let output = host.command(program, arguments).expect("it runs").stdout;
            output.lines().map(without_index).collect::<Vec<_>>()
        });
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        lines
    }

    /// The MAC address of a node's device.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn mac(&self, number: usize, device: &str) -> String {
        let show = ["-o", "link", "show", device];
        let output = self.host(number).command("ip", &show).expect("ip runs").stdout;
        let mut words = output.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).expect("it has one").to_owned()
    }

    /// How long until they are as they were.
    #[track_caller]
    pub fn await_entries(&self, number: usize, before: &[String]) -> Duration {
        let began = Instant::now();
        wait::until_value(
            "the entries are as they were",
            SOON,
            || self.entries(number),
            |entries| entries == before,
        );
        began.elapsed()
    }

    /// How long until the node is as it was.
    #[track_caller]
    pub fn await_as_before(&self, number: usize, before: &Ledger) -> Duration {
        let began = Instant::now();
        wait::until_value(
            "the node is as it was",
            SOON,
            || self.ledger(number).changes_since(before),
            Vec::is_empty,
        );
        began.elapsed()
    }

    /// Whether a file of a node's agent is a socket.
    #[must_use]
    pub fn is_socket(&self, number: usize, name: &str) -> bool {
        let metadata = std::fs::metadata(self.path(number, name));
        metadata.is_ok_and(|metadata| metadata.file_type().is_socket())
    }
}

/// A device that was made again has another index.
fn without_index(line: &str) -> String {
    match line.split_once(": ") {
        Some((index, rest)) if index.parse::<u32>().is_ok() => rest.to_owned(),
        _ => line.to_owned(),
    }
}

/// What goes on between two pods while something happens.
#[derive(Debug)]
pub struct Traffic {
    flows: Flows,
    datagrams: Attempts,
}

impl Traffic {
    /// Twenty connections, and datagrams at a hundred a second.
    ///
    /// # Panics
    /// When they cannot be started.
    #[must_use]
    pub fn start(from: &Pod, to: &Pod) -> Self {
        let place = from.host.place();
        let flows = Flows::start(&place, to.server(), 20, 50).expect("flows start");
        let datagrams = Attempts::start(&place, Kind::Requests, to.server(), 100).expect("datagrams start");
        Self { flows, datagrams }
    }

    /// Waits until both went on.
    #[track_caller]
    pub fn await_more(&self) {
        self.flows.await_more(40);
        self.datagrams
            .await_outcome("a datagram is answered", SOON, |attempt| {
                attempt.server().is_some()
            });
    }

    /// No connection broke; how many datagrams were lost, and how long connections stood still.
    #[track_caller]
    pub fn ended(&self, what: &str) -> Lost {
        self.await_more();
        let counts = self.flows.counts();
        assert_eq!(
            (counts.open, counts.broken),
            (20, 0),
            "{what}: {:#?}",
            self.flows.breaks()
        );
        Lost {
            datagrams: self.datagrams.lost().len(),
            away: counts.longest,
        }
    }
}

/// What traffic suffered.
#[derive(Debug)]
pub struct Lost {
    /// Datagrams without an answer.
    pub datagrams: usize,
    /// How long a connection stood still at most.
    pub away: Duration,
}
