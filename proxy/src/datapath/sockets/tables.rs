//! The maps with a mirror of what is in them: writes what differs, and knows what leads where.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey, MemberKey, Membership, NodeAddress, SlotKey};

use super::abi::{Lists, Members, Place};
use super::compact_map::CompactMap;
use super::maps::{Contents, HookMaps};
use crate::Error;

/// The endpoints of a service id under one revision.
pub(super) type ListName = (u32, u16);

#[derive(Debug)]
pub(super) struct Tables<M> {
    maps: M,
    frontends: BTreeMap<FrontendKey, Frontend>,
    frontends_by_service: BTreeSet<(u32, FrontendKey)>,
    slots: CompactMap<SlotKey, u32>,
    endpoints: CompactMap<u32, Known>,
    /// Ids of endpoints, each behind the digest of its place, which others may share: a place itself is five times as
    /// long, and stands beside its id already.
    endpoint_ids: CompactMap<(u32, u32), ()>,
    digests: RandomState,
    next_endpoint: u32,
    members: BTreeMap<MemberKey, Membership>,
    nodes: BTreeMap<Ip, NodeAddress>,
}

/// An endpoint in the kernel.
#[derive(Clone, Copy, Debug)]
struct Known {
    place: Place,
    /// Slots and memberships.
    uses: u32,
}

impl<M: HookMaps> Tables<M> {
    pub(super) fn open(maps: M) -> Result<Self, Error> {
        let mut tables = Self {
            maps,
            frontends: BTreeMap::new(),
            frontends_by_service: BTreeSet::new(),
            slots: CompactMap::default(),
            endpoints: CompactMap::default(),
            endpoint_ids: CompactMap::default(),
            digests: RandomState::new(),
            next_endpoint: 1,
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        tables.read_back()?;
        Ok(tables)
    }

    pub(super) fn read_back(&mut self) -> Result<(), Error> {
        let Contents {
            frontends,
            slots,
            endpoints,
            members,
            nodes,
        } = self.maps.contents()?;
        let by_service = frontends.iter().map(|(key, frontend)| (frontend.service, *key));
        self.frontends_by_service = by_service.collect();
        let mut uses: BTreeMap<u32, u32> = BTreeMap::new();
        for id in slots
            .values()
            .copied()
            .chain(members.keys().map(|key| key.endpoint))
        {
            *uses.entry(id).or_default() += 1;
        }
        self.endpoint_ids = endpoints
            .iter()
            .map(|(id, endpoint)| ((self.digest(&place(endpoint)), *id), ()))
            .collect();
        let endpoints = endpoints.into_iter().map(|(id, endpoint)| {
            let known = Known {
                place: place(&endpoint),
                uses: uses.get(&id).copied().unwrap_or_default(),
            };
            (id, known)
        });
        self.endpoints = endpoints.collect();
        self.frontends = frontends;
        self.slots = slots.into_iter().collect();
        self.members = members;
        self.nodes = nodes;
        let used = self.endpoints.last_key();
        self.next_endpoint = self
            .next_endpoint
            .max(used.copied().unwrap_or(0).saturating_add(1));
        Ok(())
    }

    /// The highest service id in use; 0 where there is none.
    pub(super) fn last_service(&self) -> u32 {
        let slots = self.slots.last_key().map(|slot| slot.service);
        let members = self.members.keys().next_back().map(|member| member.service);
        let frontends = self.frontends_by_service.last().map(|(service, _)| *service);
        slots.max(members).max(frontends).unwrap_or(0)
    }

    pub(super) fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    pub(super) fn writes(&self) -> u64 {
        self.maps.writes()
    }

    pub(super) fn repair(&mut self) -> Result<Vec<String>, Error> {
        self.maps.repair()
    }

    /// What only the programs write is not mirrored.
    pub(super) fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    pub(super) fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.maps.counters()
    }

