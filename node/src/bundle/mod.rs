//! `causeway bundle`: all that `explain` and `doctor` go by, as one file, and what they say by the file alone.
//!
//! [`collect`] reads a node: its agent over the socket ([`Told`]), and its kernel. Each part is had or not; what is missing
//! is told. [`archive`] writes the parts as a `.tar.gz` and reads them back, [`redact`] takes out what opens a door.
//! [`replay`] asks the parts what somebody would have asked the node.
//!
//! What the agent knows of objects is what its plans need: Services, slices, nodes, and names of policies. It never had
//! Secrets, ConfigMaps, environments or annotations, but for those by which nodes tell how they are reached.

pub mod archive;
pub mod collect;
pub mod redact;
pub mod replay;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::explain::{Facts, Vantage};

/// What to ask the agent.
pub const PATH: &str = "/bundle";

/// Of the file; a reader knows this one and those before.
pub const FORMAT: u32 = 1;

/// Names of the parts, as they lie in the file.
pub mod part {
    /// What is there, and what is not.
    pub const MANIFEST: &str = "manifest.json";
    /// The cluster's objects, as the edits that make them.
    pub const OBJECTS: &str = "objects.json";
    /// What the agent knows beside.
    pub const AGENT: &str = "agent.json";
    /// What is known of a node whose agent tells nothing.
    pub const WITHOUT_AGENT: &str = "without-agent.json";
    /// Devices, addresses, rules, routes, neighbours and forwarding entries.
    pub const NETWORK: &str = "network.json";
    /// What is programmed for Services and for pods.
    pub const PROGRAMS: &str = "programs.json";
    /// Settings of the kernel, and how many connections it tracks.
    pub const SETTINGS: &str = "settings.json";
    /// What iptables has, where that is the datapath, as its programs print it.
    pub const IPTABLES: &str = "iptables.txt";
    /// The agent's configuration, with defaults.
    pub const CONFIG: &str = "config.yaml";
    /// What doctor finds.
    pub const DOCTOR: &str = "doctor.json";
    /// How the agent's parts and watches are doing.
    pub const STATUS: &str = "status.json";
    /// The agent's metrics.
    pub const METRICS: &str = "metrics.txt";
    /// The last lines of the agent's log.
    pub const LOG: &str = "log.txt";
}

/// What an agent tells of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Its version.
    pub version: String,
    /// What it explains by.
    pub facts: Facts,
    /// As its health checks say it.
    pub status: Value,
    /// As a collector gets them.
    pub metrics: String,
    /// Names of NetworkPolicies that nobody enforces.
    pub policies: Vec<String>,
}

/// What a bundle is of, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// Of the program that made it.
    pub version: String,
    /// Of the agent, where it answered.
    pub agent: Option<String>,
    /// When it was made.
    pub made: String,
    /// The node.
    pub node: String,
    /// The machine that it was made on.
    pub machine: Machine,
    /// From where the node was looked at.
    pub vantage: Vantage,
    /// Sizes of the parts in bytes, by name.
    pub parts: BTreeMap<String, u64>,
    /// Why parts are missing, by name.
    pub missing: BTreeMap<String, String>,
    /// What else should be known of it, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Version of its kernel.
    pub kernel: String,
    /// For which processors that is.
    pub architecture: String,
}

/// Parts by name, and what they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// What it is.
    pub manifest: Manifest,
    /// The parts.
    pub parts: BTreeMap<String, Vec<u8>>,
}
