//! A client, a Service, an endpoint, and what stories of their packets are compared with.

use std::net::SocketAddr;

use trace::hop::{Flow, Protocol};
use trace::{Story, render};

/// The client.
pub const CLIENT: &str = "10.241.0.5:46798";
/// The Service.
pub const SERVICE: &str = "10.96.0.10:80";
/// Its endpoint.
pub const SERVER: &str = "10.242.0.5:8080";

/// An `ADDRESS:PORT`.
pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// TCP from one to the other, each `ADDRESS:PORT`.
pub fn flow(source: &str, destination: &str) -> Flow {
    Flow {
        source: at(source),
        destination: at(destination),
        protocol: Protocol::TCP,
    }
}

/// Whether a story is told by this text and this JSON, and read back from it.
#[track_caller]
pub fn check_golden(story: &Story, text: &str, json: &str) {
    assert_eq!(render::text(story), text);
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(serde_json::json!(story), json);
    assert_eq!(serde_json::from_value::<Story>(json).expect("a story"), *story);
}
