//! Keeps this node's lease and follows the others', through everything that can happen to an etcd.
//!
//! A session: connect, read the network's configuration, claim a subnet, list, watch. Whatever breaks a session starts
//! the next one, and the listing at its start tells every change that was missed: nothing depends on having seen an
//! event. While a session runs, our own key is looked at every ten seconds, which is how lost data are noticed: a watch
//! on an etcd that forgot its revisions waits for ever.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchResponse};
use ipnetwork::IpNetwork;
use model::ByFamily;
use model::lease::Lease;
use tokio::sync::watch;

use crate::config::{Config, Etcd};
use crate::engine::Network;
use crate::error::Error;
use crate::etcd::{Listing, Store, TIME_TO_LIVE, key_of};
use crate::flannel::{self, NetworkConfig, Record};
use crate::followed::{Followed, publish, remembered, tell};
use crate::lease::{Choice, Claimant, Held, choose};
use crate::memory::{Entry, Memory};
use crate::own::{Claim, OwnNode};
use crate::pool::overlap;
use crate::subnet_env;

/// How often our own key is looked at.
const PROBE: Duration = Duration::from_secs(10);

/// Leases of nodes that an etcd forgot, together with everything else, are kept so long for the nodes to come back.
const GRACE: Duration = Duration::from_secs(60 * 60);

/// A lease that was deleted is kept so long: one that was revoked, or ran out while its node stood still, is written
/// again at once by a node that lives.
const REWRITTEN: Duration = Duration::from_secs(2);

/// How often a subnet is tried to be created before the trouble is told.
const RACES: usize = 20;

pub(crate) struct Follower {
    own: OwnNode,
    config: Etcd,
    /// The network's configuration, where etcd has none.
    given: Option<serde_json::Value>,
    subnet_env: PathBuf,
    memory_dir: PathBuf,
    memory: Memory,
    /// The other nodes' leases, by the last part of their key.
    others: BTreeMap<String, Record>,
    /// Those that an etcd forgot, or that were just deleted, until when.
    lingering: BTreeMap<String, (Record, Instant)>,
    published: watch::Sender<Followed>,
}

/// A session's own lease and its position.
struct Session {
    store: Store,
    network: NetworkConfig,
    own: Held,
    cluster_id: u64,
    revision: i64,
    renewed: Instant,
    /// Keys that hold no lease that we understand, and why not.
    problems: BTreeMap<String, String>,
}

impl Follower {
    /// Starts from what was remembered, and publishes it at once where it is enough to serve.
    pub(crate) fn new(own: OwnNode, etcd: Etcd, config: &Config, published: watch::Sender<Followed>) -> Self {
        let memory_dir = config.state_dir.clone();
        let memory = Memory::load(&memory_dir);
        let records = memory.others.iter().filter_map(Entry::record);
        let others = records.map(|record| (record.key(), record)).collect();
        if let Some(followed) = remembered(&memory, &own, "etcd") {
            publish(&published, followed);
        }
        Self {
            own,
            config: etcd,
            given: config.network.clone(),
            subnet_env: config.subnet_env.clone(),
            memory_dir,
            memory,
            others,
            lingering: BTreeMap::new(),
            published,
        }
    }

    /// Follows until cancelled.
    pub(crate) async fn run(mut self) {
        let mut pause = Pause::default();
        loop {
            let began = Instant::now();
            match self.session().await {
                Ok(()) => {}
                Err(error) => tell(&self.published, &error),
            }
            if began.elapsed() > PROBE {
                pause = Pause::default();
            }
            tokio::time::sleep(pause.next()).await;
        }
    }

    async fn session(&mut self) -> Result<(), Error> {
        let mut store = Store::connect(&self.config).await?;
        let (text, network) = self.network(&mut store).await?;
        let own = self.memory.own.as_ref().and_then(Entry::record);
        let before = own.map(|own| own.lease.sites).unwrap_or_default();
        let claim = self.own.claim(&network, &before).await?;
        let own = self.claim(&mut store, &claim).await?;
        let listing = store.list().await?;
        let (cluster_id, revision) = (listing.cluster_id, listing.revision);
        let problems = self.absorb(listing, &own.record);
        self.memory.network = Some(text);
        let session = Session {
            store,
            network,
            own,
            cluster_id,
            revision,
            renewed: Instant::now(),
            problems,
        };
        self.remember(&session)?;
        self.publish_session(&session);
        tracing::info!(lease = %session.own.record.lease, others = self.others.len(), "following leases");
        self.follow(session).await
    }

    /// The network's configuration; written first where we were given one and etcd has none.
    async fn network(&self, store: &mut Store) -> Result<(String, NetworkConfig), Error> {
        let key = store.config_key();
        let text = match (store.read_config().await?, &self.given) {
            (Some(text), _) => text,
            (None, Some(given)) => {
                let created = store.create_config(&given.to_string()).await?;
                tracing::info!(created, "network configuration was missing");
                let written = store.read_config().await?;
                written.ok_or_else(|| Error::NoNetwork { key: key.clone() })?
            }
            (None, None) => return Err(Error::NoNetwork { key }),
        };
        let network = NetworkConfig::parse(&text).map_err(|source| Error::BadNetwork {
            key: key.clone(),
            source,
        })?;
        if network.pools.v4.is_none() {
            return Err(Error::NoIpv4InKeys { key });
        }
        Ok((text, network))
    }

