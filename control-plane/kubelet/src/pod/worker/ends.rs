//! Ending a pod whatever its containers do: by its deadline, for want of disk, or because of what it asks for.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodSpec;

use super::{DISK_PERIOD, Message, Worker};
use crate::events::EventType;
use crate::pod::disk_usage::disk_usage;
use crate::pod::status::End;
use crate::pod::volumes::DiskLimit;

/// Why a pod was ended that filled the disk.
pub(super) const EVICTED: &str = "Evicted";

/// Settings of the kernel that belong to a pod alone and do no harm (`pkg/kubelet/sysctl`, `SafeSysctlAllowlist`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

impl Worker {
    /// When the pod has to have ended (`activeDeadlineSeconds`).
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let allowed = Duration::from_secs(u64::try_from(seconds).ok()?);
        self.start_time.checked_add(allowed).ok()
    }

    /// Not what has ended already, or is being deleted.
    pub(super) fn may_be_ended(&self) -> bool {
        self.end.is_none() && !self.refused && !self.is_deleting() && !self.is_terminal()
    }

    pub(super) fn check_deadline(&mut self) {
        let is_past = self
            .deadline()
            .is_some_and(|deadline| deadline <= Timestamp::now());
        if is_past && self.may_be_ended() {
            let message = "Pod was active on the node longer than the specified deadline";
            self.end_pod(EventType::Normal, "DeadlineExceeded", message.to_owned());
        }
    }

    pub(super) fn check_sysctls(&mut self) {
        let why = self.pod.spec.as_ref().and_then(forbidden_sysctl);
        if let Some(why) = why.filter(|_| self.may_be_ended()) {
            self.end_pod(
                EventType::Warning,
                "SysctlForbidden",
                format!("Pod was rejected: {why}"),
            );
        }
    }

    /// Measures volumes that may hold only so much, beside everything else.
    pub(super) fn look_at_disk(&mut self) {
        let is_due = self.disk_look_at.is_some_and(|at| at <= Timestamp::now());
        if !is_due || !self.may_be_ended() {
            return;
        }
        self.disk_look_at = None;
        let (limits, outbox) = (self.mounted.limits.clone(), self.outbox.clone());
        let pod = self.name().to_owned();
        tokio::spawn(async move {
            let found = tokio::task::spawn_blocking(move || exceeded(&pod, limits)).await;
            let _ = outbox.send(Message::Measured(found.ok().flatten())).await;
        });
    }

    pub(super) fn disk_measured(&mut self, exceeded: Option<DiskLimit>) {
        self.disk_look_at = Some(Timestamp::now() + DISK_PERIOD);
        if let Some(DiskLimit { volume, told, .. }) = exceeded.filter(|_| self.may_be_ended()) {
            let message = format!("Usage of EmptyDir volume \"{volume}\" exceeds the limit \"{told}\". ");
            self.end_pod(EventType::Warning, EVICTED, message);
        }
    }

    fn end_pod(&mut self, event_type: EventType, reason: &'static str, message: String) {
        tracing::info!(pod = self.name(), reason, "pod ended");
        self.node
            .events
            .pod(&self.pod, event_type, reason, message.clone());
        self.end = Some(End {
            reason: reason.to_owned(),
            message,
        });
    }
}

/// The first volume that holds more than it may. What could not be measured holds nobody knows how much.
fn exceeded(pod: &str, limits: Vec<DiskLimit>) -> Option<DiskLimit> {
    limits.into_iter().find(|limit| {
        let used = disk_usage(&limit.path, limit.bytes).inspect_err(|error| {
            let cause = &error.source;
            tracing::warn!(%error, %cause, pod, volume = limit.volume, "volume not measured");
        });
        used.is_ok_and(|used| used > limit.bytes)
    })
}

fn forbidden_sysctl(spec: &PodSpec) -> Option<String> {
    let sysctls = spec.security_context.as_ref()?.sysctls.as_ref()?;
    sysctls.iter().find_map(|sysctl| {
        // Both forms are the same (sysctl(8)).
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            Some(format!("forbidden sysctl: \"{name}\" not allowlisted"))
        } else if name.starts_with("net.") && spec.host_network == Some(true) {
            Some(format!(
                "forbidden sysctl: \"{name}\" not allowed with host net enabled"
            ))
        } else if name.starts_with("kernel.") && spec.host_ipc == Some(true) {
            Some(format!(
                "forbidden sysctl: \"{name}\" not allowed with host ipc enabled"
            ))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_settings_that_are_the_pods_own_may_be_changed() {
        for (name, more, expected) in [
            ("net.ipv4.tcp_syncookies", json!({}), None),
            ("net/ipv4/tcp_syncookies", json!({}), None),
            ("kernel.shm_rmid_forced", json!({}), None),
            (
                "kernel.msgmax",
                json!({}),
                Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            ),
            (
                "net.ipv4.tcp_syncookies",
                json!({ "hostNetwork": true }),
                Some("forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"),
            ),
            (
                "kernel.shm_rmid_forced",
                json!({ "hostIPC": true }),
                Some("forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled"),
            ),
        ] {
            let mut spec = more;
            spec["containers"] = json!([]);
            spec["securityContext"] = json!({ "sysctls": [{ "name": name, "value": "1" }] });
            let spec: PodSpec = serde_json::from_value(spec).expect("a specification");
            assert_eq!(forbidden_sysctl(&spec).as_deref(), expected, "{spec:?}");
        }
    }
}
