//! The agent of a node, as a process: its command line, what it serves, and what outlives it.

mod command_line;
mod node;
mod privileged_balancers;
mod privileged_parts;
mod privileged_pods;
mod privileged_traffic;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use tests::cluster::programs;

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-agent-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary directory is writable");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("temporary directory is writable");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn causeway() -> PathBuf {
    let path = programs().join("causeway");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p node",
        path.display()
    );
    path
}
