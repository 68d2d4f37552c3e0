//! What somebody can break on a node whose pods have a VPC's addresses: doctor must name it. And where such pods' packets
//! go: explain and trace must say so.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use fake_vpc::request::Request;
use serde_json::{Value, json};
use tests::cluster::program;
use tests::{privileged, process, wait};
use vpc_eni::ec2::{Action, Amount, NewEni, Tags};

use super::world::{KEYS, Node, OUTSIDE, PORT, SOON, World};

/// Something that somebody does on the node, as `ip`, `sysctl` and their like are told. `POD` is the address of a pod of
/// the second interface and `DEVICE` its device.
struct Row {
    /// The agent mends what it sees changed: this is done again and again.
    does: &'static [&'static str],
    /// What undoes it, where the agent does not.
    undone_by: &'static [&'static str],
    /// The finding, and what it is about.
    id: &'static str,
    object: &'static str,
    evidence: &'static str,
}

const ROWS: [Row; 10] = [
    Row {
        does: &["ip", "rule", "del", "pref", "512", "to", "POD"],
        undone_by: &[],
        id: "vpc-rule",
        object: "rule 512: to POD/32 table 254",
        evidence: "it is not there",
    },
    Row {
        does: &["ip", "rule", "del", "pref", "1536", "from", "POD"],
        undone_by: &[],
        id: "vpc-rule",
        object: "rule 1536: from POD/32 table 2",
        evidence: "it is not there",
    },
    Row {
        does: &["ip", "route", "del", "default", "table", "2"],
        undone_by: &[],
        id: "vpc-table",
        object: "table 2",
        evidence: "0.0.0.0/0 via 172.30.8.1",
    },
    Row {
        does: &["ip", "link", "set", "eth1", "mtu", "1400"],
        undone_by: &[],
        id: "vpc-device",
        object: "device eth1",
        evidence: "its MTU shall be 9001",
    },
    Row {
        does: &["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1"],
        undone_by: &["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2"],
        id: "vpc-rp-filter",
        object: "device eth0",
        evidence: "rp_filter is strict (1)",
    },
    Row {
        does: &["nft", "delete", "table", "ip", "causeway-vpc"],
        undone_by: &[],
        id: "vpc-translation",
        object: "this node",
        evidence: "causeway-vpc",
    },
    Row {
        does: &["ip", "link", "set", "DEVICE", "down"],
        undone_by: &["ip", "link", "set", "DEVICE", "up"],
        id: "pod-device",
        object: "Pod default/pod-4",
        evidence: "is down",
    },
    Row {
        does: &["iptables-restore", "-n", "RULES"],
        undone_by: &["nft", "flush", "ruleset"],
        id: "vpc-aws-node-rules",
        object: "chain ip nat AWS-SNAT-CHAIN-0",
        evidence: "aws-node left it",
    },
    Row {
        does: &["iptables-restore", "-n", "RULES"],
        undone_by: &["nft", "flush", "ruleset"],
        id: "vpc-aws-node-rules",
        object: "rules of chain ip mangle PREROUTING",
        evidence: "aws-node left it",
    },
    Row {
        does: &["nft", "add", "table", "ip", "aws-cni"],
        undone_by: &["nft", "delete", "table", "ip", "aws-cni"],
        id: "vpc-aws-node-rules",
        object: "table ip aws-cni",
        evidence: "aws-node left it",
    },
];

/// What the peer leaves of its rules.
const PEERS_RULES: &str = "*nat
:AWS-SNAT-CHAIN-0 - [0:0]
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 172.30.0.0/16 -j RETURN
COMMIT
*mangle
-A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
";

impl Node {
    /// What doctor finds of a kind: what it is about, and what was seen.
    fn found(&self, id: &str) -> Vec<[String; 2]> {
        let findings = self.doctor().unwrap_or_default().into_iter();
        let of_kind = findings.filter(|[kind, ..]| kind == id);
        of_kind
            .map(|[_, object, evidence, _]| [object, evidence])
            .collect()
    }

    #[track_caller]
    fn await_finding(&self, id: &str, object: &str, evidence: &str) {
        wait::until_value(
            &format!("doctor finds {id} of {object}"),
            3 * SOON,
            || self.found(id),
            |found| {
                found
                    .iter()
                    .any(|[about, seen]| about == object && seen.contains(evidence))
            },
        );
    }

