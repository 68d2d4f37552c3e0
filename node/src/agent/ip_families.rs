//! Which versions of IP this node has.

use std::collections::BTreeSet;
use std::path::Path;

use model::IpFamily;

/// Those that the kernel of this node speaks, told once in the log.
#[must_use]
pub fn of_this_node() -> BTreeSet<IpFamily> {
    let missing = why_no_ipv6(Path::new("/proc/sys/net/ipv6"));
    match missing {
        None => tracing::info!("Services are served over IPv4 and IPv6"),
        Some(reason) => tracing::info!(reason, "Services are served over IPv4 only"),
    }
    let v6 = missing.is_none().then_some(IpFamily::V6);
    [IpFamily::V4].into_iter().chain(v6).collect()
}

/// `settings`: `/proc/sys/net/ipv6`. A kernel without IPv6, or one told to do without, refuses the rules too.
fn why_no_ipv6(settings: &Path) -> Option<&'static str> {
    if !settings.exists() {
        return Some("the kernel has no IPv6");
    }
    let disabled = std::fs::read_to_string(settings.join("conf/all/disable_ipv6"));
    disabled
        .is_ok_and(|text| text.trim() == "1")
        .then_some("net.ipv6.conf.all.disable_ipv6 is 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_served_where_the_kernel_has_it_and_it_is_not_off() {
        let root = std::env::temp_dir().join(format!("cwt-ipv6-{}", std::process::id()));
        assert_eq!(why_no_ipv6(&root), Some("the kernel has no IPv6"));
        std::fs::create_dir_all(root.join("conf/all")).expect("writable");
        assert_eq!(why_no_ipv6(&root), None);
        for (value, expected) in [
            ("0\n", None),
            ("1\n", Some("net.ipv6.conf.all.disable_ipv6 is 1")),
        ] {
            std::fs::write(root.join("conf/all/disable_ipv6"), value).expect("writable");
            assert_eq!(why_no_ipv6(&root), expected);
        }
        std::fs::remove_dir_all(root).expect("it is there");
    }
}
