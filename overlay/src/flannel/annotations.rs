//! A lease as annotations of a Node object (`pkg/subnet/kube/annotations.go`), without their prefix
//! `flannel.alpha.coreos.com/`. The subnets are the Node's `spec.podCIDRs`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::{ByFamily, IpFamily, Text};
use serde_json::{Map, Value, json};

use super::{Fields, FormatError, Record, backend_data, field};

/// Says that the node takes part.
const MANAGED: &str = "kube-subnet-manager";

const BACKEND_TYPE: &str = "backend-type";

/// The annotations about one version of IP.
struct Names {
    public_ip: &'static str,
    overwrite: &'static str,
    data: &'static str,
}

impl Names {
    const fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self {
                public_ip: "public-ip",
                overwrite: "public-ip-overwrite",
                data: "backend-data",
            },
            IpFamily::V6 => Self {
                public_ip: "public-ipv6",
                overwrite: "public-ipv6-overwrite",
                data: "backend-v6-data",
            },
        }
    }
}

/// What a node tells the others of its lease. `present` is what its object has: an operator may say there that the
/// others reach it by another address than it sees itself, behind a NAT.
///
/// # Errors
/// When that is not an address.
pub fn write(
    lease: &Lease,
    present: &BTreeMap<Text, Text>,
) -> Result<BTreeMap<&'static str, String>, FormatError> {
    let mut annotations = BTreeMap::from([(MANAGED, "true".to_owned())]);
    for (family, site) in lease.sites.iter() {
        let names = Names::of(family);
        let (kind, data) = backend_data(site.encap);
        let data = if data.is_empty() {
            Value::Null
        } else {
            Value::Object(data)
        };
        let public_ip = overwritten(&names, family, present)?.unwrap_or(site.public_ip);
        annotations.insert(BACKEND_TYPE, kind.to_owned());
        annotations.insert(names.data, data.to_string());
        annotations.insert(names.public_ip, public_ip.to_string());
    }
    Ok(annotations)
}

fn overwritten(
    names: &Names,
    family: IpFamily,
    present: &BTreeMap<Text, Text>,
) -> Result<Option<IpAddr>, FormatError> {
    let Some(text) = present.get(names.overwrite).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let address = text.parse().ok();
    let address = address.filter(|address| IpFamily::from(*address) == family);
    address
        .map(Some)
        .ok_or_else(|| field(names.overwrite, format!("{text:?} is not an address")))
}

/// The lease of another node, with these of its subnets. None where it takes no part.
///
/// # Errors
/// When it does, and does not say how it is reached.
pub fn read(
    annotations: &BTreeMap<Text, Text>,
    subnets: &ByFamily<IpNetwork>,
) -> Result<Option<Record>, FormatError> {
    if annotations
        .get(MANAGED)
        .is_none_or(|managed| **managed != *"true")
    {
        return Ok(None);
    }
    // The same fields as in etcd, each a text of its own.
    let mut object = Map::new();
    let text = |name: &str| annotations.get(name).map(|text| json!(text));
    object.extend(text(BACKEND_TYPE).map(|kind| ("BackendType".to_owned(), kind)));
    for family in IpFamily::ALL {
        let (names, fields) = (Names::of(family), Fields::of(family));
        object.extend(text(names.public_ip).map(|address| (fields.public_ip.to_owned(), address)));
        if let Some(data) = annotations.get(names.data) {
            let data = serde_json::from_str(data).map_err(|error| field(names.data, error.to_string()))?;
            object.insert(fields.data.to_owned(), data);
        }
    }
    Record::read(subnets, object).map(Some)
}

#[cfg(test)]
mod tests {
    use model::lease::{Encap, Site};
    use model::{MacAddr, Vni};

    use super::*;

