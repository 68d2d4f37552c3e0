//! What a node's silence and its conditions call for.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::zones::Eviction;
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE};

/// Conditions that only a kubelet can vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Which condition in which state means which taint (upstream's `nodeConditionToTaintKeyStatusMap`).
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// What to do about a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Judgement {
    /// Conditions to set.
    pub conditions: Vec<NodeCondition>,
    /// All taints of the node, where they change.
    pub taints: Option<Vec<Taint>>,
    /// It is silent: its pods count as not ready.
    pub is_lost: bool,
    /// When it will have been silent for too long, unless it is heard of.
    pub again: Option<Duration>,
}

/// A condition by its type.
pub(crate) fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Judges a node that has been silent for some time. `eviction` says whether pods may be driven off it for that.
pub(crate) fn judge(
    node: &Node,
    silent_for: Duration,
    grace: Duration,
    eviction: Eviction,
    now: Timestamp,
) -> Judgement {
    let is_lost = silent_for >= grace;
    let conditions: Vec<NodeCondition> = if is_lost {
        VOUCHED
            .iter()
            .filter_map(|type_| unknown(node, type_, now))
            .collect()
    } else {
        Vec::new()
    };
    let status_of = |type_: &str| {
        let changed = conditions.iter().find(|condition| condition.type_ == type_);
        changed
            .or_else(|| condition(node, type_))
            .map(|condition| condition.status.clone())
    };
    let known = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let wanted = taints(node, &known, &status_of, eviction, now);
    Judgement {
        taints: (!same(&known, &wanted)).then_some(wanted),
        is_lost,
        again: (!is_lost).then(|| grace - silent_for + Duration::from_millis(100)),
        conditions,
    }
}

impl Judgement {
    /// Whether pods are to be driven off `node` that are not yet.
    pub fn drives_off(&self, node: &Node) -> bool {
        let drives =
            |taint: &Taint| taint.effect == NO_EXECUTE && [NOT_READY, UNREACHABLE].contains(&&*taint.key);
        let known = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        self.taints.iter().flatten().any(drives) && !known.into_iter().any(drives)
    }
}

fn same(one: &[Taint], other: &[Taint]) -> bool {
    one.len() == other.len() && one.iter().all(|taint| other.contains(taint))
}

/// The condition with its state unknown, if that is news. In upstream's words.
fn unknown(node: &Node, type_: &str, now: Timestamp) -> Option<NodeCondition> {
    let known = condition(node, type_);
    if known.is_some_and(|known| known.status == "Unknown") {
        return None;
    }
    let (reason, message) = match known {
        Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
        None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
    };
    let heartbeat = known.and_then(|known| known.last_heartbeat_time.clone());
    Some(NodeCondition {
        type_: type_.to_owned(),
        status: "Unknown".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: heartbeat.or_else(|| node.metadata.creation_timestamp.clone()),
        last_transition_time: Some(Time(now)),
    })
}

