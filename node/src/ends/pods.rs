//! The pods of this machine, as its agents have written them down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use model::{NodeName, ObjectName};
use overlay::pods::wiring;
use trace::Names;
use trace::namespaces::Found;

use super::agents::{Agents, NotLocated};

/// Names that are told when one is not there, at the most.
const TOLD: usize = 10;

/// A pod's interface, by an agent's book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The node whose agent connected it.
    pub node: NodeName,
    /// Its device on the node's side.
    pub device: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// Pods by name. A name may be in several books, and in one several times: of a container that ended and one in its place.
#[derive(Debug, Default)]
pub struct Pods {
    by_name: BTreeMap<ObjectName, Vec<Record>>,
    /// Whether there is an agent that could have connected any.
    has_agent: bool,
}

impl Pods {
    /// Reads what the agents wrote.
    ///
    /// # Errors
    /// When a book cannot be read.
    pub fn read(agents: &Agents) -> anyhow::Result<Self> {
        let mut pods = Self {
            by_name: BTreeMap::new(),
            has_agent: agents.iter().next().is_some(),
        };
        for agent in agents.iter() {
            let directory = &agent.state_dir;
            let recorded = overlay::pods::recorded(directory)
                .with_context(|| format!("read the pods in {}", directory.display()))?;
            for assigned in recorded {
                let record = Record {
                    node: agent.node.clone(),
                    device: wiring::host_ifname(&assigned.key),
                    addresses: assigned.addresses().values().copied().collect(),
                };
                if let Some(name) = assigned.pod {
                    pods.by_name.entry(name).or_default().push(record);
                }
            }
        }
        Ok(pods)
    }

    /// A pod's addresses; none where no book has it.
    ///
    /// # Errors
    /// When several that have other addresses bear the name.
    pub fn addresses(&self, name: &ObjectName) -> anyhow::Result<Option<Vec<IpAddr>>> {
        let Some(records) = self.by_name.get(name) else {
            return Ok(None);
        };
        let different: BTreeSet<_> = records.iter().map(|record| &record.addresses).collect();
        let [addresses] = different.iter().collect::<Vec<_>>()[..] else {
            let candidate = |record: &Record| {
                let addresses: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
                format!("{} of node {}", addresses.join(" and "), record.node)
            };
            let candidates: Vec<String> = records.iter().map(candidate).collect();
            bail!("pod/{name} may be {}: give an address", candidates.join(", or "));
        };
        Ok(Some(addresses.iter().copied().collect()))
    }

    /// Whether a namespace has pods.
    ///
    /// # Errors
    /// When no book has one.
    pub fn need_namespace(&self, namespace: &str) -> anyhow::Result<()> {
        self.need_agent(&format!("namespace {namespace}"))?;
        ensure!(
            self.by_name.keys().any(|name| name.namespace == namespace),
            "no pod of namespace {namespace} on this machine's nodes"
        );
        Ok(())
    }

    fn need_agent(&self, what: &str) -> anyhow::Result<()> {
        ensure!(self.has_agent, "{what} is not known: {}", NotLocated::NoAgent);
        Ok(())
    }

    /// What to say of a pod that neither the books nor the agents know.
    pub fn unknown(&self, name: &ObjectName, why: &NotLocated) -> String {
        let there = self.others(name);
        match why {
            NotLocated::NoAgent if self.by_name.is_empty() => format!("pod/{name}: {why}"),
            why => format!(
                "no agent of this machine has connected a pod {name}, and none knows it as an endpoint of a Service; give \
                 its address ({there}; {why})"
            ),
        }
    }

    /// Which pods there are, where one is not.
    fn others(&self, name: &ObjectName) -> String {
        // Those of the same name first.
        let mut others: Vec<&ObjectName> = self.by_name.keys().collect();
        others.sort_by_key(|other| (other.name != name.name, *other));
        let told: Vec<String> = others
            .iter()
            .take(TOLD)
            .map(|other| format!("pod/{other}"))
            .collect();
        match told.as_slice() {
            [] => "there are none".to_owned(),
            told => format!("there are {}", told.join(", ")),
        }
    }

