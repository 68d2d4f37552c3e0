//! Containers within a pod spec: defaults (`pkg/apis/core/v1/defaults.go`) and rules
//! (`pkg/apis/core/validation/validation.go`).

use std::collections::HashSet;

use serde_json::{Value, json};

use super::field::{Errors, Path};
use super::names::is_label;
use crate::object::{Fields, default_to, is_unset};

/// Fills a container's absent fields.
pub(super) fn defaults(container: &mut Value, host_network: bool) {
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    if container.at("resources").is_null() {
        container["resources"] = json!({});
    }
    let policy = pull_policy(container.text("image"));
    default_to(container, "imagePullPolicy", policy);
    for port in items(container, "ports") {
        default_to(port, "protocol", "TCP");
        // Host-network pods own the host's ports (`defaultHostNetworkPorts`).
        if host_network && port.int("hostPort").unwrap_or(0) == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container.at(probe).is_object() {
            probe_defaults(&mut container[probe]);
        }
    }
    for hook in ["postStart", "preStop"] {
        if container.at("lifecycle").at(hook).at("httpGet").is_object() {
            http_get_defaults(&mut container["lifecycle"][hook]["httpGet"]);
        }
    }
    for variable in items(container, "env") {
        if variable.at("valueFrom.fieldRef").is_object() {
            default_to(&mut variable["valueFrom"]["fieldRef"], "apiVersion", "v1");
        }
    }
}

/// `requests` that are absent equal their `limits` (`SetDefaults_Pod`).
pub(super) fn requests_from_limits(container: &mut Value) {
    let limits = container
        .at("resources.limits")
        .as_object()
        .cloned()
        .unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    for (resource, limit) in limits {
        if container["resources"]["requests"][&resource].is_null() {
            container["resources"]["requests"][&resource] = limit;
        }
    }
}

/// The items of a list field; nothing when it is absent.
pub(super) fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn pull_policy(image: &str) -> &'static str {
    let after_host = image.rsplit('/').next().unwrap_or_default();
    let pinned_by_digest = after_host.contains('@');
    let latest = after_host.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if latest && !pinned_by_digest {
        "Always"
    } else {
        "IfNotPresent"
    }
}

fn probe_defaults(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe.int(field).unwrap_or(0) == 0 {
            probe[field] = value.into();
        }
    }
    if probe.at("httpGet").is_object() {
        http_get_defaults(&mut probe["httpGet"]);
    }
    if probe.at("grpc").is_object() && probe.at("grpc.service").is_null() {
        probe["grpc"]["service"] = "".into();
    }
}

fn http_get_defaults(http_get: &mut Value) {
    default_to(http_get, "path", "/");
    default_to(http_get, "scheme", "HTTP");
}

/// All containers of one list; names must be unique across lists, so that `names` is shared.
pub(super) fn validate_all(
    containers: &[Value],
    at: &Path,
    volumes: &HashSet<&str>,
    names: &mut HashSet<String>,
    errors: &mut Errors,
) {
    let mut host_ports = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let at = at.index(index);
        validate(container, &at, volumes, errors);
        let name = container.text("name");
        if !name.is_empty() && !names.insert(name.to_owned()) {
            errors.duplicate(&at.child("name"), name);
        }
        for (index, port) in container.list("ports").iter().enumerate() {
            let host_port = port.int("hostPort").unwrap_or(0);
            let key = format!("{}/{}/{host_port}", port.text("protocol"), port.text("hostIP"));
            if host_port != 0 && !host_ports.insert(key.clone()) {
                errors.duplicate(&at.child("ports").index(index).child("hostPort"), key);
            }
        }
    }
}

