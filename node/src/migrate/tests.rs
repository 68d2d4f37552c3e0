//! Settings and what becomes of them, row by row; each configuration that comes of a row is one that the agent takes.

mod files;
mod flannel;
mod kube_proxy;

use serde_json::{Map, Value};

use super::kinds::Kind;
use super::source::recognized;
use super::{Migration, migration};

/// Of texts, whose kinds are seen or given.
#[track_caller]
fn migrated(texts: &[&str], from: Option<Kind>) -> Migration {
    let sources = texts.iter().flat_map(|text| {
        let sources = recognized("file", text, from).expect("it is known");
        assert!(!sources.is_empty(), "nothing is known in\n{text}");
        sources
    });
    migration(&sources.collect::<Vec<_>>())
}

/// A setting and what becomes of it: `taken iptables.masqueradeAll`.
fn outcomes(migration: &Migration) -> Vec<String> {
    let told = migration.told.iter();
    told.map(|told| format!("{} {}", told.outcome, told.path))
        .collect()
}

/// Our keys and their values: `proxy.masqueradeAll=true`.
fn keys(migration: &Migration) -> Vec<String> {
    let mut keys = Vec::new();
    flatten("", migration.config.as_ref().unwrap_or(&Map::new()), &mut keys);
    keys
}

fn flatten(prefix: &str, section: &Map<String, Value>, keys: &mut Vec<String>) {
    for (name, value) in section {
        let key = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if key != "network.config" => flatten(&format!("{key}."), inner, keys),
            value => keys.push(format!("{key}={value}")),
        }
    }
}

/// What is not in the other.
fn beyond(these: Vec<String>, others: &[String]) -> String {
    let new: Vec<String> = these.into_iter().filter(|one| !others.contains(one)).collect();
    new.join("; ")
}

/// The words about one setting.
#[track_caller]
fn words(migration: &Migration, path: &str) -> String {
    let told = migration.told.iter().find(|told| told.path == path);
    told.unwrap_or_else(|| panic!("{path} is not told: {:#?}", migration.told))
        .words
        .clone()
}
