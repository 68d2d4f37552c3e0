//! Options of `causeway bundle`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::diagnose::EndsArgs;
use super::{AgentArgs, Output};
use crate::trace_cli;

/// Options of `causeway bundle`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BundleArgs {
    /// What else than to make one.
    #[command(subcommand)]
    pub command: Option<BundleCommand>,
    /// Which agent is asked.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// The file, or - for standard output [default: causeway-NODE-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// How far back the log goes, for example 10m; by default its last 256 KiB
    #[arg(long, value_name = "TIME", value_parser = trace_cli::duration)]
    pub since: Option<Duration>,
}

/// Commands below `causeway bundle`.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Ask a bundle what somebody would ask the node
    #[command(after_help = "Examples:
  causeway bundle replay node-1.tar.gz doctor
  causeway bundle replay node-1.tar.gz explain pod/client svc/web:80
  causeway bundle replay node-1.tar.gz names | grep 10.244.2.3
  ssh node-1 causeway bundle -o - | causeway bundle replay - doctor
Answers, their forms and exit codes are those of the live commands. It needs no right and no cluster; what the bundle
does not tell is UNKNOWN.")]
    Replay(ReplayArgs),
}

/// Options of `causeway bundle replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The bundle, or - for standard input
    #[arg(value_name = "BUNDLE")]
    pub file: PathBuf,
    /// What it is asked.
    #[command(subcommand)]
    pub question: ReplayQuestion,
}

/// What a bundle is asked.
#[derive(Debug, Subcommand)]
pub enum ReplayQuestion {
    /// What becomes of a packet, as causeway explain tells it
    #[command(after_help = "Examples:
  causeway bundle replay node-1.tar.gz explain pod/client svc/web:80
  causeway bundle replay node-1.tar.gz explain pod/client 10.244.2.3:53/udp -o json")]
    Explain(ReplayExplainArgs),
    /// What was wrong on the node, as causeway doctor tells it
    #[command(after_help = "Examples:
  causeway bundle replay node-1.tar.gz doctor -o json | jq '.findings[].id'")]
    Doctor(ReplayOutputArgs),
    /// How the agent's parts and watches did
    #[command(after_help = "Examples:
  causeway bundle replay node-1.tar.gz status")]
    Status(ReplayOutputArgs),
    /// What addresses were called, and had been called in the last quarter of an hour
    #[command(after_help = "Examples:
  causeway bundle replay node-1.tar.gz names | grep 10.244.2.3")]
    Names(ReplayOutputArgs),
    /// Anything else.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Both ends.
#[derive(Debug, Args)]
pub struct ReplayExplainArgs {
    /// Who sends, and to whom.
    #[command(flatten)]
    pub ends: EndsArgs,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// How the answer looks.
#[derive(Debug, Args)]
pub struct ReplayOutputArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}
