//! The cloud itself: one account under its weather, with a ledger of what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::{
    Action, Addresses, CallError, Called, Eni, EniId, InstanceId, Limits, SecurityGroupId, Subnet, SubnetId,
    Tags, VpcId, Why,
};

use crate::account::{Account, Pace};
use crate::ledger::{self, Call, Outcome};
use crate::request::{Interface, Machine, Refusal, Reply, Request};
use crate::weather::{Bucket, Fault, Rate, Stale, Weather};
use crate::xml::Calendar;
use crate::{Client, Imds};

/// How many past states are kept for those who see late.
const REMEMBERED: usize = 256;

/// A region of an AWS account. Clones are the same cloud.
///
/// Everything in it goes by tokio's clock, so that a test that has paused it needs no patience. The same seed and the
/// same calls in the same order give the same answers.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<Mutex<Inner>>,
    version: Arc<watch::Sender<u64>>,
}

struct Inner {
    began: Instant,
    account: Account,
    /// The account as it was until a change, with when that was, oldest first.
    past: VecDeque<(Instant, Account)>,
    weather: Weather,
    chance: StdRng,
    buckets: BTreeMap<Action, Bucket>,
    /// What befalls which call, counted from the first of its action.
    faults: BTreeMap<(Action, usize), Fault>,
    calls: Vec<Call>,
    counts: BTreeMap<Action, usize>,
}

