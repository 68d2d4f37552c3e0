//! flannel's `net-conf.json` (`flannel`, `Documentation/configuration.md`, `Documentation/backends.md`). Its names are
//! read in any case of letters, as flannel does.

use overlay::flannel::{FormatError, NetworkConfig};
use serde_json::{Value, json};

use super::draft::Draft;
use super::fields::{Field, Fields, When, not_needed, read};
use super::flannel_args;
use super::told::Verdict;
use super::types::Type;

const OF: &str = "flannel";

const FIELDS: Fields<Flannel> = Fields {
    of: OF,
    any_case: true,
    type_of,
    table: TABLE,
};

/// What the rules know beside the file.
struct Flannel {
    leases_in_kubernetes: bool,
}

const TABLE: &[Field<Flannel>] = &[
    read("Network", When::Set, in_config),
    read("IPv6Network", When::Set, in_config),
    read("EnableIPv4", When::Given, in_config),
    read("EnableIPv6", When::Set, in_config),
    not_needed(
        "EnableNFTables",
        "what is masqueraded stands in an nftables table of its own",
    ),
    read("SubnetLen", When::Set, subnets),
    read("SubnetMin", When::Set, subnets),
    read("SubnetMax", When::Set, subnets),
    read("IPv6SubnetLen", When::Set, subnets),
    read("IPv6SubnetMin", When::Set, subnets),
    read("IPv6SubnetMax", When::Set, subnets),
    read("Backend.Type", When::Always, backend),
    read("Backend.VNI", When::Set, |_, value| number("VNI", value)),
    read("Backend.Port", When::Set, |_, value| number("Port", value)),
    read("Backend.MTU", When::Set, |_, value| number("MTU", value)),
    read("Backend.GBP", When::Set, in_config),
    read("Backend.DirectRouting", When::Set, in_config),
    read("Backend.Learning", When::Set, learning),
    read("Backend.MacPrefix", When::Set, mac_prefix),
];

/// Of the field at a path (`flannel`, `pkg/subnet/config.go`, `pkg/backend/vxlan/vxlan.go`).
fn type_of(path: &str) -> Type {
    match path {
        "EnableIPv4" | "EnableIPv6" | "EnableNFTables" => Type::Switch,
        "Backend.GBP" | "Backend.DirectRouting" | "Backend.Learning" => Type::Switch,
        "SubnetLen" | "IPv6SubnetLen" | "Backend.VNI" | "Backend.Port" | "Backend.MTU" => Type::Whole,
        _ => Type::Text,
    }
}

/// What the agent reads of one number of the backend.
fn number(name: &str, value: &Value) -> Verdict {
    let alone = json!({"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", name: value}});
    match NetworkConfig::parse(&alone.to_string()) {
        Ok(_) => Verdict::as_it_is("network.config"),
        Err(error) => Verdict::not_supported(error.to_string()),
    }
}

fn in_config(_: &Flannel, _: &Value) -> Verdict {
    Verdict::as_it_is("network.config")
}

/// With leases in etcd each node takes a free one of those.
fn subnets(state: &Flannel, _: &Value) -> Verdict {
    if state.leases_in_kubernetes {
        Verdict::not_needed("subnets are the Nodes' spec.podCIDRs, for flannel with --kube-subnet-mgr too")
    } else {
        Verdict::as_it_is("network.config")
    }
}

fn learning(_: &Flannel, _: &Value) -> Verdict {
    Verdict::differs("the device learns nothing from packets: each node's entry is written")
}

fn mac_prefix(_: &Flannel, _: &Value) -> Verdict {
    Verdict::differs("the device's MAC address is kept where it is there, else random")
}

/// What flannel does for want of a word is `udp`.
fn backend(_: &Flannel, value: &Value) -> Verdict {
    match value.as_str().unwrap_or("udp") {
        kind if is_spoken(kind) => Verdict::as_it_is("network.config"),
        other => Verdict::not_supported(format!(
            "{other} is not spoken, vxlan and host-gw are: pods of nodes that still have flannel are not reached. \
             What is printed says vxlan"
        )),
    }
}

/// Reads the file, and the command line of the DaemonSet beside it. Without that, leases are taken to be in Kubernetes:
/// with those in etcd flannel reads the network from there, and no file.
pub fn translate(document: &Value, arguments: Option<&[String]>, draft: &mut Draft) {
    let mut config = document.clone();
    if let Some(fields) = config.as_object_mut()
        && !kind_of(document).is_some_and(is_spoken)
    {
        fields.retain(|name, _| !name.eq_ignore_ascii_case("Backend"));
        fields.insert("Backend".to_owned(), json!({"Type": "vxlan"}));
    }
    let state = Flannel {
        leases_in_kubernetes: arguments.is_none_or(flannel_args::are_leases_in_kubernetes),
    };
    FIELDS.read(&state, &without_foreign_options(document), "", draft);
    draft.set("network.config", config.clone());
    match arguments {
        Some(arguments) => flannel_args::translate(arguments, draft),
        None => {
            let words = "network.leases: kubernetes; flannel without --kube-subnet-mgr has them in etcd: then `etcd`, \
                         and network.etcd";
            let leases = Verdict::taken("network.leases", "kubernetes").saying(words);
            draft.add(OF, "(leases)", &Value::Null, &leases);
        }
    }
    match NetworkConfig::parse(&config.to_string()) {
        Ok(_) | Err(FormatError::Backend(_)) => {}
        Err(error) => draft.add(
            OF,
            "(as a whole)",
            &Value::Null,
            &Verdict::not_supported(error.to_string()),
        ),
    }
}

fn backend_of(document: &Value) -> Option<&Value> {
    let mut fields = document.as_object()?.iter();
    let found = fields.find(|(name, _)| name.eq_ignore_ascii_case("Backend"));
    found.map(|(_, backend)| backend)
}

fn kind_of(document: &Value) -> Option<&str> {
    let mut fields = backend_of(document)?.as_object()?.iter();
    let found = fields.find(|(name, _)| name.eq_ignore_ascii_case("Type"));
    found.and_then(|(_, kind)| kind.as_str())
}

fn is_spoken(kind: &str) -> bool {
    matches!(kind, "vxlan" | "host-gw")
}

/// Options of a backend that is not spoken need no line of their own.
fn without_foreign_options(document: &Value) -> Value {
    let mut document = document.clone();
    let kind = kind_of(&document).map(str::to_owned);
    if let Some(fields) = document.as_object_mut()
        && !kind.as_deref().is_some_and(is_spoken)
    {
        fields.retain(|name, _| !name.eq_ignore_ascii_case("Backend"));
        if let Some(kind) = kind {
            fields.insert("Backend".to_owned(), json!({"Type": kind}));
        }
    }
    document
}
