//! Where it is kept which node has which part of the pods' addresses.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::world::{self, World};

const SOON: Duration = Duration::from_secs(30);

pub fn leases(world: &World) -> anyhow::Result<()> {
    let nodes = world.cluster.run(&["get", "nodes", "-o", "json"])?;
    let nodes: Value = serde_json::from_str(&nodes)?;
    let nodes = nodes["items"].as_array().context("a list")?;
    ensure!(nodes.len() == 3, "{nodes:?}");
    for node in nodes {
        match world::leases(&world.datapath) {
            "etcd" => in_etcd(node)?,
            _ => in_nodes(world, node)?,
        }
    }
    Ok(())
}

fn in_etcd(node: &Value) -> anyhow::Result<()> {
    ensure!(node["spec"]["podCIDRs"].is_null(), "{node}");
    let annotations = node["metadata"]["annotations"].to_string();
    ensure!(!annotations.contains("flannel"), "{annotations}");
    Ok(())
}

fn in_nodes(world: &World, node: &Value) -> anyhow::Result<()> {
    let name = node["metadata"]["name"].as_str().context("a name")?;
    let cidrs = node["spec"]["podCIDRs"].as_array().context("podCIDRs")?.iter();
    let cidrs: Vec<IpNetwork> = cidrs
        .map(|cidr| anyhow::Ok(cidr.as_str().context("a text")?.parse()?))
        .collect::<Result<_, _>>()?;
    ensure!(
        cidrs.len() == 2 && cidrs[0].is_ipv4() && cidrs[1].is_ipv6(),
        "{cidrs:?}"
    );
    ensure!(node["spec"]["podCIDR"] == node["spec"]["podCIDRs"][0], "{node}");

    let pods = world.cluster.run(&["get", "pods", "-A", "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let on_node = pods["items"].as_array().into_iter().flatten();
    let on_node = on_node.filter(|pod| pod["spec"]["nodeName"] == name && pod["spec"]["hostNetwork"] != true);
    let addresses = on_node.flat_map(|pod| pod["status"]["podIPs"].as_array().cloned().unwrap_or_default());
    let addresses: Vec<IpAddr> = addresses
        .map(|address| anyhow::Ok(address["ip"].as_str().context("a text")?.parse()?))
        .collect::<Result<_, _>>()?;
    ensure!(addresses.len() >= 2, "pods of {name} have {addresses:?}");
    for address in addresses {
        ensure!(
            cidrs.iter().any(|cidr| cidr.contains(address)),
            "{address} is not of {cidrs:?}"
        );
    }

    let condition = "jsonpath={.status.conditions[?(@.type==\"NetworkUnavailable\")].status}";
    let get = ["get", "node", name, "-o", condition];
    world.cluster.await_output(&get, "False", SOON);
    // What somebody takes away is put back.
    let address = "{.metadata.annotations.flannel\\.alpha\\.coreos\\.com/public-ip}";
    let output = format!("jsonpath={address}");
    let get = ["get", "node", name, "-o", &output];
    let before = world.cluster.run(&get)?;
    ensure!(before.parse::<IpAddr>().is_ok(), "{before}");
    world
        .cluster
        .run(&["annotate", "node", name, "flannel.alpha.coreos.com/public-ip-"])?;
    world.cluster.await_output(&get, &before, SOON);
    Ok(())
}
