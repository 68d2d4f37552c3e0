//! The node's cgroups: its cgroup v2 subtree, and the v1 hierarchies that libcontainer uses for limits on machines
//! that mount both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{DiskError, OnPath};
use crate::process::ProcessIdentity;

/// Longest pause between tries to remove a cgroup that is busy still.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A cgroup v2 directory and its path below the v2 mount, which is the same below each v1 mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    directory: PathBuf,
    relative: PathBuf,
    v1_mounts: Vec<PathBuf>,
    guards_devices: bool,
}

/// What the processes of a cgroup, and of those below it, have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the cgroup was made.
    pub cpu: Duration,
    /// Memory in bytes, with the page cache.
    pub memory_bytes: u64,
    /// The same without the files that the kernel would let go of first (`inactive_file`), as cAdvisor counts it.
    pub working_set_bytes: u64,
}

impl Cgroup {
    /// A cgroup by its directory, for example `/sys/fs/cgroup/unified/causeway/node-1`.
    pub fn at(directory: &Path) -> Result<Self, DiskError> {
        let mounts = fs::read_to_string("/proc/self/mounts").on("read", Path::new("/proc/self/mounts"))?;
        Self::among(directory, &mounts)
            .ok_or_else(|| io::Error::other("no cgroup v2 is mounted there"))
            .on("use cgroup", directory)
    }