    pub(super) fn frontends_of(&self, service: u32) -> impl Iterator<Item = &FrontendKey> {
        let least = FrontendKey {
            addr: Ip::ANY,
            port: Port(0),
            proto: 0,
            kind: 0,
        };
        let from_service = self.frontends_by_service.range((service, least)..);
        from_service
            .take_while(move |(owner, _)| *owner == service)
            .map(|(_, key)| key)
    }

    /// The revision that the service's first frontend leads to: where an update was cut off, others may lag behind.
    pub(super) fn revision(&self, service: u32) -> Option<u16> {
        let key = self.frontends_of(service).next()?;
        self.frontends.get(key).map(|frontend| frontend.revision)
    }

    pub(super) fn free_revision(&self, service: u32, current: u16) -> Result<u16, Error> {
        (1..u16::MAX)
            .map(|step| current.wrapping_add(step))
            .find(|revision| self.slots((service, *revision)).next().is_none())
            .ok_or(Error::Exhausted { what: "revision" })
    }

    pub(super) fn is_referenced(&self, (service, revision): ListName) -> bool {
        let keys = self.frontends_of(service);
        keys.filter_map(|key| self.frontends.get(key))
            .any(|frontend| frontend.revision == revision)
    }

    /// The lists as the kernel has them; an endpoint that is missing makes them differ from any that is wanted.
    pub(super) fn lists(&self, list: ListName) -> Lists {
        let mut lists = Lists::default();
        for (key, id) in self.slots(list) {
            let missing = (Ip::ANY, Port(0), 0);
            let target = self.endpoints.get(id).map_or(missing, |known| known.place);
            let list = if key.slot & SlotKey::LOCAL == 0 {
                &mut lists.cluster
            } else {
                &mut lists.local
            };
            list.push(target);
        }
        lists
    }

    pub(super) fn lists_of(&self, service: u32) -> BTreeSet<ListName> {
        let bound = |revision, slot| SlotKey {
            service,
            revision,
            slot,
        };
        let slots = self.slots.range(bound(0, 0)..=bound(u16::MAX, u16::MAX));
        slots.map(|(key, _)| (key.service, key.revision)).collect()
    }

    pub(super) fn write_lists(&mut self, (service, revision): ListName, lists: &Lists) -> Result<(), Error> {
        let numbered = lists.cluster.iter().zip(0..);
        let numbered = numbered.chain(lists.local.iter().zip(SlotKey::LOCAL..));
        let ids = self.endpoint_ids(numbered.clone().map(|(place, _)| *place))?;
        let keys = numbered.map(|(_, slot)| SlotKey {
            service,
            revision,
            slot,
        });
        let slots: Vec<_> = keys.zip(ids).collect();
        let (written, result) = self.maps.put_slots(&slots);
        let (written, unwritten) = slots.split_at(written);
        for (key, endpoint) in written {
            self.slots.insert(*key, *endpoint);
            self.add_use(*endpoint);
        }
        self.drop_unused(unwritten.iter().map(|(_, endpoint)| *endpoint));
        result
    }

    pub(super) fn remove_list(&mut self, list: ListName) -> Result<(), Error> {
        let slots: Vec<_> = self.slots(list).copied().collect();
        for (key, id) in slots {
            self.maps.remove_slot(&key)?;
            self.slots.remove(&key);
            self.release(id)?;
        }
        Ok(())
    }

    /// Writes what the members are in addition to what they were.
    pub(super) fn add_members(&mut self, service: u32, wanted: &Members) -> Result<(), Error> {
        let ids = self.endpoint_ids(wanted.0.keys().copied())?;
        let result = self.write_members(service, ids.iter().copied().zip(wanted.0.values()));
        if result.is_err() {
            self.drop_unused(ids);
        }
        result
    }

    fn write_members<'a>(
        &mut self,
        service: u32,
        wanted: impl Iterator<Item = (u32, &'a u32)>,
    ) -> Result<(), Error> {
        for (endpoint, bits) in wanted {
            let key = MemberKey { service, endpoint };
            let now = self.members.get(&key).map_or(0, |member| member.0);
            if now | bits != now {
                self.put_member(key, Membership(now | bits))?;
            }
        }
        Ok(())
    }

