//! `up`, `down`, `status` and `image` are `causeway-cluster`'s: they become that program, so that nodes which only run
//! the agent need not carry a control plane.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The program, beside this one.
const PROGRAM: &str = "causeway-cluster";

/// Why the command was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// This program does not know where it is.
    #[error("find this program's own directory: {0}")]
    OwnPath(#[source] std::io::Error),
    /// The program is not there, or cannot be executed.
    #[error(
        "execute {path}: {source} (`causeway {command}` needs the program {PROGRAM} in the same directory as causeway)"
    )]
    Execute {
        /// The program that was tried.
        path: PathBuf,
        /// The command that needs it.
        command: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Becomes `causeway-cluster COMMAND ARGUMENTS`. Returns only when it cannot.
#[must_use]
pub fn hand_over(command: &'static str, arguments: &[OsString]) -> HandOverError {
    // Not `current_exe` as it is called: a link to `causeway` may stand alone in a directory of programs.
    let own = match std::env::current_exe().and_then(std::fs::canonicalize) {
        Ok(own) => own,
        Err(error) => return HandOverError::OwnPath(error),
    };
    let path = own.with_file_name(PROGRAM);
    let source = Command::new(&path).arg(command).args(arguments).exec();
    HandOverError::Execute {
        path,
        command,
        source,
    }
}
