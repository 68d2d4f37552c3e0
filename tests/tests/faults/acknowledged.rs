//! Writers that remember what the API server acknowledged, and watchers that have to end where it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Error};
use serde_json::json;
use tokio::task::JoinSet;

const LABEL: &str = "of=ledger";
const WRITERS: u64 = 4;
/// Every so many writes a writer deletes its object and makes it anew.
const LIFE: u64 = 7;
/// Between two tries at a server that is away, and between two Services: there are many addresses, but not for ever.
const PAUSE: Duration = Duration::from_millis(50);

/// What is known of one object: the value that was acknowledged last (none: it was deleted or never made), and what
/// may have become of it by requests after that which nobody answered.
#[derive(Debug, Default)]
struct Object {
    acknowledged: Option<u64>,
    unanswered: Vec<Option<u64>>,
    writes: u64,
}

impl Object {
    fn may_be(&self, seen: Option<u64>) -> bool {
        seen == self.acknowledged || self.unanswered.contains(&seen)
    }
}

/// What writers know at their end.
#[derive(Debug, Default)]
pub struct Ledgers {
    objects: BTreeMap<String, Object>,
    /// Cluster addresses of Services, by name.
    addresses: BTreeMap<String, String>,
}

/// Writes without pause until told to stop.
///
/// # Errors
/// When an object is seen in a state that no request could have brought about.
pub async fn write_until(client: Client, stop: Arc<AtomicBool>) -> anyhow::Result<Ledgers> {
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let name = format!("ledger-{number}");
        writers.spawn(write_object(client.clone(), name, Arc::clone(&stop)));
    }
    let services = tokio::spawn(make_services(client, stop));
    let objects = writers
        .join_all()
        .await
        .into_iter()
        .collect::<anyhow::Result<_>>()?;
    Ok(Ledgers {
        objects,
        addresses: services.await??,
    })
}

async fn write_object(
    client: Client,
    name: String,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<(String, Object)> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut object = Object::default();
    let mut exists = false;
    for value in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let wanted = (value % LIFE != 0).then_some(value);
        match write(&maps, &name, exists, wanted).await {
            Ok(()) => {
                object.acknowledged = wanted;
                object.unanswered.clear();
                object.writes += 1;
                exists = wanted.is_some();
            }
            Err(_) => {
                object.unanswered.push(wanted);
                let seen = read(&maps, &name, &stop).await;
                let Some(seen) = seen else { break };
                ensure!(object.may_be(seen), "{name} is {seen:?}: {object:?}");
                exists = seen.is_some();
            }
        }
    }
    Ok((name, object))
}

async fn write(maps: &Api<ConfigMap>, name: &str, exists: bool, value: Option<u64>) -> Result<(), Error> {
    let Some(value) = value else {
        return match maps.delete(name, &DeleteParams::default()).await {
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        };
    };
    let data = json!({ "value": value.to_string() });
    if exists {
        let patch = Patch::Merge(json!({ "data": data }));
        return maps.patch(name, &PatchParams::default(), &patch).await.map(drop);
    }
    let map = json!({ "metadata": { "name": name, "labels": { "of": "ledger" } }, "data": data });
    let map = serde_json::from_value(map).map_err(Error::SerdeError)?;
    maps.create(&PostParams::default(), &map).await.map(drop)
}

/// What an object is, as soon as somebody answers; nothing when there is no time left.
async fn read(maps: &Api<ConfigMap>, name: &str, stop: &AtomicBool) -> Option<Option<u64>> {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(found) = maps.get_opt(name).await {
            return Some(found.as_ref().and_then(value_of));
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

fn value_of(map: &ConfigMap) -> Option<u64> {
    map.data.as_ref()?.get("value")?.parse().ok()
}

async fn make_services(client: Client, stop: Arc<AtomicBool>) -> anyhow::Result<BTreeMap<String, String>> {
    let services: Api<Service> = Api::default_namespaced(client);
    let mut addresses = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("ledger-{number}");
        let service = json!({ "metadata": { "name": name, "labels": { "of": "ledger" } },
            "spec": { "ports": [{ "port": 80 }] } });
        let service = serde_json::from_value(service)?;
        if let Ok(made) = services.create(&PostParams::default(), &service).await {
            addresses.insert(name, address_of(&made));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(addresses)
}

fn address_of(service: &Service) -> String {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default()
}

impl Ledgers {
    /// Compares with what there is, and tells how much that was.
    ///
    /// # Errors
    /// With the first acknowledged write that is not there, or the first address that two Services have; or when
    /// nothing was acknowledged.
    pub async fn compare(&self, client: &Client) -> anyhow::Result<String> {
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        for (name, object) in &self.objects {
            let found = maps.get_opt(name).await?;
            let seen = found.as_ref().and_then(value_of);
            ensure!(object.may_be(seen), "{name} is {seen:?}: {object:?}");
            ensure!(object.writes > 0, "{name} was never written");
        }
        ensure!(!self.addresses.is_empty(), "no Service was acknowledged");
        let services: Api<Service> = Api::all(client.clone());
        let there = services.list(&ListParams::default()).await?;
        let mut owners = BTreeMap::new();
        for service in &there {
            let (name, address) = (service.metadata.name.clone(), address_of(service));
            if !address.is_empty() && address != "None" {
                let other = owners.insert(address.clone(), name.clone());
                ensure!(other.is_none(), "{address} is {name:?}'s and {other:?}'s");
            }
        }
        for (name, address) in &self.addresses {
            let owner = owners.get(address).cloned().flatten();
            ensure!(owner.as_ref() == Some(name), "{address} of {name} is {owner:?}'s");
        }
        let writes: u64 = self.objects.values().map(|object| object.writes).sum();
        let services = self.addresses.len();
        Ok(format!(
            "{writes} writes and {services} Services were acknowledged: all are there"
        ))
    }
}

/// Reflectors of what the writers write: by a list and a watch, and by a watch alone.
pub struct Watchers {
    stores: Vec<reflector::Store<ConfigMap>>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Starts them, and waits until each has its first list.
    ///
    /// # Errors
    /// When one ends before.
    pub async fn start(client: &Client) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let mut stores = Vec::new();
        let by_label = watcher::Config::default().labels(LABEL);
        for config in [by_label.clone(), by_label.streaming_lists()] {
            let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
            let (store, writer) = reflector::store();
            let events = watcher(maps, config).default_backoff();
            let events = reflector(writer, events);
            tasks.spawn(events.for_each(|_| std::future::ready(())));
            store.wait_until_ready().await.context("a watcher ended")?;
            stores.push(store);
        }
        Ok(Self {
            stores,
            _tasks: tasks,
        })
    }

    /// Waits until each knows what there is, in the version in which it is.
    ///
    /// # Errors
    /// With what one knows, when it does not come to that in time.
    pub async fn converge(&self, client: &Client, deadline: Duration) -> anyhow::Result<()> {
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let list = maps.list(&ListParams::default().labels(LABEL)).await?;
        let there: BTreeMap<_, _> = list.iter().map(version_of).collect();
        let end = Instant::now() + deadline;
        for store in &self.stores {
            loop {
                let known: BTreeMap<_, _> = store.state().iter().map(|map| version_of(map)).collect();
                if known == there {
                    break;
                }
                ensure!(Instant::now() < end, "a watcher knows {known:?} of {there:?}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

fn version_of(map: &ConfigMap) -> (Option<String>, Option<String>) {
    (map.metadata.name.clone(), map.metadata.resource_version.clone())
}
