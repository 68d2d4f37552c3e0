//! The runtime's side of CNI 1.0: network configurations from a directory, plugins executed in their order (§4), the
//! configuration and result of an ADD kept for its DEL.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::disk::{DiskError, OnPath};

/// Name of the pod's device.
pub const INTERFACE: &str = "eth0";
/// How long one plugin may take.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(60);

/// Why a pod could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// Reading the configuration or executing a plugin.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No configuration is there yet.
    #[error("cni plugin not initialized")]
    NotConfigured,
    /// No such program in the plugin directories.
    #[error("failed to find plugin {plugin:?} in path {path:?}")]
    NoPlugin {
        /// Its `type`.
        plugin: String,
        /// Where it was looked for.
        path: String,
    },
    /// The plugin said no.
    #[error("plugin type={plugin:?} failed ({command}): {reason}")]
    Refused {
        /// Its `type`.
        plugin: String,
        /// `add` or `del`.
        command: String,
        /// Its error, or what it printed.
        reason: String,
    },
    /// The plugin took too long.
    #[error("plugin type={plugin:?} timed out ({command})")]
    TimedOut {
        /// Its `type`.
        plugin: String,
        /// `add` or `del`.
        command: String,
    },
}

/// A network configuration list (CNI §1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Version of the specification that it is written in.
    pub cni_version: String,
    /// Name of the network.
    pub name: String,
    /// The plugins, in the order of ADD.
    pub plugins: Vec<Value>,
}

impl NetworkConfig {
    /// The first valid configuration of a directory, by file name, as every runtime picks it.
    pub fn first_in(directory: &Path) -> Result<Option<Self>, DiskError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.on("read", directory)?,
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            path.extension()
                .is_some_and(|end| end == "conflist" || end == "conf" || end == "json")
        });
        files.sort();
        Ok(files.iter().find_map(|path| Self::parse(&fs::read(path).ok()?)))
    }

    /// A list, or a single plugin's configuration taken as a list of one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value.get("plugins").is_some() {
            let list: Self = serde_json::from_value(value).ok()?;
            return (!list.plugins.is_empty()).then_some(list);
        }
        let text = |key| value.get(key).and_then(Value::as_str).map(str::to_owned);
        text("type")?;
        let (name, cni_version) = (
            text("name")?,
            text("cniVersion").unwrap_or_else(|| "0.2.0".to_owned()),
        );
        Some(Self {
            cni_version,
            name,
            plugins: vec![value],
        })
    }

    /// What a plugin reads on standard input (§4, "Deriving request configuration").
    fn request(&self, plugin: &Value, previous: Option<&Value>, attachment: &Attachment) -> Value {
        let mut request = plugin.clone();
        let Some(map) = request.as_object_mut() else {
            return request;
        };
        let capabilities = map.remove("capabilities").unwrap_or_default();
        map.insert("cniVersion".to_owned(), json!(self.cni_version));
        map.insert("name".to_owned(), json!(self.name));
        let told = attachment.runtime_config().into_iter();
        let told: Map<String, Value> = told
            .filter(|(capability, _)| capabilities.get(capability).and_then(Value::as_bool) == Some(true))
            .collect();
        if !told.is_empty() {
            map.insert("runtimeConfig".to_owned(), Value::Object(told));
        }
        if let Some(previous) = previous {
            map.insert("prevResult".to_owned(), previous.clone());
        }
        request
    }
}

/// A `hostPort` of a pod, for plugins with the capability `portMappings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address of the node; empty = all.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

/// How fast packets may come to a pod and leave it, in bits, for plugins with the capability `bandwidth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// To the pod, in a second; 0 = no limit.
    pub ingress_rate: u64,
    /// To the pod, at once.
    pub ingress_burst: u64,
    /// From the pod, in a second; 0 = no limit.
    pub egress_rate: u64,
    /// From the pod, at once.
    pub egress_burst: u64,
}

/// One attachment of one sandbox: everything that ADD and DEL are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The configuration at the time of ADD: DEL gets the same one, whatever the directory says by then.
    pub config: NetworkConfig,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: String,
    /// Ports to map.
    pub ports: Vec<PortMapping>,
    /// Limits; none where neither direction has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// What ADD answered; `None` until it did.
    pub result: Option<Value>,
}

