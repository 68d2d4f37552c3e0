//! The name servers and the search path of a file like `/etc/resolv.conf` (resolv.conf(5)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::name::Name;

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

/// Reads the search path: of the last line `search` or `domain`, as in the C library.
///
/// # Errors
/// When the file cannot be read.
pub fn search(path: &Path) -> io::Result<Vec<Name>> {
    Ok(parse_search(&std::fs::read_to_string(path)?))
}

fn parse_search(text: &str) -> Vec<Name> {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then_some(words)
    });
    let words = lines.next_back().into_iter().flatten();
    words.filter_map(|word| Name::parse(word).ok()).collect()
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
    fn the_last_search_path_holds() {
        let text = "search a.example\nnameserver 10.0.0.1\ndomain b.example\nsearch  ns.svc.cluster.local a..b\tsvc.cluster.local\n";
        let expected =
            ["ns.svc.cluster.local", "svc.cluster.local"].map(|name| Name::parse(name).expect("name"));
        assert_eq!(parse_search(text), expected);
        assert_eq!(parse_search("nameserver 10.0.0.1\n"), []);
    }

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
