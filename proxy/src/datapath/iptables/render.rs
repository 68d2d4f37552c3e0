//! The rules of one Service in one version of IP.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName};

use super::layout::Surroundings;
use super::names::{Kind, MARK_MASQ, PortNames, destination};
use super::rule::{Rule, comment};
use super::ruleset::Rules;
use crate::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, List, Masquerade, PortKey, PortPlan, ServicePlan,
    Target,
};

/// Lists of all Services to which one adds rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Top {
    /// nat `KUBE-SERVICES`.
    ByAddress,
    /// nat `KUBE-NODEPORTS`.
    ByNodePort,
    /// filter `KUBE-SERVICES`: ClusterIPs that are refused or dropped.
    Internal,
    /// filter `KUBE-SERVICES`, after all of those: what comes to a ClusterIP and is nobody's.
    OtherPorts,
    /// filter `KUBE-EXTERNAL-SERVICES`: other frontends that are refused or dropped.
    External,
    /// filter `KUBE-NODEPORTS`: load balancers' health checks.
    HealthChecks,
    /// filter `KUBE-PROXY-FIREWALL`.
    Firewall,
}

/// The rules of one Service in one version of IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Its own chains in nat.
    pub chains: BTreeMap<String, Rules>,
    tops: BTreeMap<Top, Vec<Rule>>,
}

impl Rendered {
    /// What it adds to a list of all Services.
    #[must_use]
    pub fn top(&self, top: Top) -> &[Rule] {
        self.tops.get(&top).map_or(&[], Vec::as_slice)
    }

    /// Whether it adds the same as another to all lists.
    #[must_use]
    pub fn has_same_tops(&self, other: &Self) -> bool {
        self.tops == other.tops
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.tops.is_empty()
    }

    fn add(&mut self, top: Top, text: &str) {
        self.tops.entry(top).or_default().push(Rule::new(text));
    }
}

/// Renders a Service's plan.
#[must_use]
pub fn render(service: &ObjectName, plan: &ServicePlan, node: &Surroundings) -> Rendered {
    let mut rendered = Rendered::default();
    for (key, port) in plan.ports.iter().filter(|(key, _)| key.family == node.family) {
        PortRules::new(service, key, port, plan, node).render(&mut rendered);
    }
    for address in plan
        .cluster_ips
        .iter()
        .filter(|address| IpFamily::from(**address) == node.family)
    {
        let why = comment(&format!("{service} has no such port"));
        let tcp = format!("-d {address} -p tcp {why} {TCP_RESET}");
        rendered.add(Top::OtherPorts, &tcp);
        let others = format!("-d {address} {why} {}", unreachable(node.family));
        rendered.add(Top::OtherPorts, &others);
    }
    if let Some(health) = plan.health {
        let why = comment(&format!("{service} health check node port"));
        rendered.add(
            Top::HealthChecks,
            &format!("-p tcp {why} -m tcp --dport {} -j ACCEPT", health.port),
        );
    }
    rendered
}

/// The target of rules that refuse TCP. (kube-proxy answers by ICMP, which the kernel limits to a few a second for each
/// client, and which a client of IPv6 hears only at the next retransmission of its SYN.)
const TCP_RESET: &str = "-j REJECT --reject-with tcp-reset";

/// The target of rules that refuse anything else.
fn unreachable(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "-j REJECT --reject-with icmp-port-unreachable",
        IpFamily::V6 => "-j REJECT --reject-with icmp6-port-unreachable",
    }
}

/// What becomes of a frontend's packets in nat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To a list, the masquerade decided by rules of that list's chain for this frontend.
    Direct(List, Masquerade),
    /// Through the chain for external traffic.
    External(Action),
    /// Not translated.
    None,
}

/// One port on its way to rules.
struct PortRules<'a> {
    names: PortNames,
    port: &'a PortPlan,
    plan: &'a ServicePlan,
    node: &'a Surroundings,
}

impl<'a> PortRules<'a> {
    fn new(
        service: &ObjectName,
        key: &PortKey,
        port: &'a PortPlan,
        plan: &'a ServicePlan,
        node: &'a Surroundings,
    ) -> Self {
        Self {
            names: PortNames::new(service, key),
            port,
            plan,
            node,
        }
    }

    fn render(&self, rendered: &mut Rendered) {
        let mut chains: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        let mut used = BTreeSet::new();
        for (key, frontend) in &self.port.frontends {
            self.dispatch(key, frontend, rendered, &mut chains);
            self.filter(key, frontend, rendered);
            used.extend(self.lists_of(self.way(key, frontend)));
        }
        for list in used {
            chains
                .entry(self.list_chain(list))
                .or_default()
                .extend(self.spread(list));
            for target in self.port.list(list) {
                chains.insert(self.names.endpoint(target), self.endpoint(target));
            }
        }
        let chains = chains.into_iter().map(|(chain, rules)| (chain, rules.into()));
        rendered.chains.extend(chains);
    }

