//! What of the API is there: that of a version of Kubernetes, and features that are switched apart from it.
//!
//! Clients meet servers of many versions. What those lack that they notice is switched off here, one by one or by the
//! version: rows of the table, fields of objects, and parts of the protocol. Fields of other features of 1.28 to 1.33
//! are served at every version. Rows and fields that are switched off stay in the store.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::resources::Resource;

/// A version of Kubernetes, 1.27 to 1.33; as text `1.33`. It is read as `kubectl version` prints it too, with a `v` and a
/// patch version (`v1.27.3+k3s1`), which decides nothing. Default: the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KubernetesVersion {
    minor: u8,
}

/// A feature, by upstream's name for its gate
/// (`kubernetes.io/docs/reference/command-line-tools-reference/feature-gates`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `sendInitialEvents` (KEP-3157): a watch begins with the list.
    WatchList,
    /// Bookmarks in watches (KEP-956).
    WatchBookmark,
    /// `limit` and `continue` of lists (KEP-365). Off, lists come whole.
    ApiListChunking,
    /// All groups in one document (KEP-3352).
    AggregatedDiscoveryEndpoint,
    /// `/openapi/v3` (KEP-2896).
    OpenApiV3,
    /// ServiceCIDRs and IPAddresses (KEP-1880).
    MultiCidrServiceAllocator,
    /// SelfSubjectReviews (KEP-3325).
    ApiSelfSubjectReview,
    /// `spec.trafficDistribution` of Services (KEP-4444).
    ServiceTrafficDistribution,
    /// `ipMode` of load balancers' addresses (KEP-1860).
    LoadBalancerIpMode,
    /// `status.hostIPs` of Pods (KEP-2681).
    PodHostIps,
    /// Init containers that go on beside the others (KEP-753).
    SidecarContainers,
}

/// A text is none of what there is to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// A version that is not served.
    #[error("{0:?} is no version that can be served: 1.{oldest} to 1.{newest}", oldest = OLDEST, newest = NEWEST)]
    Version(String),
    /// A gate that is not switched as gates are.
    #[error("{0:?} switches nothing: expected a feature and =true or =false")]
    Gate(String),
    /// A gate that is switched on and off.
    #[error("{name} is switched on and off", name = .0.name())]
    Twice(Feature),
    /// A feature that cannot be switched.
    #[error("{0:?} is no feature that can be switched: {names}", names = Feature::ALL.map(Feature::name).join(", "))]
    Feature(String),
}

const OLDEST: u8 = 27;
const NEWEST: u8 = 33;

impl KubernetesVersion {
    /// The number after `1.`.
    pub fn minor(self) -> u8 {
        self.minor
    }
}

impl Default for KubernetesVersion {
    fn default() -> Self {
        KubernetesVersion { minor: NEWEST }
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.minor)
    }
}

impl FromStr for KubernetesVersion {
    type Err = FeatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('v').unwrap_or(text);
        let minor = number.strip_prefix("1.").unwrap_or_default();
        let (minor, patch) = minor.split_once('.').unwrap_or((minor, "0"));
        let is_patch = patch.starts_with(|c: char| c.is_ascii_digit());
        let served = (OLDEST..=NEWEST).find(|served| is_patch && served.to_string() == minor);
        served
            .map(|minor| KubernetesVersion { minor })
            .ok_or_else(|| FeatureError::Version(text.to_owned()))
    }
}

