//! `causeway node cleanup`: what was taken off the node, told in words or JSON.

use std::fmt::Write as _;

use model::{NodeName, Removal};

use crate::cli::Output;
use crate::logs::printable;

/// What was done, in the form that was asked for.
#[must_use]
pub fn render(node: &NodeName, removal: &Removal, output: Output) -> String {
    match output {
        Output::Text => text(node, removal),
        Output::Json => {
            let Removal {
                removed,
                left,
                failed,
            } = removal;
            let json = serde_json::json!({"node": node, "removed": removed, "left": left, "failed": failed});
            format!("{json:#}\n")
        }
    }
}

fn text(node: &NodeName, removal: &Removal) -> String {
    let mut text = String::new();
    for (kind, count) in &removal.removed {
        let _infallible = writeln!(text, "removed  {kind}: {count}");
    }
    for left in &removal.left {
        let _infallible = writeln!(text, "left     {}", printable(left));
    }
    for failed in &removal.failed {
        let _infallible = writeln!(text, "FAILED   {}", printable(failed));
    }
    let _infallible = match (removal.failed.len(), removal.removed.is_empty()) {
        (0, true) => writeln!(text, "{node}: nothing to remove"),
        (0, false) => writeln!(text, "{node}: removed"),
        (failed, _) => writeln!(text, "{node}: {failed} failed, run it again"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_kind_and_a_verdict_at_the_end() {
        let mut removal = Removal::default();
        let node = NodeName::from("node-1");
        let text = |removal: &Removal| render(&node, removal, Output::Text);
        assert_eq!(text(&removal), "node-1: nothing to remove\n");
        removal.removed = [("nftables tables", 4), ("leases", 1)].into();
        removal.left.push("kernel settings".to_owned());
        let told = "removed  leases: 1\nremoved  nftables tables: 4\nleft     kernel settings\n";
        assert_eq!(text(&removal), format!("{told}node-1: removed\n"));
        removal
            .failed
            .push("sockets: remove /run/cni.sock\u{1b}".to_owned());
        let failed = "FAILED   sockets: remove /run/cni.sock\u{fffd}\nnode-1: 1 failed, run it again\n";
        assert_eq!(text(&removal), format!("{told}{failed}"));
        let json: serde_json::Value =
            serde_json::from_str(&render(&node, &removal, Output::Json)).expect("valid");
        let expected = serde_json::json!({
            "node": "node-1",
            "removed": {"leases": 1, "nftables tables": 4},
            "left": ["kernel settings"],
            "failed": ["sockets: remove /run/cni.sock\u{1b}"],
        });
        assert_eq!(json, expected);
    }
}
