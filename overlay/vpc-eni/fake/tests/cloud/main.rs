//! The fake VPC behaves as EC2 and the instance metadata service do, in this process and over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod imds;
mod keeping;
mod refusals;
mod shapes;
mod support;
mod weather;
