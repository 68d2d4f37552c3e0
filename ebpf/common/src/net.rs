//! Addresses and ports as they lie in packets.

/// An IPv4 address in network order: the four bytes as in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ip4(pub u32);

impl Ip4 {
    /// No address: the key of frontends that every node address serves.
    pub const ANY: Self = Self(0);

    /// The address `a.b.c.d`.
    #[must_use]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The address as octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// Whether this is one of 127.0.0.0/8 (RFC 1122 §3.2.1.3).
    #[must_use]
    pub const fn is_loopback(self) -> bool {
        self.octets()[0] == 127
    }
}

/// A layer-4 port in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
crate::plain_old_data!(Ip4, Port);