    fn way(&self, key: &FrontendKey, frontend: &Frontend) -> Way {
        match frontend.action {
            Action::Refuse | Action::Drop => Way::None,
            Action::Spread { list, masquerade } => {
                let is_internal = self.is_cluster_ip(key) || masquerade != Masquerade::Everyone;
                if is_internal {
                    Way::Direct(list, masquerade)
                } else {
                    Way::External(frontend.action)
                }
            }
            Action::Split => Way::External(frontend.action),
        }
    }

    fn lists_of(&self, way: Way) -> Vec<List> {
        match way {
            Way::None => Vec::new(),
            Way::External(Action::Split) if self.port.local.is_empty() => vec![List::Cluster],
            Way::External(Action::Split) => vec![List::Cluster, List::Local],
            Way::Direct(list, _) | Way::External(Action::Spread { list, .. }) => vec![list],
            Way::External(Action::Refuse | Action::Drop) => Vec::new(),
        }
    }

    fn is_cluster_ip(&self, key: &FrontendKey) -> bool {
        match key.address {
            FrontendAddress::Service(address) => self.plan.cluster_ips.contains(&address),
            FrontendAddress::EveryNodeAddress(_) => false,
        }
    }

    fn list_chain(&self, list: List) -> String {
        self.names.chain(match list {
            List::Cluster => Kind::Cluster,
            List::Local => Kind::Local,
        })
    }

    fn comment(&self, what: &str) -> String {
        let separator = if what.is_empty() { "" } else { " " };
        comment(&format!("{}{separator}{what}", self.names.port))
    }

    /// What a frontend is matched by besides its address.
    fn to_port(&self, key: &FrontendKey) -> String {
        let protocol = self.names.protocol;
        format!("-m {protocol} --dport {}", key.port)
    }

    /// The way into nat, and the chains that only this frontend's kind has.
    fn dispatch(
        &self,
        key: &FrontendKey,
        frontend: &Frontend,
        rendered: &mut Rendered,
        chains: &mut BTreeMap<String, Vec<Rule>>,
    ) {
        let chain = match self.way(key, frontend) {
            Way::None => return,
            Way::Direct(list, masquerade) => {
                let chain = self.list_chain(list);
                chains
                    .entry(chain.clone())
                    .or_default()
                    .extend(self.mark(key, masquerade));
                chain
            }
            Way::External(action) => {
                let chain = self.names.chain(Kind::External);
                chains.insert(chain.clone(), self.external(action));
                chain
            }
        };
        let chain = match frontend.admits {
            Admits::Everyone => chain,
            Admits::Sources => {
                let firewall = self.names.chain(Kind::Firewall);
                chains.insert(firewall.clone(), self.firewall(&chain));
                firewall
            }
        };
        let (protocol, port) = (self.names.protocol, self.to_port(key));
        match key.address {
            FrontendAddress::Service(address) => {
                let what = if self.is_cluster_ip(key) {
                    "cluster IP"
                } else {
                    "external IP"
                };
                let why = self.comment(what);
                let text = format!("-d {address} -p {protocol} {why} {port} -j {chain}");
                rendered.add(Top::ByAddress, &text);
            }
            FrontendAddress::EveryNodeAddress(_) => {
                let why = self.comment("");
                rendered.add(Top::ByNodePort, &format!("-p {protocol} {why} {port} -j {chain}"));
            }
        }
    }

    /// Marks who is masqueraded on the direct way.
    fn mark(&self, key: &FrontendKey, masquerade: Masquerade) -> Option<Rule> {
        let (who, chain) = match masquerade {
            Masquerade::Nobody => return None,
            Masquerade::OutsidePods => self.node.pods.mark_others()?,
            Masquerade::Everyone => (String::new(), MARK_MASQ),
        };
        let to = match key.address {
            FrontendAddress::Service(address) => format!("-d {address}"),
            FrontendAddress::EveryNodeAddress(_) => String::new(),
        };
        let (protocol, why, port) = (self.names.protocol, self.comment("cluster IP"), self.to_port(key));
        Some(Rule::new(&format!(
            "{who} {to} -p {protocol} {why} {port} -j {chain}"
        )))
    }

    /// `KUBE-EXT-…`: who comes from where decides to which list it goes, and as whom.
    fn external(&self, action: Action) -> Vec<Rule> {
        let of = |what: &str| {
            comment(&format!(
                "{what} traffic for {} external destinations",
                self.names.port
            ))
        };
        let to_cluster = format!("-j {}", self.list_chain(List::Cluster));
        let mut texts = Vec::new();
        match action {
            Action::Refuse | Action::Drop => {}
            Action::Spread { list, .. } => {
                texts.push(format!("{} -j {MARK_MASQ}", of("masquerade")));
                texts.push(format!("-j {}", self.list_chain(list)));
            }
            Action::Split => {
                let pods = self.node.pods.matches();
                texts.extend(
                    pods.iter()
                        .map(|pods| format!("{pods} {} {to_cluster}", of("pod"))),
                );
                let local = "-m addrtype --src-type LOCAL";
                texts.push(format!("{} {local} -j {MARK_MASQ}", of("masquerade LOCAL")));
                texts.push(format!("{} {local} {to_cluster}", of("route LOCAL")));
                if !self.port.local.is_empty() {
                    texts.push(format!("-j {}", self.list_chain(List::Local)));
                }
            }
        }
        texts.iter().map(|text| Rule::new(text)).collect()
    }

