//! A VPC to try the address manager on: EC2's query API and the instance metadata service, with the limits and the
//! moods that the real ones have.
//!
//! - [`Cloud`] is a region of an account: what is in it, the calls that change it, and the ledger of them. One that is
//!   [opened](Cloud::open) in a file outlives the process.
//! - [`weather`] is how it is disposed: late, stale, throttled, denied, lost.
//! - [`Client`] and [`Imds`] are what the manager calls in this process.
//! - [`Server`] is both over HTTP, as [`query`] and the instances' metadata services have it.
//! - [`Fabric`] is the network of a VPC, with real devices and packets, where the process may make namespaces.
//! - [`request`] has the words for a call, whichever way it comes.

mod account;
mod client;
pub mod cloud;
pub mod fabric;
mod imds;
mod instance_types;
pub mod ledger;
mod metadata;
pub mod query;
pub mod request;
mod server;
pub mod weather;
mod xml;

pub use client::Client;
pub use cloud::Cloud;
pub use fabric::Fabric;
pub use imds::Imds;
pub use instance_types::{instance_type, instance_types};
pub use server::Server;
