//! Which settings shall have which values.

use std::collections::BTreeSet;

use model::IpFamily;

use crate::config::Conntrack;

/// `nf_conntrack_max` is not raised beyond it, whatever the number of CPUs.
const MOST: u64 = 1_048_576;

/// Flows for each hash bucket, at most: the kernel's own choice for a table of default size
/// (`nf_conntrack_init_start`) is less.
const FLOWS_PER_BUCKET: u64 = 4;

/// `rp_filter` in loose mode, and `accept_ra` of a router that hears other routers: `ip-sysctl.rst`.
const LOOSE: u64 = 2;
const EVEN_IF_FORWARDING: u64 = 2;

/// A value that a setting shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Below `/proc/sys`.
    pub path: String,
    /// The value.
    pub value: Value,
}

/// What a setting shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Somebody who set more knows why.
    AtLeast(u64),
    /// This and no other.
    Exactly(u64),
    /// Only where it is 1, and only if there is such a setting at all.
    InsteadOfOne(u64),
    /// If there is such a setting at all.
    IfPresent(u64),
}

impl Value {
    /// What is to be written over a value that is there.
    #[must_use]
    pub fn over(self, present: u64) -> Option<u64> {
        match self {
            Self::AtLeast(least) => (present < least).then_some(least),
            Self::Exactly(value) | Self::IfPresent(value) => (present != value).then_some(value),
            Self::InsteadOfOne(value) => (present == 1).then_some(value),
        }
    }

    /// Whether a value that is there is what was written, as far as can be told: one that is more than the least is
    /// not, and one of a device that is ours goes with the device.
    #[must_use]
    pub fn may_have_written(self, present: u64) -> bool {
        match self {
            Self::AtLeast(written) | Self::Exactly(written) | Self::InsteadOfOne(written) => {
                written == present
            }
            Self::IfPresent(_) => false,
        }
    }

    /// Whether it is no failure that there is no such setting: it belongs to a device, which may come and go.
    #[must_use]
    pub const fn may_be_absent(self) -> bool {
        matches!(self, Self::InsteadOfOne(_) | Self::IfPresent(_))
    }
}

/// The limits of connection tracking that the configuration wants on a node with that many CPUs.
#[must_use]
pub fn limits(conntrack: &Conntrack, cpus: u64) -> Vec<Wanted> {
    let Conntrack {
        max_per_core,
        min,
        tcp_established_timeout,
        tcp_close_wait_timeout,
        tcp_be_liberal,
        udp_timeout,
        udp_stream_timeout,
    } = conntrack;
    let setting = |name: &str, value| Wanted {
        path: format!("net/netfilter/{name}"),
        value,
    };
    let mut wanted = Vec::new();
    if *max_per_core > 0 {
        let flows = u64::from(*max_per_core).saturating_mul(cpus).min(MOST);
        let flows = flows.max(u64::from(*min).min(MOST));
        let buckets = flows / FLOWS_PER_BUCKET;
        wanted.push(setting("nf_conntrack_max", Value::AtLeast(flows)));
        wanted.push(setting("nf_conntrack_buckets", Value::AtLeast(buckets)));
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", tcp_close_wait_timeout),
        ("nf_conntrack_udp_timeout", udp_timeout),
        ("nf_conntrack_udp_timeout_stream", udp_stream_timeout),
    ];
    let timeouts = timeouts.into_iter().filter(|(_, timeout)| timeout.as_secs() > 0);
    wanted.extend(timeouts.map(|(name, timeout)| setting(name, Value::Exactly(timeout.as_secs()))));
    if *tcp_be_liberal {
        wanted.push(setting("nf_conntrack_tcp_be_liberal", Value::Exactly(1)));
    }
    wanted
}

/// What is known of the paths of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Versions of IP that pods have.
    pub families: BTreeSet<IpFamily>,
    /// The overlay's tunnel device for IPv4: IPv6 has no `rp_filter`.
    pub tunnel: Option<String>,
    /// Devices on which a router advertised the node's default route for IPv6.
    pub advertised: BTreeSet<String>,
}

