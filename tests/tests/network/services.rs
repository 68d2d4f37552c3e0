//! A Service of one pod on a pod network, and the maps that serve it.

use std::path::Path;

use aya::Pod as Plain;
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use tests::network::{Network, Pod};

pub const VIP: &str = "10.96.0.7";

pub fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIPs": [VIP], "ports": [{"name": "http", "port": 80}]},
    })
}

pub fn slice(pod: &Pod, port_name: &str, ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": port_name, "port": 7000}],
        "endpoints": [{
            "addresses": [pod.address], "nodeName": "node-1", "conditions": {"ready": ready, "serving": ready},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": pod.id},
        }],
    })
}

pub fn map<K: Plain, V: Plain>(pins: &Path, name: &str) -> HashMap<MapData, K, V> {
    let layout = pins.join(format!("v{}", ebpf::abi::LAYOUT));
    let data = MapData::from_pin(layout.join(name)).expect("it is pinned");
    HashMap::try_from(Map::HashMap(data)).expect("it is a hash map")
}

#[track_caller]
pub fn run(world: &Network, program: &str, arguments: &[&str]) {
    let output = world.host(0).command(program, arguments).expect("it runs");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        output.stderr
    );
}
