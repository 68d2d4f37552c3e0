//! `causeway`: the node agent, the DNS server, and the way to the cluster's own commands.
//!
//! - [`cli`]: commands, options, help texts.
//! - [`cluster`]: hands `up`, `down`, `status` and `image` to `causeway-cluster`.
//! - [`cluster_dns`]: the DNS server.
//! - [`config`]: the agent's configuration file.
//! - [`watch`]: the Kubernetes API as a [`model::Snapshot`].
//! - [`agent`]: the composition root of `causeway node`.
//! - [`cleanup`]: what `causeway node cleanup` tells.
//! - [`migrate`]: other programs' configurations as ours.
//! - [`install_cni`]: brings the CNI plugin onto a node.
//! - [`doctor`]: what is wrong on a node, as its agent sees it.
//! - [`findings`]: what agent and doctor say to each other.
//! - [`trace_cli`]: follows a packet through this machine.
//! - [`drops_cli`]: counts what this machine drops.
//! - [`flows_cli`]: who sends to whom.
//! - [`explain`]: what becomes of a packet that nobody sends.
//! - [`explain_cli`]: asks an agent for that, and the kernel where none answers.
//! - [`bundle`]: all that they go by as one file, and what they say by the file alone.
//! - [`connectivity`]: who reaches whom in a cluster.
//! - [`on`]: these commands on other nodes.
//! - [`capture`]: packets as a file, of every device that they pass.
//! - [`ends`]: who sends and to whom, as both of them read it.
//! - [`names`]: what ends name and addresses are called, as an agent tells it.
//! - [`ask`]: asks the agent over its socket.
//! - [`logs`]: what the log looks like.
//! - [`telemetry`]: traces of the control plane.
//! - [`metrics`]: Prometheus' text form.
//! - [`backoff`]: how long to wait before trying again.
//! - [`allocator`]: how little memory an agent keeps.

mod agent;
mod allocator;
mod ask;
mod backoff;
mod bench_cli;
mod bundle;
mod capture;
mod cgroup2;
mod cleanup;
mod cli;
mod cluster;
mod cluster_dns;
mod config;
mod connectivity;
mod doctor;
mod drops_cli;
mod ends;
mod explain;
mod explain_cli;
mod findings;
mod flows_cli;
mod install_cni;
mod logs;
mod metrics;
mod migrate;
mod names;
mod on;
mod rights;
mod telemetry;
mod trace_cli;
mod watch;

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use model::with_causes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use agent::cleanup::{Beside, CleanupError, clean, clean_kube_proxy, clean_once_alone};
use agent::config_file::{ConfigFile, Loaded};
use ask::AskError;
use cli::{
    BenchArgs, BenchCommand, BundleArgs, BundleCommand, CaptureArgs, CleanupArgs, Cli, Command, CompareArgs,
    ConfigArgs, ConfigCommand, ConnectivityArgs, DnsArgs, DnsCheckArgs, DnsCommand, DnsQueryArgs, DoctorArgs,
    DropsArgs, ExplainArgs, FlowsArgs, InstallCniArgs, MigrateCheckArgs, MigrateCommand, NodeArgs,
    NodeCommand, OnArgs, Output, ReplayArgs, ReplayQuestion, TraceArgs, VersionArgs,
};
use config::Logging;
use config::which::WhichAgent;
use explain::{Conclusion, Explanation};

/// Found something wrong.
const WRONG: u8 = 1;
/// Could not run.
const COULD_NOT_RUN: u8 = 2;

