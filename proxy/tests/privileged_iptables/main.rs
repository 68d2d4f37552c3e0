//! Rules of iptables in real tables, by both variants of the programs, each test in a network namespace of its own.
//! Needs root and iptables; says loudly when it did not run.

mod own_dns;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName, Protocol, Text};
use netlink::Namespace;
use proxy::datapath::iptables::{Iptables, Variant};
use proxy::datapath::{Applied, Change, Datapath};
use proxy::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, List, Masquerade, PortKey, PortPlan, SharedSet,
    Target,
};
use proxy::stale::StaleFlows;
use proxy::{Config, DatapathKind, NodeContext, Proxy, ServicePlan, Settings};

const TO_CLUSTER: Action = Action::Spread {
    list: List::Cluster,
    masquerade: Masquerade::OutsidePods,
};
const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];
const TABLES: [&str; 4] = ["raw", "mangle", "nat", "filter"];

/// Runs a test in a fresh namespace for each variant.
fn with_each_variant(test: &str, body: impl Fn(Variant, &str) + Sync) {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        return skipped(test, "needs root");
    }
    for (variant, suffix) in [(Variant::Legacy, "legacy"), (Variant::Nft, "nft")] {
        let program = format!("iptables-{suffix}");
        if Command::new(&program).arg("--version").output().is_err() {
            skipped(test, &format!("{program} is not installed"));
            continue;
        }
        Scratch::new().0.run(|| body(variant, suffix)).expect("enter");
    }
}

fn skipped(test: &str, reason: &str) {
    eprintln!("\n==== SKIPPED: {test}: {reason} ====\n");
}

/// A namespace that is gone with the test, with its loopback up.
struct Scratch(Namespace, String);

