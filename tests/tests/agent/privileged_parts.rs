//! What the agent serves, and how its parts fail alone.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::node::Node;
use tests::process::{Place, Process, copy_program};
use tests::topology::{Host, connect};
use tests::wait;

use crate::DEADLINE;

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}]},
    })
}

/// Reads the feed until a line contains the text.
fn read_feed(path: &str, text: &str) -> anyhow::Result<Vec<String>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        lines.push(line.with_context(|| format!("no {text} after {lines:#?}"))?);
        if lines.last().is_some_and(|line| line.contains(text)) {
            return Ok(lines);
        }
    }
    anyhow::bail!("the feed ended after {lines:#?}")
}

#[test]
fn without_root_the_agent_says_so_in_one_line() {
    if !tests::privileged("without root the agent says so in one line") {
        return;
    }
    let directory = Directory::new("nobody");
    let copy = directory.path().join("causeway");
    copy_program(&program("causeway"), &copy).expect("copied");
    let output = Command::new(&copy)
        .arg("node")
        .uid(65_534)
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: must run as root: the agent programs the kernel's network\n"
    );
}

#[test]
fn the_agent_serves_health_metrics_and_the_dns_feed_through_an_outage_of_the_api() -> anyhow::Result<()> {
    if !tests::privileged("the agent serves health, metrics and the DNS feed") {
        return Ok(());
    }
    let node = Node::new("serves")?;
    node.api.put(service("web"));
    let config = node.configure(json!({"dns": {"address": "10.96.0.10"}}));
    let mut agent = node.agent(&config);
    for part in ["watch", "dns-feed", "dns-address", "health", "metrics"] {
        node.until_working(part);
    }
    let socket = node.path("dns.sock");
    let feed = read_feed(&socket, "\"end\"")?;
    assert_eq!(
        feed.first().map(String::as_str),
        Some(r#"{"begin":{"version":1,"hears":true}}"#)
    );
    assert!(
        feed.iter().any(|line| line.contains(r#""name":"web""#)),
        "{feed:#?}"
    );

    let lo = || {
        node.host()
            .command("ip", &["-4", "address", "show", "lo"])
            .map(|output| output.stdout)
    };
    assert!(lo()?.contains("10.96.0.10/32"), "{}", lo()?);
    node.host()
        .command("ip", &["address", "del", "10.96.0.10/32", "dev", "lo"])?;
    wait::until_value(
        "the address is back",
        DEADLINE,
        || lo().unwrap_or_default(),
        |lo| lo.contains("10.96.0.10/32"),
    );

    node.api.go_down();
    let _page = wait::until_value(
        "the outage is told",
        DEADLINE,
        || node.metrics(),
        |page| {
            page.as_ref()
                .is_ok_and(|page| page.contains("causeway_watch_failing{kind=\"Service\"} 1"))
        },
    );
    let host = node.api.address();
    for code in ["200", "<error>"] {
        let requests =
            format!("rest_client_requests_total{{code=\"{code}\",host=\"{host}\",method=\"GET\"}} ");
        wait::until_value(
            "requests are counted by what became of them",
            DEADLINE,
            || node.metrics().unwrap_or_default(),
            |page| page.contains(&requests),
        );
    }
    let health = node.health("/healthz")?;
    assert!(
        health.starts_with("HTTP/1.0 200"),
        "an outage of the API is no fault of the node: {health}"
    );
    let feed = read_feed(&socket, "\"end\"")?;
    assert!(
        feed.iter().any(|line| line.contains(r#""name":"web""#)),
        "{feed:#?}"
    );

    node.api.put(service("later"));
    node.api.come_up();
    read_feed(&socket, r#""name":"later""#)?;

    agent.terminate()?;
    assert_eq!(agent.await_end(DEADLINE).code(), Some(0));
    assert!(lo()?.contains("10.96.0.10/32"), "the address outlives the agent");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_a_part_that_cannot_work_stops_no_other() -> anyhow::Result<()> {
    if !tests::privileged("a second agent is refused") {
        return Ok(());
    }
    let node = Node::new("second")?;
    let taken = node.host().run(|| TcpListener::bind("127.0.0.1:10249"))??;
    let config = node.configure(json!({}));
    let mut agent = node.agent(&config);
    node.until_working("dns-feed");
    assert_eq!(node.part("metrics").as_deref(), Some("failing"));
    drop(taken);
    node.until_working("metrics");

    let mut second = node.agent(&config);
    assert_eq!(second.await_end(DEADLINE).code(), Some(2));
    assert!(
        second.output().contains("does another agent run?"),
        "{}",
        second.output()
    );

    agent.kill();
    let _third = node.agent(&config);
    node.until_working("dns-feed");
    Ok(())
}

#[test]
fn a_node_that_is_going_away_is_unhealthy_for_load_balancers_only() -> anyhow::Result<()> {
    if !tests::privileged("a node that is going away is unhealthy for load balancers only") {
        return Ok(());
    }
    let node = Node::new("draining")?;
    let _agent = node.agent(&node.configure(json!({})));
    let answers = |path: &'static str, code: &'static str| {
        let _answer = wait::until_value(
            path,
            DEADLINE,
            || node.health(path),
            |answer| {
                answer
                    .as_ref()
                    .is_ok_and(|answer| answer.starts_with(&format!("HTTP/1.0 {code}")))
            },
        );
    };
    answers("/healthz", "200");
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
    }));
    answers("/healthz", "503");
    answers("/livez", "200");
    Ok(())
}

/// An API server on another host, whose packets vanish: no reset tells that the connection is dead.
#[test]
fn an_api_server_that_falls_silent_is_noticed_within_20_seconds() -> anyhow::Result<()> {
    if !tests::privileged("an API server that falls silent is noticed within 20 seconds") {
        return Ok(());
    }
    let node = Node::new("silent")?;
    let api = FakeApi::start_on(node.lan.switch.run(|| TcpListener::bind("172.30.8.1:0"))??)?;
    api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    api.write_kubeconfig(&node.directory.path().join("kubeconfig"))?;
    let _agent = node.agent(&node.configure(json!({})));
    let kinds = 5;
    let failing = |count: usize| {
        let start = Instant::now();
        wait::until_value(
            "watches fail, or work",
            Duration::from_secs(40),
            || node.metrics().unwrap_or_default(),
            |page| {
                let values = page
                    .lines()
                    .filter(|line| line.starts_with("causeway_watch_failing{"));
                let values: Vec<_> = values.collect();
                values.len() == kinds && values.iter().filter(|line| line.ends_with(" 1")).count() == count
            },
        );
        start.elapsed()
    };
    failing(0);
    drop_on_the_way(&node, &[])?;
    let noticed = failing(kinds);
    assert!(noticed <= Duration::from_secs(20), "noticed after {noticed:?}");
    node.host().command("nft", &["delete", "table", "inet", "hole"])?;
    failing(0);
    Ok(())
}

/// What the API server sends vanishes before the node, where it is of this kind, until the table `inet hole` goes.
fn drop_on_the_way(node: &Node, of: &[&str]) -> anyhow::Result<()> {
    let from_server = ["add", "rule", "inet", "hole", "in", "ip", "saddr", "172.30.8.1"];
    for rule in [
        &["add", "table", "inet", "hole"][..],
        &[
            "add",
            "chain",
            "inet",
            "hole",
            "in",
            "{ type filter hook input priority 0; }",
        ],
        &[&from_server[..], of, &["drop"]].concat(),
    ] {
        let output = node.host().command("nft", rule)?;
        anyhow::ensure!(output.status.success(), "nft {rule:?}: {}", output.stderr);
    }
    Ok(())
}

/// A balancer in front of the API that forgot its connections: their packets vanish, new ones are answered.
#[test]
fn connections_that_are_forgotten_on_their_way_are_replaced_within_20_seconds() -> anyhow::Result<()> {
    if !tests::privileged("connections that are forgotten on their way are replaced within 20 seconds (F20)")
    {
        return Ok(());
    }
    let node = Node::new("forgotten")?;
    let api = FakeApi::start_on(node.lan.switch.run(|| TcpListener::bind("172.30.8.1:0"))??)?;
    api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    api.put(service("web"));
    api.write_kubeconfig(&node.directory.path().join("kubeconfig"))?;
    let _agent = node.agent(&node.configure(json!({})));
    node.until_working("dns-feed");
    read_feed(&node.path("dns.sock"), r#""name":"web""#)?;
    let sockets = ["-Htn", "state", "established", "dst", "172.30.8.1"];
    let sockets = node.host().command("ss", &sockets)?.stdout;
    let local = sockets.lines().filter_map(|line| line.split_whitespace().nth(2));
    let ports: Vec<_> = local
        .filter_map(|local| Some(local.rsplit_once(':')?.1))
        .collect();
    anyhow::ensure!(!ports.is_empty(), "{sockets}");
    let ports = format!("{{ {} }}", ports.join(", "));
    drop_on_the_way(&node, &["tcp", "dport", &ports])?;
    api.put(service("later"));
    let vanished = Instant::now();
    read_feed(&node.path("dns.sock"), r#""name":"later""#)?;
    let seen = vanished.elapsed();
    assert!(seen <= Duration::from_secs(20), "seen after {seen:?}");
    println!("F20: a change was seen {seen:?} after its connection was forgotten");
    Ok(())
}

fn doctor(config: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program("causeway"));
    command.arg("doctor").arg("--config").arg(config).args(arguments);
    Ok(command.env_remove("NODE_NAME").output()?)
}

#[test]
fn flows_knows_the_agents_services_by_name() -> anyhow::Result<()> {
    if !tests::privileged("flows knows the agent's Services by name") {
        return Ok(());
    }
    let node = Node::new("flows")?;
    let config = node.configure(json!({
        "proxy": {
            "datapath": "nftables", "pinDir": node.path("bpf"), "podNetworks": ["10.244.0.0/16"],
        },
    }));
    node.api.put(service("web"));
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
        },
        "ports": [{"port": 8080}],
        "endpoints": [{
            "addresses": ["10.244.9.5"], "nodeName": "node-9", "targetRef": {"kind": "Pod", "name": "web-7f"},
        }],
    }));
    let _agent = node.agent(&config);
    node.until_working("proxy");
    node.until_working("findings");
    let flows = |service: &str| {
        let mut command = Command::new(program("causeway"));
        command.args([
            "flows",
            "--for",
            "1s",
            "-o",
            "json",
            "--service",
            service,
            "--config",
        ]);
        command.arg(&config).env_remove("NODE_NAME").output()
    };
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = flows("web")?;
    assert_eq!((output.status.code(), told(&output).as_str()), (Some(0), ""));
    let output = flows("wed")?;
    let told = told(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("no Service default/wed"), "{told}");
    // Names are read alike by all commands, and a port that is none is told with those that are.
    for (arguments, part) in [
        (&["flows", "--service", "web:9"][..], "has svc/web:80/tcp alone"),
        (&["capture", "svc/web.default:9"], "has svc/web:80/tcp alone"),
        (&["capture", "web:9"], "has svc/web:80/tcp alone"),
        (
            &["capture", "svc/web/icmp"],
            "no device of this machine has an address of svc/web/icmp",
        ),
        (
            &["capture", "pod/wed"],
            "no pod default/wed is known to this node's agent",
        ),
        (
            &["drops", "--pod", "wed"],
            "no pod default/wed is known to this node's agent",
        ),
        (&["trace", "any", "svc/wed:80"], "did you mean svc/web?"),
    ] {
        let mut command = Command::new(program("causeway"));
        command.args(arguments).arg("--config").arg(&config);
        let output = command.env_remove("NODE_NAME").output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    Ok(())
}

#[test]
fn flows_names_what_was_made_after_it_began() -> anyhow::Result<()> {
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 96, 77, 1);
    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 77, 7);
    if !tests::privileged("flows names what was made after it began") {
        return Ok(());
    }
    let node = Node::new("named")?;
    let config = node.configure(json!({
        "proxy": {
            "datapath": "nftables", "pinDir": node.path("bpf"), "podNetworks": ["10.244.0.0/16"],
        },
    }));
    let _agent = node.agent(&config);
    node.until_working("proxy");
    node.until_working("findings");
    // Somebody who sends to the Service's address, and somebody who has it: it is the name that counts.
    let (client, server) = (Host::new("client")?, Host::new("server")?);
    connect((&client, "eth0"), (&server, "eth0"))?;
    client.add_address("eth0", "10.96.77.1/24".parse()?)?;
    server.add_address("eth0", "10.96.77.7/24".parse()?)?;
    let socket = client.run(|| UdpSocket::bind((CLIENT, 40000)))??;
    let mut command = Command::new(program("causeway"));
    command.args([
        "flows",
        "--follow",
        "-o",
        "ndjson",
        "--to",
        "10.96.77.7",
        "--config",
    ]);
    command.arg(&config).env_remove("NODE_NAME");
    let flows = Process::spawn(&Place::default(), &mut command)?;
    let until_told = |text: &str| {
        wait::until(&format!("flows tells {text}"), DEADLINE, || {
            // Nobody listens: that is told to the socket.
            let _ = socket.send_to(b"hello", (SERVICE, 80));
            let told = flows.output();
            if told.contains(text) { Ok(()) } else { Err(told) }
        });
    };
    until_told(r#""destination":"10.96.77.7""#);
    assert!(
        !flows.output().contains("destination_service"),
        "{}",
        flows.output()
    );
    let mut later = service("later");
    later["spec"] = json!({"clusterIPs": [SERVICE], "ports": [{"port": 80, "protocol": "UDP"}]});
    node.api.put(later);
    until_told(r#""destination_service":{"name":"later","namespace":"default"}"#);
    Ok(())
}

fn findings(config: &Path) -> Vec<[String; 3]> {
    let output = doctor(config, &["-o", "json"]).expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let short = |finding: &Value| ["id", "object", "evidence"].map(|field| text(finding, field));
    findings.iter().map(short).collect()
}

#[test]
fn doctor_names_each_bad_object_what_is_wrong_with_it_and_what_helps() -> anyhow::Result<()> {
    if !tests::privileged("doctor names each bad object") {
        return Ok(());
    }
    let node = Node::new("doctor")?;
    let config = node.configure(json!({
        "proxy": {
            "datapath": "nftables", "pinDir": node.path("bpf"), "podNetworks": ["10.244.0.0/16"],
        },
    }));
    let output = doctor(&config, &[])?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("agent.sock") && error.contains("does `causeway node` run"),
        "{error}"
    );

    node.api.put(service("web"));
    let _agent = node.agent(&config);
    node.until_working("proxy");
    node.until_working("findings");
    let output = doctor(&config, &[])?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text, "node-1: nothing wrong, 0 notes\n");

    // The same address again, an endpoint that would reach the node's own loopback, a port and a protocol that are none.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
        },
        "ports": [{"port": 70_000}, {"port": 8080, "protocol": "\u{1b}[2J"}],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    });
    // Policies, families, networks and addresses that are none.
    let lies = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "lies"},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.300"], "ports": [{"port": 80}],
            "externalTrafficPolicy": "Nowhere", "sessionAffinity": "Sometimes",
        },
    });
    let mut ranges = service("ranges");
    ranges["spec"]["clusterIPs"] = json!(["10.96.0.8"]);
    ranges["spec"]["loadBalancerSourceRanges"] = json!(["everywhere"]);
    let families = |name: &str, kind: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [{"port": 8080}], "endpoints": [{"addresses": [address]}],
        })
    };
    let others = [
        lies,
        ranges,
        families("web-2", "IPX", "10.244.0.9"),
        families("web-3", "IPv4", "fd00::9"),
    ];
    node.api.put(service("worse"));
    for object in others.iter().chain([&slice]) {
        node.api.put(object.clone());
    }
    let expected = [
        [
            "object-rejected",
            "Service default/lies",
            "spec.clusterIPs[0] is not used",
        ],
        [
            "object-rejected",
            "Service default/lies",
            "\"Nowhere\" is not Cluster or Local",
        ],
        [
            "object-rejected",
            "Service default/lies",
            "\"Sometimes\" is not None or ClientIP",
        ],
        [
            "object-rejected",
            "Service default/ranges",
            "\"everywhere\" is not a network",
        ],
        [
            "object-rejected",
            "EndpointSlice default/web-2",
            "\"IPX\" is not IPv4, IPv6 or FQDN",
        ],
        [
            "object-rejected",
            "EndpointSlice default/web-3",
            "fd00::9 is not of the slice's address type",
        ],
        [
            "object-rejected",
            "EndpointSlice default/web-1",
            "ports[0].port is not used: 70000 is not a port number",
        ],
        [
            "object-rejected",
            "EndpointSlice default/web-1",
            "ports[1].protocol is not used: \"\\u{1b}[2J\" is not TCP",
        ],
        [
            "object-rejected",
            "EndpointSlice default/web-1",
            "127.0.0.1 is a loopback address",
        ],
        ["not-served", "Service default/worse", "is taken by default/web"],
    ];
    let is_there = |found: &[[String; 3]], [id, object, evidence]: [&str; 3]| {
        let mut found = found.iter();
        found.any(|finding| finding[0] == id && finding[1] == object && finding[2].contains(evidence))
    };
    wait::until_value(
        "doctor names all of them",
        DEADLINE,
        || findings(&config),
        |found| expected.iter().all(|row| is_there(found, *row)) && found.len() == expected.len(),
    );
    let output = doctor(&config, &[])?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.ends_with("node-1: 10 wrong, 0 notes\n"), "{text}");
    assert!(
        text.contains("repair: give one of the two another address or port\n"),
        "{text}"
    );

    assert!(node.api.delete(&service("worse")));
    for object in others.iter().chain([&slice]) {
        assert!(node.api.delete(object));
    }
    wait::until_value("all is well again", DEADLINE, || findings(&config), Vec::is_empty);

    node.api.go_down();
    let outage = ["watch-failing", "watch of Service", ""];
    wait::until_value(
        "doctor tells of the outage",
        DEADLINE,
        || findings(&config),
        |found| is_there(found, outage),
    );
    node.api.come_up();
    wait::until_value("and of its end", DEADLINE, || findings(&config), Vec::is_empty);
    Ok(())
}