fn validate(container: &Value, at: &Path, volumes: &HashSet<&str>, errors: &mut Errors) {
    validate_label(container.text("name"), &at.child("name"), errors);
    let image = container.text("image");
    if image.is_empty() {
        errors.required(&at.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(
            &at.child("image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
    one_of(
        container,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
        at,
        errors,
    );
    one_of(
        container,
        "terminationMessagePolicy",
        &["FallbackToLogsOnError", "File"],
        at,
        errors,
    );
    validate_ports(container.list("ports"), &at.child("ports"), errors);
    validate_env(container.list("env"), &at.child("env"), errors);
    validate_mounts(
        container.list("volumeMounts"),
        &at.child("volumeMounts"),
        volumes,
        errors,
    );
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container.at(probe).is_object() {
            validate_probe(&container[probe], probe, &at.child(probe), errors);
        }
    }
    validate_lifecycle(container.at("lifecycle"), &at.child("lifecycle"), errors);
    validate_resources(container.at("resources"), &at.child("resources"), errors);
}

/// A required RFC 1123 label.
pub(super) fn validate_label(name: &str, at: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "");
    } else if let Some(complaint) = super::NameRule::Label.complaint(name) {
        errors.invalid(at, name, complaint);
    }
}

/// The field must be one of `allowed`, which stand in the order of the error text.
pub(super) fn one_of(object: &Value, field: &str, allowed: &[&str], at: &Path, errors: &mut Errors) {
    let value = object.at(field);
    if is_unset(value) {
        errors.required(&at.child(field), "");
    } else if !value.as_str().is_some_and(|value| allowed.contains(&value)) {
        errors.not_supported(&at.child(field), value.clone(), allowed);
    }
}

/// 1-65535, with upstream's text.
pub(super) fn validate_port_number(number: i64, at: &Path, errors: &mut Errors) {
    if !(1..=65535).contains(&number) {
        errors.invalid(at, number, "must be between 1 and 65535, inclusive");
    }
}

/// IANA service name: what a named port may be called.
pub(super) fn port_name_complaint(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters");
    }
    if !name
        .chars()
        .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
    {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.chars().any(|letter| letter.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens");
    }
    (!is_label(name)).then_some("must not begin or end with a hyphen")
}

fn validate_ports(ports: &[Value], at: &Path, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = at.index(index);
        let name = port.text("name");
        if let Some(complaint) = port_name_complaint(name).filter(|_| !name.is_empty()) {
            errors.invalid(&at.child("name"), name, complaint);
        } else if !name.is_empty() && !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        match port.int("containerPort").unwrap_or(0) {
            0 => errors.required(&at.child("containerPort"), ""),
            number => validate_port_number(number, &at.child("containerPort"), errors),
        }
        if let Some(number) = port.int("hostPort").filter(|number| *number != 0) {
            validate_port_number(number, &at.child("hostPort"), errors);
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &at, errors);
    }
}

fn validate_env(variables: &[Value], at: &Path, errors: &mut Errors) {
    for (index, variable) in variables.iter().enumerate() {
        let at = at.index(index);
        let name = variable.text("name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if name.contains('=')
            || !name
                .chars()
                .all(|letter| letter.is_ascii_graphic() || letter == ' ')
        {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.invalid(&at.child("name"), name, detail);
        }
        let from = variable.at("valueFrom");
        if !from.is_object() {
            continue;
        }
        let sources = from
            .as_object()
            .map_or(0, |map| map.values().filter(|source| source.is_object()).count());
        if !variable.text("value").is_empty() {
            let detail = "may not be specified when `value` is not empty";
            errors.invalid(&at.child("valueFrom"), "", detail);
        } else if sources == 0 {
            let detail =
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.invalid(&at.child("valueFrom"), "", detail);
        } else if sources > 1 {
            errors.invalid(
                &at.child("valueFrom"),
                "",
                "may not have more than one field specified at a time",
            );
        }
    }
}

fn validate_mounts(mounts: &[Value], at: &Path, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let at = at.index(index);
        let name = mount.text("name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !volumes.contains(name) {
            errors.not_found(&at.child("name"), name);
        }
        let path = mount.text("mountPath");
        if path.is_empty() {
            errors.required(&at.child("mountPath"), "");
        } else if !paths.insert(path) {
            errors.invalid(&at.child("mountPath"), path, "must be unique");
        }
    }
}

/// The hooks around a container's life.
fn validate_lifecycle(lifecycle: &Value, at: &Path, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        if lifecycle.at(hook).is_object() {
            validate_handler(
                &lifecycle[hook],
                &["exec", "httpGet", "tcpSocket", "sleep"],
                &at.child(hook),
                errors,
            );
        }
    }
}

