//! What a bundle says to a question that somebody would have asked the node: by the same code, without the node.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use model::ObjectName;
use netlink::Recording;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Bundle, part};
use crate::cli::Output;
use crate::explain::names::addresses_of;
use crate::explain::witness::{Programs, Recorded};
use crate::explain::{self, Explanation, Facts, Question, WithoutAgent};
use crate::findings::Report;
use crate::logs::printable;

impl Bundle {
    /// A part that must be there.
    fn part<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let Some(content) = self.parts.get(name) else {
            let reason = self.manifest.missing.get(name);
            anyhow::bail!(
                "the bundle has no {name}: {}",
                reason.map_or("it was never in it", String::as_str)
            );
        };
        serde_json::from_slice(content).with_context(|| format!("read {name}"))
    }

    /// Whose it is, and of when.
    #[must_use]
    pub fn title(&self) -> String {
        let manifest = &self.manifest;
        let mut title = format!("as recorded of {} at {}", manifest.node, manifest.made);
        for note in &manifest.notes {
            title += &format!("\n{note}");
        }
        title
    }

    /// What becomes of a packet, as `causeway explain` told it.
    ///
    /// # Errors
    /// When the question is not understood, or the bundle lacks what is needed.
    pub fn explain(&self, question: &Question) -> anyhow::Result<Explanation> {
        let question = Question {
            vantage: self.manifest.vantage.clone(),
            ..question.clone()
        };
        let network: Recording = self.part(part::NETWORK)?;
        let programs: Programs = self.part(part::PROGRAMS)?;
        let mut node = Recorded::new(&network, &programs);
        Ok(if self.parts.contains_key(part::AGENT) {
            explain::explain(&question, &self.facts()?, &mut node)?
        } else {
            let known: WithoutAgent = self.part(part::WITHOUT_AGENT)?;
            explain::without_agent(&question, &known, &mut node)?
        })
    }

    fn facts(&self) -> anyhow::Result<Facts> {
        let mut agent: Value = self.part(part::AGENT)?;
        let mut facts = agent["facts"].take();
        facts["snapshot"] = self.part(part::OBJECTS)?;
        Facts::deserialize(facts).with_context(|| format!("read {}", part::AGENT))
    }

    /// What `causeway doctor` found.
    ///
    /// # Errors
    /// When no agent answered: as the live command says it.
    pub fn doctor(&self) -> anyhow::Result<Report> {
        if let (None, Some(reason)) = (
            self.parts.get(part::DOCTOR),
            self.manifest.missing.get(part::DOCTOR),
        ) {
            anyhow::bail!("{reason}");
        }
        self.part(part::DOCTOR)
    }

    /// How the agent's parts and watches did.
    ///
    /// # Errors
    /// When no agent answered.
    pub fn status(&self) -> anyhow::Result<Status> {
        Ok(Status {
            node: self.manifest.node.clone(),
            health: self.part(part::STATUS)?,
        })
    }

    /// What addresses were called.
    ///
    /// # Errors
    /// When no agent answered.
    pub fn names(&self) -> anyhow::Result<Names> {
        Ok(Names::of(&self.facts()?))
    }
}

/// How the agent's parts and watches did, as its health checks say it.
#[derive(Debug)]
pub struct Status {
    node: String,
    health: Value,
}

impl Status {
    /// Parts and watches, each with its kind, name and state.
    fn states(&self) -> impl Iterator<Item = (&'static str, &String, &Value)> {
        let kinds = [("part", "parts"), ("watch", "watches")];
        kinds.into_iter().flat_map(|(kind, field)| {
            let states = self.health[field].as_object().into_iter().flatten();
            states.map(move |(name, state)| (kind, name, state))
        })
    }

    /// Whether something fails.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.states().any(|(_, _, state)| state["state"] == "failing")
    }

    /// In the form that was asked for.
    #[must_use]
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Json => format!("{:#}\n", self.health),
            Output::Text => self.text(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (kind, name, state) in self.states() {
            let word = |field: &str| state[field].as_str().unwrap_or_default();
            let mut line = format!("{:<8} {kind} {name}", word("state"));
            if let Some(seconds) = state["seconds"].as_u64() {
                line += &format!(", for {seconds} s: {}", word("error"));
            }
            if let Some(restarts @ 1..) = state["restarts"].as_u64() {
                line += &format!(", restarted {restarts} times");
            }
            let _infallible = writeln!(text, "{}", printable(&line));
        }
        let fast_path = &self.health["fastPath"];
        let word = |field: &str| fast_path[field].as_str().unwrap_or_default();
        let reason = Some(word("reason")).filter(|reason| !reason.is_empty());
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let _infallible = writeln!(
            text,
            "{}",
            printable(&format!("fast path {}{reason}", word("state")))
        );
        let verdict = if self.is_wrong() {
            "something fails"
        } else {
            "nothing fails"
        };
        let _infallible = writeln!(text, "{}: {verdict}", printable(&self.node));
        text
    }
}

/// What addresses were called, and those that had been somebody's.
#[derive(Debug, Serialize)]
pub struct Names {
    /// Services by their addresses, with port and protocol.
    services: BTreeMap<String, String>,
    /// Pods, as far as they are this node's or endpoints of Services.
    pods: BTreeMap<IpAddr, String>,
    nodes: BTreeMap<IpAddr, String>,
    /// Whose addresses were that are nobody's any more, and until when.
    former: BTreeMap<IpAddr, String>,
}

impl Names {
    fn of(facts: &Facts) -> Self {
        let snapshot = &facts.snapshot;
        let services = snapshot.services.iter().flat_map(|(name, service)| {
            addresses_of(service).flat_map(move |address| {
                service.ports.iter().map(move |port| {
                    let address = SocketAddr::new(address, port.port.get());
                    (format!("{address}/{}", port.protocol), name.to_string())
                })
            })
        });
        let slices = snapshot.slices.iter().flat_map(|(_, slices)| slices.iter());
        let endpoints = slices.flat_map(|slice| {
            slice.endpoints.iter().filter_map(|endpoint| {
                let name = ObjectName::new(slice.name.namespace.clone(), endpoint.pod?);
                Some((endpoint.address, name.to_string()))
            })
        });
        let here = facts.pods.iter().flat_map(|pod| {
            let name = pod.name.as_ref().map(ToString::to_string);
            let addresses = pod.addresses.iter().copied();
            addresses.filter_map(move |address| Some((address, name.clone()?)))
        });
        let nodes = snapshot.nodes.iter().flat_map(|(name, node)| {
            let addresses = node.internal_addresses.iter().copied();
            addresses.map(|address| (address, name.to_string()))
        });
        Self {
            services: services.collect(),
            pods: endpoints.chain(here).collect(),
            nodes: nodes.collect(),
            former: facts.former.clone(),
        }
    }

    /// In the form that was asked for.
    #[must_use]
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Json => format!("{:#}\n", json!(self)),
            Output::Text => self.text(),
        }
    }

    fn text(&self) -> String {
        let services = self
            .services
            .iter()
            .map(|(at, name)| format!("{at}  Service {name}"));
        let pods = self
            .pods
            .iter()
            .map(|(address, name)| format!("{address}  pod {name}"));
        let nodes = self
            .nodes
            .iter()
            .map(|(address, name)| format!("{address}  node {name}"));
        let former = self
            .former
            .iter()
            .map(|(address, name)| format!("{address}  {name}"));
        let lines = services.chain(pods).chain(nodes).chain(former);
        lines.map(|line| printable(&line) + "\n").collect()
    }
}
