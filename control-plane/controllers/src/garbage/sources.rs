//! Where the graph gets its objects from: the controllers' caches, and a metadata watch for each other kind.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use kube::api::{Api, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::task::JoinSet;

use super::Shared;
use super::graph::Node;
use crate::Context;
use crate::cache::{Cache, Change, Object, Subscription};
use crate::discovery::{self, Kind};

/// How soon the server is asked again when it did not tell its kinds.
const REDISCOVER_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How often new kinds are looked for (upstream's interval).
const REDISCOVER: Duration = Duration::from_secs(30);

/// Follows all kinds for ever.
pub(super) async fn follow(context: Arc<Context>, shared: Arc<Shared>) {
    let mut followed: HashMap<String, Followed> = HashMap::new();
    // Watches end with this set.
    let mut watches = JoinSet::new();
    loop {
        let kinds: Vec<_> = match discovery::kinds(&context.client).await {
            Ok(kinds) => kinds.into_iter().map(Arc::new).collect(),
            Err(error) => {
                tracing::warn!(%error, "new kinds are not followed for now");
                tokio::time::sleep(REDISCOVER_AFTER_FAILURE).await;
                continue;
            }
        };
        note_kinds(&shared, &kinds);
        let collectable = kinds
            .iter()
            .filter(|kind| kind.offers(&["list", "watch", "delete"]));
        let current: BTreeSet<String> = collectable.clone().map(|kind| kind.full_name()).collect();
        followed.retain(|name, followed| {
            let stays = current.contains(name);
            if let (Followed::Watched(watch), false) = (followed, stays) {
                watch.abort();
            }
            stays
        });
        for kind in collectable {
            followed
                .entry(kind.full_name())
                .or_insert_with(|| match cached(&context, &shared, kind) {
                    Some(subscription) => Followed::Cached {
                        _subscription: subscription,
                    },
                    None => {
                        let (context, shared, kind) =
                            (Arc::clone(&context), Arc::clone(&shared), Arc::clone(kind));
                        Followed::Watched(watches.spawn(async move { watch(&context, &shared, &kind).await }))
                    }
                });
        }
        tokio::time::sleep(REDISCOVER).await;
    }
}

enum Followed {
    Cached { _subscription: Subscription },
    Watched(tokio::task::AbortHandle),
}

fn note_kinds(shared: &Shared, kinds: &[Arc<Kind>]) {
    let by_name = kinds.iter().map(|kind| {
        let key = (kind.resource.group.clone(), kind.resource.kind.clone());
        (key, Kind::clone(kind))
    });
    *shared.kinds.lock().unwrap_or_else(PoisonError::into_inner) = by_name.collect();
}

/// Takes a kind from its cache, if all of its objects are there.
fn cached(context: &Context, shared: &Arc<Shared>, kind: &Arc<Kind>) -> Option<Subscription> {
    let caches = &context.caches;
    match (kind.resource.group.as_str(), kind.resource.kind.as_str()) {
        ("", "Pod") => Some(subscribe(&caches.pods, shared, kind)),
        ("", "Node") => Some(subscribe(&caches.nodes, shared, kind)),
        ("", "Service") => Some(subscribe(&caches.services, shared, kind)),
        ("", "Endpoints") => Some(subscribe(&caches.endpoints, shared, kind)),
        ("", "Namespace") => Some(subscribe(&caches.namespaces, shared, kind)),
        ("", "ServiceAccount") => Some(subscribe(&caches.service_accounts, shared, kind)),
        ("discovery.k8s.io", "EndpointSlice") => Some(subscribe(&caches.slices, shared, kind)),
        ("apps", "ReplicaSet") => Some(subscribe(&caches.replica_sets, shared, kind)),
        ("apps", "Deployment") => Some(subscribe(&caches.deployments, shared, kind)),
        _ => None,
    }
}

fn subscribe<K: Object>(cache: &Cache<K>, shared: &Arc<Shared>, kind: &Arc<Kind>) -> Subscription {
    let (shared, kind) = (Arc::clone(shared), Arc::clone(kind));
    cache.subscribe(move |change: &Change<K>| {
        let uid = |object: &Arc<K>| object.meta().uid.clone();
        let before = change.old.as_ref().and_then(uid);
        let replaced = before.filter(|before| Some(before) != change.new.as_ref().and_then(uid).as_ref());
        if let Some(gone) = replaced {
            forget(&shared, &gone);
        }
        if let Some(node) = change
            .new
            .as_ref()
            .and_then(|object| Node::new(&kind, object.meta()))
        {
            observe(&shared, node);
        }
    })
}

async fn watch(context: &Context, shared: &Shared, kind: &Arc<Kind>) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(context.client.clone(), &kind.resource);
    let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let mut listed = BTreeSet::new();
    let mut is_failing = false;
    while let Some(event) = events.next().await {
        let was_failing = std::mem::replace(&mut is_failing, event.is_err());
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                listed.extend(object.metadata.uid.clone());
                Node::new(kind, &object.metadata)
                    .into_iter()
                    .for_each(|node| observe(shared, node));
            }
            Ok(Event::InitDone) => {
                let known = shared.graph().of_kind(kind);
                known
                    .iter()
                    .filter(|uid| !listed.contains(*uid))
                    .for_each(|uid| forget(shared, uid));
            }
            Ok(Event::Apply(object)) => {
                Node::new(kind, &object.metadata)
                    .into_iter()
                    .for_each(|node| observe(shared, node));
            }
            Ok(Event::Delete(object)) => object.metadata.uid.iter().for_each(|uid| forget(shared, uid)),
            Err(_) if was_failing => {}
            Err(error) => {
                tracing::warn!(kind = %kind.full_name(), %error, "metadata watch failed, trying again")
            }
        }
    }
}

fn observe(shared: &Shared, node: Node) {
    let concerned = shared.graph().observe(node);
    concerned.into_iter().for_each(|uid| shared.queue.add(uid));
}

fn forget(shared: &Shared, uid: &str) {
    let concerned = shared.graph().forget(uid);
    concerned.into_iter().for_each(|uid| shared.queue.add(uid));
}
