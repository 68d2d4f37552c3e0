//! How pods with addresses of an AWS VPC leave their node, by the plan: by which interface, with which source.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use model::MacAddr;
use netlink::rule::Rule;
use overlay::vpc::plan::{MARK, MARKED, SourceNat, Translation, Uplink};
use overlay::vpc::{Plan, audit};
use serde::{Deserialize, Serialize};

use super::look::Vantage;
use super::{Stage, Step};

/// What of the plan concerns packets of pods. It can be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VpcWays {
    /// Interfaces but the primary one.
    uplinks: Vec<Interface>,
    /// Rules that send what comes from a pod to the table of one of them.
    rules: Vec<Rule>,
    /// Networks that all pods reach by the primary interface.
    external_services: Vec<IpNetwork>,
    /// What becomes of packets' ends and marks; none where nothing does.
    translation: Option<Translated>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    mac: MacAddr,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    table: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Translated {
    /// The primary interface.
    primary: MacAddr,
    /// Its address.
    address: Ipv4Addr,
    /// Whether answers leave by it to who came by it to an address of the node.
    node_ports: bool,
    /// Where pods keep their addresses; none where they do everywhere.
    inside: Option<BTreeSet<Ipv4Network>>,
}

/// How what a pod of this node sends leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The mark that it is routed by.
    pub mark: u32,
    /// The rule that decides, and what it does, in words.
    pub said: String,
    /// Where it must leave: an interface whose address it has, or gets. None: where the main table says.
    pub by: Option<By>,
    /// Its source out of the VPC, where that is another.
    pub source: Option<Ipv4Addr>,
}

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its routing table; none: the main one.
    pub table: Option<u32>,
    /// The gateway there.
    pub gateway: Option<IpAddr>,
}

impl VpcWays {
    /// Of a plan.
    #[must_use]
    pub fn of(plan: &Plan, pods: impl IntoIterator<Item = IpAddr>) -> Self {
        let uplinks = plan.uplinks.iter().map(|(mac, uplink)| {
            let Uplink {
                address,
                gateway,
                table,
                mtu: _,
                blocks: _,
            } = uplink;
            Interface {
                mac: *mac,
                address: *address,
                gateway: *gateway,
                table: *table,
            }
        });
        let translation = plan.translation.as_ref().map(|translation| {
            let Translation {
                primary,
                address,
                node_ports,
                snat,
            } = translation;
            let inside = snat.as_ref().map(|SourceNat { inside, ports: _ }| inside.clone());
            Translated {
                primary: *primary,
                address: *address,
                node_ports: *node_ports,
                inside,
            }
        });
        let rules = pods.into_iter().filter_map(|pod| audit::rule_of(plan, pod));
        Self {
            uplinks: uplinks.collect(),
            rules: rules.cloned().collect(),
            external_services: audit::external_services(plan).collect(),
            translation,
        }
    }

    /// How a connection's first packet leaves that a pod of this node sends to an address that is none of this node.
    #[must_use]
    pub fn leaving(&self, pod: IpAddr, to: IpAddr) -> Leaving {
        let by_itself = || self.by_itself(pod, to);
        let (IpAddr::V4(_), IpAddr::V4(to)) = (pod, to) else {
            return by_itself();
        };
        let translation = self.translation.as_ref();
        let Some((translation, inside)) =
            translation.and_then(|translation| Some((translation, translation.inside.as_ref()?)))
        else {
            return by_itself();
        };
        if inside.iter().any(|network| network.contains(to)) {
            return by_itself();
        }
        Leaving {
            said: format!(
                "it leaves the VPC: its connection has the mark {MARK:#x}, and rule {MARKED} sends what has it to the main \
                 table, so by the primary interface"
            ),
            source: Some(translation.address),
            ..translation.marked()
        }
    }

    /// How the answer of a pod leaves to who came by `device` and, where `asked_the_node`, asked for an address of this
    /// node.
    #[must_use]
    pub fn answering(
        &self,
        pod: IpAddr,
        to: IpAddr,
        device: Option<MacAddr>,
        asked_the_node: bool,
    ) -> Leaving {
        let translation = self.translation.as_ref().filter(|translation| {
            translation.node_ports && asked_the_node && device == Some(translation.primary) && pod.is_ipv4()
        });
        match translation {
            Some(translation) => Leaving {
                said: format!(
                    "its connection came to the node by the primary interface and has the mark {MARK:#x}: rule {MARKED} \
                     sends the answer to the main table, so back by that interface"
                ),
                ..translation.marked()
            },
            None => self.by_itself(pod, to),
        }
    }

    /// By the interface that its address is of.
    fn by_itself(&self, pod: IpAddr, to: IpAddr) -> Leaving {
        let mut services = self.external_services.iter();
        if let Some(network) = services.find(|network| network.contains(to)) {
            return Leaving {
                mark: 0,
                said: format!(
                    "{network} is of external services: every pod reaches them by the primary interface"
                ),
                by: None,
                source: None,
            };
        }
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.source.is_some_and(|source| source.ip() == pod));
        let table = rule.and_then(Rule::table);
        let uplink = self.uplinks.iter().find(|uplink| Some(uplink.table) == table);
        let (Some(rule), Some(uplink)) = (rule, uplink) else {
            return Leaving {
                mark: 0,
                said: format!("{pod} is of the primary interface, which the main table leads by"),
                by: None,
                source: None,
            };
        };
        Leaving {
            mark: 0,
            said: format!(
                "{pod} is of the interface {} ({}): rule {}",
                uplink.address,
                uplink.mac,
                audit::text(rule)
            ),
            by: Some(By {
                mac: uplink.mac,
                table: Some(uplink.table),
                gateway: Some(uplink.gateway.into()),
            }),
            source: None,
        }
    }
}

