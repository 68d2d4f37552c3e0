//! Where socket hooks of this machine keep what they write into sockets.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::ask;
use crate::config;
use crate::config::here::of_this_machine;

/// The maps of the agents with these configurations, as this process sees them, and as those agents do, which may have
/// mounts of their own: each once. Nobody else's mounts are looked into: they are what their owners made of them.
pub(super) fn sockets(configs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut pin_dirs = Vec::new();
    let mut roots = vec![PathBuf::from("/")];
    for path in of_this_machine(configs) {
        let config = config::load(&path, None)?;
        let process = ask::process_of(&config.state_dir);
        roots.extend(process.map(|process| PathBuf::from(format!("/proc/{process}/root"))));
        pin_dirs.push(config.proxy.pin_dir);
    }
    Ok(under(&roots, &pin_dirs))
}

fn under(roots: &[PathBuf], pin_dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    for root in roots {
        for pin_dir in pin_dirs {
            let pin_dir = root.join(pin_dir.strip_prefix("/").unwrap_or(pin_dir));
            let sockets = ebpf::connected::pinned(&pin_dir);
            if let Ok(file) = fs::metadata(&sockets) {
                found.entry((file.dev(), file.ino())).or_insert(sockets);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_is_found_once_whoever_shows_it() {
        let directory = std::env::temp_dir().join(format!("cwt-{}-hooks", std::process::id()));
        let pins = directory.join("one/pins");
        let sockets = ebpf::connected::pinned(&pins);
        fs::create_dir_all(sockets.parent().expect("a directory")).expect("made");
        fs::write(&sockets, "").expect("written");
        let roots = [
            directory.join("one"),
            directory.join("one/../one"),
            directory.join("two"),
        ];
        let found = under(&roots, &["/pins".into(), "/none".into()]);
        fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(found, [sockets]);
    }
}
