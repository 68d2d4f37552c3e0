//! The agents of this machine: what they are asked, and what is known where none answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebpf::abi::net::Port;
use ebpf::abi::service::{FrontendKey, SlotKey};
use ebpf::service_maps::ServiceMaps;
use model::NodeName;
use trace::hop::Protocol;
use trace::shell::quoted;

use crate::ask;
use crate::cgroup2::Hierarchy;
use crate::cli::NODE_CONFIG;
use crate::config::{self, Datapath};
use crate::ends::Name;
use crate::explain::{self, Explanation};
use crate::names::{self, Behind, Called, Located};

/// An agent that does not answer until then is taken for one that does not run: what the kernel has can be told without it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Addresses in a question: it is shorter than what an agent reads at once (2 MiB).
const AT_ONCE: usize = 16_384;

/// An agent, by its configuration.
#[derive(Debug)]
pub struct Agent {
    /// Its node.
    pub node: NodeName,
    /// Where that is.
    config: PathBuf,
    /// Where its socket and its book of pods are.
    pub state_dir: PathBuf,
    /// Where its socket hook is pinned.
    pin_dir: PathBuf,
    /// The cgroup that the hook shall be at; none where there shall be none.
    hooked: Option<PathBuf>,
}

/// Why no agent says what a name names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLocated {
    /// None is configured here.
    #[error(
        "this machine has no agent that is known, and only agents know names: give an address, or an agent's \
         configuration by --config"
    )]
    NoAgent,
    /// None answers.
    #[error("no agent of this machine answers, and only agents know names: give an address ({0})")]
    Silent(String),
    /// They know of no such thing.
    #[error("{0}")]
    Unknown(String),
}

