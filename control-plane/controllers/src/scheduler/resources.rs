//! Amounts of resources: what pods ask for and what nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// An amount in thousandths of the unit: millicores of CPU, thousandths of a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Amount(pub i128);

/// Amounts by the name of the resource.
pub(crate) type Amounts = BTreeMap<String, Amount>;

/// What a pod that asks for nothing is taken to use when nodes are compared (upstream's
/// `DefaultMilliCPURequest`).
const ASSUMED_CPU: Amount = Amount(100);
/// The same for memory: 200 MB.
const ASSUMED_MEMORY: Amount = Amount(200 * 1024 * 1024 * 1000);

/// Reads a quantity (`100m`, `1.5`, `128Mi`, `1e3`), rounding up. What is none counts as zero: the API server
/// lets nothing else pass.
pub(crate) fn amount(quantity: &Quantity) -> Amount {
    Amount(parse(&quantity.0).unwrap_or(0))
}

fn parse(text: &str) -> Option<i128> {
    let end = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 {
                (1_000, power)
            } else {
                (power.checked_mul(1_000)?, 1)
            }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let dividend = digits.checked_mul(numerator)?;
    let divisor = denominator.checked_mul(scale)?;
    Some(dividend.div_euclid(divisor) + i128::from(dividend.rem_euclid(divisor) != 0))
}

/// Reads a list of quantities.
pub(crate) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities
        .into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), amount(quantity)))
        .collect()
}

/// What a pod asks of its node: its containers together, or its hungriest init container if that is more,
/// plus its overhead. Init containers that keep running (sidecars) count with both. What is asked for the pod
/// as a whole holds instead, where it is given (KEP-2837).
pub(crate) fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let mut total = container_requests(spec);
    for (name, amount) in asked(spec.resources.as_ref()) {
        total.insert(name, amount);
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.retain(|_, amount| amount.0 != 0);
    total
}

fn container_requests(spec: &PodSpec) -> Amounts {
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut running = sidecars.clone();
        add(&mut running, &asked(container.resources.as_ref()));
        raise(&mut peak, &running);
        if is_sidecar(container) {
            sidecars = running;
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        add(&mut total, &asked(container.resources.as_ref()));
    }
    raise(&mut total, &peak);
    total
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn asked(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|resources| resources.requests.as_ref()))
}

/// The same for comparing nodes: a pod that asks for no CPU or no memory still uses some.
pub(crate) fn with_assumed(requests: &Amounts) -> Amounts {
    let mut requests = requests.clone();
    requests.entry("cpu".to_owned()).or_insert(ASSUMED_CPU);
    requests.entry("memory".to_owned()).or_insert(ASSUMED_MEMORY);
    requests
}

/// Adds `more` to `total`.
pub(crate) fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        total.entry(name.clone()).or_default().0 += amount.0;
    }
}

/// Takes `less` from `total`.
pub(crate) fn subtract(total: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        total.entry(name.clone()).or_default().0 -= amount.0;
    }
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn quantities_are_read_in_every_form_and_rounded_up() {
        let rows = [
            ("0", 0),
            ("1", 1_000),
            ("100m", 100),
            ("1.5", 1_500),
            ("0.1", 100),
            ("1u", 1),
            ("1500u", 2),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("128Mi", 134_217_728_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1e-2", 10),
            ("2E", 2_000_000_000_000_000_000_000),
            ("nonsense", 0),
            ("", 0),
        ];
        for (text, expected) in rows {
            assert_eq!(amount(&Quantity(text.to_owned())), Amount(expected), "{text:?}");
        }
    }

    #[track_caller]
    fn check(spec: Value, expected: i128) {
        let pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        let cpu = requests(&pod).get("cpu").copied().unwrap_or_default();
        assert_eq!(cpu, Amount(expected));
    }

    fn container(cpu: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    fn sidecar(cpu: &str) -> Value {
        json!({ "name": "c", "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_hungriest_init_container() {
        check(json!({ "containers": [] }), 0);
        check(
            json!({ "containers": [container("100m"), container("200m")] }),
            300,
        );
        check(
            json!({ "containers": [container("100m")], "initContainers": [container("1"), container("2")] }),
            2_000,
        );
        check(
            json!({ "containers": [container("1")], "initContainers": [container("500m")] }),
            1_000,
        );
        check(
            json!({ "containers": [container("1")], "initContainers": [sidecar("500m"), container("1")] }),
            1_500,
        );
        check(
            json!({ "containers": [container("1")], "overhead": { "cpu": "50m" } }),
            1_050,
        );
        check(
            json!({ "containers": [container("1")], "resources": { "requests": { "cpu": "3" } } }),
            3_000,
        );
    }
}
