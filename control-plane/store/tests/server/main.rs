//! The server from outside: durability, certificates, leases, slow watches, and what it says when it cannot start.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod certificates;
mod durability;
mod fixture;
mod leases;
mod measure;
mod privileged;
mod space;
mod starting;
mod watching;
