//! Newtypes for what crosses borders: object names, MAC addresses, MTUs, VNIs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Text;

/// A node's name, as in `metadata.name` of its Node object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub Text);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// Namespace and name of a namespaced object. Displays as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
}

impl ObjectName {
    /// Joins the two halves.
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a text was refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What was expected, for example `a MAC address like 0a:58:0a:f4:01:02`.
    pub expected: &'static str,
    /// The text that came instead.
    pub found: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {:?}", self.expected, self.found)
    }
}

impl std::error::Error for ParseError {}

/// An Ethernet address. Text form: six lower-case hexadecimal octets joined by colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Makes a locally administered unicast address of six arbitrary octets (IEEE 802: bit 1 set, bit 0 clear).
    #[must_use]
    pub const fn locally_administered(mut octets: [u8; 6]) -> Self {
        octets[0] = (octets[0] & 0xfc) | 0x02;
        Self(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError {
            expected: "a MAC address like 0a:58:0a:f4:01:02",
            found: text.to_owned(),
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A link's maximum transmission unit, in bytes of layer-3 payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mtu(pub u32);

/// A VXLAN network identifier (24 bits; RFC 7348 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vni(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_text_round_trips_and_bad_text_is_refused() {
        let mac: MacAddr = "0a:58:0A:f4:01:02".parse().expect("valid");
        assert_eq!(mac.to_string(), "0a:58:0a:f4:01:02");
        for bad in [
            "",
            "0a:58:0a:f4:01",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:zz",
            "a:58:0a:f4:01:02",
            "0a-58-0a-f4-01-02",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn locally_administered_addresses_are_unicast() {
        assert_eq!(MacAddr::locally_administered([0xff; 6]).0[0], 0xfe);
        assert_eq!(MacAddr::locally_administered([0x00; 6]).0[0], 0x02);
    }
}
