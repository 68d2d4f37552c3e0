//! Addresses and ports as they lie in packets.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of either family in network order: the bytes as in a packet, of IPv4 in its IPv6-mapped form
/// `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2). So there is one key for an address, whichever family of socket asks for it.
/// `[words:16 be] = 16 bytes`, in words because that is how programs may read a socket's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    /// No address: the key of frontends that every node address serves.
    pub const ANY: Self = Self([0; 4]);

    /// The third word of every mapped IPv4 address.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// The IPv4 address of that word in network order.
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        let [first, second, third, _] = self.0;
        first == 0 && second == 0 && third == Self::MAPPED
    }

    /// The last word in network order: all of an IPv4 address.
    #[must_use]
    pub const fn last_word(self) -> u32 {
        let [_, _, _, last] = self.0;
        last
    }

    /// Whether this is one of 127.0.0.0/8 (RFC 1122 §3.2.1.3) or `::1` (RFC 4291 §2.5.3).
    #[must_use]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            let [first, ..] = self.last_word().to_ne_bytes();
            return first == 127;
        }
        let [first, second, third, last] = self.0;
        first == 0 && second == 0 && third == 0 && last == 1_u32.to_be()
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(u32::from(address).to_be())
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(address: Ipv6Addr) -> Self {
        let bits = u128::from(address);
        let word = |shift: u32| ((bits >> shift) as u32).to_be();
        Self([word(96), word(64), word(32), word(0)])
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

/// A mapped address is the IPv4 address.
impl From<Ip> for IpAddr {
    fn from(address: Ip) -> Self {
        if address.is_v4() {
            return Ipv4Addr::from(u32::from_be(address.last_word())).into();
        }
        let append = |bits: u128, word: u32| bits << 32 | u128::from(u32::from_be(word));
        Ipv6Addr::from(address.0.into_iter().fold(0, append)).into()
    }
}

/// A layer-4 port in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Port(pub u16);

impl Port {
    /// The port of that number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The port's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(Ip, Port);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_as_in_packets_and_come_back_in_one_form() {
        let rows: [(&str, [u8; 16], &str, bool, bool); 7] = [
            (
                "10.96.0.1",
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 96, 0, 1],
                "10.96.0.1",
                true,
                false,
            ),
            (
                "::ffff:10.96.0.1",
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 96, 0, 1],
                "10.96.0.1",
                true,
                false,
            ),
            (
                "127.1.2.3",
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 1, 2, 3],
                "127.1.2.3",
                true,
                true,
            ),
            (
                "fd00:1:2::ff",
                [0xfd, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff],
                "fd00:1:2::ff",
                false,
                false,
            ),
            (
                "::1",
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                "::1",
                false,
                true,
            ),
            ("::", [0; 16], "::", false, false),
            // An IPv4-compatible address (deprecated, RFC 4291 §2.5.5.1) is no IPv4 address.
            (
                "::127.0.0.1",
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1],
                "::7f00:1",
                false,
                false,
            ),
        ];
        for (text, bytes, canonical, is_v4, is_loopback) in rows {
            let address: IpAddr = text.parse().expect("an address");
            let ip = Ip::from(address);
            let [a, b, c, d] = ip.0.map(u32::to_ne_bytes);
            assert_eq!([a, b, c, d].concat(), bytes, "{text}");
            assert_eq!(IpAddr::from(ip).to_string(), canonical);
            assert_eq!((ip.is_v4(), ip.is_loopback()), (is_v4, is_loopback), "{text}");
        }
    }

    #[test]
    fn ports_lie_as_in_packets() {
        assert_eq!(Port::new(0x1234).0.to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::new(0x1234).number(), 0x1234);
    }
}
