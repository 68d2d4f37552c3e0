//! Options of `causeway on`, and how a cluster is reached.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::trace_cli;
use crate::watch::Credentials;
use crate::watch::kubeconfig;

/// How a cluster is reached.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// How the cluster is reached; by default as kubectl does (KUBECONFIG, of whose files the first to say something is
    /// right, or ~/.kube/config), else as `causeway up` left it, else as a pod does
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, in place of its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ServerArgs {
    /// By which the cluster is asked.
    ///
    /// # Errors
    /// When there are none.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(kubeconfig::usual(
            self.kubeconfig.as_deref(),
            self.context.as_deref(),
        )?)
    }
}

/// Options of `causeway on`.
#[derive(Debug, Args)]
pub struct OnArgs {
    /// The nodes; by default that of the first pod or node that the command names, for capture those of all,
    /// for trace those of both ends and of a Service's endpoints
    #[arg(value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// All nodes of the cluster
    #[arg(long, conflicts_with = "nodes")]
    pub all: bool,
    /// The node of this one: pod/NAME, pod/NAMESPACE/NAME or node/NAME
    #[arg(long, value_name = "END", conflicts_with_all = ["nodes", "all"])]
    pub of: Option<String>,
    /// How the cluster is reached.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The namespace of the agents
    #[arg(short, long, value_name = "NAME", default_value = "causeway")]
    pub namespace: String,
    /// How long a node may take to begin, and beyond the command's own time to end
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = trace_cli::duration)]
    pub timeout: Duration,
    /// Put the node's name before each line of text, as is done where several go on
    #[arg(long)]
    pub prefix: bool,
    /// What is run there: doctor, explain, trace, drops, flows, capture, `node config print` or check, version
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}