/// What lets packets pass from device to device, in the order in which it is to be written.
#[must_use]
pub fn forwarding(paths: &Paths) -> Vec<Wanted> {
    let Paths {
        families,
        tunnel,
        advertised,
    } = paths;
    let mut wanted = Vec::new();
    if families.contains(&IpFamily::V4) {
        wanted.push(Wanted {
            path: "net/ipv4/ip_forward".to_owned(),
            value: Value::Exactly(1),
        });
    }
    if families.contains(&IpFamily::V6) {
        // Before it forwards: then the kernel drops the routes that it learned (`rt6_purge_dflt_routers`).
        wanted.extend(advertised.iter().map(|device| Wanted {
            path: format!("net/ipv6/conf/{device}/accept_ra"),
            value: Value::InsteadOfOne(EVEN_IF_FORWARDING),
        }));
        wanted.push(Wanted {
            path: "net/ipv6/conf/all/forwarding".to_owned(),
            value: Value::Exactly(1),
        });
    }
    // The greater of a device's value and `all` holds (`IN_DEV_MAXCONF`): this one holds whatever `all` is.
    wanted.extend(tunnel.iter().map(|device| Wanted {
        path: format!("net/ipv4/conf/{device}/rp_filter"),
        value: Value::IfPresent(LOOSE),
    }));
    wanted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_limit_grows_with_the_cpus_between_the_least_and_the_most() {
        let config = Conntrack::default();
        let limit = |config: &Conntrack, cpus| limits(config, cpus).first().map(|wanted| wanted.value);
        for (cpus, expected) in [(1, 131_072), (4, 131_072), (8, 262_144), (64, 1_048_576)] {
            assert_eq!(
                limit(&config, cpus),
                Some(Value::AtLeast(expected)),
                "{cpus} CPUs"
            );
        }
        let greedy = Conntrack {
            min: u32::MAX,
            ..config
        };
        assert_eq!(limit(&greedy, 1), Some(Value::AtLeast(MOST)));
    }

    #[test]
    fn nothing_is_set_that_is_to_be_left_as_it_is() {
        let config = Conntrack {
            max_per_core: 0,
            min: 131_072,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        };
        assert_eq!(limits(&config, 64), []);
        let asked = Conntrack {
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(30),
            udp_stream_timeout: Duration::from_secs(180),
            ..config
        };
        let expected = [
            ("net/netfilter/nf_conntrack_udp_timeout", 30),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", 180),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", 1),
        ];
        let expected = expected.map(|(path, value)| Wanted {
            path: path.to_owned(),
            value: Value::Exactly(value),
        });
        assert_eq!(limits(&asked, 64), expected);
        assert_eq!(forwarding(&Paths::default()), []);
    }

    #[track_caller]
    fn check(families: &[IpFamily], tunnel: Option<&str>, advertised: &[&str], expected: &[(&str, Value)]) {
        let paths = Paths {
            families: families.iter().copied().collect(),
            tunnel: tunnel.map(str::to_owned),
            advertised: advertised.iter().map(|device| (*device).to_owned()).collect(),
        };
        let wanted = forwarding(&paths);
        let found: Vec<_> = wanted
            .iter()
            .map(|wanted| (wanted.path.as_str(), wanted.value))
            .collect();
        assert_eq!(found, expected, "for {paths:?}");
    }

    #[test]
    fn what_pods_have_is_forwarded_and_routers_are_heard_on() {
        let v4 = ("net/ipv4/ip_forward", Value::Exactly(1));
        let v6 = ("net/ipv6/conf/all/forwarding", Value::Exactly(1));
        let heard = ("net/ipv6/conf/eth0/accept_ra", Value::InsteadOfOne(2));
        let tunnel = ("net/ipv4/conf/flannel.1/rp_filter", Value::IfPresent(2));
        check(&[IpFamily::V4], None, &["eth0"], &[v4]);
        check(&[IpFamily::V6], None, &[], &[v6]);
        check(
            &[IpFamily::V4, IpFamily::V6],
            Some("flannel.1"),
            &["eth0"],
            &[v4, heard, v6, tunnel],
        );
    }

    #[test]
    fn a_value_that_nobody_here_wrote_is_not_told_as_ours() {
        let rows = [
            (Value::AtLeast(4), [false, true, false]),
            (Value::Exactly(4), [false, true, false]),
            (Value::IfPresent(4), [false, false, false]),
            (Value::InsteadOfOne(4), [false, true, false]),
        ];
        for (value, expected) in rows {
            let told = [1, 4, 5].map(|present| value.may_have_written(present));
            assert_eq!(told, expected, "{value:?}");
        }
    }

    #[test]
    fn a_value_is_written_over_what_it_does_not_allow() {
        let rows = [
            (Value::AtLeast(4), [Some(4), Some(4), None]),
            (Value::Exactly(4), [Some(4), Some(4), Some(4)]),
            (Value::IfPresent(1), [Some(1), None, Some(1)]),
            (Value::InsteadOfOne(2), [None, Some(2), None]),
        ];
        for (value, expected) in rows {
            assert_eq!(
                [0, 1, 5].map(|present| value.over(present)),
                expected,
                "{value:?}"
            );
        }
    }
}
