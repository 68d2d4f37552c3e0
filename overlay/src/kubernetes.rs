//! Leases in Node objects, as flannel's kube subnet manager keeps them: the subnets are `spec.podCIDRs`, given out by
//! the cluster's own controller, and annotations say how a node is reached. Nodes of both kinds share a network.
//!
//! The objects are read and written by whoever has the API; here is what they mean. All is planned from the newest
//! snapshot, so nothing depends on having seen a change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::lease::Site;
use model::{ByFamily, IpFamily, Kind, Node, Snapshot, with_causes};
use tokio::sync::watch;

use crate::config::{Announcement, Nodes};
use crate::engine::Network;
use crate::error::Error;
use crate::flannel::{NetworkConfig, Record, annotations};
use crate::followed::{Followed, publish, remembered, tell};
use crate::memory::{Entry, Memory};
use crate::own::OwnNode;
use crate::pool::is_within;

/// What cannot be done yet is tried again so often; a change of the Nodes is looked at, at once.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Follower {
    own: OwnNode,
    nodes: Nodes,
    /// The network's configuration, which is nowhere in the API.
    network: Option<serde_json::Value>,
    memory_dir: PathBuf,
    memory: Memory,
    published: watch::Sender<Followed>,
}

impl Follower {
    /// Starts from what was remembered, and publishes it at once where it is enough to serve.
    pub(crate) fn new(
        own: OwnNode,
        nodes: Nodes,
        network: Option<serde_json::Value>,
        memory_dir: PathBuf,
        published: watch::Sender<Followed>,
    ) -> Self {
        let memory = Memory::load(&memory_dir);
        if let Some(followed) = remembered(&memory, &own, "the API server") {
            publish(&published, followed);
        }
        Self {
            own,
            nodes,
            network,
            memory_dir,
            memory,
            published,
        }
    }

