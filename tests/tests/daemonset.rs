//! The agent and the DNS server as DaemonSets, by the manifests of `node/deploy`.
//!
//! - [`manifests`]: what they are, without a cluster.
//! - [`chart`]: the same by Helm.
//! - [`installation`]: nodes of the bundled cluster that have no other agent.
//! - [`privileged_cluster`]: all of it there, replaced under load, and taken off.
//! - [`privileged_on`]: its nodes asked from elsewhere.
//! - [`privileged_story`]: a trace over nodes, told as one story.
//! - [`privileged_overlays`]: the other overlays, each with its parts alone.

#[path = "daemonset/chart.rs"]
mod chart;
#[path = "daemonset/installation.rs"]
mod installation;
#[path = "daemonset/manifests.rs"]
mod manifests;
#[path = "daemonset/privileged_cluster.rs"]
mod privileged_cluster;
#[path = "daemonset/privileged_on.rs"]
mod privileged_on;
#[path = "daemonset/privileged_overlays.rs"]
mod privileged_overlays;
#[path = "daemonset/privileged_story.rs"]
mod privileged_story;
