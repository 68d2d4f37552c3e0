//! The service proxy, by what becomes of packets: one node, pods on it and beyond it, and clients outside.
//!
//! [`cases`] is the table. It is run on plans alone ([`simulator`]) and on the kernel's datapaths ([`privileged`]).

#[path = "proxy/cases/mod.rs"]
mod cases;
#[path = "proxy/cluster.rs"]
mod cluster;
#[path = "proxy/judge.rs"]
mod judge;
#[path = "proxy/node.rs"]
mod node;
#[path = "proxy/privileged/mod.rs"]
mod privileged;
#[path = "proxy/servers.rs"]
mod servers;
#[path = "proxy/simulator.rs"]
mod simulator;
