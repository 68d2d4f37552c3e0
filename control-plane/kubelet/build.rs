//! Compiles the programs of the built-in images as static executables, to be embedded into the kubelet.
//!
//! A nested cargo in a target directory of its own: the outer cargo holds the lock of the main one. Its environment is
//! cleaned, since cargo and clippy hand down variables that would change what the nested one builds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The images' programs are executed inside containers that have no C library, so they carry their own. (0x1f separates
/// the flags.)
const STATIC: &str = "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols";
const PROGRAMS: [&str; 2] = ["testserver", "pause"];

fn main() {
    for path in ["build.rs", "images/src", "images/Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(error) = build() {
        println!("cargo::error=static programs of the built-in images: {error}");
    }
}

fn build() -> io::Result<()> {
    let out = path_of("OUT_DIR")?;
    let manifest = path_of("CARGO_MANIFEST_DIR")?.join("images/Cargo.toml");
    let target = env::var("TARGET").map_err(io::Error::other)?;
    let target_dir = images_target_dir(&out)?;

    let cargo = path_of("CARGO")?;
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let leaks = text.starts_with("CARGO") || text.starts_with("RUST") || text == "LD_LIBRARY_PATH";
        let keeps = text == "CARGO_HOME" || text == "CARGO_MAKEFLAGS" || text.starts_with("RUSTUP_");
        if leaks && !keeps {
            command.env_remove(&name);
        }
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", STATIC);
    command.args(["build", "--release", "--quiet", "--bins", "--target", &target]);
    command
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target_dir);
    let output = command.output()?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).replace('\n', " "),
        ));
    }
    for program in PROGRAMS {
        fs::copy(
            target_dir.join(&target).join("release").join(program),
            out.join(program),
        )?;
    }
    Ok(())
}

/// `<target>/images`: `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
fn images_target_dir(out: &Path) -> io::Result<PathBuf> {
    out.ancestors()
        .nth(4)
        .map(|target| target.join("images"))
        .ok_or_else(|| io::Error::other("OUT_DIR is not inside a target directory"))
}

fn path_of(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{variable} is not set")))
}
