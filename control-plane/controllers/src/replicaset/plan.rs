//! Whether a ReplicaSet needs more pods or fewer, and which go.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use super::rank;

/// No more pods than this are created or deleted at a time (upstream's `BurstReplicas`).
const BURST: usize = 500;

/// What to do about the number of pods.
#[derive(Debug, PartialEq)]
pub(crate) enum Scale {
    Keep,
    Up(usize),
    Down(Vec<Arc<Pod>>),
}

/// Compares the active `pods` of `rs` with what it asks for. `related` are the active pods of its whole
/// Deployment: of several victims, one that shares its node with relatives goes first.
pub(crate) fn scale(rs: &ReplicaSet, pods: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Scale {
    let wanted = usize::try_from(replicas(rs)).unwrap_or(0);
    match pods.len() {
        have if have < wanted => Scale::Up((wanted - have).min(BURST)),
        have if have > wanted => {
            let mut victims = rank::victims_first(pods, related, now);
            victims.truncate((have - wanted).min(BURST));
            Scale::Down(victims)
        }
        _ => Scale::Keep,
    }
}

/// `spec.replicas`, one where it is absent.
pub(crate) fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(wanted: usize, have: usize, expected: Result<usize, usize>) {
        let rs: ReplicaSet = serde_json::from_value(json!({
            "metadata": { "name": "web" }, "spec": { "replicas": wanted, "selector": {} },
        }))
        .unwrap();
        let pods: Vec<_> = (0..have)
            .map(|i| {
                Arc::new(serde_json::from_value(json!({ "metadata": { "uid": format!("{i:04}") } })).unwrap())
            })
            .collect();
        let plan = scale(&rs, &pods, &pods, Timestamp::UNIX_EPOCH);
        let expected = match expected {
            Ok(0) => Scale::Keep,
            Ok(up) => Scale::Up(up),
            Err(down) => Scale::Down(pods[..down].to_vec()),
        };
        assert_eq!(plan, expected, "{wanted} wanted, {have} there");
    }

    #[test]
    fn pods_are_created_and_deleted_up_to_the_wanted_number_and_at_most_500_at_a_time() {
        check(3, 0, Ok(3));
        check(3, 3, Ok(0));
        check(3, 5, Err(2));
        check(0, 1, Err(1));
        check(900, 100, Ok(500));
        check(0, 600, Err(500));
    }
}
