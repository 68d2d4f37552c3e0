//! The agent's log, while the API holds names that mean to write it (S28).

use serde_json::{Value, json};
use tests::node::Node;
use tests::process::Process;

use crate::DEADLINE;

/// A line of its own in text, another in JSON, and commands of a terminal: clear the screen, red.
const EVIL: &str =
    "web\n2026-01-01T00:00:00.000000Z ERROR forged: all is lost\n{\"level\":\"ERROR\"}\r\u{1b}[2J\u{9b}31m";

/// Something that the agent has to tell of the object.
const TOLD: &str = "part of an object is not used";

fn start(label: &str, logging: Value) -> anyhow::Result<(Node, Process)> {
    let node = Node::new(label)?;
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": EVIL},
        "spec": {"clusterIPs": [EVIL], "ports": [{"port": 80}]},
    }));
    let config = node.configure(json!({"logging": logging}));
    let mut agent = node.agent(&config);
    agent.await_line(TOLD, DEADLINE);
    agent.terminate()?;
    agent.await_end(DEADLINE);
    Ok((node, agent))
}

#[test]
fn no_name_begins_a_line_of_the_log_or_speaks_to_the_terminal() -> anyhow::Result<()> {
    if !tests::privileged("no name begins a line of the log") {
        return Ok(());
    }
    let (_node, agent) = start("log-text", json!({"level": "debug"}))?;
    let log = agent.output();
    assert!(log.contains("forged"), "{log}");
    for line in log.lines() {
        assert!(!line.contains(char::is_control), "{line:?}");
        // `2026-11-29T23:45:22.123456Z  INFO causeway::agent: …`
        let mut words = line.split_whitespace();
        let (time, level, target) = (words.next(), words.next(), words.next());
        assert!(time.is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(
            level.is_some_and(|level| level.chars().all(|c| c.is_ascii_uppercase())),
            "{line}"
        );
        assert!(
            target.is_some_and(|target| target.ends_with(':') && target != "forged:"),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn each_line_of_a_log_in_json_is_an_event_with_its_fields() -> anyhow::Result<()> {
    if !tests::privileged("each line of a log in JSON is an event") {
        return Ok(());
    }
    let (_node, agent) = start("log-json", json!({"format": "json", "level": "debug"}))?;
    let log = agent.output();
    let events = log.lines().map(|line| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(event[field].is_string(), "no {field} in {line}");
        }
        event
    });
    let events: Vec<Value> = events.collect();
    let told = |message: &str| events.iter().find(|event| event["message"] == message);
    let started = told("agent starts").expect("it did");
    assert_eq!(
        (&started["node"], &started["level"]),
        (&json!("node-1"), &json!("INFO"))
    );
    let fault = told(TOLD).expect("it is awaited");
    let text = fault["fault"].as_str().unwrap_or_default();
    assert!(text.contains("forged: all is lost"), "{fault}");
    Ok(())
}