    fn among(directory: &Path, mounts: &str) -> Option<Self> {
        let of_type = |wanted: &'static str| {
            mounts.lines().filter_map(move |line| {
                let mut fields = line.split(' ').skip(1);
                let (path, kind) = (fields.next()?, fields.next()?);
                (kind == wanted).then(|| PathBuf::from(path))
            })
        };
        let relative = of_type("cgroup2")
            .filter_map(|mount| directory.strip_prefix(mount).ok().map(Path::to_owned))
            .min_by_key(|relative| relative.components().count())?;
        Some(Self {
            directory: directory.to_owned(),
            relative,
            v1_mounts: of_type("cgroup").collect(),
            guards_devices: mounts.lines().any(is_devices_hierarchy),
        })
    }

    /// A cgroup below this one.
    pub fn child(&self, name: impl AsRef<Path>) -> Self {
        Self {
            directory: self.directory.join(&name),
            relative: self.relative.join(&name),
            v1_mounts: self.v1_mounts.clone(),
            guards_devices: self.guards_devices,
        }
    }

    /// Whether it can keep processes from devices: the v1 hierarchy `devices` is mounted. In v2 that takes a program for
    /// each cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`), which libcontainer is built without.
    pub fn guards_devices(&self) -> bool {
        self.guards_devices
    }

    /// The v2 directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path for the OCI specification (`linux.cgroupsPath`): absolute from each hierarchy's root.
    pub fn oci_path(&self) -> PathBuf {
        Path::new("/").join(&self.relative)
    }

    /// Moves this process into the v2 cgroup, which is made when it is not there.
    pub fn enter(&self) -> Result<(), DiskError> {
        fs::create_dir_all(&self.directory).on("create cgroup", &self.directory)?;
        fs::write(self.directory.join("cgroup.procs"), "0").on("enter cgroup", &self.directory)
    }

    /// How often the kernel killed a process here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let v1 = self
            .v1_mounts
            .iter()
            .map(|mount| mount.join(&self.relative).join("memory.oom_control"));
        std::iter::once(self.directory.join("memory.events"))
            .chain(v1)
            .filter_map(|file| fs::read_to_string(file).ok())
            .filter_map(|text| entry(&text, "oom_kill"))
            .sum()
    }

    /// What it has used; `None` when it is gone. CPU time is counted in v2 whatever controllers are on; memory by
    /// whichever version has the controller.
    pub fn usage(&self) -> Option<Usage> {
        let read = |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).ok();
        let count = |text: Option<String>| text?.trim().parse::<u64>().ok();
        let cpu_us = entry(&read(&self.directory, "cpu.stat")?, "usage_usec")?;
        let v1 = self.v1_mounts.iter().map(|mount| mount.join(&self.relative));
        let in_v1 = |directory: PathBuf| {
            let total = count(read(&directory, "memory.usage_in_bytes"))?;
            Some((
                total,
                entry(&read(&directory, "memory.stat")?, "total_inactive_file")?,
            ))
        };
        let in_v2 = || {
            let total = count(read(&self.directory, "memory.current"))?;
            Some((
                total,
                entry(&read(&self.directory, "memory.stat")?, "inactive_file")?,
            ))
        };
        let (memory_bytes, inactive) = v1.filter_map(in_v1).next().or_else(in_v2).unwrap_or_default();
        Some(Usage {
            cpu: Duration::from_micros(cpu_us),
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(inactive),
        })
    }

    /// Memory that no file backs of the processes here and below, in bytes: what their v1 cgroups do not count, where
    /// these are not below the node's.
    pub fn anonymous_bytes(&self) -> u64 {
        let of = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            entry(&status, "RssAnon:").map(|kibibytes| kibibytes * 1024)
        };
        processes_below(&self.directory).into_iter().filter_map(of).sum()
    }

    /// Whether memory is counted by cgroup v1.
    pub fn counts_memory_in_v1(&self) -> bool {
        let mut mounts = self.v1_mounts.iter();
        mounts.any(|mount| mount.join("memory.usage_in_bytes").exists())
    }

    /// Kills every process below and waits until none is left.
    pub fn kill_all(&self, deadline: Duration) -> bool {
        // `cgroup.kill` (Linux 5.14) also reaches what forks meanwhile.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        processes_below(&self.directory)
            .into_iter()
            .filter_map(ProcessIdentity::of)
            .all(|process| process.kill_and_wait(deadline))
    }

    /// Removes the subtree in the v1 hierarchies alone.
    pub fn remove_v1(&self) -> Result<(), DiskError> {
        let mut outcome = Ok(());
        for directory in self.v1_mounts.iter().map(|mount| mount.join(&self.relative)) {
            let removed = remove_directories(&directory).on("remove cgroup", &directory);
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// Removes the directories above this one from the v1 hierarchies, where nothing else is in them.
    pub fn prune_v1(&self) {
        for mount in &self.v1_mounts {
            let above = self
                .relative
                .ancestors()
                .skip(1)
                .filter(|path| !path.as_os_str().is_empty());
            for path in above {
                // Refused by the kernel while another node is below it.
                let _ = fs::remove_dir(mount.join(path));
            }
        }
    }

    /// Removes the subtree in every hierarchy. What is in use stays, and is reported.
    pub fn remove(&self) -> Result<(), DiskError> {
        let v2 = remove_directories(&self.directory).on("remove cgroup", &self.directory);
        self.remove_v1().and(v2)
    }
}

/// The number behind a name in a list of names and numbers.
fn entry(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

/// Of a line of proc_pid_mounts(5).
fn is_devices_hierarchy(line: &str) -> bool {
    let mut fields = line.split(' ').skip(2);
    let (kind, options) = (fields.next(), fields.next().unwrap_or_default());
    kind == Some("cgroup") && options.split(',').any(|option| option == "devices")
}

fn processes_below(directory: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in child_directories(directory).unwrap_or_default() {
        pids.extend(processes_below(&child));
    }
    pids
}

/// cgroupfs refuses unlink(2), so that `remove_dir_all` fails: only the directories are removed, leaves first.
fn remove_directories(directory: &Path) -> io::Result<()> {
    let children = match child_directories(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        children => children?,
    };
    for child in children {
        remove_directories(&child)?;
    }
    let mut pause = Duration::from_millis(1);
    loop {
        match fs::remove_dir(directory) {
            // The kernel lets go of a cgroup a moment after its last process has ended.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && pause < LONGEST_PAUSE => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

fn child_directories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_guarded_where_their_v1_hierarchy_is_mounted() {
        let v2 = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        for (mounts, expected) in [
            ("cgroup /sys/fs/cgroup/d cgroup rw,relatime,devices 0 0\n", true),
            ("cgroup /sys/fs/cgroup/devices cgroup rw,cpu 0 0\n", false),
            ("cgroup2 /devices cgroup2 rw,devices 0 0\n", false),
            ("", false),
        ] {
            let cgroup = Cgroup::among(Path::new("/sys/fs/cgroup/unified/a"), &format!("{mounts}{v2}"));
            let seen = cgroup.map(|cgroup| [cgroup.guards_devices(), cgroup.child("b").guards_devices()]);
            assert_eq!(seen, Some([expected; 2]), "{mounts}");
        }
    }

    #[test]
    fn usage_is_read_of_the_version_that_counts_it() {
        let base = std::env::temp_dir().join(format!("cwt-usage-{}", std::process::id()));
        let (v1, v2) = (base.join("memory"), base.join("unified"));
        let write = |directory: &Path, files: &[(&str, &str)]| {
            fs::create_dir_all(directory).expect("a directory");
            for (name, text) in files {
                fs::write(directory.join(name), text).expect("written");
            }
        };
        let (in_v1, in_v2) = (v1.join("a"), v2.join("a"));
        let mounts = format!(
            "c {} cgroup rw,memory 0 0\nc {} cgroup2 rw 0 0\n",
            v1.display(),
            v2.display()
        );
        let cgroup = Cgroup::among(&in_v2, &mounts).expect("below a mount");
        assert_eq!(cgroup.usage(), None);
        write(&in_v2, &[("cpu.stat", "usage_usec 1500\nuser_usec 7\n")]);
        let expected = Usage {
            cpu: Duration::from_micros(1500),
            memory_bytes: 0,
            working_set_bytes: 0,
        };
        assert_eq!(cgroup.usage(), Some(expected));
        write(
            &in_v2,
            &[
                ("memory.current", "900\n"),
                ("memory.stat", "anon 1\ninactive_file 100\n"),
            ],
        );
        let expected = Usage {
            memory_bytes: 900,
            working_set_bytes: 800,
            ..expected
        };
        assert_eq!(cgroup.usage(), Some(expected));
        let stat = "inactive_file 1\ntotal_inactive_file 700\n";
        write(
            &in_v1,
            &[("memory.usage_in_bytes", "500\n"), ("memory.stat", stat)],
        );
        let expected = Usage {
            memory_bytes: 500,
            working_set_bytes: 0,
            ..expected
        };
        assert_eq!(cgroup.usage(), Some(expected));
        fs::remove_dir_all(&base).expect("removable");
    }

    #[test]
    fn the_relative_path_follows_from_the_v2_mount() {
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        for (directory, mounts, expected) in [
            (
                "/sys/fs/cgroup/unified/causeway/a",
                hybrid,
                Some(("/causeway/a", 1)),
            ),
            ("/sys/fs/cgroup/causeway/a", unified, Some(("/causeway/a", 0))),
            ("/sys/fs/cgroup/cpu/a", hybrid, None),
        ] {
            let cgroup = Cgroup::among(Path::new(directory), mounts);
            let seen = cgroup.map(|c| (c.oci_path(), c.v1_mounts.len()));
            assert_eq!(
                seen,
                expected.map(|(path, v1)| (PathBuf::from(path), v1)),
                "{directory}"
            );
        }
    }
}
