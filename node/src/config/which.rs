//! Which agent of this machine is meant, where one answers for all.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use trace::shell::quoted;

use super::here::{nodes, of_this_machine};
use super::{Config, ConfigError, load, node_of, parse, read};
use crate::ask::Agent;
use crate::cli::NODE_CONFIG;
use crate::logs::tell;
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
    /// The agent that runs with the file is another node's.
    #[error(
        "the agent that runs with {} is of node {own}, and not of node {name} (--node-name, or NODE_NAME)",
        .config.display()
    )]
    AnotherNodes {
        /// The name that was asked for.
        name: String,
        /// The file.
        config: PathBuf,
        /// Whose the agent says it is.
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
    let options = configs
        .iter()
        .map(|path| format!("--config {}", quoted(&path.to_string_lossy())));
    format!("--node-name, or by {}", options.collect::<Vec<_>>().join(" or "))
}

/// The configuration that is named, else that of the only agent of this machine, else that of the agent whose node is
/// `name`. `name` stands in place of the node that the only one says, as it does for the agent; but the agent that runs
/// with it knows better whose it is.
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
        ([only], Some(name)) if !only.starts_with(&nodes) || !named.is_empty() => of_file(only, name),
        ([only], None) => Ok(load(only, None)?),
        (_, Some(name)) => of_node(&configs, name),
        (_, None) => Err(WhichAgent::Several(configs)),
    }
}

/// The configuration in a file, of the node with that name.
fn of_file(path: &Path, name: &str) -> Result<Config, WhichAgent> {
    let text = read(path)?;
    let config = parse(path, &text, Some(name))?;
    match (running(&config.state_dir), node_of(&text)) {
        (Some(own), _) if own != name => {
            return Err(WhichAgent::AnotherNodes {
                name: name.to_owned(),
                config: path.to_owned(),
                own,
            });
        }
        (None, Some(said)) if said != name => tell(format_args!(
            "warning: {} says nodeName: {said}, and no agent says whether it runs as node {name}, which was asked for",
            path.display()
        )),
        _ => {}
    }
    Ok(config)
}

/// The node that the agent with this state directory says it is of; none where it does not say.
fn running(state_dir: &Path) -> Option<String> {
    let agent = crate::block_on(Agent::connect(state_dir)).ok()?.ok()?;
    agent.node().map(str::to_owned)
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
    use crate::ask::{ALIVE, SOCKET};

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
    fn a_path_in_what_to_type_is_one_word() {
        let told = WhichAgent::Several(vec!["/n/my node.yaml".into()]).to_string();
        assert!(told.ends_with("or by --config '/n/my node.yaml'"), "{told}");
    }

    #[test]
    fn a_file_is_of_the_node_that_its_agent_says_and_of_any_where_none_runs() {
        let directory = Directory::new("whose");
        let file = |name: &str, node: &str| {
            let (path, state) = (directory.path().join(name), directory.path().join("state"));
            let text = format!(
                "{{{node}stateDir: {}, proxy: {{podNetworks: [10.244.0.0/16]}}}}\n",
                state.display()
            );
            std::fs::write(&path, text).expect("written");
            path
        };
        let files = [file("all.yaml", ""), file("one.yaml", "nodeName: node-1, ")];
        let asked = |path: &Path, name: &str| {
            let config = agent(Some(path), Some(name));
            config.map(|config| config.node_name.to_string())
        };
        for path in &files {
            for name in ["node-1", "node-2"] {
                assert_eq!(asked(path, name).expect("nobody knows better"), name);
            }
        }
        let _runs = running_as("node-2", &directory.path().join("state"));
        for path in &files {
            assert_eq!(asked(path, "node-2").expect("its agent's"), "node-2");
            let error = asked(path, "node-1").expect_err("another's").to_string();
            let expected = format!(
                "the agent that runs with {} is of node node-2, and not of node node-1 (--node-name, or NODE_NAME)",
                path.display()
            );
            assert_eq!(error, expected);
        }
    }

    /// Answers on the socket of an agent, as long as the runtime is there.
    fn running_as(node: &'static str, state_dir: &Path) -> tokio::runtime::Runtime {
        std::fs::create_dir_all(state_dir).expect("made");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let entered = runtime.enter();
        let listener = tokio::net::UnixListener::bind(state_dir.join(SOCKET)).expect("a socket");
        drop(entered);
        let router = axum::Router::new().route(ALIVE, axum::routing::get(async move || node));
        runtime.spawn(async move { axum::serve(listener, router).await });
        runtime
    }
}
