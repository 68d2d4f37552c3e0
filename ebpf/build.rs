//! Compiles `ebpf-programs` for the BPF target with a nested cargo, and tells where the objects lie.
//!
//! Needed: `bpf-linker` on PATH or where `cargo install` puts it, and the source of `core`. There is no fallback object: a build without the
//! toolchain fails and says what is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const HINT: &str = "run `./setup.sh build`, which installs what building the BPF programs needs";

fn main() {
    for path in ["programs", "common", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    match build() {
        Ok(objects) => println!("cargo::rustc-env=CAUSEWAY_BPF_OBJECTS={}", objects.display()),
        Err(reason) => {
            println!("cargo::error=the BPF programs cannot be built: {reason}");
        }
    }
}

/// The directory with one object for each program of the package.
fn build() -> Result<PathBuf, String> {
    let toolchain = Toolchain::find()?;
    let path = search_path();
    let linker = find_in(&path, "bpf-linker").ok_or(format!("`bpf-linker` is not installed; {HINT}"))?;
    let target_dir = nested_target_dir()?;
    let mut cargo = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    // Cargo hands build scripts an empty CARGO_ENCODED_RUSTFLAGS, which silently beats RUSTFLAGS.
    cargo
        .env("PATH", &path)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker)?)
        .args(["build", "--locked", "--profile", "bpf", "-p", "ebpf-programs"])
        .args(["-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    let output = cargo
        .output()
        .map_err(|error| format!("cannot start {}: {error}", toolchain.cargo.display()))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(
            format!("{} failed; {HINT}\n{log}", toolchain.cargo.display()).replace('\n', "\ncargo::error=")
        );
    }
    Ok(target_dir.join(TARGET).join("bpf"))
}

/// A cargo and rustc that have the source of `core` at hand.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    /// The active toolchain where `rust-src` is installed, else Debian's `rustc-web` with `rust-web-src`.
    fn find() -> Result<Self, String> {
        let cargo = env::var_os("CARGO").ok_or("cargo did not say where it is")?;
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let active = Self {
            cargo: cargo.into(),
            rustc: rustc.into(),
        };
        let debian = Self {
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
        };
        for toolchain in [active, debian] {
            if toolchain.cargo.exists() && has_core(&toolchain.rustc) {
                return Ok(toolchain);
            }
        }
        Err(format!(
            "the source of Rust's `core` is missing: neither the active toolchain has the component rust-src, nor are \
             Debian's rustc-web, cargo-web and rust-web-src installed; {HINT}"
        ))
    }
}

fn has_core(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

/// A directory of its own below the main one: the outer cargo holds the lock of the main one.
fn nested_target_dir() -> Result<PathBuf, String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    // <target>/<profile>/build/<package>-<hash>/out
    let target = out_dir
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not below a target directory")?;
    Ok(target.join("bpf"))
}

fn rustflags(linker: &Path) -> Result<String, String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let here = env::current_dir().map_err(|error| format!("where is this? {error}"))?;
    let root = here.parent().unwrap_or(&here);
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // Type information names source files: the same from every folder.
        format!("--remap-path-prefix={}=/causeway", root.display()),
    ];
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    Ok(flags.join("\u{1f}"))
}

/// Whether a variable of the outer build would mislead the nested one (clippy's wrapper, flags of the host target).
fn is_foreign(name: &str) -> bool {
    let kept = matches!(name, "CARGO_HOME" | "CARGO_MAKEFLAGS") || name.starts_with("RUSTUP_");
    !kept && (name.starts_with("CARGO") || name.starts_with("RUST") || name == "LD_LIBRARY_PATH")
}

fn cargo_home() -> Option<PathBuf> {
    let told = env::var_os("CARGO_HOME").map(PathBuf::from);
    told.or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// PATH, with cargo's own bin directory behind it: that is where `cargo install` puts the linker.
fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(cargo_home().map(|home| home.join("bin")));
    env::join_paths(dirs).unwrap_or(path)
}

fn find_in(path: &std::ffi::OsStr, program: &str) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
