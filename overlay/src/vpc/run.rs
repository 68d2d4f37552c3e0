//! The threads of one node: they keep the kernel right on news of interfaces, on changes of pods, on kernel events that
//! may concern us, and by audit. A new pod is led at once, by the thread that does all of that and in between two passes:
//! its interface is not answered for before, and the next pass would be a burst of events later.

use std::slice;
use std::sync::Arc;

use model::wiring::ROUTE_PROTOCOL;
use model::{IpFamily, with_causes};
use netlink::nft::{Monitor, Nft, Repair, Table};
use netlink::{Event, Events, Group, Netlink, sysctl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::plan::{self, plan};
use super::reconcile::{Actual, lead, repair};
use super::{Ways, translation};
use crate::drive::{self, Drive, Watched, Work};
use crate::engine::{speaks, tables};
use crate::error::Error;
use crate::own_pods::OwnPods;
use crate::pods::{Asked, PodNetwork, Standing};
use crate::reconcile::{Mirror, Outcome, PodRoute};
use crate::{guard, host_ports};

/// `rp_filter`: a packet is taken whose source is routed by any device (RFC 3704 §2.4).
const LOOSE: &str = "2";

/// What does not change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether what a pod sends in another's name is dropped.
    pub anti_spoofing: bool,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What the kernel was made to have by the latest pass.
    pub plan: Option<Arc<plan::Plan>>,
    /// The interfaces are known, and a pass reached the kernel since.
    pub ready: bool,
    /// What is wrong, one line each; a node with problems may be ready.
    pub problems: Vec<String>,
}

/// Serves until shutdown, in the network namespace of the runtime's threads. What was programmed stays. Everything that
/// can pass by itself is tried again, and told in `status` meanwhile. That `pods` gives addresses is its owner's business.
///
/// # Errors
/// When the threads that program the kernel cannot be started, or end.
pub async fn run(
    config: Config,
    mut ways: watch::Receiver<Ways>,
    pods: PodNetwork,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let drive = blocking(move || start(config, &pods, status)).await??;
    let ended = loop {
        let now = ways.borrow_and_update().clone();
        if let Err(error) = drive.tell(News::Ways(now)) {
            break Err(error);
        }
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            // Who told the ways ended before us: the last ones hold.
            changed = ways.changed() => if changed.is_err() {
                shutdown.cancelled().await;
                break Ok(());
            },
        }
    };
    // Ending the threads waits for a pass that is under way.
    blocking(move || drop(drive)).await?;
    ended
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::EngineEnded)
}

fn start(config: Config, pods: &PodNetwork, status: watch::Sender<Status>) -> Result<Drive<News>, Error> {
    let nft = Nft::open()?;
    let mut tables: Vec<Table> = IpFamily::ALL.into_iter().flat_map(tables).collect();
    tables.push(translation::table());
    let watched = Watched {
        events: Events::open(&[
            Group::Links,
            Group::Neighbours,
            Group::AddressesV4,
            Group::RoutesV4,
            Group::RoutesV6,
            Group::RulesV4,
            Group::RulesV6,
        ])?,
        concerns: concerns_us,
        tables: Monitor::open(&tables, &[nft.port()])?,
    };
    let worker = Worker {
        config,
        kernel: Netlink::open()?,
        nft,
        pods: OwnPods::new(pods.clone()),
        host_ports: host_ports::Keeper::default(),
        ways: None,
        for_all: None,
        asked: Vec::new(),
        plan: None,
        status,
        last: Outcome::default(),
    };
    let drive = Drive::start(["vpc", "vpc-events", "vpc-nft"], worker, watched, pods)?;
    let tell = drive.teller();
    pods.lead_by(move |asked| tell(News::Pod(asked)));
    Ok(drive)
}

fn concerns_us(event: &Event) -> bool {
    match event {
        Event::Link(_)
        | Event::LinkGone(_)
        | Event::Address(_)
        | Event::AddressGone(_)
        | Event::Rule(_)
        | Event::RuleGone(_)
        | Event::Overrun
        | Event::NeighbourGone(_) => true,
        Event::Forwarding(_) | Event::ForwardingGone(_) => false,
        // What comes and goes as hosts talk is not ours: ours are permanent.
        Event::Neighbour(neighbour) => neighbour.permanent,
        // Also a kernel's, to the subnet of an interface.
        Event::Route(route) | Event::RouteGone(route) => {
            route.protocol == ROUTE_PROTOCOL || route.table != netlink::rule::TABLE_LOCAL
        }
    }
}

/// What the thread is told.
enum News {
    Ways(Ways),
    /// It is not answered for before its packets are led.
    Pod(Asked),
}

struct Worker {
    config: Config,
    kernel: Netlink,
    nft: Nft,
    pods: OwnPods,
    host_ports: host_ports::Keeper,
    ways: Option<Ways>,
    /// What the kernel has for all pods, by the last pass if that reached it.
    for_all: Option<plan::Plan>,
    /// Pods that wait until they are led.
    asked: Vec<Asked>,
    plan: Option<Arc<plan::Plan>>,
    status: watch::Sender<Status>,
    last: Outcome,
}

impl Work for Worker {
    type News = News;

    fn take(&mut self, news: News) -> bool {
        match news {
            News::Ways(ways) => {
                self.ways = Some(ways);
                // A pod whose block is news need not wait for a pass.
                self.lead_those_who_wait();
                true
            }
            News::Pod(asked) => {
                let is_led = self.lead(&asked);
                if !is_led {
                    self.asked.push(asked);
                }
                !is_led
            }
        }
    }

