//! The kubelet of the bundled cluster: real pods in real OCI containers.
//!
//! - [`run`] with a [`Config`] runs one node's pods; [`cleanup()`] removes whatever it left, without it.
//! - [`pod`] is the heart: a worker per pod, which asks a pure function what to do next.
//! - [`sandbox`] and [`cni`] give a pod its network; [`images`], [`oci`] and [`runtime`] its containers.
//! - [`shim`] is the program `causeway-shim`, one process per container, which outlives the kubelet.
//! - [`node`] keeps the Node object, [`network_ready`] tells whether pods can have a network, [`events`] tells users
//!   what happened, [`server`] gives them the logs that [`logs`] reads and the [`figures`] of what is used.
//! - [`exec`] runs commands in containers, on pipes or a [`terminal`]; [`streams`] carries them, attached clients and
//!   forwarded ports.
//!
//! Everything that survives a restart of the kubelet is in files ([`disk`], [`shim::state`], [`sandbox`]); processes
//! are known by id and start time ([`process`]), limits and membership by [`cgroup`].

pub mod board;
pub mod cgroup;
mod cleanup;
pub mod cni;
mod config;
pub mod disk;
pub mod events;
pub mod exec;
pub mod figures;
pub mod images;
mod kubelet;
pub mod logs;
pub mod network_ready;
pub mod node;
pub mod oci;
pub mod pod;
pub mod process;
mod readiness;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub mod shim;
pub mod streams;
pub mod terminal;

pub use cleanup::cleanup;
pub use config::Config;
pub use kubelet::{KubeletError, run, run_with};
