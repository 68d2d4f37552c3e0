//! Pulling the images of a pod's containers, beside everything else that its worker does.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container as Definition, Secret};
use kube::api::Api;

use super::{Message, Worker};
use crate::events::EventType;
use crate::images::pull::{Login, pull};
use crate::pod::slot::{ImageTrouble, Trouble};
use crate::pod::volumes::secret_data;

impl Worker {
    /// Starts to pull the image of a container.
    pub(super) fn begin_pull(&mut self, index: usize, definition: &Definition) {
        let reference = definition.image.clone().unwrap_or_default();
        let name = definition.name.clone();
        let (node, pod, outbox) = (self.node.clone(), self.pod.clone(), self.outbox.clone());
        let is_taken_if_there = definition.image_pull_policy.as_deref() != Some("Always");
        let task = tokio::spawn(async move {
            let asked = Instant::now();
            // One after the other (`serializeImagePulls`): two pods of one image pull it once.
            let _turn = node.pulls.lock().await;
            let began = Instant::now();
            let is_there = || node.images.find(&reference).is_ok_and(|found| found.is_some());
            let told = |event_type, reason, text: String| {
                node.events.container(&pod, &name, event_type, reason, text)
            };
            let outcome = if is_taken_if_there && is_there() {
                let text = format!("Container image \"{reference}\" already present on machine");
                told(EventType::Normal, "Pulled", text);
                Ok(())
            } else {
                told(
                    EventType::Normal,
                    "Pulling",
                    format!("Pulling image \"{reference}\""),
                );
                let logins = logins(&node.client, &pod).await;
                pull(&node.images, &reference, &logins).await.map(|image| {
                    let text = format!(
                        "Successfully pulled image \"{reference}\" in {:.3}s ({:.3}s including waiting). \
                         Image size: {} bytes.",
                        began.elapsed().as_secs_f64(),
                        asked.elapsed().as_secs_f64(),
                        image.size_bytes
                    );
                    told(EventType::Normal, "Pulled", text);
                })
            };
            let _ = outbox
                .send(Message::Pulled(name, outcome.map_err(|error| error.to_string())))
                .await;
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.pull(task);
        }
    }

    /// The image is there, and the container is started next; or it is not, and its turn comes later.
    pub(super) fn pull_ended(&mut self, name: &str, outcome: Result<(), String>) {
        let Some(definition) = self.definition(name) else {
            return;
        };
        let Some(index) = self.slots.iter().position(|slot| slot.name == name) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.pull_ended(outcome.is_ok());
        }
        let Err(why) = outcome else { return };
        let reference = definition.image.as_deref().unwrap_or_default();
        let trouble = ImageTrouble::NotPulled;
        for text in [
            format!("Failed to pull image \"{reference}\": {why}"),
            format!("Error: {}", trouble.reason()),
        ] {
            self.node
                .events
                .container(&self.pod, name, EventType::Warning, "Failed", text);
        }
        let outcome = Err(Trouble::Image {
            trouble,
            message: why,
        });
        self.started(index, &definition, outcome);
    }
}

/// What the pod's `imagePullSecrets` hold. One that is not there is passed over, as Kubernetes does: the image may need
/// none.
async fn logins(client: &kube::Client, pod: &k8s_openapi::api::core::v1::Pod) -> Vec<Login> {
    let named = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let names: BTreeSet<&str> = named.map(|secret| secret.name.as_str()).collect();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut logins = Vec::new();
    for name in names {
        match api.get_opt(name).await {
            Ok(Some(secret)) => logins.extend(Login::of_secret(&secret_data(secret))),
            Ok(None) => tracing::warn!(name, namespace, "image pull secret not found"),
            Err(error) => tracing::warn!(%error, name, namespace, "image pull secret not read"),
        }
    }
    logins
}
