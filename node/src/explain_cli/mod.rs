//! `causeway explain`: asks the agent of a node, and the kernel alone where none answers.

mod vantage;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use model::with_causes;
use netlink::{Kernel, Namespace, Netlink};

use crate::ask::{Agent, AskError};
use crate::cli::ExplainArgs;
use crate::config::{Config, Datapath};
use crate::explain::{self, Answer, Explanation, PodHere, Question, Vantage, WithoutAgent};
use crate::logs::tell;

/// What becomes of the packet.
///
/// # Errors
/// When the question is not understood, or there is no agent to be meant.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let config = args.agent.load()?;
    let question = args.question()?;
    match crate::block_on(ask(&config.state_dir, &question))? {
        Ok(Answer::Explained(explanation)) => Ok(*explanation),
        Ok(Answer::NotUnderstood(reason)) => anyhow::bail!(reason),
        Err(AskError::Connect { path, source }) if source.kind() == ErrorKind::PermissionDenied => {
            anyhow::bail!(
                "ask the agent at {}: its socket is root's: run this as root",
                path.display()
            )
        }
        Err(error @ AskError::Connect { .. }) => {
            tell(format_args!("warning: {error}"));
            of_namespace(&question, &config)
        }
        Err(error @ AskError::Silent { pid, .. }) => {
            tell(format_args!("warning: {error}"));
            of_silent(&question, &config, pid)
        }
        Err(error @ AskError::Stopped { pid }) => {
            tell(format_args!("warning: {error}"));
            of_silent(&question, &config, Some(pid))
        }
        Err(error @ AskError::Answer { .. }) => Err(error.into()),
    }
}

async fn ask(state_dir: &Path, question: &Question) -> Result<Answer, AskError> {
    let mut agent = Agent::connect(state_dir).await?;
    let question = Question {
        vantage: agent.pid().map(vantage::on_process).unwrap_or_default(),
        ..question.clone()
    };
    agent.ask(explain::PATH, question).await
}

/// By the kernel alone, where an agent is that does not speak.
fn of_silent(question: &Question, config: &Config, pid: Option<i32>) -> anyhow::Result<Explanation> {
    let vantage = pid.map(vantage::on_process).unwrap_or_default();
    let pin_dir = PathBuf::from(format!("{}{}", vantage.root, config.proxy.pin_dir.display()));
    let question = Question {
        // The pins' path has the root already.
        vantage: Vantage {
            root: String::new(),
            ..vantage.clone()
        },
        ..question.clone()
    };
    let known = WithoutAgent {
        pods: recorded(config)?,
        pin_dir,
        doubt: Some(
            "the agent does not answer: what the objects say is not known, and only the kernel was asked"
                .to_owned(),
        ),
        notes: Vec::new(),
    };
    let explain = || explain::without_agent(&question, &known);
    Ok(match pid.filter(|_| !vantage.network.is_empty()) {
        Some(pid) => Namespace::open(format!("/proc/{pid}/ns/net"))?.run(explain)?,
        None => explain(),
    }?)
}

/// By the kernel alone, where no agent runs: in the namespace where its pods' devices are.
fn of_namespace(question: &Question, config: &Config) -> anyhow::Result<Explanation> {
    let pods = recorded(config)?;
    let place = place_of(&pods)?;
    let network = match &place {
        Place::Here | Place::NotFound => String::new(),
        Place::Pinned { name, .. } => format!("ip netns exec {name}"),
    };
    let question = Question {
        vantage: Vantage {
            network,
            root: String::new(),
        },
        ..question.clone()
    };
    let pin_dir = config.proxy.pin_dir.clone();
    let mut notes = Vec::new();
    if config.proxy.datapath == Datapath::Ebpf && !pin_dir.exists() {
        notes.push(format!(
            "the socket hook's maps are not looked at: there is no {} here; it may be in the node's own mount namespace",
            pin_dir.display()
        ));
    }
    let known = WithoutAgent {
        pods,
        pin_dir,
        doubt: matches!(place, Place::NotFound).then(|| {
            "the devices of the node's pods are in no network namespace that is known here: run it in the node's"
                .to_owned()
        }),
        notes,
    };
    let explain = || explain::without_agent(&question, &known);
    Ok(match &place {
        Place::Here | Place::NotFound => explain(),
        Place::Pinned { namespace, .. } => namespace.run(explain)?,
    }?)
}

/// This node's pods, as its agent has written them down.
fn recorded(config: &Config) -> anyhow::Result<Vec<PodHere>> {
    let directory = &config.state_dir;
    let recorded = overlay::pods::recorded(directory)
        .with_context(|| format!("read the pods in {}", directory.display()))?;
    let pods = recorded.iter().map(|pod| PodHere::of(pod, &config.node_name));
    Ok(pods.collect())
}

/// Where the devices of a node's pods are.
enum Place {
    /// In this network namespace, or nowhere since there are none.
    Here,
    /// In one that has a name.
    Pinned { name: String, namespace: Namespace },
    /// In none that is known here.
    NotFound,
}

fn place_of(pods: &[PodHere]) -> anyhow::Result<Place> {
    let has_devices = |kernel: &mut Netlink| {
        let mut found = pods.iter().filter_map(|pod| kernel.link_named(&pod.device).ok());
        found.any(|link| link.is_some())
    };
    if pods.is_empty() || has_devices(&mut Netlink::open()?) {
        return Ok(Place::Here);
    }
    for name in Namespace::pinned()? {
        let opened = Namespace::named(&name);
        let looked = opened.and_then(|namespace| {
            let mut kernel = Netlink::open_in(&namespace)?;
            Ok(has_devices(&mut kernel).then_some(namespace))
        });
        match looked {
            Ok(Some(namespace)) => return Ok(Place::Pinned { name, namespace }),
            Ok(None) => {}
            Err(error) => tracing::debug!(name, error = with_causes(&error), "no namespace to look into"),
        }
    }
    Ok(Place::NotFound)
}
