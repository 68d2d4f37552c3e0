//! What somebody may have meant by a name that names nothing.

use std::collections::BTreeSet;
use std::fmt;

use model::{NodeName, ObjectName};

use super::NAMESPACE;

/// How many candidates and suggestions are listed.
pub const LISTED: usize = 8;

/// Suggestions, to stand behind what was not found. Displays as nothing where there are none.
#[derive(Clone, Copy, Debug)]
pub struct Suggested<'a>(pub &'a [String]);

impl fmt::Display for Suggested<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            nearest => write!(f, " (did you mean {}?)", nearest.join(" or ")),
        }
    }
}

/// An object in the form that is typed.
#[must_use]
pub fn typed(kind: &str, object: &ObjectName) -> String {
    match &*object.namespace {
        NAMESPACE => format!("{kind}/{}", object.name),
        _ => format!("{kind}/{object}"),
    }
}

/// Those objects whose names differ the least, in the form that is typed: others' namespaces where its own has none.
#[must_use]
pub fn nearest_objects<'a>(
    wanted: &ObjectName,
    all: impl Iterator<Item = &'a ObjectName>,
    kind: &str,
) -> Vec<String> {
    let near: BTreeSet<_> = all
        .filter_map(|found| {
            let spaces = edits(&wanted.namespace, &found.namespace);
            Some((spaces > 0, distance(&wanted.name, &found.name)?, spaces, found))
        })
        .collect();
    let are_elsewhere = near.first().is_some_and(|(is_elsewhere, ..)| *is_elsewhere);
    near.into_iter()
        .filter(|(is_elsewhere, ..)| *is_elsewhere == are_elsewhere)
        .take(LISTED)
        .map(|(.., found)| typed(kind, found))
        .collect()
}

/// Those nodes whose names differ the least, in the form that is typed.
#[must_use]
pub fn nearest_nodes<'a>(wanted: &str, all: impl Iterator<Item = &'a NodeName>) -> Vec<String> {
    let near: BTreeSet<_> = all
        .filter_map(|found| Some((distance(wanted, &found.0)?, found)))
        .collect();
    near.into_iter()
        .take(LISTED)
        .map(|(_, found)| format!("node/{found}"))
        .collect()
}

/// In how much two names differ; none where nobody takes one for the other.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let distance = edits(wanted, name);
    let is_near = distance <= 1 + wanted.len() / 3;
    (is_near || name.contains(wanted) || wanted.contains(name)).then_some(distance)
}

/// How many characters must be put in, left out or changed to make one text the other (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let change = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = change.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
