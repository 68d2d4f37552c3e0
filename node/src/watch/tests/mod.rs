//! Conversions as rows, and the watch's behaviour against a fake API server.

mod behaviour;
mod bench;
mod conversions;
mod credentials;
mod histories;
mod older_servers;

use std::path::{Path, PathBuf};

/// Every Rust file below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the package's own sources");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn the_apis_own_types_do_not_leave_the_watch() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (watch, others): (Vec<_>, Vec<_>) = sources(&package)
        .into_iter()
        .partition(|path| path.starts_with(package.join("watch")));
    let speaks = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        text.contains("k8s_openapi")
    };
    assert!(watch.iter().any(speaks), "the test looks at what it should");
    let leaks: Vec<_> = others.into_iter().filter(speaks).collect();
    assert_eq!(leaks, Vec::<PathBuf>::new());
}
