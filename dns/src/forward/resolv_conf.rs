//! The name servers of a file like `/etc/resolv.conf` (resolv.conf(5)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// systemd-resolved's stub. From another network namespace, or when the stub forwards to us, it is a dead end.
const SYSTEMD_STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
/// Where systemd-resolved tells the servers behind its stub.
const BEHIND_SYSTEMD_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Reads the name servers. None is no error: cluster names answer without them.
///
/// # Errors
/// When the file cannot be read.
pub fn name_servers(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let servers = parse(&std::fs::read_to_string(path)?);
    let only_stub = !servers.is_empty() && servers.iter().all(|server| server.ip() == SYSTEMD_STUB);
    if only_stub && let Ok(text) = std::fs::read_to_string(BEHIND_SYSTEMD_STUB) {
        return Ok(parse(&text));
    }
    Ok(servers)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let server = words
            .next()
            .filter(|word| *word == "nameserver")
            .and_then(|_| words.next())?;
        // An IPv6 scope cannot be had from the text alone.
        server.split('%').next()?.parse::<IpAddr>().ok()
    });
    servers.map(|server| SocketAddr::from((server, 53))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_everything_else_is_passed_over() {
        let text = "# nameserver 1.1.1.1\nsearch example\n nameserver 10.0.0.2 # main\nnameserver fe80::1%eth0\n\
                    nameserver nonsense\noptions ndots:5\n";
        let expected: Vec<SocketAddr> = ["10.0.0.2:53", "[fe80::1]:53"]
            .map(|address| address.parse().expect("address"))
            .into();
        assert_eq!(parse(text), expected);
    }
}
