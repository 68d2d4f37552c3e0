//! Plugins under test, and running them.

#[path = "../vpc_eni/world.rs"]
#[expect(dead_code, reason = "the tests of that network use more of it")]
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tests::bpffs::Bpffs;
use tests::cluster::programs;
use tests::etcd;
use tests::node::Node;
use tests::process::{self, Place, Process};
use tests::topology::Host;
use tests::wait;
use vpc_eni::ec2::Limits;

use world::{KEYS, World};

/// For an agent to be there.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where Debian has the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// A plugin, and what it runs on.
pub struct Subject {
    pub name: &'static str,
    /// Newest version of the specification that it speaks.
    pub newest: &'static str,
    /// How many addresses its node has for pods, where that is few.
    pub addresses: usize,
    program: PathBuf,
    path: PathBuf,
    /// Its network's configuration, without `cniVersion`.
    config: Value,
    /// Processes end before what they stand on goes: fields are dropped in this order.
    agent: Option<Mutex<Process>>,
    ground: Ground,
}

/// Where it runs.
enum Ground {
    /// A node of a LAN; what ours needs there beside it.
    Lan(Option<Overlay>, Node),
    /// An instance of an AWS VPC.
    Vpc(World),
}

/// What ours needs for an overlay.
struct Overlay {
    config: PathBuf,
    _etcd: Process,
    _bpffs: Bpffs,
}

impl Ground {
    fn host(&self) -> &Host {
        match self {
            Self::Lan(_, node) => node.host(),
            Self::Vpc(world) => &world.nodes[0].host,
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::Lan(_, node) => node.place(),
            Self::Vpc(world) => world.nodes[0].host.place(),
        }
    }

    fn directory(&self) -> &Path {
        match self {
            Self::Lan(_, node) => node.directory.path(),
            Self::Vpc(world) => world.nodes[0].directory.path(),
        }
    }

    /// A new agent, once it serves.
    fn agent(&self) -> Process {
        match self {
            Self::Lan(overlay, node) => {
                let overlay = overlay.as_ref().expect("ours has an agent");
                let process = node.agent(&overlay.config);
                for part in ["overlay", "cni"] {
                    node.until_working(part);
                }
                process
            }
            Self::Vpc(world) => {
                let process = world.nodes[0].spawn_agent(&KEYS).expect("the agent starts");
                world.nodes[0].await_status();
                process
            }
        }
    }
}

/// All addresses of the interfaces at once, and none that cools down: what is not given back shows.
fn all_at_once(addresses: u32) -> Value {
    json!({
        "WARM_IP_TARGET": "0",
        "MINIMUM_IP_TARGET": addresses.to_string(),
        "IP_COOLDOWN_PERIOD": "0",
    })
}

/// What a run came to.
#[derive(Debug)]
pub struct Ran {
    pub success: bool,
    /// Standard output as JSON; null when it is empty.
    pub output: Value,
}

impl Ran {
    /// The code of an error; `None` where it did not fail.
    pub fn code(&self) -> Option<u64> {
        (!self.success).then(|| self.output["code"].as_u64().expect("an error has a code"))
    }
}

/// One call, to be changed before it is made.
pub struct Call<'a> {
    subject: &'a Subject,
    program: PathBuf,
    /// What runs the program instead.
    tracer: Vec<String>,
    variables: Vec<(&'static str, String)>,
    input: Vec<u8>,
}

impl Subject {
    /// Those that can run here; the others are told loudly.
    pub fn all(claim: &str) -> Vec<Self> {
        if !tests::privileged(claim) {
            return Vec::new();
        }
        let mut all = Vec::new();
        match etcd::program() {
            Some(program) => all.push(Self::causeway(&program, 24).expect("an agent can be started")),
            None => tests::skipped(claim, "no etcd on PATH or in target/tools (run ./setup.sh test)"),
        }
        for kind in ["bridge", "ptp"] {
            if Path::new(REFERENCE).join(kind).exists() {
                all.push(Self::reference(kind).expect("a node can be made"));
            } else {
                let missing = format!("no {REFERENCE}/{kind}: install containernetworking-plugins");
                tests::skipped(&format!("{claim} ({kind})"), &missing);
            }
        }
        all
    }

    /// The same, and ours on an instance of a VPC.
    pub fn all_of_each_network(claim: &str) -> Vec<Self> {
        let mut all = Self::all(claim);
        if tests::privileged(claim) {
            all.push(Self::in_vpc(2, 4).expect("an agent can be started"));
        }
        all
    }

    /// Ours alone: for what no reference plugin has.
    pub fn ours(claim: &str) -> Option<Self> {
        Self::all(claim)
            .into_iter()
            .find(|subject| subject.name == "causeway-cni")
    }

