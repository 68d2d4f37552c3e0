//! UDP clients whose endpoint is gone.
//!
//! A connected UDP socket was sent to its endpoint once and for all: when that leaves, nothing on the network tells the
//! client (cilium#12859; resolvers and proxies kept asking a dead pod for hours). Such a socket is ended: its next call
//! fails, and the application connects anew.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Once;

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::service::SocketPeer;
use netlink::Namespace;
use netlink::sock_diag::{self, SockDiag};

use super::HookMaps;
use crate::Error;
use crate::stale::StaleFlows;

/// Ends the sockets that `stale` describes; returns how many there were.
pub(super) fn forget<M: HookMaps>(maps: &mut M, stale: &StaleFlows) -> Result<usize, Error> {
    let replies = maps.replies()?;
    let of_stale = replies.iter().filter(|(peer, reply)| {
        stale.leads_nowhere(
            socket_address(reply.addr, reply.port),
            socket_address(peer.addr, peer.port),
        )
    });
    let peers: Vec<SocketPeer> = of_stale.map(|(peer, _)| *peer).collect();
    if peers.is_empty() {
        return Ok(0);
    }
    let sockets = peers
        .iter()
        .map(|peer| (peer.socket, socket_address(peer.addr, peer.port)))
        .collect();
    let ended = maps.end_sockets(&sockets)?;
    // Those of unconnected sockets go too: the next datagram picks anew.
    for peer in &peers {
        maps.remove_reply(peer)?;
    }
    Ok(ended)
}

/// Ends those of these sockets, by cookie, that are connected to these addresses, in every network namespace in which a
/// process of the cgroup is, or that a container runtime has pinned. What fails in one is told when all were tried.
pub(super) fn end_sockets(cgroup: &Path, sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error> {
    let mut ended = 0;
    let mut failure = None;
    let mut namespaces = namespaces_of_processes(cgroup);
    // An agent in a container sees no processes of others.
    for pinned in Namespace::all_pinned() {
        if !namespaces.contains(&pinned) {
            namespaces.push(pinned);
        }
    }
    for namespace in namespaces {
        match namespace.run(|| end_here(sockets)) {
            Ok(Ok(count)) => ended += count,
            Ok(Err(error)) if error.is_unsupported() => warn_once(&error),
            Ok(Err(error)) => failure = Some(error.into()),
            // To enter other namespaces is a right that a node's owner may keep from the agent.
            Err(error) => warn_once(&error),
        }
    }
    failure.map_or(Ok(ended), Err)
}

fn warn_once(error: &(dyn std::error::Error + 'static)) {
    static WARN: Once = Once::new();
    WARN.call_once(|| {
        tracing::warn!(
            error,
            "connected UDP clients of an endpoint that left cannot be ended here; they notice by themselves"
        );
    });
}

fn end_here(sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, sock_diag::Error> {
    let mut diag = SockDiag::open()?;
    let found = diag.connected_udp(|socket| sockets.contains(&(socket.cookie(), socket.destination)))?;
    for socket in &found {
        diag.destroy(socket)?;
    }
    Ok(found.len())
}

/// The network namespaces of all processes in a cgroup and below it. Processes come and go meanwhile: what cannot be
/// read is gone.
fn namespaces_of_processes(cgroup: &Path) -> Vec<Namespace> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut directories = vec![cgroup.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        directories.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            // The link names the namespace: `net:[4026531840]`.
            let Ok(name) = fs::read_link(&path) else { continue };
            if seen.insert(name)
                && let Ok(namespace) = Namespace::open(&path)
            {
                found.push(namespace);
            }
        }
    }
    found
}

fn socket_address(ip: Ip, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::from(ip), port.number())
}
