//! A container's environment and its `$(VAR)` expansion.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, ResourceFieldSelector, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity;

/// ConfigMaps and Secrets of the pod's namespace that its containers name; absent ones are absent keys.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// What the environment is made from.
pub struct EnvContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// All Services that the node knows.
    pub services: &'a [Service],
    /// Objects that variables refer to.
    pub sources: &'a Sources,
    /// What the node has for pods.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// A variable that cannot be given (`CreateContainerConfigError`); the text is Kubernetes' own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Names of the ConfigMaps and Secrets that a container's environment needs.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(
            source
                .config_map_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|variable| variable.value_from.as_ref())
    {
        config_maps.extend(
            source
                .config_map_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        secrets.extend(
            source
                .secret_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
    }
    (config_maps, secrets)
}

/// All variables: Services, then `envFrom`, then `env`, each later one winning.
pub fn environment(
    container: &Container,
    context: &EnvContext,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut variables = service_variables(context);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        let (kind, name, optional, known) = if let Some(reference) = &source.config_map_ref {
            (
                "configmap",
                &reference.name,
                reference.optional,
                &context.sources.config_maps,
            )
        } else if let Some(reference) = &source.secret_ref {
            (
                "secret",
                &reference.name,
                reference.optional,
                &context.sources.secrets,
            )
        } else {
            continue;
        };
        match known.get(name) {
            Some(data) => variables.extend(data.iter().filter_map(|(key, value)| {
                Some((format!("{prefix}{key}"), String::from_utf8(value.clone()).ok()?))
            })),
            None if optional == Some(true) => {}
            None => return Err(ConfigError(format!("{kind} \"{name}\" not found"))),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(variable, container, &variables, context)? {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

fn value_of(
    variable: &EnvVar,
    container: &Container,
    known: &BTreeMap<String, String>,
    context: &EnvContext,
) -> Result<Option<String>, ConfigError> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), known)));
    };
    if let Some(field) = &source.field_ref {
        return field_value(&field.field_path, context).map(Some).ok_or_else(|| {
            ConfigError(format!(
                "unsupported fieldPath: {} of variable {}",
                field.field_path, variable.name
            ))
        });
    }
    if let Some(key) = &source.config_map_key_ref {
        let data = context.sources.config_maps.get(&key.name);
        return keyed(data, "configmap", &key.name, &key.key, key.optional, context);
    }
    if let Some(key) = &source.secret_key_ref {
        let data = context.sources.secrets.get(&key.name);
        return keyed(data, "secret", &key.name, &key.key, key.optional, context);
    }
    if let Some(selector) = &source.resource_field_ref {
        return resource_value(selector, Some(container), context).map(Some);
    }
    Err(ConfigError(format!(
        "variable {}: this kubelet does not support its valueFrom yet",
        variable.name
    )))
}

fn keyed(
    data: Option<&BTreeMap<String, Vec<u8>>>,
    kind: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    context: &EnvContext,
) -> Result<Option<String>, ConfigError> {
    let value = data.and_then(|data| data.get(key));
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or_default();
    match (data, value) {
        (_, Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional == Some(true) => Ok(None),
        (None, _) => Err(ConfigError(format!("{kind} \"{name}\" not found"))),
        (Some(_), None) => {
            let kind = if kind == "secret" { "Secret" } else { "ConfigMap" };
            Err(ConfigError(format!(
                "couldn't find key {key} in {kind} {namespace}/{name}"
            )))
        }
    }
}

/// A container's request or limit in units of the divisor, rounded up; a limit that is not set is what the node has
/// (`ExtractContainerResourceValue` of `pkg/api/v1/resource`).
pub fn resource_value(
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    context: &EnvContext,
) -> Result<String, ConfigError> {
    let named = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own,
        Some(name) => {
            let spec = context.pod.spec.as_ref();
            let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let main = spec.iter().flat_map(|spec| &spec.containers);
            init.chain(main).find(|container| container.name == name)
        }
    };
    let unknown = |what: &str| ConfigError(format!("unsupported container resource : {what}"));
    let container = named.ok_or_else(|| {
        ConfigError(format!(
            "container {} not found",
            selector.container_name.as_deref().unwrap_or_default()
        ))
    })?;
    let (list, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| unknown(&selector.resource))?;
    let resources = container.resources.as_ref();
    let set = match list {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unknown(&selector.resource)),
    };
    let own = set
        .and_then(|list| list.get(name))
        .map(|quantity| quantity.0.clone());
    let of_node = || context.allocatable.get(name).map(|quantity| quantity.0.clone());
    let amount = match (own, list) {
        (Some(own), _) => own,
        (None, "limits") => of_node().ok_or_else(|| unknown(&selector.resource))?,
        (None, _) => "0".to_owned(),
    };
    let divisor = selector.divisor.as_ref().map(|divisor| divisor.0.as_str());
    let divisor = divisor
        .filter(|divisor| !matches!(*divisor, "" | "0"))
        .unwrap_or("1");
    let (amount, divisor) = (quantity::millis(&amount), quantity::millis(divisor));
    let (Some(amount), Some(divisor @ 1..)) = (amount, divisor) else {
        return Err(unknown(&selector.resource));
    };
    Ok((amount.div_euclid(divisor) + i128::from(amount.rem_euclid(divisor) != 0)).to_string())
}