    #[track_caller]
    fn await_no_finding(&self, id: &str) {
        wait::until_value(
            &format!("doctor finds no {id}"),
            3 * SOON,
            || self.found(id),
            Vec::is_empty,
        );
    }

    /// What `causeway explain` says.
    fn explain(&self, from: &str, to: &str) -> Result<Value> {
        let place = self.host.place();
        let mut command = process::command(&place, program("causeway"));
        command
            .args(["explain", "-o", "json", from, to, "--config"])
            .arg(&self.config)
            .env_remove("NODE_NAME");
        let said = process::run_in(&place, &mut command, b"")?;
        serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))
    }
}

impl Node {
    /// What `causeway trace` tells of a datagram that it sends.
    fn trace(&self, from: &str, to: &str) -> Result<String> {
        let place = self.host.place();
        let mut command = process::command(&place, program("causeway"));
        command
            .args(["trace", "--inject", "--own-namespaces", from, to, "--config"])
            .arg(&self.config)
            .env_remove("NODE_NAME");
        let said = process::run_in(&place, &mut command, b"")?;
        println!("{}{}", said.stdout, said.stderr);
        Ok(said.stdout)
    }
}

/// Two nodes, and on each five pods, the last two of the second interface.
fn world(label: &str) -> Result<World> {
    let mut world = World::build(
        label,
        2,
        &json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"}),
    )?;
    for (number, node) in world.nodes.iter_mut().enumerate() {
        node.start_agent(&KEYS)?;
        node.await_status();
        for pod in 0..5 {
            let prefix = if number == 0 { "pod" } else { "other" };
            node.add(&format!("{prefix}-{pod}"))?;
        }
        let rules = node.ip(&["rule"])?;
        let counts = ["512:", "1536:"].map(|rule| rules.matches(rule).count());
        ensure!(counts == [5, 2], "{rules}");
    }
    Ok(world)
}

#[test]
fn doctor_names_what_is_broken_on_the_node() -> Result<()> {
    if !privileged("doctor names what is broken on a node with a VPC's addresses") {
        return Ok(());
    }
    let world = world("vpc-doctor")?;
    let node = &world.nodes[0];
    let ids = |node: &Node| -> Result<Vec<String>> {
        let findings = node.doctor()?.into_iter();
        let of_mode = findings.filter(|[id, ..]| id.starts_with("vpc") || id.starts_with("pod"));
        Ok(of_mode.map(|finding| finding.join(" | ")).collect())
    };
    assert_eq!(ids(node)?, Vec::<String>::new(), "nothing is wrong yet");

    let pod = node.pods[4].address.to_string();
    let route = node.ip(&["-o", "route", "get", &pod])?;
    let device = route
        .split_ascii_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1);
    let device = device.context("a device")?;
    let rules = node.directory.write("rules", PEERS_RULES);
    let rules = rules.to_str().context("a path")?;
    let meant = |word: &str| {
        word.replace("POD", &pod)
            .replace("DEVICE", device)
            .replace("RULES", rules)
    };
    for row in &ROWS {
        println!("{:?}", row.does);
        let run = |command: &[&str]| {
            let words: Vec<String> = command.iter().map(|word| meant(word)).collect();
            let (program, arguments) = words.split_first().expect("a command");
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            node.host.command(program, &arguments)
        };
        run(row.does)?;
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    // A pass of the agent mends it; until then there is nothing to be done.
                    let _nothing_there = run(row.does);
                }
            });
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                node.await_finding(row.id, &meant(row.object), row.evidence);
            }));
            ends.store(true, Ordering::Relaxed);
            found
        })
        .map_err(|_| anyhow::anyhow!("{:?} is not found", row.does))?;
        if !row.undone_by.is_empty() {
            run(row.undone_by)?;
        }
        node.await_no_finding(row.id);
    }

    // The peer's agent.
    let path = node.directory.path().join("aws-node");
    std::fs::create_dir(&path)?;
    let peer = node.host.run(|| UnixListener::bind(path.join("ipamd.sock")))??;
    node.await_finding("vpc-aws-node", "DaemonSet kube-system/aws-node", "it answers in ");
    drop(peer);
    node.await_no_finding("vpc-aws-node");

    // A kubelet that takes more pods than three interfaces with three addresses each have.
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"allocatable": {"pods": "110"}},
    }));
    node.await_finding(
        "vpc-max-pods",
        "Node node-1",
        "takes 110 pods, and an instance of of.test has addresses for 9",
    );
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"allocatable": {"pods": "11"}},
    }));
    node.await_no_finding("vpc-max-pods");
    Ok(())
}

