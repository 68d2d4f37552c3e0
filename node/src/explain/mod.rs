//! `causeway explain SRC DST:PORT`: what becomes of a packet that nobody sends.
//!
//! Three engines look at the same packet: [`objects`] says what the cluster's objects make of it, by the plans that the
//! agent programs by; [`kernel`] and [`passage`] read back what is programmed; [`ruling`] has the attached program between
//! pods say itself what it makes of it. [`compare`] puts them side by side, there
//! and back, in the order in which a packet meets them: where it gets something else is the problem, what differs
//! elsewhere is told. [`asked`] and [`names`] know what is meant, [`look`] by which commands it can be seen, [`render`]
//! shows it.
//!
//! The agent answers ([`explain()`]), since it knows the objects and stands in the node's network namespace. Without one
//! the kernel alone is asked ([`without_agent`]). Both ask a [`witness::Witness`]: the kernel, or what was read of it once.

mod asked;
pub mod compare;
mod facts;
pub mod kernel;
pub mod look;
pub mod names;
pub mod objects;
mod passage;
pub mod render;
mod rules;
mod ruling;
mod trips;
pub mod vpc;
mod walk;
pub mod witness;

use std::net::IpAddr;

use model::{MacAddr, NodeName, ObjectName, Protocol};
use overlay::pods::{Assigned, wiring};
use serde::{Deserialize, Serialize};

pub use facts::{Facts, WithoutAgent};
pub use look::Vantage;
pub use walk::{explain, without_agent};

/// What to ask the agent there.
pub const PATH: &str = "/explain";

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Where the packet comes from, as [`names::Name`] reads it.
    pub source: String,
    /// Where it goes, with port and protocol.
    pub destination: String,
    /// From where the asker looks at the node.
    #[serde(default)]
    pub vantage: Vantage,
}

/// What an agent says to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was looked at.
    Explained(Box<Explanation>),
    /// A name names nothing, or several things; for people.
    NotUnderstood(String),
}

/// What becomes of a packet and of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The node whose view it is; none where no agent told.
    pub node: Option<String>,
    /// Where the packet comes from.
    pub source: End,
    /// Where it goes.
    pub destination: End,
    /// Its protocol.
    pub protocol: Protocol,
    /// The packet's way.
    pub forward: Vec<Step>,
    /// The answer's way.
    pub reverse: Vec<Step>,
    /// What it comes to.
    pub conclusion: Conclusion,
    /// The same in a sentence.
    pub sentence: String,
    /// What else somebody should know.
    pub notes: Vec<String>,
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// A kind and a name.
    pub name: String,
    /// The address that was looked at.
    pub address: IpAddr,
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// The node that it is on, where it is on one that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Nothing stands in the way, as far as this node sees.
    Works,
    /// It would fail, or what is programmed is not what the objects say.
    Fails,
    /// Something could not be looked at.
    CouldNotTell,
}

/// A kind of decision on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Which Service it is, and which endpoint.
    Service,
    /// Whether it passes by the network stack.
    FastPath,
    /// Whether connection tracking has room for its connection.
    Tracking,
    /// Which route it takes.
    Route,
    /// Whose address it leaves the node with.
    Translation,
    /// By which device it leaves.
    Link,
    /// Which MAC address is next.
    Neighbour,
    /// Behind which tunnel end that is.
    Forwarding,
    /// How wrapped packets leave.
    Underlay,
    /// What rules of others make of it.
    Rules,
}

/// One decision, by both engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which.
    pub stage: Stage,
    /// What is decided about.
    pub about: String,
    /// What the objects say.
    pub objects: Vec<String>,
    /// What is programmed.
    pub kernel: Vec<Entry>,
    /// Why it would fail.
    pub problems: Vec<String>,
    /// What is programmed otherwise than planned, and does not stand in its way.
    #[serde(default)]
    pub differences: Vec<String>,
    /// What could not be told, and why.
    pub unknown: Vec<String>,
    /// Commands that show what the kernel has.
    #[serde(default)]
    pub look: Vec<String>,
}

impl Step {
    /// Nothing is said of it yet.
    #[must_use]
    pub fn new(stage: Stage, about: impl Into<String>) -> Self {
        Self {
            stage,
            about: about.into(),
            objects: Vec::new(),
            kernel: Vec::new(),
            problems: Vec::new(),
            differences: Vec::new(),
            unknown: Vec::new(),
            look: Vec::new(),
        }
    }
}

/// An object of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which table, map or set.
    pub place: String,
    /// Its key there.
    pub key: String,
    /// What lies beside it; none where there is no such entry.
    pub value: Option<String>,
}

impl Entry {
    /// An entry.
    #[must_use]
    pub fn new(place: impl Into<String>, key: impl Into<String>, value: Option<String>) -> Self {
        Self {
            place: place.into(),
            key: key.into(),
            value,
        }
    }
}

impl From<proxy::programmed::Entry> for Entry {
    fn from(entry: proxy::programmed::Entry) -> Self {
        let proxy::programmed::Entry { place, key, value } = entry;
        Self { place, key, value }
    }
}

/// A pod of this node, by the book of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodHere {
    /// Its name, where the runtime told.
    pub name: Option<ObjectName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// This node.
    pub node: NodeName,
    /// Its device on the node's side.
    pub device: String,
    /// MAC address of its own device.
    pub mac: Option<MacAddr>,
}

impl PodHere {
    /// By the book of addresses.
    #[must_use]
    pub fn of(assigned: &Assigned, node: &NodeName) -> Self {
        Self {
            name: assigned.pod.clone(),
            addresses: assigned.addresses().values().copied().collect(),
            node: node.clone(),
            device: wiring::host_ifname(assigned),
            mac: Some(wiring::pod_mac(assigned)),
        }
    }
}

impl Explanation {
    /// What the steps come to: what fails outweighs what could not be told.
    #[must_use]
    pub fn conclude(steps: &[Step]) -> Conclusion {
        if steps.iter().any(|step| !step.problems.is_empty()) {
            Conclusion::Fails
        } else if steps.iter().any(|step| !step.unknown.is_empty()) {
            Conclusion::CouldNotTell
        } else {
            Conclusion::Works
        }
    }
}

#[cfg(test)]
mod tests;
