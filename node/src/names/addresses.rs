//! What addresses are called.

use std::collections::HashMap;
use std::net::IpAddr;

use model::{ObjectName, Protocol};
use serde::{Deserialize, Serialize};

use crate::explain::Facts;
use crate::explain::names::addresses_of;

/// An address of which something is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// The address.
    pub address: IpAddr,
    /// The pod that has it, or had it lately where nobody else has it: of this node, or an endpoint of a Service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<ObjectName>,
    /// Services that are asked there.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub services: Vec<Frontend>,
}

/// A port at which a Service is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The Service.
    pub service: ObjectName,
}

/// Those of the addresses of which something is known. `former` tells who had one.
pub(super) fn called(
    asked: &[IpAddr],
    facts: &Facts,
    former: impl Fn(&IpAddr) -> Option<ObjectName>,
) -> Vec<Called> {
    if asked.is_empty() {
        return Vec::new();
    }
    let nobody = |address: &IpAddr| {
        let called = Called {
            address: *address,
            pod: None,
            services: Vec::new(),
        };
        (*address, called)
    };
    let mut known: HashMap<IpAddr, Called> = asked.iter().map(nobody).collect();
    for (name, service) in facts.snapshot.services.iter() {
        for address in addresses_of(service) {
            let Some(called) = known.get_mut(&address) else {
                continue;
            };
            called.services.extend(service.ports.iter().map(|port| Frontend {
                port: port.port.get(),
                protocol: port.protocol,
                service: name.clone(),
            }));
        }
    }
    let slices = facts.snapshot.slices.iter();
    for slice in slices.flat_map(|(_, slices)| slices.iter()) {
        for endpoint in &slice.endpoints {
            if let (Some(pod), Some(called)) = (endpoint.pod, known.get_mut(&endpoint.address)) {
                called.pod = Some(ObjectName::new(slice.name.namespace.clone(), pod));
            }
        }
    }
    for pod in &facts.pods {
        for address in &pod.addresses {
            if let (Some(name), Some(called)) = (&pod.name, known.get_mut(address)) {
                called.pod = Some(name.clone());
            }
        }
    }
    for called in known.values_mut() {
        if called.pod.is_none() && called.services.is_empty() {
            called.pod = former(&called.address);
        }
    }
    known.retain(|_, called| called.pod.is_some() || !called.services.is_empty());
    known.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::super::ends::tests::facts;
    use super::*;

    #[test]
    fn addresses_are_called_by_who_has_them_and_nothing_else_is_told() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let asked = ["10.96.0.7", "10.244.1.5", "10.244.1.9", "10.244.1.77", "10.1.2.3"].map(address);
        let pod = |name: &str| Some(ObjectName::new("default", name));
        let former = |asked: &IpAddr| (*asked == address("10.244.1.77")).then(|| pod("gone")).flatten();
        let mut told = called(&asked, &facts(), former);
        told.sort_by_key(|called| called.address);
        let frontend = |port| Frontend {
            port,
            protocol: Protocol::Tcp,
            service: ObjectName::new("default", "web"),
        };
        let of_pod = |at: &str, name| Called {
            address: address(at),
            pod: pod(name),
            services: Vec::new(),
        };
        let expected = [
            Called {
                address: address("10.96.0.7"),
                pod: None,
                services: vec![frontend(80), frontend(81)],
            },
            of_pod("10.244.1.5", "web-5"),
            of_pod("10.244.1.9", "db-9"),
            of_pod("10.244.1.77", "gone"),
        ];
        assert_eq!(told, expected);
        let json = serde_json::to_string(&told).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Vec<Called>>(&json).expect("read back"),
            expected
        );
    }
}
