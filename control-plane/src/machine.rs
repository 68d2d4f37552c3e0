//! A node's "machine": a network namespace, a mount namespace and a cgroup, held by files and not by a process, so
//! that every process of a node can be killed alone.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const NONE: Option<&str> = None;

/// Mounts the directory that holds namespace files. A mount namespace can be kept only on a private mount
/// (unshare(1), `--mount=`).
pub fn mount_namespace_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    mount(
        Some("causeway"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0700,size=1m"),
    )
    .with_context(|| format!("mounting a tmpfs on {}", dir.display()))?;
    mount(NONE, dir, NONE, MsFlags::MS_PRIVATE, NONE)
        .with_context(|| format!("making {} private", dir.display()))
}

/// Unmounts everything at or below `dir`, innermost first. Nothing mounted there is no error.
pub fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    for path in mounts_below(&mounts, dir).into_iter().rev() {
        umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", path.display()))?;
    }
    Ok(())
}

/// Mount points at or below `dir`, outermost first.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    points.filter(|path| path.starts_with(dir)).collect()
}

/// The kernel writes space, tab, newline and backslash as octal escapes (`mangle_path`).
fn unescape(field: &str) -> PathBuf {
    let mut path = field.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escape, character);
    }
    PathBuf::from(path)
}

/// Makes a node's mount namespace and keeps it at `file`: `/run` and the BPF file system are the node's own.
///
/// A child makes it, since a thread of this process could not; this process keeps it by a bind mount, since the
/// child cannot from inside.
pub fn create_mount_namespace(file: &Path) -> anyhow::Result<()> {
    File::create(file)?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program)
        .arg("machine-init")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting machine-init")?;
    let mut ready = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut ready)?;
    }
    let result = if ready == "ready\n" {
        let source = PathBuf::from(format!("/proc/{}/ns/mnt", child.id()));
        mount(Some(&source), file, NONE, MsFlags::MS_BIND, NONE)
            .with_context(|| format!("keeping the mount namespace at {}", file.display()))
    } else {
        Ok(())
    };
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(status.success(), "machine-init failed: {status}");
    result
}

/// `causeway-cluster machine-init`: the child of [`create_mount_namespace`]. Says `ready`, then lives until its
/// standard input ends.
pub fn machine_init() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    // Mounts of the host go on to appear here; none from here appear there.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).context("making / a slave mount")?;
    mount(
        Some("causeway"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )
    .context("mounting /run")?;
    mount(NONE, "/run", NONE, MsFlags::MS_SHARED, NONE).context("making /run shared")?;
    for dir in ["/run/netns", "/run/causeway", "/run/flannel", "/run/lock"] {
        fs::create_dir_all(dir).with_context(|| format!("creating {dir}"))?;
    }
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .context("mounting the BPF file system on /sys/fs/bpf")?;
    println!("ready");
    let mut rest = String::new();
    std::io::stdin().read_line(&mut rest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_directory_are_found_with_escapes_and_without_its_neighbours() {
        let mountinfo = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 0:30 / /var/lib/cause\\040way rw - tmpfs a rw
41 40 0:31 / /var/lib/cause\\040way/ns rw - tmpfs b rw
42 22 0:32 / /var/lib/cause\\040way-other rw - tmpfs c rw
";
        let dir = Path::new("/var/lib/cause way");
        assert_eq!(mounts_below(mountinfo, dir), [dir.to_path_buf(), dir.join("ns")]);
    }
}
