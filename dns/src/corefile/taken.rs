//! Which zones and ports the server blocks of a file have, so that no two want the same.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{Key, Scheme, ServerBlock};
use crate::serve::tls::Identity;

/// What the server blocks so far serve. An address is `None` where a block listens everywhere.
#[derive(Default)]
pub(super) struct Taken {
    zones: HashSet<(Option<IpAddr>, Key)>,
    ports: HashMap<(Option<IpAddr>, u16), (Scheme, Option<Identity>)>,
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
        let everywhere = block.bind.is_empty().then_some(None);
        let mut addresses: Vec<Option<IpAddr>> =
            block.bind.iter().copied().map(Some).chain(everywhere).collect();
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