/// What a call comes to before anybody waits for it.
enum Verdict {
    Answer(Result<Reply, Refusal>),
    Silence(&'static str),
}

impl Cloud {
    /// An account with nothing in it, on a fine day.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            began: Instant::now(),
            account: Account::new(),
            past: VecDeque::new(),
            weather: Weather::default(),
            chance: StdRng::seed_from_u64(seed),
            buckets: BTreeMap::new(),
            faults: BTreeMap::new(),
            calls: Vec::new(),
            counts: BTreeMap::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            version: Arc::new(watch::Sender::new(0)),
        }
    }

    /// EC2, for whoever calls it in this process.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    /// The metadata service as an instance sees it, for whoever calls it in this process.
    #[must_use]
    pub fn imds(&self, instance: &InstanceId) -> Imds {
        Imds::new(self.clone(), instance.clone())
    }

    /// Makes one call, as it would come over the network.
    ///
    /// # Errors
    /// What EC2 refuses, and that nobody answers.
    pub async fn call(&self, request: Request) -> Called<Reply> {
        let action = request.action();
        let (verdict, answer_after) = {
            let mut inner = self.lock();
            let verdict = inner.call(request, Instant::now());
            (verdict, inner.weather.answer_after)
        };
        self.tell();
        if !answer_after.is_zero() {
            tokio::time::sleep(answer_after).await;
        }
        match verdict {
            Verdict::Answer(Ok(reply)) => Ok(reply),
            Verdict::Answer(Err(refusal)) => Err(CallError::refused(action, &refusal.code, refusal.message)),
            Verdict::Silence(why) => Err(CallError {
                action,
                why: Why::NoAnswer(why.to_owned()),
            }),
        }
    }

    /// Changes the weather. What changes it may look at the cloud meanwhile.
    pub fn set_weather(&self, change: impl FnOnce(&mut Weather)) {
        let mut weather = self.weather();
        change(&mut weather);
        self.lock().weather = weather;
        self.tell();
    }

    /// The weather now.
    #[must_use]
    pub fn weather(&self) -> Weather {
        self.lock().weather.clone()
    }

    /// Lets something befall a call of an action that is yet to come: the first is 1.
    pub fn fail(&self, action: Action, nth: usize, fault: Fault) {
        let mut inner = self.lock();
        let count = inner.counts.get(&action).copied().unwrap_or_default();
        inner.faults.insert((action, count + nth), fault);
    }

    /// Nothing befalls that call of an action, however [`Self::fail`] has it; the next one is 1.
    pub fn forget(&self, action: Action, nth: usize) {
        let mut inner = self.lock();
        let count = inner.counts.get(&action).copied().unwrap_or_default();
        inner.faults.remove(&(action, count + nth));
    }

    /// All calls up to now.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// All calls since this was last asked; the ledger begins anew.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    /// How many calls of each action the ledger has.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Action, usize> {
        ledger::count_by_action(&self.lock().calls)
    }

    /// How many calls of an action the ledger has.
    #[must_use]
    pub fn count(&self, action: Action) -> usize {
        self.counts().get(&action).copied().unwrap_or_default()
    }

    /// All interfaces as they are, whatever anybody sees of them.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        self.now().account.interfaces().cloned().collect()
    }

    /// One interface as it is.
    #[must_use]
    pub fn interface(&self, id: &EniId) -> Option<Interface> {
        self.now().account.interface(id).ok().cloned()
    }

    /// The interfaces that are attached to an instance, by device index.
    #[must_use]
    pub fn interfaces_of(&self, instance: &InstanceId) -> Vec<Interface> {
        self.now()
            .account
            .interfaces_of(instance)
            .into_iter()
            .cloned()
            .collect()
    }

    /// The interfaces that an instance has devices for, by device index: they come after the attaching has begun, and
    /// go when the detaching is over.
    #[must_use]
    pub fn devices(&self, instance: &InstanceId) -> Vec<Eni> {
        let now = Instant::now();
        let has_device = |interface: &Interface| {
            interface
                .progress
                .is_some_and(|progress| progress.device_at <= now)
        };
        let attached = self.interfaces_of(instance).into_iter();
        attached
            .filter(has_device)
            .map(|interface| interface.eni)
            .collect()
    }

    /// Who an address is delivered to: the interface that has it or the prefix around it.
    #[must_use]
    pub fn owner(&self, vpc: &VpcId, address: IpAddr) -> Option<EniId> {
        let inner = self.now();
        let owns = |interface: &&Interface| interface.vpc == *vpc && has_address(&interface.eni, address);
        inner
            .account
            .interfaces()
            .find(owns)
            .map(|interface| interface.eni.id.clone())
    }

    /// A subnet as it is.
    #[must_use]
    pub fn subnet(&self, id: &SubnetId) -> Option<Subnet> {
        self.now().account.subnet(id).ok()
    }

    /// What the network of a VPC is made of.
    pub(crate) fn grounds(&self, vpc: &VpcId) -> Result<Grounds, Refusal> {
        let inner = self.now();
        let now = Instant::now();
        let has_device = |interface: &&Interface| {
            interface.vpc == *vpc
                && interface
                    .progress
                    .is_some_and(|progress| progress.device_at <= now)
        };
        let account = &inner.account;
        Ok(Grounds {
            networks: account.vpc(vpc)?.networks.clone(),
            subnets: account
                .subnets_of(vpc)
                .map(|(subnet, network_v6)| (subnet.id.clone(), (subnet.network, network_v6)))
                .collect(),
            devices: account
                .interfaces()
                .filter(has_device)
                .map(|interface| interface.eni.clone())
                .collect(),
        })
    }

    /// What comes to pass from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes {
            cloud: self.clone(),
            version: self.version.subscribe(),
            looked_at: Instant::now(),
        }
    }

    /// What the cloud's clock says in days and hours.
    pub(crate) fn calendar(&self) -> Calendar {
        Calendar {
            began: self.lock().began,
            now: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inside, with everything done that took until now.
    fn now(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        inner.settle(Instant::now());
        inner
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// What an instance's metadata service knows, which may not be how it is: the machine and its interfaces.
    pub(crate) fn metadata(&self, instance: &InstanceId) -> Option<Known> {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.settle(now);
        let mood = inner.weather.metadata.clone();
        let stale = Stale {
            changes: 0,
            time: mood.behind,
        };
        if mood.is_down {
            return None;
        }
        let (account, seen_at) = inner
            .past_view(stale, now)
            .unwrap_or((inner.account.clone(), now));
        // The instance knows itself however late the rest comes.
        let machine = account
            .machine(instance)
            .or_else(|_| inner.account.machine(instance))
            .ok()?
            .clone();
        let tells_of = |interface: &&Interface| {
            let has_device = interface
                .progress
                .is_some_and(|progress| progress.device_at <= seen_at);
            has_device && !mood.missing.contains(&interface.eni.id)
        };
        let mut interfaces: Vec<Interface> = account
            .interfaces_of(instance)
            .into_iter()
            .filter(tells_of)
            .cloned()
            .collect();
        for interface in &mut interfaces {
            let eni = &mut interface.eni;
            eni.secondary
                .retain(|address| !mood.missing_addresses.contains(&IpAddr::V4(*address)));
            eni.prefixes
                .retain(|prefix| !mood.missing_addresses.contains(&IpAddr::V4(prefix.ip())));
            eni.prefixes_v6
                .retain(|prefix| !mood.missing_addresses.contains(&IpAddr::V6(prefix.ip())));
        }
        let subnets = interfaces
            .iter()
            .filter_map(|interface| inner.account.subnet(&interface.eni.subnet).ok())
            .map(|subnet| (subnet.id, subnet.network))
            .collect();
        let vpc_networks = inner
            .account
            .vpc(&machine.vpc)
            .map(|vpc| vpc.networks.clone())
            .unwrap_or_default();
        Some(Known {
            machine: Machine {
                interfaces,
                ..machine
            },
            subnets,
            vpc_networks,
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Account, Pace) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let changed = self.lock().change(Instant::now(), change);
        self.tell();
        changed
    }
}

/// What an instance's metadata service knows.
pub(crate) struct Known {
    pub(crate) machine: Machine,
    pub(crate) subnets: BTreeMap<SubnetId, Ipv4Network>,
    pub(crate) vpc_networks: Vec<Ipv4Network>,
}

/// What the network of a VPC is made of, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// The VPC's blocks.
    pub(crate) networks: Vec<Ipv4Network>,
    /// The blocks of each subnet.
    pub(crate) subnets: BTreeMap<SubnetId, (Ipv4Network, Option<Ipv6Network>)>,
    /// The interfaces that instances have devices for.
    pub(crate) devices: Vec<Eni>,
}

/// What is there without the manager's doing.
impl Cloud {
    /// A VPC with these blocks, each `/16` to `/28`, and a security group of its own.
    ///
    /// # Errors
    /// `InvalidVpc.Range`.
    pub fn make_vpc(&self, networks: &[Ipv4Network]) -> Result<VpcId, Refusal> {
        self.change(|account, _| account.make_vpc(networks))
    }

    /// One more block for a VPC.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`, `InvalidVpc.Range`.
    pub fn associate_network(&self, vpc: &VpcId, network: Ipv4Network) -> Result<(), Refusal> {
        self.change(|account, _| account.associate_network(vpc, network))
    }

    /// A subnet in a zone (`eu-west-1a`).
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`, `InvalidSubnet.Range`, `InvalidSubnet.Conflict`.
    pub fn make_subnet(
        &self,
        vpc: &VpcId,
        network: Ipv4Network,
        zone: &str,
        tags: Tags,
    ) -> Result<SubnetId, Refusal> {
        self.change(|account, _| account.make_subnet(vpc, network, None, zone, tags))
    }

    /// A subnet with an IPv6 block, a `/64`.
    ///
    /// # Errors
    /// As [`Self::make_subnet`].
    pub fn make_dual_subnet(
        &self,
        vpc: &VpcId,
        network: Ipv4Network,
        network_v6: Ipv6Network,
        zone: &str,
        tags: Tags,
    ) -> Result<SubnetId, Refusal> {
        self.change(|account, _| account.make_subnet(vpc, network, Some(network_v6), zone, tags))
    }

    /// A security group.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`.
    pub fn make_security_group(&self, vpc: &VpcId, tags: Tags) -> Result<SecurityGroupId, Refusal> {
        self.change(|account, _| account.make_group(vpc, tags))
    }

    /// The security group that came with a VPC.
    #[must_use]
    pub fn default_group(&self, vpc: &VpcId) -> Option<SecurityGroupId> {
        self.now()
            .account
            .vpc(vpc)
            .ok()
            .map(|vpc| vpc.default_group.clone())
    }

    /// An instance type, or other limits for one that is there.
    pub fn make_instance_type(&self, name: &str, limits: Limits) {
        self.lock().account.make_type(name, limits);
    }

    /// How many interfaces the account may have (5000 in the beginning).
    pub fn limit_interfaces(&self, most: usize) {
        self.lock().account.limit_interfaces(most);
    }

    /// An instance with its primary interface.
    ///
    /// # Errors
    /// An unknown type, subnet or group; that the subnet is full.
    pub fn make_instance(
        &self,
        instance_type: &str,
        subnet: &SubnetId,
        groups: &[SecurityGroupId],
    ) -> Result<InstanceId, Refusal> {
        self.change(|account, pace| account.make_instance(instance_type, subnet, groups, pace))
    }

    /// Ends an instance: the interfaces that go with it go, the others become `available`.
    ///
    /// # Errors
    /// `InvalidInstanceID.NotFound`.
    pub fn terminate(&self, instance: &InstanceId) -> Result<(), Refusal> {
        self.change(|account, _| account.terminate(instance))
    }

    /// Gives an address to something that is no interface.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`, `InvalidIPAddress.InUse`.
    pub fn occupy(&self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        self.change(|account, _| account.occupy(subnet, address))
    }

    /// Takes an address back from what is no interface.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn vacate(&self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        self.change(|account, _| account.vacate(subnet, address))
    }
}

/// A foreign hand: what somebody does behind the manager's back. It is in no ledger, and no weather holds it up.
impl Cloud {
    /// Takes addresses and prefixes from an interface.
    ///
    /// # Errors
    /// As the Unassign calls.
    pub fn take_addresses(&self, eni: &EniId, addresses: &Addresses) -> Result<(), Refusal> {
        self.change(|account, _| account.take_addresses(eni, addresses))
    }

    /// Deletes an interface, attached or not.
    ///
    /// # Errors
    /// `InvalidNetworkInterfaceID.NotFound`.
    pub fn take_interface(&self, eni: &EniId) -> Result<(), Refusal> {
        self.change(|account, _| account.take_interface(eni))
    }

    /// Deletes a security group; an interface that has no other gets its VPC's own.
    ///
    /// # Errors
    /// `InvalidGroup.NotFound`, `CannotDelete`.
    pub fn take_group(&self, group: &SecurityGroupId) -> Result<(), Refusal> {
        self.change(|account, _| account.take_group(group))
    }

    /// Makes any call at once, whatever the weather is.
    ///
    /// # Errors
    /// What EC2 refuses.
    pub fn meddle(&self, request: &Request) -> Result<Reply, Refusal> {
        self.change(|account, pace| account.answer(request, pace))
    }
}

impl Inner {
    fn call(&mut self, request: Request, now: Instant) -> Verdict {
        self.settle(now);
        let action = request.action();
        let count = self.counts.entry(action).or_default();
        *count += 1;
        let fault = self.faults.remove(&(action, *count));
        let (verdict, outcome) = self.judge(&request, fault, now);
        self.calls.push(Call {
            at: now,
            request,
            outcome,
        });
        verdict
    }

    fn judge(&mut self, request: &Request, fault: Option<Fault>, now: Instant) -> (Verdict, Outcome) {
        if self.weather.outage {
            return lost("nobody is there");
        }
        if fault == Some(Fault::Lost) {
            return lost("the call was lost");
        }
        if let Some(refusal) = self.refuses(request.action(), now) {
            return refused(refusal, false);
        }
        if let Some(Fault::Refused { code, message }) = fault {
            return refused(Refusal { code, message }, false);
        }
        let answer = self.answer(request, now);
        let happened = answer.is_ok();
        match (fault, answer) {
            (Some(Fault::AnswerLost), _) => {
                let outcome = Outcome::NoAnswer { happened };
                (Verdict::Silence("the answer was lost"), outcome)
            }
            (Some(Fault::DoneAndRefused { code, message }), Ok(_)) => {
                refused(Refusal { code, message }, true)
            }
            (_, Ok(reply)) => (Verdict::Answer(Ok(reply)), Outcome::Done),
            (_, Err(refusal)) => refused(refusal, false),
        }
    }

    /// What is refused without being looked at.
    fn refuses(&mut self, action: Action, now: Instant) -> Option<Refusal> {
        let too_often = || Refusal::new("RequestLimitExceeded", "Request limit exceeded.");
        let rate = self.weather.limits.get(&action).copied();
        if rate.is_some_and(|rate| !self.bucket(action, rate, now).take(now)) {
            return Some(too_often());
        }
        let per_cent = self.weather.throttled_per_cent;
        if per_cent > 0 && self.chance.random_range(0..100) < per_cent {
            return Some(too_often());
        }
        if self.weather.denied.contains(&action) {
            let message = format!(
                "You are not authorized to perform this operation. No identity-based policy allows the ec2:{action} \
                 action"
            );
            return Some(Refusal::new("UnauthorizedOperation", message));
        }
        self.weather.refused.get(&action).cloned()
    }

    fn bucket(&mut self, action: Action, rate: Rate, now: Instant) -> &mut Bucket {
        let bucket = self
            .buckets
            .entry(action)
            .or_insert_with(|| Bucket::full(rate, now));
        if !bucket.is_of(rate) {
            *bucket = Bucket::full(rate, now);
        }
        bucket
    }

    fn answer(&mut self, request: &Request, now: Instant) -> Result<Reply, Refusal> {
        let action = request.action();
        let stale = self.weather.stale.get(&action).copied();
        let stale = stale.map(|stale| Stale {
            changes: self.chance.random_range(0..=stale.changes),
            ..stale
        });
        let seen = stale.and_then(|stale| self.past_view(stale, now));
        if action.changes() {
            if let Some((account, _)) = seen {
                account.knows_what_is_named(request)?;
            }
            return self.change(now, |account, pace| account.answer(request, pace));
        }
        let pace = self.pace(now);
        match seen {
            Some((mut account, seen_at)) => account.answer(request, Pace { now: seen_at, ..pace }),
            None => self.account.answer(request, pace),
        }
    }

    /// How it was, for those who see late, and when that was; `None`, where nothing is late.
    fn past_view(&self, stale: Stale, now: Instant) -> Option<(Account, Instant)> {
        let seen_at = now.checked_sub(stale.time).unwrap_or(now);
        let by_time = self
            .past
            .iter()
            .position(|(until, _)| *until > seen_at)
            .unwrap_or(self.past.len());
        let by_changes = self.past.len().saturating_sub(stale.changes);
        let (_, account) = self.past.get(by_time.min(by_changes))?;
        Some((account.clone(), seen_at))
    }

    fn change<T>(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Account, Pace) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.settle(now);
        let pace = self.pace(now);
        let mut account = self.account.clone();
        let changed = change(&mut account, pace)?;
        let before = std::mem::replace(&mut self.account, account);
        self.remember(now, before);
        Ok(changed)
    }

    /// Ends what was to end by now, each at its own time.
    fn settle(&mut self, now: Instant) {
        while let Some(at) = self.account.next_end().filter(|at| *at <= now) {
            let before = self.account.clone();
            self.account.settle(at);
            self.remember(at, before);
        }
    }

    fn remember(&mut self, until: Instant, account: Account) {
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back((until, account));
    }

    fn pace(&mut self, now: Instant) -> Pace {
        Pace {
            now,
            attaching: self.weather.attaching,
            device_after: self.weather.device_after,
            detaching: self.weather.detaching,
            scattered: self.weather.scattered.then(|| self.chance.random()),
            page_size: self.weather.page_size,
        }
    }
}

