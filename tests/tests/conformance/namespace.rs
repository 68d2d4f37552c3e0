//! A case's own namespace, and what it makes there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api::{Api, refusal};
use tests::client::Client;
use tests::wait;

use crate::world::{World, await_address, await_answer, image, make_namespace, remove_namespace, soon};

/// Where a Service's server answers HTTP, and UDP on the next port.
pub const HTTP: u16 = 8080;

/// The pods that [`Namespace::servers`] makes.
pub const SERVERS: [&str; 3] = ["server-1", "server-2", "server-3"];

/// A namespace, removed when dropped. It is also the world.
pub struct Namespace<'a> {
    world: &'a World,
    /// Its name.
    pub name: String,
}

impl Deref for Namespace<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        self.world
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        remove_namespace(&self.api, &self.name);
    }
}

impl<'a> Namespace<'a> {
    /// A new one.
    pub fn new(world: &'a World) -> anyhow::Result<Self> {
        let name = make_namespace(&world.api)?;
        Ok(Self { world, name })
    }

    /// The path of its objects of a kind, by the plural.
    pub fn collection(&self, kinds: &str) -> String {
        let root = match kinds {
            "endpointslices" => "apis/discovery.k8s.io/v1",
            _ => "api/v1",
        };
        format!("/{root}/namespaces/{}/{kinds}", self.name)
    }

    /// Makes an object.
    pub fn make(&self, kinds: &str, object: &Value) -> anyhow::Result<Object<'_>> {
        let collection = self.collection(kinds);
        let content = self.api.create(&collection, object)?;
        let name = content["metadata"]["name"].as_str().context("name")?;
        Ok(Object {
            api: &self.api,
            path: format!("{collection}/{name}"),
            content,
        })
    }

    /// Makes a Service of the servers, port 80 of TCP and UDP. `spec` says what else it has.
    pub fn service(&self, name: &str, spec: &Value) -> anyhow::Result<Object<'_>> {
        let ports = json!([
            {"name": "http", "port": 80, "targetPort": "http"},
            {"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"},
        ]);
        let mut whole = json!({"selector": {"app": "server"}, "ports": ports});
        merge(&mut whole, spec);
        self.make("services", &json!({"metadata": {"name": name}, "spec": whole}))
    }

    /// Makes a pod on a node, counted from 0. It has the label `app: server` and its own name as `pod`; `spec` says what
    /// else it has.
    pub fn pod(&self, name: &str, node: usize, spec: &Value) -> anyhow::Result<Object<'_>> {
        let node = self.nodes.get(node % self.nodes.len()).context("no such node")?;
        let mut whole = json!({
            "nodeName": node.name, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
        });
        merge(&mut whole, spec);
        let metadata = json!({"name": name, "labels": {"app": "server", "pod": name}});
        self.make("pods", &json!({"metadata": metadata, "spec": whole}))
    }

    /// Makes a pod that serves.
    pub fn server(&self, name: &str, node: usize) -> anyhow::Result<Object<'_>> {
        self.pod(name, node, &json!({"containers": [server(HTTP, "/readyz")]}))
    }

    /// Makes [`SERVERS`], the first one on the first node and so on, and waits until they are ready.
    pub fn servers(&self) -> anyhow::Result<()> {
        for (node, name) in SERVERS.into_iter().enumerate() {
            self.server(name, node)?;
        }
        for name in SERVERS {
            self.address(name);
        }
        Ok(())
    }

    /// Waits until a pod is ready, and tells its address.
    #[track_caller]
    pub fn address(&self, pod: &str) -> IpAddr {
        await_address(&self.api, &self.name, pod)
    }

    /// A client in a pod of the namespace, which has to become ready first.
    #[track_caller]
    pub fn client(&self, pod: &str) -> Client {
        let address = self.address(pod);
        Client::by_api(&self.world.api, (&self.name, pod), (pod, address), soon())
    }

    /// All nodes' addresses with a port.
    pub fn on_every_node(&self, port: u16) -> Vec<SocketAddr> {
        let addresses = self.nodes.iter().map(|node| node.address);
        addresses.map(|address| SocketAddr::new(address, port)).collect()
    }

    /// Waits until a Service's slices have these endpoints as ready ones: address and port.
    #[track_caller]
    pub fn await_endpoints(&self, service: &str, wanted: &[(IpAddr, u16)]) {
        let wanted: BTreeSet<_> = wanted
            .iter()
            .map(|&(ip, port)| SocketAddr::new(ip, port))
            .collect();
        await_answer(
            &format!("the EndpointSlices of {service} have {wanted:?}"),
            || self.ready_endpoints(service),
            |found| *found == wanted,
        );
    }

    /// Waits until a Service has all of [`SERVERS`] as ready endpoints of both protocols.
    #[track_caller]
    pub fn await_all_endpoints(&self, service: &str) {
        let addresses = SERVERS.map(|pod| self.address(pod));
        let wanted = addresses.map(|ip| [(ip, HTTP), (ip, HTTP + 1)]).concat();
        self.await_endpoints(service, &wanted);
    }

    fn ready_endpoints(&self, service: &str) -> anyhow::Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        for slice in self.slices(service)? {
            let ports = slice["ports"].as_array().cloned().unwrap_or_default();
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"] == false {
                    continue;
                }
                for address in endpoint["addresses"].as_array().into_iter().flatten() {
                    let address = address.as_str().context("an address")?.parse()?;
                    found.extend(
                        ports
                            .iter()
                            .map(|port| SocketAddr::new(address, number(&port["port"]))),
                    );
                }
            }
        }
        Ok(found)
    }

    /// A Service's EndpointSlices.
    pub fn slices(&self, service: &str) -> anyhow::Result<Vec<Value>> {
        let selector = format!("labelSelector=kubernetes.io/service-name%3D{service}");
        let list = self
            .api
            .read(&format!("{}?{selector}", self.collection("endpointslices")))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until an object satisfies `good`, and returns it.
    #[track_caller]
    pub fn await_object(&self, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        await_answer(&format!("{path}: {what}"), || self.api.read(path), good)
    }

    /// Waits until there is nothing at a path.
    #[track_caller]
    pub fn await_gone(&self, path: &str) {
        await_gone(&self.api, path);
    }
}