#[test]
fn interfaces_that_nobody_has_are_found_as_long_as_they_cannot_be_deleted() -> Result<()> {
    if !privileged("interfaces that nobody has are found") {
        return Ok(());
    }
    let mut world = World::build("vpc-leak", 1, &json!({"WARM_IP_TARGET": "1"}))?;
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::DeleteNetworkInterface);
    });
    let instance = world.nodes[0].instance.0.clone();
    let tags: Tags = [("node.k8s.amazonaws.com/instance_id".to_owned(), instance)].into();
    world.cloud.meddle(&Request::CreateNetworkInterface(NewEni {
        subnet: world.subnet.clone(),
        groups: Vec::new(),
        description: String::new(),
        tags,
        amount: Amount::Addresses(0),
        client_token: String::new(),
    }))?;
    let leaked = world
        .cloud
        .interfaces()
        .into_iter()
        .find(|interface| interface.eni.attachment.is_none());
    let leaked = leaked.context("it is there")?.eni.id;
    let node = &mut world.nodes[0];
    node.start_agent(&KEYS)?;
    node.await_status();
    node.await_finding(
        "vpc-leaked-interface",
        &format!("interface {leaked}"),
        "attached to no instance",
    );
    node.await_finding(
        "vpc-permission",
        "VPC addresses: leaks",
        "DeleteNetworkInterface: UnauthorizedOperation",
    );
    world.cloud.set_weather(|weather| weather.denied.clear());
    // It is looked for again in 20 minutes, or by the next agent.
    world.nodes[0].agent = None;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    world.nodes[0].await_no_finding("vpc-leaked-interface");
    assert_eq!(world.cloud.interfaces().len(), 1);
    Ok(())
}

/// One way of an explanation, a line for each thing that is told.
fn told(explanation: &Value, way: &str) -> String {
    let mut lines = String::new();
    for step in explanation[way].as_array().into_iter().flatten() {
        let texts = |key: &str| step[key].as_array().cloned().unwrap_or_default();
        for text in texts("objects")
            .iter()
            .chain(&texts("problems"))
            .chain(&texts("unknown"))
        {
            lines += &format!("{} {}\n", step["stage"], text.as_str().unwrap_or_default());
        }
        for entry in texts("kernel") {
            lines += &format!(
                "{} {} {} {}\n",
                step["stage"], entry["place"], entry["key"], entry["value"]
            );
        }
    }
    lines.replace('"', "")
}

