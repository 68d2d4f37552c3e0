//! The section `node`.

use serde::{Deserialize, Serialize};

/// What the agent does to this node's own object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The key of a taint that the agent takes off its Node once everything that it serves was in the kernel for the
    /// first time. The Node is registered with it (`kubelet --register-with-taints`), so that pods come later; the
    /// agent never sets it. Taking it off needs the right to `patch` Nodes. `null`: no taint is taken off.
    /// Default: `causeway.dev/agent-not-ready`.
    #[serde(default = "default_startup_taint")]
    pub startup_taint: Option<String>,
}

fn default_startup_taint() -> Option<String> {
    Some("causeway.dev/agent-not-ready".to_owned())
}

impl Default for Node {
    fn default() -> Self {
        Self {
            startup_taint: default_startup_taint(),
        }
    }
}

impl Node {
    pub(super) fn problems(&self) -> Vec<String> {
        let wrong = self.startup_taint.iter().filter(|key| !is_qualified_name(key));
        wrong
            .map(|key| format!("node.startupTaint: {key:?} is not a key like causeway.dev/agent-not-ready"))
            .collect()
    }
}

/// A name of at most 63 bytes, behind a DNS name and a slash or alone (Kubernetes' `IsQualifiedName`).
fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_made_of = |text: &str, longest: usize, between: &[char]| {
        let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= longest
            && is_edge(text.chars().next())
            && is_edge(text.chars().last())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || between.contains(&c))
    };
    let is_dns_name = |prefix: &str| {
        is_made_of(prefix, 253, &['-', '.']) && !prefix.contains(|c: char| c.is_ascii_uppercase())
    };
    prefix.is_none_or(is_dns_name) && is_made_of(name, 63, &['-', '_', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taints_key_is_a_qualified_name() {
        let rows = [
            ("causeway.dev/agent-not-ready", true),
            ("not_ready.v1", true),
            ("", false),
            ("/not-ready", false),
            ("causeway.dev/", false),
            ("causeway.dev/not/ready", false),
            ("Causeway.dev/not-ready", false),
            ("not ready", false),
            ("-not-ready", false),
        ];
        for (key, expected) in rows {
            assert_eq!(is_qualified_name(key), expected, "{key:?}");
        }
        assert!(is_qualified_name(&"a".repeat(63)) && !is_qualified_name(&"a".repeat(64)));
    }
}
