//! A trace over several nodes, told as one story. Nodes of the bundled cluster share a kernel, and each agent sees the
//! packets of all: with `--own-namespaces` it sees what it would on a machine of its own.

use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::everything;
use tests::process::{Place, Process, installed};
use tests::wait;

use crate::installation::LATER;
use crate::privileged_on::{NOT_FROM_ITS_CGROUP, World, interrupt, text};

const TO_SERVICE: [&str; 5] = ["--", "trace", "pod/client", "svc/server:80", "--inject"];
const OWN: &str = "--own-namespaces";

impl World<'_> {
    pub fn a_trace_is_one_story_of_all_nodes_on_the_way(&self) -> anyhow::Result<()> {
        self.cluster.run(&["label", "pod", "server", "app=server"])?;
        self.cluster
            .run(&["expose", "pod", "server", "--port=80", "--target-port=8080"])?;
        let explain = ["node-1", "--", "explain", "pod/client", "svc/server:80"];
        wait::until_value(
            "the Service to be served",
            LATER,
            || self.run(&explain).ok().and_then(|output| output.status.code()),
            |code| *code == Some(0),
        );

        let (story, _) = self.story(&[&TO_SERVICE[..], &[OWN]].concat(), 0)?;
        ensure!(story["verdict"] == "answered", "{story:#}");
        let (request, reply) = (way(&story, 0), way(&story, 1));
        ensure!(nodes(&request) == ["node-1", "node-2"], "{request:#?}");
        ensure!(nodes(&reply) == ["node-2", "node-1"], "{reply:#?}");
        // What a program continues in a pod's namespace passes no device there.
        for (way, pod) in [(&request, "client"), (&reply, "server")] {
            let first = way.first().context("a hop")?;
            ensure!(
                first.contains(&format!(" pod/default/{pod} eth0 sent")),
                "{story:#}"
            );
        }
        let on_the_wire = |place: &String| place.ends_with("host eth0 sent in VXLAN");
        ensure!(
            request
                .iter()
                .chain(&reply)
                .filter(|place| on_the_wire(place))
                .count()
                == 2,
            "{request:#?} {reply:#?}"
        );
        ensure!(
            story["service"]["name"] == "svc/default/server:80" && story["service"]["endpoint"].is_string(),
            "{story:#}"
        );
        // As one machine that tells of each hop once.
        let (whole, said) = self.story(&TO_SERVICE, 0)?;
        ensure!(
            (way(&whole, 0), way(&whole, 1)) == (request.clone(), reply.clone()),
            "{request:#?} {reply:#?} {whole:#}"
        );
        let expected = format!("on node-1, node-2\nnode-1: {NOT_FROM_ITS_CGROUP}\n");
        ensure!(said == expected, "{said}");

        let cut = Cut::between("node-1")?;
        let (lost, _) = self.story(&[&TO_SERVICE[..], &[OWN]].concat(), 1)?;
        let expected = json!({ "from": "node-1", "towards": "172.30.0.12", "to": "node-2" });
        ensure!(lost["verdict"] == "lost" && lost["gone"] == expected, "{lost:#}");
        ensure!(nodes(&way(&lost, 0)) == ["node-1"], "{lost:#}");
        let output = self.run(&TO_SERVICE)?;
        let told = text(&output.stdout);
        for line in [
            "  verdict: LOST BETWEEN node-1 and node-2\n",
            "\nLOST BETWEEN node-1 and node-2: it left node-1 by host eth0 to 172.30.0.12, and node-2 saw nothing of it\n",
        ] {
            ensure!(
                told.contains(line) && output.status.code() == Some(1),
                "{}",
                everything(&output)
            );
        }
        drop(cut);

        // The same on the way back, where the server's kernel has the request.
        let cut = Cut::between("node-2")?;
        let (lost, _) = self.story(&[&TO_SERVICE[..], &[OWN]].concat(), 1)?;
        let expected = json!({ "from": "node-2", "towards": "172.30.0.11", "to": "node-1" });
        ensure!(
            (&lost["verdict"], &lost["isReply"]) == (&json!("lost"), &json!(true))
                && lost["gone"] == expected,
            "{lost:#}"
        );
        drop(cut);

        // Who waits for packets may end it, on all nodes.
        let words = [
            "node-1,node-2",
            "--",
            "trace",
            "any",
            "10.244.9.9:1",
            "--timeout",
            "60s",
        ];
        let mut tracing = Process::spawn(&Place::default(), &mut self.command(&words))?;
        tracing.await_line("following packets", LATER);
        interrupt(&tracing)?;
        let status = tracing.await_end(LATER);
        ensure!(
            status.code() == Some(2) && tracing.output().contains("verdict: NOTHING SEEN"),
            "{status}: {}",
            tracing.output()
        );

        // One node tells as it always did.
        let words = [
            "node-2",
            "--",
            "trace",
            "any",
            "pod/server:8080",
            "--timeout",
            "1s",
            "-o",
            "json",
        ];
        let (nothing, _) = self.story(&words, 2)?;
        ensure!(
            nothing["verdict"] == "nothingSeen" && nothing.get("nodes").is_none(),
            "{nothing:#}"
        );
        Ok(())
    }

    /// Of a node whose part is missing the others tell.
    pub fn a_story_without_one_of_its_nodes_says_so(&self) -> anyhow::Result<()> {
        let words = ["--", "trace", "pod/client", "pod/server:8080", "--inject", OWN];
        let (story, _) = self.story(&words, 0)?;
        let missing = &story["nodes"][1];
        ensure!(
            story["verdict"] == "answered"
                && nodes(&way(&story, 0)) == ["node-1"]
                && (&missing["node"], &missing["missing"]) == (&json!("node-2"), &json!("no agent is on it")),
            "{story:#}"
        );
        let output = self.run(&words)?;
        let told = text(&output.stdout);
        ensure!(
            told.contains("\nMISSING: what node-2 saw: no agent is on it\n"),
            "{}",
            everything(&output)
        );
        Ok(())
    }

    /// The story as JSON, and what was said beside it.
    fn story(&self, words: &[&str], code: i32) -> anyhow::Result<(Value, String)> {
        let json: &[&str] = if words.contains(&"-o") {
            &[]
        } else {
            &["-o", "json"]
        };
        let output = self.run(&[words, json].concat())?;
        let story = serde_json::from_slice(&output.stdout).with_context(|| everything(&output))?;
        ensure!(output.status.code() == Some(code), "{}", everything(&output));
        Ok((story, text(&output.stderr)))
    }
}

