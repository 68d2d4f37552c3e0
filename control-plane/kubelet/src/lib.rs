//! The kubelet of the bundled cluster: pods in real OCI containers.
pub mod cgroup;
pub mod cni;
mod config;
pub mod disk;
pub mod events;
pub mod images;
pub mod oci;
pub mod pod;
pub mod process;
mod readiness;
pub mod runtime;
pub mod sandbox;
pub mod shim;
pub use config::Config;
