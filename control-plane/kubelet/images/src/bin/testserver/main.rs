//! `testserver`: a small server, HTTP client and resolver for trying a cluster's network from inside it.
//!
//! - [`serve`]: HTTP that names its host and its client, TCP and UDP echo
//! - [`fetch`]: HTTP requests, each on a connection of its own, one printed line each
//! - [`dns`], [`resolve`]: a stub resolver that follows `/etc/resolv.conf` (search list and `ndots`)
//! - [`udp_ping`]: UDP round trips, connected or not
//! - [`probe`]: many servers at once, by TCP and UDP, also with packets as large as the way takes
//! - [`tools`]: what one expects to find in a container, also by links that bear their names
//!
//! Exit code: 0 = good, 1 = a request failed, 2 = it could not run.

mod args;
mod clock;
mod dns;
mod fetch;
mod http;
mod probe;
mod resolve;
mod serve;
mod tools;
mod udp_ping;

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use args::Args;

const USAGE: &str = "\
usage: testserver COMMAND

  serve [--http :8080] [--tcp :PORT] [--udp :PORT] [--grace SECONDS]
        answers /, /healthz, /readyz (POST /readyz?value=false switches it), /echo, /delay?ms=N; echoes TCP and UDP;
        on SIGTERM it stops to listen, finishes open requests and exits 0
  fetch URL… [--count N] [--interval-ms M] [--timeout-ms T] [--resolver IP] [--forever] [--body]
        GETs each URL in turn; prints 'TIME STATUS HOSTNAME MICROSECONDS CLIENT' per request and a summary; CLIENT is
        the address that the server saw; --body: what it answered, after each line
  resolve NAME [--type A|AAAA|SRV|PTR|CNAME|TXT|NS|SOA] [--resolver IP] [--over-tcp]
  udp-ping HOST:PORT [--count N] [--interval-ms M] [--timeout-ms T] [--connected] [--kept] [--size BYTES] [--forever]
        asks for the server's name, from one socket with --kept; --size: sends so many bytes, which have to come back
  probe [--timeout-ms T] KIND:HOST:PORT…
        tries all of them at once; KIND: connect, tcp, tcp+large, udp, udp+large; prints 'PROBE ok|failed MICROSECONDS
        ANSWER' for each: the server's name, how many bytes came back, or why not
  sleep SECONDS|infinity
  cat, echo, env, exit, false, hostname, id, ls, pwd, tar, test, true, tty

example: testserver fetch http://hello.default.svc.cluster.local/ --count 10 --interval-ms 100";

fn main() -> ExitCode {
    let mut words = std::env::args();
    let called = words.next().unwrap_or_default();
    let link = called.rsplit('/').next().unwrap_or_default().to_owned();
    // By its own name the command comes first, by a link's the link is the command.
    let command = match tools::named(&link).is_some() || link == "sleep" {
        true => link,
        false => words.next().unwrap_or_default(),
    };
    if let Some(run) = tools::named(&command) {
        return ended(run(&words.collect::<Vec<_>>()));
    }
    let outcome = Args::parse(words).and_then(|args| match command.as_str() {
        "serve" => serve::run(&args),
        "fetch" | "loop" => fetch::run(&args, command == "loop"),
        "resolve" => resolve::run(&args),
        "udp-ping" => udp_ping::run(&args),
        "probe" => probe::run(&args),
        "sleep" => sleep(&args),
        "-h" | "--help" | "help" => {
            println!("{USAGE}");
            Ok(true)
        }
        other => Err(format!("unknown command {other:?}\n{USAGE}")),
    });
    ended(outcome)
}

fn ended(outcome: Result<bool, String>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("testserver: {message}");
            ExitCode::from(2)
        }
    }
}

/// The signals that end a container. Blocked before any thread starts, then waited for by one thread: process 1 of a
/// PID namespace gets no signal that it does not ask for.
fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

/// Lets SIGTERM and SIGINT end a program that has nothing to finish.
fn exit_on_ending_signals() -> Result<(), String> {
    let ends = ending_signals();
    ends.thread_block()
        .map_err(|error| format!("block signals: {error}"))?;
    std::thread::spawn(move || {
        let code = if ends.wait().is_ok() { 0 } else { 2 };
        std::process::exit(code);
    });
    Ok(())
}

fn sleep(args: &Args) -> Result<bool, String> {
    let ends = ending_signals();
    ends.thread_block()
        .map_err(|error| format!("block signals: {error}"))?;
    let text = args.positional(0).unwrap_or("infinity");
    println!("sleeping {text}");
    if text != "infinity" {
        let seconds: f64 = text
            .parse()
            .map_err(|_| format!("not a number of seconds: {text:?}"))?;
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        std::thread::spawn(move || {
            std::thread::sleep(duration);
            std::process::exit(0);
        });
    }
    ends.wait()
        .map_err(|error| format!("wait for a signal: {error}"))?;
    Ok(true)
}
