//! Pods with addresses of an AWS VPC: amazon-vpc-cni-k8s's job.
//!
//! - [`ec2`] is what is asked of EC2 and of the instance's metadata service, and what can go wrong.

pub mod ec2;
pub mod home;
pub mod ipam;
mod pace;
pub mod plan;
pub mod settings;
pub mod tally;
pub mod undertaking;
pub mod warm;