    /// Takes away what the members no longer are.
    pub(super) fn retain_members(&mut self, service: u32, wanted: &Members) -> Result<(), Error> {
        for key in self.members_of(service) {
            let known = self.endpoints.get(&key.endpoint);
            match known.and_then(|known| wanted.0.get(&known.place)) {
                Some(bits) => self.put_member(key, Membership(*bits))?,
                None => self.remove_member(&key)?,
            }
        }
        Ok(())
    }

    /// Returns the list that this frontend was the last to lead to, if it was another service's.
    pub(super) fn put_frontend(
        &mut self,
        key: FrontendKey,
        value: Frontend,
    ) -> Result<Option<ListName>, Error> {
        let old = self.frontends.get(&key).copied();
        if old == Some(value) {
            return Ok(None);
        }
        self.maps.put_frontend(key, value)?;
        let old = old.filter(|old| old.service != value.service);
        let left = old.and_then(|old| self.forget_owner(&key, &old));
        self.frontends.insert(key, value);
        self.frontends_by_service.insert((value.service, key));
        Ok(left)
    }

    /// Returns the list that this frontend was the last to lead to.
    pub(super) fn remove_frontend(&mut self, key: &FrontendKey) -> Result<Option<ListName>, Error> {
        let Some(old) = self.frontends.get(key).copied() else {
            return Ok(None);
        };
        self.maps.remove_frontend(key)?;
        self.frontends.remove(key);
        Ok(self.forget_owner(key, &old))
    }

    pub(super) fn put_node(&mut self, address: Ip, value: NodeAddress) -> Result<(), Error> {
        if self.nodes.get(&address) != Some(&value) {
            self.maps.put_node(address, value)?;
            self.nodes.insert(address, value);
        }
        Ok(())
    }

    pub(super) fn retain_nodes(&mut self, wanted: impl Fn(&Ip) -> bool) -> Result<(), Error> {
        let unwanted = self.nodes.keys().filter(|address| !wanted(address));
        for address in unwanted.copied().collect::<Vec<_>>() {
            self.maps.remove_node(&address)?;
            self.nodes.remove(&address);
        }
        Ok(())
    }

