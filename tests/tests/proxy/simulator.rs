//! The table on plans alone: no kernel, no privileges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{IpFamily, ObjectName, Protocol};
use proxy::plan::Target;
use proxy::verdict::{Packet, Verdict, decide};
use proxy::{NodeContext, ServicePlan, ServiceView, plan_service};

use super::cases::{Becomes, From, How, PacketCase, Scene, To, scenes, untouched};
use super::cluster::{ADMIN_TARGET_PORT, FAMILIES, SERVERS, State, port_number};
use super::judge::{Outcome, judge, name};

/// A node that knows one Service.
struct Simulator {
    plans: BTreeMap<ObjectName, Arc<ServicePlan>>,
    context: NodeContext,
}

impl Simulator {
    fn of(state: &State) -> Self {
        let mut context = state.settings().context(Some(&state.this_node()));
        context.service_networks.extend(&state.service_networks);
        let service = state.service();
        let slices = FAMILIES.map(|family| state.slice(family));
        let view = ServiceView {
            service: &service,
            slices: slices.iter().collect(),
        };
        let (plan, _) = plan_service(&view, &context);
        Self {
            plans: BTreeMap::from([(service.name, Arc::new(plan))]),
            context,
        }
    }

    /// All that can come of a row's connections.
    fn outcomes(&self, case: &PacketCase, family: IpFamily) -> Vec<Outcome> {
        let addresses = case.to.addresses(case.how, family);
        let outcomes = addresses
            .iter()
            .flat_map(|address| self.outcomes_at(case, *address));
        outcomes.collect()
    }

    fn outcomes_at(&self, case: &PacketCase, destination: SocketAddr) -> Vec<Outcome> {
        let family = destination.ip().into();
        let packet = Packet {
            source: source(case, destination.ip()),
            device: case.from.device().map(str::to_owned),
            destination: destination.ip(),
            port: port_number(destination.port()),
            protocol: protocol(case.how),
        };
        match decide(&self.plans, &self.context, &packet).verdict {
            Verdict::Pass => match untouched(case) {
                Becomes::Answer(server, _) => vec![Outcome::Answered(server.to_owned(), packet.source)],
                _ => vec![Outcome::Refused],
            },
            // Nobody tells a socket that is not connected.
            Verdict::Refuse if case.how == How::UdpUnconnected => vec![Outcome::Silent],
            Verdict::Refuse => vec![Outcome::Refused],
            Verdict::Drop => vec![Outcome::Silent],
            Verdict::Forward { to, masquerade } => to
                .iter()
                .map(|target| {
                    let (name, gateway) = server(target, family);
                    let hairpin = target.address == packet.source;
                    let seen = if masquerade || hairpin {
                        gateway
                    } else {
                        packet.source
                    };
                    Outcome::Answered(name, seen)
                })
                .collect(),
        }
    }

    /// Whether clients keep their endpoint at the row's ports.
    fn is_sticky(&self, case: &PacketCase, family: IpFamily) -> bool {
        let ports = self.plans.values().flat_map(|plan| &plan.ports);
        let mut of_row = ports.filter(|(key, _)| key.family == family && key.protocol == protocol(case.how));
        of_row.any(|(_, port)| port.affinity.is_some())
    }
}

fn source(case: &PacketCase, destination: IpAddr) -> IpAddr {
    if case.to == To::LoopbackNodePort {
        destination
    } else {
        case.from.address().of(destination.into())
    }
}

fn protocol(how: How) -> Protocol {
    match how {
        How::Tcp => Protocol::Tcp,
        How::Udp | How::UdpUnconnected => Protocol::Udp,
        How::Sctp => Protocol::Sctp,
    }
}

fn server(target: &Target, family: IpFamily) -> (String, IpAddr) {
    let server = SERVERS
        .iter()
        .find(|server| server.address.of(family) == target.address)
        .expect("endpoints are servers");
    let port = if target.port.get() == ADMIN_TARGET_PORT {
        "-admin"
    } else {
        ""
    };
    (format!("{}{port}", server.name), server.gateway.of(family))
}

/// A plan tells all endpoints that a client may get: of those that keep it, each on its own must fit.
fn judge_simulated(simulator: &Simulator, case: &PacketCase, family: IpFamily) -> Result<(), String> {
    let outcomes = simulator.outcomes(case, family);
    let (Becomes::Keeps(servers, sees) | Becomes::Leaves(servers, sees)) = case.packets else {
        let sticky = simulator.is_sticky(case, family) && case.packets.servers().len() > 1;
        if sticky {
            return Err("clients keep their endpoint".to_owned());
        }
        return judge(case, case.packets, &outcomes);
    };
    if !simulator.is_sticky(case, family) {
        return Err("clients do not keep their endpoint".to_owned());
    }
    judge(case, Becomes::Answer(servers, sees), &outcomes)
}

#[test]
fn every_row_holds_for_the_plan() {
    let mut wrong = Vec::new();
    for Scene {
        name: scene,
        state,
        cases,
    } in &scenes()
    {
        let simulator = Simulator::of(state);
        for (case, family) in cases
            .iter()
            .flat_map(|case| case.families.iter().map(move |f| (case, *f)))
        {
            if let Err(reason) = judge_simulated(&simulator, case, family) {
                wrong.push(format!(
                    "simulator {family:?} {}\n    {reason}",
                    name(scene, case)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_source_and_every_way_to_send_has_rows_of_its_own() {
    let scenes = scenes();
    let cases: Vec<_> = scenes.iter().flat_map(|scene| &scene.cases).collect();
    let rows: usize = cases.iter().map(|case| case.families.len()).sum();
    println!(
        "{} scenes, {} rows, {rows} in both families together",
        scenes.len(),
        cases.len()
    );
    for from in From::ALL {
        assert!(cases.iter().any(|case| case.from == from), "{from:?}");
    }
    let names: BTreeSet<_> = scenes.iter().map(|scene| scene.name).collect();
    assert!(
        cases.iter().all(|case| !case.rule.is_empty()),
        "a row without a rule"
    );
    assert!(names.len() > 90 && cases.len() > 300, "the table lost rows");
}
