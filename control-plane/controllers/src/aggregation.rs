//! ClusterRoles that are made of others: `aggregationRule` says by labels of which, and their rules, without repetition
//! and in the order of the roles' names, become its own.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use model::ObjectName;
use serde_json::json;

use crate::Context;
use crate::cache::name_of;
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::selector;

const WORKERS: usize = 1;

/// Runs the controller. Its keys are the names of roles that are made of others.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _roles = context.caches.cluster_roles.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |_| {
            // Any of them may have been made of the one that changed: there are few.
            let roles = context.caches.cluster_roles.list().into_iter();
            let made_of_others = roles.filter(|role| role.aggregation_rule.is_some());
            made_of_others.for_each(|role| queue.add(name_of(&*role)));
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "clusterrole-aggregation";

    async fn reconcile(&self, name: &ObjectName) -> Result<Next, Error> {
        let cache = &self.0.caches.cluster_roles;
        let Some(role) = cache
            .get(name)
            .filter(|role| role.metadata.deletion_timestamp.is_none())
        else {
            return Ok(Next::OnChange);
        };
        let Some(rules) = collected(&role, &cache.list()) else {
            return Ok(Next::OnChange);
        };
        if role.rules.as_deref().unwrap_or_default() != rules {
            let patch = json!({ "metadata": { "uid": role.metadata.uid }, "rules": rules });
            cache.merge(name, patch).await?;
        }
        Ok(Next::OnChange)
    }
}

/// The rules of a role that is made of others; `None` for one that is not.
fn collected(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let selectors = aggregation.cluster_role_selectors.as_deref().unwrap_or_default();
    let is_part = |other: &&Arc<ClusterRole>| {
        let labels = other.metadata.labels.clone().unwrap_or_default();
        other.metadata.name != role.metadata.name
            && selectors
                .iter()
                .any(|selector| selector::matches(selector, &labels))
    };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in all
        .iter()
        .filter(is_part)
        .flat_map(|part| part.rules.iter().flatten())
    {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, labels: serde_json::Value, verbs: &[&str]) -> ClusterRole {
        let rules: Vec<_> = verbs
            .iter()
            .map(|verb| json!({ "verbs": [verb], "apiGroups": [""], "resources": ["pods"] }))
            .collect();
        let role = json!({ "metadata": { "name": name, "labels": labels }, "rules": rules });
        serde_json::from_value(role).expect("a role")
    }

    #[test]
    fn a_role_has_the_rules_of_those_that_its_selectors_name_each_once() {
        let mut whole = role("whole", json!({ "to": "a" }), &["own"]);
        let selectors = json!({ "clusterRoleSelectors": [
            { "matchLabels": { "to": "a" } }, { "matchLabels": { "to": "b" } } ] });
        let all = [
            role("one", json!({ "to": "a" }), &["get", "list"]),
            role("other", json!({ "to": "c" }), &["delete"]),
            role("two", json!({ "to": "b" }), &["list", "watch"]),
            whole.clone(),
        ]
        .map(Arc::new);
        assert_eq!(collected(&whole, &all), None);
        whole.aggregation_rule = Some(serde_json::from_value(selectors).expect("selectors"));
        let rules = collected(&whole, &all).expect("it is made of others");
        let verbs: Vec<&str> = rules
            .iter()
            .flat_map(|rule| &rule.verbs)
            .map(String::as_str)
            .collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
    }
}
