//! What amazon-vpc-cni-k8s, the DaemonSet `aws-node`, leaves on a node that comes from it.
//!
//! ```text
//! ipam.json ─ checkpoint ─┐
//! kernel: eni… and routes ─┴► take_over ─► the book of pods' addresses; strangers, whom the checkpoint lacks
//! iptables-nft, nftables ──► rules ─► gone, once our own translate
//! ```
//! Its rules of policy routing are like ours, and become ours by the usual pass ([`super::plan()`]).

mod checkpoint;
mod rules;
mod take_over;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use checkpoint::CheckpointError;
pub use rules::{has_legacy_tables, remove_rules, rules_left};
pub use take_over::{TakenOver, take_over};

/// Where its daemon answers its plugin, since v1.23.
const SOCKET: &str = "ipamd.sock";

/// A daemon of this node answers sooner.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether its daemon runs: who gives addresses of the same interfaces gives them a second time. `directory` is
/// `/var/run/aws-node`; older versions than v1.23 are found at their introspection endpoint alone.
#[must_use]
pub fn is_running(directory: &Path, introspection: Option<SocketAddr>) -> bool {
    let answers = |at: SocketAddr| TcpStream::connect_timeout(&at, PATIENCE).is_ok();
    UnixStream::connect(directory.join(SOCKET)).is_ok() || introspection.is_some_and(answers)
}
