//! UDP clients whose endpoint is gone.
//!
//! A connected UDP socket was sent to its endpoint once and for all: when that leaves, nothing on the network tells the
//! client (cilium#12859; resolvers and proxies kept asking a dead pod for hours). Such a socket is ended: its next call
//! fails, and the application connects anew.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::service::SocketPeer;
use netlink::Namespace;
use netlink::sock_diag::SockDiag;

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
/// process of the cgroup is.
pub(super) fn end_sockets(cgroup: &Path, sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error> {
    let mut ended = 0;
    for namespace in namespaces(cgroup) {
        // A namespace may be gone by now, and its sockets with it.
        if let Ok(count) = namespace.run(|| end_here(sockets)) {
            ended += count?;
        }
    }
    Ok(ended)
}

fn end_here(sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error> {
    let mut diag = SockDiag::open()?;
    let found = diag.connected_udp(|socket| sockets.contains(&(socket.cookie(), socket.destination)))?;
    for socket in &found {
        diag.destroy(socket)?;
    }
    Ok(found.len())
}

/// The network namespaces of all processes in a cgroup and below it. Processes come and go meanwhile: what cannot be
/// read is gone.
fn namespaces(cgroup: &Path) -> Vec<Namespace> {
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
