//! Pods of this node: who has which address, remembered over crashes, and how each is wired.
//!
//! - [`PodNetwork`] is the handle that the agent shares between its CNI socket and the overlay.
//! - [`wiring`] plans one pod.
//! - `addresses` is the bookkeeping, `log` the file under it.

mod addresses;
pub(crate) mod log;
pub mod wiring;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use model::wiring::{WiringPlan, Wishes};
use model::{ByFamily, Mtu, ObjectName, Protocol};
use netlink::{AbsentIsFine, Kernel, Netlink};

pub use addresses::{Assigned, AttachmentKey};

use addresses::{Addresses, Record, Refused};
use log::Log;

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

/// Why a pod was not served.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// This node has no subnet yet: try again.
    #[error("this node has no pod subnet yet: {reason}")]
    NotReady {
        /// What it waits for.
        reason: String,
    },
    /// Every address of the subnet is in use.
    #[error("no free address in {subnet}: {used} in use")]
    Exhausted {
        /// The node's subnet.
        subnet: IpNetwork,
        /// How many interfaces have an address.
        used: usize,
    },
    /// An address that was asked for is not of this node's subnet, or is the node's own.
    #[error("address {address} cannot be given here: this node gives addresses of {}", .subnets.join(" and "))]
    NotOfThisNode {
        /// What was asked for.
        address: IpAddr,
        /// What there is.
        subnets: Vec<String>,
    },
    /// Another interface has an address that was asked for.
    #[error("address {0} is in use")]
    InUse(IpAddr),
    /// Another interface has a port of the node that was asked for: until it goes.
    #[error("host port {port}/{protocol} is container {holder}'s")]
    PortInUse {
        /// The port.
        port: NonZeroU16,
        /// Its protocol.
        protocol: Protocol,
        /// The container that has it.
        holder: String,
    },
    /// The interface was never added, or was removed.
    #[error("interface {} of container {} is not known", .0.ifname, .0.container_id)]
    Unknown(AttachmentKey),
    /// The log could not be written: nothing was given or taken.
    #[error("write {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device that is left over could not be removed.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
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
    state: Mutex<State>,
}

struct State {
    addresses: Addresses,
    place: Place,
    /// Told after every change.
    listener: Option<Box<dyn Fn() + Send>>,
}

/// Where new pods go.
enum Place {
    /// Nowhere yet.
    Waiting { reason: String },
    /// Into these subnets, with an address of each.
    Ready { subnets: ByFamily<IpNetwork>, mtu: Mtu },
}

impl State {
    /// Addresses for an interface, one of each subnet.
    fn choose(
        &self,
        subnets: &ByFamily<IpNetwork>,
        attachment: &Attachment,
    ) -> Result<ByFamily<IpAddr>, PodError> {
        let Attachment {
            key, wishes, taken, ..
        } = attachment;
        let chosen = self.addresses.choose_each(subnets, &wishes.ips, key, taken);
        chosen.map_err(|refused| match refused {
            Refused::Exhausted(subnet) => PodError::Exhausted {
                subnet,
                used: self.addresses.iter().count(),
            },
            Refused::InUse(address) => PodError::InUse(address),
            Refused::NotOfThisNode(address) => PodError::NotOfThisNode {
                address,
                subnets: subnets.values().map(IpNetwork::to_string).collect(),
            },
        })
    }
}

