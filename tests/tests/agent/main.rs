//! The agent of a node, as a process: its command line, what it serves, and what outlives it.

mod command_line;
mod privileged_balancers;
mod privileged_in_cluster;
mod privileged_parts;
mod privileged_pods;
mod privileged_traffic;
mod traffic;

use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);
