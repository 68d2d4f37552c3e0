//! Which zones and ports the server blocks of a file have, so that no two want the same.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Key, Scheme, ServerBlock};
use crate::serve::tls::Identity;

/// What a block listens at that does not say it.
const EVERYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// What the server blocks so far serve.
#[derive(Default)]
pub(super) struct Taken {
    zones: HashSet<(IpAddr, Key)>,
    ports: HashMap<(IpAddr, u16), (Scheme, Option<Identity>)>,
}

impl Taken {
    /// Notes a zone of a block, or says what stands in its way.
    pub(super) fn take(&mut self, key: &Key, block: &ServerBlock) -> Result<(), String> {
        let Key { scheme, zone, port } = key;
        if *scheme == Scheme::Tls && block.tls.is_none() {
            return Err(format!(
                "{key} needs the plugin tls, with a certificate and its key"
            ));
        }
        let mut addresses = block.bind.clone();
        if addresses.is_empty() {
            addresses.extend(EVERYWHERE);
        }
        // An interface may have the address that is given as well.
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            if !self.zones.insert((address, key.clone())) {
                return Err(format!("cannot serve {zone} at port {port} twice"));
            }
            let identity = block.tls.as_ref().filter(|_| *scheme == Scheme::Tls);
            let way = (*scheme, identity.cloned());
            let taken = self.ports.entry((address, *port)).or_insert_with(|| way.clone());
            if *taken != way {
                let scheme = taken.0.name();
                return Err(format!(
                    "{key}: another server block has port {port} for {scheme}:// with another certificate or none"
                ));
            }
        }
        Ok(())
    }
}
