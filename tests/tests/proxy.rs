//! The service proxy on real packets: one node, pods on it and beyond it, and a client outside.

#[path = "proxy/cases.rs"]
mod cases;
#[path = "proxy/cluster.rs"]
mod cluster;
#[path = "proxy/node.rs"]
mod node;
#[path = "proxy/privileged.rs"]
mod privileged;
