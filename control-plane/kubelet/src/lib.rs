//! The kubelet of the bundled cluster: pods in real OCI containers.
pub mod cgroup;
pub mod disk;
pub mod images;
pub mod oci;
pub mod process;
mod readiness;
pub mod runtime;
pub mod shim;
