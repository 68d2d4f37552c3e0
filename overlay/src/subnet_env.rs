//! `/run/flannel/subnet.env`: how other programs of the node learn its subnet (CNI plugin `flannel`, scripts), and
//! where a node that forgets everything else finds the subnet it had.

use std::fs;
use std::io;
use std::path::Path;

use ipnetwork::IpNetwork;
use model::{ByFamily, IpFamily, Mtu};

use crate::files::write_file;
use crate::flannel::NetworkConfig;
use crate::pool::{address, masked, number};

/// The names under which a version's network and subnet are told.
const fn names(family: IpFamily) -> (&'static str, &'static str) {
    match family {
        IpFamily::V4 => ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
        IpFamily::V6 => ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
    }
}

/// Writes the file unless it says so already; by rename, so that nobody reads half of it.
pub(crate) fn write(
    path: &Path,
    config: &NetworkConfig,
    subnets: &ByFamily<IpNetwork>,
    mtu: Mtu,
) -> io::Result<bool> {
    let mut text = String::new();
    for (family, subnet) in subnets.iter() {
        let (network_name, subnet_name) = names(family);
        if let Some(pool) = config.pools.get(family) {
            text += &format!("{network_name}={}\n", pool.network);
        }
        // The node's own address in it, where it has a bridge: its second.
        let second = address(subnet.is_ipv4(), number(subnet.network()) + 1);
        text += &format!(
            "{subnet_name}={}/{}\n",
            second.unwrap_or(subnet.network()),
            subnet.prefix()
        );
    }
    text += &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ=true\n", mtu.0);
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    write_file(path, text.as_bytes())?;
    Ok(true)
}

/// The subnets that the file tells of.
pub(crate) fn read(path: &Path) -> ByFamily<IpNetwork> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let subnet = |family| {
        let (_, name) = names(family);
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        let with_host: IpNetwork = value.parse().ok()?;
        Some((family, masked(with_host)))
    };
    IpFamily::ALL.into_iter().filter_map(subnet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_flannels_form_is_read_back_and_written_once() {
        let path = std::env::temp_dir()
            .join(format!("cwt-env-{}", std::process::id()))
            .join("subnet.env");
        let config = NetworkConfig::parse(
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}"#,
        )
        .expect("valid");
        let subnet = |text: &str| text.parse::<IpNetwork>().expect("a subnet");
        let v4: ByFamily<IpNetwork> = [subnet("10.244.3.0/24")].into_iter().collect();
        assert!(write(&path, &config, &v4, Mtu(1450)).expect("write"));
        assert!(!write(&path, &config, &v4, Mtu(1450)).expect("write"));
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(read(&path), v4);
        let both = v4.values().copied().chain([subnet("fd05:0:0:3::/64")]).collect();
        assert!(write(&path, &config, &both, Mtu(1430)).expect("write"));
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
            FLANNEL_IPV6_NETWORK=fd05::/48\nFLANNEL_IPV6_SUBNET=fd05:0:0:3::1/64\n\
            FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(read(&path), both);
        assert!(read(Path::new("/nonexistent")).is_empty());
        fs::remove_dir_all(path.parent().expect("directory")).expect("clean");
    }
}
