//! What a real cluster's admission chain does to new objects: namespaces must be there and alive
//! (NamespaceLifecycle), and Pods get their ServiceAccount's token (ServiceAccount).

use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::api::Api;
use crate::object::{self, Fields};
use crate::resources::Resource;
use crate::status::{Failure, Result};

/// Where pods find their token; well known to every client library.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// `utilrand`: no vowels and no look-alikes, so that no words arise.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five random letters, for `generateName` and volume names.
pub fn random_suffix() -> String {
    let mut random = rand::rng();
    (0..5)
        .filter_map(|_| SUFFIX_LETTERS.choose(&mut random))
        .map(|letter| char::from(*letter))
        .collect()
}

/// The namespace must be there, and not be going away.
pub async fn check_namespace(api: &Api, resource: &Resource, namespace: &str, name: &str) -> Result<()> {
    let namespaces = api.registry.kind("", "Namespace");
    let Some(found) = api.look_up(namespaces, None, namespace).await? else {
        return Err(Failure::not_found(namespaces, namespace));
    };
    if found.text("status.phase") == "Terminating" || object::is_terminating(&found) {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Failure::forbidden_object(resource, name, why));
    }
    Ok(())
}

/// The ServiceAccount must exist; its token is mounted unless Pod or account decline.
pub async fn add_service_account(api: &Api, pods: &Resource, pod: &mut Value) -> Result<()> {
    if pod.at("metadata.annotations").get(MIRROR).is_some() {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    object::default_to(spec, "serviceAccountName", "default");
    spec["serviceAccount"] = spec["serviceAccountName"].clone();
    let account_name = spec.text("serviceAccountName").to_owned();
    let (namespace, name) = (object::namespace(pod).to_owned(), object::name(pod).to_owned());
    let accounts = api.registry.kind("", "ServiceAccount");
    let Some(account) = api.look_up(accounts, Some(&namespace), &account_name).await? else {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount \"{account_name}\" not found"
        );
        return Err(Failure::forbidden_object(pods, &name, why));
    };
    let declined = [
        pod.at("spec.automountServiceAccountToken"),
        account.at("automountServiceAccountToken"),
    ]
    .into_iter()
    .find_map(Value::as_bool)
        == Some(false);
    if !declined {
        mount_token(&mut pod["spec"]);
    }
    if pod.list("spec.imagePullSecrets").is_empty() && !account.list("imagePullSecrets").is_empty() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let volume = format!("kube-api-access-{}", random_suffix());
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if container
                .list("volumeMounts")
                .iter()
                .any(|mount| mount.text("mountPath") == TOKEN_DIR)
            {
                continue;
            }
            let mount = json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_DIR });
            push(container, "volumeMounts", mount);
            mounted = true;
        }
    }
    if mounted {
        push(spec, "volumes", token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    let namespace = json!({ "apiVersion": "v1", "fieldPath": "metadata.namespace" });
    json!({ "name": name, "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": namespace }] } },
    ] } })
}

fn push(object: &mut Value, list: &str, item: Value) {
    match object.get_mut(list).and_then(Value::as_array_mut) {
        Some(items) => items.push(item),
        None => object[list] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_is_mounted_yet() {
        let own = json!([{ "name": "mine", "mountPath": TOKEN_DIR }]);
        let mut spec = json!({ "containers": [{ "name": "a" }, { "name": "b", "volumeMounts": own }] });
        mount_token(&mut spec);
        let volume = spec["volumes"][0]["name"].as_str().expect("a volume was added");
        assert!(volume.starts_with("kube-api-access-"), "{volume}");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(spec["containers"][1]["volumeMounts"], own);
    }
}
