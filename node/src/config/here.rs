//! Which configurations agents of this machine have, where nobody names one.

use std::io;
use std::path::{Path, PathBuf};

use crate::cli::NODE_CONFIG;

/// Where `causeway up` keeps its nodes by default, each in a directory of its own.
pub(super) const NODES: &str = "/var/lib/causeway/nodes";

/// The name of an agent's configuration there.
const OF_NODE: &str = "agent.yaml";

/// Those that were named; else that of the node's own agent, [`NODE_CONFIG`]; else those of the nodes that `causeway up`
/// started, in the order of their names. None where there is none of these.
#[must_use]
pub fn of_this_machine(named: &[PathBuf]) -> Vec<PathBuf> {
    among(named, Path::new(NODE_CONFIG), Path::new(NODES))
}

fn among(named: &[PathBuf], own: &Path, nodes: &Path) -> Vec<PathBuf> {
    if !named.is_empty() {
        return named.to_vec();
    }
    if own.exists() {
        return vec![own.to_owned()];
    }
    of_nodes(nodes).unwrap_or_default()
}

fn of_nodes(nodes: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = nodes.read_dir()?.flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path().join(OF_NODE)).collect();
    files.retain(|file| file.exists());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::tests::directory::Directory;

    use super::*;

    #[test]
    fn what_is_named_comes_first_then_the_nodes_own_then_the_clusters() {
        let directory = Directory::new("configs");
        let (own, nodes) = (directory.path().join("node.yaml"), directory.path().join("nodes"));
        let of = |named: &[PathBuf]| among(named, &own, &nodes);
        assert!(of(&[]).is_empty());
        for node in ["node-2", "node-1", "no-agent"] {
            fs::create_dir_all(nodes.join(node)).expect("made");
        }
        let files = ["node-1", "node-2"].map(|node| nodes.join(node).join(OF_NODE));
        for file in &files {
            fs::write(file, "").expect("written");
        }
        assert_eq!(of(&[]), files);
        fs::write(&own, "").expect("written");
        assert_eq!(of(&[]), std::slice::from_ref(&own));
        assert_eq!(of(&files), files);
    }
}
