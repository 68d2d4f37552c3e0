//! Which nodes are meant, and which pod is the agent of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use model::NodeName;
use serde_json::Value;

use crate::ends::nearest::{LISTED, Suggested, nearest_nodes};

/// The agent's container, as `node/deploy` calls it.
pub const CONTAINER: &str = "agent";

/// An agent's pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The pod.
    pub pod: String,
    /// Why no command can run in it.
    pub stopped: Option<String>,
}

/// A node, and the pod of its agent or why no command can run in one.
pub type Chosen = (String, Result<String, String>);

/// Which nodes were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'w> {
    /// All of the cluster.
    All,
    /// These.
    Named {
        /// Their names.
        names: &'w [String],
        /// Which of these somebody typed: one that is none of a node is a mistake then. Of others the cluster said it.
        typed: &'w [String],
    },
}

/// A name that is no node's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no node {name}{}; there are {}", Suggested(.nearest), Listed(.all))]
pub struct Unknown {
    name: String,
    nearest: Vec<String>,
    all: Vec<String>,
}

/// Names, or as many as anybody reads.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.0.get(..LISTED).unwrap_or(self.0);
        write!(f, "{}", told.join(", "))?;
        match self.0.len() - told.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The agents by their nodes, from the list of their pods: of several on a node the one that serves, the newest of these.
#[must_use]
pub fn agents(listed: &Value) -> BTreeMap<String, Agent> {
    let mut agents: BTreeMap<String, ((bool, bool, String), Agent)> = BTreeMap::new();
    for pod in listed["items"].as_array().into_iter().flatten() {
        let (Some(node), Some(name)) = (pod["spec"]["nodeName"].as_str(), pod["metadata"]["name"].as_str())
        else {
            continue;
        };
        let agent = Agent {
            pod: name.to_owned(),
            stopped: stopped(pod),
        };
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        let stays = pod["metadata"]["deletionTimestamp"].is_null();
        let rank = (agent.stopped.is_none(), stays, created.to_owned());
        match agents.get(node) {
            Some((other, _)) if *other >= rank => {}
            _ => {
                agents.insert(node.to_owned(), (rank, agent));
            }
        }
    }
    agents
        .into_iter()
        .map(|(node, (_, agent))| (node, agent))
        .collect()
}

/// Why no command can run in an agent's pod.
fn stopped(pod: &Value) -> Option<String> {
    let mut statuses = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    let state = statuses.find(|status| status["name"] == CONTAINER);
    let state = state.map_or(&Value::Null, |status| &status["state"]);
    if state["running"].is_object() {
        return None;
    }
    let waiting = &state["waiting"];
    let reason = match (
        waiting["reason"].as_str(),
        state["terminated"]["exitCode"].as_i64(),
    ) {
        (Some(reason), _) => match waiting["message"].as_str() {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        },
        (None, Some(code)) => format!("it ended with exit code {code}"),
        (None, None) => pod["status"]["phase"].as_str().unwrap_or("Unknown").to_owned(),
    };
    Some(reason)
}

