//! Which agent of this machine is meant, where one answers for all.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::here::{nodes, of_this_machine};
use super::{Config, ConfigError, load};
use crate::cli::NODE_CONFIG;

/// Why none can be meant.
#[derive(Debug, thiserror::Error)]
pub enum WhichAgent {
    /// There is none.
    #[error(
        "there is no {NODE_CONFIG}, and no node of `causeway up` in {}: name the agent's configuration by --config",
        .nodes.display()
    )]
    None {
        /// Where nodes of `causeway up` are looked for.
        nodes: PathBuf,
    },
    /// There are several.
    #[error("this machine has several agents: name one by {}", each(.0))]
    Several(Vec<PathBuf>),
    /// None of them has the name.
    #[error("this machine has no agent of node {name}: it has those of {}", .nodes.join(", "))]
    NotHere {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        nodes: Vec<String>,
    },
    /// They are not for this user to see.
    #[error(
        "there is no {NODE_CONFIG}, and {} is root's: run as root, or name a configuration by --config",
        .nodes.display()
    )]
    NotRoot {
        /// Where nodes of `causeway up` are looked for.
        nodes: PathBuf,
    },
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn each(configs: &[PathBuf]) -> String {
    let options = configs.iter().map(|path| format!("--config {}", path.display()));
    format!("--node-name, or by {}", options.collect::<Vec<_>>().join(" or "))
}

/// The configuration that is named, else that of the only agent of this machine, else that of the agent whose node is
/// `name`. Where there is one alone, `name` replaces what it says: one file can serve all nodes.
///
/// # Errors
/// When there are several, or none, or it cannot be used.
pub fn agent(named: Option<&Path>, name: Option<&str>) -> Result<Config, WhichAgent> {
    let named: Vec<_> = named.map(Path::to_owned).into_iter().collect();
    let nodes = nodes();
    let are_hidden = || matches!(nodes.read_dir(), Err(error) if error.kind() == ErrorKind::PermissionDenied);
    let configs = of_this_machine(&named);
    match (configs.as_slice(), name) {
        ([], _) if are_hidden() => Err(WhichAgent::NotRoot { nodes }),
        ([], _) => Err(WhichAgent::None { nodes }),
        ([only], _) if !only.starts_with(&nodes) || !named.is_empty() => Ok(load(only, name)?),
        ([only], None) => Ok(load(only, None)?),
        (_, Some(name)) => of_node(&configs, name),
        (_, None) => Err(WhichAgent::Several(configs)),
    }
}

fn of_node(configs: &[PathBuf], name: &str) -> Result<Config, WhichAgent> {
    let mut others = Vec::new();
    let mut unusable = None;
    for path in configs {
        match load(path, None) {
            Ok(config) if *config.node_name.0 == *name => return Ok(config),
            Ok(config) => others.push(config.node_name.to_string()),
            Err(error) => unusable = unusable.or(Some(error)),
        }
    }
    // It may be the one.
    Err(unusable.map_or_else(
        || WhichAgent::NotHere {
            name: name.to_owned(),
            nodes: others,
        },
        WhichAgent::Config,
    ))
}

#[cfg(test)]
mod tests {
    use ::tests::directory::Directory;

    use super::*;

    #[test]
    fn of_several_agents_the_one_of_the_node_is_taken_and_none_is_guessed() {
        let directory = Directory::new("which");
        let configs = ["node-1", "node-2"].map(|node| {
            let path = directory.path().join(format!("{node}.yaml"));
            std::fs::write(
                &path,
                format!("{{nodeName: {node}, proxy: {{podNetworks: [10.244.0.0/16]}}}}\n"),
            )
            .expect("written");
            path
        });
        let found = of_node(&configs, "node-2").expect("there");
        assert_eq!(&*found.node_name.0, "node-2");
        let missing = of_node(&configs, "node-3").expect_err("no such node");
        assert_eq!(
            missing.to_string(),
            "this machine has no agent of node node-3: it has those of node-1, node-2"
        );
        let broken = directory.path().join("broken.yaml");
        std::fs::write(&broken, "nodeName: [").expect("written");
        let with_broken = [broken, configs[1].clone()];
        assert!(of_node(&with_broken, "node-2").is_ok());
        assert!(matches!(
            of_node(&with_broken, "node-3"),
            Err(WhichAgent::Config(_))
        ));
        let several = WhichAgent::Several(vec!["/n/node-1/agent.yaml".into(), "/n/node-2/agent.yaml".into()]);
        assert_eq!(
            several.to_string(),
            "this machine has several agents: name one by --node-name, or by --config /n/node-1/agent.yaml or --config \
             /n/node-2/agent.yaml"
        );
        let named = agent(configs.first().map(PathBuf::as_path), Some("other")).expect("read");
        assert_eq!(&*named.node_name.0, "other", "one file for all nodes");
    }
}
