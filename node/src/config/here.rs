//! Which configurations agents of this machine have, where nobody names one.

use std::io;
use std::path::{Path, PathBuf};

use model::bundled::{ADMIN_KUBECONFIG, AGENT_CONFIG, NODES, OWNER, STATE_DIR};

use crate::cli::NODE_CONFIG;

/// Where the cluster of `causeway up` on this machine has its state: as it says itself, else where it usually is.
#[must_use]
pub fn cluster() -> PathBuf {
    cluster_of(Path::new(OWNER))
}

fn cluster_of(owner: &Path) -> PathBuf {
    let told = std::fs::read_to_string(owner).unwrap_or_default();
    match told.trim_end() {
        "" => PathBuf::from(STATE_DIR),
        told => PathBuf::from(told),
    }
}

/// The administrator's kubeconfig of that cluster.
#[must_use]
pub fn kubeconfig() -> PathBuf {
    cluster().join(ADMIN_KUBECONFIG)
}

/// The nodes of that cluster, each in a directory of its own.
pub(super) fn nodes() -> PathBuf {
    cluster().join(NODES)
}

/// Those that were named; else that of the node's own agent, [`NODE_CONFIG`]; else those of the nodes that `causeway up`
/// started, in the order of their names. None where there is none of these.
#[must_use]
pub fn of_this_machine(named: &[PathBuf]) -> Vec<PathBuf> {
    among(named, Path::new(NODE_CONFIG), &nodes())
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
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path().join(AGENT_CONFIG)).collect();
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
        let files = ["node-1", "node-2"].map(|node| nodes.join(node).join(AGENT_CONFIG));
        for file in &files {
            fs::write(file, "").expect("written");
        }
        assert_eq!(of(&[]), files);
        fs::write(&own, "").expect("written");
        assert_eq!(of(&[]), std::slice::from_ref(&own));
        assert_eq!(of(&files), files);
    }

    #[test]
    fn a_cluster_with_another_state_directory_is_found_where_it_says() {
        let directory = Directory::new("owner");
        let owner = directory.path().join("owner");
        assert_eq!(cluster_of(&owner), Path::new(STATE_DIR));
        fs::write(&owner, "/srv/my cluster\n").expect("written");
        assert_eq!(cluster_of(&owner), Path::new("/srv/my cluster"));
    }
}
