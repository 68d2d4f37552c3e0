//! The agent and the DNS server as DaemonSets, by the manifests of `node/deploy`.
//!
//! - [`manifests`]: what they are, without a cluster.
//! - [`privileged_cluster`]: nodes of the bundled cluster that have no other agent.

#[path = "daemonset/manifests.rs"]
mod manifests;
#[path = "daemonset/privileged_cluster.rs"]
mod privileged_cluster;
