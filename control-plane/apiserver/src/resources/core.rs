//! The core group.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::field::{Errors, Path};
use super::workloads::{clear_status, replica_defaults, validate_template};
use super::{NameRule, Resource, node, pod, pod_spec, service};
use crate::object::{self, Fields, default_to};
use crate::table::{core as table, pods, workloads};

const GROUP: (&str, &str) = ("", "v1");

pub(super) fn rows() -> Vec<Resource> {
    let mut rows = vec![namespaces(), nodes(), pod_row(), services()];
    rows.extend(configuration());
    rows.extend(others());
    rows
}

fn namespaces() -> Resource {
    Resource {
        prepare_create: prepare_namespace,
        ..Resource::new::<core::Namespace>(GROUP, "Namespace", "namespaces")
    }
    .cluster_scoped()
    .short(&["ns"])
    .named(NameRule::Label)
    .with_status()
    .selectable_by(&["status.phase"])
    .printed(table::NAMESPACE, table::namespace)
    .defaulted(namespace_defaults)
}

fn nodes() -> Resource {
    Resource::new::<core::Node>(GROUP, "Node", "nodes")
        .cluster_scoped()
        .short(&["no"])
        .with_status()
        .selectable_by(&["spec.unschedulable"])
        .printed(table::NODE, table::node)
        .defaulted(node::defaults)
        .validated(|_, _| {}, node::validate_update)
}

fn pod_row() -> Resource {
    Resource {
        prepare_create: pod::prepare_create,
        ..Resource::new::<core::Pod>(GROUP, "Pod", "pods")
    }
    .short(&["po"])
    .in_all()
    .with_status()
    .selectable_by(&[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ])
    .printed(pods::POD, pods::pod)
    .defaulted(pod::defaults)
    .validated(pod::validate, pod::validate_update)
}

fn services() -> Resource {
    Resource {
        prepare_create: service::prepare_create,
        prepare_status: service::default_ip_modes,
        validate_status: service::validate_status,
        ..Resource::new::<core::Service>(GROUP, "Service", "services")
    }
    .short(&["svc"])
    .in_all()
    .with_status()
    .named(NameRule::Rfc1035)
    .selectable_by(&["spec.clusterIP", "spec.type"])
    .printed(table::SERVICE, table::service)
    .defaulted(service::defaults)
    .validated(service::validate, service::validate_update)
}

fn configuration() -> Vec<Resource> {
    vec![
        Resource::new::<core::ConfigMap>(GROUP, "ConfigMap", "configmaps")
            .short(&["cm"])
            .printed(table::CONFIG_MAP, table::config_map)
            .validated(validate_size, immutable_data),
        Resource::new::<core::Secret>(GROUP, "Secret", "secrets")
            .selectable_by(&["type"])
            .printed(table::SECRET, table::secret)
            .defaulted(secret_defaults)
            .validated(validate_secret_size, validate_secret_update),
        Resource::new::<core::ServiceAccount>(GROUP, "ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .printed(table::SERVICE_ACCOUNT, table::service_account),
    ]
}

fn others() -> Vec<Resource> {
    vec![
        Resource::new::<core::Endpoints>(GROUP, "Endpoints", "endpoints")
            .short(&["ep"])
            .printed(table::ENDPOINTS, table::endpoints)
            .defaulted(endpoints_defaults),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<core::LimitRange>(GROUP, "LimitRange", "limitranges")
        }
        .short(&["limits"]),
        Resource {
            prepare_create: pending,
            ..Resource::new::<core::PersistentVolumeClaim>(
                GROUP,
                "PersistentVolumeClaim",
                "persistentvolumeclaims",
            )
        }
        .short(&["pvc"])
        .with_status(),
        Resource {
            prepare_create: pending,
            ..Resource::new::<core::PersistentVolume>(GROUP, "PersistentVolume", "persistentvolumes")
        }
        .cluster_scoped()
        .short(&["pv"])
        .with_status(),
        Resource::new::<core::PodTemplate>(GROUP, "PodTemplate", "podtemplates"),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<core::ReplicationController>(
                GROUP,
                "ReplicationController",
                "replicationcontrollers",
            )
        }
        .short(&["rc"])
        .in_all()
        .with_status()
        .with_scale()
        .with_generation()
        .printed(workloads::REPLICA_SET, workloads::replication_controller)
        .defaulted(replication_controller_defaults)
        .validated(validate_replication_controller, |_, _, _| {}),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<core::ResourceQuota>(GROUP, "ResourceQuota", "resourcequotas")
        }
        .short(&["quota"])
        .with_status(),
    ]
}

