//! What there is once for each version of IP.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::IpFamily;

/// At most one of each version of IP. A dual-stack node has both of most things, a single-stack one has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByFamily<T> {
    /// That of IPv4.
    pub v4: Option<T>,
    /// That of IPv6.
    pub v6: Option<T>,
}

impl<T> Default for ByFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> ByFamily<T> {
    /// That of a version.
    pub const fn get(&self, family: IpFamily) -> Option<&T> {
        match family {
            IpFamily::V4 => self.v4.as_ref(),
            IpFamily::V6 => self.v6.as_ref(),
        }
    }

    /// Each with its version, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpFamily, &T)> {
        let v4 = self.v4.iter().map(|value| (IpFamily::V4, value));
        v4.chain(self.v6.iter().map(|value| (IpFamily::V6, value)))
    }

    /// Each, IPv4 first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.v4.iter().chain(&self.v6)
    }

    /// The versions that there are.
    pub fn families(&self) -> ByFamily<()> {
        self.map(|_, _| ())
    }

    /// One made of each.
    pub fn map<U>(&self, mut make: impl FnMut(IpFamily, &T) -> U) -> ByFamily<U> {
        ByFamily {
            v4: self.v4.as_ref().map(|value| make(IpFamily::V4, value)),
            v6: self.v6.as_ref().map(|value| make(IpFamily::V6, value)),
        }
    }

    /// One made of each, or the first failure.
    ///
    /// # Errors
    /// As `make` fails.
    pub fn try_map<U, E>(
        &self,
        mut make: impl FnMut(IpFamily, &T) -> Result<U, E>,
    ) -> Result<ByFamily<U>, E> {
        let v4 = self.v4.as_ref().map(|value| make(IpFamily::V4, value));
        let v6 = self.v6.as_ref().map(|value| make(IpFamily::V6, value));
        Ok(ByFamily {
            v4: v4.transpose()?,
            v6: v6.transpose()?,
        })
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl<T> FromIterator<(IpFamily, T)> for ByFamily<T> {
    /// Of several of one version the first.
    fn from_iter<I: IntoIterator<Item = (IpFamily, T)>>(values: I) -> Self {
        let mut all = Self::default();
        for (family, value) in values {
            let slot = match family {
                IpFamily::V4 => &mut all.v4,
                IpFamily::V6 => &mut all.v6,
            };
            slot.get_or_insert(value);
        }
        all
    }
}

impl FromIterator<IpAddr> for ByFamily<IpAddr> {
    /// Of several of one version the first.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        addresses
            .into_iter()
            .map(|address| (IpFamily::from(address), address))
            .collect()
    }
}

impl FromIterator<IpNetwork> for ByFamily<IpNetwork> {
    /// Of several of one version the first.
    fn from_iter<I: IntoIterator<Item = IpNetwork>>(networks: I) -> Self {
        networks
            .into_iter()
            .map(|network| (IpFamily::from(network.ip()), network))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_version_is_taken_and_ipv4_comes_first() {
        let addresses: Vec<IpAddr> = ["fd00::1", "10.0.0.1", "fd00::2"]
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let both: ByFamily<IpAddr> = addresses.iter().copied().collect();
        let told: Vec<String> = both.values().map(ToString::to_string).collect();
        assert_eq!(told, ["10.0.0.1", "fd00::1"]);
        assert_eq!(both.get(IpFamily::V6), addresses.first());
        let only: ByFamily<IpAddr> = addresses.first().copied().into_iter().collect();
        assert_eq!(
            (only.v4, only.families().v6, only.is_empty()),
            (None, Some(()), false)
        );
        assert_eq!(
            both.try_map(|family, _| match family {
                IpFamily::V4 => Ok(()),
                IpFamily::V6 => Err("no"),
            }),
            Err("no")
        );
    }
}
