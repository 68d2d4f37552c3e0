//! A node for an agent: a host on a LAN, with a fake API server of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tests::cgroup::Cgroup;
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::process::{self, Place, Process};
use tests::topology::{Host, Lan};
use tests::wait;

use crate::DEADLINE;

/// Where the agent's health checks and metrics are.
const HEALTH: u16 = 10_256;
const METRICS: u16 = 10_249;

/// A node with an API server of its own. Its address on the LAN is `.11`, its default route the LAN's switch.
pub struct Node {
    pub lan: Lan,
    pub api: FakeApi,
    pub directory: Directory,
    pub cgroup: Cgroup,
}

impl Node {
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let lan = Lan::new(label, "172.30.8.0/24".parse()?, 1)?;
        let host = lan.hosts.first().context("one was asked for")?;
        host.host
            .command("ip", &["route", "add", "default", "via", "172.30.8.1"])?;
        host.host.set("net/ipv4/ip_forward", "1")?;
        let api = FakeApi::start_on(host.host.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
        let directory = Directory::new(label);
        api.write_kubeconfig(&directory.0.join("kubeconfig"))?;
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}),
        ] {
            api.put(object);
        }
        let cgroup = Cgroup::new(label)?;
        Ok(Self {
            lan,
            api,
            directory,
            cgroup,
        })
    }

    pub fn host(&self) -> &Host {
        &self.lan.hosts.first().expect("invariant: made with one").host
    }

    /// Where the processes of this node run.
    pub fn place(&self) -> Place {
        Place {
            cgroup: Some(self.cgroup.path().to_owned()),
            ..self.host().place()
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.0.join(name).display().to_string()
    }

    /// Writes the configuration, `edit` laid over what every test needs.
    pub fn configure(&self, edit: Value) -> PathBuf {
        let mut config = json!({
            "nodeName": "node-1",
            "kubernetes": {"kubeconfig": self.path("kubeconfig")},
            "proxy": {"datapath": "none"},
            "dns": {"feedSocket": self.path("dns.sock")},
            "stateDir": self.path("state"),
            "healthBind": format!("127.0.0.1:{HEALTH}"),
            "metricsBind": format!("127.0.0.1:{METRICS}"),
        });
        merge(&mut config, edit);
        self.directory.write("node.yaml", &config.to_string())
    }

    pub fn agent(&self, config: &Path) -> Process {
        let place = self.place();
        let mut command = process::command(&place, program("causeway"));
        command
            .arg("node")
            .arg("--config")
            .arg(config)
            .env_remove("NODE_NAME");
        Process::spawn(&place, &mut command).expect("the agent starts")
    }

    pub fn health(&self, path: &str) -> std::io::Result<String> {
        self.get(HEALTH, path)
    }

    pub fn metrics(&self) -> std::io::Result<String> {
        self.get(METRICS, "/metrics")
    }

    pub fn get(&self, port: u16, path: &str) -> std::io::Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let answer = self.host().run(move || {
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
    pub fn part(&self, name: &str) -> Option<String> {
        let answer = self.health("/healthz").ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let health: Value = serde_json::from_str(body).ok()?;
        Some(health["parts"][name]["state"].as_str()?.to_owned())
    }

    pub fn until_working(&self, part: &str) {
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