#[track_caller]
fn await_gone(api: &Api, path: &str) {
    wait::until(&format!("{path} is gone"), soon(), || match api.read(path) {
        Err(error) if refusal(&error) == Some(404) => Ok(()),
        other => Err(other),
    });
}

/// An object of the API.
pub struct Object<'a> {
    api: &'a Api,
    /// Where it is.
    pub path: String,
    /// As it was read last.
    pub content: Value,
}

impl Object<'_> {
    /// Changes its specification by a merge patch; `null` removes a field.
    pub fn patch(&mut self, spec: &Value) -> anyhow::Result<()> {
        self.merge(&json!({ "spec": spec }))
    }

    /// Changes it by a merge patch.
    pub fn merge(&mut self, patch: &Value) -> anyhow::Result<()> {
        self.content = self.api.merge_patch(&self.path, patch)?;
        Ok(())
    }

    /// Deletes it; a pod as its own grace period says.
    pub fn delete(&self) -> anyhow::Result<()> {
        self.api.delete(&self.path, None).map(|_| ())
    }

    /// Deletes it, and waits until it is gone.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.delete()?;
        await_gone(self.api, &self.path);
        Ok(())
    }

    /// A Service's ClusterIP and port.
    pub fn cluster_ip(&self) -> anyhow::Result<SocketAddr> {
        let address = self.content["spec"]["clusterIP"].as_str();
        let address = address.with_context(|| format!("no clusterIP in {}", self.content))?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// A Service's first node port.
    pub fn node_port(&self) -> anyhow::Result<u16> {
        let port = number(&self.content["spec"]["ports"][0]["nodePort"]);
        ensure!(port != 0, "no nodePort in {}", self.content);
        Ok(port)
    }
}

/// A port, 0 where there is none.
pub fn number(port: &Value) -> u16 {
    port.as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or_default()
}

/// A container that serves HTTP on this port and UDP on the next one, and is ready while it answers this path.
pub fn server(port: u16, ready_path: &str) -> Value {
    let (http, udp) = (format!(":{port}"), format!(":{}", port + 1));
    json!({
        "name": "server", "image": image(),
        "args": ["serve", "--http", http, "--udp", udp],
        "ports": [
            {"name": "http", "containerPort": port},
            {"name": "udp", "containerPort": port + 1, "protocol": "UDP"},
        ],
        "readinessProbe": {"httpGet": {"path": ready_path, "port": "http"}, "periodSeconds": 1},
    })
}

fn merge(whole: &mut Value, spec: &Value) {
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
}
