//! Garbage collection: what is owned goes when its owners are gone (owner references, compared by uid).
//!
//! All kinds are watched, custom ones too; kinds that the other controllers cache anyway are taken from
//! there, the rest are watched for their metadata only. The [`Graph`] decides what is to be looked at;
//! nothing is deleted before the server itself has confirmed that the object still is what it was and that
//! its owners are gone.

mod graph;
mod sources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use model::ObjectName;
use serde_json::{Value, json};

use crate::Context;
use crate::discovery::Kind;
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};
use graph::{FOREGROUND, Graph, Node, ORPHAN, Owner, Verdict};

const WORKERS: usize = 16;

/// Runs the controller. Its keys are uids.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let shared = Arc::new(Shared {
        graph: Mutex::default(),
        kinds: Mutex::default(),
        queue: Queue::new(),
    });
    let collector = Collector {
        context: Arc::clone(&context),
        shared: Arc::clone(&shared),
    };
    tokio::select! {
        () = sources::follow(context, Arc::clone(&shared)) => {}
        () = drive(&shared.queue, &collector, WORKERS) => {}
    }
    Ok(())
}

/// What the sources fill and the collector reads.
struct Shared {
    graph: Mutex<Graph>,
    /// Kinds by API group and kind, the version left out: owner references may name any.
    kinds: Mutex<HashMap<(String, String), Kind>>,
    queue: Arc<Queue<String>>,
}

impl Shared {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, group: &str, kind: &str) -> Option<Kind> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.get(&(group.to_owned(), kind.to_owned())).cloned()
    }
}

struct Collector {
    context: Arc<Context>,
    shared: Arc<Shared>,
}

impl Reconcile for Collector {
    type Key = String;
    const NAME: &'static str = "garbage-collector";

    async fn reconcile(&self, uid: &String) -> Result<Next, Error> {
        let Some(node) = self.shared.graph().node(uid).cloned() else {
            return Ok(Next::OnChange);
        };
        if node.is_deleting && node.finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
            self.orphan_dependents(&node).await?;
        } else if node.is_deleting && node.finalizers.iter().any(|finalizer| finalizer == FOREGROUND) {
            self.delete_dependents_first(&node).await?;
        } else if !node.is_deleting && !node.owners.is_empty() {
            self.judge(&node).await?;
        }
        Ok(Next::OnChange)
    }
}