    fn subnets(texts: &[&str]) -> ByFamily<IpNetwork> {
        let subnet = |text: &&str| text.parse::<IpNetwork>().expect("a network");
        texts.iter().map(subnet).collect()
    }

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<Text, Text> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (Text::from(*name), Text::from(*value)))
            .collect()
    }

    fn lease(encap: Encap) -> Lease {
        let site = |subnet: &str, public_ip: &str| Site {
            subnet: subnet.parse().expect("a network"),
            public_ip: public_ip.parse().expect("an address"),
            encap,
        };
        let sites = [
            site("10.244.3.0/24", "192.0.2.3"),
            site("fd00:244:3::/64", "2001:db8::3"),
        ];
        Lease {
            sites: sites
                .map(|site| (IpFamily::from(site.public_ip), site))
                .into_iter()
                .collect(),
        }
    }

    /// Names and values as flannel 0.26 writes them.
    #[test]
    fn a_lease_is_written_as_flannel_does_and_reads_back() {
        let vxlan = Encap::Vxlan {
            vni: Vni(1),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 3]),
        };
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}"#;
        for (encap, kind, data) in [(vxlan, "vxlan", data), (Encap::HostGw, "host-gw", "null")] {
            let expected = [
                ("backend-data", data),
                ("backend-type", kind),
                ("backend-v6-data", data),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.0.2.3"),
                ("public-ipv6", "2001:db8::3"),
            ];
            let lease = lease(encap);
            let written = write(&lease, &BTreeMap::new()).expect("nothing is overwritten");
            let pairs: Vec<_> = written
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            assert_eq!(pairs, expected);
            let record = read(&annotations(&pairs), &lease.subnets()).expect("valid");
            assert_eq!(record.expect("it takes part").lease, lease);
        }
    }

    #[test]
    fn an_operator_may_say_by_which_address_a_node_is_reached() {
        let lease = lease(Encap::HostGw);
        let present = annotations(&[
            ("public-ip-overwrite", "198.51.100.7"),
            ("public-ipv6-overwrite", ""),
        ]);
        let written = write(&lease, &present).expect("valid");
        assert_eq!(written["public-ip"], "198.51.100.7");
        assert_eq!(written["public-ipv6"], "2001:db8::3");
        for wrong in ["2001:db8::7", "here"] {
            let present = annotations(&[("public-ip-overwrite", wrong)]);
            let error = write(&lease, &present).expect_err(wrong).to_string();
            assert!(error.starts_with("public-ip-overwrite: "), "{error}");
        }
    }

    #[test]
    fn a_node_that_takes_no_part_has_no_lease_and_one_that_lies_is_refused() {
        let v4 = subnets(&["10.244.3.0/24"]);
        assert_eq!(read(&annotations(&[]), &v4), Ok(None));
        let off = annotations(&[("kube-subnet-manager", "false"), ("public-ip", "192.0.2.3")]);
        assert_eq!(read(&off, &v4), Ok(None));
        let good = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VtepMAC":"02:00:00:00:00:03"}"#),
            ("public-ip", "192.0.2.3"),
        ];
        assert!(read(&annotations(&good), &v4).is_ok());
        let rows = [
            ("backend-type", "ipsec", "Backend.Type"),
            ("backend-type", "", "Backend.Type"),
            ("backend-data", "{", "backend-data"),
            ("backend-data", "null", "BackendData"),
            ("backend-data", "{}", "VtepMAC"),
            ("backend-data", r#"{"VtepMAC":"ff"}"#, "VtepMAC"),
            (
                "backend-data",
                r#"{"VNI":4294967296,"VtepMAC":"02:00:00:00:00:03"}"#,
                "VNI",
            ),
            ("public-ip", "", "PublicIP"),
            ("public-ip", "2001:db8::3", "PublicIP"),
            ("public-ip", "192.0.2.3.4", "PublicIP"),
        ];
        for (name, value, field) in rows {
            let mut wrong = annotations(&good);
            wrong.insert(name.into(), value.into());
            let error = read(&wrong, &v4).expect_err(value).to_string();
            assert!(error.starts_with(field), "{name}={value}: {error}");
        }
        let dual = subnets(&["10.244.3.0/24", "fd00:244:3::/64"]);
        let error = read(&annotations(&good), &dual).expect_err("no IPv6").to_string();
        assert!(error.starts_with("PublicIPv6"), "{error}");
    }
}
