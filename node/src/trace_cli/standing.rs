//! Where a probe's socket stands: in the cgroup of the sender's own processes, so that programs at cgroups, the socket hook
//! above all, do with it what they do with the sender's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup2::{self, Hierarchy, Visit};
use crate::logs::tell;

/// A process in the sender's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    /// In ticks of the clock since the machine began: pids come round again.
    started: u64,
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
    let hierarchy = match Hierarchy::seen() {
        Ok(hierarchy) => hierarchy,
        Err(why) => {
            tell_bypassed(hooked, &format!("{why:#}"));
            return make();
        }
    };
    let mount_point = hierarchy.here(hierarchy.mount_point());
    let hooked = hooked.map(|hooked| hierarchy.here(hooked));
    let hooked = hooked.as_deref();
    let own = process(std::process::id(), &mount_point);
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
            tell_bypassed(hooked, &why);
            make()
        }
    }
}

/// Tells that a probe is sent without the hook, where there is one.
fn tell_bypassed(hooked: Option<&Path>, why: &str) {
    if hooked.is_some() {
        tell(format_args!(
            "the probe is not sent from the sender's cgroup, where the socket hook would see it: rules for packets \
             translate it instead ({why})"
        ));
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
    let oldest = there.min_by_key(|process| (process.started, process.pid));
    oldest.map_or(Standing::Unknown, |process| Standing::In(process.cgroup.clone()))
}

/// Those in a network namespace. What ends meanwhile is left out.
fn processes(netns: u32, mount_point: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let there =
        pids.filter(|pid| trace::places::inode(format!("/proc/{pid}/ns/net").as_ref()) == Some(netns));
    there.filter_map(|pid| process(pid, mount_point)).collect()
}

fn process(pid: u32, mount_point: &Path) -> Option<Process> {
    let cgroup = cgroup2::of_process(mount_point, &pid.to_string())?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started = started(&stat)?;
    Some(Process { started, pid, cgroup })
}

/// The field 22 of `proc_pid_stat(5)`; the second, the program's name, may have blanks and brackets of its own.
fn started(stat: &str) -> Option<u64> {
    let (_, from_third) = stat.rsplit_once(") ")?;
    from_third.split(' ').nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_stands_with_the_oldest_process_that_the_hook_sees() {
        let process = |started, pid, cgroup: &str| Process {
            started,
            pid,
            cgroup: cgroup.into(),
        };
        let hooked = Some(Path::new("/c/node-1"));
        let pause = process(7, 32_000, "/c/node-1/pods/a/pause");
        let server = process(9, 90, "/c/node-1/pods/a/server");
        let shell = process(5, 50, "/c/user");
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
        let own = process(10, 99, "/c/node-1/system/shell");
        assert_eq!(standing(Some(&own), &there, hooked), Standing::Here);
    }

    #[test]
    fn when_a_process_began_is_read_behind_any_name() {
        let stat = "70 (a) S (b) S 1 70 70 0 -1 4194560 8 9 10 11 12 13 14 15 20 0 1 0 4711 23 24\n";
        assert_eq!(started(stat), Some(4711));
        assert_eq!(started("70 (short) S 1"), None);
    }
}
