//! `causeway-cni`, run by the container runtime for every pod (CNI 1.1 §2).

use std::io::{Read, Write};
use std::process::ExitCode;

use cni_plugin::plugin;

fn main() -> ExitCode {
    let mut input = Vec::new();
    // Input that cannot be read is input that is not JSON: the verb says so.
    let _ = std::io::stdin().lock().read_to_end(&mut input);
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let answer = plugin::answer(&variables.collect(), &input);
    if !answer.notice.is_empty() {
        eprintln!("{}", answer.notice);
    }
    let written = std::io::stdout().lock().write_all(answer.output.as_bytes());
    if answer.success && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
