//! Chains that pick one of N endpoints. A chain is a template for all frontends that do the same with that many
//! endpoints: there are tens of them, not tens of thousands.

use std::fmt;

use netlink::nft::rule::{DynamicElement, Interface, KeyField, Register};
use netlink::nft::{Chain, Family, Rule};

use super::elements::{Name, first_slot};
use super::layout::{self, MASQUERADE_MARK, REFUSE};
use crate::plan::{List, LocalTraffic, Masquerade, NodeContext};

/// What a chain does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    /// How the packet names its frontend.
    pub via: Via,
    /// Whether only clients of the Service's source ranges pass.
    pub filtered: bool,
    /// What happens then.
    pub choice: Choice,
}

/// How a packet names its frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// By an address of the Service.
    Address,
    /// By a node port.
    NodePort,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// It is refused.
    Refuse,
    /// It goes to one of the endpoints of a list.
    Spread {
        /// Which list.
        list: List,
        /// How many endpoints it has.
        endpoints: u32,
        /// Who is masqueraded.
        masquerade: Masquerade,
        /// How long clients keep their endpoint, in seconds; 0 = not.
        sticky_seconds: u32,
    },
    /// External policy Local.
    Split {
        /// Endpoints in the cluster, for clients in pods and on this node.
        endpoints: u32,
        /// Endpoints on this node, for clients outside.
        local: u32,
        /// How long clients keep their endpoint, in seconds; 0 = not.
        sticky_seconds: u32,
    },
}

impl fmt::Display for Template {
    /// The chain's name, for example `address.filtered.cluster-3.everyone.sticky-60`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.via {
            Via::Address => "address",
            Via::NodePort => "node-port",
        })?;
        if self.filtered {
            f.write_str(".filtered")?;
        }
        let sticky = match &self.choice {
            Choice::Refuse => {
                f.write_str(".refuse")?;
                0
            }
            Choice::Spread {
                list,
                endpoints,
                masquerade,
                sticky_seconds,
            } => {
                let list = match list {
                    List::Cluster => "cluster",
                    List::Local => "local",
                };
                let masquerade = match masquerade {
                    Masquerade::Nobody => "",
                    Masquerade::OutsidePods => ".outside",
                    Masquerade::Everyone => ".everyone",
                };
                write!(f, ".{list}-{endpoints}{masquerade}")?;
                *sticky_seconds
            }
            Choice::Split {
                endpoints,
                local,
                sticky_seconds,
            } => {
                write!(f, ".split-{endpoints}-{local}")?;
                *sticky_seconds
            }
        };
        match sticky {
            0 => Ok(()),
            seconds => write!(f, ".sticky-{seconds}"),
        }
    }
}