impl Translated {
    fn marked(&self) -> Leaving {
        Leaving {
            mark: MARK,
            said: String::new(),
            by: Some(By {
                mac: self.primary,
                table: None,
                gateway: None,
            }),
            source: None,
        }
    }
}

/// What becomes of its source.
#[must_use]
pub fn translated(pod: IpAddr, source: Ipv4Addr, from: &Vantage) -> Step {
    let mut step = Step::new(Stage::Translation, pod.to_string());
    step.objects.push(format!(
        "out of the VPC nobody answers {pod}: its source becomes {source}, the primary interface's address; what comes back \
         is for {pod} again"
    ));
    step.look.push(from.table(&overlay::vpc::table().to_string()));
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const SECOND: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    /// Of the primary interface, and of another one.
    const PODS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)),
        IpAddr::V4(Ipv4Addr::new(10, 0, 1, 9)),
    ];

    fn ways(snat: overlay::vpc::Snat, node_ports: bool) -> VpcWays {
        let interface = |mac, number: u8| overlay::vpc::Interface {
            mac,
            address: Ipv4Addr::new(10, 0, number, 5),
            subnet: format!("10.0.{number}.0/24").parse().expect("valid"),
            device_index: number.into(),
            blocks: vec![PODS[usize::from(number)].into()],
        };
        let ways = overlay::vpc::Ways {
            interfaces: Some(overlay::vpc::Interfaces {
                primary: interface(PRIMARY, 0),
                others: vec![interface(SECOND, 1)],
            }),
            vpc_networks: vec!["10.0.0.0/16".parse().expect("valid")],
            external_services: vec!["203.0.113.0/24".parse().expect("valid")],
            snat,
            node_ports,
            mtu: model::Mtu(9001),
        };
        let pods = PODS.map(|address| overlay::PodRoute {
            address,
            host_ifname: "eni1".to_owned(),
            pod_mac: PRIMARY,
            is_limited: false,
        });
        let (plan, rejected) = overlay::vpc::plan(&ways, &pods);
        assert_eq!(rejected, []);
        VpcWays::of(&plan, PODS)
    }

    fn here() -> overlay::vpc::Snat {
        overlay::vpc::Snat::Here {
            excluded: vec!["192.0.2.0/24".parse().expect("valid")],
            random: overlay::vpc::Random::Prng,
        }
    }

    #[test]
    fn a_pod_leaves_by_its_own_interface_within_the_vpc_and_by_the_primary_one_out_of_it() {
        let main = (0, None, None);
        let own = Some((SECOND, Some(2), Some([10, 0, 1, 1].into())));
        let marked = (
            0x80,
            Some((PRIMARY, None, None)),
            Some(Ipv4Addr::new(10, 0, 0, 5)),
        );
        let rows = [
            (here(), PODS[0], "10.0.7.7", main),
            (here(), PODS[1], "10.0.7.7", (0, own, None)),
            (here(), PODS[0], "198.51.100.1", marked),
            (here(), PODS[1], "198.51.100.1", marked),
            // Excluded, or somebody else's to translate.
            (here(), PODS[1], "192.0.2.9", (0, own, None)),
            (
                overlay::vpc::Snat::External,
                PODS[1],
                "198.51.100.1",
                (0, own, None),
            ),
            (overlay::vpc::Snat::External, PODS[0], "198.51.100.1", main),
            (overlay::vpc::Snat::External, PODS[1], "203.0.113.9", main),
        ];
        for (snat, pod, to, expected) in rows {
            let told = ways(snat.clone(), true).leaving(pod, to.parse().expect("valid"));
            let by = told.by.map(|by| (by.mac, by.table, by.gateway));
            assert_eq!((told.mark, by, told.source), expected, "{snat:?} {pod} {to}");
        }
        let told = ways(here(), true).leaving(PODS[1], PODS[0]);
        assert_eq!(
            told.said,
            "10.0.1.9 is of the interface 10.0.1.5 (02:00:00:00:00:02): rule 1536: from 10.0.1.9/32 table 2"
        );
    }

    #[test]
    fn answers_leave_by_the_interface_that_a_port_of_the_node_was_reached_by() {
        let rows = [
            (true, Some(PRIMARY), true, 0x80),
            (true, Some(PRIMARY), false, 0),
            (true, Some(SECOND), true, 0),
            (true, None, true, 0),
            (false, Some(PRIMARY), true, 0),
        ];
        for (node_ports, device, asked_the_node, mark) in rows {
            let to = [198, 51, 100, 1].into();
            let told = ways(here(), node_ports).answering(PODS[1], to, device, asked_the_node);
            assert_eq!(told.mark, mark, "{node_ports} {device:?} {asked_the_node}");
            let by = if mark == 0 { SECOND } else { PRIMARY };
            assert_eq!(told.by.map(|by| by.mac), Some(by));
        }
    }

    #[test]
    fn ways_are_read_back_from_a_file_as_they_were() {
        let ways = ways(here(), true);
        let json = serde_json::to_string(&ways).expect("written");
        assert_eq!(serde_json::from_str::<VpcWays>(&json).expect("read"), ways);
    }
}
