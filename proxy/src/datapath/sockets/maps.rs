//! The maps that the socket renderer writes: the kernel's, and a copy in memory for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ebpf::abi::net::Ip;
use ebpf::abi::service::{
    Endpoint, Frontend, FrontendKey, MemberKey, Membership, NodeAddress, Reply, SlotKey, SocketPeer,
};
use ebpf::{Attachment, SocketHook};

use crate::Error;

/// Everything in the maps that the host side writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// `FRONTENDS`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `SLOTS`.
    pub slots: BTreeMap<SlotKey, u32>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `MEMBERS`.
    pub members: BTreeMap<MemberKey, Membership>,
    /// `NODES`.
    pub nodes: BTreeMap<Ip, NodeAddress>,
}

/// Access to the hook's maps; each write is atomic for readers in the kernel.
pub trait HookMaps: Send + Sync + std::fmt::Debug {
    /// Reads everything.
    fn contents(&self) -> Result<Contents, Error>;
    /// Adds or replaces.
    fn put_frontend(&mut self, key: FrontendKey, value: Frontend) -> Result<(), Error>;
    /// Removes.
    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), Error>;
    /// Adds or replaces, in this order until one fails. Returns how many are written, and why no more are.
    fn put_slots(&mut self, slots: &[(SlotKey, u32)]) -> (usize, Result<(), Error>);
    /// Removes.
    fn remove_slot(&mut self, key: &SlotKey) -> Result<(), Error>;
    /// As [`Self::put_slots`].
    fn put_endpoints(&mut self, endpoints: &[(u32, Endpoint)]) -> (usize, Result<(), Error>);
    /// Removes.
    fn remove_endpoint(&mut self, id: &u32) -> Result<(), Error>;
    /// Adds or replaces.
    fn put_member(&mut self, key: MemberKey, value: Membership) -> Result<(), Error>;
    /// Removes.
    fn remove_member(&mut self, key: &MemberKey) -> Result<(), Error>;
    /// Adds or replaces.
    fn put_node(&mut self, address: Ip, value: NodeAddress) -> Result<(), Error>;
    /// Removes.
    fn remove_node(&mut self, address: &Ip) -> Result<(), Error>;
    /// UDP sockets, by cookie, with the endpoints that they were sent to and the Services' addresses that they asked
    /// for.
    fn replies(&self) -> Result<BTreeMap<SocketPeer, Reply>, Error>;
    /// Removes.
    fn remove_reply(&mut self, key: &SocketPeer) -> Result<(), Error>;
    /// Ends those of these sockets that are connected to these endpoints, wherever on the node they are.
    fn end_sockets(&mut self, sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error>;
    /// Attaches and pins what is not; returns what that was.
    fn repair(&mut self) -> Result<Vec<String>, Error>;
    /// Verdicts so far.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error>;
    /// Writes so far.
    fn writes(&self) -> u64;
}

impl HookMaps for SocketHook {
    fn contents(&self) -> Result<Contents, Error> {
        Ok(Contents {
            frontends: self.frontends.entries()?,
            slots: self.slots.entries()?,
            endpoints: self.endpoints.entries()?,
            members: self.members.entries()?,
            nodes: self.nodes.entries()?,
        })
    }

    fn put_frontend(&mut self, key: FrontendKey, value: Frontend) -> Result<(), Error> {
        Ok(self.frontends.insert(key, value)?)
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), Error> {
        Ok(self.frontends.remove(key)?)
    }

    fn put_slots(&mut self, slots: &[(SlotKey, u32)]) -> (usize, Result<(), Error>) {
        let (written, result) = self.slots.insert_all(slots);
        (written, result.map_err(Error::from))
    }

    fn remove_slot(&mut self, key: &SlotKey) -> Result<(), Error> {
        Ok(self.slots.remove(key)?)
    }

    fn put_endpoints(&mut self, endpoints: &[(u32, Endpoint)]) -> (usize, Result<(), Error>) {
        let (written, result) = self.endpoints.insert_all(endpoints);
        (written, result.map_err(Error::from))
    }

    fn remove_endpoint(&mut self, id: &u32) -> Result<(), Error> {
        Ok(self.endpoints.remove(id)?)
    }

    fn put_member(&mut self, key: MemberKey, value: Membership) -> Result<(), Error> {
        Ok(self.members.insert(key, value)?)
    }

    fn remove_member(&mut self, key: &MemberKey) -> Result<(), Error> {
        Ok(self.members.remove(key)?)
    }

    fn put_node(&mut self, address: Ip, value: NodeAddress) -> Result<(), Error> {
        Ok(self.nodes.insert(address, value)?)
    }

    fn remove_node(&mut self, address: &Ip) -> Result<(), Error> {
        Ok(self.nodes.remove(address)?)
    }

    fn replies(&self) -> Result<BTreeMap<SocketPeer, Reply>, Error> {
        Ok(self.replies.entries()?)
    }

    fn remove_reply(&mut self, key: &SocketPeer) -> Result<(), Error> {
        Ok(self.replies.remove(key)?)
    }

    fn end_sockets(&mut self, sockets: &BTreeSet<(u64, SocketAddr)>) -> Result<usize, Error> {
        super::departed::end_sockets(self.cgroup(), sockets)
    }

    fn repair(&mut self) -> Result<Vec<String>, Error> {
        let mut repaired = Vec::new();
        if self.ensure_attached()? == Attachment::Made {
            repaired.push("the socket hook was not attached".to_owned());
        }
        if self.ensure_netns()? {
            repaired.push("the socket hook served another network namespace's loopback".to_owned());
        }
        if self.ensure_pinned()? {
            repaired.push("the socket hook's maps were not pinned".to_owned());
        }
        Ok(repaired)
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        Ok(Self::counters(self)?)
    }

    fn writes(&self) -> u64 {
        Self::writes(self)
    }
}
