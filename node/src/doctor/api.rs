//! The API server, as this node's agent meets it: whether watches say something, and whose version is what.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::{Kind, NodeName, Snapshot, with_causes};
use tokio::time::timeout;
use vpc_eni::ipam::Status;

use super::{finding, vpc};
use crate::findings::Finding;
use crate::watch::{ApiSource, KindStatus, Versions};

/// A server that is well answers a small question within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A first list that says nothing for this long will not come.
const LIST_SILENCE: Duration = Duration::from_secs(15);

/// A server ends a watch after five to ten minutes, and tells its progress each minute or so.
const WATCH_SILENCE: Duration = Duration::from_secs(11 * 60);

/// Minor versions that a kubelet may be older than its server (<https://kubernetes.io/releases/version-skew-policy/>).
const OLDER_KUBELET: u32 = 3;

/// What is wrong with the server, or with the way to it.
pub async fn look(
    source: &ApiSource,
    node: &NodeName,
    kinds: &BTreeMap<Kind, KindStatus>,
    snapshot: &Snapshot,
    vpc: Option<&Status>,
) -> Vec<Finding> {
    let asked = Instant::now();
    let versions = match timeout(PATIENCE, source.versions(node)).await {
        Ok(versions) => versions.map_err(|error| with_causes(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let took = asked.elapsed();
    let mut findings: Vec<_> = kinds
        .iter()
        .filter_map(|(kind, status)| {
            let silent_for = silence(status, snapshot.is_synced(*kind), Instant::now())?;
            Some(silent(*kind, silent_for, versions.as_ref().map(|_| took)))
        })
        .collect();
    if let Ok(versions) = versions {
        findings.extend(skew(node, &versions));
        let most_pods = versions.most_pods.zip(vpc);
        findings.extend(most_pods.and_then(|(most, status)| vpc::most_pods(node, most, status)));
    }
    findings
}

/// For how long nothing was said that should have been. Watches that fail are told by themselves.
fn silence(status: &KindStatus, is_synced: bool, now: Instant) -> Option<Duration> {
    if status.failing.is_some() {
        return None;
    }
    let silent_for = now.saturating_duration_since(status.heard?);
    let allowed = if is_synced { WATCH_SILENCE } else { LIST_SILENCE };
    (silent_for >= allowed).then_some(silent_for)
}

fn silent(kind: Kind, silent_for: Duration, answered: Result<Duration, &String>) -> Finding {
    let small = match answered {
        Ok(took) => format!(
            "it answers a small question within {} ms: what is large may be lost on its way (see path-mtu)",
            took.as_millis()
        ),
        Err(error) => format!("nor does it answer a small question: {error}"),
    };
    finding(
        "watch-silent",
        format!("watch of {}", kind.name()),
        format!(
            "the API server says nothing for {} s; {small}",
            silent_for.as_secs()
        ),
        "see that packets of every size come through between this node and the API server: MTU, rules between them",
    )
}

/// What kubelet's and the server's versions must not be to each other.
fn skew(node: &NodeName, versions: &Versions) -> Option<Finding> {
    let Versions { server, kubelet, .. } = versions;
    let kubelet = kubelet.as_ref()?;
    let (of_server, of_kubelet) = (minor(server)?, minor(kubelet)?);
    let what = if of_kubelet > of_server {
        "newer than the API server"
    } else if of_kubelet.1.saturating_add(OLDER_KUBELET) < of_server.1 {
        "more than three minor versions older than the API server"
    } else {
        return None;
    };
    Some(finding(
        "version-skew",
        format!("Node {node}"),
        format!("its kubelet, {kubelet}, is {what}, {server}: nobody tries them together"),
        "upgrade the API server before kubelets, and those three minor versions later at the latest",
    ))
}

/// Major and minor number of `v1.33.2`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix('v')?.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_should_have_spoken_is_silent() {
        let now = Instant::now() + Duration::from_secs(3600);
        let heard = |seconds| KindStatus {
            heard: now.checked_sub(Duration::from_secs(seconds)),
            ..KindStatus::default()
        };
        let seconds =
            |status: &KindStatus, is_synced| silence(status, is_synced, now).map(|time| time.as_secs());
        assert_eq!(seconds(&KindStatus::default(), false), None, "not tried");
        assert_eq!(seconds(&heard(14), false), None);
        assert_eq!(seconds(&heard(15), false), Some(15));
        assert_eq!(seconds(&heard(600), true), None);
        assert_eq!(seconds(&heard(660), true), Some(660));
        let told = silent(
            Kind::Service,
            Duration::from_secs(20),
            Ok(Duration::from_millis(3)),
        );
        assert!(
            told.evidence.contains("says nothing for 20 s; it answers"),
            "{told:?}"
        );
    }

    #[test]
    fn kubelets_that_are_too_new_or_too_old_for_their_server_are_told() {
        let told = |kubelet: &str, server: &str| {
            let versions = Versions {
                server: server.to_owned(),
                kubelet: Some(kubelet.to_owned()),
                most_pods: None,
            };
            skew(&"n".into(), &versions).map(|finding| finding.evidence)
        };
        for (kubelet, server) in [
            ("v1.33.2", "v1.33.0"),
            ("v1.30.1", "v1.33.9+k3s1"),
            ("odd", "v1.33.0"),
        ] {
            assert_eq!(told(kubelet, server), None, "{kubelet} {server}");
        }
        assert!(told("v1.34.0", "v1.33.9").is_some_and(|told| told.contains("is newer than")));
        assert!(told("v1.29.9-eks", "v1.33.0").is_some_and(|told| told.contains("more than three")));
    }
}
