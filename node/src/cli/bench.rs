//! Options of `causeway bench`.

use std::path::PathBuf;

use bench::load::Operation;
use clap::{Args, Subcommand};

/// Options of `causeway bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What else than to measure.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// What to measure: tcp-rr, tcp-crr, udp-rr [default: all of them]
    #[arg(value_name = "EXPERIMENT")]
    pub experiments: Vec<Operation>,
    /// How often each arm is measured, forwards and backwards
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub rounds: u32,
    /// The directory for results.json and report.html [default: causeway-bench-TIME]
    #[arg(long, value_name = "DIRECTORY")]
    pub out: Option<PathBuf>,
}

/// Commands below `causeway bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Tell what changed between two runs, beyond noise
    #[command(after_help = "Examples:
  causeway bench compare before/results.json after/results.json
  causeway bench compare before/results.json after/results.json | grep 'TAKES MORE'
Exit codes: 0 = nothing takes more, 1 = something does, 2 = could not tell.
What is compared are the ratios to each run's own first arm: a machine that was slower as a whole changed nothing.")]
    Compare(CompareArgs),
    /// Write the page of a run's results
    #[command(after_help = "Examples:
  causeway bench report before/results.json        # writes report.html into this directory
  causeway bench report before/results.json -o before.html")]
    Report(ReportArgs),
    /// A client or a server of a run
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// Options of `causeway bench compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// results.json of the run before
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    /// results.json of the run after
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
}

/// Options of `causeway bench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// results.json of the run
    #[arg(value_name = "RESULTS")]
    pub results: PathBuf,
    /// The file of the page
    #[arg(short, long, value_name = "FILE", default_value = bench::session::REPORT)]
    pub output: PathBuf,
}

/// What a worker is told.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// As `bench::load` reads it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}
