//! The CNI configuration that flannel installs: `cni-conf.json`, a chain of plugins. Ours is one plugin alone.

use serde_json::Value;

use super::draft::Draft;
use super::fields::{Field, Fields, When, differs, not_needed, read};
use super::told::Verdict;
use super::types::Type;

const OF: &str = "cni";

const NO_BRIDGE: &str = "pods stand on no bridge: each has a route to its device";

/// The chain itself.
const CHAIN: &[Field<()>] = &[
    not_needed("name", "10-causeway.conflist says causeway"),
    not_needed("cniVersion", "10-causeway.conflist says 1.0.0"),
    not_needed("cniVersions", "10-causeway.conflist says 1.0.0"),
    not_needed("disableCheck", "the plugin knows CHECK"),
    not_needed("disableGC", "the plugin knows GC"),
];

/// The plugin `flannel`, whose delegate is `bridge`.
const FLANNEL: &[Field<()>] = &[
    read("type", When::Set, |(), _| {
        Verdict::as_it_is("causeway-cni, in 10-causeway.conflist")
    }),
    not_needed("name", "10-causeway.conflist says causeway"),
    not_needed("cniVersion", "10-causeway.conflist says 1.0.0"),
    read("subnetFile", When::Set, |(), value| {
        Verdict::taken("network.subnetEnv", value.clone())
    }),
    not_needed("dataDir", "what is remembered of pods is in stateDir"),
    read("delegate.type", When::Set, delegate),
    not_needed("delegate.bridge", NO_BRIDGE),
    not_needed("delegate.hairpinMode", NO_BRIDGE),
    not_needed("delegate.isDefaultGateway", "the default route is always there"),
    not_needed("delegate.isGateway", NO_BRIDGE),
    not_needed("delegate.forceAddress", NO_BRIDGE),
    not_needed("delegate.promiscMode", NO_BRIDGE),
    not_needed(
        "delegate.ipMasq",
        "the node masquerades what leaves the pod network",
    ),
    differs("delegate.mtu", "pods have the pod network's MTU"),
    not_needed("delegate.ipam", "addresses come from the node's subnet"),
];

fn delegate((): &(), value: &Value) -> Verdict {
    match value.as_str() {
        Some("bridge" | "ptp") => Verdict::not_needed(NO_BRIDGE),
        _ => Verdict::not_supported("pods are wired by a pair of devices with a route"),
    }
}

/// Host ports.
const PORTMAP: &[Field<()>] = &[
    read("type", When::Set, |(), _| {
        Verdict::as_it_is("causeway-cni serves host ports")
    }),
    not_needed("capabilities", "10-causeway.conflist has them"),
    not_needed(
        "snat",
        "host ports are reached from the pod itself, and from 127.0.0.1",
    ),
    not_needed("backend", "rules stand in an nftables table of its own"),
    differs(
        "externalSetMarkChain",
        "rules stand in an nftables table of its own",
    ),
    differs("markMasqBit", "is bit 14, 0x4000"),
    read("conditionsV4", When::Set, |(), _| {
        Verdict::not_supported("host ports have no conditions")
    }),
    read("conditionsV6", When::Set, |(), _| {
        Verdict::not_supported("host ports have no conditions")
    }),
];

/// Limits of bandwidth. Those of all pods alike are not known.
const BANDWIDTH: &[Field<()>] = &[
    read("type", When::Set, |(), _| {
        Verdict::as_it_is("causeway-cni serves pods' own limits")
    }),
    not_needed("capabilities", "10-causeway.conflist has them"),
    read("ingressRate", When::Set, same_for_all),
    read("ingressBurst", When::Set, same_for_all),
    read("egressRate", When::Set, same_for_all),
    read("egressBurst", When::Set, same_for_all),
];

fn same_for_all((): &(), _: &Value) -> Verdict {
    Verdict::not_supported("only pods' own limits are served: annotate the pods")
}

/// Reads the file: a chain, or one plugin alone.
pub fn translate(document: &Value, draft: &mut Draft) {
    let Some(chain) = document.as_object() else { return };
    let Some(Value::Array(plugins)) = chain.get("plugins") else {
        return plugin(document, "", draft);
    };
    let mut head = chain.clone();
    head.remove("plugins");
    fields(CHAIN).read(&(), &Value::Object(head), "", draft);
    for (index, one) in plugins.iter().enumerate() {
        plugin(one, &format!("plugins[{index}]."), draft);
    }
}

fn plugin(document: &Value, at: &str, draft: &mut Draft) {
    let kind = &document["type"];
    let table = match kind.as_str() {
        Some("flannel") => FLANNEL,
        Some("portmap") => PORTMAP,
        Some("bandwidth") => BANDWIDTH,
        _ => {
            let verdict =
                Verdict::not_supported("10-causeway.conflist has causeway-cni alone: chain it there");
            return draft.add(OF, format!("{at}type"), kind, &verdict);
        }
    };
    fields(table).read(&(), document, at, draft);
}

const fn fields(table: &'static [Field<()>]) -> Fields<()> {
    Fields {
        of: OF,
        any_case: false,
        type_of: |_| Type::Any,
        table,
    }
}