/// The names in a list of nodes that run Linux: agents are for no other.
#[must_use]
pub fn nodes(listed: &Value) -> BTreeSet<String> {
    let items = listed["items"].as_array().into_iter().flatten();
    let is_linux = |node: &&Value| {
        let system = node["metadata"]["labels"]["kubernetes.io/os"].as_str();
        system.is_none_or(|system| system == "linux")
    };
    items
        .filter(is_linux)
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// The node of pods with an address, in a list of pods.
#[must_use]
pub fn of_pods(listed: &Value, address: IpAddr) -> Option<String> {
    let mut items = listed["items"].as_array().into_iter().flatten();
    let has_it = |pod: &&Value| {
        let status = &pod["status"];
        let all = status["podIPs"].as_array().into_iter().flatten();
        let mut own = all.map(|own| &own["ip"]).chain([&status["podIP"]]);
        own.any(|own| own.as_str().and_then(|own| own.parse().ok()) == Some(address))
    };
    Some(items.find(has_it)?["spec"]["nodeName"].as_str()?.to_owned())
}

/// The nodes of endpoints, in a list of `EndpointSlice`s, in the order of their names.
#[must_use]
pub fn of_endpoints(listed: &Value) -> Vec<String> {
    let slices = listed["items"].as_array().into_iter().flatten();
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let nodes = endpoints.filter_map(|endpoint| endpoint["nodeName"].as_str());
    let nodes: BTreeSet<&str> = nodes.collect();
    nodes.into_iter().map(str::to_owned).collect()
}

/// The nodes that are wanted, each once: in the order in which they are named, else in that of their names. `nodes`: all
/// of the cluster, where they are known.
///
/// # Errors
/// When a name that somebody typed is none of a node.
pub fn choose(
    wanted: Wanted<'_>,
    agents: &BTreeMap<String, Agent>,
    nodes: Option<&BTreeSet<String>>,
) -> Result<Vec<Chosen>, Unknown> {
    let all: BTreeSet<&String> = agents.keys().chain(nodes.into_iter().flatten()).collect();
    let mut names: Vec<&str> = Vec::new();
    let mut mistakable: BTreeSet<&str> = BTreeSet::new();
    match wanted {
        Wanted::All => names.extend(all.iter().map(|name| name.as_str())),
        Wanted::Named { names: wanted, typed } => {
            for name in wanted.iter().map(|name| bare(name)) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            mistakable.extend(typed.iter().map(|name| bare(name)));
        }
    }
    names
        .into_iter()
        .map(|name| match agents.get(name) {
            Some(Agent { pod, stopped: None }) => Ok((name.to_owned(), Ok(pod.clone()))),
            Some(Agent {
                pod,
                stopped: Some(why),
            }) => Ok((
                name.to_owned(),
                Err(format!("its agent, pod {pod}, does not run: {why}")),
            )),
            None if mistakable.contains(name) && !all.contains(&name.to_owned()) => Err(unknown(name, &all)),
            None => Ok((name.to_owned(), Err("no agent is on it".to_owned()))),
        })
        .collect()
}

/// A node's name, as it may be typed.
pub fn bare(name: &str) -> &str {
    name.strip_prefix("node/").unwrap_or(name)
}

fn unknown(name: &str, all: &BTreeSet<&String>) -> Unknown {
    let nodes: Vec<NodeName> = all.iter().map(|node| node.as_str().into()).collect();
    Unknown {
        name: name.to_owned(),
        nearest: nearest_nodes(name, nodes.iter()),
        all: all.iter().map(|node| (*node).clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_endpoints_and_addresses_are_follows_from_lists() {
        let slices = json!({ "items": [
            { "endpoints": [{ "nodeName": "node-2" }, { "nodeName": "node-1" }, {}] },
            { "endpoints": [{ "nodeName": "node-2" }] },
            {},
        ] });
        assert_eq!(of_endpoints(&slices), ["node-1", "node-2"]);
        let pod = |node: &str, address: &str| json!({ "spec": { "nodeName": node }, "status": { "podIP": address } });
        let mut second = pod("node-2", "fd00::2");
        second["status"]["podIPs"] = json!([{ "ip": "fd00::2" }, { "ip": "10.244.2.2" }]);
        let pods = json!({ "items": [pod("node-1", "10.244.1.2"), second, {}] });
        for (address, node) in [
            ("10.244.2.2", Some("node-2")),
            ("10.244.1.2", Some("node-1")),
            ("fd00:0::2", Some("node-2")),
            ("10.0.0.1", None),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(of_pods(&pods, address).as_deref(), node);
        }
    }

    fn pod(name: &str, node: &str, state: Value) -> Value {
        json!({
            "metadata": { "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": node },
            "status": { "phase": "Running", "containerStatuses": [
                { "name": "beside", "state": { "running": {} } },
                { "name": "agent", "state": state },
            ] },
        })
    }

    fn runs() -> Value {
        json!({ "running": { "startedAt": "2026-01-01T00:00:01Z" } })
    }

    #[test]
    fn of_several_pods_on_a_node_the_one_that_serves_is_asked() {
        let mut ending = pod("ending", "a", runs());
        ending["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
        let mut newer = pod("newer", "b", runs());
        newer["metadata"]["creationTimestamp"] = "2026-01-03T00:00:00Z".into();
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } });
        let without_status = json!({
            "metadata": { "name": "new" }, "spec": { "nodeName": "e" }, "status": { "phase": "Pending" },
        });
        let unscheduled = json!({ "metadata": { "name": "nowhere" }, "spec": {}, "status": {} });
        let items = [
            ending,
            pod(
                "next",
                "a",
                json!({ "waiting": { "reason": "ContainerCreating" } }),
            ),
            newer,
            pod("older", "b", runs()),
            pod("fails", "c", waiting),
            pod("ended", "d", json!({ "terminated": { "exitCode": 2 } })),
            without_status,
            unscheduled,
        ];
        let expected = [
            ("a", "ending", None),
            ("b", "newer", None),
            ("c", "fails", Some("CrashLoopBackOff: back-off 10s")),
            ("d", "ended", Some("it ended with exit code 2")),
            ("e", "new", Some("Pending")),
        ];
        let expected: BTreeMap<String, Agent> = expected
            .into_iter()
            .map(|(node, pod, stopped)| {
                let agent = Agent {
                    pod: pod.to_owned(),
                    stopped: stopped.map(str::to_owned),
                };
                (node.to_owned(), agent)
            })
            .collect();
        assert_eq!(agents(&json!({ "items": items })), expected);
        let reversed: Vec<Value> = items.into_iter().rev().collect();
        assert_eq!(agents(&json!({ "items": reversed })), expected);
        assert_eq!(agents(&json!({ "items": null })), BTreeMap::new());
    }

    #[test]
    fn nodes_that_run_something_else_have_no_agent_to_miss() {
        let node = |name: &str, system: &str| json!({ "metadata": { "name": name, "labels": { "kubernetes.io/os": system } } });
        let listed =
            json!({ "items": [node("l", "linux"), node("w", "windows"), { "metadata": { "name": "n" } }] });
        assert_eq!(nodes(&listed), ["l", "n"].map(str::to_owned).into());
    }

    fn told(wanted: Wanted<'_>, nodes: Option<&[&str]>) -> Result<Vec<String>, String> {
        let listed = [
            pod("agent-a", "node-1", runs()),
            pod("agent-b", "node-2", json!({ "terminated": { "exitCode": 1 } })),
        ];
        let nodes = nodes.map(|nodes| nodes.iter().map(|node| (*node).to_owned()).collect());
        let chosen = choose(wanted, &agents(&json!({ "items": listed })), nodes.as_ref());
        let text = |(node, agent): Chosen| match agent {
            Ok(pod) => format!("{node}: {pod}"),
            Err(why) => format!("{node}: not: {why}"),
        };
        chosen
            .map(|chosen| chosen.into_iter().map(text).collect())
            .map_err(|error| error.to_string())
    }

    fn named(names: &[String]) -> Wanted<'_> {
        Wanted::Named { names, typed: names }
    }

    #[test]
    fn of_a_node_that_nobody_typed_it_is_known_that_there_is_one() {
        let names = ["node-1", "windows-1"].map(str::to_owned);
        let expected = ["node-1: agent-a", "windows-1: not: no agent is on it"].map(str::to_owned);
        for nodes in [None, Some(&["node-1"][..])] {
            let found = Wanted::Named {
                names: &names,
                typed: &names[..1],
            };
            assert_eq!(told(found, nodes), Ok(expected.to_vec()));
        }
    }

    #[test]
    fn all_are_those_that_have_an_agent_and_those_that_should() {
        let first = "node-1: agent-a".to_owned();
        let second =
            "node-2: not: its agent, pod agent-b, does not run: it ended with exit code 1".to_owned();
        let third = "node-3: not: no agent is on it".to_owned();
        let nodes: &[&str] = &["node-1", "node-2", "node-3"];
        assert_eq!(
            told(Wanted::All, Some(nodes)),
            Ok(vec![first.clone(), second.clone(), third])
        );
        assert_eq!(told(Wanted::All, None), Ok(vec![first, second]));
    }

    #[test]
    fn names_are_taken_in_their_order_and_once() {
        let names = ["node/node-3", "node-1", "node-3"].map(str::to_owned);
        assert_eq!(
            told(named(&names), Some(&["node-1", "node-3"])),
            Ok(vec![
                "node-3: not: no agent is on it".to_owned(),
                "node-1: agent-a".to_owned()
            ])
        );
    }

    #[test]
    fn a_name_of_no_node_is_told_with_those_that_are_near_and_those_that_there_are() {
        let of = |name: &str, nodes: Option<&[&str]>| told(named(&[name.to_owned()]), nodes);
        assert_eq!(
            of("nod-1", None),
            Err(
                "no node nod-1 (did you mean node/node-1 or node/node-2?); there are node-1, node-2"
                    .to_owned()
            )
        );
        assert_eq!(
            of("elsewhere", Some(&["node-3"])),
            Err("no node elsewhere; there are node-1, node-2, node-3".to_owned())
        );
        let many: Vec<String> = (10..30).map(|number| format!("n{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(
            of("x-y-z", Some(&many)),
            Err("no node x-y-z; there are n10, n11, n12, n13, n14, n15, n16, n17 and 14 more".to_owned())
        );
    }
}
