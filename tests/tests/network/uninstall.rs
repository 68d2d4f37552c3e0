//! A node that leaves for good is as it was before its agent came.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tests::cluster::program;
use tests::ledger::Ledger;
use tests::network::{Network, Pod, SOON, Traffic};
use tests::process::{self, Output, Place, Process};
use tests::wait;

/// What others have on the node: each looks like something of ours.
const PLANTED: [&[&str]; 10] = [
    &[
        "ip", "link", "add", "other0", "type", "veth", "peer", "name", "cw-other",
    ],
    &["ip", "link", "set", "other0", "up"],
    &["ip", "link", "set", "cw-other", "up"],
    &[
        "ip",
        "link",
        "add",
        "flannel.99",
        "type",
        "vxlan",
        "id",
        "99",
        "dstport",
        "8499",
        "dev",
        "eth0",
    ],
    &["ip", "address", "add", "10.96.0.11/32", "dev", "lo"],
    &[
        "ip",
        "route",
        "add",
        "10.244.250.0/24",
        "dev",
        "other0",
        "proto",
        "99",
    ],
    &[
        "ip",
        "neighbour",
        "add",
        "10.244.250.9",
        "lladdr",
        "02:00:00:00:00:09",
        "dev",
        "other0",
        "nud",
        "permanent",
    ],
    &["ip", "rule", "add", "from", "10.244.250.0/24", "lookup", "99"],
    &[
        "nft",
        "add table ip causewayside; add chain ip causewayside ours; add rule ip causewayside ours counter",
    ],
    &["iptables-nft", "-N", "FOREIGN"],
];

/// The same, where the datapath leaves kube-proxy's chains alone.
const KUBE_PROXYS: &[&str] = &["iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES"];

const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}"#;

/// Everything on a node that an agent could write, but for kernel settings.
#[derive(Debug)]
struct Snapshot {
    ledger: Ledger,
    listed: BTreeSet<String>,
}

impl Snapshot {
    fn of(world: &Network, number: usize) -> Self {
        // It waits until addresses are there for good, with the groups that come with them.
        let ledger = world.ledger(number);
        let shown: [&[&str]; 5] = [
            &["ip", "neighbour", "show", "nud", "permanent"],
            &["ip", "-6", "rule", "show"],
            &["bridge", "fdb", "show"],
            &["iptables-nft-save"],
            &["iptables-legacy-save"],
        ];
        let mut listed = BTreeSet::new();
        for words in shown {
            let output = run(world, number, words);
            let lines = output.stdout.lines().filter(|line| !line.starts_with('#'));
            listed.extend(lines.map(|line| format!("{}: {line}", words[0])));
        }
        files(&world.path(number, ""), &mut listed);
        let pins = world.pins(number);
        listed.insert(format!("{}: {}", pins.display(), pins.exists()));
        Self { ledger, listed }
    }

    /// What differs.
    fn changes_since(&self, before: &Self) -> Vec<String> {
        let came = self
            .listed
            .difference(&before.listed)
            .map(|line| format!("+ {line}"));
        let went = before
            .listed
            .difference(&self.listed)
            .map(|line| format!("- {line}"));
        let mut changes = self.ledger.changes_since(&before.ledger);
        changes.extend(came.chain(went));
        changes.retain(|change| !is_iptables_own(change));
        changes
    }
}

/// What iptables makes before the first rule of a table: the table, and its own chains, without rules.
fn is_iptables_own(change: &str) -> bool {
    let is_table = |table: &str| ["raw", "mangle", "nat", "filter"].contains(&table);
    let is_chain = |chain: &str| {
        ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain.trim_start_matches(':'))
    };
    let words: Vec<&str> = change.split([' ', '|']).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        ["+", "nftables:", "table", _, table, "table", ..] => is_table(table),
        [
            "+",
            "nftables:",
            "table",
            _,
            table,
            "chain",
            chain,
            "chain" | "type",
            ..,
        ] => is_table(table) && is_chain(chain),
        ["+", "iptables-nft-save:", "COMMIT"] => true,
        ["+", "iptables-nft-save:", first, ..] => {
            first.strip_prefix('*').map_or_else(|| is_chain(first), is_table)
        }
        _ => false,
    }
}

fn files(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files(&path, found);
        }
        found.insert(path.display().to_string());
    }
}

#[track_caller]
fn run(world: &Network, number: usize, words: &[&str]) -> Output {
    let output = world.host(number).command(words[0], &words[1..]);
    let output = output.expect("it is installed");
    assert!(output.status.success(), "{words:?}: {}", output.stderr);
    output
}

fn plant(world: &Network, number: usize, datapath: &str) {
    let kube_proxys = Some(KUBE_PROXYS).filter(|_| datapath != "iptables");
    for words in PLANTED.into_iter().chain(kube_proxys) {
        run(world, number, words);
    }
    let conflists = world.path(number, "net.d");
    let _configuration = world.configure(number);
    std::fs::create_dir_all(&conflists).expect("writable");
    std::fs::write(conflists.join("20-other.conflist"), CONFLIST).expect("writable");
}