fn lost(why: &'static str) -> (Verdict, Outcome) {
    (Verdict::Silence(why), Outcome::NoAnswer { happened: false })
}

fn refused(refusal: Refusal, happened: bool) -> (Verdict, Outcome) {
    let outcome = Outcome::Refused {
        code: refusal.code.clone(),
        happened,
    };
    (Verdict::Answer(Err(refusal)), outcome)
}

fn has_address(eni: &Eni, address: IpAddr) -> bool {
    let held = Addresses {
        secondary: eni.secondary.clone(),
        prefixes: eni.prefixes.clone(),
        prefixes_v6: eni.prefixes_v6.clone(),
    };
    address == IpAddr::V4(eni.primary) || held.blocks().any(|block: IpNetwork| block.contains(address))
}

/// Waits for what comes to pass: calls, foreign hands, and what takes its time.
pub struct Changes {
    cloud: Cloud,
    version: watch::Receiver<u64>,
    looked_at: Instant,
}

impl Changes {
    /// Returns when there may be something new since the last time.
    pub async fn next(&mut self) {
        let due = self.cloud.lock().account.next_change(self.looked_at);
        // Far enough for there to be no end of it.
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365));
        tokio::select! {
            // The sender lives as long as the cloud, of which this has a clone.
            _ = self.version.changed() => {}
            () = tokio::time::sleep_until(due) => {}
        }
        self.looked_at = Instant::now();
        self.version.mark_unchanged();
    }
}
