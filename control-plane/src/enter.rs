//! `causeway-cluster enter`: put this process into a node (its cgroup, network and mount namespace), then become
//! the given program.
//!
//! A program of its own, single-threaded until the end, because a process with threads cannot change its mount
//! namespace (setns(2)).

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

/// The places to enter, then the program.
#[derive(Clone, Debug, clap::Args)]
pub struct EnterArgs {
    /// Network namespace, by file.
    #[arg(long)]
    pub net: Option<PathBuf>,
    /// Mount namespace, by file.
    #[arg(long)]
    pub mnt: Option<PathBuf>,
    /// cgroup v2 directory.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// The program, by absolute path, and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Enters, then executes. Returns only when something failed.
pub fn enter(args: &EnterArgs) -> anyhow::Result<()> {
    // The cgroup first: its path may not exist in the mount namespace.
    if let Some(cgroup) = &args.cgroup {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("joining {}", procs.display()))?;
    }
    let net = args.net.as_ref().map(open).transpose()?;
    let mnt = args.mnt.as_ref().map(open).transpose()?;
    if let Some(net) = net {
        setns(net, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    }
    if let Some(mnt) = mnt {
        setns(mnt, CloneFlags::CLONE_NEWNS).context("entering the mount namespace")?;
    }
    let [program, arguments @ ..] = args.command.as_slice() else {
        anyhow::bail!("no program given")
    };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("executing {program}"))
}

fn open(path: &PathBuf) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}