    fn pass(&mut self) -> bool {
        let Some(ways) = self.ways.clone() else {
            return true;
        };
        let mut outcome = Outcome::default();
        let (reached, is_translated) = match self.reconcile(&ways, &mut outcome) {
            Ok(is_translated) => (true, is_translated),
            Err(error) => {
                outcome.problem(&with_causes(&error));
                (false, false)
            }
        };
        drive::log(&outcome, &self.last);
        self.for_all = is_translated.then(|| plan::Plan::for_all(&ways));
        let good = outcome.problems.is_empty();
        self.status.send_if_modified(|status| {
            let next = Status {
                plan: self.plan.clone(),
                ready: status.ready || reached && ways.interfaces.is_some(),
                problems: outcome.problems.iter().chain(&outcome.notes).cloned().collect(),
            };
            let changed = next != *status;
            *status = next;
            changed
        });
        self.last = outcome;
        self.lead_those_who_wait();
        good && self.asked.is_empty()
    }
}

impl Worker {
    fn lead_those_who_wait(&mut self) {
        let mut asked = std::mem::take(&mut self.asked);
        asked.retain(|asked| asked.is_awaited() && !self.lead(asked));
        self.asked = asked;
    }

    /// Has a pod led, and tells it. Whether it is.
    fn lead(&mut self, asked: &Asked) -> bool {
        let unled = asked.routes.iter().find_map(|pod| self.led(pod).err());
        let is_led = unled.is_none();
        asked.tell(unled.map_or(Standing::Led, Standing::NotYet));
        is_led
    }

    /// Has the kernel lead a pod's packets, or tells why it does not.
    fn led(&mut self, pod: &PodRoute) -> Result<(), String> {
        let is_ready = |ways: &&Ways| {
            let for_all = plan::Plan::for_all(ways);
            for_all.is_complete && self.for_all.as_ref() == Some(&for_all)
        };
        let Some(ways) = self.ways.as_ref().filter(is_ready) else {
            let problems = self.last.problems.join("; ");
            return Err(if problems.is_empty() {
                "the node's network interfaces are not programmed yet".to_owned()
            } else {
                problems
            });
        };
        let (plan, _) = plan(ways, slice::from_ref(pod));
        let writes = lead(&mut self.kernel, &plan, pod.address).map_err(|error| with_causes(&error))??;
        tracing::debug!(address = %pod.address, writes, "pod led");
        Ok(())
    }

    /// Makes the kernel what is planned; whether its translation is. What else could not be done is in `outcome`.
    fn reconcile(&mut self, ways: &Ways, outcome: &mut Outcome) -> Result<bool, Error> {
        let mirror = Mirror::read(&mut self.kernel, &model::ByFamily::default())?;
        let assigned = self.pods.list(&mirror, outcome);
        let pods = self.pods.routes(&mirror, &assigned, outcome);
        let (plan, rejected) = plan(ways, &pods);
        // They change by news alone, which bring us back.
        outcome.notes.extend(
            rejected
                .iter()
                .map(|rejected| format!("{} {}", rejected.object, rejected.reason)),
        );
        let actual = Actual::read(&mut self.kernel, &mirror, &plan)?;
        let known = guard::Known {
            leases: true,
            rules: false,
        };
        for family in IpFamily::ALL.into_iter().filter(|family| speaks(*family)) {
            let known = self.config.anti_spoofing.then_some(known);
            guard::keep(&mut self.nft, family, None, &pods, known, outcome);
        }
        // Before the rules that its marks are for.
        keep_loose(&plan, &actual, outcome);
        let is_translated = self.translate(&plan, &actual, outcome);
        let repaired = repair(&mut self.kernel, &mirror, &actual, &plan, &pods);
        outcome.writes += repaired.writes;
        outcome.problems.extend(repaired.problems);
        for family in IpFamily::ALL.into_iter().filter(|family| speaks(*family)) {
            let (nft, kernel) = (&mut self.nft, &mut self.kernel);
            self.host_ports.keep(nft, kernel, family, &assigned, outcome);
        }
        if self.plan.as_deref() != Some(&plan) {
            self.plan = Some(Arc::new(plan));
        }
        Ok(is_translated)
    }

    fn translate(&mut self, plan: &plan::Plan, actual: &Actual, outcome: &mut Outcome) -> bool {
        let kept = match &plan.translation {
            Some(translation) => {
                let Some(primary) = actual.link(translation.primary) else {
                    let missing = format_args!(
                        "primary interface {}: there is no such device",
                        translation.primary
                    );
                    outcome.problem(&missing);
                    return false;
                };
                let layout = translation::layout(translation, &primary.name);
                self.nft.ensure(&layout).map(|repair| repair != Repair::Unchanged)
            }
            None if plan.is_complete => self.nft.remove(&translation::table()),
            None => Ok(false),
        };
        match kept {
            Ok(written) => outcome.writes += usize::from(written),
            Err(error) => {
                outcome.problem(&format_args!("translation: {}", with_causes(&error)));
                return false;
            }
        }
        true
    }
}

/// A device that is not there is told elsewhere.
fn keep_loose(plan: &plan::Plan, actual: &Actual, outcome: &mut Outcome) {
    for link in plan.loose.iter().filter_map(|interface| actual.link(*interface)) {
        let setting = format!("net/ipv4/conf/{}/rp_filter", link.name);
        match sysctl::ensure(&setting, LOOSE) {
            Ok(written) => outcome.writes += usize::from(written),
            Err(error) => outcome.problem(&with_causes(&error)),
        }
    }
}
