//! `causeway node install-cni`: the plugin's program, where the container runtime looks for it.
//!
//! The configuration that makes the runtime use it is the agent's to write, once pods can be connected
//! (`agent/cni/conflist.rs`): the program is always there before it.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use overlay::files::write_program;

/// The program's name: the `type` of its configuration.
pub const PLUGIN: &str = "causeway-cni";

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was not there, or was another one.
    Written(PathBuf),
    /// It was there already.
    Same(PathBuf),
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(path) => write!(f, "{} installed", path.display()),
            Self::Same(path) => write!(f, "{} is up to date", path.display()),
        }
    }
}

/// Puts the plugin into `directory`, as a whole or not at all. `from`: its program; None: the one beside this program.
///
/// # Errors
/// When it cannot be read or written.
pub fn install(from: Option<&Path>, directory: &Path) -> anyhow::Result<Installed> {
    let from = match from {
        Some(from) => from.to_owned(),
        None => std::env::current_exe()
            .context("find this program's own directory")?
            .with_file_name(PLUGIN),
    };
    let program = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
    let target = directory.join(PLUGIN);
    if is_there(&target, &program) {
        return Ok(Installed::Same(target));
    }
    write_program(&target, &program).with_context(|| format!("write {}", target.display()))?;
    Ok(Installed::Written(target))
}

/// Whether it is that program, and everybody may execute it.
fn is_there(target: &Path, program: &[u8]) -> bool {
    let executable = |found: fs::Metadata| found.permissions().mode() & 0o111 == 0o111;
    fs::metadata(target).is_ok_and(executable) && fs::read(target).is_ok_and(|found| found == program)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_plugin_is_replaced_as_a_whole_and_only_where_it_is_another() {
        let base = std::env::temp_dir().join(format!("cwt-install-{}", std::process::id()));
        let (from, to) = (base.join("plugin"), base.join("opt/cni/bin"));
        let target = to.join(PLUGIN);
        fs::create_dir_all(&base).expect("writable");
        fs::write(&from, "one").expect("writable");
        let install = || install(Some(&from), &to).expect("writable");
        assert_eq!(install(), Installed::Written(target.clone()));
        let found = || fs::metadata(&target).expect("it is there");
        assert_eq!(found().mode() & 0o7777, 0o755);
        let first = found().ino();
        assert_eq!(install(), Installed::Same(target.clone()));
        assert_eq!(found().ino(), first, "the same is not written again");
        let runs = fs::File::open(&target).expect("it is there");
        fs::write(&from, "two").expect("writable");
        assert_eq!(install(), Installed::Written(target.clone()));
        assert_eq!(fs::read_to_string(&target).expect("it is there"), "two");
        assert_eq!(
            std::io::read_to_string(runs).expect("open"),
            "one",
            "who runs it goes on"
        );
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).expect("our own");
        assert_eq!(install(), Installed::Written(target.clone()));
        assert_eq!(found().mode() & 0o7777, 0o755);
        assert_eq!(
            fs::read_dir(&to).expect("there").count(),
            1,
            "nothing else is left"
        );
        fs::remove_dir_all(base).expect("it was made");
    }

    #[test]
    fn a_plugin_that_is_missing_is_named() {
        let told = install(
            Some(Path::new("/nonexistent/causeway-cni")),
            Path::new("/nonexistent"),
        );
        let told = format!("{:#}", told.expect_err("it is not there"));
        assert!(told.starts_with("read /nonexistent/causeway-cni: "), "{told}");
    }
}
