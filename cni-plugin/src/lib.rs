//! The CNI plugin, and the socket protocol that it shares with the agent.
//!
//! The agent decides (address, routes, MTU), the plugin, which the container runtime runs as root, carries it out in
//! the pod's network namespace.
//!
//! Tour:
//! - [`protocol`]: frames between plugin and agent; both sides use it.
//! - [`tombstone`]: what was deleted while the agent was away.
//! - [`host_local`]: addresses of pods that another plugin wired.
//! - [`spec`]: the CNI specification's side: environment, configuration, results of every version, errors.
//! - [`wire`]: carries a wiring plan out, undoes it, compares it with what is there.
//! - [`plugin`]: the verbs.

pub mod host_local;
pub mod plugin;
pub mod protocol;
pub mod spec;
pub mod tombstone;
pub mod wire;
