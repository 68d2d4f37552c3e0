//! What network namespaces and addresses are called while somebody looks at packets for a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::time::{Instant, sleep_until};
use trace::Names;
use trace::namespaces::Found;

use super::pods::Pods;
use crate::logs::printable;

/// What they are called, also those that were there before.
pub struct Known {
    pods: Pods,
    names: Names,
    namespaces: Vec<Found>,
}

impl Known {
    /// Looks which there are.
    #[must_use]
    pub fn new(pods: Pods) -> Self {
        let namespaces = trace::namespaces::of_this_machine();
        let names = pods.names(&namespaces);
        Self {
            pods,
            names,
            namespaces,
        }
    }

    /// Looks again; what is gone keeps its name, unless somebody else has its number or address now.
    pub fn look_again(&mut self, configs: &[PathBuf]) {
        // What cannot be read any more has been read before.
        if let Ok(pods) = Pods::of_this_machine(configs) {
            self.pods = pods;
        }
        self.namespaces = trace::namespaces::of_this_machine();
        let Names { netns, pods } = self.pods.names(&self.namespaces);
        self.names.netns.extend(netns);
        self.names.pods.extend(pods);
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The names, and pods of elsewhere.
    #[must_use]
    pub fn names_with(&self, elsewhere: &BTreeMap<IpAddr, String>) -> Names {
        let mut names = self.names.clone();
        for (address, pod) in elsewhere {
            names.pods.entry(*address).or_insert_with(|| pod.clone());
        }
        names
    }

    /// The namespaces that are there.
    #[must_use]
    pub fn namespaces(&self) -> &[Found] {
        &self.namespaces
    }
}

/// Until then; for ever where there is no such time.
pub async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// A pod that may name its devices, or a file of `ip netns`, must not drive the terminal.
#[must_use]
pub fn safe(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}
