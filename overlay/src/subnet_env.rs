//! `/run/flannel/subnet.env`: how other programs of the node learn its subnet (CNI plugin `flannel`, scripts), and
//! where a node that forgets everything else finds the subnet it had.

use std::fs;
use std::io;
use std::path::Path;

use ipnetwork::Ipv4Network;
use model::Mtu;

/// Writes the file unless it says so already; by rename, so that nobody reads half of it.
pub(crate) fn write(path: &Path, network: Ipv4Network, subnet: Ipv4Network, mtu: Mtu) -> io::Result<bool> {
    let text = format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ=true\n",
        subnet.nth(1).unwrap_or(subnet.network()),
        subnet.prefix(),
        mtu.0
    );
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    write_file(path, text.as_bytes())?;
    Ok(true)
}

/// The subnet that the file tells of.
pub(crate) fn read(path: &Path) -> Option<Ipv4Network> {
    let text = fs::read_to_string(path).ok()?;
    let subnet = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
    let with_host: Ipv4Network = subnet.parse().ok()?;
    Ipv4Network::new(with_host.network(), with_host.prefix()).ok()
}

/// Replaces a file as a whole, durably.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = fs::File::create(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, path)?;
    crate::pods::log::sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_flannels_form_is_read_back_and_written_once() {
        let path = std::env::temp_dir()
            .join(format!("cwt-env-{}", std::process::id()))
            .join("subnet.env");
        let network = "10.244.0.0/16".parse().expect("network");
        let subnet = "10.244.3.0/24".parse().expect("subnet");
        assert!(write(&path, network, subnet, Mtu(1450)).expect("write"));
        assert!(!write(&path, network, subnet, Mtu(1450)).expect("write"));
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(read(&path), Some(subnet));
        assert_eq!(read(Path::new("/nonexistent")), None);
        fs::remove_dir_all(path.parent().expect("directory")).expect("clean");
    }
}
