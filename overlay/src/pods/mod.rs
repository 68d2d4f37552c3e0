//! Pods of this node: who has which address, remembered over crashes, and how each is wired.
//!
//! - [`PodNetwork`] is the handle that the agent shares between its CNI socket and the overlay.
//! - A node has a subnet ([`PodNetwork::serve`]), or a [`Pool`] of blocks that come and go
//!   ([`PodNetwork::serve_pool`]); where a pool has no address now, pods wait for one in a line ([`Turn`]).
//! - Where pods' ways differ, one is answered for once the kernel leads its packets ([`PodNetwork::await_led`]).
//! - [`wiring`] plans one pod.
//! - `state` decides, `addresses` is the bookkeeping, `log` the file under it, `pool` and `line` are what pools need.

mod addresses;
mod adopted;
mod clock;
mod error;
mod leading;
mod line;
pub(crate) mod log;
mod pool;
mod state;
pub mod wiring;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use model::wiring::{WiringPlan, Wishes};
use model::{ByFamily, MacAddr, Mtu, ObjectName};
use netlink::{AbsentIsFine, Kernel, Netlink};
use tokio::sync::watch;

pub use addresses::{Assigned, AttachmentKey};
pub use adopted::Adopted;
pub use clock::{Clock, Now};
pub use error::PodError;
pub(crate) use leading::{Asked, Standing};
pub use line::Turn;
pub use pool::{Block, Busy, Census, Count, Growth, Pool, Stranded, Withdrawal};

use addresses::{Addresses, Record};
use clock::When;
use leading::Leader;
use line::Line;
use log::Log;
use pool::Served;
use state::{Place, State, eni_ifname_of};

/// The log's name in the agent's state directory.
pub(crate) const LOG: &str = "pods.log";

/// The name of its successor that a crash may leave.
pub(crate) const FRESH_LOG: &str = "pods.new";

/// The log is rewritten once it has this many lines more than it needs.
const REWRITE_AFTER: usize = 1000;

/// An interface to be connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// Path of its network namespace.
    pub netns: String,
    /// The pod, where the runtime told.
    pub pod: Option<ObjectName>,
    /// What else the runtime asks for.
    pub wishes: Wishes,
    /// Addresses that it cannot have: pods have them that somebody else wired.
    pub taken: HashSet<IpAddr>,
}

/// Who has an address of this node, by the log in an agent's state directory. It is read beside the agent: nothing is
/// changed. Nobody, where there is no log.
///
/// # Errors
/// When it cannot be read.
pub fn recorded(directory: &Path) -> io::Result<Vec<Assigned>> {
    let bytes = match fs::read(directory.join(LOG)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes?,
    };
    let addresses = Addresses::replay(log::records::<Record>(&bytes));
    Ok(addresses.iter().cloned().collect())
}

/// The pods' addresses. Clones are handles to the same; every method may block on the disk.
#[derive(Clone)]
pub struct PodNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    boot: String,
    log: Log,
    clock: Clock,
    state: Mutex<State>,
    /// Counts what may help those who wait.
    chances: watch::Sender<u64>,
    /// Counts what changed for who gets blocks for them.
    changes: watch::Sender<u64>,
    /// Who has the kernel lead packets of a pool's interfaces.
    leader: watch::Sender<Option<Leader>>,
    /// Whether the kernel was looked at for pods without a record.
    /// How often the kernel was looked at for pods whose records the disk lost.
    looks: watch::Sender<u64>,
}

/// What came of an interface's asking.
struct Given {
    plan: WiringPlan,
    /// None where it had its addresses already.
    new: Option<(Assigned, Appended)>,
}

/// Records that are on their way into the log.
struct Appended {
    addition: log::Ticket,
    /// When addresses came back that the interface had before.
    times: Option<log::Ticket>,
}

