//! kube-proxy's chain names, so that whoever knows them finds the way (`pkg/proxy/iptables/proxier.go`).

use model::{ObjectName, Protocol};
use sha2::{Digest as _, Sha256};

use crate::plan::{PortKey, Target};

/// Dispatches by address (nat); refuses and drops for ClusterIPs (filter).
pub const SERVICES: &str = "KUBE-SERVICES";
/// Refuses and drops for all other frontends.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// Dispatches by node port (nat); admits load balancers' health checks (filter).
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// Lets masqueraded and established traffic through.
pub const FORWARD: &str = "KUBE-FORWARD";
/// Masquerades what is marked.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Marks for masquerade.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Marks unless the source is in one of several pod networks. Not kube-proxy's, which knows one network only.
pub const MARK_OUTSIDE: &str = "KUBE-MARK-OUTSIDE";
/// Drops what source ranges forbid.
pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// Leaves what goes to the node's own DNS server, and what comes from there, untracked (raw). Ours by its name.
pub const DNS: &str = "CAUSEWAY-DNS";
/// Empty; that it is gone tells that somebody flushed the table.
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// Prefixes of chains that belong to one port of a Service. `KUBE-XLB-` is of kube-proxy before 1.24: its rules lead
/// to the others, which could not be removed while they stand.
const OF_PORTS: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
    "KUBE-XLB-",
];
const SUFFIX: usize = 16;

/// What a chain of one port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Spreads over the cluster's list.
    Cluster,
    /// Spreads over this node's list.
    Local,
    /// Decides what becomes of traffic to external frontends.
    External,
    /// Admits by source.
    Firewall,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
        }
    }
}

/// The names of one port of a Service.
#[derive(Clone, Debug)]
pub struct PortNames {
    /// `namespace/name:port`, or without the port's name when it has none.
    pub port: String,
    /// Lower case, as rules spell it.
    pub protocol: &'static str,
}

impl PortNames {
    /// Of a port.
    #[must_use]
    pub fn new(service: &ObjectName, key: &PortKey) -> Self {
        let port = if key.name.is_empty() {
            service.to_string()
        } else {
            format!("{service}:{}", key.name)
        };
        let protocol = match key.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        Self { port, protocol }
    }

    /// A chain of the port.
    #[must_use]
    pub fn chain(&self, kind: Kind) -> String {
        let Self { port, protocol } = self;
        format!("{}{}", kind.prefix(), suffix(&format!("{port}{protocol}")))
    }

    /// The chain of one endpoint of the port.
    #[must_use]
    pub fn endpoint(&self, target: &Target) -> String {
        let Self { port, protocol } = self;
        format!(
            "KUBE-SEP-{}",
            suffix(&format!("{port}{protocol}{}", destination(target)))
        )
    }
}

/// `address:port`, IPv6 in brackets.
pub fn destination(target: &Target) -> String {
    std::net::SocketAddr::new(target.address, target.port.get()).to_string()
}

/// Whether a chain belongs to a port of some Service.
#[must_use]
pub fn is_of_port(chain: &str) -> bool {
    let suffix = OF_PORTS.iter().find_map(|prefix| chain.strip_prefix(prefix));
    suffix.is_some_and(|suffix| suffix.len() == SUFFIX && suffix.bytes().all(|byte| ALPHABET.contains(&byte)))
}

/// RFC 4648 §6.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first 16 characters of the hash in base 32: its first 80 bits, five at a time. A crate for these lines would be
/// one more to audit.
fn suffix(text: &str) -> String {
    let hash = Sha256::digest(text);
    let bits = hash
        .iter()
        .take(SUFFIX * 5 / 8)
        .fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    let digits = (0..SUFFIX)
        .rev()
        .map(|position| (bits >> (5 * position)) as usize & 31);
    digits
        .filter_map(|digit| ALPHABET.get(digit))
        .map(|character| char::from(*character))
        .collect()
}

#[cfg(test)]
mod tests {
    use model::IpFamily;

    use super::*;

    /// The names are those of kube-proxy's own tests (`pkg/proxy/iptables/proxier_test.go`).
    #[test]
    fn chains_are_named_as_kube_proxy_names_them() {
        let key = PortKey {
            family: IpFamily::V4,
            name: "p80".into(),
            protocol: Protocol::Tcp,
        };
        let names = PortNames::new(&ObjectName::new("ns1", "svc1"), &key);
        let target = Target {
            address: [10, 180, 0, 1].into(),
            port: 80.try_into().expect("a port"),
        };
        assert_eq!(
            (names.chain(Kind::Cluster), names.endpoint(&target)),
            (
                "KUBE-SVC-XPGD46QRK7WJZT7O".into(),
                "KUBE-SEP-SXIVWICOYRO3J4NJ".into()
            )
        );
    }

    #[test]
    fn only_chains_of_ports_are_swept() {
        for swept in ["KUBE-SVC-XPGD46QRK7WJZT7O", "KUBE-FW-XPGD46QRK7WJZT7O"] {
            assert!(is_of_port(swept), "{swept}");
        }
        for kept in [
            "KUBE-SERVICES",
            "KUBE-SVC-mine",
            "KUBE-SVC-XPGD46QRK7WJZT7OX",
            "KUBE-FIREWALL",
            "KUBE-FWD-AAAAAAAAAAAAAAAA",
            "KUBE-POD-FW-4BDGZEWEU32YM75H",
            "CNI-XPGD46QRK7WJZT7O",
        ] {
            assert!(!is_of_port(kept), "{kept}");
        }
    }
}
