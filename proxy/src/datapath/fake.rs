//! A datapath, and the socket hook's maps, in memory; both fail when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ebpf::abi::net::Ip;
use ebpf::abi::service::{
    Endpoint, Frontend, FrontendKey as HookKey, MemberKey, Membership, NodeAddress, Reply, SlotKey,
    SocketPeer,
};
use model::ObjectName;

use super::sockets::{Contents, HookMaps};
use super::{Applied, Change, Datapath, NodeAddresses, Swept};
use crate::Error;
use crate::plan::{Frontend as PlannedFrontend, FrontendKey, NodeContext, PortPlan};
use crate::stale::{Forgotten, StaleFlows};

/// What a fake has been told; shared with the test that made it.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Frontends, with what they do and the port's plan that they came from.
    pub frontends: BTreeMap<FrontendKey, (PlannedFrontend, PortPlan)>,
    /// What was told of this node.
    pub context: Option<NodeContext>,
    /// Node addresses.
    pub nodes: NodeAddresses,
    /// Every list of flows to forget, in order.
    pub forgotten: Vec<StaleFlows>,
    /// Services whose next change fails.
    pub fail_next: BTreeSet<ObjectName>,
    /// The next sweep fails.
    pub fail_sweep: bool,
    /// The next look for stale flows fails.
    pub fail_forget: bool,
    /// What the next `repair` or `reread` finds to repair.
    pub drift: Vec<String>,
    /// Frontends written so far.
    pub writes: u64,
}

/// The fake. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct FakeDatapath {
    state: Arc<Mutex<State>>,
}

impl FakeDatapath {
    /// Looks at the state, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn apply_one(&mut self, change: &Change<'_>, kept: &BTreeSet<FrontendKey>) -> Result<u64, Error> {
        if self.fail_next.remove(change.service) {
            return Err(Error::Injected("apply"));
        }
        let mut writes = 0;
        for port in change.new.ports.values() {
            for (key, frontend) in &port.frontends {
                let value = (*frontend, port.clone());
                writes += u64::from(self.frontends.get(key) != Some(&value));
                self.frontends.insert(*key, value);
            }
        }
        for key in change.old.frontends().filter(|key| !kept.contains(*key)) {
            writes += u64::from(self.frontends.remove(key).is_some());
        }
        self.writes += writes;
        Ok(writes)
    }
}

impl Datapath for FakeDatapath {
    fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let kept = changes
            .iter()
            .flat_map(|change| change.new.frontends())
            .copied()
            .collect();
        let mut applied = Applied::default();
        for change in changes {
            match self.with(|state| state.apply_one(change, &kept)) {
                Ok(writes) => applied.writes += writes,
                Err(error) => applied.failures.push((change.service.clone(), error)),
            }
        }
        applied
    }

    fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        self.with(|state| {
            if std::mem::take(&mut state.fail_sweep) {
                return Err(Error::Injected("sweep"));
            }
            let unwanted: BTreeSet<_> = state
                .frontends
                .keys()
                .filter(|key| !wanted(key))
                .copied()
                .collect();
            state.frontends.retain(|key, _| !unwanted.contains(key));
            let writes = unwanted.len() as u64;
            state.writes += writes;
            Ok(Swept {
                writes,
                frontends: unwanted,
                damaged: false,
            })
        })
    }

    fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error> {
        self.with(|state| state.context = Some(context.clone()));
        Ok(0)
    }

    fn set_nodes(&mut self, nodes: &NodeAddresses) -> Result<u64, Error> {
        self.with(|state| state.nodes = nodes.clone());
        Ok(0)
    }

    fn repair(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.with(|state| std::mem::take(&mut state.drift)))
    }

    fn reread(&mut self) -> Result<Vec<String>, Error> {
        self.repair()
    }

    fn forget_flows(&mut self, stale: &StaleFlows) -> Result<Forgotten, Error> {
        self.with(|state| {
            if std::mem::take(&mut state.fail_forget) {
                return Err(Error::Injected("forget flows"));
            }
            state.forgotten.push(stale.clone());
            Ok(Forgotten::default())
        })
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        Ok(Vec::new())
    }
}

/// The socket hook's maps in memory; a test may make the n-th next write fail, and maps full. Clones share their
/// contents.
#[derive(Clone, Debug, Default)]
pub struct FakeMaps {
    state: Arc<Mutex<MapsState>>,
}