/// Where a story's packet of that number passed devices: node, namespace, device, which way and whether it was wrapped.
fn way(story: &Value, number: usize) -> Vec<String> {
    let hops = story["packets"][number]["hops"].as_array().into_iter().flatten();
    let words = |hop: &Value| {
        let of = |name: &str| hop[name].as_str().unwrap_or_default().to_owned();
        let wrapped = if hop["wrapping"].is_object() {
            " in VXLAN"
        } else {
            ""
        };
        // Devices of pods have names of their own.
        let device = match of("device") {
            device if ["eth0", "flannel.1"].contains(&&*device) => device,
            _ => "veth".to_owned(),
        };
        format!("{} {} {device} {}{wrapped}", of("node"), of("at"), of("kind"))
    };
    hops.filter(|hop| hop["kind"] == "sent" || hop["kind"] == "received")
        .map(words)
        .collect()
}

/// The nodes on a way, each as often as it is entered.
fn nodes(way: &[String]) -> Vec<&str> {
    let mut nodes: Vec<&str> = way.iter().filter_map(|place| place.split(' ').next()).collect();
    nodes.dedup();
    nodes
}

/// A rule between nodes, in no namespace of theirs, that drops what comes through the tunnel from one of them. After a crash
/// it ends with the node's device; its table stays until the next one is made.
struct Cut;

impl Cut {
    fn between(node: &str) -> anyhow::Result<Self> {
        // One that a crash left has the hook of a device that is gone.
        nft("add table netdev cwt-cut; delete table netdev cwt-cut; add table netdev cwt-cut")?;
        let cut = Self;
        let hook = format!("{{ type filter hook ingress device cw-{node} priority 0; }}");
        nft(&format!("add chain netdev cwt-cut tunnel {hook}"))?;
        nft("add rule netdev cwt-cut tunnel udp dport 8472 drop")?;
        Ok(cut)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = nft("delete table netdev cwt-cut") {
            eprintln!("{error:#}");
        }
    }
}

fn nft(rule: &str) -> anyhow::Result<()> {
    let program = installed("nft").context("no nft: setup.sh brings it")?;
    let output = Command::new(program).arg(rule).output()?;
    ensure!(output.status.success(), "nft {rule}: {}", everything(&output));
    Ok(())
}