/// How long the last lines of a log are waited for at the end.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.while_input_is_open {
        std::thread::spawn(interrupt_at_end_of_input);
    }
    let code = run(cli.command);
    if IS_UNPRINTED.load(Ordering::Relaxed) {
        return ExitCode::from(COULD_NOT_RUN);
    }
    code
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Up(handed) => could_not_run(cluster::hand_over("up", &handed.arguments)),
        Command::Down(handed) => could_not_run(cluster::hand_over("down", &handed.arguments)),
        Command::Status(handed) => could_not_run(cluster::hand_over("status", &handed.arguments)),
        Command::Image(handed) => could_not_run(cluster::hand_over("image", &handed.arguments)),
        Command::Node(node) => match node.command {
            None => run_agent(&node),
            Some(NodeCommand::Config(ConfigCommand::Print(args))) => print_config(&args),
            Some(NodeCommand::Config(ConfigCommand::Check(args))) => check_config(&args),
            Some(NodeCommand::InstallCni(args)) => install_cni(&args),
            Some(NodeCommand::Cleanup(args)) => clean_up(&args),
            Some(NodeCommand::Idle) => exit_code(until_told(async |shutdown| {
                shutdown.cancelled().await;
                Ok(())
            })),
        },
        Command::Dns(dns) => match dns.command {
            None => run_dns(&dns),
            Some(DnsCommand::Check(args)) => check_corefile(&args),
            Some(DnsCommand::Query(args)) => query_dns(&args),
        },
        Command::Doctor(args) => examine(&args),
        Command::Trace(args) => follow_packet(&args),
        Command::Drops(args) => count_drops(&args),
        Command::Flows(args) => count_flows(&args),
        Command::Explain(args) => explain_packet(&args),
        Command::Capture(args) => capture_packets(&args),
        Command::Connectivity(args) => try_connectivity(&args),
        Command::Bundle(args) => match &args.command {
            None => write_bundle(&args),
            Some(BundleCommand::Replay(args)) => replay(args),
        },
        Command::Bench(args) => match &args.command {
            None => measure(&args),
            Some(BenchCommand::Compare(args)) => compare_results(args),
            Some(BenchCommand::Report(args)) => exit_code(bench_cli::report(args)),
            Some(BenchCommand::Worker(args)) => exit_code(bench::load::work(&args.arguments)),
        },
        Command::On(args) => run_on_nodes(&args),
        Command::Migrate(MigrateCommand::Check(args)) => check_migration(&args),
        Command::Version(args) => {
            print_version(&args);
            ExitCode::SUCCESS
        }
    }
}

fn run_agent(args: &NodeArgs) -> ExitCode {
    if let Err(error) = rights::need_root("the agent programs the kernel's network") {
        return could_not_run(error);
    }
    let file = ConfigFile {
        path: args.config.config.clone(),
        node_name: args.config.node_name.clone(),
    };
    let (config, fingerprint) = match file.load() {
        Ok(loaded) => loaded,
        Err(error) => return could_not_run(error),
    };
    allocator::prefer_small();
    let logging = Logging {
        format: args.log_format.unwrap_or(config.logging.format),
        ..config.logging
    };
    let traced = config.telemetry.endpoint.is_some();
    let (recorder, traces) = traced.then(telemetry::channel).unzip();
    let log_level = logs::start_with_traces(logging, recorder);
    logs::take_panics();
    let loaded = Loaded {
        config,
        fingerprint,
        file,
        log_level,
        traces,
    };
    exit_code(until_told(|shutdown| agent::run(loaded, shutdown)))
}

fn run_dns(args: &DnsArgs) -> ExitCode {
    allocator::prefer_small();
    let log = match dns::log_queue::to_stderr() {
        Ok(log) => log,
        Err(error) => return could_not_run(format_args!("start the thread that writes the log: {error}")),
    };
    // A lenient reader warns.
    let logging = Logging {
        format: args.log_format,
        ..Logging::default()
    };
    logs::start_to(logging, Arc::clone(&log));
    // Who panics does not wait for standard error, either.
    logs::take_panics();
    let code = serve_dns(args);
    log.drain(LAST_LINES);
    code
}

fn serve_dns(args: &DnsArgs) -> ExitCode {
    let parsed = if args.lenient {
        dns::Config::parse_leniently(&args.conf)
    } else {
        dns::Config::parse(&args.conf)
    };
    let config = match parsed {
        Ok(config) => config,
        Err(error) => return could_not_run(error),
    };
    exit_code(until_told(|shutdown| cluster_dns::serve(config, shutdown)))
}

fn check_corefile(args: &DnsCheckArgs) -> ExitCode {
    if args.lenient {
        logs::start(Logging::default());
    }
    match cluster_dns::check(&args.corefile, args.lenient) {
        Ok(checked) => {
            show(&checked.render(args.output));
            ExitCode::from(if checked.is_wrong() { WRONG } else { 0 })
        }
        Err(error) => could_not_run(format_args!("read {}: {error}", args.corefile.display())),
    }
}

