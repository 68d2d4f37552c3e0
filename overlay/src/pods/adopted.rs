//! Pods that another network plugin connected, and that live on: they come into the book as they are.

use std::net::IpAddr;

use model::{ByFamily, MacAddr, ObjectName};

use super::addresses::{Assigned, AttachmentKey, Record};
use super::clock::When;
use super::{PodError, PodNetwork};

/// An interface that another plugin made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Which interface of which container: by it the runtime's DEL finds the record.
    pub key: AttachmentKey,
    /// The pod, where it is known.
    pub pod: Option<ObjectName>,
    /// Its address.
    pub address: IpAddr,
    /// Its device on the node's side.
    pub host_ifname: String,
    /// MAC address of that device.
    pub host_mac: Option<MacAddr>,
    /// MAC address of the pod's own device.
    pub pod_mac: Option<MacAddr>,
}

impl PodNetwork {
    /// Takes an interface into the book; its namespace is not known, so that it is gone when its device is. Returns
    /// whether it was taken: not where the interface, its address or its device is in the book already.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn adopt(&self, adopted: &Adopted) -> Result<bool, PodError> {
        let addresses: ByFamily<IpAddr> = [adopted.address].into_iter().collect();
        let assigned = Assigned {
            pod: adopted.pod.clone(),
            mac: adopted.pod_mac,
            host_ifname: Some(adopted.host_ifname.clone()),
            host_mac: adopted.host_mac,
            boot: self.shared.boot.clone(),
            ..Assigned::new(adopted.key.clone(), &addresses)
        };
        let ticket = {
            let mut state = self.lock();
            let book = &state.addresses;
            let is_known = book.get(&adopted.key).is_some()
                || book
                    .iter()
                    .flat_map(Assigned::each_address)
                    .any(|has| has == adopted.address)
                || book.is_called(&adopted.host_ifname, &adopted.key);
            if is_known {
                return Ok(false);
            }
            let ticket = self.append(&Record::Add(assigned.clone()))?;
            state.addresses.assign(assigned.clone(), When::UNKNOWN);
            ticket
        };
        if let Err(error) = self.sync(ticket) {
            self.lock().addresses.retract(&assigned);
            return Err(error);
        }
        self.changed();
        Ok(true)
    }
}
