//! The manager itself: it looks at EC2, compares what there is with what is wanted, and takes one step after the other.
//!
//! - [`node`] is what this node's interfaces have.
//! - `looks` asks EC2 what there is, `steps` has it changed: `making` and `removing` are the steps of several calls.
//! - `networks` asks for the VPC's networks; `rounds` says when it is time for what nothing hints at; `upkeep` is
//!   for what interfaces have besides addresses.
//! - [`problem`] is what does not work; `status` tells that, and the agent what pods may be given.
//!
//! All of it is one task with one call under way at a time: what a step was planned of cannot change while it is taken,
//! but for pods that come and go, whom the book of addresses protects.

mod looks;
mod making;
mod networks;
pub mod node;
pub mod problem;
mod removing;
mod rounds;
mod status;
mod steps;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime};

use model::MacAddr;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ec2::{Ec2, Eni, EniId, Identity, Instance, Limits, Metadata, Subnet, SubnetId};
use crate::home::{Facts, Home};
use crate::pace::Pace;
use crate::plan::{self, Block, View};
use crate::settings::{PodFamily, Settings};
use crate::tally::Tallied;
use crate::undertaking::{FileError, Undertaking, Undertakings};
use crate::warm::{Target, Targets, Unit};
use networks::Networks;
use node::{Held, Node, SETTLES};
use problem::{Kind, Problem, Problems, Subject, of_call};
use rounds::Rounds;
pub use status::Status;

/// How often the interfaces are looked at when nothing hints at a change.
const LOOKS_EVERY: Duration = Duration::from_secs(60 * 60);

/// How often interfaces are looked for that nobody has. With [`LOOKS_EVERY`] that is four calls an hour.
const SWEEPS_EVERY: Duration = Duration::from_secs(20 * 60);

/// How long nothing is given back after the last change.
const RESTS: Duration = Duration::from_secs(30);

/// How often it is looked for a device that is not there.
const DEVICES_EVERY: Duration = Duration::from_secs(1);

/// How young an interface may not be that goes.
const YOUNG: Duration = Duration::from_secs(60);

/// Tags by which interfaces are known, the peer's.
mod tag {
    /// The instance whose manager made it.
    pub(super) const INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
    /// When, in RFC 3339.
    pub(super) const CREATED: &str = "node.k8s.amazonaws.com/createdAt";
    /// The cluster.
    pub(super) const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
    /// `true`: it is not the manager's.
    pub(super) const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
    /// Of a subnet: `1` for pods, `0` not for pods.
    pub(super) const SUBNET_ROLE: &str = "kubernetes.io/role/cni";
    /// Of a subnet: the clusters that it is for; without one it is for all.
    pub(super) const SUBNET_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";
}

/// What the manager works with.
pub struct Ipam<E, M, H> {
    ec2: Tallied<E>,
    metadata: M,
    home: H,
    settings: Settings,
    facts: watch::Receiver<Facts>,
    status: watch::Sender<Status>,
    undertakings: Undertakings,
    wall: WallClock,

    identity: Option<Identity>,
    instance: Option<Instance>,
    rounds: Option<Rounds>,
    limits: Option<Limits>,
    networks: Networks,
    subnets: BTreeMap<SubnetId, Subnet>,
    node: Option<Node>,
    problems: Problems,
    pace: Pace<Subject>,
    /// The most that is asked for at once, where a subnet had less.
    portions: HashMap<EniId, u32>,
    /// Likewise for a new interface.
    subnet_portions: HashMap<SubnetId, u32>,
    subnets_asked: Option<Instant>,
    /// Subnets of interfaces that EC2's lists lack, and how often they did since the last look.
    untold_subnets: HashMap<SubnetId, u32>,
    /// MAC addresses of the devices that the kernel has, as it told last.
    devices: BTreeSet<MacAddr>,
    /// The token of an interface that may have been made by a call that nobody answered.
    perhaps_made: Option<String>,
    /// Interfaces as they were made, until they are attached.
    made: HashMap<EniId, Eni>,
    /// Interfaces that the latest search for leaks found and that are not deleted yet.
    leaked: BTreeSet<EniId>,
    /// Interfaces that EC2 takes no more addresses for, whatever a look says that may be older; until when.
    full: HashMap<EniId, Instant>,
    /// Interfaces fewer than the type allows: EC2 refused one; until when that is believed.
    interface_limit: Option<(u32, Instant)>,
    look_due: Instant,
    /// Until when a look may be older than what is known otherwise: there is another one then.
    looks_old_until: Option<Instant>,
    sweep_due: Instant,
    /// When something may have been made here that nobody has.
    leak_suspected: Option<Instant>,
    last_change: Option<Instant>,
}