impl Template {
    /// The template of a chain of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('.').peekable();
        let via = match words.next()? {
            "address" => Via::Address,
            "node-port" => Via::NodePort,
            _ => return None,
        };
        let filtered = words.next_if_eq(&"filtered").is_some();
        let kind = words.next()?;
        let masquerade = match words.peek() {
            Some(&"outside") => Masquerade::OutsidePods,
            Some(&"everyone") => Masquerade::Everyone,
            _ => Masquerade::Nobody,
        };
        let _ = words.next_if(|_| masquerade != Masquerade::Nobody);
        let sticky_seconds = match words.next() {
            Some(word) => word.strip_prefix("sticky-")?.parse().ok()?,
            None => 0,
        };
        let spread = |list, endpoints: &str| {
            Some(Choice::Spread {
                list,
                endpoints: endpoints.parse().ok()?,
                masquerade,
                sticky_seconds,
            })
        };
        let choice = match kind.split_once('-') {
            None if kind == "refuse" => Choice::Refuse,
            Some(("cluster", endpoints)) => spread(List::Cluster, endpoints)?,
            Some(("local", endpoints)) => spread(List::Local, endpoints)?,
            Some(("split", counts)) => {
                let (endpoints, local) = counts.split_once('-')?;
                Choice::Split {
                    endpoints: endpoints.parse().ok()?,
                    local: local.parse().ok()?,
                    sticky_seconds,
                }
            }
            _ => return None,
        };
        let template = Self {
            via,
            filtered,
            choice,
        };
        // `+1` and `01` parse as numbers too, but are not ours; nor is what was left over.
        (template.to_string() == name).then_some(template)
    }

    /// The chain and its rules.
    #[must_use]
    pub fn chain(&self, family: Family, context: &NodeContext) -> (Chain, Vec<Rule>) {
        let mut writer = Writer {
            via: self.via,
            family,
            rules: Vec::new(),
        };
        if self.filtered {
            writer.drop_others();
        }
        match &self.choice {
            Choice::Refuse => writer.rules.push(Rule::new("no endpoint").goto(REFUSE)),
            Choice::Spread {
                list,
                endpoints,
                masquerade,
                sticky_seconds,
            } => {
                writer.mark(*masquerade, context);
                let draw = Draw {
                    list: *list,
                    endpoints: *endpoints,
                    sticky_seconds: *sticky_seconds,
                };
                writer.pick("", &draw, &|rule| rule);
            }
            Choice::Split {
                endpoints,
                local,
                sticky_seconds,
            } => {
                let any = Draw {
                    list: List::Cluster,
                    endpoints: *endpoints,
                    sticky_seconds: *sticky_seconds,
                };
                for guard in pods(family, context) {
                    writer.pick("pods: ", &any, &*guard);
                }
                let node = Rule::new("this node").source_is_local();
                writer.rules.push(node.set_mark_bits(MASQUERADE_MARK));
                writer.pick("this node: ", &any, &Rule::source_is_local);
                let here = Draw {
                    list: List::Local,
                    endpoints: *local,
                    sticky_seconds: *sticky_seconds,
                };
                if *local == 0 {
                    writer
                        .rules
                        .push(Rule::new("outside: no endpoint is here").drop());
                } else {
                    writer.pick("outside: ", &here, &|rule| rule);
                }
            }
        }
        (Chain::regular(self.to_string()), writer.rules)
    }
}

/// Adds a condition to a rule.
type Guard<'a> = Box<dyn Fn(Rule) -> Rule + 'a>;

/// Conditions of which each holds for packets of some pods, and one for each pod's.
fn pods(family: Family, context: &NodeContext) -> Vec<Guard<'_>> {
    match &context.local_traffic {
        LocalTraffic::Unknown => Vec::new(),
        LocalTraffic::Networks(_) => {
            let networks = context.pod_networks(layout::ip_family(family));
            networks
                .map(|network| Box::new(move |rule: Rule| rule.source(network)) as Guard<'_>)
                .collect()
        }
        LocalTraffic::Interface(name) => {
            vec![Box::new(move |rule| rule.in_interface(Interface::Named(name)))]
        }
        LocalTraffic::InterfacePrefix(prefix) => {
            vec![Box::new(move |rule| {
                rule.in_interface(Interface::Prefixed(prefix))
            })]
        }
    }
}

/// The condition that a packet is no pod's.
fn no_pod(rule: Rule, family: Family, context: &NodeContext) -> Rule {
    match &context.local_traffic {
        LocalTraffic::Unknown => rule,
        LocalTraffic::Networks(_) => context
            .pod_networks(layout::ip_family(family))
            .fold(rule, Rule::not_source),
        LocalTraffic::Interface(name) => rule.not_in_interface(Interface::Named(name)),
        LocalTraffic::InterfacePrefix(prefix) => rule.not_in_interface(Interface::Prefixed(prefix)),
    }
}

/// Which endpoints are drawn from, and for how long a client keeps one.
struct Draw {
    list: List,
    endpoints: u32,
    sticky_seconds: u32,
}

/// Writes the rules of one chain. Values stand in registers one behind the other, an address taking one or four:
/// ```text
/// client address . id . list or slot . endpoint address . port
/// ```
/// The values of maps begin with a zero, one register before what is wanted of them; [`netlink::nft::rule`] says why.
struct Writer {
    via: Via,
    family: Family,
    rules: Vec<Rule>,
}

impl Writer {
    fn client() -> Register {
        Register::FIRST
    }

    fn id(&self) -> Register {
        Register::FIRST.after(self.family.address())
    }

    fn place(&self) -> Register {
        self.id().skip(1)
    }

    fn endpoint(&self) -> Register {
        self.id().skip(2)
    }

