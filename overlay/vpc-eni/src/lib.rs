//! Pods with addresses of an AWS VPC: amazon-vpc-cni-k8s's job.
//!
//! ```text
//! Facts (the cluster) ─┐
//! Home (the node) ─────┼─► ipam ─ look, plan, one step ─► Ec2
//! settings ────────────┘     └─► Status; the addresses that pods may be given
//! ```
//! - [`ec2`] is what is asked of EC2 and of the instance's metadata service, and what can go wrong; [`tally`] counts it.
//! - [`settings`] are the peer's variables; [`home`] is what the agent tells of its node and the cluster.
//! - [`warm`] is the arithmetic of what is kept ready, by the peer's tables; [`plan`] makes the next step of it (pure).
//! - [`ipam`] is the manager: it looks, and takes that step; `pace` says when it asks again.
//! - [`undertaking`] is what was begun, written down before it is asked for.

pub mod ec2;
pub mod home;
pub mod ipam;
mod pace;
pub mod plan;
pub mod settings;
pub mod tally;
pub mod undertaking;
pub mod warm;
