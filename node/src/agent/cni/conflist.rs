//! The file by which the container runtime learns of the plugin.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use overlay::files::{remove_if_there, successor, write_file};
use serde_json::json;

use crate::install_cni::PLUGIN;

/// Before the names that most other networks use, of which the runtime takes the first.
pub const NAME: &str = "10-causeway.conflist";

/// Writes `10-causeway.conflist`, whole or not at all, unless it is there already, and returns its path.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: &Path, socket: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join(NAME);
    let text = format!("{:#}\n", conflist(socket));
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(path);
    }
    // Runtimes read every file that ends in .conf, .conflist or .json, and so not its successor.
    write_file(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Removes the file if it is of our plugin, and what a crash left of its successor. Whether there was either.
///
/// # Errors
/// When it cannot be read or removed.
pub fn remove(directory: &Path) -> anyhow::Result<bool> {
    let path = directory.join(NAME);
    let fresh = remove_if_there(&successor(&path))?;
    let removed = remove_of(&path, PLUGIN)?;
    Ok(fresh || removed)
}

/// What amazon-vpc-cni-k8s calls its own, which comes before ours.
const OF_AWS_NODE: &str = "10-aws.conflist";

/// Removes amazon-vpc-cni-k8s's file, if it is of its plugin. Whether there was one.
///
/// # Errors
/// When it cannot be read or removed.
pub fn remove_of_aws_node(directory: &Path) -> anyhow::Result<bool> {
    remove_of(&directory.join(OF_AWS_NODE), "aws-cni")
}

/// Removes a file of which this plugin is the first. Whether there was one.
fn remove_of(path: &Path, plugin: &str) -> anyhow::Result<bool> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let there: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(there["plugins"][0]["type"] == plugin && remove_if_there(path)?)
}

/// The configuration (CNI 1.0 §1, "Network configuration format").
fn conflist(socket: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "causeway",
        "plugins": [{
            "type": PLUGIN,
            "capabilities": {"ips": true, "mac": true, "portMappings": true, "bandwidth": true},
            "socket": socket,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_other_networks_files_that_of_aws_node_goes_alone() {
        let directory = std::env::temp_dir().join(format!("cwt-conflist-aws-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("writable");
        let rows = [
            (
                OF_AWS_NODE,
                r#"{"plugins": [{"type": "aws-cni"}, {"type": "portmap"}]}"#,
                true,
            ),
            (OF_AWS_NODE, r#"{"plugins": [{"type": "cilium-cni"}]}"#, false),
            (OF_AWS_NODE, r#"{"plugins": [{"type": "aws-cni""#, false),
            (
                "05-other.conflist",
                r#"{"plugins": [{"type": "aws-cni"}]}"#,
                false,
            ),
        ];
        for (name, text, goes) in rows {
            let path = directory.join(name);
            std::fs::write(&path, text).expect("writable");
            assert_eq!(
                remove_of_aws_node(&directory).expect("readable"),
                goes,
                "{name} {text}"
            );
            assert_eq!(path.exists(), !goes, "{name} {text}");
            let _ = std::fs::remove_file(&path);
        }
        assert!(!remove_of_aws_node(&directory).expect("nothing there"));
        std::fs::remove_dir_all(directory).expect("it was made");
    }

    #[test]
    fn the_file_is_written_once_and_replaced_when_it_differs() {
        let directory = std::env::temp_dir().join(format!("cwt-conflist-{}", std::process::id()));
        let path = write(&directory, Path::new("/run/a.sock")).expect("writable");
        let modified = || {
            std::fs::metadata(&path)
                .and_then(|data| data.modified())
                .expect("it is there")
        };
        let first = modified();
        write(&directory, Path::new("/run/a.sock")).expect("writable");
        assert_eq!(modified(), first, "the same is not written again");
        write(&directory, Path::new("/run/b.sock")).expect("writable");
        let text = std::fs::read_to_string(&path).expect("it is there");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read["plugins"][0]["socket"], "/run/b.sock");
        assert_eq!(
            std::fs::read_dir(&directory).expect("there").count(),
            1,
            "nothing else is left"
        );
        assert!(remove(&directory).expect("removable"));
        assert!(!remove(&directory).expect("gone"));
        std::fs::write(&path, r#"{"plugins": [{"type": "bridge"}]}"#).expect("writable");
        assert!(!remove(&directory).expect("readable"), "another's stays");
        // As a crash leaves it, beside another's file or none.
        let fresh = successor(&path);
        for _ in 0..2 {
            std::fs::write(&fresh, "").expect("writable");
            assert!(remove(&directory).expect("removable"));
            assert!(!fresh.exists());
            let _ = std::fs::remove_file(&path); // the second time it is gone already
        }
        std::fs::remove_dir_all(directory).expect("it was made");
    }
}