impl TryFrom<String> for KubernetesVersion {
    type Error = FeatureError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> Self {
        version.to_string()
    }
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 11] = [
        Feature::WatchList,
        Feature::WatchBookmark,
        Feature::ApiListChunking,
        Feature::AggregatedDiscoveryEndpoint,
        Feature::OpenApiV3,
        Feature::MultiCidrServiceAllocator,
        Feature::ApiSelfSubjectReview,
        Feature::ServiceTrafficDistribution,
        Feature::LoadBalancerIpMode,
        Feature::PodHostIps,
        Feature::SidecarContainers,
    ];

    /// The gate's name.
    pub fn name(self) -> &'static str {
        match self {
            Feature::WatchList => "WatchList",
            Feature::WatchBookmark => "WatchBookmark",
            Feature::ApiListChunking => "APIListChunking",
            Feature::AggregatedDiscoveryEndpoint => "AggregatedDiscoveryEndpoint",
            Feature::OpenApiV3 => "OpenAPIV3",
            Feature::MultiCidrServiceAllocator => "MultiCIDRServiceAllocator",
            Feature::ApiSelfSubjectReview => "APISelfSubjectReview",
            Feature::ServiceTrafficDistribution => "ServiceTrafficDistribution",
            Feature::LoadBalancerIpMode => "LoadBalancerIPMode",
            Feature::PodHostIps => "PodHostIPs",
            Feature::SidecarContainers => "SidecarContainers",
        }
    }

    /// The minor version that has it on from then on, unless its gate is set: upstream's default, but for `WatchList`,
    /// which upstream has off again in 1.33 alone. SelfSubjectReviews are served as `v1`, which 1.27 does not have.
    fn since(self) -> u8 {
        match self {
            Feature::WatchBookmark
            | Feature::ApiListChunking
            | Feature::AggregatedDiscoveryEndpoint
            | Feature::OpenApiV3 => OLDEST,
            Feature::ApiSelfSubjectReview => 28,
            Feature::PodHostIps | Feature::SidecarContainers => 29,
            Feature::LoadBalancerIpMode => 30,
            Feature::ServiceTrafficDistribution => 31,
            Feature::WatchList => 32,
            Feature::MultiCidrServiceAllocator => 33,
        }
    }

    /// The feature that a row belongs to, if it is one that can be switched.
    fn of_row(row: &Resource) -> Option<Feature> {
        match (row.group, row.kind) {
            ("networking.k8s.io", "ServiceCIDR" | "IPAddress") => Some(Feature::MultiCidrServiceAllocator),
            ("authentication.k8s.io", "SelfSubjectReview") => Some(Feature::ApiSelfSubjectReview),
            _ => None,
        }
    }
}

impl FromStr for Feature {
    type Err = FeatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Feature::ALL.into_iter().find(|feature| feature.name() == text);
        named.ok_or_else(|| FeatureError::Feature(text.to_owned()))
    }
}

/// Features that are on or off whatever the version; as text `WatchList=false,OpenAPIV3=true`. The last word about one
/// counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Gates(BTreeMap<Feature, bool>);

impl FromStr for Gates {
    type Err = FeatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut gates = BTreeMap::new();
        if text.is_empty() {
            return Ok(Gates(gates));
        }
        for word in text.split(',').map(str::trim) {
            let no_gate = || FeatureError::Gate(word.to_owned());
            let (name, switch) = word.split_once('=').ok_or_else(no_gate)?;
            let (feature, on) = (name.parse()?, switch.parse().map_err(|_| no_gate())?);
            if gates.insert(feature, on).is_some_and(|before| before != on) {
                return Err(FeatureError::Twice(feature));
            }
        }
        Ok(Gates(gates))
    }
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (feature, on)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}={on}", feature.name())?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Gates {
    type Error = FeatureError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Gates> for String {
    fn from(gates: Gates) -> Self {
        gates.to_string()
    }
}

/// What is served. Default: all that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// What decides where no gate is set.
    pub version: KubernetesVersion,
    /// What is switched apart from it.
    pub gates: Gates,
}

/// Fields of switched features: kinds, and paths in them, where `*` is each item of a list. What a template of pods may
/// say is below [`TEMPLATES`] as well.
const FIELDS: [(Feature, &str, &str); 4] = [
    (
        Feature::ServiceTrafficDistribution,
        "Service",
        "spec.trafficDistribution",
    ),
    (
        Feature::LoadBalancerIpMode,
        "Service",
        "status.loadBalancer.ingress.*.ipMode",
    ),
    (Feature::PodHostIps, "Pod", "status.hostIPs"),
    (
        Feature::SidecarContainers,
        "Pod",
        "spec.initContainers.*.restartPolicy",
    ),
];

