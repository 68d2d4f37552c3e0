//! The agent and the DNS server as DaemonSets, by the manifests of `node/deploy`.

#[path = "daemonset/manifests.rs"]
mod manifests;