/// The time of day, as far from the start as the clock of waits is: both stand still together in tests.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    began: SystemTime,
    at: Instant,
}

impl WallClock {
    fn now(self) -> SystemTime {
        self.began + self.at.elapsed()
    }
}

/// Whether an interface is of a kind that managers have, and nobody said that it is somebody else's.
fn may_be_managed(eni: &Eni) -> bool {
    let is_free = eni.tags.get(tag::NO_MANAGE).is_none_or(|value| value != "true");
    is_free && matches!(eni.kind.as_str(), "interface" | "")
}

/// Interfaces that nobody has and that are being deleted.
fn abandoned(open: &[Undertaking]) -> BTreeSet<EniId> {
    let of_nobody = |open: &Undertaking| match open {
        Undertaking::Remove {
            eni, was_here: false, ..
        } => Some(eni.clone()),
        _ => None,
    };
    open.iter().filter_map(of_nobody).collect()
}

/// Whether a turn did something, so that the next one may have something to do at once; else there is nothing to do
/// until something happens or a wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Acted,
    Idle,
}

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// A manager that knows nothing yet. `directory` is the agent's state directory.
    ///
    /// # Errors
    /// When the record of what was begun cannot be read.
    pub fn new(
        ec2: E,
        metadata: M,
        home: H,
        settings: Settings,
        facts: watch::Receiver<Facts>,
        directory: &Path,
    ) -> Result<(Self, watch::Receiver<Status>), FileError> {
        let (status, told) = watch::channel(Status::default());
        let now = Instant::now();
        let undertakings = Undertakings::open(directory)?;
        let manager = Self {
            wall: WallClock {
                began: SystemTime::now(),
                at: now,
            },
            ec2: Tallied::new(ec2),
            metadata,
            home,
            settings,
            facts,
            status,
            identity: None,
            instance: None,
            rounds: None,
            limits: None,
            networks: Networks::new(now),
            subnets: BTreeMap::new(),
            node: None,
            problems: Problems::default(),
            pace: Pace::default(),
            portions: HashMap::new(),
            subnet_portions: HashMap::new(),
            subnets_asked: None,
            untold_subnets: HashMap::new(),
            devices: BTreeSet::new(),
            perhaps_made: undertakings
                .open_ones()
                .iter()
                .find_map(Undertaking::unmade_token),
            made: HashMap::new(),
            leaked: abandoned(undertakings.open_ones()),
            full: HashMap::new(),
            interface_limit: None,
            look_due: now,
            looks_old_until: None,
            sweep_due: now,
            leak_suspected: None,
            last_change: None,
            undertakings,
        };
        Ok((manager, told))
    }

    /// Works until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        // A call that is under way is waited for: what came of it is worth knowing.
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let turn = self.turn(began).await;
            self.publish();
            if turn == Turn::Acted {
                continue;
            }
            // What fell due while a call was under way is due now.
            let due = self.next_due(began);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep_until(due) => {}
                () = self.home.changed() => {}
                changed = self.facts.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// One thing that is due.
    async fn turn(&mut self, now: Instant) -> Turn {
        if !self.knows_itself(now).await {
            return Turn::Idle;
        }
        self.learn_networks(now).await;
        if self.look_due <= now && self.pace.allows(&Subject::Interfaces, now) {
            return self.look(now).await;
        }
        if self.node.is_none() {
            return Turn::Idle;
        }
        self.end_what_is_past(now);
        if let Some(undertaking) = self.next_undertaking(now) {
            return self.continue_with(undertaking, now).await;
        }
        if self.sweeps(now) {
            return self.sweep(now).await;
        }
        // Pods that wait come before what is kept up.
        let acted = self.learn_subnets(now).await == Turn::Acted
            || self.take_step(now).await == Turn::Acted
            || self.regroup(now).await == Turn::Acted
            || self.retag(now).await == Turn::Acted;
        if acted { Turn::Acted } else { Turn::Idle }
    }

    /// The next time of what is done so often.
    fn next_round(&self, every: Duration, now: Instant) -> Instant {
        self.rounds.map_or(now + every, |rounds| rounds.next(every, now))
    }

    /// Whether leaks are looked for now. Nobody knows what an interface is of while one is being made.
    fn sweeps(&self, now: Instant) -> bool {
        let mut open = self.undertakings.open_ones().iter();
        let is_making = open.any(|open| open.eni().is_none());
        let may = [Subject::Leaks, Subject::File]
            .iter()
            .all(|subject| self.pace.allows(subject, now));
        self.sweep_due <= now && may && !is_making
    }

    /// When something is due of which nobody else tells.
    fn next_due(&self, now: Instant) -> Instant {
        let looks = [self.look_due, self.sweep_due, self.networks.due()];
        let rests = self.last_change.map(|changed| changed + RESTS);
        let grows_up = self
            .node
            .iter()
            .flat_map(Node::interfaces)
            .map(|held| held.since + YOUNG);
        let open = self.undertakings.open_ones().iter();
        let past = open
            .filter_map(Undertaking::gone_since)
            .map(|since| now + SETTLES.saturating_sub(self.age(since)));
        // Somebody else's may be in a pod for good.
        let mut managed = self.held().filter(|held| self.manages(held));
        let lacks_one = managed.any(|held| !self.devices.contains(&held.eni.mac));
        let dues = looks
            .into_iter()
            .chain(lacks_one.then(|| now + DEVICES_EVERY))
            .chain(past)
            .chain(self.interface_limit.map(|(_, until)| until))
            .chain(self.full.values().copied())
            .chain(rests)
            .chain(grows_up)
            .chain(self.pace.next(now));
        let next = dues.filter(|due| *due > now).min();
        next.unwrap_or(now + LOOKS_EVERY)
    }

    /// Whether this manager may use an interface.
    fn manages(&self, held: &Held) -> bool {
        let is_known = held.device_index() == 0 || self.is_ours(held) || self.settings.manages_untagged;
        is_known && may_be_managed(&held.eni)
    }

    /// Whether this node's manager made an interface, or the peer's before it.
    fn is_ours(&self, held: &Held) -> bool {
        let instance = self.instance.as_ref().map(|instance| &instance.id.0);
        held.device_index() != 0 && held.eni.tags.get(tag::INSTANCE) == instance
    }

    /// Whether pods may have addresses of an interface that is managed.
    fn serves(&self, held: &Held) -> bool {
        if held.device_index() != 0 {
            return true;
        }
        let tags = self.subnets.get(&held.eni.subnet).map(|subnet| &subnet.tags);
        let is_excluded = tags
            .and_then(|tags| tags.get(tag::SUBNET_ROLE))
            .is_some_and(|role| role == "0");
        let is_taken = self.settings.family == PodFamily::V4 && self.settings.custom_networking.is_some();
        let is_left_out = self.settings.discovers_subnets && is_excluded;
        !is_taken && !is_left_out
    }

    fn held(&self) -> impl Iterator<Item = &Held> {
        self.node.iter().flat_map(Node::interfaces)
    }

    /// Interfaces of which it is not known what they have, or of which EC2 may tell what was.
    fn is_unsure(&self, eni: &EniId) -> bool {
        let mut open = self.undertakings.open_ones().iter();
        open.any(|open| open.eni() == Some(eni) && !matches!(open, Undertaking::GaveBack { .. }))
    }

    /// Whether more may be asked for an interface, as far as itself and its subnet go.
    fn may_fill(&self, held: &Held, now: Instant) -> bool {
        self.full.get(&held.eni.id).is_none_or(|until| *until <= now)
            && !held.is_doubted()
            && !self.lacks_device(held, now)
            && self.pace.allows(&Subject::Subnet(held.eni.subnet.clone()), now)
    }

    /// Whether an interface has no device although there was time enough for one.
    fn lacks_device(&self, held: &Held, now: Instant) -> bool {
        now >= held.since + YOUNG && !self.devices.contains(&held.eni.mac)
    }

    /// How many of the instance's places for interfaces are taken.
    fn taken_places(&self) -> u32 {
        let open = self.undertakings.open_ones().iter();
        let leaving = open.filter(|open| matches!(open, Undertaking::Remove { was_here: true, .. }));
        (self.held().count() + leaving.count()) as u32
    }

    /// What there is and what is wanted, for the plan.
    fn view(&self, limits: Limits, now: Instant) -> View {
        let census = self.home.census();
        let facts = self.facts.borrow();
        let units = limits.addresses_per_interface.saturating_sub(1);
        let served = self.held().filter(|held| self.manages(held) && self.serves(held));
        let interfaces = served.map(|held| {
            let id = held.eni.id.clone();
            let used = held.eni.secondary.len() + held.eni.prefixes.len();
            let may_fill = self.may_fill(held, now);
            // What is doubted is nothing for a pod that waits, nor is what has no device; what is kept ready may wait for
            // a second look.
            let blocks = if census.waiting == 0 {
                held.blocks()
            } else if self.lacks_device(held, now) {
                BTreeSet::new()
            } else {
                held.offered()
            };
            let blocks = blocks.into_iter().map(|network| {
                let used = census.blocks.get(&network).copied().unwrap_or_default();
                Block {
                    network,
                    assigned: used.assigned,
                    cooling: used.cooling,
                }
            });
            plan::Interface {
                room: if may_fill {
                    units.saturating_sub(used as u32)
                } else {
                    0
                },
                blocks: blocks.collect(),
                may_go: self.is_ours(held) && now >= held.since + YOUNG && !self.is_unsure(&id),
                id,
            }
        });
        let is_idle = self.last_change.is_none_or(|changed| now >= changed + RESTS);
        View {
            targets: Targets {
                target: self.target(limits),
                unit: self.unit(limits),
                units_per_interface: units,
                max_pods: facts.max_pods,
            },
            interfaces: interfaces.collect(),
            more_interfaces: self
                .most_interfaces(limits, now)
                .saturating_sub(self.taken_places()),
            waiting: census.waiting,
            may_give_back: is_idle
                && !self.undertakings.open_ones().iter().any(Undertaking::is_underway)
                && !self.held().any(Held::is_doubted),
        }
    }

    /// Without Nitro there are no prefixes.
    fn unit(&self, limits: Limits) -> Unit {
        match self.settings.unit {
            Unit::Prefix if limits.is_nitro => Unit::Prefix,
            Unit::Prefix | Unit::Address => Unit::Address,
        }
    }

    /// Blocks cannot be kept ready where there are none.
    fn target(&self, limits: Limits) -> Target {
        match (self.settings.target, self.unit(limits)) {
            (Target::Prefixes(_), Unit::Address) => Target::Interfaces(1),
            (target, _) => target,
        }
    }

    fn most_interfaces(&self, limits: Limits, now: Instant) -> u32 {
        let wished = self.settings.max_interfaces.unwrap_or(u32::MAX);
        let told = self.interface_limit.filter(|(_, until)| now < *until);
        let told = told.map_or(u32::MAX, |(most, _)| most);
        limits.interfaces.min(wished).min(told)
    }

    fn most_addresses(&self, limits: Limits, now: Instant) -> u32 {
        if self.settings.family == PodFamily::V6 {
            // Those of a /80, as far as they can be counted.
            return u32::MAX;
        }
        let of_each = limits.addresses_per_interface.saturating_sub(1) * self.unit(limits).size();
        let without = self
            .held()
            .filter(|held| !self.manages(held) || !self.serves(held))
            .count();
        self.most_interfaces(limits, now).saturating_sub(without as u32) * of_each
    }

    /// A call failed: it is told, and asked for again later.
    fn failed(&mut self, subject: Subject, error: &crate::ec2::CallError, now: Instant) {
        self.problems.note(&subject, of_call(error));
        self.pace.failed(subject, now);
    }

    fn worked(&mut self, subject: &Subject) {
        self.problems.ends(subject);
        self.pace.worked(subject);
    }

    /// Whether the record could be written; nothing is begun until it can.
    fn is_recorded(&mut self, written: Result<(), FileError>, now: Instant) -> bool {
        let error = match written {
            Ok(()) => {
                self.worked(&Subject::File);
                return true;
            }
            Err(error) => error,
        };
        let problem = Problem {
            kind: Kind::Record,
            what: model::with_causes(&error),
            advice: "make room on the disk of the state directory; nothing is asked of EC2 that could not be undone"
                .to_owned(),
        };
        self.problems.note(&Subject::File, problem);
        self.pace.failed(Subject::File, now);
        // What could not be struck out is, after a look.
        self.look_due = self.look_due.min(now + SETTLES);
        false
    }
}