    /// Claims subnets; races that others win are tried again.
    async fn claim(&self, store: &mut Store, claim: &Claim<'_>) -> Result<Held, Error> {
        let own = self.memory.own.as_ref().and_then(Entry::record);
        let remembered = own
            .map(|own| own.lease.subnets())
            .filter(|subnets| !subnets.is_empty());
        let claimant = Claimant {
            node: self.own.name.clone(),
            public_ips: claim.public_ips,
            previous: remembered.unwrap_or_else(|| subnet_env::read(&self.subnet_env)),
        };
        for _ in 0..RACES {
            let listing = store.list().await?;
            let claimed = match choose(claim.network, &listing.held, &claimant) {
                Choice::Duplicate {
                    holder,
                    public_ip,
                    lease,
                } => {
                    return Err(Error::DuplicateAddress {
                        public_ip,
                        holder,
                        lease: Box::new(lease),
                    });
                }
                Choice::Exhausted { network } => {
                    return Err(Error::OutOfSubnets {
                        network,
                        taken: listing.held.len(),
                    });
                }
                Choice::Keep(held) => self.keep(store, claim, &held).await?,
                Choice::Create {
                    candidates,
                    instead_of,
                } => {
                    self.create(store, claim, &candidates, instead_of.as_ref())
                        .await?
                }
            };
            if let Some(held) = claimed {
                return Ok(held);
            }
        }
        Err(Error::LostRaces { tries: RACES })
    }

    async fn keep(&self, store: &mut Store, claim: &Claim<'_>, held: &Held) -> Result<Option<Held>, Error> {
        let mut record = held.record.clone();
        record.lease = claim.lease(&record.lease.subnets());
        record.node = Some(self.own.name.clone());
        let written = store.update(held, &record).await?;
        Ok(written.map(|mod_revision| Held {
            record,
            mod_revision,
            reserved: held.reserved,
        }))
    }

    async fn create(
        &self,
        store: &mut Store,
        claim: &Claim<'_>,
        candidates: &[ByFamily<IpNetwork>],
        instead_of: Option<&Held>,
    ) -> Result<Option<Held>, Error> {
        for subnets in candidates {
            let record = Record::new(claim.lease(subnets), self.own.name.clone());
            if let Some(mod_revision) = store.create(&record, instead_of).await? {
                tracing::info!(lease = %record.lease, "subnet claimed");
                return Ok(Some(Held {
                    record,
                    mod_revision,
                    reserved: false,
                }));
            }
        }
        Ok(None)
    }

    /// Takes a full listing as the truth about the other nodes. Returns what is odd about it.
    ///
    /// An etcd that is not the one we knew, or that went back in time, lost data: what it does not list any more is
    /// kept for a while, since its nodes are most likely there. Otherwise what is not listed is gone.
    fn absorb(&mut self, listing: Listing, own: &Record) -> BTreeMap<String, String> {
        let known = self.memory.cluster_id != 0;
        let lost_data = known
            && (listing.cluster_id != self.memory.cluster_id || listing.revision < self.memory.revision);
        let before = std::mem::take(&mut self.others);
        let records = listing.held.into_iter().map(|held| held.record);
        self.others = records
            .map(|record| (record.key(), record))
            .filter(|(key, _)| *key != own.key())
            .collect();
        if lost_data {
            tracing::warn!("etcd lost data, keeping the other nodes' leases while they come back");
            let until = Instant::now() + GRACE;
            self.lingering
                .extend(before.into_iter().map(|(key, record)| (key, (record, until))));
        }
        self.forget_lingering(&own.lease);
        listing.problems
    }

    /// A lease that lingers ends when its time is over, or its place is taken.
    fn forget_lingering(&mut self, own: &Lease) {
        let now = Instant::now();
        let others = &self.others;
        self.lingering.retain(|_, (record, until)| {
            let taken = |other: &Record| conflict(&other.lease, &record.lease);
            *until > now && !conflict(own, &record.lease) && !others.values().any(taken)
        });
    }

    fn remember(&mut self, session: &Session) -> Result<(), Error> {
        let lingering = self.lingering.values().map(|(record, _)| record);
        let others: Vec<Entry> = self.others.values().chain(lingering).map(Entry::new).collect();
        let next = Memory {
            network: self.memory.network.clone(),
            own: Some(Entry::new(&session.own.record)),
            others,
            cluster_id: session.cluster_id,
            revision: session.revision,
        };
        // The revision alone moves with every write of anybody: not worth a write of ours.
        let same = |a: &Memory, b: &Memory| {
            (&a.network, &a.own, &a.others, a.cluster_id) == (&b.network, &b.own, &b.others, b.cluster_id)
        };
        let changed = !same(&next, &self.memory);
        self.memory = next;
        if changed {
            self.memory.save(&self.memory_dir)
        } else {
            Ok(())
        }
    }