/// Where kinds have a template of pods.
const TEMPLATES: [(&str, &str); 8] = [
    ("CronJob", "spec.jobTemplate.spec.template"),
    ("DaemonSet", "spec.template"),
    ("Deployment", "spec.template"),
    ("Job", "spec.template"),
    ("PodTemplate", "template"),
    ("ReplicaSet", "spec.template"),
    ("ReplicationController", "spec.template"),
    ("StatefulSet", "spec.template"),
];

impl Features {
    /// Whether a feature is on.
    pub fn has(&self, feature: Feature) -> bool {
        let gate = self.gates.0.get(&feature).copied();
        gate.unwrap_or_else(|| self.version.minor >= feature.since())
    }

    /// Whether a row of the table is served.
    pub fn serves(&self, row: &Resource) -> bool {
        Feature::of_row(row).is_none_or(|feature| self.has(feature))
    }

    /// Takes out the fields of features that are off, but for those that the object has already, as upstream's
    /// `dropDisabledFields`.
    pub(crate) fn drop_disabled(&self, kind: &str, object: &mut Value, old: Option<&Value>) {
        let template = TEMPLATES.iter().find(|(of, _)| *of == kind);
        for (_, of, path) in FIELDS.iter().filter(|(feature, ..)| !self.has(*feature)) {
            let path = match template {
                _ if *of == kind => (*path).to_owned(),
                Some((_, template)) if *of == "Pod" => format!("{template}.{path}"),
                _ => continue,
            };
            let segments: Vec<&str> = path.split('.').collect();
            if !old.is_some_and(|old| has_at(old, &segments)) {
                remove_at(object, &segments);
            }
        }
    }
}

fn has_at(value: &Value, path: &[&str]) -> bool {
    match path {
        [] => !value.is_null(),
        ["*", rest @ ..] => {
            let mut items = value.as_array().into_iter().flatten();
            items.any(|item| has_at(item, rest))
        }
        [field, rest @ ..] => value.get(field).is_some_and(|below| has_at(below, rest)),
    }
}