    /// Finds the id of the frontend's port of its Service, by a key that is built behind it.
    fn find_id(&self, rule: Rule, id: Register, key: Register) -> Rule {
        let (fields, map) = match self.via {
            Via::Address => (layout::to_address(self.family), Name::ServiceIds),
            Via::NodePort => (layout::TO_NODE_PORT.to_vec(), Name::NodePortIds),
        };
        rule.load(KeyField::Number(0), id)
            .load_all(&fields, key)
            .value_from(map.text(), key, id.back(1))
    }

    /// Id and client, as keys of clients have them.
    fn find_client(&self, rule: Rule) -> Rule {
        self.find_id(rule, self.id(), self.endpoint())
            .load(KeyField::SourceAddress(self.family), Self::client())
    }

    fn drop_others(&mut self) {
        let id = Register::FIRST.skip(1);
        let client = id.skip(1);
        let rule = self
            .find_id(Rule::new("clients outside the source ranges"), id, client)
            .load(KeyField::SourceAddress(self.family), client)
            .not_found_in(Name::Sources.text(), id)
            .drop();
        self.rules.push(rule);
    }

    fn mark(&mut self, masquerade: Masquerade, context: &NodeContext) {
        let rule = match masquerade {
            Masquerade::Nobody => return,
            Masquerade::Everyone => Rule::new("every client"),
            Masquerade::OutsidePods => no_pod(Rule::new("clients that are no pods"), self.family, context),
        };
        self.rules.push(rule.set_mark_bits(MASQUERADE_MARK));
    }

    fn pick(&mut self, who: &str, draw: &Draw, guard: &dyn Fn(Rule) -> Rule) {
        let rule = |what: &str| guard(Rule::new(format!("{who}{what}")));
        if draw.sticky_seconds > 0 {
            let known = self
                .find_client(rule("the endpoint that the client has"))
                .value_from(Name::Affinity.text(), Self::client(), self.place())
                .load(KeyField::Number(first_slot(draw.list)), self.place())
                .found_in(Name::Eligible.text(), self.id())
                .update_element(self.client_entry(draw));
            self.rules.push(self.translate(known));
            // An element that is there keeps its value, hence the deletion. A full map ends the rule.
            let drawn = self
                .draw(self.find_client(rule("one of the endpoints, to be kept")), draw)
                .load(KeyField::Number(first_slot(draw.list)), self.place())
                .delete_element(self.client_entry(draw))
                .update_element(self.client_entry(draw));
            self.rules.push(self.translate(drawn));
        }
        let found = self.find_id(rule("one of the endpoints"), self.id(), self.endpoint());
        let drawn = self.draw(found, draw);
        self.rules.push(self.translate(drawn));
    }

    /// An endpoint of the id's.
    fn draw(&self, rule: Rule, draw: &Draw) -> Rule {
        let slot = KeyField::Random {
            modulus: draw.endpoints,
            offset: first_slot(draw.list),
        };
        rule.load(slot, self.place())
            .value_from(Name::Endpoints.text(), self.id(), self.place())
    }

    fn translate(&self, rule: Rule) -> Rule {
        rule.destination_nat(self.family, self.endpoint())
    }

    fn client_entry(&self, draw: &Draw) -> DynamicElement {
        DynamicElement {
            set: Name::Affinity.text().to_owned(),
            key: Self::client(),
            data: Some(self.place()),
            timeout: Some(std::time::Duration::from_secs(draw.sticky_seconds.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_foreign_names_do_not() {
        for name in [
            "address.cluster-3",
            "address.cluster-3.outside",
            "address.filtered.refuse",
            "address.filtered.cluster-10.everyone.sticky-10800",
            "address.local-2.outside.sticky-5",
            "node-port.split-5-0",
            "node-port.split-5-2.sticky-60",
            "node-port.cluster-1.everyone",
        ] {
            let template = Template::parse(name).unwrap_or_else(|| panic!("{name} is a template"));
            assert_eq!(template.to_string(), name);
        }
        for foreign in [
            "",
            "services",
            "refuse",
            "address",
            "address.cluster-",
            "address.cluster-03",
            "address.cluster-+3",
            "address.cluster-3.sticky-0",
            "address.cluster-3.outside.everyone",
            "address.cluster-3.sticky-5.outside",
            "address.split-3",
            "node-port.split-3-1-2",
            "node-port.split-3-1.outside",
        ] {
            assert_eq!(Template::parse(foreign), None, "{foreign:?}");
        }
    }
}
