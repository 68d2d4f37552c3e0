//! `networking/v1` ServiceCIDRs.

use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use model::{Change, Kind, ObjectName, ServiceCidr};

use super::faults::Faults;
use super::object::{Converted, Watchable};

impl Watchable for ServiceCIDR {
    const KIND: Kind = Kind::ServiceCidr;
    const OPTIONAL: bool = true;

    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted {
        let Self {
            metadata: _,
            spec,
            status: _,
        } = self;
        let ServiceCIDRSpec { cidrs } = spec.unwrap_or_default();
        let cidrs = cidrs.unwrap_or_default();
        let networks = cidrs.iter().enumerate();
        Converted::Put(Box::new(Change::ServiceCidr(ServiceCidr {
            name: name.name.clone(),
            networks: networks
                .filter_map(|(index, text)| faults.network(&format!("spec.cidrs[{index}]"), text))
                .filter_map(|network| IpNetwork::new(network.network(), network.prefix()).ok())
                .collect(),
        })))
    }
}
