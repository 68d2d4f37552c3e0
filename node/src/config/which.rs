//! Which agent of this machine is meant, where one answers for all.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::here::{NODES, of_this_machine};
use crate::cli::NODE_CONFIG;

/// Why none can be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhichAgent {
    /// There is none.
    #[error(
        "there is no {NODE_CONFIG}, and no node of `causeway up` in {NODES}: name the agent's configuration by --config"
    )]
    None,
    /// There are several.
    #[error("this machine has several agents: name one by {}", each(.0))]
    Several(Vec<PathBuf>),
    /// They are not for this user to see.
    #[error(
        "there is no {NODE_CONFIG}, and {NODES} is root's: run as root, or name a configuration by --config"
    )]
    NotRoot,
}

fn each(configs: &[PathBuf]) -> String {
    let options = configs.iter().map(|path| format!("--config {}", path.display()));
    options.collect::<Vec<_>>().join(" or ")
}

/// The configuration that is named, else that of the only agent of this machine.
///
/// # Errors
/// When there are several, or none.
pub fn agent(named: Option<&Path>) -> Result<PathBuf, WhichAgent> {
    let named: Vec<_> = named.map(Path::to_owned).into_iter().collect();
    only(
        of_this_machine(&named),
        || matches!(Path::new(NODES).read_dir(), Err(error) if error.kind() == ErrorKind::PermissionDenied),
    )
}

fn only(mut configs: Vec<PathBuf>, are_hidden: impl FnOnce() -> bool) -> Result<PathBuf, WhichAgent> {
    match configs.len() {
        0 if are_hidden() => Err(WhichAgent::NotRoot),
        0 => Err(WhichAgent::None),
        1 => Ok(configs.remove(0)),
        _ => Err(WhichAgent::Several(configs)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_agents_none_is_guessed() {
        let [first, second] = ["/n/node-1/agent.yaml", "/n/node-2/agent.yaml"].map(PathBuf::from);
        let of = |configs: &[&PathBuf], are_hidden| {
            only(configs.iter().copied().cloned().collect(), || are_hidden)
        };
        assert_eq!(of(&[&first], false), Ok(first.clone()));
        assert_eq!(of(&[], false), Err(WhichAgent::None));
        assert_eq!(of(&[], true), Err(WhichAgent::NotRoot));
        let several = of(&[&first, &second], false).expect_err("two");
        assert_eq!(
            several.to_string(),
            "this machine has several agents: name one by --config /n/node-1/agent.yaml or --config \
             /n/node-2/agent.yaml"
        );
    }

    #[test]
    fn what_is_named_is_taken_as_it_is() {
        let named = Path::new("/nowhere/agent.yaml");
        assert_eq!(agent(Some(named)).as_deref(), Ok(named));
    }
}
