//! The client against a server that writes down what it is asked: the requests as EC2's API reference publishes them,
//! its replies, and what goes wrong.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod calls;
mod credentials;
mod end_to_end;
mod failures;
mod metadata;
mod server;