    /// Ours on nodes of each network that have few addresses for pods, so that it shows when one is not given back.
    pub fn ours_with_few_addresses(claim: &str) -> Vec<Self> {
        Self::ours_of_each_network(claim, 29, 2, 4)
    }

    /// Ours on nodes of each network that have addresses for a hundred pods and more.
    pub fn ours_with_many_addresses(claim: &str) -> Vec<Self> {
        Self::ours_of_each_network(claim, 24, 4, 30)
    }

    fn ours_of_each_network(claim: &str, subnet_len: u8, interfaces: u32, each: u32) -> Vec<Self> {
        if !tests::privileged(claim) {
            return Vec::new();
        }
        let mut all = vec![Self::in_vpc(interfaces, each).expect("an agent can be started")];
        match etcd::program() {
            Some(program) => {
                all.push(Self::causeway(&program, subnet_len).expect("an agent can be started"));
            }
            None => tests::skipped(claim, "no etcd on PATH or in target/tools (run ./setup.sh test)"),
        }
        all
    }

    fn causeway(etcd_program: &Path, subnet_len: u8) -> anyhow::Result<Self> {
        let node = Node::new("cni")?;
        let bpffs = Bpffs::mount("cni")?;
        let place = node.host().place();
        let etcd = etcd::start(&place, etcd_program, &node.path("etcd"))?;
        let config = node.configure(json!({
            "network": {
                "etcd": {"endpoints": [etcd::URL]},
                "config": {"Network": "10.244.0.0/16", "SubnetLen": subnet_len, "Backend": {"Type": "vxlan"}},
                "interface": "eth0",
                "subnetEnv": node.path("subnet.env"),
            },
            "proxy": {"pinDir": bpffs.path().join("causeway")},
            "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
        }));
        let overlay = Overlay {
            config,
            _etcd: etcd,
            _bpffs: bpffs,
        };
        // The network's and the broadcast address, and the node's own.
        let addresses = (1 << (32 - subnet_len)) - 3;
        Self::ours_on("causeway-cni", Ground::Lan(Some(overlay), node), addresses)
    }

    /// Ours on an instance of a VPC, with so many interfaces and addresses of each, all of which it has.
    pub fn in_vpc(interfaces: u32, each: u32) -> anyhow::Result<Self> {
        // An interface's own address is no pod's.
        let addresses = interfaces * (each - 1);
        let limits = Limits {
            interfaces,
            addresses_per_interface: each,
            is_nitro: true,
        };
        let world = World::of_type("cni-vpc", 1, &all_at_once(addresses), limits)?;
        Self::ours_on("causeway-cni (VPC)", Ground::Vpc(world), addresses.try_into()?)
    }

    fn ours_on(name: &'static str, ground: Ground, addresses: usize) -> anyhow::Result<Self> {
        let process = ground.agent();
        let list = ground.directory().join("net.d/10-causeway.conflist");
        let list = wait::until("the runtime is told", DEADLINE, || std::fs::read_to_string(&list));
        let list: Value = serde_json::from_str(&list)?;
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        let subject = Self {
            name,
            newest: "1.1.0",
            addresses,
            program: programs().join("causeway-cni"),
            path: programs(),
            config,
            agent: Some(Mutex::new(process)),
            ground,
        };
        if let Ground::Vpc(world) = &subject.ground {
            let all = addresses.to_string();
            wait::until_value(
                "it has all its addresses",
                DEADLINE,
                || world.nodes[0].sample("awscni_total_ip_addresses"),
                |total| *total == Some(all.clone()),
            );
        }
        Ok(subject)
    }

