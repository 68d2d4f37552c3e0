//! `causeway-cluster`: a whole Kubernetes cluster on one Linux machine.
//!
//! `up` makes a bridge that stands for the data centre's LAN and a "machine" (namespaces and a cgroup) per node, and
//! leaves a supervisor behind that keeps the control plane and each node's kubelet, agent and DNS running. `down`
//! removes all of it. The other commands are what these processes run.

mod cgroup;
mod down;
mod enter;
mod image;
mod kubeconfig;
mod layout;
mod logs;
mod machine;
mod node_files;
mod owner;
mod pki;
mod preflight;
mod progress;
mod serve;
mod settings;
mod silence;
mod status;
mod supervise;
mod underlay;
mod up;
mod vpc;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::layout::StateDir;

/// Where state is kept unless told otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/causeway";

#[derive(Parser)]
#[command(
    name = "causeway-cluster",
    version,
    about = "A Kubernetes cluster on one Linux machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cluster up
    #[command(
        after_help = "Examples:\n  causeway up\n  causeway up --nodes 5 --datapath nftables\n  \
        causeway up --etcd http://172.30.0.1:2379\n\nExit code: 0 the cluster is up, 2 it could not be brought up."
    )]
    Up(up::UpArgs),
    /// Remove the cluster and everything it made
    #[command(after_help = "Examples:\n  causeway down\n  causeway down --keep-state\n\n\
        Exit code: 0 nothing is left, 2 something could not be removed.")]
    Down(down::DownArgs),
    /// Show what runs
    #[command(after_help = "Examples:\n  causeway status\n  causeway status -o json\n\n\
        Exit code: 0 all is well, 1 something is not, 2 there is no cluster.")]
    Status(status::StatusArgs),
    /// The images of the nodes
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// The control plane: store, API server, controllers, scheduler
    #[command(hide = true)]
    ControlPlane(StateDirArg),
    /// The nodes' VPC: EC2, metadata services, router
    #[command(hide = true)]
    Vpc(StateDirArg),
    /// A node's kubelet
    #[command(hide = true)]
    Kubelet {
        /// Configuration, YAML
        #[arg(long)]
        config: PathBuf,
    },
    /// Keep the cluster's processes running
    #[command(hide = true)]
    Supervise(StateDirArg),
    /// Become a program inside a node
    #[command(hide = true)]
    Enter(enter::EnterArgs),
    /// Make a mount namespace for a node
    #[command(hide = true)]
    MachineInit,
}

/// The one flag that every command has.
#[derive(Clone, Debug, clap::Args)]
pub struct StateDirArg {
    /// Directory that holds everything of the cluster
    #[arg(long, env = "CAUSEWAY_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

impl StateDirArg {
    fn open(&self) -> anyhow::Result<StateDir> {
        let path = std::path::absolute(&self.state_dir)
            .with_context(|| format!("--state-dir {}", self.state_dir.display()))?;
        Ok(StateDir::new(path))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Up(args) => up::up(&args).map(done),
        Command::Down(args) => down::down(&args).map(done),
        Command::Status(args) => status::status(&args),
        Command::Image(command) => image::image(&command),
        Command::ControlPlane(state) => serve::control_plane(&state.open()?).map(done),
        Command::Vpc(state) => serve::vpc(&state.open()?).map(done),
        Command::Kubelet { config } => serve::kubelet(&config).map(done),
        Command::Supervise(state) => serve::supervisor(&state.open()?).map(done),
        Command::Enter(args) => enter::enter(&args).map(done),
        Command::MachineInit => machine::machine_init().map(done),
    }
}