/// The node's taints with ours brought up to date and everybody else's left alone.
fn taints(
    node: &Node,
    known: &[Taint],
    status_of: &dyn Fn(&str) -> Option<String>,
    eviction: Eviction,
    now: Timestamp,
) -> Vec<Taint> {
    let mut wanted = Vec::new();
    let drives_off = |key: &str| match eviction {
        Eviction::Paced(_) => true,
        Eviction::Held => known
            .iter()
            .any(|taint| taint.key == key && taint.effect == NO_EXECUTE),
        Eviction::Revoked => false,
    };
    for (type_, status, key) in CONDITION_TAINTS {
        if status_of(type_).as_deref() == Some(status) {
            wanted.push((key, NO_SCHEDULE));
            if type_ == "Ready" && drives_off(key) {
                wanted.push((key, NO_EXECUTE));
            }
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let is_ours = |taint: &Taint| {
        let by_condition = CONDITION_TAINTS.iter().any(|(type_, _, key)| {
            taint.key == *key
                && (taint.effect == NO_SCHEDULE || taint.effect == NO_EXECUTE && *type_ == "Ready")
        });
        by_condition || taint.key == UNSCHEDULABLE && taint.effect == NO_SCHEDULE
    };
    let mut taints: Vec<Taint> = known.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    taints.extend(wanted.into_iter().map(|(key, effect)| {
        let known = known
            .iter()
            .find(|taint| taint.key == key && taint.effect == effect);
        known.cloned().unwrap_or_else(|| Taint {
            key: key.to_owned(),
            value: None,
            effect: effect.to_owned(),
            time_added: (effect == NO_EXECUTE).then_some(Time(now)),
        })
    }));
    taints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GRACE: Duration = Duration::from_secs(40);

    fn node(ready: Option<&str>, spec: Value) -> Node {
        let conditions = ready.map(|status| json!({ "type": "Ready", "status": status }));
        serde_json::from_value(json!({
            "metadata": { "name": "n", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": spec,
            "status": { "conditions": conditions.into_iter().collect::<Vec<_>>() },
        }))
        .unwrap()
    }

    /// Conditions as `type=status reason`, taints as `key:effect`; `None` where the taints stay.
    #[track_caller]
    fn check(node: &Node, silent_secs: u64, conditions: &[&str], taints: Option<&[&str]>) {
        let paced = Eviction::Paced(Duration::ZERO);
        check_by(paced, node, silent_secs, conditions, taints);
    }

    #[track_caller]
    fn check_by(
        eviction: Eviction,
        node: &Node,
        silent_secs: u64,
        conditions: &[&str],
        taints: Option<&[&str]>,
    ) {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let judgement = judge(node, Duration::from_secs(silent_secs), GRACE, eviction, now);
        let told: Vec<_> = judgement
            .conditions
            .iter()
            .map(|c| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(told, conditions);
        let short = |key: &str| key.trim_start_matches("node.kubernetes.io/").to_owned();
        let told: Option<Vec<_>> = judgement.taints.map(|taints| {
            taints
                .iter()
                .map(|taint| format!("{}:{}", short(&taint.key), taint.effect))
                .collect()
        });
        assert_eq!(
            told,
            taints.map(|taints| taints.iter().map(|taint| (*taint).to_owned()).collect())
        );
        assert_eq!(judgement.is_lost, silent_secs >= GRACE.as_secs());
    }

    #[test]
    fn a_node_that_is_heard_of_keeps_its_conditions() {
        check(&node(Some("True"), json!({})), 39, &[], None);
        check(
            &node(Some("False"), json!({})),
            0,
            &[],
            Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]),
        );
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable() {
        check(
            &node(Some("True"), json!({})),
            40,
            &[
                "Ready=Unknown NodeStatusUnknown",
                "MemoryPressure=Unknown NodeStatusNeverUpdated",
                "DiskPressure=Unknown NodeStatusNeverUpdated",
                "PIDPressure=Unknown NodeStatusNeverUpdated",
            ],
            Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
        );
    }

    #[test]
    fn pods_are_driven_off_only_where_they_may_be() {
        let unready = |effects: &[&str]| {
            let taints: Vec<Value> = effects
                .iter()
                .map(|effect| json!({ "key": NOT_READY, "effect": effect }))
                .collect();
            node(Some("False"), json!({ "taints": taints }))
        };
        let no_schedule: &[&str] = &["not-ready:NoSchedule"];
        check_by(Eviction::Held, &unready(&[]), 0, &[], Some(no_schedule));
        check_by(Eviction::Held, &unready(&[NO_SCHEDULE, NO_EXECUTE]), 0, &[], None);
        check_by(Eviction::Revoked, &unready(&[]), 0, &[], Some(no_schedule));
        check_by(
            Eviction::Revoked,
            &unready(&[NO_SCHEDULE, NO_EXECUTE]),
            0,
            &[],
            Some(no_schedule),
        );
        check_by(Eviction::Revoked, &unready(&[NO_SCHEDULE]), 0, &[], None);
        let drives_off = |node: &Node, eviction| {
            judge(node, Duration::ZERO, GRACE, eviction, Timestamp::UNIX_EPOCH).drives_off(node)
        };
        let paced = Eviction::Paced(Duration::ZERO);
        assert!(drives_off(&unready(&[]), paced));
        assert!(!drives_off(&unready(&[NO_EXECUTE]), paced));
        assert!(!drives_off(&unready(&[]), Eviction::Held));
        assert!(!drives_off(&node(Some("True"), json!({})), paced));
    }

    #[test]
    fn our_taints_go_when_their_reason_does_and_others_stay() {
        let taint = |key: &str, effect: &str| json!({ "key": key, "effect": effect });
        let taints = json!({ "taints": [
            taint("mine", "NoExecute"), taint(NOT_READY, "NoSchedule"), taint(UNREACHABLE, "NoExecute"),
        ] });
        check(&node(Some("True"), taints), 0, &[], Some(&["mine:NoExecute"]));
    }

    #[test]
    fn cordoning_shows_as_a_taint() {
        let cordoned = json!({ "unschedulable": true });
        check(
            &node(Some("True"), cordoned),
            0,
            &[],
            Some(&["unschedulable:NoSchedule"]),
        );
        let taints = json!([{ "key": UNSCHEDULABLE, "effect": "NoSchedule" }]);
        check(
            &node(Some("True"), json!({ "taints": taints })),
            0,
            &[],
            Some(&[]),
        );
        check(
            &node(Some("True"), json!({ "unschedulable": true, "taints": taints })),
            0,
            &[],
            None,
        );
    }
}
