//! Faults: what the agent and its proxy make of crashes, of damage, and of an API server that misbehaves. Traffic goes
//! on meanwhile and what it loses is counted. `F1` and its like are the rows of the fault matrix.
//!
//! - [`world`]: a node with an agent, pods, and Services; probes and the leak ledger are the testkit's.
//! - What a Service proxy survives by itself: F1, F2 ([`privileged_agent`]), F3 ([`privileged_layouts`]), F4, F5
//!   ([`privileged_crash`]), F13, F14 ([`privileged_damage`]), F17 ([`privileged_sysctls`]), F35, F37
//!   ([`privileged_limits`]), F50 ([`privileged_malformed`]).
//! - What comes from the API: F19, F21, F23, F24 ([`privileged_api`]), F33, F34 ([`privileged_churn`]).
//! - What the DNS server meets: F46, F47 ([`privileged_upstreams`]), F48, F49 ([`privileged_dns`]).
//! - Who goes from kube-proxy to this one, and back ([`privileged_migration`]).
//! - What the bundled control plane survives ([`privileged_control_plane`]).
//!
//! F20, an API server whose packets vanish, in
//! `tests/tests/agent/privileged_parts.rs`; F6 to F11, pods that come and go, in `tests/tests/cni`, for both kinds of
//! networks; F44, F45, an EC2 in a bad mood, in `tests/tests/vpc_eni/faults.rs`.

#[path = "faults/acknowledged.rs"]
mod acknowledged;
#[path = "faults/kube_proxy.rs"]
mod kube_proxy;
#[path = "faults/privileged_agent.rs"]
mod privileged_agent;
#[path = "faults/privileged_api.rs"]
mod privileged_api;
#[path = "faults/privileged_churn.rs"]
mod privileged_churn;
#[path = "faults/privileged_control_plane.rs"]
mod privileged_control_plane;
#[path = "faults/privileged_crash.rs"]
mod privileged_crash;
#[path = "faults/privileged_damage.rs"]
mod privileged_damage;
#[path = "faults/privileged_dns.rs"]
mod privileged_dns;
#[path = "faults/privileged_layouts.rs"]
mod privileged_layouts;
#[path = "faults/privileged_limits.rs"]
mod privileged_limits;
#[path = "faults/privileged_malformed.rs"]
mod privileged_malformed;
#[path = "faults/privileged_migration.rs"]
mod privileged_migration;
#[path = "faults/privileged_sysctls.rs"]
mod privileged_sysctls;
#[path = "faults/privileged_upstreams.rs"]
mod privileged_upstreams;
#[path = "faults/resolver.rs"]
mod resolver;
#[path = "faults/snapshots.rs"]
mod snapshots;
#[path = "faults/traffic.rs"]
mod traffic;
#[path = "faults/world.rs"]
mod world;

use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);