/// Whether there is an address of each subnet, and no other.
fn are_of(addresses: &ByFamily<IpAddr>, subnets: &ByFamily<IpNetwork>) -> bool {
    addresses.families() == subnets.families()
        && subnets.iter().all(|(family, subnet)| {
            addresses
                .get(family)
                .is_some_and(|address| subnet.contains(*address))
        })
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
        let gone: Vec<IpAddr> = addresses
            .iter()
            .filter(|assigned| assigned.boot != boot && !Path::new(&assigned.netns).exists())
            .filter_map(|assigned| assigned.addresses().values().next().copied())
            .collect();
        for address in &gone {
            addresses.free(*address);
        }
        let records = addresses.records();
        if !gone.is_empty() || lines > records.len() + REWRITE_AFTER {
            log.rewrite(&records).map_err(failed)?;
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
            listener: None,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                boot,
                log,
                state,
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
    /// When there is no subnet yet, no address left, or the log cannot be written.
    pub fn add(&self, attachment: &Attachment) -> Result<WiringPlan, PodError> {
        let (assigned, mtu, ticket) = {
            let mut state = self.lock();
            let (subnets, mtu) = match &state.place {
                Place::Waiting { reason } => {
                    return Err(PodError::NotReady {
                        reason: reason.clone(),
                    });
                }
                Place::Ready { subnets, mtu } => (*subnets, *mtu),
            };
            if let Some(assigned) = state.addresses.get(&attachment.key)
                && are_of(&assigned.addresses(), &subnets)
                && assigned.grants(&attachment.wishes)
            {
                let plan = wiring::plan_pod(assigned, mtu);
                drop(state);
                // The call that gave the address may still be writing.
                self.sync(self.shared.log.all())?;
                return Ok(plan);
            }
            let addresses = state.choose(&subnets, attachment)?;
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
                boot: self.shared.boot.clone(),
                ..Assigned::new(attachment.key.clone(), &addresses)
            };
            let ticket = self.append(&Record::Add(assigned.clone()))?;
            state.addresses.assign(assigned.clone());
            (assigned, mtu, ticket)
        };
        // Outside the lock: concurrent callers share one fdatasync.
        if let Err(error) = self.sync(ticket) {
            self.lock().addresses.retract(&assigned);
            return Err(error);
        }
        self.changed();
        Ok(wiring::plan_pod(&assigned, mtu))
    }

    /// Takes an interface's address back; returns it, or `None` where the key is not known (CNI 1.1: DEL succeeds).
    ///
    /// # Errors
    /// When the log cannot be written; the address is then still in use.
    pub fn remove(&self, key: &AttachmentKey) -> Result<Option<Assigned>, PodError> {
        let (assigned, ticket) = {
            let mut state = self.lock();
            let Some(assigned) = state.addresses.get(key).cloned() else {
                return Ok(None);
            };
            let Some(address) = assigned.addresses().values().next().copied() else {
                return Ok(None);
            };
            let ticket = self.append(&Record::Free { address })?;
            state.addresses.free(address);
            (assigned, ticket)
        };
        if let Err(error) = self.sync(ticket) {
            self.lock().addresses.assign(assigned);
            return Err(error);
        }
        self.rewrite_when_long();
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
        match &state.place {
            Place::Ready { mtu, .. } => Ok(wiring::plan_pod(assigned, *mtu)),
            Place::Waiting { reason } => Err(PodError::NotReady {
                reason: reason.clone(),
            }),
        }
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
        remove_device(key)?;
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
    /// What it waits for, that no address is left, or that the log cannot be written.
    pub fn ready(&self) -> Result<(), PodError> {
        {
            let state = self.lock();
            match &state.place {
                Place::Waiting { reason } => {
                    return Err(PodError::NotReady {
                        reason: reason.clone(),
                    });
                }
                Place::Ready { subnets, .. } => {
                    state.choose(subnets, &Attachment::default())?;
                }
            }
        }
        self.shared.log.check().map_err(|source| PodError::Log {
            path: self.shared.path.clone(),
            source,
        })
    }

    /// New pods get an address of each of these subnets. Those that have addresses elsewhere keep them.
    pub fn serve(&self, subnets: ByFamily<IpNetwork>, mtu: Mtu) {
        self.lock().place = Place::Ready { subnets, mtu };
    }

    /// New pods have to wait.
    pub(crate) fn wait_for(&self, reason: String) {
        let mut state = self.lock();
        if matches!(state.place, Place::Waiting { .. }) {
            state.place = Place::Waiting { reason };
        }
    }

    /// These addresses are in use although no record says so: they are given to nobody until they are not among those
    /// that are held any more.
    pub(crate) fn hold(&self, addresses: HashSet<IpAddr>) {
        self.lock().addresses.hold(addresses);
    }

    /// Calls back after every change of who has which address.
    pub(crate) fn listen(&self, listener: impl Fn() + Send + 'static) {
        self.lock().listener = Some(Box::new(listener));
    }

    /// Has the kernel compared with all of it, as after every change.
    pub fn look_again(&self) {
        self.changed();
    }

    fn changed(&self) {
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

/// Removes the device of an interface on the node's side; the pod's end goes with it.
fn remove_device(key: &AttachmentKey) -> Result<(), PodError> {
    let mut kernel = Netlink::open()?;
    if let Some(link) = kernel.link_named(&wiring::host_ifname(key))? {
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
