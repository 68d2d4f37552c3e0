//! A node for an agent: a host on a LAN, with a fake API server of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::cluster::program;
use crate::directory::Directory;
use crate::fake_api::FakeApi;
use crate::http;
use crate::process::{self, Place, Process};
use crate::topology::{Host, Lan};
use crate::wait;

/// For a part to work.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where the agent's health checks and metrics are.
const HEALTH: u16 = 10_256;
const METRICS: u16 = 10_249;

/// A node with an API server of its own. Its address on the LAN is `.11`, its default route the LAN's switch.
#[derive(Debug)]
pub struct Node {
    /// Where the node's `eth0` is.
    pub lan: Lan,
    /// Its own, on its 127.0.0.1.
    pub api: FakeApi,
    /// For files of the agent.
    pub directory: Directory,
    /// Of all its processes and pods.
    pub cgroup: Cgroup,
}

impl Node {
    /// Builds it; no agent runs yet.
    ///
    /// # Errors
    /// When namespaces or cgroups cannot be made.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let lan = Lan::new(label, "172.30.8.0/24".parse()?, 1)?;
        let host = lan.hosts.first().context("one was asked for")?;
        host.host
            .command("ip", &["route", "add", "default", "via", "172.30.8.1"])?;
        host.host.set("net/ipv4/ip_forward", "1")?;
        let api = FakeApi::start_on(host.host.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
        let directory = Directory::new(label);
        api.write_kubeconfig(&directory.path().join("kubeconfig"))?;
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

    /// Its network namespace.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.lan.hosts.first().expect("invariant: made with one").host
    }

    /// Where the processes of this node run.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            cgroup: Some(self.cgroup.path().to_owned()),
            ..self.host().place()
        }
    }

    /// Of a file of the agent.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Writes the configuration, `edit` laid over what every test needs.
    #[must_use]
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

    /// Starts an agent.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
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

    /// Asks the port of the health checks.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn health(&self, path: &str) -> std::io::Result<String> {
        self.get(HEALTH, path)
    }

    /// The metrics, with the head of the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> std::io::Result<String> {
        self.get(METRICS, "/metrics")
    }

    /// Asks a port of 127.0.0.1, and returns the answer with its head.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, port: u16, path: &str) -> std::io::Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let answer = self.host().run(|| http::get(address, path));
        answer.map_err(std::io::Error::other)?
    }

    /// The state that `/healthz` gives of a part.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<String> {
        let answer = self.health("/healthz").ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let health: Value = serde_json::from_str(body).ok()?;
        Some(health["parts"][name]["state"].as_str()?.to_owned())
    }

    /// Waits until a part of the agent works.
    #[track_caller]
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