    /// The pod that has an address.
    pub fn with_address(&self, address: IpAddr) -> Option<(&ObjectName, &Record)> {
        self.records()
            .find(|(_, record)| record.addresses.contains(&address))
    }

    /// The node of the pod that has one of these addresses.
    pub fn node_of(&self, addresses: &[IpAddr]) -> Option<&NodeName> {
        let mut addresses = addresses.iter();
        addresses.find_map(|address| Some(&self.with_address(*address)?.1.node))
    }

    /// The pod behind a device of its node.
    pub fn behind(&self, device: &str) -> Option<(&ObjectName, &Record)> {
        self.records().find(|(_, record)| record.device == device)
    }

    fn records(&self) -> impl Iterator<Item = (&ObjectName, &Record)> {
        let records = self.by_name.iter();
        records.flat_map(|(name, records)| records.iter().map(move |record| (name, record)))
    }

    /// What network namespaces are called: by the pods whose addresses they have, else as `ip netns` calls them; and whose
    /// addresses are.
    #[must_use]
    pub fn names(&self, namespaces: &[Found]) -> Names {
        let mut names = Names::of_this_machine();
        for found in namespaces {
            let mut addresses = found.addresses.iter();
            if let Some((pod, _)) = addresses.find_map(|address| self.with_address(*address)) {
                names.netns.insert(found.inode, format!("pod/{pod}"));
            }
        }
        let addresses = self.records().flat_map(|(name, record)| {
            let addresses = record.addresses.iter();
            addresses.map(move |address| (*address, format!("pod/{name}")))
        });
        names.pods = addresses.collect();
        names
    }
}

#[cfg(test)]
impl Pods {
    /// These pods, each of a node and with an address.
    pub fn of(pods: &[(&str, &str, &str)]) -> Self {
        let mut all = Self {
            by_name: BTreeMap::new(),
            has_agent: true,
        };
        for (name, node, address) in pods {
            let (namespace, name) = name.split_once('/').expect("a namespace");
            let record = Record {
                node: (*node).into(),
                device: format!("cw-{name}"),
                addresses: [address.parse().expect("an address")].into(),
            };
            all.by_name
                .entry(ObjectName::new(namespace, name))
                .or_default()
                .push(record);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_and_one_that_several_books_have_is_told_with_all_of_them() {
        let pods = Pods::of(&[
            ("a/b", "node-1", "10.244.1.2"),
            ("shop/web", "node-1", "10.244.1.3"),
            ("shop/web", "node-2", "10.244.2.3"),
            ("shop/twice", "node-1", "10.244.1.4"),
            ("shop/twice", "node-1", "10.244.1.4"),
        ]);
        let addresses = |namespace, name| {
            let found = pods.addresses(&ObjectName::new(namespace, name));
            found.map(|found| {
                found
                    .unwrap_or_default()
                    .iter()
                    .map(IpAddr::to_string)
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(addresses("a", "b").expect("one"), ["10.244.1.2"]);
        assert_eq!(addresses("shop", "twice").expect("one"), ["10.244.1.4"]);
        assert_eq!(addresses("shop", "gone").expect("none"), Vec::<String>::new());
        assert_eq!(
            addresses("shop", "web").expect_err("two").to_string(),
            "pod/shop/web may be 10.244.1.3 of node node-1, or 10.244.2.3 of node node-2: give an address"
        );
    }

    #[test]
    fn a_pod_that_is_not_there_is_told_with_those_that_are_the_same_name_first() {
        let pods = Pods::of(&[
            ("a/b", "node-1", "10.244.1.2"),
            ("shop/web", "node-1", "10.244.1.3"),
        ]);
        let name = ObjectName::new("default", "web");
        let said = NotLocated::Unknown("there is no pod default/web".to_owned());
        assert_eq!(
            pods.unknown(&name, &said),
            "no agent of this machine has connected a pod default/web, and none knows it as an endpoint of a Service; give \
             its address (there are pod/shop/web, pod/a/b; there is no pod default/web)"
        );
        let nobody = Pods::default().unknown(&name, &NotLocated::NoAgent);
        assert!(nobody.contains("--config"), "{nobody}");
    }
}
