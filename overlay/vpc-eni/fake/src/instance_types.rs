//! What instance types allow, as AWS publishes it (EC2 user guide, "IP addresses per network interface per instance
//! type"; facts only).

use std::collections::BTreeMap;

use vpc_eni::ec2::Limits;

/// The types that are there from the beginning: name, interfaces, addresses per interface, whether Nitro.
const TABLE: [(&str, u32, u32, bool); 10] = [
    ("t3.micro", 2, 2, true),
    ("t3.small", 3, 4, true),
    ("t3.medium", 3, 6, true),
    ("t3.large", 3, 12, true),
    ("m5.large", 3, 10, true),
    ("m5.xlarge", 4, 15, true),
    ("m5.4xlarge", 8, 30, true),
    ("c5.large", 3, 10, true),
    ("t2.micro", 2, 2, false),
    ("m4.large", 2, 10, false),
];

/// The limits of an instance type that a new [`Cloud`](crate::Cloud) has; `None` for any other.
#[must_use]
pub fn instance_type(name: &str) -> Option<Limits> {
    published().remove(name)
}

/// The names of those types.
pub fn instance_types() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

/// The limits of each type by its name.
pub(crate) fn published() -> BTreeMap<String, Limits> {
    TABLE
        .iter()
        .map(|&(name, interfaces, addresses_per_interface, is_nitro)| {
            let limits = Limits {
                interfaces,
                addresses_per_interface,
                is_nitro,
            };
            (name.to_owned(), limits)
        })
        .collect()
}
