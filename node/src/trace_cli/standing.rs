//! Where a probe's socket stands: in the cgroup of the sender's own processes, so that programs at cgroups, the socket hook
//! above all, do with it what they do with the sender's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup2::{self, Visit};
use crate::logs::tell;

/// A process in the sender's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    cgroup: PathBuf,
}

/// Where sockets like the sender's own are made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Where this process stands already.
    Here,
    /// In another cgroup.
    In(PathBuf),
    /// Nobody knows: no process of the sender is in the cgroup that the hook is at.
    Unknown,
}

/// Makes a socket as processes of a network namespace (by its inode number) make theirs. `hooked` is the cgroup that
/// the socket hook is at. Where that cannot be, the socket is made from here, which is told.
pub(super) fn beside<T>(netns: u32, hooked: Option<&Path>, make: impl FnOnce() -> T) -> T {
    let Ok(mount_point) = cgroup2::mount_point(Path::new(cgroup2::MOUNTS)) else {
        return make();
    };
    let own = cgroup2::of_process(&mount_point, "self").map(|cgroup| Process {
        pid: std::process::id(),
        cgroup,
    });
    let is_there = trace::places::inode("/proc/self/ns/net".as_ref()) == Some(netns);
    let standing = standing(
        own.filter(|_| is_there).as_ref(),
        &processes(netns, &mount_point),
        hooked,
    );
    let visit = match &standing {
        Standing::Here => return make(),
        Standing::In(cgroup) => {
            Visit::to(&mount_point, cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))
        }
        Standing::Unknown => Err("no process of the sender stands there".to_owned()),
    };
    match visit {
        Ok(visit) => {
            let made = make();
            drop(visit);
            made
        }
        Err(why) => {
            if hooked.is_some() {
                tell(format_args!(
                    "the probe is not sent from the sender's cgroup, where the socket hook would see it: rules for packets \
                     translate it instead ({why})"
                ));
            }
            make()
        }
    }
}

/// Where, of the sender's processes, those stand whose sockets hooks see; the oldest of them is the most likely to be its
/// own: others enter later, to look around.
fn standing(own: Option<&Process>, processes: &[Process], hooked: Option<&Path>) -> Standing {
    let is_hooked = |process: &&Process| hooked.is_none_or(|hook| process.cgroup.starts_with(hook));
    if own.as_ref().is_some_and(is_hooked) {
        return Standing::Here;
    }
    let there = processes.iter().filter(is_hooked);
    let oldest = there.min_by_key(|process| process.pid);
    oldest.map_or(Standing::Unknown, |process| Standing::In(process.cgroup.clone()))
}

/// Those in a network namespace. What ends meanwhile is left out.
fn processes(netns: u32, mount_point: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let there =
        pids.filter(|pid| trace::places::inode(format!("/proc/{pid}/ns/net").as_ref()) == Some(netns));
    let process = |pid: u32| {
        let cgroup = cgroup2::of_process(mount_point, &pid.to_string())?;
        Some(Process { pid, cgroup })
    };
    there.filter_map(process).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_stands_with_the_oldest_process_that_the_hook_sees() {
        let process = |pid, cgroup: &str| Process {
            pid,
            cgroup: cgroup.into(),
        };
        let hooked = Some(Path::new("/c/node-1"));
        let pause = process(70, "/c/node-1/pods/a/pause");
        let server = process(90, "/c/node-1/pods/a/server");
        let shell = process(50, "/c/user");
        let there = [server, pause, shell.clone()];
        let inside = Standing::In("/c/node-1/pods/a/pause".into());
        assert_eq!(standing(None, &there, hooked), inside);
        assert_eq!(standing(Some(&shell), &there, hooked), inside);
        assert_eq!(
            standing(None, std::slice::from_ref(&shell), hooked),
            Standing::Unknown
        );
        assert_eq!(standing(None, &[], None), Standing::Unknown);
        // Without a hook any of them will do.
        assert_eq!(standing(None, &there, None), Standing::In("/c/user".into()));
        assert_eq!(standing(Some(&shell), &there, None), Standing::Here);
        let own = process(99, "/c/node-1/system/shell");
        assert_eq!(standing(Some(&own), &there, hooked), Standing::Here);
    }
}
