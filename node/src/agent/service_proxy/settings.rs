//! The proxy's own configuration, of the agent's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use model::IpFamily;
use proxy::{DatapathKind, DetectLocal, IptablesVariant, NodePortAddresses, Settings};

use crate::cgroup2;
use crate::config::{self, Config, Datapath, DetectLocalMode};

/// What the proxy is opened with. None where there shall be no proxy.
///
/// # Errors
/// When no cgroup v2 hierarchy is mounted.
pub fn settings(config: &Config, families: &BTreeSet<IpFamily>) -> anyhow::Result<Option<proxy::Config>> {
    let Some(datapath) = datapath(&config.proxy)? else {
        return Ok(None);
    };
    let settings = planning(config, families)?;
    Ok(Some(proxy::Config { settings, datapath }))
}

/// What plans are made by, which may change while the proxy runs.
///
/// # Errors
/// None where the configuration was checked.
pub fn planning(config: &Config, families: &BTreeSet<IpFamily>) -> anyhow::Result<Settings> {
    let network = config.network.as_ref();
    let public_ips = network.into_iter().flat_map(|network| {
        let v4 = network.public_ip.map(IpAddr::V4);
        v4.into_iter().chain(network.public_ip_v6.map(IpAddr::V6))
    });
    Ok(Settings {
        node: config.node_name.clone(),
        node_addresses: public_ips.collect(),
        families: families.clone(),
        detect_local: detect_local(config)?,
        masquerade_all: config.proxy.masquerade_all,
        external_addresses: config.proxy.external_ips,
        node_port_addresses: match &config.proxy.node_port_addresses {
            config::NodePortAddresses::All => NodePortAddresses::All,
            config::NodePortAddresses::Primary => NodePortAddresses::Primary,
            config::NodePortAddresses::Networks(networks) => NodePortAddresses::Networks(networks.clone()),
        },
        local_dns: config.dns.address.into_iter().collect(),
    })
}

fn datapath(proxy: &config::Proxy) -> anyhow::Result<Option<DatapathKind>> {
    Ok(match proxy.datapath {
        Datapath::None => None,
        Datapath::Nftables => Some(DatapathKind::Nftables),
        Datapath::Iptables => Some(DatapathKind::Iptables {
            variant: match proxy.iptables_variant {
                config::IptablesVariant::Auto => IptablesVariant::Auto,
                config::IptablesVariant::Legacy => IptablesVariant::Legacy,
                config::IptablesVariant::Nft => IptablesVariant::Nft,
            },
        }),
        Datapath::Ebpf => Some(DatapathKind::Ebpf {
            cgroup: match &proxy.cgroup {
                Some(cgroup) => cgroup.clone(),
                None => cgroup2::mount_point(Path::new(cgroup2::MOUNTS))
                    .context("proxy.datapath ebpf needs one")?,
            },
            pin_dir: proxy.pin_dir.clone(),
        }),
    })
}

fn detect_local(config: &Config) -> anyhow::Result<DetectLocal> {
    let proxy = &config.proxy;
    let needed = |name: &Option<String>| name.clone().context("invariant: checked when the file was read");
    Ok(match proxy.detect_local_mode {
        DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(config.pod_networks().into_iter().collect()),
        DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
        DetectLocalMode::BridgeInterface => DetectLocal::BridgeInterface(needed(&proxy.bridge_interface)?),
        DetectLocalMode::InterfaceNamePrefix => {
            DetectLocal::InterfaceNamePrefix(needed(&proxy.interface_name_prefix)?)
        }
        DetectLocalMode::None => DetectLocal::Off,
    })
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;

    use super::*;

    fn parsed(text: &str) -> Config {
        serde_yaml_ng::from_str(text).expect("a configuration")
    }

    #[track_caller]
    fn check(proxy: &str, expected: impl FnOnce(Settings) -> Settings) {
        let config = parsed(&format!(
            "{{nodeName: node-1, proxy: {{datapath: nftables, podNetworks: [10.244.0.0/16, 'fd00::/56']{proxy}}}}}"
        ));
        let settings = settings(&config, &[IpFamily::V4].into()).expect("nothing is looked for");
        let defaults = Settings {
            families: [IpFamily::V4].into(),
            ..Settings::new("node-1".into(), [network("10.244.0.0/16"), network("fd00::/56")])
        };
        let expected = proxy::Config {
            settings: expected(defaults),
            datapath: DatapathKind::Nftables,
        };
        assert_eq!(settings, Some(expected), "for {proxy}");
    }

    fn network(text: &str) -> IpNetwork {
        text.parse().expect("a network")
    }

    #[test]
    fn every_key_arrives_where_it_works() {
        let with = |detect_local| {
            |settings| Settings {
                detect_local,
                ..settings
            }
        };
        check("", |settings| settings);
        check(", detectLocalMode: NodeCIDR", with(DetectLocal::NodeCidr));
        check(", detectLocalMode: None", with(DetectLocal::Off));
        check(
            ", detectLocalMode: BridgeInterface, bridgeInterface: cni0",
            with(DetectLocal::BridgeInterface("cni0".to_owned())),
        );
        check(
            ", detectLocalMode: InterfaceNamePrefix, interfaceNamePrefix: veth",
            with(DetectLocal::InterfaceNamePrefix("veth".to_owned())),
        );
        check(
            ", masqueradeAll: true, externalIPs: true, nodePortAddresses: [primary]",
            |settings| Settings {
                masquerade_all: true,
                external_addresses: true,
                node_port_addresses: NodePortAddresses::Primary,
                ..settings
            },
        );
        check(", nodePortAddresses: [192.0.2.0/24]", |settings| Settings {
            node_port_addresses: NodePortAddresses::Networks([network("192.0.2.0/24")].into()),
            ..settings
        });
    }

    #[test]
    fn addresses_that_the_node_answers_itself_are_no_services() {
        let config = parsed(
            "{nodeName: n, proxy: {datapath: ebpf, cgroup: /c, pinDir: /p, podNetwork: 10.244.0.0/16}, \
             dns: {address: 10.96.0.10}}",
        );
        let both = [IpFamily::V4, IpFamily::V6].into();
        let told = settings(&config, &both).expect("nothing is looked for");
        let told = told.expect("there shall be a proxy");
        assert_eq!(told.settings.local_dns, [[10, 96, 0, 10].into()].into());
        let ebpf = DatapathKind::Ebpf {
            cgroup: "/c".into(),
            pin_dir: "/p".into(),
        };
        assert_eq!(told.datapath, ebpf);
        let iptables = parsed(
            "{nodeName: n, proxy: {datapath: iptables, iptablesVariant: legacy, detectLocalMode: None}}",
        );
        let told = settings(&iptables, &both).expect("nothing is looked for");
        let legacy = DatapathKind::Iptables {
            variant: IptablesVariant::Legacy,
        };
        assert_eq!(told.map(|told| told.datapath), Some(legacy));
        let none = parsed("{nodeName: n, proxy: {datapath: none}}");
        assert_eq!(settings(&none, &both).expect("nothing is looked for"), None);
    }
}