    /// `KUBE-FW-…`: whoever is not let on keeps the frontend as destination, by which filter drops it.
    fn firewall(&self, chain: &str) -> Vec<Rule> {
        let why = self.comment("external IP");
        let admitted = |source: &IpNetwork| Rule::new(&format!("-s {source} {why} -j {chain}"));
        self.port.sources.iter().map(admitted).collect()
    }

    /// A list's chain: the endpoint that the client has, if affinity says so and it is still in the list; else each
    /// with equal chances.
    fn spread(&self, list: List) -> Vec<Rule> {
        let targets = self.port.list(list);
        let to = |target: &Target, what: &str| {
            let why = self.comment(&format!("-> {}", destination(target)));
            let chain = self.names.endpoint(target);
            Rule::new(&format!("{why} {what} -j {chain}"))
        };
        let kept = self.port.affinity.iter().flat_map(|timeout| {
            let seconds = timeout.as_secs().max(1);
            targets.iter().map(move |target| {
                let list = self.names.endpoint(target);
                let recent = format!("-m recent --name {list} --rcheck --reap --rsource --seconds {seconds}");
                to(target, &recent)
            })
        });
        let drawn = targets
            .iter()
            .enumerate()
            .map(|(position, target)| match targets.len() - position {
                1 => to(target, ""),
                left => to(
                    target,
                    &format!("-m statistic --mode random --probability {}", one_of(left)),
                ),
            });
        kept.chain(drawn).collect()
    }

    /// `KUBE-SEP-…`. A client that is sent to itself must see an answer from elsewhere, or it would not take it for
    /// one.
    fn endpoint(&self, target: &Target) -> Vec<Rule> {
        let (protocol, why) = (self.names.protocol, self.comment(""));
        let chain = self.names.endpoint(target);
        let remember = match self.port.affinity {
            Some(_) => format!("-m recent --name {chain} --rsource --set"),
            None => String::new(),
        };
        let (address, to) = (target.address, destination(target));
        [
            format!("-s {address} {why} -j {MARK_MASQ}"),
            format!("-p {protocol} {why} {remember} -m {protocol} -j DNAT --to-destination {to}"),
        ]
        .map(|text| Rule::new(&text))
        .into()
    }

    /// What filter does with packets that nat left alone.
    fn filter(&self, key: &FrontendKey, frontend: &Frontend, rendered: &mut Rendered) {
        let verdict = match frontend.action {
            Action::Refuse if self.names.protocol == "tcp" => Some(("has no endpoints", TCP_RESET)),
            Action::Refuse => Some(("has no endpoints", unreachable(self.node.family))),
            Action::Drop => Some(("has no local endpoints", "-j DROP")),
            Action::Split if self.port.local.is_empty() => Some(("has no local endpoints", "-j DROP")),
            Action::Spread { .. } | Action::Split => None,
        };
        let (protocol, port) = (self.names.protocol, self.to_port(key));
        if let Some((what, target)) = verdict {
            let why = self.comment(what);
            let top = if self.is_cluster_ip(key) {
                Top::Internal
            } else {
                Top::External
            };
            for to in self.destinations(key) {
                rendered.add(top, &format!("-p {protocol} {why} {port} {to} {target}"));
            }
        }
        if frontend.admits == Admits::Sources {
            let why = self.comment("traffic not accepted by this firewall");
            for to in self.destinations(key) {
                // Others are refused further on.
                let refused = self
                    .port
                    .sources
                    .iter()
                    .filter(|_| frontend.action == Action::Refuse);
                for source in refused {
                    let text = format!("-s {source} -p {protocol} {why} {port} {to} -j RETURN");
                    rendered.add(Top::Firewall, &text);
                }
                rendered.add(Top::Firewall, &format!("-p {protocol} {why} {port} {to} -j DROP"));
            }
        }
    }

    /// Matches for a frontend's address.
    fn destinations(&self, key: &FrontendKey) -> Vec<String> {
        match key.address {
            FrontendAddress::Service(address) => vec![format!("-d {address}")],
            FrontendAddress::EveryNodeAddress(_) => self.node.node_ports().to_vec(),
        }
    }
}

/// One of that many, as the kernel rounds it (to 31 bits) and the programs print it.
fn one_of(many: usize) -> String {
    const WHOLE: f64 = 2_147_483_648.0;
    #[expect(clippy::cast_precision_loss, reason = "a list has less than 2^15 endpoints")]
    let share = (WHOLE / many as f64).round() / WHOLE;
    format!("{share:.11}")
}
