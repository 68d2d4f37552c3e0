//! `causeway explain`: asks the agent of a node, and the kernel alone where none answers.

pub mod vantage;

use std::path::{Path, PathBuf};

use anyhow::Context;
use model::with_causes;
use netlink::{Kernel, Namespace, Netlink};

use crate::ask::{Agent, AskError};
use crate::cli::ExplainArgs;
use crate::config::{Config, Datapath};
use crate::explain::witness::Live;
use crate::explain::{self, Answer, Explanation, PodHere, Question, Vantage, WithoutAgent};
use crate::logs::tell;

/// What becomes of the packet.
///
/// # Errors
/// When the question is not understood, or there is no agent to be meant.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let config = args.agent.load()?;
    let question = args.ends.question()?;
    match crate::block_on(ask(&config.state_dir, &question))? {
        Ok(Answer::Explained(explanation)) => Ok(*explanation),
        Ok(Answer::NotUnderstood(reason)) => anyhow::bail!(reason),
        Err(error @ (AskError::NotRoot(_) | AskError::Answer { .. })) => Err(error.into()),
        Err(error) => {
            tell(format_args!("warning: {error}"));
            Outlook::without_agent(&config, &error)?.explain(&question)
        }
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

/// How a node is looked at whose agent does not tell anything.
pub struct Outlook {
    /// From where its kernel is looked at.
    pub vantage: Vantage,
    /// What is known of it beside.
    pub known: WithoutAgent,
    /// Its network namespace, where that is another one than the caller's.
    pub namespace: Option<Namespace>,
}

impl From<WithoutAgent> for Outlook {
    fn from(known: WithoutAgent) -> Self {
        Self {
            vantage: Vantage::default(),
            known,
            namespace: None,
        }
    }
}

impl Outlook {
    /// By what became of a question to its agent.
    ///
    /// # Errors
    /// When the agent's book of pods cannot be read, or the node's network namespace cannot be opened.
    pub fn without_agent(config: &Config, error: &AskError) -> anyhow::Result<Self> {
        match error {
            AskError::Silent { pid, .. } => Self::of_silent(config, *pid),
            AskError::Stopped { pid } => Self::of_silent(config, Some(*pid)),
            AskError::NotRoot(_) | AskError::Connect { .. } | AskError::Answer { .. } => {
                Self::of_namespace(config)
            }
        }
    }

    /// Where an agent is that does not speak.
    fn of_silent(config: &Config, pid: Option<i32>) -> anyhow::Result<Self> {
        let seen = pid.map(vantage::on_process).unwrap_or_default();
        let known = WithoutAgent {
            pods: recorded(config)?,
            pin_dir: PathBuf::from(format!("{}{}", seen.root, config.proxy.pin_dir.display())),
            doubt: Some(
                "the agent does not answer: what the objects say is not known, and only the kernel was asked"
                    .to_owned(),
            ),
            notes: Vec::new(),
        };
        let elsewhere = pid.filter(|_| !seen.network.is_empty());
        let namespace = elsewhere.map(|pid| Namespace::open(format!("/proc/{pid}/ns/net")));
        Ok(Self {
            // The pins' path has the root already.
            vantage: Vantage {
                root: String::new(),
                ..seen
            },
            known,
            namespace: namespace.transpose()?,
        })
    }

    /// Where no agent runs: in the namespace where its pods' devices are.
    fn of_namespace(config: &Config) -> anyhow::Result<Self> {
        let pods = recorded(config)?;
        let place = place_of(&pods)?;
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
        let (network, namespace) = match place {
            Place::Here | Place::NotFound => (String::new(), None),
            Place::Pinned { name, namespace } => (trace::namespaces::entering_pin(&name), Some(namespace)),
        };
        Ok(Self {
            vantage: Vantage {
                network,
                root: String::new(),
            },
            known,
            namespace,
        })
    }

    fn explain(&self, question: &Question) -> anyhow::Result<Explanation> {
        let question = Question {
            vantage: self.vantage.clone(),
            ..question.clone()
        };
        let explain = || explain::without_agent(&question, &self.known, &mut Live::default());
        Ok(match &self.namespace {
            Some(namespace) => namespace.run(explain)?,
            None => explain(),
        }?)
    }
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
