//! The pods of this machine, as its agents have written them down.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use model::ObjectName;
use trace::Names;
use trace::namespaces::Found;

use crate::cli::NODE_CONFIG;
use crate::config;

/// Names that are told when one is not there, at the most.
const TOLD: usize = 10;

/// The configurations that are meant: these, or the usual one, if there is one.
#[must_use]
pub fn agents(configs: &[PathBuf]) -> Vec<PathBuf> {
    let usual = Path::new(NODE_CONFIG);
    if configs.is_empty() && usual.exists() {
        vec![usual.to_owned()]
    } else {
        configs.to_vec()
    }
}

/// Pods by name, with their addresses.
#[derive(Debug, Default)]
pub struct Pods {
    by_name: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// Whether an agent was asked at all.
    has_agent: bool,
}

impl Pods {
    /// Reads what the agents with these configurations wrote. Without one, that with the usual configuration, if there is
    /// one.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(configs: &[PathBuf]) -> anyhow::Result<Self> {
        let configs = agents(configs);
        let mut pods = Self {
            by_name: BTreeMap::new(),
            has_agent: !configs.is_empty(),
        };
        for path in &configs {
            let config = config::load(path, None)?;
            let directory = &config.state_dir;
            let recorded = overlay::pods::recorded(directory)
                .with_context(|| format!("read the pods in {}", directory.display()))?;
            for assigned in recorded {
                let addresses = assigned.addresses().values().copied().collect();
                pods.by_name.extend(assigned.pod.map(|name| (name, addresses)));
            }
        }
        Ok(pods)
    }

    /// A pod's addresses.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn addresses(&self, name: &ObjectName) -> anyhow::Result<Vec<IpAddr>> {
        if let Some(addresses) = self.by_name.get(name) {
            return Ok(addresses.clone());
        }
        self.need_agent(&format!("pod {name}"))?;
        // Those of the same name first.
        let mut others: Vec<&ObjectName> = self.by_name.keys().collect();
        others.sort_by_key(|other| (other.name != name.name, *other));
        let told: Vec<String> = others
            .iter()
            .take(TOLD)
            .map(|other| format!("pod/{other}"))
            .collect();
        match told.is_empty() {
            true => bail!("no pod {name} on this machine's nodes: there is none at all"),
            false => bail!(
                "no pod {name} on this machine's nodes; there are {}",
                told.join(", ")
            ),
        }
    }

    /// Whether a namespace has pods.
    ///
    /// # Errors
    /// When it has none.
    pub fn of_namespace(&self, namespace: &str) -> anyhow::Result<()> {
        self.need_agent(&format!("namespace {namespace}"))?;
        ensure!(
            self.by_name.keys().any(|name| name.namespace == namespace),
            "no pod of namespace {namespace} on this machine's nodes"
        );
        Ok(())
    }

    fn need_agent(&self, what: &str) -> anyhow::Result<()> {
        ensure!(
            self.has_agent,
            "{what} is not known: there is no {NODE_CONFIG}; name an agent's configuration by --config"
        );
        Ok(())
    }

    /// What network namespaces are called: by the pods whose addresses they have, else as `ip netns` calls them; and whose
    /// addresses are.
    #[must_use]
    pub fn names(&self, namespaces: &[Found]) -> Names {
        let mut names = Names::of_this_machine();
        let by_address: BTreeMap<IpAddr, &ObjectName> = self
            .by_name
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |address| (*address, name)))
            .collect();
        for found in namespaces {
            let pod = found.addresses.iter().find_map(|address| by_address.get(address));
            if let Some(pod) = pod {
                names.netns.insert(found.inode, format!("pod/{pod}"));
            }
        }
        names.pods = by_address
            .into_iter()
            .map(|(address, pod)| (address, format!("pod/{pod}")))
            .collect();
        names
    }
}

#[cfg(test)]
impl Pods {
    /// These, each with an address.
    pub fn of(pods: impl IntoIterator<Item = (ObjectName, &'static str)>) -> Self {
        let pods = pods
            .into_iter()
            .map(|(name, address)| (name, vec![address.parse().expect("an address")]));
        Self {
            by_name: pods.collect(),
            has_agent: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_not_there_is_told_with_those_that_are_the_same_name_first() {
        let address: IpAddr = "10.244.1.2".parse().expect("an address");
        let pods = Pods {
            by_name: [ObjectName::new("a", "b"), ObjectName::new("shop", "web")]
                .map(|name| (name, vec![address]))
                .into(),
            has_agent: true,
        };
        assert_eq!(
            pods.addresses(&ObjectName::new("a", "b")).expect("there"),
            [address]
        );
        let error = pods
            .addresses(&ObjectName::new("default", "web"))
            .expect_err("not there");
        assert_eq!(
            error.to_string(),
            "no pod default/web on this machine's nodes; there are pod/shop/web, pod/a/b"
        );
        let error = Pods::default()
            .addresses(&ObjectName::new("a", "b"))
            .expect_err("not there");
        assert!(error.to_string().contains("--config"), "{error}");
    }
}
