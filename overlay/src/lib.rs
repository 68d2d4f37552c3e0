//! The pod network: which node has which subnet, and how packets get there.
//!
//! Tour:
//! - [`run`] is the whole of it for one node: it claims a subnet, follows the others' and keeps the kernel right.
//! - [`flannel`] reads and writes flannel's keys and JSON, so that nodes of either kind share one network.
//! - [`lease`] chooses a subnet (pure) of a [`pool`]; `etcd` is the store it is claimed in; `follow`
//!   keeps it and watches the others. `kubernetes` reads them from Node objects instead.
//! - [`plan`] turns leases into desired devices, routes, neighbours and forwarding entries (pure); `reconcile` compares
//!   them with the kernel's and repairs the difference; `engine` does so on every occasion, of which `drive` tells.
//! - [`fast_path`] lets TCP between pods pass by the nodes' network stacks, on one node and through VXLAN.
//! - `guard` drops what is sent in another's name.
//! - `host_ports` leads ports of the node to pods.
//! - `masquerade` lets pods reach the world; `subnet_env` tells other programs of the node's subnet.
//! - [`vpc`] is another pod network, without leases and tunnels: addresses of the node's interfaces in an AWS VPC.
//! - [`uninstall`] takes all of it off a node again; [`files`] are replaced as a whole.
//! - [`pods`] gives addresses to pods and plans their wiring; `leaks` finds those that went without a word,
//!   `strangers` those whose record is lost.
//!
//! Everything that is written is level-triggered: desired state is planned from scratch, compared with what the kernel
//! has, and only the difference is written. A restart writes nothing that is right.

pub mod audit;
pub mod config;
mod drive;
mod engine;
mod error;
mod etcd;
pub mod fast_path;
pub mod files;
pub mod flannel;
mod follow;
mod followed;
mod guard;
mod host_ports;
mod kubernetes;
mod leaks;
pub mod lease;
mod masquerade;
mod memory;
mod own;
mod own_pods;
mod owned_table;
pub mod plan;
pub mod pods;
pub mod pool;
mod reconcile;
mod run;
mod strangers;
mod subnet_env;
mod underlay;
pub mod uninstall;
pub mod vpc;

pub use config::{Announcement, Config, Etcd, Leases, Nodes};
pub use error::Error;
pub use guard::table as guard_table;
pub use reconcile::PodRoute;
pub use run::{Status, run};
