//! The agent of a node, as a process: its command line, what it serves, and what outlives it.

mod command_line;
mod monitoring;
mod privileged_balancers;
mod privileged_config;
mod privileged_credentials;
mod privileged_in_cluster;
mod privileged_logs;
mod privileged_migration;
mod privileged_parts;
mod privileged_pods;
mod privileged_policies;
mod privileged_seccomp;
mod privileged_sockets;
mod privileged_startup;
mod privileged_traffic;
mod traffic;

use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);
