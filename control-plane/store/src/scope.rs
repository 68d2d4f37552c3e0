//! What a client may touch.
//!
//! The client CA signs for the whole cluster, so a certificate of it opens nothing by itself: what counts is an
//! organization in its subject. `system:masters` opens everything; a node's `system:nodes` and its agent's
//! `system:causeway-agents` open only the network's keys, where the overlay keeps its subnet leases. An operation is
//! checked with the full range of keys that it could read or write.

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::mvcc::{Error, Holder, KeyRange, LeaseChange, LeaseId, Leases, Op, Put, Txn};

/// The organization of those who run the cluster: the API server and its administrator.
const MASTERS: &str = "system:masters";

/// The organizations of what runs on nodes.
const NODES: [&str; 2] = ["system:nodes", "system:causeway-agents"];

/// The keys that nodes may touch.
const NETWORK_PREFIX: &[u8] = b"/coreos.com/network/";

/// The keys that a client may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All, and every administrative call.
    All,
    /// Those of the range; no administrative call.
    Only(KeyRange),
}

impl Scope {
    /// The scope that a client's certificate gives; one that cannot be read, or names nobody known here, gives none.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let organizations = certificate.subject().iter_organization();
        let organizations: Vec<&str> = organizations.filter_map(|name| name.as_str().ok()).collect();
        Self::of_organizations(&organizations)
    }

    /// Who stands on a node is held to it, whatever else the certificate says.
    fn of_organizations(organizations: &[&str]) -> Option<Self> {
        if organizations.iter().any(|name| NODES.contains(name)) {
            Some(Self::network())
        } else {
            organizations.contains(&MASTERS).then_some(Self::All)
        }
    }

    fn network() -> Self {
        Self::Only(KeyRange::below(NETWORK_PREFIX))
    }

    /// Whether the client may touch everything.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::All
    }

    /// Whether the client may touch all keys of the range.
    pub fn permits(&self, keys: &KeyRange) -> bool {
        match self {
            Self::All => true,
            Self::Only(own) => keys.is_within(own),
        }
    }

    /// Whether the client may touch all keys that the operation names, in every branch.
    pub fn permits_op(&self, op: &Op) -> bool {
        match op {
            Op::Range(range) => self.permits(&range.keys),
            Op::Put(put) => self.permits(&KeyRange::single(put.key.clone())),
            Op::Delete(delete) => self.permits(&delete.keys),
            Op::Txn(Txn {
                compares,
                success,
                failure,
            }) => {
                compares.iter().all(|compare| self.permits(&compare.keys))
                    && success.iter().chain(failure).all(|op| self.permits_op(op))
            }
        }
    }

    /// As whom the client asks for a lease.
    pub fn holder(&self) -> Holder {
        match self {
            Self::All => Holder::Administrator,
            Self::Only(_) => Holder::Limited,
        }
    }

    /// Whether the client may use, renew or end the lease. It ends its keys with it, so that it is as closed as they
    /// are; and before it has any, it is of those who asked for it. One that is not there is nobody's.
    pub fn permits_lease(&self, id: LeaseId, leases: &Leases) -> bool {
        match self {
            Self::All => true,
            Self::Only(own) => {
                leases.holder(id) != Some(Holder::Administrator)
                    && leases.keys(id).all(|key| own.contains(key))
            }
        }
    }

    /// Refuses a client that may not touch the lease.
    pub fn check_lease(&self, id: LeaseId, leases: &Leases) -> Result<(), Error> {
        if self.permits_lease(id, leases) {
            Ok(())
        } else {
            Err(Error::LeaseDenied)
        }
    }

    /// Refuses an operation that would hang a key on a lease that the client may not touch, in any branch.
    pub fn check_leases_of(&self, op: &Op, leases: &Leases) -> Result<(), Error> {
        match op {
            Op::Put(Put {
                lease: LeaseChange::Set(Some(id)),
                ..
            }) => self.check_lease(*id, leases),
            Op::Txn(Txn { success, failure, .. }) => {
                let mut ops = success.iter().chain(failure);
                ops.try_for_each(|op| self.check_leases_of(op, leases))
            }
            Op::Put(_) | Op::Range(_) | Op::Delete(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_opens_what_its_organizations_may_touch() {
        let rows: [(&[&str], Option<Scope>); 6] = [
            (&["system:masters"], Some(Scope::All)),
            (&["system:nodes"], Some(Scope::network())),
            (&["system:causeway-agents"], Some(Scope::network())),
            (&["system:masters", "system:nodes"], Some(Scope::network())),
            (&["developers"], None),
            (&[], None),
        ];
        for (organizations, expected) in rows {
            assert_eq!(
                Scope::of_organizations(organizations),
                expected,
                "{organizations:?}"
            );
        }
    }

    #[test]
    fn a_node_may_touch_only_ranges_within_the_network_prefix() {
        let rows: [(&[u8], &[u8], bool); 12] = [
            (b"/coreos.com/network/config", b"", true),
            (b"/coreos.com/network/", b"", true),
            (
                b"/coreos.com/network/subnets/",
                b"/coreos.com/network/subnets0",
                true,
            ),
            (b"/coreos.com/network/", b"/coreos.com/network0", true),
            (b"/coreos.com/network/", b"/coreos.com/network1", false),
            (b"/coreos.com/network/", b"\0", false),
            (b"/coreos.com/network", b"", false),
            (b"/coreos.com/network", b"/coreos.com/network0", false),
            (b"/coreos.com/network0", b"", false),
            (b"/registry/secrets/kube-system/a", b"", false),
            (b"/a", b"/z", false),
            (b"\0", b"\0", false),
        ];
        for (key, range_end, expected) in rows {
            let keys = KeyRange::from_protocol(key, range_end);
            assert_eq!(Scope::network().permits(&keys), expected, "{keys:?}");
            assert!(Scope::All.permits(&keys), "{keys:?}");
        }
    }
}