/// A field of the pod by its path, as the downward API names it.
pub fn field_value(path: &str, context: &EnvContext) -> Option<String> {
    let (metadata, spec) = (&context.pod.metadata, context.pod.spec.as_ref()?);
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let subscript = |kind: &str| {
        Some(
            path.strip_prefix(kind)?
                .strip_prefix("['")?
                .strip_suffix("']")?
                .to_owned(),
        )
    };
    Some(match path {
        "metadata.name" => metadata.name.clone()?,
        "metadata.namespace" => metadata.namespace.clone()?,
        "metadata.uid" => metadata.uid.clone()?,
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&context.host_ips),
        "status.hostIPs" => join(&context.host_ips),
        "status.podIP" => first(context.pod_ips),
        "status.podIPs" => join(context.pod_ips),
        "metadata.labels" => key_values(metadata.labels.as_ref()),
        "metadata.annotations" => key_values(metadata.annotations.as_ref()),
        _ => {
            let (map, key) = match (subscript("metadata.labels"), subscript("metadata.annotations")) {
                (Some(key), _) => (metadata.labels.as_ref(), key),
                (_, Some(key)) => (metadata.annotations.as_ref(), key),
                _ => return None,
            };
            map.and_then(|map| map.get(&key)).cloned().unwrap_or_default()
        }
    })
}