    fn publish_session(&self, session: &Session) {
        let problems = session.problems.values().cloned().collect();
        let lingering = self.lingering.values().map(|(record, _)| record);
        let others = self
            .others
            .values()
            .chain(lingering)
            .map(|record| record.lease.clone())
            .collect();
        let network = Network {
            config: session.network.clone(),
            own: session.own.record.lease.clone(),
            others,
            complete: true,
        };
        publish(&self.published, Followed::complete(network, problems));
    }

    /// Watches until something breaks, or our own lease has to be claimed again.
    async fn follow(&mut self, mut session: Session) -> Result<(), Error> {
        let mut stream = session.store.watch(session.revision + 1).await?;
        let mut probes = tokio::time::interval(PROBE);
        loop {
            tokio::select! {
                () = self.lingered() => self.settle(&session)?,
                message = stream.message() => {
                    let message = message.map_err(|source| Error::Etcd { operation: "watch leases", source })?;
                    // The end of the stream, or a revision that was compacted away: list again.
                    let Some(message) = message.filter(|message| !message.canceled()) else { return Ok(()) };
                    if !self.take(&mut session, &message)? {
                        return Ok(());
                    }
                }
                _ = probes.tick() => {
                    if !self.still_there(&mut session).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes a batch of changes; false when our own lease is no longer as we wrote it.
    fn take(&mut self, session: &mut Session, message: &WatchResponse) -> Result<bool, Error> {
        let own = session.own.record.clone();
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let key = key_of(kv);
            let short_key = canonical(session.store.short_key(&key));
            if short_key == own.key() {
                if kv.mod_revision() > session.own.mod_revision {
                    tracing::warn!(lease = %own.lease, "own lease was changed or deleted by somebody, claiming it again");
                    return Ok(false);
                }
                continue;
            }
            session.problems.remove(&key);
            match event.event_type() {
                EventType::Put => match session.store.held(kv) {
                    Ok(held) => drop(self.others.insert(held.record.key(), held.record)),
                    Err(problem) => drop(session.problems.insert(key, problem)),
                },
                EventType::Delete => {
                    self.lingering.remove(&short_key);
                    let until = Instant::now() + REWRITTEN;
                    let deleted = self.others.remove_entry(&short_key);
                    self.lingering
                        .extend(deleted.map(|(key, record)| (key, (record, until))));
                }
            }
        }
        if let Some(header) = message.header() {
            session.revision = session.revision.max(header.revision());
        }
        self.settle(session)?;
        Ok(true)
    }

    /// Tells what is known now, without what lingered long enough.
    fn settle(&mut self, session: &Session) -> Result<(), Error> {
        self.forget_lingering(&session.own.record.lease);
        self.remember(session)?;
        self.publish_session(session);
        Ok(())
    }

    /// Waits until a lease has lingered long enough.
    async fn lingered(&self) {
        let due = self.lingering.values().map(|(_, until)| *until).min();
        match due {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Looks at our own key, and renews it in time; false when a new session is needed.
    async fn still_there(&mut self, session: &mut Session) -> Result<bool, Error> {
        let probe = session.store.probe(&session.own.record).await?;
        let same = probe.cluster_id == session.cluster_id && probe.revision >= session.revision;
        if !probe.present || !same {
            tracing::warn!(
                present = probe.present,
                "etcd does not have what we wrote, claiming and listing again"
            );
            return Ok(false);
        }
        if session.renewed.elapsed() < TIME_TO_LIVE / 2 {
            return Ok(true);
        }
        let Some(mod_revision) = session.store.update(&session.own, &session.own.record).await? else {
            return Ok(false);
        };
        session.own.mod_revision = mod_revision;
        session.renewed = Instant::now();
        Ok(true)
    }
}

/// The last part of a key as [`Record::key`] writes it.
fn canonical(short_key: &str) -> String {
    flannel::parse_key(short_key).map_or_else(|_| short_key.to_owned(), |subnets| flannel::key(&subnets))
}

/// Whether two leases cannot both be true: they share an address of pods, or of nodes.
fn conflict(a: &Lease, b: &Lease) -> bool {
    let of_one_version = a
        .sites
        .iter()
        .filter_map(|(family, a)| Some((a, b.sites.get(family)?)));
    of_one_version
        .into_iter()
        .any(|(a, b)| overlap(a.subnet, b.subnet) || a.public_ip == b.public_ip)
}

/// Pauses between sessions: 100 ms, doubled up to 5 s, with jitter, so that nodes do not come back in step.
#[derive(Default)]
struct Pause {
    tries: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let full = Duration::from_millis(100 << self.tries.min(6)).min(Duration::from_secs(5));
        self.tries += 1;
        full.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests;
