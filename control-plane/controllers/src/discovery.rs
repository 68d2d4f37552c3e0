//! Which resources the API server has, custom ones included.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::discovery::{ApiCapabilities, Discovery, Scope};

use crate::error::Error;

/// One resource that a controller may act on.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub resource: ApiResource,
    pub is_namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    /// Whether the server offers all of these verbs for it.
    pub fn offers(&self, verbs: &[&str]) -> bool {
        verbs
            .iter()
            .all(|verb| self.verbs.iter().any(|offered| offered == verb))
    }

    /// As in `replicasets.apps`.
    pub fn full_name(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }

    /// Its objects in `namespace`; a cluster-wide kind has no namespaces.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.is_namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Asks for all resources: each kind once, in its most stable version. Events are left out: they are
/// short-lived, own nothing and are owned by nothing (upstream's garbage collector ignores them too).
///
/// An answer without Pods is none: a server that does not know the aggregated form answers it with a document
/// that reads as "no resources", and who believes that takes a full namespace for an empty one.
pub(crate) async fn kinds(client: &Client) -> Result<Vec<Kind>, Error> {
    let aggregated = Discovery::new(client.clone()).run_aggregated().await;
    let kinds = aggregated
        .map(|discovery| kinds_of(&discovery))
        .unwrap_or_default();
    if is_complete(&kinds) {
        return Ok(kinds);
    }
    let classic = Discovery::new(client.clone()).run().await;
    let kinds = kinds_of(&classic.map_err(|source| Error::Discovery(Box::new(source)))?);
    if is_complete(&kinds) {
        Ok(kinds)
    } else {
        Err(Error::NoPods)
    }
}

fn kinds_of(discovery: &Discovery) -> Vec<Kind> {
    let groups = discovery.groups_alphabetical().into_iter();
    let resources = groups.flat_map(|group| group.resources_by_stability());
    resources
        .map(kind)
        .filter(|kind| kind.resource.kind != "Event")
        .collect()
}

fn is_complete(kinds: &[Kind]) -> bool {
    kinds
        .iter()
        .any(|kind| kind.resource.group.is_empty() && kind.resource.kind == "Pod")
}

fn kind((resource, capabilities): (ApiResource, ApiCapabilities)) -> Kind {
    Kind {
        resource,
        is_namespaced: capabilities.scope == Scope::Namespaced,
        verbs: capabilities.operations,
    }
}

#[cfg(test)]
impl Kind {
    /// Pods, without a server that says so.
    pub fn for_tests() -> Self {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        Self {
            resource,
            is_namespaced: true,
            verbs: Vec::new(),
        }
    }
}