fn prepare_namespace(namespace: &mut Value) {
    namespace["status"] = json!({ "phase": "Active" });
    let finalizers = namespace.list("spec.finalizers");
    if !finalizers.iter().any(|one| one == "kubernetes") {
        let mut finalizers = finalizers.to_vec();
        finalizers.push("kubernetes".into());
        namespace["spec"]["finalizers"] = finalizers.into();
    }
}

/// The name as a label, for selectors (`SetDefaults_Namespace`).
fn namespace_defaults(namespace: &mut Value) {
    object::section(namespace, "spec");
    let name = object::name(namespace).to_owned();
    if !name.is_empty() {
        let metadata = &mut namespace["metadata"];
        object::section(metadata, "labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

fn pending(object: &mut Value) {
    object["status"] = json!({ "phase": "Pending" });
}

fn endpoints_defaults(endpoints: &mut Value) {
    for subset in super::container::items(endpoints, "subsets") {
        for port in super::container::items(subset, "ports") {
            default_to(port, "protocol", "TCP");
        }
    }
}

/// `stringData` is a way to write `data`, never stored.
fn secret_defaults(secret: &mut Value) {
    use base64::Engine;
    default_to(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = object::remove(secret, "stringData") {
        let data = object::section(secret, "data");
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default();
            data.insert(
                key,
                base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            );
        }
    }
}

/// Of a ConfigMap's and a Secret's data, in bytes (`MaxSecretSize`).
const MAX_DATA_BYTES: usize = 1 << 20;

/// All that a ConfigMap has, keys and values (`ValidateConfigMap`).
fn validate_size(map: &Value, errors: &mut Errors) {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let text = entries(map, "data").map(|(key, value)| key.len() + length(value));
    let bytes = entries(map, "binaryData").map(|(key, value)| key.len() + decoded_length(value));
    if text.chain(bytes).sum::<usize>() > MAX_DATA_BYTES {
        errors.too_long(&Path::new("[]"), MAX_DATA_BYTES);
    }
}

/// The values of a Secret (`ValidateSecret`).
fn validate_secret_size(secret: &Value, errors: &mut Errors) {
    let bytes = entries(secret, "data").map(|(_, value)| decoded_length(value));
    if bytes.sum::<usize>() > MAX_DATA_BYTES {
        errors.too_long(&Path::new("data"), MAX_DATA_BYTES);
    }
}

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.at(field).as_object().into_iter().flatten()
}

/// Of base64 (RFC 4648 §4): four letters are three bytes, less the padding.
fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

fn immutable_data(new: &Value, old: &Value, errors: &mut Errors) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        errors.forbidden(
            &Path::new("immutable"),
            "field is immutable when `immutable` is set",
        );
    }
    for field in ["data", "binaryData"] {
        if new.at(field) != old.at(field) {
            errors.forbidden(&Path::new(field), "field is immutable when `immutable` is set");
        }
    }
}

fn validate_secret_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(&Path::new("type"), new.at("type"), old.at("type"));
    immutable_data(new, old, errors);
}

/// A ReplicationController selects its template's labels unless told otherwise.
fn replication_controller_defaults(object: &mut Value) {
    replica_defaults(object);
    let labels = object.at("spec.template.metadata.labels").clone();
    if labels.is_object() {
        default_to(&mut object["spec"], "selector", labels);
    }
    if object.at("spec.template.spec").is_object() {
        pod_spec::defaults(&mut object["spec"]["template"]["spec"]);
    }
}

fn validate_replication_controller(object: &Value, errors: &mut Errors) {
    let at = Path::new("spec");
    let selector = object.at("spec.selector");
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        errors.required(&at.child("selector"), "");
    }
    validate_template(object.at("spec.template"), &at.child("template"), errors);
}