fn key_values(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// The variables that containers had before there was DNS: `default/kubernetes` for every pod, and all Services of
/// its namespace unless `enableServiceLinks` is false.
fn service_variables(context: &EnvContext) -> BTreeMap<String, String> {
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = context
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let mut variables = BTreeMap::new();
    let named = |service: &&Service, wanted: bool| {
        let metadata = &service.metadata;
        let is_api = metadata.namespace.as_deref() == Some("default")
            && metadata.name.as_deref() == Some("kubernetes");
        is_api == wanted && (wanted || (links && metadata.namespace.as_deref() == Some(namespace)))
    };
    for wanted in [true, false] {
        for service in context.services.iter().filter(|service| named(service, wanted)) {
            add_service(&mut variables, service);
        }
    }
    variables
}

fn add_service(variables: &mut BTreeMap<String, String>, service: &Service) {
    let (Some(name), Some(spec)) = (service.metadata.name.as_deref(), service.spec.as_ref()) else {
        return;
    };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let name = name.to_uppercase().replace('-', "_");
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    variables.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    variables.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let number = port.port;
        if let Some(port_name) = port.name.as_deref().filter(|port_name| !port_name.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            variables.insert(format!("{name}_SERVICE_PORT_{port_name}"), number.to_string());
        }
        let url = format!("{}://{host}:{number}", protocol.to_lowercase());
        if index == 0 {
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{number}_{protocol}");
        variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{prefix}_PORT"), number.to_string());
        variables.insert(format!("{prefix}_ADDR"), ip.to_owned());
        variables.insert(prefix, url);
    }
}

/// The first variable of `$(VAR)` in a text that has no value.
pub fn undefined(text: &str, variables: &BTreeMap<String, String>) -> Option<String> {
    let escaped = text.replace("$$", "");
    let mut references = escaped
        .split("$(")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    references
        .find(|(name, _)| !variables.contains_key(*name))
        .map(|(name, _)| name.to_owned())
}

/// Replaces `$(NAME)` of known names; `$$` is `$`, and what is unknown stays as it is.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = tail.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let name = tail.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, after)| Some((variables.get(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = tail.get(1..).unwrap_or_default();
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn expansion_follows_kubernetes() {
        let variables = BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "$(A)".to_owned()),
        ]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(NO)", "$(NO)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$(B)", "$(A)"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[track_caller]
    fn check(container: Value, expected: Result<Value, &str>) {
        let mut container = container;
        container["name"] = json!("c");
        let container: Container = serde_json::from_value(container).expect("a valid container");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [], "nodeName": "n", "enableServiceLinks": false}
        }))
        .expect("a valid pod");
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "cm".to_owned(),
                BTreeMap::from([("k".to_owned(), b"v".to_vec())]),
            )]),
            secrets: BTreeMap::new(),
        };
        let context = EnvContext {
            pod: &pod,
            pod_ips: &["10.244.1.2".parse().expect("an address")],
            host_ips: vec!["172.30.0.11".parse().expect("an address")],
            services: &[],
            sources: &sources,
            allocatable: BTreeMap::from([("cpu".to_owned(), Quantity("4".to_owned()))]),
        };
        let seen = environment(&container, &context).map(|variables| json!(variables));
        assert_eq!(seen, expected.map_err(|text| ConfigError(text.to_owned())));
    }

    #[test]
    fn variables_come_from_values_fields_and_objects() {
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]}),
            Ok(json!({"A": "1", "B": "12"})),
        );
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.labels['app']", "x"),
            ("status.podIP", "10.244.1.2"),
            ("status.hostIP", "172.30.0.11"),
            ("spec.nodeName", "n"),
        ] {
            let source = json!({"fieldRef": {"fieldPath": path}});
            check(
                json!({"env": [{"name": "A", "valueFrom": source}]}),
                Ok(json!({ "A": value })),
            );
        }
        let from = |name, key| json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}]});
        check(from("cm", "k"), Ok(json!({"A": "v"})));
        check(from("cm", "no"), Err("couldn't find key no in ConfigMap ns/cm"));
        check(from("no", "k"), Err("configmap \"no\" not found"));
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}]}),
            Ok(json!({"P_k": "v"})),
        );
        check(
            json!({"envFrom": [{"secretRef": {"name": "no", "optional": true}}]}),
            Ok(json!({})),
        );
    }

    #[test]
    fn requests_and_limits_are_told_in_units_of_the_divisor() {
        let resources = json!({"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}});
        for (resource, divisor, expected) in [
            ("requests.cpu", "", Ok("1")),
            ("requests.cpu", "1m", Ok("250")),
            ("limits.cpu", "", Ok("4")),
            ("limits.memory", "1Mi", Ok("64")),
            ("limits.memory", "", Ok("67108864")),
            ("requests.memory", "", Ok("0")),
            (
                "limits.dogs",
                "",
                Err("unsupported container resource : limits.dogs"),
            ),
            ("dogs", "", Err("unsupported container resource : dogs")),
        ] {
            let source = json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}});
            let variables = json!([{"name": "A", "valueFrom": source}]);
            check(
                json!({"env": variables, "resources": resources}),
                expected.map(|value| json!({ "A": value })),
            );
        }
    }

    #[test]
    fn a_service_is_told_by_its_variables() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-api", "namespace": "ns"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
        }))
        .expect("a valid service");
        let mut variables = BTreeMap::new();
        add_service(&mut variables, &service);
        assert_eq!(
            json!(variables),
            json!({
                "MY_API_SERVICE_HOST": "10.96.0.5", "MY_API_SERVICE_PORT": "80", "MY_API_SERVICE_PORT_HTTP": "80",
                "MY_API_PORT": "tcp://10.96.0.5:80", "MY_API_PORT_80_TCP": "tcp://10.96.0.5:80",
                "MY_API_PORT_80_TCP_PROTO": "tcp", "MY_API_PORT_80_TCP_PORT": "80",
                "MY_API_PORT_80_TCP_ADDR": "10.96.0.5"
            })
        );
    }
}
