//! `confined PROFILE PROGRAM ARGUMENT…`: executes a program under a seccomp profile of the OCI's form, as a container
//! runtime does.

use std::collections::HashMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};

/// What a system call gets that the profile does not name (errno(3)).
const EPERM: u32 = 1;

fn main() {
    let error = match run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("error: {error:#}");
    std::process::exit(2);
}

fn run() -> anyhow::Result<std::convert::Infallible> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(profile), Some(program)) = (arguments.next(), arguments.next()) else {
        bail!("usage: confined PROFILE PROGRAM ARGUMENT…");
    };
    let text = std::fs::read_to_string(&profile).with_context(|| format!("read {}", profile.display()))?;
    apply_filter(&compile(&serde_json::from_str(&text)?)?).context("apply the profile")?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("execute {}", program.display()))
}

/// A profile that names what is allowed, and no arguments.
fn compile(profile: &Value) -> anyhow::Result<BpfProgram> {
    ensure!(
        profile["defaultAction"] == "SCMP_ACT_ERRNO" && profile["defaultErrnoRet"] == EPERM,
        "what is not named shall be refused with EPERM"
    );
    let mut filter = Vec::new();
    for rule in profile["syscalls"].as_array().into_iter().flatten() {
        ensure!(
            rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null(),
            "not understood: {rule}"
        );
        let names = rule["names"].as_array().context("names")?;
        filter.extend(names.iter().map(|name| json!({ "syscall": name })));
    }
    let filters =
        json!({"all": {"mismatch_action": {"errno": EPERM}, "match_action": "allow", "filter": filter}});
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut compiled: HashMap<_, BpfProgram> = compile_from_json(filters.to_string().as_bytes(), arch)?;
    compiled.remove("all").context("invariant: it was named")
}
