//! Kernel settings under `/proc/sys`. Those under `net/` belong to the calling thread's network namespace
//! (`net_ctl_header_lookup`): reach another one with [`crate::Namespace::run`].
//!
//! A container that is not privileged sees its `/proc/sys` read-only. Where the node's is mounted into it at
//! `/host/proc/sys/net`, that is read and written instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::error::{Error, Operation, Result};

/// Where the settings of the network are.
static ROOT: LazyLock<&Path> = LazyLock::new(|| root_of(Path::new("/host/proc/sys")));

fn root_of(mounted: &Path) -> &Path {
    if mounted.join("net").is_dir() {
        mounted
    } else {
        Path::new("/proc/sys")
    }
}

fn place(path: &str) -> PathBuf {
    if path.starts_with("net/") {
        ROOT.join(path)
    } else {
        Path::new("/proc/sys").join(path)
    }
}

/// Reads a setting by its path below `/proc/sys`, for example `net/ipv4/ip_forward`, without the line feed. Slashes,
/// not dots: device names may hold dots.
///
/// # Errors
/// When there is no such setting.
pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(place(path))
        .map(|text| text.trim_end().to_owned())
        .map_err(Error::of(Operation::ReadSysctl, path))
}

/// Writes a setting.
///
/// # Errors
/// When there is no such setting, or the value is refused.
pub fn write(path: &str, value: &str) -> Result<()> {
    fs::write(place(path), value).map_err(Error::of(Operation::WriteSysctl, path))
}

/// Writes a setting unless it has that value already. Returns whether it wrote.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn ensure(path: &str, value: &str) -> Result<bool> {
    if read(path)? == value {
        return Ok(false);
    }
    write(path, value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_node_that_are_mounted_come_first() {
        let mounted = std::env::temp_dir().join(format!("cwt-sysctl-{}", std::process::id()));
        assert_eq!(root_of(&mounted), Path::new("/proc/sys"));
        fs::create_dir_all(mounted.join("net")).expect("writable");
        assert_eq!(root_of(&mounted), mounted);
        fs::remove_dir_all(&mounted).expect("it was made");
    }
}
