//! The pods of this machine, as its agents have written them down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use model::{NodeName, ObjectName};
use overlay::pods::wiring;
use trace::Names;
use trace::namespaces::Found;

use super::agents::{Agents, NotLocated};
use crate::ask;

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
    /// Inode number of its network namespace; none where that is gone, or not to be seen from here.
    pub netns: Option<u32>,
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
            let root = ask::process_of(directory).map(|process| format!("/proc/{process}/root"));
            for assigned in recorded {
                let record = Record {
                    netns: netns_at(root.as_deref(), &assigned.netns),
                    node: agent.node.clone(),
                    device: wiring::host_ifname(&assigned),
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
            self.has_namespace(namespace),
            "no pod of namespace {namespace} on this machine's nodes"
        );
        Ok(())
    }

    /// Whether a book has a pod of a namespace.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.by_name.keys().any(|name| name.namespace == namespace)
    }

    /// Whether there is an agent that may know something.
    ///
    /// # Errors
    /// When there is none.
    pub fn need_agent(&self, what: &str) -> anyhow::Result<()> {
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

    /// The network namespaces of pods, among these, by their addresses. Somebody else of this machine may have an address
    /// too: another cluster, or containers of another engine. Left out: pods whose namespace is not known, and addresses
    /// that pods of several books have.
    #[must_use]
    pub fn homes(&self, namespaces: &[Found]) -> BTreeMap<IpAddr, u32> {
        let mut homes: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (_, record) in self.records() {
            let is_there = |netns: &u32| {
                let mut found = namespaces.iter().filter(|found| found.inode == *netns);
                // Of a container that ended, the namespace may be another's by now.
                found.any(|found| record.addresses.iter().any(|own| found.addresses.contains(own)))
            };
            for address in &record.addresses {
                let known = homes.entry(*address).or_default();
                known.extend(record.netns.filter(is_there));
            }
        }
        let only = |netns: BTreeSet<u32>| netns.first().copied().filter(|_| netns.len() == 1);
        let homes = homes.into_iter();
        homes
            .filter_map(|(address, netns)| Some((address, only(netns)?)))
            .collect()
    }

    /// What network namespaces are called: by the pods whose addresses they have, else as `ip netns` calls them; and whose
    /// addresses are.
    #[must_use]
    pub fn names(&self, namespaces: &[Found]) -> Names {
        let mut names = Names::of_this_machine();
        let homes = self.homes(namespaces);
        for found in namespaces {
            names.entering.insert(found.inode, found.entering.clone());
            let is_its = |address: &&IpAddr| homes.get(*address).is_none_or(|home| *home == found.inode);
            let mut addresses = found.addresses.iter().filter(is_its);
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

/// The namespace at a path as an agent wrote it down, which may see other files: in its root, else in our own.
fn netns_at(root: Option<&str>, path: &str) -> Option<u32> {
    let inode = |path: String| trace::places::inode(Path::new(&path));
    let in_root = root.and_then(|root| inode(format!("{root}{path}")));
    in_root.or_else(|| inode(path.to_owned()))
}

#[cfg(test)]
impl Pods {
    /// The same, where the namespace of the pod with that name is known.
    pub fn at_home(mut self, name: &str, netns: u32) -> Self {
        let (namespace, name) = name.split_once('/').expect("a namespace");
        let records = self.by_name.get_mut(&ObjectName::new(namespace, name));
        for record in records.into_iter().flatten() {
            record.netns = Some(netns);
        }
        self
    }

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
                netns: None,
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
    fn of_several_namespaces_with_a_pods_address_the_pods_own_bears_its_name() {
        let found = |inode, address: &str| Found {
            inode,
            namespace: netlink::Namespace::open("/proc/self/ns/net").expect("the own one"),
            addresses: vec![address.parse().expect("an address")],
            entering: format!("nsenter -t {inode} -n"),
            path: "/proc/self/ns/net".into(),
        };
        let pods = || {
            Pods::of(&[
                ("shop/web", "node-1", "10.244.1.3"),
                ("shop/db", "node-1", "10.244.1.4"),
            ])
        };
        let namespaces = [
            found(7, "10.244.1.3"),
            found(8, "10.244.1.3"),
            found(9, "10.244.1.4"),
        ];
        let named = |pods: &Pods| {
            let names = pods.names(&namespaces);
            [7, 8, 9].map(|inode| names.of_netns(inode))
        };
        let [web, db] = ["pod/shop/web".to_owned(), "pod/shop/db".to_owned()];
        assert_eq!(
            named(&pods()),
            [web.clone(), web.clone(), db.clone()],
            "nobody knows which of the two"
        );
        let at_home = pods().at_home("shop/web", 8);
        assert_eq!(named(&at_home), ["netns:7".to_owned(), web, db]);
        let address = "10.244.1.3".parse().expect("an address");
        assert_eq!(at_home.homes(&namespaces), [(address, 8)].into());
        // It is gone, or another's.
        assert!(pods().at_home("shop/web", 6).homes(&namespaces).is_empty());
        assert!(pods().at_home("shop/web", 9).homes(&namespaces).is_empty());
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