impl Collector {
    /// Deletes `node` if its owners are gone.
    async fn judge(&self, node: &Node) -> Result<(), Error> {
        let known = self.owners(node).await?;
        if graph::verdict(&known, self.has_blocking_dependents(node)) == Verdict::Keep {
            return Ok(());
        }
        // Before anything is done, the server says what the object is now.
        let Some(fresh) = self
            .fetch(node)
            .await?
            .filter(|fresh| fresh.uid.as_ref() == Some(&node.uid))
        else {
            self.shared.graph().forget(&node.uid);
            return Ok(());
        };
        if fresh.deletion_timestamp.is_some() {
            return Ok(());
        }
        let node = Node {
            owners: fresh.owner_references.clone().unwrap_or_default(),
            ..node.clone()
        };
        match graph::verdict(&self.owners(&node).await?, self.has_blocking_dependents(&node)) {
            Verdict::Keep => Ok(()),
            Verdict::Unlink(uids) => self.unlink(&node, &fresh, &uids).await,
            Verdict::DeleteForeground => self.delete(&node, &fresh, PropagationPolicy::Foreground).await,
            Verdict::Delete => {
                let finalizers = fresh.finalizers.as_deref().unwrap_or_default();
                let policy = if finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
                    PropagationPolicy::Orphan
                } else if finalizers.iter().any(|finalizer| finalizer == FOREGROUND) {
                    PropagationPolicy::Foreground
                } else {
                    PropagationPolicy::Background
                };
                self.delete(&node, &fresh, policy).await
            }
        }
    }

    fn has_blocking_dependents(&self, node: &Node) -> bool {
        !self.shared.graph().blocking_dependents(&node.uid).is_empty()
    }

    /// How it stands with each owner. Those that the graph does not know are asked for.
    async fn owners(&self, node: &Node) -> Result<Vec<(String, Owner)>, Error> {
        let mut owners = Vec::with_capacity(node.owners.len());
        for reference in &node.owners {
            let known = self.shared.graph().owner(reference);
            let owner = match known {
                Some(owner) => owner,
                None => self.ask_for_owner(node, reference).await?,
            };
            owners.push((reference.uid.clone(), owner));
        }
        Ok(owners)
    }

    async fn ask_for_owner(&self, node: &Node, reference: &OwnerReference) -> Result<Owner, Error> {
        let group = reference
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        let Some(kind) = self.shared.kind(group, &reference.kind) else {
            // A kind that the server does not have (any more): nobody can say that the owner is gone.
            tracing::debug!(owner = ?reference, "owner of a kind that is not known");
            return Ok(Owner::Present);
        };
        let namespace = if kind.is_namespaced {
            &*node.name.namespace
        } else {
            ""
        };
        if kind.is_namespaced && namespace.is_empty() {
            tracing::warn!(object = %node.name, owner = ?reference, "a cluster-wide object names a namespaced owner");
            return Ok(Owner::Present);
        }
        let name = ObjectName::new(namespace, &reference.name);
        let found = self.get(&kind, &name).await?;
        if found.is_some_and(|meta| meta.uid.as_ref() == Some(&reference.uid)) {
            return Ok(Owner::Present);
        }
        self.shared.graph().note_absent(&reference.uid);
        Ok(Owner::Gone)
    }

    async fn fetch(&self, node: &Node) -> Result<Option<ObjectMeta>, Error> {
        self.get(&node.kind, &node.name).await
    }

    async fn get(&self, kind: &Kind, name: &ObjectName) -> Result<Option<ObjectMeta>, Error> {
        let api = kind.api(&self.context.client, &name.namespace);
        let found = api
            .get_metadata_opt(&name.name)
            .await
            .map_err(|source| failed("get", kind, name, source))?;
        Ok(found.map(|object| object.metadata))
    }

    async fn delete(&self, node: &Node, fresh: &ObjectMeta, policy: PropagationPolicy) -> Result<(), Error> {
        tracing::debug!(kind = %node.kind.full_name(), object = %node.name, "deleting what nobody owns any more");
        let preconditions = Preconditions {
            uid: fresh.uid.clone(),
            resource_version: fresh.resource_version.clone(),
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let api = node.kind.api(&self.context.client, &node.name.namespace);
        match api.delete(&node.name.name, &params).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other
                .map(drop)
                .map_err(|source| failed("delete", &node.kind, &node.name, source)),
        }
    }

    /// Takes owners out of an object's references.
    async fn unlink(&self, node: &Node, fresh: &ObjectMeta, uids: &[String]) -> Result<(), Error> {
        let mut owners = fresh.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| !uids.contains(&owner.uid));
        self.patch(node, fresh, json!({ "ownerReferences": owners }))
            .await
    }

    async fn drop_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), Error> {
        let Some(fresh) = self
            .fetch(node)
            .await?
            .filter(|fresh| fresh.uid.as_ref() == Some(&node.uid))
        else {
            return Ok(());
        };
        let mut finalizers = fresh.finalizers.clone().unwrap_or_default();
        finalizers.retain(|name| name != finalizer);
        self.patch(node, &fresh, json!({ "finalizers": finalizers }))
            .await
    }

    async fn patch(&self, node: &Node, fresh: &ObjectMeta, mut metadata: Value) -> Result<(), Error> {
        metadata["uid"] = json!(fresh.uid);
        metadata["resourceVersion"] = json!(fresh.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let api = node.kind.api(&self.context.client, &node.name.namespace);
        match api.patch(&node.name.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other
                .map(drop)
                .map_err(|source| failed("patch", &node.kind, &node.name, source)),
        }
    }

    /// Propagation policy Orphan: dependents forget the owner, then it may go.
    async fn orphan_dependents(&self, owner: &Node) -> Result<(), Error> {
        let dependents = self.shared.graph().dependents(&owner.uid);
        for dependent in dependents {
            let fresh = self.fetch(&dependent).await?;
            let fresh = fresh.filter(|fresh| fresh.uid.as_ref() == Some(&dependent.uid));
            if let Some(fresh) = fresh {
                self.unlink(&dependent, &fresh, std::slice::from_ref(&owner.uid))
                    .await?;
            }
        }
        self.drop_finalizer(owner, ORPHAN).await
    }

    /// Propagation policy Foreground: dependents that block the owner's deletion go first. Each one that goes
    /// brings the owner back here.
    async fn delete_dependents_first(&self, owner: &Node) -> Result<(), Error> {
        if !self.has_blocking_dependents(owner) {
            return self.drop_finalizer(owner, FOREGROUND).await;
        }
        let dependents = self.shared.graph().dependents(&owner.uid);
        dependents
            .into_iter()
            .for_each(|dependent| self.shared.queue.add(dependent.uid));
        Ok(())
    }
}

fn failed(operation: &'static str, kind: &Kind, object: &ObjectName, source: kube::Error) -> Error {
    Error::Api {
        operation,
        kind: kind.full_name(),
        object: object.clone(),
        source: Box::new(source),
    }
}