fn cleanup(world: &Network, number: usize, options: &[&str]) -> (Place, Command) {
    let place = world.host(number).place();
    let mut command = process::command(&place, program("causeway"));
    command
        .args(["node", "cleanup", "--config"])
        .arg(world.configure(number));
    command.args(options).env_remove("NODE_NAME");
    (place, command)
}

fn clean_up(world: &Network, number: usize, options: &[&str]) -> Output {
    let (place, mut command) = cleanup(world, number, options);
    process::run_in(&place, &mut command, b"").expect("it starts")
}

/// What `cleanup --wait` says of the first node, which touches nothing before agent and pod are gone.
#[track_caller]
fn cleaned_once_alone(world: &mut Network, pod: Pod, serving: &Snapshot) -> String {
    let (place, mut command) = cleanup(world, 0, &["--wait"]);
    let mut cleaner = Process::spawn(&place, &mut command).expect("it starts");
    cleaner.await_line("does another agent run?", SOON);
    world.kill_agent(0);
    cleaner.await_line("waiting: pods on this node would lose their network", SOON);
    let changes = Snapshot::of(world, 0).changes_since(serving);
    assert_eq!(changes, Vec::<String>::new());
    world.delete(&pod);
    drop(pod);
    assert_eq!(cleaner.await_end(SOON).code(), Some(0));
    let told_all = |output: &String| output.contains("node-0: removed");
    wait::until_value("it has told all", SOON, || cleaner.output(), told_all)
}

#[track_caller]
fn check(datapath: &'static str) {
    let fault = format!("a node that leaves is as it was before, with {datapath} (F55)");
    let label = format!("leave-{datapath}");
    let Some(mut world) = Network::without_agents(&fault, &label, 2, datapath) else {
        return;
    };
    world.dns = Some("10.96.0.10");
    plant(&world, 0, datapath);
    let before = Snapshot::of(&world, 0);
    world.start_agents();
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    if datapath == "ebpf" {
        wait::until("programs are attached to devices", SOON, || {
            if world.attached(0) > 0 { Ok(()) } else { Err(()) }
        });
    }
    Traffic::start(&near, &far).ended("before");
    let serving = Snapshot::of(&world, 0);
    assert_ne!(serving.changes_since(&before), Vec::<String>::new());

    clean_up(&world, 0, &["--force"]).assert_said(2, &["does another agent run?"]);
    let output = cleaned_once_alone(&mut world, near, &serving);
    println!("F55 {datapath}:\n{output}");
    let told = [
        "removed  CNI configurations: 1",
        "removed  DNS addresses: 1",
        "removed  leases: 1",
        "removed  tunnel devices: 1",
        if datapath == "iptables" {
            "left     tables of iptables, with the chains that it makes itself"
        } else {
            "left     chains KUBE-* of iptables"
        },
        "left     kernel settings as the agent sets them, what they were before is not known: net.ipv4.ip_forward = 1",
        "node-0: removed",
    ];
    for words in told {
        assert!(output.contains(words), "{words}: {output}");
    }
    let changes = Snapshot::of(&world, 0).changes_since(&before);
    assert_eq!(changes, Vec::<String>::new());
    world.lease_of(0).expect_err("its lease is gone");
    wait::until_value(
        "the other node has no route to it",
        SOON,
        || world.routes(1),
        Vec::is_empty,
    );
    let again = clean_up(&world, 0, &[]);
    again.assert_said(0, &["node-0: nothing to remove"]);
    assert!(!again.stdout.contains("removed  "), "{}", again.stdout);
    assert_eq!(
        Snapshot::of(&world, 0).changes_since(&before),
        Vec::<String>::new()
    );

    // It comes back, and leaves with a pod.
    world.start_agent(0);
    world.await_ready(0);
    let live = world.pod(0, "live");
    Traffic::start(&live, &far).ended("back");
    world.kill_agent(0);
    let serving = Snapshot::of(&world, 0);
    clean_up(&world, 0, &[]).assert_said(1, &["default/live", "--force"]);
    assert_eq!(
        Snapshot::of(&world, 0).changes_since(&serving),
        Vec::<String>::new()
    );
    // Nobody answers for the lease.
    world.etcd = None;
    let output = clean_up(&world, 0, &["--force", "-o", "json"]);
    output.assert_said(0, &["\"pods\": 1", "in etcd, which ends by itself within a day"]);
    assert_eq!(
        Snapshot::of(&world, 0).changes_since(&before),
        Vec::<String>::new()
    );
}

#[test]
fn a_node_with_the_socket_hook_leaves_as_it_came() {
    check("ebpf");
}

#[test]
fn a_node_with_nftables_leaves_as_it_came() {
    check("nftables");
}

#[test]
fn a_node_with_iptables_leaves_as_it_came() {
    check("iptables");
}
