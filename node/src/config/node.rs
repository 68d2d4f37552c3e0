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
    prefix.is_none_or(is_dns_subdomain) && is_made_of(name, 63, &['-', '_', '.'])
}

/// What names a Node, among others (Kubernetes' `IsDNS1123Subdomain`): at most 253 bytes, labels without upper case.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    let is_label =
        |label: &str| is_made_of(label, 253, &['-']) && !label.contains(|c: char| c.is_ascii_uppercase());
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Letters and digits at both ends, with others between them.
fn is_made_of(text: &str, longest: usize, between: &[char]) -> bool {
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= longest
        && is_edge(text.chars().next())
        && is_edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || between.contains(&c))
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

    #[test]
    fn a_nodes_name_is_a_dns_subdomain() {
        let rows = [
            ("node-1", true),
            ("7", true),
            ("ip-10-0-0-1.eu-west-1.compute.internal", true),
            ("", false),
            ("Bad Name!", false),
            ("Node-1", false),
            ("node_1", false),
            ("-node", false),
            ("node-", false),
            ("node..1", false),
            ("node.", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_dns_subdomain(name), expected, "{name:?}");
        }
        assert!(is_dns_subdomain(&"a".repeat(253)) && !is_dns_subdomain(&"a".repeat(254)));
    }
}
