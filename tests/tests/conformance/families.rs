//! IPv4 and IPv6 beside each other.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp};
use tests::client::each;

use crate::namespace::{HTTP, Namespace, SERVERS, number};

/// The addresses in a list of texts, or of objects with the text as `ip`.
fn addresses(list: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let texts = list.as_array().context("a list")?.iter();
    let texts = texts.map(|item| item["ip"].as_str().or(item.as_str()).context("an address"));
    texts.map(|text| Ok(text?.parse()?)).collect()
}

/// Whether there is one of each version.
fn are_both(addresses: &[IpAddr]) -> bool {
    addresses.len() == 2 && addresses[0].is_ipv4() != addresses[1].is_ipv4()
}

fn pod_addresses(at: &Namespace<'_>, pod: &str) -> anyhow::Result<Vec<IpAddr>> {
    let pod = at.api.read(&format!("{}/{pod}", at.collection("pods")))?;
    addresses(&pod["status"]["podIPs"])
}

/// IPv4/IPv6 dual-stack: should create pod, add ipv6 and ipv4 ip to pod ips; should be able to reach pod on ipv4 and ipv6 ip
pub fn pods_have_both(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    for name in SERVERS {
        let addresses = pod_addresses(at, name)?;
        ensure!(are_both(&addresses), "{name} has {addresses:?}");
        each(at.inside(), |client| {
            for address in &addresses {
                client.await_pods(Tcp, SocketAddr::new(*address, HTTP), &[name]);
                client.await_pods(Udp, SocketAddr::new(*address, HTTP + 1), &[name]);
            }
        });
    }
    Ok(())
}

/// IPv4/IPv6 dual-stack: should create service with ipv4 cluster ip; with ipv6 cluster ip; with ipv4,v6 cluster ip; with
/// ipv6,v4 cluster ip
pub fn services_have_the_families_that_they_say(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let rows: [(&str, &str, &[&str]); 4] = [
        ("four", "SingleStack", &["IPv4"]),
        ("six", "SingleStack", &["IPv6"]),
        ("four-six", "RequireDualStack", &["IPv4", "IPv6"]),
        ("six-four", "RequireDualStack", &["IPv6", "IPv4"]),
    ];
    for (name, policy, families) in rows {
        let service = at.service(name, &json!({"ipFamilyPolicy": policy, "ipFamilies": families}))?;
        let found = addresses(&service.content["spec"]["clusterIPs"])?;
        let of = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        ensure!(
            found.iter().map(of).eq(families.iter().copied()),
            "{name} has {found:?}"
        );
        let path = format!(
            "{}?labelSelector=kubernetes.io/service-name%3D{name}",
            at.collection("endpointslices")
        );
        at.await_object(&path, &format!("slices of {families:?}"), |list| {
            let slices = list["items"].as_array().into_iter().flatten();
            let mut types: Vec<_> = slices.filter_map(|slice| slice["addressType"].as_str()).collect();
            let mut wanted = families.to_vec();
            types.sort_unstable();
            wanted.sort_unstable();
            types == wanted
        });
        each(at.inside(), |client| {
            for ip in &found {
                client.await_pods(Tcp, SocketAddr::new(*ip, 80), &SERVERS);
            }
        });
    }
    Ok(())
}

/// IPv4/IPv6 dual-stack: Granular Checks: Services Secondary IP Family: should function for pod-Service: http, udp;
/// node-Service: http, udp; should be able to handle large requests: udp
pub fn the_second_family_serves(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service(
        "both",
        &json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack"}),
    )?;
    let second = addresses(&service.content["spec"]["clusterIPs"])?[1];
    let ports = &service.content["spec"]["ports"];
    let host = at.api.read(&format!("/api/v1/nodes/{}", at.nodes[1].name))?;
    let of_second = |address: &&Value| {
        let ip: Option<IpAddr> = address["address"].as_str().and_then(|text| text.parse().ok());
        address["type"] == "InternalIP" && ip.is_some_and(|ip| ip.is_ipv4() == second.is_ipv4())
    };
    let node = host["status"]["addresses"]
        .as_array()
        .context("addresses")?
        .iter()
        .find(of_second);
    let node: IpAddr = node
        .and_then(|node| node["address"].as_str())
        .context("InternalIP")?
        .parse()?;
    each(at.inside(), |client| {
        for (how, port) in [(Tcp, &ports[0]), (Udp, &ports[1])] {
            client.await_pods(how, SocketAddr::new(second, 80), &SERVERS);
            client.await_pods(how, SocketAddr::new(node, number(&port["nodePort"])), &SERVERS);
        }
    });
    let large = at.pods[0].run(&[
        "udp-ping",
        &SocketAddr::new(second, 80).to_string(),
        "--size",
        "2000",
    ])?;
    ensure!(large.contains(" ok 2000-bytes "), "{large}");
    Ok(())
}
