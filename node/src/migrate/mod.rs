//! `causeway migrate check`: the configuration of kube-proxy, flannel and CoreDNS as ours, and what becomes of each
//! setting.
//!
//! - [`source`] finds the configurations in files: as they are, or in ConfigMaps as kubectl prints them.
//! - [`kube_proxy`], [`flannel`] with [`flannel_args`], [`cni_conf`] and [`corefile`] say what becomes of each setting,
//!   most by a table of fields ([`fields`], of which each has its type, [`types`]); [`told`] has the words for it,
//!   [`draft`] what is put together.
//!
//! [`on_node`] looks at what these programs have on the node, and says what would become of it.
//!
//! What is printed is a configuration that the agent takes: it is read as the agent would, and what the agent would
//! refuse is told as not supported.

mod cni_conf;
mod corefile;
mod draft;
mod fields;
mod flannel;
mod flannel_args;
pub mod kinds;
mod kube_proxy;
pub mod on_node;
mod source;
#[cfg(test)]
mod tests;
mod told;
mod types;

use std::path::{Path, PathBuf};

use overlay::flannel::NetworkConfig;
use serde_json::{Map, Value, json};

use crate::config::{self, ConfigError};
use draft::Draft;
use kinds::Kind;
use on_node::Found;
pub use source::SourceError;
use source::{Content, Source};
use told::{Outcome, Told, Verdict};

/// What became of the configurations that were given.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Ours. None where the agent has no part in what they configure.
    config: Option<Map<String, Value>>,
    told: Vec<Told>,
}

/// Reads files; `from` says what they are where that is not seen.
///
/// # Errors
/// When one cannot be read, nothing in it is known or is what `from` says, or two are of one kind.
pub fn check(files: &[PathBuf], from: Option<Kind>) -> Result<Migration, SourceError> {
    let read: Result<Vec<_>, _> = files.iter().map(|file| source::read(file, from)).collect();
    let mut sources: Vec<Source> = read?.into_iter().flatten().collect();
    sources.sort_by_key(|source| source.content.kind());
    for pair in sources.windows(2) {
        let [first, second] = pair else { continue };
        if first.content.kind() == second.content.kind() {
            return Err(SourceError::Twice {
                kind: first.content.kind(),
                first: first.place.clone(),
                second: second.place.clone(),
            });
        }
    }
    Ok(migration(&sources))
}

fn migration(sources: &[Source]) -> Migration {
    let mut draft = Draft::default();
    for Source { content, .. } in sources {
        match content {
            Content::KubeProxy(document, kubeconfig) => {
                kube_proxy::translate(document, kubeconfig.as_ref(), &mut draft);
            }
            Content::Flannel(document, arguments) => {
                flannel::translate(document, arguments.as_deref(), &mut draft);
            }
            Content::Cni(document) => cni_conf::translate(document, &mut draft),
            Content::Corefile(text) => corefile::translate(text, &mut draft),
        }
    }
    let has = |kind| sources.iter().any(|source| source.content.kind() == kind);
    if !has(Kind::KubeProxy) {
        draft.set("proxy.datapath", json!("none"));
    }
    if !has(Kind::Flannel) {
        draft.unset("network");
    }
    tell_what_does_not_go_together(&mut draft);
    let (config, mut told) = draft.into_parts();
    let agents = has(Kind::KubeProxy) || has(Kind::Flannel);
    let config = agents.then_some(config);
    told.extend(config.iter().flat_map(refused));
    Migration { config, told }
}

/// kube-proxy's pods and flannel's are the same ones.
fn tell_what_does_not_go_together(draft: &mut Draft) {
    let Some(named) = draft.get("proxy.podNetworks").cloned() else {
        return;
    };
    let networks = ["Network", "IPv6Network"].into_iter();
    let carried: Vec<Value> = networks
        .filter_map(|name| draft.get(&format!("network.config.{name}")).cloned())
        .collect();
    let are_carried = |network: &Value| carried.contains(network);
    if !carried.is_empty() && !named.as_array().into_iter().flatten().all(are_carried) {
        let words = format!("flannel's networks are {}: one of both is wrong", json!(carried));
        draft.add("kube-proxy", "clusterCIDR", &named, &Verdict::differs(words));
    }
}

/// What the agent would say to it.
fn refused(config: &Map<String, Value>) -> Vec<Told> {
    let place = Path::new("the configuration");
    let problems = match config::parse(place, &yaml(config), None) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid { problems, .. }) => problems,
        Err(error) => vec![error.to_string()],
    };
    let told = |problem| Verdict::not_supported(problem).told("causeway", "(as a whole)", &Value::Null);
    problems.into_iter().map(told).collect()
}

fn yaml(config: &Map<String, Value>) -> String {
    serde_yaml_ng::to_string(config).expect("invariant: every key is a string")
}

impl Migration {
    /// Tells of what is on this node, too.
    pub fn look_at(&mut self, found: &Found) {
        let network = self.config.as_ref().and_then(|config| config.get("network"));
        let network = network.and_then(|network| NetworkConfig::parse(&network["config"].to_string()).ok());
        self.told.extend(found.judged(network.as_ref()));
    }

    /// Whether something that was served would not be.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.told.iter().any(|told| told.outcome == Outcome::NotSupported)
    }

    /// The configuration, for standard output.
    #[must_use]
    pub fn config(&self) -> String {
        self.config.as_ref().map(yaml).unwrap_or_default()
    }

    /// A line for each setting.
    #[must_use]
    pub fn lines(&self) -> String {
        told::lines(&self.told)
    }

    /// Both for programs.
    #[must_use]
    pub fn json(&self) -> String {
        format!("{:#}\n", json!({"config": self.config, "settings": self.told}))
    }
}
