//! `causeway down`: nothing of the cluster stays.
//!
//! Teardown does everything, then reports everything that failed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::StateDirArg;
use crate::cgroup::Cgroup;
use crate::layout::StateDir;
use crate::owner::{self, Owner};
use crate::{machine, preflight, underlay};

/// How long processes may take to be gone after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// Flags of `down`.
#[derive(Clone, Debug, clap::Args)]
pub struct DownArgs {
    #[command(flatten)]
    state_dir: StateDirArg,
    /// Keep certificates, the store and the logs: the next up finds the same cluster
    #[arg(long)]
    keep_state: bool,
}

/// Removes the cluster of the state directory.
pub fn down(args: &DownArgs) -> anyhow::Result<()> {
    preflight::require_root()?;
    let _change = owner::begin_change()?;
    let state = args.state_dir.open()?;
    match owner::find()? {
        Owner::Running(dir) | Owner::Remains(dir) if dir != state.root() => bail!(
            "the cluster on this machine has its state in {}: causeway down --state-dir {}",
            dir.display(),
            dir.display()
        ),
        Owner::Nobody if !state.settings().exists() => {
            println!("Nothing to remove: no cluster in {}.", state.root().display());
            return Ok(());
        }
        _ => {}
    }
    remove_from_kernel(&state)?;
    if !args.keep_state {
        remove_state(&state)?;
    }
    println!(
        "The cluster is gone{}.",
        if args.keep_state {
            "; its state is kept"
        } else {
            ""
        }
    );
    Ok(())
}

/// Removes processes, cgroups, mounts, namespaces, links and rules, and forgets the owner once all are gone.
pub fn remove_from_kernel(state: &StateDir) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    let cgroup = Cgroup::find();
    attempt(
        "processes",
        cgroup.and_then(|cgroup| cgroup.destroy(KILL_DEADLINE)),
    );

    attempt("mounts", machine::unmount_below(state.root()));
    attempt("network", underlay::destroy(state));
    if !failures.is_empty() {
        return Err(anyhow!(failures.join("\n  "))).context("could not remove everything");
    }
    owner::forget()
}

/// Removes what `up` writes into the state directory, and the directory itself if nothing else is in it.
fn remove_state(state: &StateDir) -> anyhow::Result<()> {
    let nodes = state.node("");
    let directories = [
        state.pki(),
        state.store(),
        state.logs(),
        state.namespaces(),
        nodes.root().to_path_buf(),
    ];
    for dir in directories {
        ignore_absent(fs::remove_dir_all(&dir), &dir)?;
    }
    let files = [
        state.settings(),
        state.admin_kubeconfig(),
        state.processes(),
        state.vpc(),
        // Of a process that was killed while it wrote that.
        state.vpc().with_extension("new"),
    ];
    for file in files {
        ignore_absent(fs::remove_file(&file), &file)?;
    }
    match fs::remove_dir(state.root()) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error).with_context(|| format!("removing {}", state.root().display()))
        }
        _ => Ok(()),
    }
}

fn ignore_absent(result: std::io::Result<()>, path: &Path) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
