//! Datagrams that the kernel dropped because a socket's buffer was full: it counts them itself, so that the serving
//! threads need not.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// The kernel's tables of UDP sockets in this network namespace (`udp4_format_sock`, `udp6_sock_seq_show`):
/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ref pointer drops`.
const TABLES: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];
const INODE: usize = 9;
const DROPS: usize = 12;

/// A socket by its inode.
pub type Inode = u64;

/// What a socket is called in the kernel's tables.
#[must_use]
pub fn inode(socket: impl AsFd) -> Option<Inode> {
    nix::sys::stat::fstat(socket).ok().map(|status| status.st_ino)
}

/// How many datagrams these sockets have lost.
#[must_use]
pub fn dropped(sockets: &BTreeSet<Inode>) -> u64 {
    let tables = TABLES
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok());
    tables.map(|table| dropped_in(&table, sockets)).sum()
}

fn dropped_in(table: &str, sockets: &BTreeSet<Inode>) -> u64 {
    let drops = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(INODE);
        let inode = fields.next()?.parse().ok()?;
        let drops = fields.nth(DROPS - INODE - 1)?.parse::<u64>().ok()?;
        sockets.contains(&inode).then_some(drops)
    });
    drops.sum()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    #[test]
    fn what_a_full_socket_loses_is_known() {
        let [own, other] = ["127.0.0.1:0"; 2].map(|any| UdpSocket::bind(any).expect("bound"));
        let sockets = BTreeSet::from([inode(&own).expect("an inode")]);
        let address = own.local_addr().expect("address");
        assert_eq!(dropped(&sockets), 0);
        setsockopt(&own, sockopt::RcvBuf, &4096).expect("a small buffer");
        for _ in 0..100 {
            other.send_to(&[0; 512], address).expect("sent");
        }
        let lost = dropped(&sockets);
        own.set_nonblocking(true).expect("set");
        let kept = std::iter::from_fn(|| own.recv(&mut [0; 512]).ok()).count() as u64;
        assert!(lost > 0 && lost + kept == 100, "{lost} lost, {kept} kept");
        assert_eq!(dropped(&BTreeSet::from([inode(&other).expect("an inode")])), 0);
    }
}