impl Attachment {
    /// The addresses that ADD answered, in their order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Some(ips) = self
            .result
            .as_ref()
            .and_then(|result| result.get("ips"))
            .and_then(Value::as_array)
        else {
            return Vec::new();
        };
        ips.iter()
            .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
            .collect()
    }

    /// What there is to tell by capability.
    fn runtime_config(&self) -> Map<String, Value> {
        let mut told = Map::new();
        if !self.ports.is_empty() {
            told.insert("portMappings".to_owned(), json!(self.ports));
        }
        if let Some(bandwidth) = &self.bandwidth {
            told.insert("bandwidth".to_owned(), json!(bandwidth));
        }
        told
    }

    /// ADD through all plugins. When one fails, DEL undoes what was done (§4, "Attaching").
    pub async fn add(&mut self, bin_dirs: &[PathBuf]) -> Result<(), CniError> {
        let mut result = None;
        for plugin in &self.config.plugins {
            let request = self.config.request(plugin, result.as_ref(), self);
            match self.execute(bin_dirs, plugin, "ADD", &request).await {
                Ok(answer) => result = Some(answer),
                Err(error) => {
                    if let Err(undo) = self.del(bin_dirs).await {
                        tracing::warn!(error = %undo, "failed attachment not undone");
                    }
                    return Err(error);
                }
            }
        }
        self.result = result;
        Ok(())
    }

    /// DEL through all plugins in reverse. Every plugin is tried; the first error is reported.
    pub async fn del(&self, bin_dirs: &[PathBuf]) -> Result<(), CniError> {
        let mut outcome = Ok(());
        for plugin in self.config.plugins.iter().rev() {
            let request = self.config.request(plugin, self.result.as_ref(), self);
            if let Err(error) = self.execute(bin_dirs, plugin, "DEL", &request).await {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    async fn execute(
        &self,
        bin_dirs: &[PathBuf],
        plugin: &Value,
        command: &'static str,
        request: &Value,
    ) -> Result<Value, CniError> {
        let plugin = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let path = std::env::join_paths(bin_dirs).unwrap_or_default();
        // A type is a file name, never a path: a configuration must not name any program of the machine.
        let program = (!plugin.is_empty() && !plugin.contains('/'))
            .then(|| {
                bin_dirs
                    .iter()
                    .map(|directory| directory.join(&plugin))
                    .find(|file| file.is_file())
            })
            .flatten()
            .ok_or_else(|| CniError::NoPlugin {
                plugin: plugin.clone(),
                path: path.to_string_lossy().into_owned(),
            })?;
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .on("execute", &program)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its input tells so by its exit code.
            let _ = stdin.write_all(request.to_string().as_bytes()).await;
        }
        let command = command.to_lowercase();
        let output = match tokio::time::timeout(PLUGIN_DEADLINE, child.wait_with_output()).await {
            Ok(output) => output.on("wait for", &program)?,
            Err(_) => return Err(CniError::TimedOut { plugin, command }),
        };
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
        }
        let reason = failure_reason(&output.stdout, &output.stderr);
        Err(CniError::Refused {
            plugin,
            command,
            reason,
        })
    }
}

/// The plugin's error object (§5, "Error") as text.
fn failure_reason(stdout: &[u8], stderr: &[u8]) -> String {
    let text = |value: &Value, key| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    match serde_json::from_slice::<Value>(stdout) {
        Ok(error) if error.get("code").is_some() => {
            let (message, details) = (text(&error, "msg"), text(&error, "details"));
            if details.is_empty() {
                message
            } else {
                format!("{message}: {details}")
            }
        }
        _ => {
            let said = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr })
                .trim()
                .to_owned();
            if said.is_empty() {
                "it failed without a message".to_owned()
            } else {
                said
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_carries_network_and_previous_result() {
        let list = NetworkConfig::parse(
            br#"{"cniVersion":"1.0.0","name":"net","plugins":[
                {"type":"a","x":1},{"type":"b","capabilities":{"portMappings":true}},
                {"type":"c","capabilities":{"portMappings":false,"bandwidth":true}}]}"#,
        )
        .expect("a valid list");
        let attachment = Attachment {
            config: list.clone(),
            container_id: "c".to_owned(),
            netns: PathBuf::new(),
            args: String::new(),
            ports: vec![PortMapping {
                host_port: 80,
                container_port: 8080,
                protocol: "tcp".to_owned(),
                host_ip: String::new(),
            }],
            bandwidth: Some(Bandwidth {
                ingress_rate: 1000,
                ingress_burst: 8,
                ..Bandwidth::default()
            }),
            result: None,
        };
        let previous = json!({"ips": []});
        let seen: Vec<Value> = list
            .plugins
            .iter()
            .map(|plugin| list.request(plugin, Some(&previous), &attachment))
            .collect();
        let mapping = json!([{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":""}]);
        let common = |kind| json!({"type":kind,"cniVersion":"1.0.0","name":"net","prevResult":{"ips":[]}});
        let (mut first, mut second, mut third) = (common("a"), common("b"), common("c"));
        first["x"] = json!(1);
        second["runtimeConfig"] = json!({ "portMappings": mapping });
        third["runtimeConfig"] = json!({"bandwidth": {
            "ingressRate": 1000, "ingressBurst": 8, "egressRate": 0, "egressBurst": 0,
        }});
        assert_eq!(seen, [first, second, third]);
    }

    #[test]
    fn errors_are_told_in_the_plugins_words() {
        for (stdout, stderr, expected) in [
            (
                r#"{"code":11,"msg":"try again","details":"agent away"}"#,
                "",
                "try again: agent away",
            ),
            (r#"{"code":11,"msg":"try again"}"#, "noise", "try again"),
            ("", "panic", "panic"),
            ("", "", "it failed without a message"),
        ] {
            assert_eq!(failure_reason(stdout.as_bytes(), stderr.as_bytes()), expected);
        }
    }
}
