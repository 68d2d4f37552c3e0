//! What stands before the IP header of a device's packets, by the device's hardware type (`ARPHRD_*`, linux/if_arp.h).

use std::borrow::Cow;

use super::pcapng;

/// The hardware types whose packets have Ethernet's header: Ethernet and loopback.
const OF_ETHERNET: [u16; 2] = [1, 772];

/// Those whose packets begin with their IP header: PPP, raw IP, IP in IP of both versions, SIT, GRE of both versions, and
/// none, as tun and WireGuard have it.
const BARE: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 0xfffe];

/// Length of Ethernet's: both addresses and the type of what follows.
const ETHERNET_BYTES: usize = 14;

/// What stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// Ethernet's header.
    Ethernet,
    /// Nothing.
    Bare,
}

impl LinkLayer {
    /// That of a device; `None` where it is another one.
    #[must_use]
    pub fn of(hardware_type: u16) -> Option<Self> {
        if OF_ETHERNET.contains(&hardware_type) {
            Some(Self::Ethernet)
        } else {
            BARE.contains(&hardware_type).then_some(Self::Bare)
        }
    }

    /// What pcapng calls it.
    #[must_use]
    pub const fn link_type(self) -> u16 {
        match self {
            Self::Ethernet => pcapng::ETHERNET,
            Self::Bare => pcapng::RAW_IP,
        }
    }

    /// The packet with an Ethernet header, which is empty where it has none.
    #[must_use]
    pub fn framed(self, packet: &[u8]) -> Cow<'_, [u8]> {
        let version = packet.first().map(|first| first >> 4);
        match (self, version) {
            (Self::Ethernet, _) => Cow::Borrowed(packet),
            (Self::Bare, version) => {
                let ethertype: [u8; 2] = match version {
                    Some(4) => [0x08, 0x00],
                    Some(6) => [0x86, 0xdd],
                    _ => [0, 0],
                };
                Cow::Owned([&[0; ETHERNET_BYTES - 2], &ethertype[..], packet].concat())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dissect;
    use super::super::frames::Packet;
    use super::*;

    #[test]
    fn a_packet_of_a_device_without_a_header_is_read_as_one_with_it() {
        for packet in [
            Packet::tcp("10.1.0.5:4000", "10.2.0.5:80"),
            Packet::udp("[fd00:1::5]:4000", "[fd00:2::5]:53", b"hello"),
        ] {
            let frame = packet.frame();
            let bare = &frame[ETHERNET_BYTES..];
            let read = |frame: &[u8]| dissect::headers(frame).expect("headers").to_string();
            assert_eq!(read(&LinkLayer::Bare.framed(bare)), read(&frame));
            assert_eq!(*LinkLayer::Ethernet.framed(&frame), *frame);
        }
        assert_eq!(dissect::headers(&LinkLayer::Bare.framed(&[])), None);
    }

    #[test]
    fn a_link_layer_is_known_by_the_hardware_type_and_others_are_not_guessed() {
        let rows = [
            (1, Some(LinkLayer::Ethernet)),
            (772, Some(LinkLayer::Ethernet)),
            (0xfffe, Some(LinkLayer::Bare)),
            (768, Some(LinkLayer::Bare)),
            // InfiniBand, and what a wireless device in monitor mode has.
            (32, None),
            (803, None),
        ];
        for (hardware_type, expected) in rows {
            assert_eq!(LinkLayer::of(hardware_type), expected, "{hardware_type}");
        }
    }
}