    /// Follows until cancelled, or nobody tells of Nodes any more.
    pub(crate) async fn run(mut self) {
        loop {
            let snapshot = self.nodes.snapshots.borrow_and_update().clone();
            let followed = self.look(&snapshot).await;
            if let Err(error) = &followed {
                tell(&self.published, error);
            }
            let changed = self.nodes.snapshots.changed();
            let changed = match followed {
                Ok(()) => changed.await,
                Err(_) => tokio::time::timeout(RETRY, changed).await.unwrap_or(Ok(())),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn look(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), Error> {
        let (text, network) = self.network()?;
        if !snapshot.is_synced(Kind::Node) {
            return Err(Error::NodesUnknown);
        }
        let node = snapshot
            .nodes
            .get(&self.own.name)
            .ok_or_else(|| Error::NoNode(self.own.name.clone()))?;
        let subnets = own_subnets(&network, node)?;
        let claim = self.own.claim(&network, &self.before(node, &subnets)).await?;
        let own = Record::new(claim.lease(&subnets), self.own.name.clone());
        let (others, mut problems) = others(snapshot, &network, node);
        match annotations::write(&own.lease, &node.flannel) {
            Ok(announced) => self.announce(announced),
            Err(error) => problems.push(format!("annotations of Node {}: {error}", node.name)),
        }
        // A disk that takes nothing must not keep this node from the others.
        if let Err(error) = self.remember(text, &own, &others) {
            problems.push(with_causes(&error));
        }
        if self
            .published
            .borrow()
            .network
            .as_ref()
            .is_none_or(|network| !network.complete)
        {
            tracing::info!(lease = %own.lease, others = others.len(), "following Nodes");
        }
        let network = Network {
            config: network,
            own: own.lease,
            others: others.into_iter().map(|record| record.lease).collect(),
            complete: true,
        };
        publish(&self.published, Followed::complete(network, problems));
        Ok(())
    }

    fn announce(&self, announced: Announcement) {
        self.nodes.announced.send_if_modified(|told| {
            let changed = told.as_ref() != Some(&announced);
            *told = Some(announced);
            changed
        });
    }

    fn network(&self) -> Result<(String, NetworkConfig), Error> {
        let key = || "network.config".to_owned();
        let text = self.network.as_ref().map(ToString::to_string);
        let text = text.ok_or_else(|| Error::NoNetwork { key: key() })?;
        let network =
            NetworkConfig::parse(&text).map_err(|source| Error::BadNetwork { key: key(), source })?;
        Ok((text, network))
    }

    /// What this node had: by its own memory, else as its object says.
    fn before(&self, node: &Node, subnets: &ByFamily<IpNetwork>) -> ByFamily<Site> {
        let remembered = self.memory.own.as_ref().and_then(Entry::record);
        let annotated = || annotations::read(&node.flannel, subnets).ok().flatten();
        let record = remembered.or_else(annotated);
        record.map(|record| record.lease.sites).unwrap_or_default()
    }

    fn remember(&mut self, network: String, own: &Record, others: &[Record]) -> Result<(), Error> {
        let next = Memory {
            network: Some(network),
            own: Some(Entry::new(own)),
            others: others.iter().map(Entry::new).collect(),
            ..Memory::default()
        };
        if next == self.memory {
            return Ok(());
        }
        next.save(&self.memory_dir)?;
        self.memory = next;
        Ok(())
    }
}

/// The subnets of this node, one for each version of IP that the network has.
fn own_subnets(network: &NetworkConfig, node: &Node) -> Result<ByFamily<IpNetwork>, Error> {
    let given = subnets_of(network, node);
    network.pools.try_map(|family, pool| {
        let subnet = given.get(family).ok_or_else(|| Error::NoPodCidr {
            node: node.name.clone(),
            family,
        })?;
        if is_within(*subnet, pool.network) {
            Ok(*subnet)
        } else {
            Err(Error::ForeignPodCidr {
                node: node.name.clone(),
                subnet: *subnet,
                network: pool.network,
            })
        }
    })
}

/// The first pod CIDR of each version of IP that the network has.
fn subnets_of(network: &NetworkConfig, node: &Node) -> ByFamily<IpNetwork> {
    let first = |family| {
        let mut of_family = node
            .pod_cidrs
            .iter()
            .filter(move |cidr| IpFamily::from(cidr.ip()) == family);
        of_family.next().copied()
    };
    let subnets = network
        .pools
        .iter()
        .filter_map(|(family, _)| Some((family, first(family)?)));
    subnets.collect()
}

/// The other nodes' leases, in the order of their names, and what is wrong with those that have none.
fn others(snapshot: &Snapshot, network: &NetworkConfig, own: &Node) -> (Vec<Record>, Vec<String>) {
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    let nodes = snapshot.nodes.iter().map(|(_, node)| node);
    for node in nodes.filter(|node| node.name != own.name) {
        let subnets = subnets_of(network, node);
        if subnets.is_empty() {
            continue;
        }
        match annotations::read(&node.flannel, &subnets) {
            Ok(record) => records.extend(record),
            Err(error) => problems.push(format!("annotations of Node {}: {error}", node.name)),
        }
    }
    (records, problems)
}

#[cfg(test)]
mod tests {
    use model::{Change, Text};

    use super::*;

    fn config(json: serde_json::Value) -> NetworkConfig {
        NetworkConfig::parse(&json.to_string()).expect("valid")
    }

    fn node(name: &str, cidrs: &[&str], public_ip: Option<&str>) -> Node {
        let annotations = public_ip.map(|public_ip| {
            [
                ("kube-subnet-manager", "true"),
                ("backend-type", "host-gw"),
                ("backend-data", "null"),
                ("public-ip", public_ip),
            ]
            .map(|(name, value)| (Text::from(name), Text::from(value)))
        });
        Node {
            pod_cidrs: cidrs
                .iter()
                .map(|cidr| cidr.parse().expect("a network"))
                .collect(),
            flannel: annotations.into_iter().flatten().collect(),
            ..Node::new(name)
        }
    }

    #[test]
    fn a_nodes_subnets_are_its_pod_cidrs_of_the_networks_versions() {
        let v4 = config(serde_json::json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}));
        let dual = config(serde_json::json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/56",
            "Backend": {"Type": "vxlan"},
        }));
        let rows: [(&NetworkConfig, &[&str], &str); 7] = [
            (&v4, &["10.244.3.0/24"], "10.244.3.0/24"),
            (&v4, &["10.244.3.0/24", "fd00:244:0:3::/64"], "10.244.3.0/24"),
            (
                &dual,
                &["fd00:244:0:3::/64", "10.244.3.0/24"],
                "10.244.3.0/24 fd00:244:0:3::/64",
            ),
            (&dual, &["10.244.3.0/24"], "Node node-1 has no IPv6 podCIDR"),
            (&v4, &[], "Node node-1 has no IPv4 podCIDR"),
            (&v4, &["10.245.3.0/24"], "podCIDR 10.245.3.0/24 of Node node-1"),
            (&v4, &["10.0.0.0/8"], "podCIDR 10.0.0.0/8 of Node node-1"),
        ];
        for (network, cidrs, expected) in rows {
            let found = match own_subnets(network, &node("node-1", cidrs, None)) {
                Ok(subnets) => subnets
                    .values()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
                Err(error) => error.to_string(),
            };
            assert!(found.starts_with(expected), "{cidrs:?}: {found}");
        }
    }

    #[test]
    fn the_others_are_those_that_take_part_and_a_liar_is_told_alone() {
        let network = config(serde_json::json!({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}));
        let own = node("node-1", &["10.244.1.0/24"], Some("192.0.2.1"));
        let mut snapshot = Snapshot::default();
        let nodes = [
            own.clone(),
            node("node-2", &["10.244.2.0/24"], Some("192.0.2.2")),
            node("without-flannel", &["10.244.3.0/24"], None),
            node("without-cidr", &[], Some("192.0.2.4")),
            node("liar", &["10.244.5.0/24"], Some("elsewhere")),
        ];
        for node in nodes {
            snapshot.apply(Change::Node(node));
        }
        let (records, problems) = others(&snapshot, &network, &own);
        let leases: Vec<_> = records.iter().map(|record| record.lease.to_string()).collect();
        assert_eq!(leases, ["10.244.2.0/24"]);
        assert_eq!(
            problems,
            [r#"annotations of Node liar: PublicIP: "elsewhere" is not an address"#]
        );
    }
}
