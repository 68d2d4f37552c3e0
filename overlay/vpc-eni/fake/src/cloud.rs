//! The cloud itself: one account under its weather, with a ledger of what it was asked.

mod calls;
mod keeping;
mod making;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::{
    Action, Addresses, CallError, Called, Eni, EniId, InstanceId, Subnet, SubnetId, VpcId, Why,
};

use crate::account::{Account, Pace};
use crate::ledger::{self, Call};
use crate::request::{Interface, Machine, Refusal, Reply, Request};
use crate::weather::{Bucket, Fault, Stale, Weather};
use crate::xml::Calendar;
use crate::{Client, Imds};
pub use keeping::{OpenError, RestoreError};

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
    /// Where the account is written down before a change of it is answered.
    kept_at: Option<PathBuf>,
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
        Self::with(Account::new(), Instant::now(), seed)
    }

    fn with(account: Account, began: Instant, seed: u64) -> Self {
        let inner = Inner {
            began,
            account,
            past: VecDeque::new(),
            weather: Weather::default(),
            chance: StdRng::seed_from_u64(seed),
            buckets: BTreeMap::new(),
            faults: BTreeMap::new(),
            calls: Vec::new(),
            counts: BTreeMap::new(),
            kept_at: None,
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

    /// All VPCs.
    #[must_use]
    pub fn vpcs(&self) -> Vec<VpcId> {
        self.now().account.vpcs().cloned().collect()
    }

    /// The subnets of a VPC as they are.
    #[must_use]
    pub fn subnets(&self, vpc: &VpcId) -> Vec<Subnet> {
        let inner = self.now();
        let account = &inner.account;
        let subnets = account.subnets_of(vpc);
        subnets
            .filter_map(|(subnet, _)| account.subnet(&subnet.id).ok())
            .collect()
    }

    /// All instances that are not terminated, each with its interfaces.
    #[must_use]
    pub fn instances(&self) -> Vec<Machine> {
        let inner = self.now();
        let there = inner.account.machines().filter(|machine| !machine.is_terminated);
        there.collect()
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

    /// A change that nothing refuses.
    fn set(&self, change: impl FnOnce(&mut Account)) {
        let changed = self.change(|account, _| {
            change(account);
            Ok(())
        });
        if let Err(refusal) = changed {
            tracing::error!(%refusal, "not set");
        }
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