impl NotLocated {
    /// The same where one more does not answer: what another one said stands.
    fn or(self, silent: String) -> Self {
        match self {
            Self::Unknown(_) => self,
            Self::NoAgent | Self::Silent(_) => Self::Silent(silent),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Agents(Vec<Agent>);

impl Agents {
    /// Those with these configurations; where none is named, those that are usual ([`config::here`]).
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(named: &[PathBuf]) -> Result<Self, config::ConfigError> {
        let configs = config::here::of_this_machine(named);
        let read = |path: &PathBuf| -> Result<Agent, config::ConfigError> {
            let config = config::load(path, None)?;
            Ok(Agent {
                node: config.node_name,
                config: path.clone(),
                state_dir: config.state_dir,
                hooked: (config.proxy.datapath == Datapath::Ebpf)
                    .then(|| config.proxy.cgroup.clone().unwrap_or_else(whole_machine)),
                pin_dir: config.proxy.pin_dir,
            })
        };
        configs.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.0.iter()
    }

    /// What an end names, by the first agent that knows it.
    ///
    /// # Errors
    /// When none knows it, or none answers.
    pub fn locate(&self, name: &Name) -> Result<Located, NotLocated> {
        let question = names::Question {
            ends: vec![name.to_string()],
            ..names::Question::default()
        };
        let mut why = NotLocated::NoAgent;
        for agent in &self.0 {
            let answer: Result<names::Answer, _> = agent.ask(names::PATH, &question);
            match answer.map(|answer| answer.ends.into_iter().next()) {
                Ok(Some(names::End::Located(located))) => return Ok(located),
                Ok(Some(names::End::NotUnderstood(reason))) => why = NotLocated::Unknown(reason),
                Ok(None) => why = why.or(format!("that of {} says nothing of it", agent.node)),
                Err(error) => why = why.or(error),
            }
        }
        Err(why)
    }

    /// The cgroup whose sockets a hook translates, where a node has one.
    pub fn hooked(&self, node: &NodeName) -> Option<&Path> {
        self.of_node(node)?.hooked.as_deref()
    }

    /// The same of the node in a network namespace.
    pub fn hooked_in(&self, netns: u32) -> Option<&Path> {
        self.in_netns(netns)?.hooked.as_deref()
    }

    /// The network namespaces that they stand in.
    pub fn namespaces(&self) -> BTreeSet<u32> {
        self.0.iter().filter_map(Agent::netns).collect()
    }

    /// Whether an agent stands in a network namespace.
    pub fn is_in(&self, netns: u32) -> bool {
        self.in_netns(netns).is_some()
    }

    /// The agent in a network namespace.
    pub fn in_netns(&self, netns: u32) -> Option<&Agent> {
        self.0.iter().find(|agent| agent.netns() == Some(netns))
    }

    /// The agent of a node.
    pub fn of_node(&self, node: &NodeName) -> Option<&Agent> {
        self.0.iter().find(|agent| agent.node == *node)
    }

    /// Who is behind an address and port, by the maps of socket hooks, which stay where an agent has ended.
    pub fn pinned(&self, address: SocketAddr, protocol: Option<Protocol>) -> Option<Behind> {
        let protocols = [Protocol::TCP, Protocol::UDP].into_iter();
        let protocols = protocols.filter(|own| protocol.is_none_or(|wanted| wanted == *own));
        let mut endpoints = BTreeSet::new();
        for protocol in protocols {
            for agent in &self.0 {
                let found = pinned(&agent.pin_dir, address, protocol);
                // Who may not read the maps does without: the address itself is followed.
                endpoints.extend(found.ok().flatten().unwrap_or_default());
            }
        }
        (!endpoints.is_empty()).then(|| Behind {
            name: address.to_string(),
            endpoints: endpoints.into_iter().collect(),
            // Maps know no names of ports.
            meant: Vec::new(),
            ports: Vec::new(),
        })
    }
}

#[cfg(test)]
impl Agents {
    /// One whose socket is in that directory.
    pub fn at(state_dir: PathBuf) -> Self {
        Self(vec![Agent {
            node: "node-1".into(),
            config: NODE_CONFIG.into(),
            pin_dir: state_dir.clone(),
            hooked: None,
            state_dir,
        }])
    }
}

impl Agent {
    /// What makes commands ask this one, put behind their names; empty where they do so by themselves.
    pub fn option(&self) -> String {
        if self.config == Path::new(NODE_CONFIG) {
            return String::new();
        }
        format!(" --config {}", quoted(&self.config.to_string_lossy()))
    }

    /// What it says of a packet; none where it does not answer.
    pub fn explain(&self, question: &explain::Question) -> Option<Explanation> {
        match self.ask(explain::PATH, question).ok()? {
            explain::Answer::Explained(explanation) => Some(*explanation),
            explain::Answer::NotUnderstood(_) => None,
        }
    }

    /// What it calls addresses: those that it knows.
    ///
    /// # Errors
    /// When it does not answer; for people.
    pub fn call(&self, addresses: &[IpAddr]) -> Result<Vec<Called>, String> {
        let mut all = Vec::new();
        for addresses in addresses.chunks(AT_ONCE) {
            let question = names::Question {
                addresses: addresses.to_vec(),
                ..names::Question::default()
            };
            let answer: names::Answer = self.ask(names::PATH, &question)?;
            all.extend(answer.addresses);
        }
        Ok(all)
    }

    fn ask<A: serde::de::DeserializeOwned>(
        &self,
        at: &str,
        question: &impl serde::Serialize,
    ) -> Result<A, String> {
        let asked = ask::ask(&self.state_dir, at, question);
        match crate::block_on(async { tokio::time::timeout(PATIENCE, asked).await }) {
            Ok(Ok(answer)) => answer.map_err(|error| error.to_string()),
            Ok(Err(_)) => Err(format!("that of {} is silent", self.node)),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// The network namespace that it stands in; none where it does not run, or in another PID namespace.
    fn netns(&self) -> Option<u32> {
        let process = ask::process_of(&self.state_dir)?;
        trace::places::inode(Path::new(&format!("/proc/{process}/ns/net")))
    }
}

/// Where the agent puts its hook that was told nothing else. Who cannot see that has it told when it matters.
fn whole_machine() -> PathBuf {
    let seen = Hierarchy::seen().map(|seen| seen.mount_point().to_owned());
    seen.unwrap_or_else(|_| PathBuf::from("/sys/fs/cgroup"))
}

/// The endpoints that a hook's maps have for an address and port; none where that is no Service's.
fn pinned(
    pin_dir: &Path,
    address: SocketAddr,
    Protocol(proto): Protocol,
) -> Result<Option<Vec<SocketAddr>>, ebpf::Error> {
    let Some(maps) = ServiceMaps::open(pin_dir)? else {
        return Ok(None);
    };
    let key = FrontendKey {
        addr: address.ip().into(),
        port: Port::new(address.port()),
        proto,
        kind: FrontendKey::ADDRESS,
    };
    let Some(frontend) = maps.frontend(&key)? else {
        return Ok(None);
    };
    let slots = (0..frontend.cluster).chain((0..frontend.local).map(|slot| slot | SlotKey::LOCAL));
    let mut endpoints = Vec::new();
    for slot in slots {
        let key = SlotKey {
            service: frontend.service,
            revision: frontend.revision,
            slot,
        };
        let Some(id) = maps.slot(&key)? else { continue };
        if let Some(endpoint) = maps.endpoint(id)? {
            endpoints.push(SocketAddr::new(
                IpAddr::from(endpoint.addr),
                endpoint.port.number(),
            ));
        }
    }
    Ok(Some(endpoints))
}
