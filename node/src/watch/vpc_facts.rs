//! What the manager of a VPC's addresses asks of the cluster: this node's own object and, under custom networking, the
//! ENIConfigs (`crd.k8s.amazonaws.com/v1alpha1`).
//!
//! Both are kept beside the snapshot: no data plane needs them, and of other nodes nobody does. What was read stays
//! known while the API server does not answer.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use model::{NodeName, with_causes};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;
use vpc_eni::ec2::{SecurityGroupId, SubnetId};
use vpc_eni::home::{EniConfig, Facts, NamedBy, NoEniConfig};
use vpc_eni::settings::CustomNetworking;

use super::client::{ApiSource, ConnectError, Connection};
use crate::backoff::Backoff;

/// Delays before what failed is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The label by which somebody else than the user names a node's ENIConfig, before all others (amazon-vpc-cni-k8s,
/// pkg/eniconfig).
const EXTERNAL: &str = "vpc.amazonaws.com/externalEniConfig";

/// The ENIConfig of nodes that name none (likewise).
const DEFAULT: &str = "default";

/// What of the cluster is asked, and where it is told.
#[derive(Clone, Debug)]
pub struct VpcFacts {
    /// This node.
    pub node: NodeName,
    /// How many pods the kubelet takes, where the configuration says so.
    pub max_pods: Option<u32>,
    /// Where an ENIConfig is named. Without, none is asked for.
    pub custom_networking: Option<CustomNetworking>,
    /// Where it is told.
    pub facts: watch::Sender<Facts>,
}

/// Why a kind is not watched.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("connect for {0}")]
    Connect(Kind, #[source] ConnectError),
    #[error("watch {0}")]
    Watch(Kind, #[source] watcher::Error),
    #[error("the watch of {0} ended")]
    Ended(Kind),
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OwnNode,
    EniConfigs,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OwnNode => "this node's Node",
            Self::EniConfigs => "ENIConfigs",
        })
    }
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Self::OwnNode => {
                ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Node"), "nodes")
            }
            Self::EniConfigs => {
                let kind = GroupVersionKind::gvk("crd.k8s.amazonaws.com", "v1alpha1", "ENIConfig");
                ApiResource::from_gvk_with_plural(&kind, "eniconfigs")
            }
        }
    }
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Objects {
    /// By name, once a list was complete.
    known: Option<BTreeMap<String, DynamicObject>>,
    /// What the list that began has so far.
    listed: BTreeMap<String, DynamicObject>,
    /// Why they may be out of date.
    trouble: Option<String>,
}

impl Objects {
    fn take(&mut self, event: Event<DynamicObject>) {
        let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
        // That a list begins says nothing yet: nobody was asked.
        if !matches!(event, Event::Init) {
            self.trouble = None;
        }
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(name(&object), object);
            }
            Event::InitDone => self.known = Some(std::mem::take(&mut self.listed)),
            Event::Apply(object) => {
                self.known.get_or_insert_default().insert(name(&object), object);
            }
            Event::Delete(object) => {
                self.known.get_or_insert_default().remove(&name(&object));
            }
        }
    }
}

/// All that is known.
#[derive(Debug, Default)]
struct Known {
    nodes: Objects,
    eni_configs: Objects,
}

impl Known {
    fn objects(&mut self, kind: Kind) -> &mut Objects {
        match kind {
            Kind::OwnNode => &mut self.nodes,
            Kind::EniConfigs => &mut self.eni_configs,
        }
    }

    /// How the watches stand: none, as long as something is waited for.
    fn outcome(&self, asks_for_eni_configs: bool) -> Option<Result<(), &str>> {
        let kinds = [&self.nodes, &self.eni_configs];
        let kinds = &kinds[..1 + usize::from(asks_for_eni_configs)];
        if let Some(trouble) = kinds.iter().find_map(|kind| kind.trouble.as_deref()) {
            return Some(Err(trouble));
        }
        kinds.iter().all(|kind| kind.known.is_some()).then_some(Ok(()))
    }
}

