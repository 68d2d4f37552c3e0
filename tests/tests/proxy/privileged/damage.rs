//! What others do to the kernel's state is found and repaired.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::IpFamily;
use proxy::{DatapathKind, Proxy};
use tests::privileged;

use super::{answers, both};
use crate::cluster::{FAMILIES, NODE, State, TCP, settings};
use crate::node::Surroundings;

const TABLE: &str = "causeway-proxy";

/// What others may do to the table of one version of IP, in nft's words.
fn damages(family: IpFamily) -> Vec<Vec<&'static str>> {
    let (ip, element, foreign) = match family {
        IpFamily::V4 => ("ip", "{ 10.96.0.10 . tcp . 80 }", "{ 10.96.0.99 }"),
        IpFamily::V6 => ("ip6", "{ fd00:96::10 . tcp . 80 }", "{ fd00:96::99 }"),
    };
    vec![
        vec!["delete", "table", ip, TABLE],
        vec!["flush", "chain", ip, TABLE, "services"],
        vec!["flush", "map", ip, TABLE, "endpoints"],
        vec!["flush", "map", ip, TABLE, "service-ips"],
        vec!["delete", "element", ip, TABLE, "service-ips", element],
        vec!["add", "element", ip, TABLE, "cluster-ips", foreign],
        vec!["add", "rule", ip, TABLE, "postrouting", "accept"],
    ]
}

fn do_damage(surroundings: &Surroundings, damage: &[&str]) {
    let output = surroundings
        .node
        .command("nft", damage)
        .expect("nft is installed");
    assert!(output.status.success(), "{damage:?}: {}", output.stderr);
}

/// Lines of a ruleset, without order: elements are printed in the order of their hashes.
fn elements(ruleset: &str) -> BTreeSet<String> {
    let parts = ruleset
        .split([',', '\n', '{', '}'])
        .map(|part| part.trim().replace("elements =", ""));
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn damage_by_others_is_found_and_repaired() {
    if !privileged("damage by others is found and repaired") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    proxy.sync(&both().snapshot());
    for damage in FAMILIES.into_iter().flat_map(damages) {
        assert_repaired(&surroundings, &mut proxy, &damage);
    }
    for (damage, repaired) in [
        ("links", "the socket hook was not attached"),
        ("FRONTENDS", "the socket hook's maps were not pinned"),
        ("NODE_NETNS", "the socket hook's maps were not pinned"),
    ] {
        let pin = pins(&surroundings).join(damage);
        let removed = if pin.is_dir() {
            std::fs::remove_dir_all(&pin)
        } else {
            std::fs::remove_file(&pin)
        };
        removed.expect("pins are files");
        assert_eq!(proxy.audit_structure().repaired, [repaired], "{damage}");
        assert!(proxy.audit_structure().is_clean(), "after {damage}");
        super::assert_translated(&surroundings);
    }
    drop(proxy);
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let report = proxy.expect("a proxy").sync(&both().snapshot());
    assert_eq!(report.writes, 0, "the next process finds the maps");
}

/// The one directory for the maps' present layout.
fn pins(surroundings: &Surroundings) -> PathBuf {
    let layouts = std::fs::read_dir(surroundings.bpffs.path().join("proxy"));
    let mut layouts = layouts.expect("the pin directory").flatten();
    layouts.next().expect("a layout").path()
}

fn assert_repaired(surroundings: &Surroundings, proxy: &mut Proxy, damage: &[&str]) {
    let watch = surroundings.node.run(|| proxy.watch_drift()).expect("entered");
    let mut watch = watch.expect("a watch").expect("kernel");
    let whole = surroundings.ruleset();
    do_damage(surroundings, damage);
    assert!(
        watch.wait(Duration::from_secs(1)).expect("events"),
        "{damage:?} was not noticed"
    );
    let report = proxy.audit();
    assert!(
        !report.is_clean() && report.failures.is_empty(),
        "{damage:?}: {report:?}"
    );
    assert_eq!(
        elements(&surroundings.ruleset()),
        elements(&whole),
        "after {damage:?}"
    );
    assert!(proxy.audit().is_clean(), "after {damage:?}");
    assert!(
        !watch.wait(Duration::from_millis(20)).expect("events"),
        "the repair is no news"
    );
}

#[test]
fn damage_in_the_middle_of_a_sync_is_repaired_by_it() {
    if !privileged("damage in the middle of a sync is repaired by it") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), DatapathKind::Nftables);
    let mut proxy = proxy.expect("a proxy");
    for (family, damage) in FAMILIES
        .into_iter()
        .flat_map(|family| damages(family).into_iter().map(move |damage| (family, damage)))
    {
        proxy.sync(&both().snapshot());
        do_damage(&surroundings, &damage);
        let fewer = State::new([crate::cluster::NEAR]);
        let report = proxy.sync(&fewer.snapshot());
        assert!(
            report.failures.is_empty() && report.common_failures.is_empty(),
            "{damage:?}: {report:?}"
        );
        // What the sync had no reason to touch is left to the audit.
        if !damage.contains(&"chain") {
            let to = SocketAddr::new(NODE.of(family), TCP.1);
            assert_eq!(
                answers(&surroundings, &surroundings.outside, to),
                "near",
                "{damage:?}"
            );
        }
        proxy.audit();
        assert!(proxy.audit().is_clean(), "{damage:?}");
    }
}
