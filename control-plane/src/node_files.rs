//! What is written for a node before its processes start: certificates, kubeconfigs, and one configuration file for
//! each of kubelet, agent and DNS.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::kubeconfig;
use crate::layout::{NodeDir, StateDir};
use crate::pki::{Authority, Leaf, Usage};
use crate::preflight::Programs;
use crate::settings::{self, Agent, Datapath, Settings, Vpc};

/// What the files are made of.
pub struct NodeFiles<'a> {
    /// The cluster's directory.
    pub state: &'a StateDir,
    /// The cluster's settings.
    pub settings: &'a Settings,
    /// The programs that the files name.
    pub programs: &'a Programs,
    /// Signs the node's certificates.
    pub authority: &'a Authority,
    /// The node's name.
    pub name: &'a str,
    /// Its position, from 0.
    pub index: u8,
}

/// Writes everything of one node.
pub fn write(node: &NodeFiles<'_>) -> anyhow::Result<()> {
    let dir = node.state.node(node.name);
    for path in [
        dir.root().to_path_buf(),
        dir.kubelet(),
        dir.agent(),
        dir.dns(),
        dir.cni_conf(),
        dir.cni_bin(),
    ] {
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    write_certificates(node, &dir)?;
    fs::write(dir.resolv_conf(), resolvers()?)?;
    write_yaml(&dir.kubelet_config(), &kubelet_config(node, &dir)?)?;
    write_yaml(&dir.agent_config(), &agent_config(node, &dir)?)?;
    fs::write(dir.corefile(), corefile(node, &dir))?;
    Ok(())
}

fn write_yaml(path: &Path, value: &Value) -> anyhow::Result<()> {
    fs::write(path, serde_yaml_ng::to_string(value)?).with_context(|| format!("writing {}", path.display()))
}

fn write_certificates(node: &NodeFiles<'_>, dir: &NodeDir) -> anyhow::Result<()> {
    let user = format!("system:node:{}", node.name);
    let serving = Leaf {
        common_name: user.clone(),
        organizations: vec!["system:nodes".to_owned()],
        addresses: vec![
            node.settings.node_address(node.index).into(),
            Ipv4Addr::LOCALHOST.into(),
        ],
        names: vec![node.name.to_owned()],
        usage: Usage::ServerAndClient,
    };
    // One certificate serves the kubelet as server and client, and the agent towards etcd: the same node.
    let kubelet = node.state.key_pair(&format!("{}-kubelet", node.name));
    node.authority.ensure(&kubelet, &serving)?;
    let agent = node.state.key_pair(&format!("{}-agent", node.name));
    let agent_user = format!("system:causeway-agent:{}", node.name);
    node.authority
        .ensure(&agent, &Leaf::client(&agent_user, &["system:causeway-agents"]))?;

    let server = format!("https://{}", node.settings.api_address());
    let ca = node.authority.ca_pem();
    kubeconfig::write(&dir.kubeconfig("kubelet"), &server, ca, &user, &kubelet)?;
    kubeconfig::write(&dir.kubeconfig("agent"), &server, ca, &agent_user, &agent)
}

/// The host's resolvers, without those that only the host's own loopback reaches.
fn resolvers() -> anyhow::Result<String> {
    let candidates = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let read = |path: &&str| fs::read_to_string(path).ok().map(|text| without_loopback(&text));
    let usable = candidates
        .iter()
        .filter_map(read)
        .find(|text| text.contains("nameserver"));
    Ok(usable.unwrap_or_else(|| {
        "# The host names no resolver that a node can reach: only cluster names resolve.\n".to_owned()
    }))
}

fn without_loopback(resolv_conf: &str) -> String {
    let reachable = |line: &&str| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["nameserver", address, ..] => address
            .parse::<IpAddr>()
            .is_ok_and(|address| !address.is_loopback()),
        _ => true,
    };
    resolv_conf
        .lines()
        .filter(reachable)
        .fold(String::new(), |text, line| text + line + "\n")
}

fn kubelet_config(node: &NodeFiles<'_>, dir: &NodeDir) -> anyhow::Result<Value> {
    let settings = node.settings;
    let serving = node.state.key_pair(&format!("{}-kubelet", node.name));
    let cgroup = Cgroup::find()?.node(node.name);
    let cni_bin = match settings.agent {
        Agent::BuiltIn => node.programs.cni_dir.clone(),
        Agent::None => dir.cni_bin(),
    };
    let mut config = json!({
        "nodeName": node.name,
        "kubeconfig": dir.kubeconfig("kubelet"),
        "stateDir": dir.kubelet(),
        "nodeIp": settings.node_address(node.index),
        "secondaryNodeIp": settings.node_address_v6(node.index),
        "clusterDns": [settings.cluster_dns()],
        "clusterDomain": settings.domain,
        "resolvConf": dir.resolv_conf(),
        "cniConfDir": dir.cni_conf(),
        "cniBinDirs": [cni_bin],
        "cgroup": cgroup,
        "shim": node.programs.shim,
        "cert": serving.cert,
        "key": serving.key,
        "clientCa": node.state.key_pair("ca").cert,
        "ownPlaces": {
            "/etc/cni/net.d": dir.cni_conf(),
            "/opt/cni/bin": dir.cni_bin(),
            "/sys/fs/cgroup": cgroup,
            "/var/lib/causeway/node": dir.agent(),
            "/var/lib/causeway/dns": dir.dns(),
        },
    });
    if let Some(vpc) = &settings.vpc {
        config["maxPods"] = json!(vpc.max_pods());
        // What a cloud provider's controller labels Nodes with.
        config["nodeLabels"] = json!({
            "node.kubernetes.io/instance-type": vpc.instance_type,
            "topology.kubernetes.io/region": crate::vpc::REGION,
            "topology.kubernetes.io/zone": crate::vpc::ZONE,
        });
    }
    Ok(config)
}

