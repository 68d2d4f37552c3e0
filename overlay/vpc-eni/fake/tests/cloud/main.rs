//! The fake VPC behaves as EC2 and the instance metadata service do, in this process and over HTTP.

mod calls;
mod imds;
mod refusals;
mod shapes;
mod support;
mod weather;