fn remove_at(value: &mut Value, path: &[&str]) {
    match path {
        [] => {}
        ["*", rest @ ..] => {
            let items = value.as_array_mut().into_iter().flatten();
            items.for_each(|item| remove_at(item, rest));
        }
        [field] => {
            value.as_object_mut().and_then(|fields| fields.remove(*field));
        }
        [field, rest @ ..] => {
            if let Some(below) = value.get_mut(field) {
                remove_at(below, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn features(version: &str, gates: &str) -> Features {
        Features {
            version: version.parse().expect("a version"),
            gates: gates.parse().expect("gates"),
        }
    }

    #[test]
    fn a_version_decides_what_no_gate_does() {
        let missing = |features: &Features| {
            let missing = Feature::ALL.into_iter().filter(|feature| !features.has(*feature));
            missing.map(Feature::name).collect::<Vec<_>>()
        };
        for (version, gates, expected) in [
            ("1.33", "", &[][..]),
            (
                "1.33",
                "WatchList=false,WatchBookmark=false",
                &["WatchList", "WatchBookmark"],
            ),
            ("1.32", "", &["MultiCIDRServiceAllocator"]),
            ("1.31", "", &["WatchList", "MultiCIDRServiceAllocator"]),
            (
                "1.31",
                "WatchList=true,PodHostIPs=false",
                &["MultiCIDRServiceAllocator", "PodHostIPs"],
            ),
            (
                "1.28",
                "",
                &[
                    "WatchList",
                    "MultiCIDRServiceAllocator",
                    "ServiceTrafficDistribution",
                    "LoadBalancerIPMode",
                    "PodHostIPs",
                    "SidecarContainers",
                ],
            ),
            (
                "1.27",
                "LoadBalancerIPMode=true",
                &[
                    "WatchList",
                    "MultiCIDRServiceAllocator",
                    "APISelfSubjectReview",
                    "ServiceTrafficDistribution",
                    "PodHostIPs",
                    "SidecarContainers",
                ],
            ),
        ] {
            assert_eq!(missing(&features(version, gates)), expected, "{version} {gates}");
        }
        assert_eq!(missing(&Features::default()), Vec::<&str>::new());
    }

    #[test]
    fn what_cannot_be_served_or_switched_is_named_with_what_can() {
        for text in [
            "1.26", "1.34", "27", "v27", "vv1.27", "1.27.", "1.27.x", "1.+27", "v1.34.0", "",
        ] {
            let refused = text.parse::<KubernetesVersion>().expect_err(text);
            let expected = format!("{text:?} is no version that can be served: 1.27 to 1.33");
            assert_eq!(refused.to_string(), expected);
        }
        for (text, expected) in [
            (
                "WatchList",
                "\"WatchList\" switches nothing: expected a feature and =true or =false",
            ),
            (
                "WatchList=off",
                "\"WatchList=off\" switches nothing: expected a feature and =true or =false",
            ),
            (
                ",",
                "\"\" switches nothing: expected a feature and =true or =false",
            ),
            (
                "WatchList=true,PodHostIPs=true,WatchList=false",
                "WatchList is switched on and off",
            ),
            (
                "watchlist=true",
                "\"watchlist\" is no feature that can be switched: WatchList, WatchBookmark, APIListChunking, \
                 AggregatedDiscoveryEndpoint, OpenAPIV3, MultiCIDRServiceAllocator, APISelfSubjectReview, \
                 ServiceTrafficDistribution, LoadBalancerIPMode, PodHostIPs, SidecarContainers",
            ),
        ] {
            assert_eq!(
                text.parse::<Gates>().expect_err(text).to_string(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn a_version_is_read_as_kubectl_prints_it() {
        for text in ["v1.27", "1.27.3", "v1.27.16+k3s1", "v1.27.3-eks-2d98532"] {
            let version: KubernetesVersion = text.parse().expect(text);
            assert_eq!(version.to_string(), "1.27", "for {text}");
        }
    }

    #[test]
    fn gates_are_kept_as_the_text_that_was_given() {
        let gates: Gates = "PodHostIPs=true, WatchList=false".parse().expect("gates");
        let kept = serde_json::to_value(&gates).expect("JSON");
        assert_eq!(kept, "WatchList=false,PodHostIPs=true");
        assert_eq!(serde_json::from_value::<Gates>(kept).ok(), Some(gates));
    }

    #[test]
    fn fields_of_features_that_are_off_are_dropped_unless_they_are_there_already() {
        let service = json!({
            "spec": { "type": "LoadBalancer", "trafficDistribution": "PreferClose" },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "VIP" }, { "ip": "192.0.2.2" }] } },
        });
        let plain = json!({
            "spec": { "type": "LoadBalancer" },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "ip": "192.0.2.2" }] } },
        });
        let pod = json!({
            "spec": { "initContainers": [{ "name": "a" }, { "name": "b", "restartPolicy": "Always" }] },
            "status": { "hostIP": "172.30.0.11", "hostIPs": [{ "ip": "172.30.0.11" }] },
        });
        let plain_pod = json!({
            "spec": { "initContainers": [{ "name": "a" }, { "name": "b" }] }, "status": { "hostIP": "172.30.0.11" },
        });
        let job = |pod: &Value| json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": pod["spec"] } } } } });
        for (version, kind, object, old, expected) in [
            ("1.27", "Service", &service, None, &plain),
            ("1.27", "Service", &service, Some(&plain), &plain),
            ("1.27", "Service", &service, Some(&service), &service),
            ("1.33", "Service", &service, None, &service),
            ("1.27", "Pod", &pod, None, &plain_pod),
            ("1.29", "Pod", &pod, None, &pod),
            ("1.27", "CronJob", &job(&pod), None, &job(&plain_pod)),
            ("1.27", "ConfigMap", &pod, None, &pod),
        ] {
            let mut left = object.clone();
            features(version, "").drop_disabled(kind, &mut left, old);
            assert_eq!(left, *expected, "{kind} at {version}");
        }
    }
}