impl VpcFacts {
    /// Asks until cancelled; `told` hears how that goes.
    pub async fn keep(self, source: &ApiSource, told: impl Fn(Result<(), &str>)) {
        let known = Mutex::new(Known::default());
        let change = |change: &dyn Fn(&mut Known)| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut known);
            let facts = self.facts(&known);
            self.facts.send_if_modified(|before| {
                let differs = *before != facts;
                *before = facts;
                differs
            });
            if let Some(outcome) = known.outcome(self.custom_networking.is_some()) {
                told(outcome);
            }
        };
        let eni_configs = async {
            if self.custom_networking.is_some() {
                follow(Kind::EniConfigs, watcher::Config::default(), source, &change).await;
            }
        };
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.node));
        tokio::join!(follow(Kind::OwnNode, only, source, &change), eni_configs);
    }

    fn facts(&self, known: &Known) -> Facts {
        let Some(nodes) = &known.nodes.known else {
            return Facts::unread(self.max_pods);
        };
        let own = nodes.get(&*self.node.0);
        let says = |path: &str| own.and_then(|own| own.data.pointer(path));
        Facts {
            max_pods: self.max_pods.or_else(|| {
                says("/status/allocatable/pods").and_then(|quantity| match quantity {
                    Value::String(text) => pods(text),
                    number => pods(&number.to_string()),
                })
            }),
            is_schedulable: says("/spec/unschedulable") != Some(&Value::Bool(true)),
            eni_config: self.eni_config(own, known.eni_configs.known.as_ref()),
        }
    }

    fn eni_config(
        &self,
        own: Option<&DynamicObject>,
        eni_configs: Option<&BTreeMap<String, DynamicObject>>,
    ) -> Result<EniConfig, NoEniConfig> {
        let (Some(keys), Some(eni_configs)) = (&self.custom_networking, eni_configs) else {
            return Err(NoEniConfig::Unread);
        };
        let own = own.ok_or_else(|| NoEniConfig::NoNode(self.node.to_string()))?;
        let (name, named_by) = named(own, keys);
        match eni_configs.get(&name) {
            Some(object) => converted(name, object),
            None => Err(NoEniConfig::Missing { name, named_by }),
        }
    }
}

/// Watches one kind, and begins again whatever ends it.
async fn follow(
    kind: Kind,
    config: watcher::Config,
    source: &ApiSource,
    change: &impl Fn(&dyn Fn(&mut Known)),
) {
    let mut connection = Connection::to(source);
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let error = match connection.client().await {
            Ok(client) => {
                let api = Api::<DynamicObject>::all_with(client, &kind.resource());
                let mut events = pin!(watcher(api, config.clone()));
                loop {
                    match events.next().await {
                        Some(Ok(event)) => {
                            // A list that begins says nothing yet of how the server is.
                            if !matches!(event, Event::Init) {
                                backoff.reset();
                            }
                            change(&|known| known.objects(kind).take(event.clone()));
                        }
                        Some(Err(error)) => break WatchError::Watch(kind, error),
                        None => break WatchError::Ended(kind),
                    }
                }
            }
            Err(error) => WatchError::Connect(kind, error),
        };
        let trouble = with_causes(&error);
        change(&|known| known.objects(kind).trouble = Some(trouble.clone()));
        sleep(connection.failed(&mut backoff)).await;
    }
}

/// The name of the ENIConfig that a Node names, and how.
fn named(node: &DynamicObject, keys: &CustomNetworking) -> (String, NamedBy) {
    let label = |key: &str| {
        let value = node.metadata.labels.as_ref()?.get(key)?;
        Some((value.clone(), NamedBy::Label(key.to_owned())))
    };
    let annotation = |key: &str| {
        let value = node.metadata.annotations.as_ref()?.get(key)?;
        Some((value.clone(), NamedBy::Annotation(key.to_owned())))
    };
    label(EXTERNAL)
        .or_else(|| annotation(&keys.annotation))
        .or_else(|| label(&keys.label))
        .unwrap_or_else(|| (DEFAULT.to_owned(), NamedBy::Nobody(keys.label.clone())))
}

fn converted(name: String, object: &DynamicObject) -> Result<EniConfig, NoEniConfig> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        subnet: String,
        security_groups: Option<Vec<String>>,
    }
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    let spec = match Spec::deserialize(spec) {
        Ok(spec) if spec.subnet.starts_with("subnet-") => spec,
        Ok(spec) => {
            let why = format!("spec.subnet: {:?} is no subnet's id", spec.subnet);
            return Err(NoEniConfig::Unusable { name, why });
        }
        Err(error) => {
            let why = format!("spec: {error}");
            return Err(NoEniConfig::Unusable { name, why });
        }
    };
    let groups = spec.security_groups.unwrap_or_default().into_iter();
    Ok(EniConfig {
        name,
        subnet: SubnetId(spec.subnet),
        groups: groups.map(SecurityGroupId).collect(),
    })
}

/// A count of pods as the API server writes it: `110`, and `2k` for 2000.
pub(super) fn pods(text: &str) -> Option<u32> {
    match text.strip_suffix('k') {
        Some(thousands) => thousands.parse::<u32>().ok()?.checked_mul(1000),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
