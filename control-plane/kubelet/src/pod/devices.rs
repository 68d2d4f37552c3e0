//! The node's devices, all of which a privileged container gets.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{major, minor};

use crate::oci::Device;

/// What each container has of its own, as containerd leaves it out (`oci.WithHostDevices`).
const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", "ptmx"];

/// All devices below a directory, `/dev`, by path. One that goes meanwhile is left out.
pub fn of_node(directory: &Path) -> Vec<Device> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = metadata.file_type();
        if OWN.iter().any(|own| name == *own) || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if kind.is_dir() {
            found.extend(of_node(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(Device {
                path,
                kind: if kind.is_block_device() { 'b' } else { 'c' },
                numbers: (major(metadata.rdev()).into(), minor(metadata.rdev()).into()),
                mode: metadata.mode() & 0o777,
                owner: (metadata.uid(), metadata.gid()),
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_the_node_are_found_without_those_of_each_container() {
        let found = of_node(Path::new("/dev"));
        let null = found.iter().find(|device| device.path == Path::new("/dev/null"));
        let null = null.map(|device| (device.kind, device.numbers));
        assert_eq!(null, Some(('c', (1, 3))));
        let own = found.iter().filter(|device| {
            ["/dev/pts/", "/dev/ptmx", "/dev/console"]
                .iter()
                .any(|own| device.path.display().to_string().starts_with(own))
        });
        assert_eq!(own.collect::<Vec<_>>(), Vec::<&Device>::new());
    }
}