    /// Removes what nothing leads to, such as the lists and members of an update that a crash cut off. Lists that wait
    /// for their readers stay.
    pub(super) fn remove_orphans(&mut self, waiting: &BTreeSet<ListName>) -> Result<(), Error> {
        let slots = self.slots.iter();
        let lists: BTreeSet<_> = slots.map(|(slot, _)| (slot.service, slot.revision)).collect();
        for list in lists.difference(waiting) {
            if !self.is_referenced(*list) {
                self.remove_list(*list)?;
            }
        }
        let members = self.members.keys();
        let unowned = members.filter(|key| self.frontends_of(key.service).next().is_none());
        for key in unowned.copied().collect::<Vec<_>>() {
            self.remove_member(&key)?;
        }
        let unused = self.endpoints.iter().filter(|(_, known)| known.uses == 0);
        for id in unused.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove_endpoint(id)?;
        }
        Ok(())
    }

    fn slots(&self, (service, revision): ListName) -> impl Iterator<Item = &(SlotKey, u32)> {
        let bound = |slot| SlotKey {
            service,
            revision,
            slot,
        };
        self.slots.range(bound(0)..=bound(u16::MAX))
    }

    fn members_of(&self, service: u32) -> Vec<MemberKey> {
        let bound = |endpoint| MemberKey { service, endpoint };
        let members = self.members.range(bound(0)..=bound(u32::MAX));
        members.map(|(key, _)| *key).collect()
    }

    fn put_member(&mut self, key: MemberKey, value: Membership) -> Result<(), Error> {
        let old = self.members.get(&key);
        if old == Some(&value) {
            return Ok(());
        }
        let added = old.is_none();
        self.maps.put_member(key, value)?;
        self.members.insert(key, value);
        if added {
            self.add_use(key.endpoint);
        }
        Ok(())
    }

    fn remove_member(&mut self, key: &MemberKey) -> Result<(), Error> {
        self.maps.remove_member(key)?;
        self.members.remove(key);
        self.release(key.endpoint)
    }

    /// Takes a frontend from a service id; the last one leaves its list behind.
    fn forget_owner(&mut self, key: &FrontendKey, old: &Frontend) -> Option<ListName> {
        self.frontends_by_service.remove(&(old.service, *key));
        let is_last = self.frontends_of(old.service).next().is_none();
        is_last.then_some((old.service, old.revision))
    }

    fn digest(&self, place: &Place) -> u32 {
        let [a, b, c, d, ..] = self.digests.hash_one(place).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    fn known_id(&self, place: &Place) -> Option<u32> {
        let digest = self.digest(place);
        let ids = self.endpoint_ids.range((digest, 0)..=(digest, u32::MAX));
        let is_there = |id: &u32| self.endpoints.get(id).is_some_and(|known| known.place == *place);
        ids.map(|((_, id), ())| *id).find(is_there)
    }

    /// The ids of endpoints, in this order. Those that are not in the kernel yet are written.
    fn endpoint_ids(&mut self, places: impl Iterator<Item = Place>) -> Result<Vec<u32>, Error> {
        let mut new = BTreeMap::new();
        let mut ids = Vec::new();
        for place in places {
            let known = self.known_id(&place).or_else(|| new.get(&place).copied());
            let id = match known {
                Some(id) => id,
                None => self.unused_id()?,
            };
            if known.is_none() {
                new.insert(place, id);
            }
            ids.push(id);
        }
        self.add_endpoints(new)?;
        Ok(ids)
    }

    fn unused_id(&mut self) -> Result<u32, Error> {
        let id = self.next_endpoint;
        self.next_endpoint = id
            .checked_add(1)
            .ok_or(Error::Exhausted { what: "endpoint id" })?;
        Ok(id)
    }

    fn add_endpoints(&mut self, new: BTreeMap<Place, u32>) -> Result<(), Error> {
        let endpoints = new.into_iter().map(|((addr, port, proto), id)| {
            let endpoint = Endpoint {
                addr,
                port,
                proto,
                flags: 0,
                id,
            };
            (id, endpoint)
        });
        let endpoints: Vec<_> = endpoints.collect();
        let (written, result) = self.maps.put_endpoints(&endpoints);
        for (id, endpoint) in endpoints.iter().take(written) {
            let place = place(endpoint);
            self.endpoints.insert(*id, Known { place, uses: 0 });
            self.endpoint_ids.insert((self.digest(&place), *id), ());
        }
        if result.is_err() {
            self.drop_unused(endpoints.iter().map(|(id, _)| *id));
        }
        result
    }

    /// Takes out what came in for something that was not written: a Service that does not fit takes no other's room.
    /// Where that fails, the next audit takes it out.
    fn drop_unused(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            let known = self.endpoints.get(&id);
            if known.is_some_and(|known| known.uses == 0) {
                let _ = self.remove_endpoint(id);
            }
        }
    }

    fn add_use(&mut self, id: u32) {
        if let Some(known) = self.endpoints.get_mut(&id) {
            known.uses += 1;
        }
    }

    /// One slot or membership less; the last one's endpoint goes.
    fn release(&mut self, id: u32) -> Result<(), Error> {
        let Some(known) = self.endpoints.get_mut(&id) else {
            return Ok(());
        };
        known.uses = known.uses.saturating_sub(1);
        if known.uses == 0 {
            self.remove_endpoint(id)?;
        }
        Ok(())
    }

    fn remove_endpoint(&mut self, id: u32) -> Result<(), Error> {
        if let Some(Known { place, .. }) = self.endpoints.get(&id).copied() {
            self.maps.remove_endpoint(&id)?;
            self.endpoints.remove(&id);
            self.endpoint_ids.remove(&(self.digest(&place), id));
        }
        Ok(())
    }
}

fn place(endpoint: &Endpoint) -> Place {
    (endpoint.addr, endpoint.port, endpoint.proto)
}
