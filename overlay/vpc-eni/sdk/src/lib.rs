//! EC2 and the instance's metadata service by AWS's own SDK: the [`Ec2`](vpc_eni::ec2::Ec2) and the
//! [`Metadata`](vpc_eni::ec2::Metadata) of a node that is an instance.
//!
//! - [`Settings`] say where EC2 answers, with what calls are signed and how long one may take.
//! - [`Client`] makes the calls: each is one request (a list is one for each page), none is repeated.
//! - [`ImdsMetadata`] asks the metadata service, IMDSv2 alone.
//!
//! A package of its own, because the SDK has EC2's whole API and takes minutes to compile: what plans and what tests
//! needs only [`vpc_eni`].

mod client;
mod connector;
mod failure;
mod metadata;
mod reply;
mod settings;

pub use client::Client;
pub use metadata::ImdsMetadata;
pub use settings::{CredentialSource, ENDPOINT_VARIABLE, Settings, SettingsError, Timeouts};
