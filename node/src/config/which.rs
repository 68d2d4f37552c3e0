//! Which agent of this machine is meant, where one answers for all.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::here::{nodes, of_this_machine};
use super::{Config, ConfigError, load, node_of, parse, read};
use crate::cli::NODE_CONFIG;
use crate::rights::{self, NotRoot};

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
    /// The file that was named is another node's.
    #[error(
        "node {name} (--node-name, or NODE_NAME) and --config {} contradict each other: that is the configuration of node {own}; give one of \
         the two alone",
        .config.display()
    )]
    AnotherNodes {
        /// The name that was asked for.
        name: String,
        /// The file.
        config: PathBuf,
        /// Whose it says it is.
        own: String,
    },
    /// They are not for this user to see.
    #[error(transparent)]
    NotRoot(NotRoot),
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(ConfigError),
}

impl From<ConfigError> for WhichAgent {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Read { path, source } if rights::is_denied(&source) => {
                Self::NotRoot(NotRoot(format!("{} is root's", path.display())))
            }
            error => Self::Config(error),
        }
    }
}

fn each(configs: &[PathBuf]) -> String {
    let options = configs.iter().map(|path| format!("--config {}", path.display()));
    format!("--node-name, or by {}", options.collect::<Vec<_>>().join(" or "))
}

/// The configuration that is named, else that of the only agent of this machine, else that of the agent whose node is
/// `name`. `name` stands in place of the node that the only one says, since one file can serve all nodes; but a file that
/// is named and says another node is a contradiction.
///
/// # Errors
/// When there are several, or none, or it cannot be used.
pub fn agent(named: Option<&Path>, name: Option<&str>) -> Result<Config, WhichAgent> {
    let named: Vec<_> = named.map(Path::to_owned).into_iter().collect();
    let nodes = nodes();
    let are_hidden = || matches!(nodes.read_dir(), Err(error) if error.kind() == ErrorKind::PermissionDenied);
    let configs = of_this_machine(&named);
    match (configs.as_slice(), name) {
        ([], _) if are_hidden() => Err(WhichAgent::NotRoot(NotRoot(format!(
            "there is no {NODE_CONFIG}, and {} is root's; --config names another configuration",
            nodes.display()
        )))),
        ([], _) => Err(WhichAgent::None { nodes }),
        ([only], Some(name)) if !named.is_empty() => of_file(only, name),
        ([only], _) if !only.starts_with(&nodes) || !named.is_empty() => Ok(load(only, name)?),
        ([only], None) => Ok(load(only, None)?),
        (_, Some(name)) => of_node(&configs, name),
        (_, None) => Err(WhichAgent::Several(configs)),
    }
}

/// The configuration in a file, of the node with that name.
fn of_file(path: &Path, name: &str) -> Result<Config, WhichAgent> {
    let text = read(path)?;
    let config = parse(path, &text, Some(name))?;
    match node_of(&text) {
        Some(own) if own != name => Err(WhichAgent::AnotherNodes {
            name: name.to_owned(),
            config: path.to_owned(),
            own,
        }),
        _ => Ok(config),
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
        WhichAgent::from,
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
    }

    #[test]
    fn a_file_that_is_named_is_of_any_node_unless_it_says_which() {
        let directory = Directory::new("contradiction");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(
                &path,
                format!("{{{text}proxy: {{podNetworks: [10.244.0.0/16]}}}}\n"),
            )
            .expect("written");
            path
        };
        let for_all = file("all.yaml", "");
        let named = agent(Some(&for_all), Some("other")).expect("read");
        assert_eq!(&*named.node_name.0, "other", "one file for all nodes");
        let of_one = file("one.yaml", "nodeName: node-1, ");
        let same = agent(Some(&of_one), Some("node-1")).expect("read");
        assert_eq!(&*same.node_name.0, "node-1");
        let error = agent(Some(&of_one), Some("node-2"))
            .expect_err("a contradiction")
            .to_string();
        let expected = format!(
            "node node-2 (--node-name, or NODE_NAME) and --config {} contradict each other: that is the configuration of node node-1; give one of \
             the two alone",
            of_one.display()
        );
        assert_eq!(error, expected);
    }
}
