//! Plugins under test, and running them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};
use tests::bpffs::Bpffs;
use tests::cluster::programs;
use tests::etcd;
use tests::node::Node;
use tests::process::{self, Process};
use tests::topology::Host;

/// Where Debian has the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// A plugin, and what it runs on.
pub struct Subject {
    pub name: &'static str,
    /// Newest version of the specification that it speaks.
    pub newest: &'static str,
    program: PathBuf,
    path: PathBuf,
    /// Its network's configuration, without `cniVersion`.
    config: Value,
    /// Processes end before what they stand on goes: fields are dropped in this order.
    agent: Option<Agent>,
    node: Node,
}

/// What ours needs.
struct Agent {
    process: Mutex<Process>,
    config: PathBuf,
    _etcd: Process,
    _bpffs: Bpffs,
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

    /// Ours alone: for what no reference plugin has.
    pub fn ours(claim: &str) -> Option<Self> {
        Self::all(claim)
            .into_iter()
            .find(|subject| subject.name == "causeway-cni")
    }

    /// Ours on a node that has five addresses for pods, so that it shows when one is not given back.
    pub fn ours_with_five_addresses(claim: &str) -> Option<Self> {
        if !tests::privileged(claim) {
            return None;
        }
        let Some(program) = etcd::program() else {
            tests::skipped(claim, "no etcd on PATH or in target/tools (run ./setup.sh test)");
            return None;
        };
        Some(Self::causeway(&program, 29).expect("an agent can be started"))
    }

    fn causeway(etcd_program: &Path, subnet_len: u8) -> anyhow::Result<Self> {
        let node = Node::new("cni")?;
        let bpffs = Bpffs::mount("cni")?;
        let place = node.host().place();
        let etcd = etcd::start(&place, etcd_program, &node.path("etcd"))?;
        let path = node.configure(json!({
            "network": {
                "etcd": {"endpoints": [etcd::URL]},
                "config": {"Network": "10.244.0.0/16", "SubnetLen": subnet_len, "Backend": {"Type": "vxlan"}},
                "interface": "eth0",
                "subnetEnv": node.path("subnet.env"),
            },
            "proxy": {"pinDir": bpffs.path().join("causeway")},
            "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
        }));
        let process = node.agent(&path);
        for part in ["overlay", "cni"] {
            node.until_working(part);
        }
        let list: Value =
            serde_json::from_str(&std::fs::read_to_string(node.path("net.d/10-causeway.conflist"))?)?;
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        Ok(Self {
            name: "causeway-cni",
            newest: "1.1.0",
            program: programs().join("causeway-cni"),
            path: programs(),
            config,
            node,
            agent: Some(Agent {
                process: Mutex::new(process),
                config: path,
                _etcd: etcd,
                _bpffs: bpffs,
            }),
        })
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
            program: Path::new(REFERENCE).join(kind),
            path: REFERENCE.into(),
            config,
            node,
            agent: None,
        })
    }

    fn agent(&self) -> MutexGuard<'_, Process> {
        let agent = self.agent.as_ref().expect("ours has an agent");
        agent.process.lock().expect("no panic")
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
        let agent = self.agent.as_ref().expect("ours has an agent");
        *self.agent() = self.node.agent(&agent.config);
        for part in ["overlay", "cni"] {
            self.node.until_working(part);
        }
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
        (pod, ran.output)
    }

    /// A copy of the program under another name, which goes with the subject.
    pub fn copied_as(&self, name: &str) -> PathBuf {
        let copy = PathBuf::from(self.node.path(name));
        process::copy_program(&self.program, &copy).expect("copied");
        copy
    }

    /// Devices of the node, and of the addresses' book where that is the plugin's own: nothing may be left of them.
    pub fn devices(&self) -> Vec<String> {
        let mut kernel = self.node.host().netlink().expect("a socket");
        let links = netlink::Kernel::links(&mut kernel).expect("readable");
        let veths = links
            .into_iter()
            .filter(|link| link.kind == netlink::LinkKind::Veth && link.name != "eth0");
        veths.map(|link| link.name).collect()
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
        let place = self.subject.node.place();
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