/// What a probe or a hook does: one of `kinds`.
fn validate_handler(action: &Value, kinds: &[&str], at: &Path, errors: &mut Errors) {
    let handlers: Vec<&&str> = kinds.iter().filter(|kind| action.at(kind).is_object()).collect();
    match handlers.as_slice() {
        [] => errors.required(at, "must specify a handler type"),
        [_, more @ ..] => {
            for handler in more {
                errors.forbidden(&at.child(handler), "may not specify more than 1 handler type");
            }
        }
    }
    for handler in ["httpGet", "tcpSocket"] {
        if action.at(handler).is_object() {
            validate_target_port(&action[handler]["port"], &at.child(handler).child("port"), errors);
        }
    }
}

fn validate_probe(probe: &Value, kind: &str, at: &Path, errors: &mut Errors) {
    validate_handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], at, errors);
    if probe.at("exec").is_object() && probe.list("exec.command").is_empty() {
        errors.required(&at.child("exec").child("command"), "");
    }
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(value) = probe.int(field).filter(|value| *value < 0) {
            errors.invalid(&at.child(field), value, "must be greater than or equal to 0");
        }
    }
    let successes = probe.int("successThreshold").unwrap_or(1);
    if kind != "readinessProbe" && successes != 1 {
        errors.invalid(&at.child("successThreshold"), successes, "must be 1");
    }
}

/// An int-or-string port.
pub(super) fn validate_target_port(port: &Value, at: &Path, errors: &mut Errors) {
    match port {
        Value::Number(number) => validate_port_number(number.as_i64().unwrap_or(0), at, errors),
        Value::String(name) => {
            if let Some(complaint) = port_name_complaint(name) {
                errors.invalid(at, name.as_str(), complaint);
            }
        }
        _ => errors.required(at, ""),
    }
}

fn validate_resources(resources: &Value, at: &Path, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, quantity) in resources.at(list).as_object().into_iter().flatten() {
            let text = quantity.as_str().unwrap_or_default();
            match quantity_milli(text) {
                None => errors.invalid(&at.child(list).key(name), text, QUANTITY_TEXT),
                Some(value) if value < 0 => {
                    errors.invalid(
                        &at.child(list).key(name),
                        text,
                        "must be greater than or equal to 0",
                    );
                }
                Some(_) => {}
            }
        }
    }
    for (name, request) in resources.at("requests").as_object().into_iter().flatten() {
        let limit = resources.at("limits").text(name);
        let (request, limit_value) = (request.as_str().unwrap_or_default(), quantity_milli(limit));
        if let (Some(wanted), Some(allowed)) = (quantity_milli(request), limit_value)
            && wanted > allowed
        {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(&at.child("requests"), request, detail);
        }
    }
}

const QUANTITY_TEXT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A quantity in thousandths; enough to compare and to tell good from bad.
pub(super) fn quantity_milli(text: &str) -> Option<i128> {
    let digits = text.trim_start_matches(['+', '-']);
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let micro: i128 = match suffix {
        "n" => return Some(0),
        "u" => 1,
        "m" => 1_000,
        "" => 1_000_000,
        _ => 1_000_000 * multiplier(suffix)?,
    };
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction_value: i128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let total = whole
        .checked_mul(micro)?
        .checked_add(fraction_value.checked_mul(micro)? / scale)?
        / 1_000;
    Some(if text.starts_with('-') { -total } else { total })
}

fn multiplier(suffix: &str) -> Option<i128> {
    let power = |base: i128, letters: &str| {
        let exponent = letters.find(suffix.chars().next()?.to_ascii_uppercase())?;
        base.checked_pow(u32::try_from(exponent + 1).ok()?)
    };
    match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => power(1024, "KMGTPE"),
        "k" | "M" | "G" | "T" | "P" | "E" => power(1000, "KMGTPE"),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_i128.checked_pow(exponent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_fixed_tag_are_always_pulled() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/a/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0a", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn quantities_are_read() {
        for (text, milli) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1k", Some(1_000_000)),
            ("2e3", Some(2_000_000)),
            ("-1", Some(-1000)),
            ("", None),
            ("abc", None),
            ("1x", None),
        ] {
            assert_eq!(quantity_milli(text), milli, "{text}");
        }
    }

    #[test]
    fn port_names_are_iana_service_names() {
        for (name, good) in [
            ("http", true),
            ("http-2", true),
            ("80", false),
            ("HTTP", false),
            ("a--b", false),
            ("-a", false),
        ] {
            assert_eq!(port_name_complaint(name).is_none(), good, "{name}");
        }
    }
}
