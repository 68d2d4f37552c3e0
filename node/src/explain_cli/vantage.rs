//! How somebody here gets to where a process is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use trace::namespaces;

use crate::explain::Vantage;

/// The way to the namespaces of a process. Those of the caller need none.
pub fn on_process(pid: i32) -> Vantage {
    let own = |kind: &str| inode(Path::new(&format!("/proc/self/ns/{kind}")));
    let its = |kind: &str| inode(Path::new(&format!("/proc/{pid}/ns/{kind}")));
    let is_elsewhere = its("mnt").is_some() && its("mnt") != own("mnt");
    Vantage {
        network: namespaces::entering_that_of(pid),
        root: if is_elsewhere {
            format!("/proc/{pid}/root")
        } else {
            String::new()
        },
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let data = fs::metadata(path).ok()?;
    Some((data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_where_we_are_is_looked_at_directly() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(on_process(own), Vantage::default());
    }
}
