//! The agent of a node, as a process: its command line, what it serves, and what outlives it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tests::cluster::programs;
use tests::fake_api::FakeApi;
use tests::process::{self, Process};
use tests::topology::Host;
use tests::wait;

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-agent-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary directory is writable");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("temporary directory is writable");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn causeway() -> PathBuf {
    let path = programs().join("causeway");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p node",
        path.display()
    );
    path
}

mod command_line {
    use super::*;

    #[track_caller]
    fn check(command: &mut Command, code: i32, words: &str) {
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert_eq!((output.status.code(), said.trim_end()), (Some(code), words));
    }

    #[test]
    fn a_cluster_command_without_its_program_says_which_one_is_missing() {
        let directory = Directory::new("alone");
        let alone = directory.0.join("causeway");
        std::fs::copy(causeway(), &alone).expect("copied");
        let missing = directory.0.join("causeway-cluster");
        let words = format!(
            "error: execute {}: No such file or directory (os error 2) (`causeway up` needs the program \
             causeway-cluster in the same directory as causeway)",
            missing.display()
        );
        check(Command::new(&alone).args(["up", "--nodes", "3"]), 2, &words);
    }

    #[test]
    fn a_cluster_command_hands_over_its_arguments_and_exit_code() {
        let directory = Directory::new("together");
        let program = directory.0.join("causeway");
        std::fs::copy(causeway(), &program).expect("copied");
        let script = directory.write("causeway-cluster", "#!/bin/sh\necho \"$@\"\nexit 7\n");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(script, executable).expect("own file");
        check(
            Command::new(&program).args(["status", "-o", "json", "-h"]),
            7,
            "status -o json -h",
        );
    }

    #[test]
    fn a_configuration_is_checked_with_an_exit_code_for_each_outcome() {
        let directory = Directory::new("check");
        let good = directory.write("good.yaml", "{nodeName: n, proxy: {podNetwork: 10.244.0.0/16}}");
        let bad = directory.write("bad.yaml", "stateDir: here\nproxy: {datapath: none}\n");
        let check_file = |path: &Path, code: i32, words: &str| {
            let config = path.to_str().expect("plain path");
            check(
                Command::new(causeway()).args(["node", "config", "check", "--config", config]),
                code,
                words,
            );
        };
        check_file(&good, 0, "");
        let words = format!("error: {}: stateDir: here is not an absolute path", bad.display());
        check_file(&bad, 1, &words);
        let words = "error: read /nonexistent.yaml: No such file or directory (os error 2)";
        check_file(Path::new("/nonexistent.yaml"), 2, words);
    }

    #[test]
    fn commands_that_are_unknown_or_incomplete_are_refused_with_code_2() {
        for arguments in [&["explode"][..], &[], &["node", "--confg", "f"]] {
            let output = Command::new(causeway())
                .args(arguments)
                .output()
                .expect("it starts");
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        }
    }

    #[test]
    fn the_version_is_told_to_people_and_programs() {
        let version = env!("CARGO_PKG_VERSION");
        check(
            Command::new(causeway()).arg("version"),
            0,
            &format!("causeway {version}"),
        );
        let json = format!(r#"{{"name":"causeway","version":"{version}"}}"#);
        check(Command::new(causeway()).args(["version", "-o", "json"]), 0, &json);
    }
}

mod privileged {
    use super::*;

    /// A node with an API server of its own.
    struct Node {
        host: Host,
        api: FakeApi,
        directory: Directory,
    }

    impl Node {
        fn new(label: &str) -> anyhow::Result<Self> {
            let host = Host::new(label)?;
            let api = FakeApi::start_on(host.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
            let directory = Directory::new(label);
            api.write_kubeconfig(&directory.0.join("kubeconfig"))?;
            for object in [
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}),
            ] {
                api.put(object);
            }
            Ok(Self { host, api, directory })
        }

        fn path(&self, name: &str) -> String {
            self.directory.0.join(name).display().to_string()
        }

        /// Writes the configuration, `edit` laid over what every test needs.
        fn configure(&self, edit: Value) -> PathBuf {
            let mut config = json!({
                "nodeName": "node-1",
                "kubernetes": {"kubeconfig": self.path("kubeconfig")},
                "proxy": {"datapath": "none"},
                "dns": {"feedSocket": self.path("dns.sock")},
                "stateDir": self.path("state"),
                "healthBind": "127.0.0.1:10256",
                "metricsBind": "127.0.0.1:10249",
            });
            merge(&mut config, edit);
            self.directory.write("node.yaml", &config.to_string())
        }

        fn agent(&self, config: &Path) -> Process {
            let place = self.host.place();
            let mut command = process::command(&place, causeway());
            command
                .arg("node")
                .arg("--config")
                .arg(config)
                .env_remove("NODE_NAME");
            Process::spawn(&place, &mut command).expect("the agent starts")
        }

        fn get(&self, port: u16, path: &str) -> std::io::Result<String> {
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            let answer = self.host.run(move || {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(request.as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            });
            answer.map_err(std::io::Error::other)?
        }

        /// The state that `/healthz` gives of a part.
        fn part(&self, name: &str) -> Option<String> {
            let answer = self.get(10256, "/healthz").ok()?;
            let (_, body) = answer.split_once("\r\n\r\n")?;
            let health: Value = serde_json::from_str(body).ok()?;
            Some(health["parts"][name]["state"].as_str()?.to_owned())
        }

        fn until_working(&self, part: &str) {
            wait::until_value(
                "the part works",
                DEADLINE,
                || self.part(part),
                |state| state.as_deref() == Some("working"),
            );
        }
    }

    fn merge(base: &mut Value, edit: Value) {
        match (base, edit) {
            (Value::Object(base), Value::Object(edit)) => {
                for (key, value) in edit {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
            (base, edit) => *base = edit,
        }
    }

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
        let program = directory.0.join("causeway");
        std::fs::copy(causeway(), &program).expect("copied");
        let output = Command::new(&program)
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
            Some(r#"{"begin":{"version":1}}"#)
        );
        assert!(
            feed.iter().any(|line| line.contains(r#""name":"web""#)),
            "{feed:#?}"
        );

        let lo = || {
            node.host
                .command("ip", &["-4", "address", "show", "lo"])
                .map(|output| output.stdout)
        };
        assert!(lo()?.contains("10.96.0.10/32"), "{}", lo()?);
        node.host
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
            || node.get(10249, "/metrics"),
            |page| {
                page.as_ref()
                    .is_ok_and(|page| page.contains("causeway_watch_failing{kind=\"Service\"} 1"))
            },
        );
        let health = node.get(10256, "/healthz")?;
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
        let taken = node.host.run(|| TcpListener::bind("127.0.0.1:10249"))??;
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
                || node.get(10256, path),
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
}
