//! Pods: what they need on the node ([`container`], [`env`], [`etc_files`], [`volumes`]), what happens next
//! ([`decide`]), who does it ([`worker`]), what is told of it ([`status`], [`probe`]).

pub mod container;
pub mod decide;
pub mod env;
pub mod etc_files;
pub mod probe;
pub mod quantity;
pub mod status;
pub mod volumes;