fn query_dns(args: &DnsQueryArgs) -> ExitCode {
    match block_on(cluster_dns::query(args)) {
        Ok(Ok(answered)) => {
            show(&answered.render(args.output));
            ExitCode::from(if answered.is_empty() { WRONG } else { 0 })
        }
        Ok(Err(error)) | Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn examine(args: &DoctorArgs) -> ExitCode {
    let config = match args.agent.load() {
        Ok(config) => config,
        Err(error) => return could_not_run_here(&error),
    };
    match block_on(doctor::ask(&config.state_dir, args.fix)) {
        Ok(Ok(report)) => {
            show(&doctor::render(&report, args.output));
            ExitCode::from(if doctor::is_wrong(&report) { WRONG } else { 0 })
        }
        Ok(Err(error)) => could_not_run_here(&error.into()),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn follow_packet(args: &TraceArgs) -> ExitCode {
    if let Err(error) = rights::need_root("packets are followed by programs in the kernel") {
        return elsewhere(&error.into());
    }
    match trace_cli::follow(args, show) {
        Ok(followed) => {
            show(&followed.render(args.output));
            found(followed.finding())
        }
        Err(error) if !is_node(&args.config) => elsewhere(&error),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn count_drops(args: &DropsArgs) -> ExitCode {
    if let Err(error) = rights::need_root("drops are counted by a program in the kernel") {
        return elsewhere(&error.into());
    }
    match until_told(|shutdown| drops_cli::watch(args, shutdown, show)) {
        Ok(finding) => found(finding),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn count_flows(args: &FlowsArgs) -> ExitCode {
    if let Err(error) = rights::need_root("flows are counted by programs in the kernel") {
        return elsewhere(&error.into());
    }
    match until_told(|shutdown| flows_cli::watch(args, shutdown, show)) {
        Ok(finding) => found(finding),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn found(finding: trace_cli::Finding) -> ExitCode {
    ExitCode::from(match finding {
        trace_cli::Finding::Good => 0,
        trace_cli::Finding::Wrong => WRONG,
        trace_cli::Finding::Nothing => COULD_NOT_RUN,
    })
}

fn explain_packet(args: &ExplainArgs) -> ExitCode {
    show_explained(explain_cli::explain(args), args.output)
}

fn show_explained(explained: anyhow::Result<Explanation>, output: Output) -> ExitCode {
    match explained {
        Ok(explained) => {
            show(&explain::render::render(&explained, output));
            ExitCode::from(match explained.conclusion {
                Conclusion::Works => 0,
                Conclusion::Fails => WRONG,
                Conclusion::CouldNotTell => COULD_NOT_RUN,
            })
        }
        Err(error) => could_not_run_here(&error),
    }
}

/// Shows an answer, where there is one, and whether it tells of something wrong.
fn show_answer<T>(
    answer: anyhow::Result<T>,
    render: impl FnOnce(&T) -> String,
    is_wrong: impl FnOnce(&T) -> bool,
) -> ExitCode {
    match answer {
        Ok(answer) => {
            show(&render(&answer));
            ExitCode::from(if is_wrong(&answer) { WRONG } else { 0 })
        }
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn write_bundle(args: &BundleArgs) -> ExitCode {
    match bundle::collect::run(args) {
        Ok(is_whole) => ExitCode::from(if is_whole { 0 } else { WRONG }),
        Err(error) => could_not_run_here(&error),
    }
}

fn replay(args: &ReplayArgs) -> ExitCode {
    if let ReplayQuestion::Other(words) = &args.question {
        let what = words
            .first()
            .map_or_else(String::new, |word| word.to_string_lossy().into_owned());
        return could_not_run(format_args!(
            "{what} cannot be asked of a bundle: explain, doctor, status and names can, all else needs the node"
        ));
    }
    let bundle = match bundle::archive::read(&args.file) {
        Ok(bundle) => bundle,
        Err(error) => return could_not_run(error),
    };
    logs::tell(bundle.title());
    match &args.question {
        ReplayQuestion::Explain(asked) => {
            let question = asked.ends.question().map_err(Into::into);
            show_explained(
                question.and_then(|question| bundle.explain(&question)),
                asked.output,
            )
        }
        ReplayQuestion::Doctor(asked) => show_answer(
            bundle.doctor(),
            |report| doctor::render(report, asked.output),
            doctor::is_wrong,
        ),
        ReplayQuestion::Status(asked) => show_answer(
            bundle.status(),
            |status| status.render(asked.output),
            bundle::replay::Status::is_wrong,
        ),
        ReplayQuestion::Names(asked) => {
            show_answer(bundle.names(), |names| names.render(asked.output), |_| false)
        }
        ReplayQuestion::Other(_) => ExitCode::from(COULD_NOT_RUN),
    }
}

fn capture_packets(args: &CaptureArgs) -> ExitCode {
    if let Err(error) = rights::need_root("packets are read at the kernel's devices") {
        return elsewhere(&error.into());
    }
    // Sockets are read without async; signals are not.
    let captured = until_told(async |shutdown| tokio::task::block_in_place(|| capture::run(args, &shutdown)));
    match captured {
        Ok(captured) => {
            // Standard output may be the file.
            logs::tell(captured.text());
            ExitCode::from(if captured.is_incomplete() { WRONG } else { 0 })
        }
        Err(error) if !is_node(&args.config) => elsewhere(&error),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn try_connectivity(args: &ConnectivityArgs) -> ExitCode {
    match until_told(async |shutdown| connectivity::run(args, &shutdown).await) {
        Ok(report) => {
            show(&report.render(args.output));
            ExitCode::from(if report.is_wrong() { WRONG } else { 0 })
        }
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn measure(args: &BenchArgs) -> ExitCode {
    if let Err(error) = rights::need_root("what is measured is in network namespaces of its own") {
        return could_not_run(error);
    }
    // Workers are asked without async; signals are not.
    match until_told(async |shutdown| tokio::task::block_in_place(|| bench_cli::run(args, &shutdown))) {
        Ok(measured) => {
            show(&measured.text);
            ExitCode::from(if measured.is_whole { 0 } else { WRONG })
        }
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn compare_results(args: &CompareArgs) -> ExitCode {
    match bench_cli::compared(args) {
        Ok((text, takes_more)) => {
            show(&text);
            ExitCode::from(if takes_more { WRONG } else { 0 })
        }
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn run_on_nodes(args: &OnArgs) -> ExitCode {
    match until_told(async |shutdown| on::run(args, &shutdown, put).await) {
        Ok(code) => ExitCode::from(code),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

/// Ends this process as Ctrl-C does once standard input ends: then who started it over a connection is gone, or wants no
/// more ([`on`]).
fn interrupt_at_end_of_input() {
    // The signal is for those who wait for it, wherever they do.
    let held = nix::sys::signal::SigSet::all().thread_block();
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()); // what cannot be read has ended
    if let Err(error) = held.and_then(|()| kill(Pid::this(), Signal::SIGINT)) {
        logs::tell(format_args!("warning: not ended with its input: {error}"));
    }
}

fn check_migration(args: &MigrateCheckArgs) -> ExitCode {
    let mut migration = match migrate::check(&args.files, args.from) {
        Ok(migration) => migration,
        Err(error) => return could_not_run(error),
    };
    if args.node {
        match migrate::on_node::look() {
            Ok(found) => migration.look_at(&found),
            Err(error) => {
                return could_not_run(format_args!("look at this node: {}", with_causes(error.as_ref())));
            }
        }
    }
    match args.output {
        Output::Text => {
            logs::tell(migration.lines());
            show(&migration.config());
        }
        Output::Json => {
            show(&migration.json());
        }
    }
    ExitCode::from(if migration.is_wrong() { WRONG } else { 0 })
}

fn clean_up(args: &CleanupArgs) -> ExitCode {
    if let Err(error) = rights::need_root("what the agent programmed is the kernel's") {
        return could_not_run(error);
    }
    let config = match config::load(&args.config.config, args.config.node_name.as_deref()) {
        Ok(config) => config,
        Err(error) => return could_not_run(error),
    };
    logs::start_with_warnings();
    let beside = Beside {
        cni_plugins: args.cni_plugins.clone(),
        dns_state: args.dns_state.clone(),
    };
    let cleaned = match args {
        CleanupArgs { kube_proxy: true, .. } => Ok(clean_kube_proxy(&config, args.force)),
        CleanupArgs { wait: true, .. } => {
            until_told(async |shutdown| Ok(clean_once_alone(&config, &beside, &shutdown).await))
        }
        _ => block_on(clean(&config, &beside, args.force)),
    };
    match cleaned {
        Ok(Ok(removal)) => {
            show(&cleanup::render(&config.node_name, &removal, args.output));
            ExitCode::from(if removal.failed.is_empty() { 0 } else { WRONG })
        }
        Ok(Err(error @ CleanupError::PodsLive(_))) => {
            logs::tell(format_args!("error: {error}"));
            ExitCode::from(WRONG)
        }
        Ok(Err(error @ (CleanupError::AgentRuns(_) | CleanupError::CouldNotRun(_)))) => could_not_run(error),
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

/// On this thread.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("start the async runtime")?.block_on(future))
}

fn print_config(args: &ConfigArgs) -> ExitCode {
    match config::load(&args.config, args.node_name.as_deref()) {
        Ok(config) => {
            show(&config.to_yaml());
            ExitCode::SUCCESS
        }
        Err(error) => found_wrong(&error),
    }
}

fn check_config(args: &ConfigArgs) -> ExitCode {
    match config::load(&args.config, args.node_name.as_deref()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => found_wrong(&error),
    }
}

/// A file that cannot be read was not looked at; one that can was, and is wrong.
fn found_wrong(error: &config::ConfigError) -> ExitCode {
    logs::tell(format_args!("error: {error}"));
    ExitCode::from(match error {
        config::ConfigError::Read { .. } => COULD_NOT_RUN,
        config::ConfigError::Parse { .. } | config::ConfigError::Invalid { .. } => WRONG,
    })
}

fn install_cni(args: &InstallCniArgs) -> ExitCode {
    match install_cni::install(args.from.as_deref(), &args.to) {
        Ok(installed) => {
            println!("{installed}");
            ExitCode::SUCCESS
        }
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

fn print_version(args: &VersionArgs) {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Output::Text => println!("causeway {version}"),
        Output::Json => println!("{}", serde_json::json!({"name": "causeway", "version": version})),
    }
}

/// Runs until it ends by itself, or the process is told to end: SIGTERM or SIGINT.
fn until_told<F, T>(run: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("start the async runtime")?.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        run(shutdown).await
    })
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => could_not_run(with_causes(error.as_ref())),
    }
}

/// Whether a result was for nobody to see: who goes by the exit code alone shall not take it for a good one.
static IS_UNPRINTED: AtomicBool = AtomicBool::new(false);

/// Prints a result, and says whether anybody reads. A reader that has seen enough, as `head`, is no fault.
fn show(text: &str) -> bool {
    put(text.as_bytes())
}

/// The same for bytes.
fn put(bytes: &[u8]) -> bool {
    let mut output = std::io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) => {
            if error.kind() != ErrorKind::BrokenPipe {
                logs::tell(format_args!("error: print the result: {error}"));
                IS_UNPRINTED.store(true, Ordering::Relaxed);
            }
            false
        }
        Ok(()) => true,
    }
}

/// Where that is because this machine has no agent, or none for this user, there may be nodes that have one.
fn could_not_run_here(error: &anyhow::Error) -> ExitCode {
    if let Some(AskError::NotRoot(_)) = error.downcast_ref() {
        return elsewhere(error);
    }
    match error.downcast_ref() {
        Some(WhichAgent::None { .. } | WhichAgent::NotRoot(_)) => elsewhere(error),
        Some(
            WhichAgent::Several(_)
            | WhichAgent::NotHere { .. }
            | WhichAgent::AnotherNodes { .. }
            | WhichAgent::Config(_),
        )
        | None => could_not_run(with_causes(error.as_ref())),
    }
}

/// Whether an agent of this machine can be meant.
fn is_node(configs: &[PathBuf]) -> bool {
    !config::here::of_this_machine(configs).is_empty()
}

/// Tells an error of this machine, and what to type for another one.
fn elsewhere(error: &anyhow::Error) -> ExitCode {
    logs::tell(format_args!("error: {}", with_causes(error.as_ref())));
    let words = std::env::args_os().skip(1);
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(command) = on::elsewhere(&words) {
        logs::tell(format_args!("on a node that a kubeconfig reaches: {command}"));
    }
    ExitCode::from(COULD_NOT_RUN)
}

fn could_not_run(error: impl Display) -> ExitCode {
    logs::tell(format_args!("error: {error}"));
    ExitCode::from(COULD_NOT_RUN)
}
