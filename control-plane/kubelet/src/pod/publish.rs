//! Writes a pod's status to the API, the latest only, and deletes the object when nothing of it is left on the node.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Publication {
    /// The status.
    pub status: Option<PodStatus>,
    /// How often somebody else has written over what was told: the node controller, while this node was silent.
    pub overruled: u32,
    /// The pod is gone from this node: its object is to be deleted.
    pub released: bool,
    /// The object is gone already: there is nobody to tell.
    pub gone: bool,
}

/// First and longest time between tries while the API is away.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Publishes until the pod is released or gone, or its worker ends.
pub async fn publish_all(api: Api<Pod>, name: String, uid: String, mut wanted: watch::Receiver<Publication>) {
    let mut written: Option<PodStatus> = None;
    let mut overruled = 0;
    let mut delay = RETRY.0;
    loop {
        let publication = wanted.borrow_and_update().clone();
        if publication.overruled != overruled {
            overruled = publication.overruled;
            written = None;
        }
        if publication.gone {
            return;
        }
        let outcome = publish(&api, &name, &uid, &publication, &mut written).await;
        match outcome {
            Ok(()) if publication.released => return,
            Ok(()) => {
                delay = RETRY.0;
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                tracing::warn!(pod = name, %error, "pod status not written, trying again");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    changed = wanted.changed() => if changed.is_err() && !publication.released { return },
                }
                delay = (delay * 2).min(RETRY.1);
            }
        }
    }
}

async fn publish(
    api: &Api<Pod>,
    name: &str,
    uid: &str,
    publication: &Publication,
    written: &mut Option<PodStatus>,
) -> kube::Result<()> {
    if publication.status.is_some() && publication.status != *written {
        let patch = Patch::Strategic(status_patch(uid, publication.status.as_ref()));
        api.patch_status(name, &PatchParams::default(), &patch).await?;
        written.clone_from(&publication.status);
    }
    if publication.released {
        let preconditions = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        api.delete(name, &parameters).await?;
    }
    Ok(())
}

/// The uid in the patch makes the API refuse it (409) when another pod has the name by now. Lists without a merge key
/// are replaced whole and conditions are merged, where a `null` removes what an earlier patch set. Addresses have a
/// merge key, so the patch says that it replaces them: those of a sandbox before this one lead nowhere.
fn status_patch(uid: &str, status: Option<&PodStatus>) -> Value {
    let mut status = json!(status);
    if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
    }
    for field in ["podIPs", "hostIPs"] {
        if let Some(addresses) = status.get_mut(field).and_then(Value::as_array_mut) {
            addresses.push(json!({ "$patch": "replace" }));
        }
    }
    json!({ "metadata": { "uid": uid }, "status": status })
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_replace_those_of_the_sandbox_before() {
        let status = json!({ "podIPs": [{ "ip": "10.244.1.3" }], "hostIPs": [{ "ip": "172.30.0.11" }] });
        let status = serde_json::from_value(status).expect("a status");
        let expected = json!({
            "metadata": { "uid": "u" },
            "status": {
                "podIPs": [{ "ip": "10.244.1.3" }, { "$patch": "replace" }],
                "hostIPs": [{ "ip": "172.30.0.11" }, { "$patch": "replace" }],
            },
        });
        assert_eq!(status_patch("u", Some(&status)), expected);
    }
}
