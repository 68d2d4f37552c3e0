//! The cgroup v2 hierarchy: where it is mounted, where processes stand in it, and how to stand elsewhere for a moment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What this process sees mounted.
pub const MOUNTS: &str = "/proc/self/mounts";

/// Where the hierarchy is mounted, by a table of mounts: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn mount_point(mounts: &Path) -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string(mounts).with_context(|| format!("read {}", mounts.display()))?;
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find_map(|fields| match fields.as_slice() {
        [_, directory, "cgroup2", ..] => Some(PathBuf::from(*directory)),
        _ => None,
    });
    found.context("no cgroup v2 hierarchy is mounted")
}

/// The hierarchy as this process gets to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// What stands before its paths: the root of a process that has it mounted; empty for this one.
    root: PathBuf,
    mount_point: PathBuf,
}

impl Hierarchy {
    /// As it is mounted for this process, else for one that it was started by: `ip netns exec` mounts a `/sys` of its own,
    /// without it.
    ///
    /// # Errors
    /// When none has it, or shows its files.
    pub fn seen() -> anyhow::Result<Self> {
        let own = (String::new(), MOUNTS.to_owned());
        let before = std::iter::successors(parent("self"), |process| parent(&process.to_string()));
        let before =
            before.map(|process| (format!("/proc/{process}/root"), format!("/proc/{process}/mounts")));
        Self::among([own].into_iter().chain(before))
    }

    /// By the first of these tables of mounts, each of a process with that root, that has one which can be entered.
    fn among(tables: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut why = None;
        for (root, mounts) in tables {
            match mount_point(Path::new(&mounts)) {
                Ok(mount_point) => {
                    let seen = Self {
                        root: PathBuf::from(&root),
                        mount_point,
                    };
                    if seen.here(&seen.mount_point).join("cgroup.procs").exists() {
                        return Ok(seen);
                    }
                }
                Err(error) => why = why.or(Some(error)),
            }
        }
        Err(why.unwrap_or_else(|| anyhow::anyhow!("no cgroup v2 hierarchy can be seen")))
    }

    /// Where it is, by the name that it has where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// A path by its name there, as this process gets to it.
    #[must_use]
    pub fn here(&self, path: &Path) -> PathBuf {
        match self.root.as_os_str().is_empty() {
            true => path.to_owned(),
            false => self.root.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }
}

/// Who has started a process, where that is one which can be seen.
fn parent(process: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|parent| *parent > 0)
}

/// The directory of a process's cgroup (`self`: this one's); `None` where it cannot be seen, or is gone.
#[must_use]
pub fn of_process(mount_point: &Path, process: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    // cgroups(7): the hierarchy of version 2 has number 0 and no names.
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let directory = mount_point.join(path);
    // Outside of the own cgroup namespace paths begin with `..`.
    (!path.starts_with("..") && directory.is_dir()).then_some(directory)
}

/// This process stands in another cgroup for as long as this lives: sockets that are made meanwhile belong to that one for
/// good (`cgroup_sk_alloc`, kernel/cgroup/cgroup.c), whoever uses them later.
#[derive(Debug)]
pub struct Visit {
    home: PathBuf,
}

impl Visit {
    /// Goes there.
    ///
    /// # Errors
    /// When the own cgroup is not known, the other one is frozen, or the kernel refuses it.
    pub fn to(mount_point: &Path, cgroup: &Path) -> io::Result<Self> {
        let home = of_process(mount_point, "self");
        // In a cgroup namespace of one's own, with the host's hierarchy mounted, paths mean other cgroups.
        let home = home.filter(|home| lists(home, std::process::id()));
        let home =
            home.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the own cgroup is not known"))?;
        if is_frozen(mount_point, cgroup) {
            return Err(io::Error::other("it is frozen, and so would be who enters it"));
        }
        join(cgroup)?;
        Ok(Self { home })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(error) = join(&self.home) {
            // It ends soon, and is then nowhere.
            tracing::warn!(error = %error, cgroup = %self.home.display(), "this process cannot go back to its cgroup");
        }
    }
}

fn lists(cgroup: &Path, pid: u32) -> bool {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.lines().any(|line| line.parse() == Ok(pid))
}

/// Whether it, or one that it is in, is frozen or about to be (cgroup-v2.rst, `cgroup.freeze`).
fn is_frozen(mount_point: &Path, cgroup: &Path) -> bool {
    let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
    let events = read(cgroup.join("cgroup.events"));
    let mut around = cgroup
        .ancestors()
        .take_while(|around| around.starts_with(mount_point));
    events.lines().any(|line| line == "frozen 1")
        || around.any(|around| read(around.join("cgroup.freeze")).trim() == "1")
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_own_mounts_lack_the_hierarchy_it_is_seen_by_anothers_root() {
        let root = std::env::temp_dir().join(format!("cwt-hierarchy-{}", std::process::id()));
        let there = root.join("root/sys/fs/cgroup/unified");
        fs::create_dir_all(&there).expect("made");
        fs::write(there.join("cgroup.procs"), "").expect("written");
        let table = |name: &str, text: &str| {
            let path = root.join(name);
            fs::write(&path, text).expect("written");
            path.to_str().expect("text").to_owned()
        };
        // As `ip netns exec` leaves it.
        let own = table("own", "sysfs /sys sysfs rw 0 0\n");
        let first = table("first", "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        let of_first = root.join("root").to_str().expect("text").to_owned();
        let seen = Hierarchy::among([(String::new(), own.clone()), (of_first, first)]);
        let without = Hierarchy::among([(String::new(), own)]);
        let (found, hook) = match &seen {
            Ok(seen) => (
                seen.mount_point().to_owned(),
                seen.here(Path::new("/sys/fs/cgroup/unified/node")),
            ),
            Err(error) => panic!("{error}"),
        };
        fs::remove_dir_all(&root).expect("there");
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(hook, there.join("node"));
        assert_eq!(
            without.map(|_| ()).expect_err("none").to_string(),
            "no cgroup v2 hierarchy is mounted"
        );
    }

    #[test]
    fn nobody_enters_a_cgroup_that_is_frozen_or_will_be() {
        let root = std::env::temp_dir().join(format!("cwt-cgroup2-{}", std::process::id()));
        let (around, cgroup) = (root.join("pods"), root.join("pods/a"));
        fs::create_dir_all(&cgroup).expect("made");
        let write = |file: PathBuf, text: &str| fs::write(file, text).expect("written");
        let rows = [
            ("populated 1\nfrozen 0\n", "0\n", "0\n", false),
            ("populated 1\nfrozen 1\n", "0\n", "0\n", true),
            ("populated 1\nfrozen 0\n", "1\n", "0\n", true),
            ("populated 1\nfrozen 0\n", "0\n", "1\n", true),
        ];
        let found = rows.map(|(events, own, of_pods, _)| {
            write(cgroup.join("cgroup.events"), events);
            write(cgroup.join("cgroup.freeze"), own);
            write(around.join("cgroup.freeze"), of_pods);
            is_frozen(&root, &cgroup)
        });
        write(root.join("cgroup.procs"), "1\n70\n");
        let listed = [1, 7, 70].map(|pid| lists(&root, pid));
        let absent = lists(&cgroup, 1);
        fs::remove_dir_all(&root).expect("there");
        assert_eq!(found, rows.map(|(.., expected)| expected));
        assert_eq!((listed, absent), ([true, false, true], false));
    }
}
