//! The fabric of the fake VPC: real packets between network namespaces. Needs root; says so when it is not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod privileged;
