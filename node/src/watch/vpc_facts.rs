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
        self.trouble = None;
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
            max_pods: self
                .max_pods
                .or_else(|| says("/status/allocatable/pods").and_then(pods)),
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
fn pods(quantity: &Value) -> Option<u32> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        number => number.to_string(),
    };
    match text.strip_suffix('k') {
        Some(thousands) => thousands.parse::<u32>().ok()?.checked_mul(1000),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use ::tests::directory::Directory;
    use ::tests::fake_api::FakeApi;
    use serde_json::json;

    use super::*;

    const KEY: &str = "k8s.amazonaws.com/eniConfig";

    fn node(metadata: Value, unschedulable: Value, pods: Value) -> Value {
        let mut metadata = metadata;
        metadata["name"] = json!("node-1");
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": metadata,
            "spec": {"unschedulable": unschedulable}, "status": {"allocatable": {"pods": pods}},
        })
    }

    fn eni_config(name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": name},
            "spec": spec,
        })
    }

    fn object(value: &Value) -> DynamicObject {
        serde_json::from_value(value.clone()).expect("an object")
    }

    fn listed(objects: &[Value]) -> Objects {
        let mut list = Objects::default();
        list.take(Event::Init);
        for value in objects {
            list.take(Event::InitApply(object(value)));
        }
        list.take(Event::InitDone);
        list
    }

    fn asked(max_pods: Option<u32>, is_custom: bool) -> VpcFacts {
        VpcFacts {
            node: "node-1".into(),
            max_pods,
            custom_networking: is_custom.then(|| CustomNetworking {
                annotation: "example.org/annotation".to_owned(),
                label: KEY.to_owned(),
            }),
            facts: watch::Sender::new(Facts::unread(max_pods)),
        }
    }

    #[test]
    fn a_node_says_whether_pods_come_and_how_many() {
        let rows = [
            (None, json!(null), json!("110"), (Some(110), true)),
            (None, json!(true), json!("2k"), (Some(2000), false)),
            (Some(29), json!(false), json!("110"), (Some(29), true)),
            (None, json!("true"), json!(17), (Some(17), true)),
            (None, json!(true), json!("-1"), (None, false)),
            (None, json!(null), json!("5000000k"), (None, true)),
        ];
        for (max_pods, unschedulable, pods, (most, is_schedulable)) in rows {
            let own = node(json!({}), unschedulable, pods);
            let other = json!({"metadata": {"name": "other"}, "spec": {"unschedulable": !is_schedulable}});
            let known = Known {
                nodes: listed(&[other, own.clone()]),
                ..Known::default()
            };
            let expected = Facts {
                max_pods: most,
                is_schedulable,
                eni_config: Err(NoEniConfig::Unread),
            };
            assert_eq!(asked(max_pods, false).facts(&known), expected, "{own}");
        }
        let unknown = Known::default();
        assert_eq!(
            asked(Some(5), false).facts(&unknown),
            Facts::unread(Some(5)),
            "nothing is kept ready by what nobody knows"
        );
    }

    #[test]
    fn an_eniconfig_is_the_one_that_the_node_names_and_no_other() {
        let spec = |subnet: &str| json!({"subnet": subnet, "securityGroups": ["sg-1", "sg-2"]});
        let configs = [
            eni_config("a", spec("subnet-a")),
            eni_config("b", json!({"subnet": "subnet-b", "securityGroups": null})),
            eni_config("none", json!({"securityGroups": ["sg-1"]})),
            eni_config("number", json!({"subnet": 5})),
            eni_config("empty", json!({"subnet": ""})),
            json!({"apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": "bare"}}),
        ];
        let config = |name: &str, groups: &[&str]| {
            Ok(EniConfig {
                name: name.to_owned(),
                subnet: SubnetId(format!("subnet-{name}")),
                groups: groups
                    .iter()
                    .map(|group| SecurityGroupId((*group).to_owned()))
                    .collect(),
            })
        };
        let unusable = |name: &str, why: &str| {
            let why = why.to_owned();
            Err(NoEniConfig::Unusable {
                name: name.to_owned(),
                why,
            })
        };
        let missing = |name: &str, named_by: NamedBy| {
            let name = name.to_owned();
            Err(NoEniConfig::Missing { name, named_by })
        };
        let label = |name: &str| json!({"labels": {KEY: name}});
        let rows = [
            (label("a"), config("a", &["sg-1", "sg-2"])),
            (label("b"), config("b", &[])),
            (
                json!({"labels": {KEY: "a"}, "annotations": {"example.org/annotation": "b"}}),
                config("b", &[]),
            ),
            (
                json!({"labels": {EXTERNAL: "a", KEY: "b"}, "annotations": {"example.org/annotation": "b"}}),
                config("a", &["sg-1", "sg-2"]),
            ),
            (
                json!({"annotations": {KEY: "a"}}),
                missing(DEFAULT, NamedBy::Nobody(KEY.to_owned())),
            ),
            (label("c"), missing("c", NamedBy::Label(KEY.to_owned()))),
            (
                json!({"annotations": {"example.org/annotation": ""}}),
                missing("", NamedBy::Annotation("example.org/annotation".to_owned())),
            ),
            (label("none"), unusable("none", "spec: missing field `subnet`")),
            (
                label("number"),
                unusable("number", "spec: invalid type: integer `5`, expected a string"),
            ),
            (
                label("empty"),
                unusable("empty", "spec.subnet: \"\" is no subnet's id"),
            ),
            (
                label("bare"),
                unusable("bare", "spec: invalid type: null, expected struct Spec"),
            ),
        ];
        for (metadata, expected) in rows {
            let row = metadata.to_string();
            let known = Known {
                nodes: listed(&[node(metadata, json!(null), json!("110"))]),
                eni_configs: listed(&configs),
            };
            assert_eq!(asked(None, true).facts(&known).eni_config, expected, "{row}");
        }
        let nowhere = Known {
            nodes: listed(&[]),
            eni_configs: listed(&configs),
        };
        assert_eq!(
            asked(None, true).facts(&nowhere).eni_config,
            Err(NoEniConfig::NoNode("node-1".to_owned()))
        );
    }

    /// Asks a fake API server as long as it lives; the outcomes that were told.
    async fn asking(wanted: VpcFacts, api: &FakeApi, see: impl AsyncFnOnce(watch::Receiver<Option<String>>)) {
        let directory = Directory::new("vpc-facts");
        let kubeconfig = directory.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig).expect("writable");
        let source = ApiSource {
            credentials: Some(kubeconfig).into(),
            ..ApiSource::default()
        };
        let (outcome, told) = watch::channel(None);
        let keep = wanted.keep(&source, |result| {
            outcome.send_replace(
                result
                    .err()
                    .map(str::to_owned)
                    .or_else(|| Some("works".to_owned())),
            );
        });
        tokio::select! {
            () = keep => panic!("it asks until it is cancelled"),
            () = see(told) => {}
        }
    }

    async fn until<T: Clone>(seen: &mut watch::Receiver<T>, is: impl Fn(&T) -> bool) -> T {
        let found = tokio::time::timeout(Duration::from_secs(30), seen.wait_for(is)).await;
        found.expect("within half a minute").expect("it goes on").clone()
    }

    #[tokio::test]
    async fn what_the_cluster_says_is_followed_and_stays_known_while_it_says_nothing() {
        let api = FakeApi::start().expect("loopback is there");
        let own = |unschedulable| node(json!({"labels": {KEY: "a"}}), json!(unschedulable), json!("58"));
        api.put(own(false));
        let wanted = asked(None, true);
        let mut facts = wanted.facts.subscribe();
        asking(wanted, &api, async |mut told| {
            let missing = until(&mut facts, |facts| {
                facts.max_pods == Some(58) && facts.eni_config != Err(NoEniConfig::Unread)
            })
            .await;
            let named_by = NamedBy::Label(KEY.to_owned());
            let name = "a".to_owned();
            assert_eq!(missing.eni_config, Err(NoEniConfig::Missing { name, named_by }));
            api.put(eni_config("a", json!({"subnet": "subnet-a"})));
            until(&mut facts, |facts| facts.eni_config.is_ok()).await;
            api.put(own(true));
            let cordoned = until(&mut facts, |facts| !facts.is_schedulable).await;
            assert_eq!(cordoned.max_pods, Some(58));
            until(&mut told, |told| told.as_deref() == Some("works")).await;
            api.go_down();
            until(&mut told, |told| {
                told.as_deref().is_some_and(|told| told != "works")
            })
            .await;
            assert_eq!(*facts.borrow(), cordoned);
            api.come_up();
            api.put(own(false));
            until(&mut facts, |facts| facts.is_schedulable).await;
            until(&mut told, |told| told.as_deref() == Some("works")).await;
        })
        .await;
    }

    #[tokio::test]
    async fn eniconfigs_are_asked_for_under_custom_networking_alone() {
        for (is_custom, trouble) in [(false, None), (true, Some("watch ENIConfigs"))] {
            let api = FakeApi::start().expect("loopback is there");
            api.put(node(json!({}), json!(true), json!("58")));
            api.behave(|behaviour| behaviour.absent = vec!["eniconfigs"]);
            let wanted = asked(None, is_custom);
            let mut facts = wanted.facts.subscribe();
            asking(wanted, &api, async |mut told| {
                // The Node is read, whatever becomes of the others.
                let facts = until(&mut facts, |facts| facts.max_pods == Some(58)).await;
                assert_eq!(facts.eni_config, Err(NoEniConfig::Unread));
                let is_told = |told: &Option<String>| match trouble {
                    None => told.as_deref() == Some("works"),
                    Some(trouble) => told.as_ref().is_some_and(|told| told.contains(trouble)),
                };
                until(&mut told, is_told).await;
            })
            .await;
            let asked = api
                .requests()
                .iter()
                .any(|request| request.contains("eniconfigs"));
            assert_eq!(asked, is_custom);
        }
    }
}