impl Scratch {
    fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cwt-{}-{number}-iptables", std::process::id());
        let scratch = Self(Namespace::create(&name).expect("a namespace"), name);
        scratch
            .0
            .run(|| run("ip", &["link", "set", "lo", "up"]))
            .expect("enter");
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(&self.1) {
            eprintln!("left behind: {error}");
        }
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// All tables as the programs print them, without what changes by itself.
fn rules(suffix: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for family in FAMILIES {
        for table in TABLES {
            let saved = run(&format!("{family}-{suffix}-save"), &["-t", table]);
            let saved = saved.lines().filter(|line| !line.starts_with('#'));
            let line = |line: &str| format!("{family} {table} {}", line.split(" [").next().unwrap_or(line));
            lines.extend(saved.map(line));
        }
    }
    lines
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn node() -> NodeContext {
    NodeContext::new("here".into(), ["10.244.0.0/16", "fd00:244::/48"].map(network))
}

/// A node with a DNS server of its own.
fn node_with_dns(dns_answers: bool) -> NodeContext {
    NodeContext {
        local_dns: DNS.map(|address| address.parse().expect("an address")).into(),
        dns_answers,
        ..node()
    }
}

const DNS: [&str; 2] = ["10.96.0.10", "fd00:96::a"];

fn name(name: &str) -> ObjectName {
    ObjectName::new("ns", name)
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("not zero")
}

fn targets(texts: &[&str]) -> SharedSet<Target> {
    let target = |text: &&str| {
        let address: SocketAddr = text.parse().expect("an endpoint");
        Target {
            address: address.ip(),
            port: number(address.port()),
        }
    };
    texts.iter().map(target).collect()
}

fn key(at: &str, family: IpFamily, protocol: Protocol) -> FrontendKey {
    let (address, port) = match at.parse::<SocketAddr>() {
        Ok(at) => (FrontendAddress::Service(at.ip()), at.port()),
        Err(_) => (
            FrontendAddress::EveryNodeAddress(family),
            at.parse().expect("a port"),
        ),
    };
    FrontendKey {
        address,
        port: number(port),
        protocol,
    }
}

/// A Service with one port: its ClusterIP and what happens there, its endpoints, those of them here.
fn plan(at: &str, action: Action, cluster: &[&str], local: &[&str]) -> ServicePlan {
    let protocol = Protocol::Tcp;
    let address = at.parse::<SocketAddr>().expect("an address").ip();
    let port = PortPlan {
        cluster: targets(cluster),
        local: targets(local),
        ..PortPlan::default()
    };
    let port_key = PortKey {
        family: address.into(),
        name: Text::default(),
        protocol,
    };
    let mut plan = ServicePlan::default();
    plan.ports.insert(port_key, port);
    plan.cluster_ips = [address].into();
    with_frontend(plan, at, action, Admits::Everyone)
}

/// The plan with a frontend more.
fn with_frontend(mut plan: ServicePlan, at: &str, action: Action, admits: Admits) -> ServicePlan {
    for (port_key, port) in plan.ports.iter_mut() {
        let key = key(at, port_key.family, port_key.protocol);
        port.frontends.insert(key, Frontend { action, admits });
    }
    plan
}

fn each_port(mut plan: ServicePlan, edit: impl Fn(&mut PortPlan)) -> ServicePlan {
    plan.ports.iter_mut().for_each(|(_, port)| edit(port));
    plan
}

/// One Service of each kind.
fn services() -> BTreeMap<ObjectName, ServicePlan> {
    let endpoints = ["10.244.1.2:8080", "10.244.2.2:8080", "10.244.2.3:8080"];
    let sticky = plan("10.96.0.2:80", TO_CLUSTER, &endpoints, &[]);
    let sticky = each_port(sticky, |port| port.affinity = Some(Duration::from_secs(10_800)));
    let everyone = Action::Spread {
        list: List::Cluster,
        masquerade: Masquerade::Everyone,
    };
    let balanced = plan("10.96.0.3:80", TO_CLUSTER, &endpoints, &[]);
    let balanced = with_frontend(balanced, "198.51.100.3:80", everyone, Admits::Sources);
    let balanced = with_frontend(balanced, "30083", everyone, Admits::Everyone);
    let balanced = each_port(balanced, |port| {
        port.sources = SharedSet::from(["192.0.2.0/24", "203.0.113.7/32"].map(network));
    });
    let split = plan("10.96.0.4:80", TO_CLUSTER, &endpoints, &endpoints[..1]);
    let split = with_frontend(split, "198.51.100.4:80", Action::Split, Admits::Everyone);
    let split = with_frontend(split, "30084", Action::Split, Admits::Everyone);
    let away = plan("10.96.0.5:80", Action::Drop, &endpoints, &[]);
    let away = with_frontend(away, "30085", Action::Split, Admits::Everyone);
    let empty = plan("10.96.0.6:80", Action::Refuse, &[], &[]);
    let empty = with_frontend(empty, "198.51.100.6:80", Action::Refuse, Admits::Sources);
    let empty = with_frontend(empty, "30086", Action::Refuse, Admits::Everyone);
    let empty = each_port(empty, |port| port.sources = [network("192.0.2.0/24")].into());
    let six = plan(
        "[fd00:96::7]:80",
        TO_CLUSTER,
        &["[fd00:244::2]:8080", "[fd00:244:0:1::2]:8080"],
        &[],
    );
    let six = with_frontend(six, "30087", Action::Split, Admits::Everyone);
    let six = each_port(six, |port| port.affinity = Some(Duration::from_secs(7)));
    let mut other_protocols = ServicePlan::default();
    for (protocol, at) in [
        (Protocol::Udp, "10.96.0.8:53"),
        (Protocol::Sctp, "10.96.0.8:38412"),
    ] {
        let mut port = PortPlan {
            cluster: targets(&endpoints),
            ..PortPlan::default()
        };
        let frontend = Frontend {
            action: TO_CLUSTER,
            admits: Admits::Everyone,
        };
        port.frontends.insert(key(at, IpFamily::V4, protocol), frontend);
        let port_key = PortKey {
            family: IpFamily::V4,
            name: "p".into(),
            protocol,
        };
        other_protocols.ports.insert(port_key, port);
    }
    [
        ("plain", plan("10.96.0.1:80", TO_CLUSTER, &endpoints, &[])),
        ("sticky", sticky),
        ("balanced", balanced),
        ("split", split),
        ("away", away),
        ("empty", empty),
        ("six", six),
        ("protocols", other_protocols),
    ]
    .map(|(service, plan)| (name(service), plan))
    .into()
}

fn open(variant: Variant) -> Iptables {
    Iptables::open(&node(), variant).expect("a datapath")
}

fn apply(datapath: &mut Iptables, services: &BTreeMap<ObjectName, ServicePlan>) -> Applied {
    let nothing = ServicePlan::default();
    let change = |(service, new)| Change {
        service,
        old: &nothing,
        new,
    };
    datapath.apply(&services.iter().map(change).collect::<Vec<_>>())
}

#[track_caller]
fn writes(applied: Applied) -> u64 {
    assert!(applied.failures.is_empty(), "{:?}", applied.failures);
    applied.writes
}

#[track_caller]
fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn the_same_again_writes_nothing_in_this_process_and_in_the_next() {
    with_each_variant("the same again writes nothing", |variant, suffix| {
        let services = services();
        let mut datapath = open(variant);
        assert!(writes(apply(&mut datapath, &services)) > 0);
        let before = rules(suffix);
        assert_eq!(writes(apply(&mut datapath, &services)), 0, "in this process");
        assert_eq!(datapath.reread().expect("reread"), Vec::<String>::new());
        assert_eq!(writes(apply(&mut datapath, &services)), 0, "after reading back");
        let mut datapath = open(variant);
        assert_eq!(datapath.set_context(&node()).expect("context"), 0);
        assert_eq!(
            rules(suffix),
            before,
            "a process that knows nothing yet leaves everything"
        );
        assert_eq!(writes(apply(&mut datapath, &services)), 0, "in the next process");
        let asked = |_: &FrontendKey| true;
        assert_eq!(datapath.sweep(&asked).expect("sweep").writes, 0);
        assert_eq!(datapath.repair().expect("repair"), Vec::<String>::new());
        assert_eq!(rules(suffix), before);
    });
}

#[test]
fn a_change_writes_the_chains_of_its_service_only() {
    with_each_variant(
        "a change writes the chains of its Service only",
        |variant, suffix| {
            let mut datapath = open(variant);
            writes(apply(&mut datapath, &services()));
            let before = rules(suffix);
            let in_kernel = |family: &str, table: &str| {
                let beginning = format!("{family} {table} -A KUBE-");
                before.iter().filter(|line| line.starts_with(&beginning)).count() as u64
            };
            let told = datapath.iptables().tables;
            let totals: Vec<_> = told.iter().map(|rules| rules.total).collect();
            let found = FAMILIES.map(|family| ["nat", "filter"].map(|table| in_kernel(family, table)));
            assert_eq!(totals, found.concat());
            let fewer = plan("10.96.0.1:80", TO_CLUSTER, &["10.244.1.2:8080"], &[]);
            let change = |plan| BTreeMap::from([(name("plain"), plan)]);
            // The list's chain, and two endpoints that are gone.
            assert_eq!(writes(apply(&mut datapath, &change(fewer))), 3);
            assert!(!has(&rules(suffix), "ns/plain -> 10.244.2.2:8080"));
            let written: Vec<_> = datapath
                .iptables()
                .tables
                .iter()
                .map(|rules| rules.written)
                .collect();
            assert_eq!(written, [2, 0, 0, 0], "of nat for IPv4");
            // Two chains, and the two lists that its ClusterIP was in.
            assert_eq!(writes(apply(&mut datapath, &change(ServicePlan::default()))), 4);
            assert!(!has(&rules(suffix), "ns/plain"));
            let again = services().remove(&name("plain")).expect("a Service");
            writes(apply(&mut datapath, &change(again)));
            let sorted = |mut lines: Vec<String>| {
                lines.sort();
                lines
            };
            assert_eq!(sorted(rules(suffix)), sorted(before));
        },
    );
}

#[test]
fn what_somebody_removed_is_repaired() {
    with_each_variant("what somebody removed is repaired", |variant, suffix| {
        let services = services();
        let mut datapath = open(variant);
        writes(apply(&mut datapath, &services));
        let before = rules(suffix);
        let program = format!("iptables-{suffix}");
        let damage: [(&str, &[&str], bool); 5] = [
            ("a rule", &["-t", "nat", "-D", "KUBE-SERVICES", "1"], false),
            ("a jump", &["-t", "nat", "-D", "OUTPUT", "1"], true),
            ("all jumps", &["-t", "filter", "-F"], true),
            ("a canary", &["-t", "mangle", "-X", "KUBE-PROXY-CANARY"], true),
            ("everything", &["-t", "nat", "-F"], true),
        ];
        for (what, arguments, is_cheap_to_see) in damage {
            run(&program, arguments);
            if what == "everything" {
                run(&program, &["-t", "nat", "-X"]);
            }
            // A chain of nat is looked at each time.
            let repaired: Vec<_> = (0..4).flat_map(|_| datapath.repair().expect("repair")).collect();
            assert_eq!(!repaired.is_empty(), is_cheap_to_see, "{what}: {repaired:?}");
            datapath.reread().expect("reread");
            writes(apply(&mut datapath, &services));
            assert_eq!(rules(suffix), before, "{what}");
        }
    });
}

#[test]
fn a_change_that_meets_damage_rewrites_everything() {
    with_each_variant(
        "a change that meets damage rewrites everything",
        |variant, suffix| {
            let mut services = services();
            let mut datapath = open(variant);
            writes(apply(&mut datapath, &services));
            let before = rules(suffix);
            for arguments in [["-t", "nat", "-F"], ["-t", "nat", "-X"]] {
                run(&format!("iptables-{suffix}"), &arguments);
            }
            let more = plan("10.96.0.1:80", TO_CLUSTER, &["10.244.1.9:8080"], &[]);
            services.insert(name("plain"), more.clone());
            writes(apply(&mut datapath, &BTreeMap::from([(name("plain"), more)])));
            let found = rules(suffix);
            assert!(has(&found, "ns/plain -> 10.244.1.9:8080"));
            let refused = datapath.iptables().refused_changes;
            assert_eq!(refused, [(IpFamily::V4, 1), (IpFamily::V6, 0)]);
            let of_others = |lines: &[String]| {
                let others = lines
                    .iter()
                    .filter(|line| line.contains("ns/") && !line.contains("ns/plain"));
                others.cloned().collect::<Vec<_>>()
            };
            assert_eq!(of_others(&found), of_others(&before));
            assert_eq!(writes(apply(&mut open(variant), &services)), 0);
        },
    );
}

#[test]
fn a_service_that_the_kernel_refuses_stops_no_other() {
    with_each_variant(
        "a Service that the kernel refuses stops no other",
        |variant, suffix| {
            let mut services = services();
            // No match takes that many seconds.
            let bad = plan("10.96.0.9:80", TO_CLUSTER, &["10.244.1.2:8080"], &[]);
            let bad = each_port(bad, |port| port.affinity = Some(Duration::from_secs(1 << 40)));
            services.insert(name("bad"), bad);
            let mut datapath = open(variant);
            let applied = apply(&mut datapath, &services);
            let failed: Vec<_> = applied
                .failures
                .iter()
                .map(|(service, _)| service.clone())
                .collect();
            assert_eq!(failed, [name("bad")], "{:?}", applied.failures);
            let good = rules(suffix);
            assert!(!has(&good, "ns/bad"));
            services.remove(&name("bad"));
            assert_eq!(
                writes(apply(&mut open(variant), &services)),
                0,
                "all others are there"
            );
        },
    );
}

#[test]
fn what_an_earlier_process_served_is_swept_and_told() {
    with_each_variant(
        "what an earlier process served is swept and told",
        |variant, suffix| {
            let mut services = services();
            writes(apply(&mut open(variant), &services));
            let gone = services.remove(&name("balanced")).expect("a Service");
            let mut datapath = open(variant);
            writes(apply(&mut datapath, &services));
            let asked: BTreeSet<_> = services
                .values()
                .flat_map(ServicePlan::frontends)
                .copied()
                .collect();
            let swept = datapath.sweep(&|key| asked.contains(key)).expect("sweep");
            assert_eq!(swept.frontends, gone.frontends().copied().collect());
            // Its list, three endpoints, and the chains for external traffic and source ranges.
            assert_eq!(swept.writes, 6);
            assert!(!has(&rules(suffix), "ns/balanced"));
        },
    );
}

#[test]
fn uninstalling_leaves_what_others_made_and_nothing_else() {
    with_each_variant("uninstalling leaves what others made", |variant, suffix| {
        let others = [
            vec!["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
            vec!["-t", "filter", "-N", "KUBE-FIREWALL"],
            vec!["-t", "filter", "-A", "INPUT", "-j", "KUBE-FIREWALL"],
            vec!["-t", "nat", "-N", "KUBE-SVC-mine"],
            vec![
                "-t",
                "nat",
                "-A",
                "KUBE-SVC-mine",
                "-p",
                "tcp",
                "--dport",
                "7",
                "-j",
                "RETURN",
            ],
            vec![
                "-t",
                "nat",
                "-A",
                "PREROUTING",
                "-p",
                "tcp",
                "--dport",
                "8",
                "-j",
                "KUBE-SVC-mine",
            ],
            vec!["-t", "nat", "-P", "OUTPUT", "ACCEPT"],
            vec![
                "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT",
            ],
        ];
        for family in FAMILIES {
            for arguments in &others {
                run(&format!("{family}-{suffix}"), arguments);
            }
        }
        let before = rules(suffix);
        let mut datapath = open(variant);
        datapath.set_context(&node_with_dns(true)).expect("context");
        writes(apply(&mut datapath, &services()));
        let own = ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-PROXY-CANARY", "CAUSEWAY-DNS"];
        let mut kept = rules(suffix);
        assert!(own.iter().all(|chain| has(&kept, chain)));
        kept.retain(|line| before.contains(line));
        assert_eq!(kept, before, "others' rules are as they were, in their order");
        uninstall("uninstall");
        assert_eq!(rules(suffix), before);
        uninstall("again");
    });
}

#[track_caller]
fn uninstall(what: &str) {
    for removed in Iptables::remove(&node().families) {
        removed.expect(what);
    }
}

#[test]
fn a_chain_that_others_use_outlives_the_proxy() {
    with_each_variant("a chain that others use outlives the proxy", |variant, suffix| {
        let mut datapath = open(variant);
        writes(apply(&mut datapath, &services()));
        // As the portmap plugin does (`externalSetMarkChain`).
        let program = format!("iptables-{suffix}");
        run(&program, &["-t", "nat", "-N", "CNI-HOSTPORT-SETMARK"]);
        run(
            &program,
            &["-t", "nat", "-A", "CNI-HOSTPORT-SETMARK", "-j", "KUBE-MARK-MASQ"],
        );
        uninstall("uninstall");
        let left = rules(suffix).into_iter().filter(|line| line.contains("KUBE-"));
        let left: Vec<_> = left.collect();
        let expected = [
            "iptables nat :KUBE-MARK-MASQ -",
            "iptables nat -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
            "iptables nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        ];
        assert_eq!(left, expected);
    });
}

#[test]
fn the_hosts_variant_is_where_kubelet_left_its_hint() {
    with_each_variant(
        "the host's variant is where kubelet left its hint",
        |_, suffix| {
            for family in FAMILIES {
                run(
                    &format!("{family}-{suffix}"),
                    &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
                );
            }
            let mut datapath = open(Variant::Auto);
            writes(apply(&mut datapath, &services()));
            assert!(has(&rules(suffix), "KUBE-SERVICES"));
        },
    );
}

#[test]
fn rules_stay_in_the_namespace_in_which_the_proxy_was_opened() {
    with_each_variant(
        "rules stay in the namespace in which the proxy was opened",
        |variant, suffix| {
            let elsewhere = Scratch::new();
            let mut datapath = elsewhere.0.run(|| open(variant)).expect("enter");
            let before = rules(suffix);
            writes(apply(&mut datapath, &services()));
            assert_eq!(datapath.reread().expect("reread"), Vec::<String>::new());
            assert_eq!(rules(suffix), before, "here");
            let there = elsewhere.0.run(|| rules(suffix)).expect("enter");
            assert!(has(&there, "ns/plain cluster IP"), "{there:?}");
        },
    );
}

#[test]
fn a_node_that_changes_is_rendered_anew() {
    with_each_variant("a node that changes is rendered anew", |variant, suffix| {
        let services = services();
        let mut datapath = open(variant);
        writes(apply(&mut datapath, &services));
        let before = rules(suffix);
        let mut other = node();
        other.local_traffic =
            proxy::plan::LocalTraffic::Networks(["10.1.0.0/16", "10.2.0.0/16"].map(network).into());
        assert!(datapath.set_context(&other).expect("context") > 0);
        let found = rules(suffix);
        assert!(has(&found, "-j KUBE-MARK-OUTSIDE") && !has(&found, "-s 10.244.0.0/16"));
        assert_eq!(datapath.set_context(&other).expect("context"), 0);
        datapath.set_context(&node()).expect("context");
        assert_eq!(rules(suffix), before);
    });
}

/// What kube-proxy 1.24 and later ones leave, in short: its jumps, a Service with `KUBE-XLB-`, and one that is wanted.
const KUBE_PROXYS: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-XLB-XPGD46QRK7WJZT7O - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 10.96.0.40 --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -m comment --comment ns1/svc1:p80 -m tcp -p tcp --dport 30001 -j KUBE-XLB-XPGD46QRK7WJZT7O
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -j KUBE-SEP-SXIVWICOYRO3J4NJ
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-XLB-XPGD46QRK7WJZT7O -j KUBE-SEP-SXIVWICOYRO3J4NJ
COMMIT
"#;

#[test]
fn kube_proxys_rules_are_taken_over() {
    with_each_variant("kube-proxy's rules are taken over", |variant, suffix| {
        let restore = format!("iptables-{suffix}-restore --noflush <<'END'\n{KUBE_PROXYS}END\n");
        run("sh", &["-c", &restore]);
        let mut datapath = open(variant);
        let opened = rules(suffix);
        assert!(
            has(&opened, "ns1/svc1:p80 cluster IP"),
            "served until the first sync"
        );
        writes(apply(&mut datapath, &services()));
        let swept = datapath.sweep(&|_| false).expect("sweep");
        let gone = [
            key("10.96.0.40:80", IpFamily::V4, Protocol::Tcp),
            key("30001", IpFamily::V4, Protocol::Tcp),
        ];
        assert_eq!((swept.writes, swept.frontends), (3, gone.into()));
        let found = rules(suffix);
        assert!(!has(&found, "svc1"));
        // As if nothing had been there before.
        let lines = |found: Vec<String>| {
            let chains = found.into_iter().filter(|line| line.contains(" nat -A "));
            chains.collect::<Vec<_>>()
        };
        uninstall("uninstall");
        let mut datapath = open(variant);
        writes(apply(&mut datapath, &services()));
        assert_eq!(lines(rules(suffix)), lines(found));
    });
}
