//! What is told of layers, and what a connection gets of them.

use super::*;
use crate::plan::Masquerade;

fn targets(texts: &[&str]) -> BTreeSet<Target> {
    let target = |text: &&str| {
        let address: SocketAddr = text.parse().expect("an address");
        Target {
            address: address.ip(),
            port: address.port().try_into().expect("no zero"),
        }
    };
    texts.iter().map(target).collect()
}

/// Of the packet rules: the chain of that name.
fn chain(name: &str, cluster: &[&str], local: &[&str]) -> Treatment {
    Treatment {
        rule: nft::Verdict::Goto(name.to_owned()).into(),
        cluster: targets(cluster),
        local: targets(local),
    }
}

fn hook(flags: u16, cluster: &[&str], local: &[&str]) -> Treatment {
    Treatment {
        rule: Rule::Hook {
            flags,
            affinity_seconds: 0,
        },
        cluster: targets(cluster),
        local: targets(local),
    }
}

fn layer(kind: LayerKind, wanted: Option<Treatment>, found: Option<Treatment>) -> Layer {
    Layer {
        kind,
        is_attached: true,
        wanted,
        is_wanted_known: true,
        found,
        entries: Vec::new(),
        at: None,
    }
}

#[track_caller]
fn check(wanted: Option<Treatment>, found: Option<Treatment>, expected: &[&str]) {
    let mut layer = layer(LayerKind::PacketRules, wanted, found);
    assert_eq!(layer.differences(), expected);
    layer.is_wanted_known = false;
    assert_eq!(layer.differences(), [""; 0], "nobody knows what is wanted");
}

#[test]
fn what_is_missing_or_stray_is_told_by_its_endpoint() {
    let two = || {
        Some(chain(
            "address.cluster-2",
            &["10.244.1.5:80", "10.244.2.6:80"],
            &[],
        ))
    };
    check(two(), two(), &[]);
    check(None, None, &[]);
    check(
        two(),
        None,
        &["no entry, where the plan wants goto address.cluster-2, 2 endpoints in the cluster"],
    );
    let drop = Treatment {
        rule: Rule::Drop,
        cluster: BTreeSet::new(),
        local: BTreeSet::new(),
    };
    check(None, Some(drop), &["drop, where the plan wants no entry"]);
    check(
        two(),
        Some(chain(
            "address.cluster-1",
            &["10.244.1.5:80", "[fd00::7]:80"],
            &[],
        )),
        &[
            "goto address.cluster-1, where the plan wants goto address.cluster-2",
            "list for the cluster: endpoint 10.244.2.6:80 is missing",
            "list for the cluster: endpoint [fd00::7]:80 is not the plan's",
        ],
    );
}

#[test]
fn verdicts_of_nftables_are_known_by_the_chains_that_this_proxy_makes() {
    let template = Template {
        via: crate::datapath::packets::template::Via::Address,
        filtered: false,
        choice: Choice::Spread {
            list: List::Cluster,
            endpoints: 2,
            masquerade: Masquerade::OutsidePods,
            sticky_seconds: 0,
        },
    };
    let goto = |name: &str| nft::Verdict::Goto(name.to_owned());
    let rows = [
        (goto("refuse"), Rule::Refuse),
        (nft::Verdict::Drop, Rule::Drop),
        (goto("address.cluster-2.outside"), Rule::Template(template)),
        (goto("KUBE-SVC"), Rule::Foreign(goto("KUBE-SVC"))),
        (nft::Verdict::Accept, Rule::Foreign(nft::Verdict::Accept)),
    ];
    for (verdict, expected) in rows {
        let text = verdict.to_string();
        let rule = Rule::from(verdict);
        assert_eq!(rule, expected);
        assert_eq!(rule.to_string(), text, "it is shown as nft does");
    }
}

const A: &str = "10.244.1.5:80";
const B: &str = "10.244.2.6:80";

/// Which layer decides, and what: `hook A`, `rules refuse`, `unchanged`, `foreign`.
#[track_caller]
fn check_followed(hook: Option<Treatment>, rules: Option<Treatment>, client: Client, expected: &str) {
    let layers = [
        layer(LayerKind::SocketHook, None, hook),
        layer(LayerKind::PacketRules, None, rules),
    ];
    let told = match follow(&layers, client) {
        Ok(None) => "unchanged".to_owned(),
        Ok(Some((layer, verdict))) => {
            let verdict = match verdict {
                Verdict::Refuse => "refuse".to_owned(),
                Verdict::Drop => "drop".to_owned(),
                Verdict::Spread(to) => to.iter().map(text).collect::<Vec<_>>().join(" "),
            };
            format!("{}: {verdict}", layer.kind.name())
        }
        Err(_) => "foreign".to_owned(),
    };
    assert_eq!(told, expected, "{client:?}");
}

#[test]
fn a_connection_follows_the_layers_in_the_order_in_which_it_meets_them() {
    let spread = || Some(hook(0, &[A], &[]));
    let rules = || Some(chain("address.cluster-1", &[B], &[]));
    check_followed(spread(), rules(), Client::PodHere, &format!("socket hook: {A}"));
    check_followed(spread(), rules(), Client::ThisNode, &format!("socket hook: {A}"));
    let by_rules = format!("packet rules: {B}");
    check_followed(spread(), rules(), Client::Outside, &by_rules);
    check_followed(spread(), rules(), Client::PodElsewhere, &by_rules);
    check_followed(None, rules(), Client::PodHere, &by_rules);
    let emptied = Some(hook(0, &[], &[]));
    check_followed(emptied, rules(), Client::PodHere, &by_rules);
    check_followed(spread(), None, Client::Outside, "unchanged");
    check_followed(None, None, Client::PodHere, "unchanged");
    let foreign = Some(chain("KUBE-SVC", &[], &[]));
    check_followed(None, foreign, Client::PodHere, "foreign");
}

#[test]
fn policies_choose_the_list_and_a_list_that_is_empty_refuses_nobody() {
    let refuse = Some(hook(flags::REFUSE, &[], &[]));
    check_followed(refuse, None, Client::PodHere, "socket hook: refuse");
    let local = Some(hook(flags::LOCAL_ONLY, &[A], &[B]));
    check_followed(local, None, Client::PodHere, &format!("socket hook: {B}"));
    let nowhere = Some(hook(flags::LOCAL_ONLY, &[A], &[]));
    let drop = Treatment {
        rule: Rule::Drop,
        cluster: BTreeSet::new(),
        local: BTreeSet::new(),
    };
    check_followed(nowhere, Some(drop), Client::PodHere, "packet rules: drop");
    let of_node = Some(hook(flags::THIS_NODE_ONLY, &[A, B], &[B]));
    check_followed(of_node, None, Client::ThisNode, &format!("socket hook: {A} {B}"));
    let split = || Some(chain("node-port.split-2-1", &[A, B], &[B]));
    check_followed(
        None,
        split(),
        Client::PodElsewhere,
        &format!("packet rules: {A} {B}"),
    );
    check_followed(None, split(), Client::Outside, &format!("packet rules: {B}"));
    let none_here = Some(chain("node-port.split-1-0", &[A], &[]));
    check_followed(None, none_here, Client::Outside, "packet rules: drop");
    let refused = Some(chain("address.filtered.refuse", &[], &[]));
    check_followed(None, refused, Client::Outside, "packet rules: refuse");
    let emptied = Some(chain("address.cluster-1", &[], &[A]));
    check_followed(None, emptied, Client::Outside, "unchanged");
}