#[test]
fn explain_tells_by_which_interface_pods_leave_and_with_which_address() -> Result<()> {
    if !privileged("explain tells by which interface pods of a VPC leave") {
        return Ok(());
    }
    let world = world("vpc-explain")?;
    let node = &world.nodes[0];
    let primary = world
        .cloud
        .interfaces_of(&node.instance)
        .into_iter()
        .map(|interface| interface.eni);
    let primary = primary
        .filter(|eni| eni.attachment.as_ref().is_some_and(|at| at.device_index == 0))
        .map(|eni| eni.primary.to_string())
        .next()
        .context("it has one")?;
    let [first, last] = [&node.pods[0], &node.pods[4]].map(|pod| pod.address.to_string());
    let other = world.nodes[1].pods[4].address.to_string();
    let rule = format!("rule 1536: from {last}/32 table 2");
    let snat = format!("its source becomes {primary}");
    // From, to, what is told of the way there, and what of the way back.
    let rows: [(&str, &str, Vec<&str>, Vec<&str>); 6] = [
        (
            &last,
            &other,
            vec![&rule, "dev eth1", "table 2"],
            vec!["behind eni", "table 254"],
        ),
        (
            &last,
            OUTSIDE,
            vec!["rule 1024", "mark 0x80", "dev eth0", &snat],
            vec!["behind eni"],
        ),
        (
            &first,
            OUTSIDE,
            vec!["rule 1024", "mark 0x80", "dev eth0", &snat],
            vec!["behind eni"],
        ),
        (
            &first,
            &other,
            vec!["is of the primary interface", "dev eth0"],
            vec!["behind eni"],
        ),
        (
            &other,
            &last,
            vec!["behind eni"],
            vec![&rule, "dev eth1", "table 2"],
        ),
        (&first, &last, vec!["behind eni"], vec!["behind eni"]),
    ];
    for (from, to, there, back) in rows {
        let explanation = node.explain(from, to)?;
        for (way, words) in [("forward", there), ("reverse", back)] {
            let told = told(&explanation, way);
            for word in words {
                ensure!(
                    told.contains(word),
                    "{from} {to} {way}: {word:?} is not in\n{told}"
                );
            }
        }
        ensure!(
            explanation["conclusion"] == "works",
            "{from} {to}: {explanation:#}"
        );
    }

    // A packet that is sent goes the ways that were explained.
    let outside = format!("{OUTSIDE}:9/udp");
    let listener = world
        .fabric
        .listen((OUTSIDE.parse::<std::net::IpAddr>()?, 9).into())?;
    let story = node.trace(&last, &outside)?;
    drop(listener);
    for word in ["eth0", &primary] {
        ensure!(story.contains(word), "{word:?} is not in\n{story}");
    }
    let story = node.trace(&last, &format!("{other}:{PORT}"))?;
    ensure!(story.contains("eth1") && !story.contains(&primary), "{story}");

    // A rule of somebody else's before ours has pods leave by an interface that does not have their address.
    node.ip(&["rule", "add", "pref", "600", "from", &last, "lookup", "main"])?;
    let explanation = node.explain(&last, &other)?;
    let told = told(&explanation, "forward");
    ensure!(
        explanation["conclusion"] == "fails" && told.contains("a VPC drops what comes from an address"),
        "{told}"
    );
    Ok(())
}

#[test]
fn explain_tells_that_a_pod_answers_by_the_interface_that_its_node_port_was_asked_by() -> Result<()> {
    if !privileged("explain tells by which interface the answers of node ports leave") {
        return Ok(());
    }
    let mut world = World::build(
        "vpc-ports",
        1,
        &json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"}),
    )?;
    let primary = world.cloud.interfaces_of(&world.nodes[0].instance).into_iter();
    let primary = primary.map(|interface| interface.eni.primary.to_string()).next();
    let primary = primary.context("it has one")?;
    let node = &mut world.nodes[0];
    let mut config: Value = serde_json::from_slice(&std::fs::read(&node.config)?)?;
    let pins = node.directory.path().join("bpf");
    config["proxy"] = json!({"datapath": "nftables", "pinDir": pins, "podNetworks": ["172.30.8.0/24"]});
    std::fs::write(&node.config, config.to_string())?;
    node.start_agent(&KEYS)?;
    node.await_status();
    for pod in 0..4 {
        node.add(&format!("pod-{pod}"))?;
    }
    let last = node.pods[3].address.to_string();
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": primary}]},
    }));
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "NodePort", "clusterIPs": ["10.96.0.7"], "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30_080}],
        },
    }));
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": PORT}], "endpoints": [{"addresses": [last], "nodeName": "node-1"}],
    }));
    let words = ["mark 0x80", "dev eth0", "rule 1024"];
    let explanation = wait::until_value(
        "the answer's way is told",
        3 * SOON,
        || {
            node.explain(OUTSIDE, &format!("{primary}:30080"))
                .unwrap_or_default()
        },
        |explanation| {
            let told = told(explanation, "reverse");
            explanation["conclusion"] == "works" && words.iter().all(|word| told.contains(word))
        },
    );
    let there = told(&explanation, "forward");
    ensure!(there.contains("behind eni"), "{there}");
    // Who asks for the pod itself is answered by the pod's own interface.
    let told = told(&node.explain(OUTSIDE, &last)?, "reverse");
    ensure!(told.contains("dev eth1") && !told.contains("mark"), "{told}");
    Ok(())
}