fn agent_config(node: &NodeFiles<'_>, dir: &NodeDir) -> anyhow::Result<Value> {
    let settings = node.settings;
    let datapath = match settings.datapath {
        Datapath::Ebpf => "ebpf",
        Datapath::Nftables => "nftables",
        Datapath::Iptables => "iptables",
    };
    let mut config = json!({
        "nodeName": node.name,
        "kubernetes": {"kubeconfig": dir.kubeconfig("agent")},
        // The BPF file system is the node's own (`machine::machine_init`), and so is the agent's usual directory on it.
        "proxy": {
            "datapath": datapath,
            "cgroup": Cgroup::find()?.node(node.name),
            "externalIPs": settings.allow_external_ips,
        },
        "dns": {"address": settings.cluster_dns()},
        "cni": {"confDir": dir.cni_conf()},
        "stateDir": dir.agent(),
    });
    match &settings.vpc {
        Some(vpc) => {
            config["vpcEni"] = vpc_config(settings, vpc);
            // There are no networks of pods alone.
            config["proxy"]["detectLocalMode"] = json!("InterfaceNamePrefix");
            config["proxy"]["interfaceNamePrefix"] = json!("eni");
        }
        None => config["network"] = overlay_config(node),
    }
    Ok(config)
}

fn vpc_config(settings: &Settings, vpc: &Vpc) -> Value {
    let mut variables = BTreeMap::from([(
        "AWS_EC2_ENDPOINT".to_owned(),
        format!("http://{}", crate::vpc::ec2_address(settings)),
    )]);
    variables.extend(vpc.variables.clone());
    json!({"variables": variables, "maxPods": vpc.max_pods()})
}

fn overlay_config(node: &NodeFiles<'_>) -> Value {
    let settings = node.settings;
    let mode = settings.network.to_string();
    json!({
        "mode": mode,
        "leases": settings.leases,
        "etcd": etcd_config(node),
        "interface": "eth0",
        "publicIp": settings.node_address(node.index),
        "publicIpV6": settings.node_address_v6(node.index),
        "config": network_config(settings, &mode),
    })
}

/// flannel's network configuration.
fn network_config(settings: &Settings, mode: &str) -> Value {
    let mut config = json!({
        "Network": settings.pod_cidr.primary(),
        "SubnetLen": settings::node_prefix(settings.pod_cidr.primary()),
        "Backend": {"Type": mode},
    });
    if let Some(network) = settings.pod_cidr.secondary() {
        config["EnableIPv6"] = json!(true);
        config["IPv6Network"] = json!(network);
        config["IPv6SubnetLen"] = json!(settings::node_prefix(network));
    }
    config
}

fn etcd_config(node: &NodeFiles<'_>) -> Value {
    let endpoints = node.settings.etcd_endpoints();
    match &node.settings.etcd {
        Some(etcd) => {
            let (cert, key) = etcd.client.clone().unzip();
            let (user, password_file) = etcd.user.clone().unzip();
            json!({
                "endpoints": endpoints, "ca": etcd.ca, "cert": cert, "key": key,
                "username": user, "passwordFile": password_file,
            })
        }
        None => {
            let client = node.state.key_pair(&format!("{}-kubelet", node.name));
            let ca = node.state.key_pair("ca").cert;
            json!({"endpoints": endpoints, "ca": ca, "cert": client.cert, "key": client.key})
        }
    }
}

/// kubeadm's Corefile, on the node's own cluster DNS address, and on its own for nodes whose server is away.
fn corefile(node: &NodeFiles<'_>, dir: &NodeDir) -> String {
    format!(
        "\
.:53 {{
    bind {address} {own}
    errors
    health
    ready
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
        feed /run/causeway/dns.sock
        state {state}
    }}
    prometheus :9153
    forward . {resolv_conf}
    cache 30
    loop
    loadbalance
}}
",
        address = node.settings.cluster_dns(),
        own = node.settings.node_address(node.index),
        domain = node.settings.domain,
        state = dir.dns().display(),
        resolv_conf = dir.resolv_conf().display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_the_hosts_loopback_are_left_out() {
        let text = "# stub\nsearch example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n";
        assert_eq!(
            without_loopback(text),
            "# stub\nsearch example.org\nnameserver 192.0.2.1\noptions edns0\n"
        );
    }
}
