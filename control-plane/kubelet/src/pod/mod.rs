//! Pods: what they need on the node ([`container`], [`env`], [`etc_files`], [`volumes`], [`sub_path`]), what happens
//! next ([`decide`]), who does it ([`worker`]), what is told of it ([`status`], [`probe`]).

pub mod container;
pub mod decide;
mod devices;
mod disk_usage;
pub mod env;
pub mod etc_files;
mod launch;
pub mod probe;
mod publish;
pub mod quantity;
mod slot;
pub mod status;
pub mod sub_path;
pub mod volumes;
pub mod worker;
