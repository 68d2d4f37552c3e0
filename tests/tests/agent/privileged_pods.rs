//! Pods, from a CNI ADD to traffic, with a real etcd, while the agent comes and goes.

use std::net::TcpListener;
use std::process::Command;

use serde_json::{Value, json};
use tests::cluster::programs;
use tests::collector::Collector;
use tests::etcd;
use tests::node::Node;
use tests::process::{self, Output, Place};
use tests::topology::Host;
use tests::wait;

use crate::DEADLINE;
use crate::traffic::{Bpffs, ask, ask_on, await_progress, lines, serve, service, slice};

/// A pod: a namespace, and a name for it.
struct Pod<'a> {
    node: &'a Node,
    host: Host,
    id: &'static str,
}

impl<'a> Pod<'a> {
    fn new(node: &'a Node, id: &'static str) -> anyhow::Result<Self> {
        let host = Host::new(id)?;
        Ok(Self { node, host, id })
    }

    fn place(&self) -> Place {
        Place {
            cgroup: Some(self.node.cgroup.path().to_owned()),
            ..self.host.place()
        }
    }

    /// Calls the plugin as a runtime does, with the configuration that the agent wrote.
    fn cni(&self, verb: &str) -> anyhow::Result<Output> {
        let list: Value = serde_json::from_str(&std::fs::read_to_string(
            self.node.path("net.d/10-causeway.conflist"),
        )?)?;
        let mut config = list["plugins"][0].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        let mut command = Command::new(programs().join("causeway-cni"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.host.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", programs())
            .env(
                "CNI_ARGS",
                format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.id),
            );
        process::run_in(&self.node.place(), &mut command, config.to_string().as_bytes())
    }

    /// ADD; returns the pod's address.
    fn add(&self) -> anyhow::Result<String> {
        let output = self.cni("ADD")?;
        anyhow::ensure!(
            output.status.success(),
            "ADD {}: {} {}",
            self.id,
            output.stdout,
            output.stderr
        );
        let result: Value = serde_json::from_str(&output.stdout)?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        Ok(address.split('/').next().unwrap_or_default().to_owned())
    }
}

/// The pod's ADD, and the Service's way into the kernel, as the collector was told of them.
#[track_caller]
fn assert_traced(collector: &Collector) {
    let has = |span: &Value, key: &str, value: &Value| {
        let mut attributes = span["attributes"].as_array().into_iter().flatten();
        attributes.any(|attribute| attribute["key"] == key && attribute["value"] == *value)
    };
    let child = |spans: &[Value], parent: &Value, name: &str| {
        let of =
            |span: &&Value| span["traceId"] == parent["traceId"] && span["parentSpanId"] == parent["spanId"];
        spans.iter().filter(of).find(|span| span["name"] == name).cloned()
    };
    wait::until_value(
        "the pod and the Service are traced",
        DEADLINE,
        || collector.spans(),
        |spans| {
            let named = |name: &'static str| spans.iter().filter(move |span| span["name"] == name);
            let added = named("cni").any(|cni| {
                has(cni, "verb", &json!({"stringValue": "add"}))
                    && has(cni, "pod", &json!({"stringValue": "default/server"}))
                    && has(cni, "result", &json!({"stringValue": "ok"}))
                    && child(spans, cni, "decide").is_some()
            });
            let programmed = named("change").any(|change| {
                let program = child(spans, change, "program");
                let program = program.filter(|program| has(program, "services", &json!({"intValue": "1"})));
                child(spans, change, "watch").is_some()
                    && program.is_some_and(|program| {
                        ["plan", "apply"]
                            .iter()
                            .all(|part| child(spans, &program, part).is_some())
                    })
            });
            added && programmed
        },
    );
}

#[test]
fn pods_are_connected_and_stay_so_while_the_agent_is_killed_and_restarted() -> anyhow::Result<()> {
    let claim = "pods are connected and stay so while the agent is killed";
    if !tests::privileged(claim) {
        return Ok(());
    }
    let Some(program) = etcd::program() else {
        tests::skipped(claim, "no etcd on PATH or in target/tools (run ./setup.sh test)");
        return Ok(());
    };
    let node = Node::new("pods")?;
    let _bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
    let running = etcd::start(&node.host().place(), &program, &node.path("etcd"))?;
    let collector = Collector::start_on(node.host().run(|| TcpListener::bind("127.0.0.1:0"))??)?;
    let config = node.configure(json!({
        "telemetry": {"endpoint": collector.url()},
        "network": {
            "etcd": {"endpoints": [etcd::URL]},
            "config": {"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}},
            "interface": "eth0",
            "subnetEnv": node.path("subnet.env"),
        },
        "proxy": {"datapath": "ebpf", "cgroup": node.cgroup.path(), "pinDir": node.path("bpf/causeway")},
        "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
    }));
    let mut agent = node.agent(&config);
    for part in ["overlay", "cni"] {
        node.until_working(part);
    }
    let [server, client] = [Pod::new(&node, "server")?, Pod::new(&node, "client")?];
    let (server_address, client_address) = (server.add()?, client.add()?);
    assert_ne!(server_address, client_address);
    let _serving = serve(&server.place(), &server_address)?;
    let answer = format!("from {server_address}");
    assert_eq!(
        ask(&client.place(), &format!("http://{server_address}:8080/")),
        Ok(answer.clone())
    );

    node.api.put(service(80));
    node.api.put(slice(&[&server_address]));
    let url = "http://10.96.0.7/";
    wait::until_value(
        "the Service",
        DEADLINE,
        || ask(&client.place(), url).ok(),
        |seen| seen.as_ref() == Some(&answer),
    );
    assert_traced(&collector);
    let asking = ask_on(&client.place(), url)?;
    await_progress(&asking, "requests with the agent");
    agent.kill();
    drop(running);
    await_progress(&asking, "requests without agent and etcd");

    let late = Pod::new(&node, "late")?;
    let refused = late.cni("ADD")?;
    assert!(!refused.status.success());
    let error: Value = serde_json::from_str(&refused.stdout)?;
    assert_eq!(error["code"], 11, "try again later: {error}");

    let running = etcd::start(&node.host().place(), &program, &node.path("etcd"))?;
    let _agent = node.agent(&config);
    for part in ["overlay", "cni", "proxy"] {
        node.until_working(part);
    }
    let late_address = late.add()?;
    assert!(
        late_address != server_address && late_address != client_address,
        "{late_address}"
    );
    assert!(late.cni("DEL")?.status.success());
    assert!(late.cni("DEL")?.status.success(), "again, and nothing is there");
    await_progress(&asking, "requests with the next agent");
    assert_eq!(lines(&asking, "FAILED"), 0, "{}", asking.output());
    drop(running);
    Ok(())
}
