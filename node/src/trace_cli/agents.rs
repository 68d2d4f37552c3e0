//! The agents of this machine: what they are asked, and what is known where none answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebpf::abi::net::Port;
use ebpf::abi::service::{FrontendKey, SlotKey};
use ebpf::service_maps::ServiceMaps;
use model::NodeName;
use trace::Service;
use trace::hop::Protocol;

use crate::ask;
use crate::cgroup2;
use crate::config::{self, Datapath};
use crate::ends::Name;
use crate::explain::{self, Explanation};
use crate::locate::{self, Located};

/// An agent that does not answer until then is taken for one that does not run: what the kernel has can be told without it.
const PATIENCE: Duration = Duration::from_secs(3);

/// An agent, by its configuration.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its node.
    pub(super) node: NodeName,
    /// Where its socket and its book of pods are.
    pub(super) state_dir: PathBuf,
    /// Where its socket hook is pinned.
    pin_dir: PathBuf,
    /// The cgroup that the hook shall be at; none where there shall be none.
    hooked: Option<PathBuf>,
}

/// Why no agent says what a name names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotLocated {
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

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Agents(Vec<Agent>);

impl Agents {
    /// Those with these configurations; where none is named, those that are usual ([`config::here`]).
    pub(super) fn read(named: &[PathBuf]) -> Result<Self, config::ConfigError> {
        let configs = config::here::of_this_machine(named);
        let read = |path: &PathBuf| -> Result<Agent, config::ConfigError> {
            let config = config::load(path, None)?;
            Ok(Agent {
                node: config.node_name,
                state_dir: config.state_dir,
                hooked: (config.proxy.datapath == Datapath::Ebpf)
                    .then(|| config.proxy.cgroup.clone().or_else(whole_machine))
                    .flatten(),
                pin_dir: config.proxy.pin_dir,
            })
        };
        configs.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// One by one.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.0.iter()
    }

    /// What an end names, by the first agent that knows it.
    pub(super) fn locate(&self, name: &Name) -> Result<Located, NotLocated> {
        let question = locate::Question {
            name: name.to_string(),
        };
        let mut why = NotLocated::NoAgent;
        for agent in &self.0 {
            match agent.ask(locate::PATH, &question) {
                Ok(locate::Answer::Located(located)) => return Ok(located),
                Ok(locate::Answer::NotUnderstood(reason)) => why = NotLocated::Unknown(reason),
                Err(error) => {
                    // What another agent said stands.
                    if !matches!(why, NotLocated::Unknown(_)) {
                        why = NotLocated::Silent(error);
                    }
                }
            }
        }
        Err(why)
    }

    /// The cgroup whose sockets a hook translates, where a node has one.
    pub(super) fn hooked(&self, node: &NodeName) -> Option<&Path> {
        self.0.iter().find(|agent| agent.node == *node)?.hooked.as_deref()
    }

    /// The same of the node in a network namespace.
    pub(super) fn hooked_in(&self, netns: u32) -> Option<&Path> {
        self.0
            .iter()
            .find(|agent| agent.netns() == Some(netns))?
            .hooked
            .as_deref()
    }

    /// Whether an agent stands in a network namespace.
    pub(super) fn is_in(&self, netns: u32) -> bool {
        self.0.iter().any(|agent| agent.netns() == Some(netns))
    }

    /// What the agent in a network namespace says of a packet; none where there is no such agent, or it does not answer.
    pub(super) fn explain(&self, netns: u32, question: &explain::Question) -> Option<Explanation> {
        self.0
            .iter()
            .find(|agent| agent.netns() == Some(netns))?
            .explain(question)
    }

    /// The same of the agent of a node.
    pub(super) fn explain_at(&self, node: &NodeName, question: &explain::Question) -> Option<Explanation> {
        self.0.iter().find(|agent| agent.node == *node)?.explain(question)
    }

    /// Who is behind an address and port, by the maps of socket hooks, which stay where an agent has ended.
    pub(super) fn pinned(&self, address: SocketAddr, protocol: Option<Protocol>) -> Option<Service> {
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
        (!endpoints.is_empty()).then(|| Service {
            name: address.to_string(),
            frontends: vec![address],
            endpoints: endpoints.into_iter().collect(),
        })
    }
}

impl Agent {
    fn explain(&self, question: &explain::Question) -> Option<Explanation> {
        match self.ask(explain::PATH, question).ok()? {
            explain::Answer::Explained(explanation) => Some(*explanation),
            explain::Answer::NotUnderstood(_) => None,
        }
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

fn whole_machine() -> Option<PathBuf> {
    cgroup2::mount_point(Path::new(cgroup2::MOUNTS)).ok()
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
