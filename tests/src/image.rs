//! The image of `node/deploy` from the programs of this build. They are linked dynamically, unlike those of
//! `make image`: loader and libraries come along, to where they are looked for.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::cluster::{busybox, everything, program, programs};

/// How the manifests call it.
pub const NAME: &str = "causeway:v0.1.0";

/// Words for `causeway image build` after which `/bin` of the image has these programs of this build, and they run.
///
/// # Errors
/// When the machine has no busybox, or the libraries cannot be listed.
///
/// # Panics
/// When one of the programs was not built.
pub fn recipe(names: &[&str]) -> anyhow::Result<Vec<String>> {
    let busybox = busybox()?;
    let busybox = busybox.to_str().context("a path")?;
    let mut words: Vec<String> = ["--tag", NAME, "--env", "PATH=/bin", "--from-binary", busybox]
        .map(str::to_owned)
        .into();
    let mut files = BTreeSet::new();
    for name in names {
        let program = program(name);
        files.insert(format!("{}:/bin/{name}", program.display()));
        files.extend(libraries(&program)?);
    }
    words.extend(files.into_iter().flat_map(|file| ["--file".to_owned(), file]));
    Ok(words)
}

/// The loader and libraries of a program, as `there:here`.
fn libraries(program: &Path) -> anyhow::Result<Vec<String>> {
    let listed = Command::new("ldd").arg(program).output()?;
    ensure!(listed.status.success(), "{}", everything(&listed));
    let listed = String::from_utf8(listed.stdout)?;
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader by its path alone.
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let files = libraries.map(|path| {
        let file = std::fs::canonicalize(path)?;
        Ok(format!("{}:{path}", file.display()))
    });
    files.collect()
}

/// Writes it as an archive for `causeway image import`.
///
/// # Errors
/// With everything that `causeway image build` said, when it failed.
///
/// # Panics
/// When a program of it was not built.
pub fn archive(path: &Path) -> anyhow::Result<()> {
    let built = Command::new(programs().join("causeway"))
        .args(["image", "build", "--archive"])
        .arg(path)
        .args(recipe(&["causeway", "causeway-cni"])?)
        .output()?;
    ensure!(built.status.success(), "{}", everything(&built));
    Ok(())
}