impl fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodNetwork")
            .field("log", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl PodNetwork {
    /// Reads who had which address from `DIRECTORY/pods.log`. Interfaces of an earlier boot whose namespace is gone
    /// are forgotten.
    ///
    /// # Errors
    /// When the log cannot be read or made.
    pub fn open(directory: &Path) -> Result<Self, PodError> {
        Self::open_by(directory, Clock::default())
    }

    /// The same, by a clock.
    ///
    /// # Errors
    /// Likewise.
    pub fn open_by(directory: &Path, clock: Clock) -> Result<Self, PodError> {
        let path = directory.join(LOG);
        let failed = |source| PodError::Log {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(directory).map_err(failed)?;
        let (log, recovered) = Log::open::<Record>(&path).map_err(failed)?;
        if recovered.torn_bytes > 0 {
            tracing::info!(bytes = recovered.torn_bytes, "pod log had a torn end, cut off");
        }
        if recovered.damaged_lines > 0 {
            tracing::error!(
                lines = recovered.damaged_lines,
                "pod log is damaged; pods that it lost keep addresses and routes as long as their devices are there"
            );
        }
        let boot = boot_id();
        let lines = recovered.records.len();
        let mut addresses = Addresses::replay(recovered.records);
        let now = clock.now();
        let is_corrected = addresses.compare_clocks(now);
        let gone: Vec<IpAddr> = addresses
            .iter()
            .filter(|assigned| assigned.boot != boot && !Path::new(&assigned.netns).exists())
            .filter_map(|assigned| assigned.addresses().values().next().copied())
            .collect();
        for address in &gone {
            addresses.free(*address, now.into());
        }
        let records = addresses.records();
        if !gone.is_empty() || lines > records.len() + REWRITE_AFTER {
            log.rewrite(&records).map_err(failed)?;
        } else if is_corrected && let Err(error) = log.rewrite(&records) {
            // The next start would let the same addresses cool down once more.
            tracing::warn!(%error, "pod log could not be rewritten with the times that its addresses came back");
        }
        tracing::info!(
            pods = addresses.iter().count(),
            forgotten = gone.len(),
            "pod addresses read"
        );
        let place = Place::Waiting {
            reason: "the overlay starts".to_owned(),
        };
        let state = Mutex::new(State {
            addresses,
            place,
            line: Line::default(),
            unanswered: HashSet::new(),
            listener: None,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                boot,
                log,
                clock,
                state,
                chances: watch::Sender::new(0),
                changes: watch::Sender::new(0),
                leader: watch::Sender::new(None),
                looks: watch::Sender::new(0),
            }),
        })
    }

    /// The same, unless there never was a log.
    ///
    /// # Errors
    /// Likewise.
    pub fn open_if_there(directory: &Path) -> Result<Option<Self>, PodError> {
        directory
            .join(LOG)
            .exists()
            .then(|| Self::open(directory))
            .transpose()
    }

    /// Gives an interface an address and tells how to wire it. The same key gets the same answer.
    ///
    /// # Errors
    /// When there is no subnet yet, no address left, or the log cannot be written. Where a pool has no address now,
    /// [`PodNetwork::queue`] keeps the interface's place.
    pub fn add(&self, attachment: &Attachment) -> Result<WiringPlan, PodError> {
        self.queue(attachment.clone()).add()
    }

    /// A place in the line of those who want an address: who came first gets one first, as long as pools have too few.
    pub fn queue(&self, attachment: Attachment) -> Turn {
        let chances = self.shared.chances.subscribe();
        let number = self.lock().line.join(attachment.key.clone());
        Turn::new(self.clone(), attachment, number, chances)
    }

    fn add_as(&self, attachment: &Attachment, number: u64) -> Result<WiringPlan, PodError> {
        let now = self.shared.clock.now();
        let device = self.device_called_after(attachment);
        let given = self.give(attachment, number, now, device);
        if matches!(given, Err(PodError::NoneNow { .. })) && self.lock().line.note_unmet(number) {
            self.tell();
        }
        // Outside the lock: concurrent callers share one fdatasync.
        let Given { plan, new } = given?;
        let Some((assigned, appended)) = new else {
            // The call that gave the address may still be writing.
            self.sync(self.shared.log.all())?;
            return Ok(plan);
        };
        if let Err(error) = self.sync(appended.addition) {
            {
                let mut state = self.lock();
                state.addresses.retract(&assigned);
                state.unanswered.remove(&attachment.key);
            }
            self.tell_waiting();
            return Err(error);
        }
        self.note_times(&appended);
        if self.lock().line.has(&attachment.key) {
            // Who asks for the same interface has its answer, and holds up those behind until it fetches it.
            self.tell_waiting();
        }
        self.changed();
        Ok(plan)
    }

    /// Chooses addresses and queues the record of it.
    fn give(
        &self,
        attachment: &Attachment,
        number: u64,
        now: Now,
        device: Option<Option<MacAddr>>,
    ) -> Result<Given, PodError> {
        let mut state = self.lock();
        let mtu = state.place.mtu()?;
        if let Some(assigned) = state.addresses.get(&attachment.key)
            && state.place.has(&assigned.addresses())
            && assigned.grants(&attachment.wishes)
        {
            let plan = wiring::plan_pod(assigned, mtu);
            state.line.leave(number);
            return Ok(Given { plan, new: None });
        }
        if !state.line.contains(number) {
            return Err(PodError::Dismissed(attachment.key.clone()));
        }
        let addresses = state.choose(attachment, state.line.ahead_of(number), now)?;
        let wished_ports = &attachment.wishes.port_mappings;
        if let Some((holder, port)) = state.addresses.holder_of_port(wished_ports, &attachment.key) {
            return Err(PodError::PortInUse {
                port: port.host_port,
                protocol: port.protocol,
                holder: holder.key.container_id.clone(),
            });
        }
        let assigned = Assigned {
            netns: attachment.netns.clone(),
            pod: attachment.pod.clone(),
            mac: attachment.wishes.mac,
            port_mappings: attachment.wishes.port_mappings.clone(),
            bandwidth: attachment.wishes.bandwidth,
            host_ifname: state.host_ifname(attachment, device),
            boot: self.shared.boot.clone(),
            ..Assigned::new(attachment.key.clone(), &addresses)
        };
        let appended = self.append_addition(&assigned, state.addresses.get(&attachment.key), now)?;
        state.addresses.assign(assigned.clone(), now.into());
        state.unanswered.insert(attachment.key.clone());
        state.line.leave(number);
        Ok(Given {
            plan: wiring::plan_pod(&assigned, mtu),
            new: Some((assigned, appended)),
        })
    }

    fn note_times(&self, appended: &Appended) {
        if let Some(error) = appended.times.and_then(|ticket| self.sync(ticket).err()) {
            tracing::warn!(
                error = model::with_causes(&error),
                "when addresses came back is not recorded"
            );
        }
    }

    /// Queues the record of an interface. What it had before comes back by it, and with a pool it counts when, which a
    /// second record tells; without it the time is that of the next start.
    fn append_addition(
        &self,
        assigned: &Assigned,
        before: Option<&Assigned>,
        now: Now,
    ) -> Result<Appended, PodError> {
        let addition = self.append(&Record::Add(assigned.clone()))?;
        let mut times = None;
        let had = before.into_iter().flat_map(Assigned::each_address);
        for address in had.filter(|had| assigned.each_address().all(|has| has != *had)) {
            let at = When::from(now).logged_at();
            times = Some(self.append(&Record::Free { address, at })?);
        }
        Ok(Appended { addition, times })
    }

    /// The device, with its MAC address, that has the name which a new interface would get after its pod.
    fn device_called_after(&self, attachment: &Attachment) -> Option<Option<MacAddr>> {
        if !matches!(self.lock().place, Place::Pool(_)) {
            return None;
        }
        let name = eni_ifname_of(attachment)?;
        // Where the kernel does not tell, the plugin takes no device away that is not this interface's.
        let link = Netlink::open()
            .and_then(|mut kernel| kernel.link_named(&name))
            .ok()??;
        Some(link.mac.map(MacAddr))
    }

    /// Leaves the line.
    fn leave(&self, number: u64) {
        let left = self.lock().line.leave(number);
        if left {
            self.tell_waiting();
        }
    }

    /// Takes an interface's address back; returns it, or `None` where the key is not known (CNI 1.1: DEL succeeds).
    ///
    /// # Errors
    /// When the log cannot be written; the address is then still in use.
    pub fn remove(&self, key: &AttachmentKey) -> Result<Option<Assigned>, PodError> {
        let (assigned, ticket) = {
            let now = self.shared.clock.now();
            let mut state = self.lock();
            let was_waiting = state.line.dismiss(key);
            let assigned = state.addresses.get(key).cloned();
            let address = assigned
                .as_ref()
                .and_then(|assigned| assigned.each_address().next());
            let (Some(assigned), Some(address)) = (assigned, address) else {
                drop(state);
                if was_waiting {
                    self.tell_waiting();
                }
                return Ok(None);
            };
            let ticket = self.append(&Record::Free {
                address,
                at: When::from(now).logged_at(),
            })?;
            state.addresses.free(address, now.into());
            (assigned, ticket)
        };
        if let Err(error) = self.sync(ticket) {
            self.lock().addresses.assign(assigned, When::UNKNOWN);
            return Err(error);
        }
        self.lock().unanswered.remove(key);
        self.rewrite_when_long();
        self.tell_waiting();
        self.changed();
        Ok(Some(assigned))
    }

    /// The plan of an interface that was added.
    ///
    /// # Errors
    /// When it is not known, or there is no subnet yet.
    pub fn check(&self, key: &AttachmentKey) -> Result<WiringPlan, PodError> {
        let state = self.lock();
        let assigned = state
            .addresses
            .get(key)
            .ok_or_else(|| PodError::Unknown(key.clone()))?;
        Ok(wiring::plan_pod(assigned, state.place.mtu()?))
    }

    /// Releases every interface that is not listed, and removes its device (CNI 1.1 §2, GC). Tries all, then tells
    /// the first failure.
    ///
    /// # Errors
    /// When the log cannot be written, or a device cannot be removed.
    pub fn retain(&self, valid: &[AttachmentKey]) -> Result<Vec<Assigned>, PodError> {
        let stale: Vec<AttachmentKey> = self
            .list()
            .into_iter()
            .map(|assigned| assigned.key)
            .filter(|key| !valid.contains(key))
            .collect();
        let mut removed = Vec::new();
        let mut first_failure = None;
        for key in &stale {
            match self.evict(key) {
                Ok(assigned) => removed.extend(assigned),
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        first_failure.map_or(Ok(removed), Err)
    }

    /// Removes an interface's device, and takes its address back, as [`PodNetwork::remove`] does.
    pub(crate) fn evict(&self, key: &AttachmentKey) -> Result<Option<Assigned>, PodError> {
        let assigned = self.lock().addresses.get(key).cloned();
        let named = assigned.as_ref().map(wiring::host_ifname);
        remove_device(&named.unwrap_or_else(|| wiring::ifname_by_key(key)))?;
        self.remove(key)
    }

    /// Every interface that has an address, ordered by key.
    #[must_use]
    pub fn list(&self) -> Vec<Assigned> {
        self.lock().addresses.iter().cloned().collect()
    }

    /// Whether an ADD would be served now.
    ///
    /// # Errors
    /// What it waits for, that no address is left, or that the log cannot be written. A pool without a free address is
    /// ready as long as one cools down, or more may come: an ADD would wait.
    pub fn ready(&self) -> Result<(), PodError> {
        self.lock().could_serve(self.shared.clock.now())?;
        self.shared.log.check().map_err(|source| PodError::Log {
            path: self.shared.path.clone(),
            source,
        })
    }

    /// New pods get an address of each of these subnets. Those that have addresses elsewhere keep them.
    pub fn serve(&self, subnets: ByFamily<IpNetwork>, mtu: Mtu) {
        let place = std::mem::replace(&mut self.lock().place, Place::Ready { subnets, mtu });
        if matches!(place, Place::Pool(_)) {
            self.tell_waiting();
        }
    }

    /// New pods get an address of these blocks; where there is none now, they wait. Those that have addresses elsewhere
    /// keep them. A block that was withdrawn stays so until it is restored, or was missing here once.
    pub fn serve_pool(&self, pool: Pool) {
        let now = self.shared.clock.now();
        let is_news = {
            let mut state = self.lock();
            let nowhere = Place::Waiting {
                reason: String::new(),
            };
            let before = match std::mem::replace(&mut state.place, nowhere) {
                Place::Pool(before) => Some(before),
                Place::Waiting { .. } | Place::Ready { .. } => None,
            };
            let served = Served::new(pool, before.as_ref());
            let is_news = before.is_none_or(|before| !served.is_as(&before));
            // Addresses of a VPC that this node had once are not remembered for ever.
            state
                .addresses
                .keep_freed(|addresses, address| served.remembers(addresses, address, now));
            state.place = Place::Pool(served);
            is_news
        };
        if is_news {
            self.tell_waiting();
        }
    }

    /// What the addresses of the pool are used for; none where none is served.
    #[must_use]
    pub fn census(&self) -> Option<Census> {
        let now = self.shared.clock.now();
        let state = self.lock();
        let Place::Pool(pool) = &state.place else {
            return None;
        };
        Some(Census {
            blocks: pool.counts(&state.addresses, now),
            stranded: pool.stranded(&state.addresses),
            unmet: state.line.unmet(),
        })
    }

    /// Takes blocks out of what is given, all but those of which an address is in use or cools down. No address of them
    /// is given from then on, so that they can be given back to the VPC. That is not remembered over a restart: the next
    /// pool that is served says what there is.
    ///
    /// # Errors
    /// [`PodError::NoPool`].
    pub fn withdraw(&self, blocks: &[IpNetwork]) -> Result<Withdrawal, PodError> {
        let now = self.shared.clock.now();
        let mut state = self.lock();
        let State { addresses, place, .. } = &mut *state;
        let Place::Pool(pool) = place else {
            return Err(PodError::NoPool);
        };
        Ok(pool.withdraw(blocks, addresses, now))
    }

    /// Gives of blocks again that were withdrawn.
    ///
    /// # Errors
    /// [`PodError::NoPool`].
    pub fn restore(&self, blocks: &[IpNetwork]) -> Result<(), PodError> {
        {
            let mut state = self.lock();
            let Place::Pool(pool) = &mut state.place else {
                return Err(PodError::NoPool);
            };
            pool.restore(blocks);
        }
        self.tell_waiting();
        Ok(())
    }

    /// How many pods wait for an address that no block has.
    #[must_use]
    pub fn unmet(&self) -> usize {
        self.lock().line.unmet()
    }

    /// Counts on whenever an address was given or came back, blocks came or went, or a pod began or ceased to wait.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// New pods have to wait.
    pub fn wait_for(&self, reason: String) {
        let mut state = self.lock();
        if matches!(state.place, Place::Waiting { .. }) {
            state.place = Place::Waiting { reason };
        }
    }

    /// No address of a pool is given any more until a pool is served again: somebody else gives them.
    pub fn suspend(&self, reason: String) {
        let mut state = self.lock();
        if matches!(state.place, Place::Pool(_)) {
            state.place = Place::Waiting { reason };
        }
        drop(state);
        self.tell_waiting();
    }

    /// These addresses are in use although no record says so: they are given to nobody until they are not among those
    /// that are held any more.
    pub(crate) fn hold(&self, addresses: HashSet<IpAddr>) {
        let is_news = self.lock().addresses.hold(addresses);
        if is_news {
            self.tell_waiting();
        }
        self.shared.looks.send_modify(|count| *count += 1);
    }

    /// Waits until the kernel was looked at for pods whose records the disk lost, by a look that began after this call.
    /// Before that an address may be in use although nothing here says so.
    pub async fn await_look(&self) {
        let mut looks = self.shared.looks.subscribe();
        // One may be under way that began before.
        for _ in 0..2 {
            looks.mark_unchanged();
            self.look_again();
            // Its sender is in what `self` holds.
            let _ = looks.changed().await;
        }
    }

    /// Calls back after every change of who has which address.
    pub(crate) fn listen(&self, listener: impl Fn() + Send + 'static) {
        self.lock().listener = Some(Box::new(listener));
    }

    /// Has the kernel compared with all of it, as after every change.
    pub fn look_again(&self) {
        self.changed();
    }

    fn tell_waiting(&self) {
        self.shared.chances.send_modify(|count| *count += 1);
        self.tell();
    }

    fn tell(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn changed(&self) {
        self.tell();
        if let Some(listener) = &self.lock().listener {
            listener();
        }
    }

    fn sync(&self, ticket: log::Ticket) -> Result<(), PodError> {
        self.shared.log.sync(ticket).map_err(|source| PodError::Log {
            path: self.shared.path.clone(),
            source,
        })
    }

    /// Drops what is superseded. A failure leaves the long file, which says the same.
    fn rewrite_when_long(&self) {
        let state = self.lock();
        if self.shared.log.lines() <= state.addresses.record_count() + REWRITE_AFTER {
            return;
        }
        if let Err(error) = self.shared.log.rewrite(state.addresses.records()) {
            tracing::warn!(%error, "pod log could not be rewritten, it grows on");
        }
    }

    fn append(&self, record: &Record) -> Result<log::Ticket, PodError> {
        let path = || self.shared.path.clone();
        self.shared
            .log
            .append(record)
            .map_err(|source| PodError::Log { path: path(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a device of an interface on the node's side; the pod's end goes with it.
fn remove_device(name: &str) -> Result<(), PodError> {
    let mut kernel = Netlink::open()?;
    if let Some(link) = kernel.link_named(name)? {
        kernel.delete_link(link.index).absent_is_fine()?;
    }
    Ok(())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