/// What is in [`FakeMaps`].
#[derive(Clone, Debug, Default)]
pub struct MapsState {
    /// The maps.
    pub contents: Contents,
    /// Writes so far.
    pub writes: u64,
    /// Fail the write that comes after that many more.
    pub fail_after: Option<u64>,
    /// How many entries maps of these names take; others take any number.
    pub capacity: BTreeMap<&'static str, u32>,
    /// What the programs wrote.
    pub replies: BTreeMap<SocketPeer, Reply>,
    /// Sockets that were ended, with whom they were connected to.
    pub ended: BTreeSet<(u64, SocketAddr)>,
}

impl FakeMaps {
    /// Looks at the state, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut MapsState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn insert<K: Ord, V>(
        &self,
        name: &'static str,
        map: fn(&mut Contents) -> &mut BTreeMap<K, V>,
        key: K,
        value: V,
    ) -> Result<(), Error> {
        self.with(|state| {
            state.write()?;
            let capacity = state.capacity.get(name).copied().unwrap_or(u32::MAX);
            let map = map(&mut state.contents);
            if map.len() >= capacity as usize && !map.contains_key(&key) {
                return Err(ebpf::Error::Full { map: name, capacity }.into());
            }
            map.insert(key, value);
            Ok(())
        })
    }

    fn insert_all<K: Ord + Copy, V: Copy>(
        &self,
        name: &'static str,
        map: fn(&mut Contents) -> &mut BTreeMap<K, V>,
        entries: &[(K, V)],
    ) -> (usize, Result<(), Error>) {
        for (written, (key, value)) in entries.iter().enumerate() {
            if let Err(error) = self.insert(name, map, *key, *value) {
                return (written, Err(error));
            }
        }
        (entries.len(), Ok(()))
    }

    fn remove<K: Ord, V>(&self, map: fn(&mut Contents) -> &mut BTreeMap<K, V>, key: &K) -> Result<(), Error> {
        self.with(|state| {
            state.write()?;
            map(&mut state.contents).remove(key);
            Ok(())
        })
    }
}

impl MapsState {
    fn write(&mut self) -> Result<(), Error> {
        if self.fail_after == Some(0) {
            self.fail_after = None;
            return Err(Error::Injected("map write"));
        }
        self.fail_after = self.fail_after.map(|left| left - 1);
        self.writes += 1;
        Ok(())
    }
}

impl HookMaps for FakeMaps {
    fn contents(&self) -> Result<Contents, Error> {
        Ok(self.with(|state| state.contents.clone()))
    }

    fn replies(&self) -> Result<BTreeMap<SocketPeer, Reply>, Error> {
        Ok(self.with(|state| state.replies.clone()))
    }

    fn remove_reply(&mut self, key: &SocketPeer) -> Result<(), Error> {
        self.with(|state| state.replies.remove(key));
        Ok(())
    }

    fn end_sockets(&mut self, sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error> {
        self.with(|state| state.ended.extend(sockets));
        Ok(sockets.len())
    }

    fn put_frontend(&mut self, key: HookKey, value: Frontend) -> Result<(), Error> {
        self.insert("FRONTENDS", |maps| &mut maps.frontends, key, value)
    }

    fn remove_frontend(&mut self, key: &HookKey) -> Result<(), Error> {
        self.remove(|maps| &mut maps.frontends, key)
    }

    fn put_slots(&mut self, slots: &[(SlotKey, u32)]) -> (usize, Result<(), Error>) {
        self.insert_all("SLOTS", |maps| &mut maps.slots, slots)
    }

    fn remove_slot(&mut self, key: &SlotKey) -> Result<(), Error> {
        self.remove(|maps| &mut maps.slots, key)
    }

    fn put_endpoints(&mut self, endpoints: &[(u32, Endpoint)]) -> (usize, Result<(), Error>) {
        self.insert_all("ENDPOINTS", |maps| &mut maps.endpoints, endpoints)
    }

    fn remove_endpoint(&mut self, id: &u32) -> Result<(), Error> {
        self.remove(|maps| &mut maps.endpoints, id)
    }

    fn put_member(&mut self, key: MemberKey, value: Membership) -> Result<(), Error> {
        self.insert("MEMBERS", |maps| &mut maps.members, key, value)
    }

    fn remove_member(&mut self, key: &MemberKey) -> Result<(), Error> {
        self.remove(|maps| &mut maps.members, key)
    }

    fn put_node(&mut self, address: Ip, value: NodeAddress) -> Result<(), Error> {
        self.insert("NODES", |maps| &mut maps.nodes, address, value)
    }

    fn remove_node(&mut self, address: &Ip) -> Result<(), Error> {
        self.remove(|maps| &mut maps.nodes, address)
    }

    fn repair(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        Ok(Vec::new())
    }

    fn writes(&self) -> u64 {
        self.with(|state| state.writes)
    }
}