    fn reference(kind: &'static str) -> anyhow::Result<Self> {
        let node = Node::new(kind)?;
        let config = json!({
            "type": kind, "name": "reference", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "subnet": "10.245.0.0/24", "dataDir": node.path("ipam")},
        });
        Ok(Self {
            name: kind,
            newest: "1.0.0",
            addresses: 253,
            program: Path::new(REFERENCE).join(kind),
            path: REFERENCE.into(),
            config,
            agent: None,
            ground: Ground::Lan(None, node),
        })
    }

    fn agent(&self) -> MutexGuard<'_, Process> {
        let agent = self.agent.as_ref().expect("ours has an agent");
        agent.lock().expect("no panic")
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> u32 {
        self.agent().pid()
    }

    /// Kills the agent.
    pub fn kill_agent(&self) {
        self.agent().kill();
    }

    /// Starts another agent in the place of one that was killed, and waits for it to serve.
    pub fn replace_agent(&self) {
        let successor = self.ground.agent();
        *self.agent() = successor;
    }

    /// Versions that it speaks, of those that runtimes use.
    pub fn versions(&self) -> impl Iterator<Item = &'static str> {
        let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        let newest = all
            .iter()
            .position(|version| *version == self.newest)
            .expect("it is one of them");
        all.into_iter().take(newest + 1)
    }

    /// The configuration in a version of the specification.
    pub fn config(&self, version: &str) -> Value {
        let mut config = self.config.clone();
        config["cniVersion"] = json!(version);
        config
    }

    /// A call for `eth0` of a container, as a runtime makes it.
    pub fn call(&self, verb: &str, container: &str, netns: &str) -> Call<'_> {
        let path = self.path.display().to_string();
        let variables = vec![
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", container.to_owned()),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", path),
        ];
        Call {
            subject: self,
            program: self.program.clone(),
            tracer: Vec::new(),
            variables,
            input: self.config(self.newest).to_string().into_bytes(),
        }
    }

    /// Connects a new container.
    #[track_caller]
    pub fn add(&self, container: &str) -> (Host, Value) {
        let pod = Host::new(container).expect("a namespace");
        let ran = self.call("ADD", container, &pod.path()).run();
        assert!(ran.success, "{}: {ran:?}", self.name);
        self.assert_led(&ran);
        (pod, ran.output)
    }

    /// Whoever was answered for is led: nothing is awaited.
    #[track_caller]
    pub fn assert_led(&self, ran: &Ran) {
        let address = ran.output["ips"][0]["address"].as_str().expect("an address");
        let rules = self.rules_of_pods();
        let led = rules
            .iter()
            .any(|rule| rule.starts_with(&format!("512: to {address}")));
        assert_eq!(led, self.is_in_vpc(), "{}: {address}: {rules:?}", self.name);
    }

    /// A copy of the program under another name, which goes with the subject.
    pub fn copied_as(&self, name: &str) -> PathBuf {
        let copy = self.ground.directory().join(name);
        process::copy_program(&self.program, &copy).expect("copied");
        copy
    }

    /// Devices of the node, and of the addresses' book where that is the plugin's own: nothing may be left of them.
    pub fn devices(&self) -> Vec<String> {
        let mut kernel = self.ground.host().netlink().expect("a socket");
        let links = netlink::Kernel::links(&mut kernel).expect("readable");
        let veths = links
            .into_iter()
            .filter(|link| link.kind == netlink::LinkKind::Veth && !link.name.starts_with("eth"));
        veths.map(|link| link.name).collect()
    }

    pub fn is_ours(&self) -> bool {
        self.agent.is_some()
    }

    pub fn is_in_vpc(&self) -> bool {
        matches!(self.ground, Ground::Vpc(_))
    }

    /// The book of pods' addresses.
    pub fn log(&self) -> PathBuf {
        self.ground.directory().join("state/pods.log")
    }

    /// They go with their pods, a moment later.
    #[track_caller]
    pub fn await_no_rules(&self) {
        wait::until_value(
            "no rule is left",
            DEADLINE,
            || self.rules_of_pods(),
            Vec::is_empty,
        );
    }

    /// The rules of policy routing that say which interface of a VPC has a pod's packets.
    pub fn rules_of_pods(&self) -> Vec<String> {
        let mut kernel = self.ground.host().netlink().expect("a socket");
        let rules = netlink::Kernel::all_rules(&mut kernel).expect("readable");
        let of_pods = rules.iter().filter(|rule| [512, 1536].contains(&rule.priority));
        of_pods.map(ToString::to_string).collect()
    }
}

impl Call<'_> {
    /// With another value of a variable; empty: without it.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        if !value.is_empty() {
            self.variables.push((name, value.to_owned()));
        }
        self
    }

    /// By another program.
    pub fn by(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Under strace, with these arguments.
    pub fn under_strace(mut self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string);
        self.tracer = std::iter::once("/usr/bin/strace".to_owned())
            .chain(arguments)
            .collect();
        self
    }

    /// With another standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub fn run(self) -> Ran {
        let mut command = match self.tracer.split_first() {
            None => Command::new(&self.program),
            Some((tracer, arguments)) => {
                let mut command = Command::new(tracer);
                command.args(arguments).arg(&self.program);
                command
            }
        };
        command.env_clear().envs(self.variables);
        let place = self.subject.ground.place();
        let output = process::run_in(&place, &mut command, &self.input).expect("the plugin runs");
        Ran {
            success: output.status.success(),
            output: match output.stdout.trim() {
                "" => Value::Null,
                text => serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}")),
            },
        }
    }
}
