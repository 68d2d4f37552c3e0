//! Whose packets are captured, as a program of classic BPF: the kernel leaves all others alone.
//!
//! Looked at are the packet's own headers and, where it is VXLAN, those of the packet in it. The register X holds where an IP
//! header begins, so that both are looked at by the same instructions.
//!
//! ```text
//! [ethernet:14, or nothing][IPv4:20+ | IPv6:40][UDP:8][VXLAN:8][ethernet:14][IPv4 | IPv6]
//!                          ^ X first                                        ^ X then
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf::packet_socket::Instruction;

use super::link_layer::LinkLayer;

const ETHERTYPE: u32 = 12;
const ETHERNET: u32 = 14;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
/// The upper half of an IP header's first byte is its version; the lower one is the header's length in IPv4.
const VERSION: u32 = 0xf0;
const VERSION_4: u32 = 0x40;
const VERSION_6: u32 = 0x60;
const LENGTH: u32 = 0x0f;
/// Of IPv4: flags and offset of a fragment, protocol, both addresses.
const V4_FRAGMENT: u32 = 6;
const V4_PROTOCOL: u32 = 9;
const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
/// Of IPv6: protocol, both addresses, and what follows. Extension headers are not looked behind.
const V6_PROTOCOL: u32 = 6;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;
const V6_PAYLOAD: u32 = 40;
const FRAGMENT_OFFSET: u32 = 0x1fff;
/// UDP's and VXLAN's.
const WRAPPING: u32 = 8 + 8;
/// Protocols whose headers begin with both ports.
const TCP: u32 = 6;
const UDP: u32 = 17;
const SCTP: u32 = 132;

/// `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x40;
const LOAD_HALF: u16 = 0x48;
const LOAD_BYTE: u16 = 0x50;
const LOAD_X: u16 = 0x01;
const LOAD_X_HEADER_LENGTH: u16 = 0xb1;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const ADD: u16 = 0x04;
const ADD_X: u16 = 0x0c;
const GO: u16 = 0x05;
const GO_IF_EQUAL: u16 = 0x15;
const GO_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
const COPY_TO_X: u16 = 0x07;
const COPY_FROM_X: u16 = 0x87;

/// All of a packet: what is kept of it is decided by who reads it.
const ALL: u32 = u32::MAX;

/// Whose packets are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// One of these sends or receives.
    pub ends: Vec<IpAddr>,
    /// One of these is at the other end; none: anybody.
    pub others: Vec<IpAddr>,
    /// Ports, one of which either end has; none: any.
    pub ports: Vec<u16>,
    /// The protocol of layer 4.
    pub protocol: Option<u8>,
    /// UDP ports of VXLAN.
    pub vxlan_ports: Vec<u16>,
}

/// The program for devices of such a link layer.
#[must_use]
pub fn program(wanted: &Wanted, layer: LinkLayer) -> Vec<Instruction> {
    let start = match layer {
        LinkLayer::Ethernet => ETHERNET,
        LinkLayer::Bare => 0,
    };
    let mut code = Code::default();
    let [taken, wrapped, other] = [(); 3].map(|()| code.label());
    code.load(LOAD_X, 0);
    if layer == LinkLayer::Ethernet {
        code.is_ip(other);
    }
    code.load(LOAD_X, start);
    code.network_layer(wanted, taken, wrapped);
    code.put(wrapped);
    code.unwrap(wanted, start, other);
    code.network_layer(wanted, taken, other);
    code.put(taken);
    code.load(RETURN, ALL);
    code.put(other);
    code.load(RETURN, 0);
    code.finish()
}

#[derive(Clone, Copy)]
struct Label(usize);

/// Instructions whose jumps go to labels.
#[derive(Default)]
struct Code {
    steps: Vec<Step>,
    places: Vec<Option<usize>>,
}

enum Step {
    Instruction(Instruction),
    Go(Label),
}

impl Code {
    fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label is here.
    fn put(&mut self, label: Label) {
        self.places[label.0] = Some(self.steps.len());
    }

    fn load(&mut self, code: u16, operand: u32) {
        self.jump(code, operand, (0, 0));
    }

    fn jump(&mut self, code: u16, operand: u32, (jump_true, jump_false): (u8, u8)) {
        self.steps.push(Step::Instruction(Instruction {
            code,
            jump_true,
            jump_false,
            operand,
        }));
    }

    fn go(&mut self, to: Label) {
        self.steps.push(Step::Go(to));
    }

    /// Conditional jumps do not reach far: they lead to one that does.
    fn go_if(&mut self, code: u16, operand: u32, to: Label) {
        self.jump(code, operand, (0, 1));
        self.go(to);
    }

    fn go_unless(&mut self, code: u16, operand: u32, to: Label) {
        self.jump(code, operand, (1, 0));
        self.go(to);
    }

    /// Does the Ethernet header at X say that IP follows?
    fn is_ip(&mut self, other: Label) {
        let ip = self.label();
        self.load(LOAD_HALF, ETHERTYPE);
        self.go_if(GO_IF_EQUAL, IPV4, ip);
        self.go_unless(GO_IF_EQUAL, IPV6, other);
        self.put(ip);
    }

    /// Goes to where the IP header at X is looked at by its version.
    fn by_version(&mut self, v4: Label, v6: Label, other: Label) {
        self.load(LOAD_BYTE, 0);
        self.load(AND, VERSION);
        self.go_if(GO_IF_EQUAL, VERSION_4, v4);
        self.go_if(GO_IF_EQUAL, VERSION_6, v6);
        self.go(other);
    }

    /// A packet of the wanted ends, whose IP header begins at X?
    fn network_layer(&mut self, wanted: &Wanted, taken: Label, other: Label) {
        let [v4, v6] = [(); 2].map(|()| self.label());
        self.by_version(v4, v6, other);
        self.put(v4);
        let ports = self.label();
        self.protocol(wanted, V4_PROTOCOL, other);
        self.ends(
            wanted,
            |address| address.is_ipv4(),
            (V4_SOURCE, V4_DESTINATION),
            ports,
            other,
        );
        self.put(ports);
        if wanted.ports.is_empty() {
            self.go(taken);
        } else {
            // Only the first fragment has ports; the others are of a packet that may be wanted.
            self.load(LOAD_HALF, V4_FRAGMENT);
            self.go_if(GO_IF_SET, FRAGMENT_OFFSET, taken);
            self.has_ports(V4_PROTOCOL, other);
            self.load(LOAD_BYTE, 0);
            self.load(AND, LENGTH);
            self.load(SHIFT_LEFT, 2);
            self.load(ADD_X, 0);
            self.load(COPY_TO_X, 0);
            self.ports(&wanted.ports, 0, taken);
            self.go(other);
        }
        self.put(v6);
        let ports = self.label();
        self.protocol(wanted, V6_PROTOCOL, other);
        self.ends(
            wanted,
            |address| address.is_ipv6(),
            (V6_SOURCE, V6_DESTINATION),
            ports,
            other,
        );
        self.put(ports);
        if wanted.ports.is_empty() {
            self.go(taken);
        } else {
            self.has_ports(V6_PROTOCOL, other);
            self.ports(&wanted.ports, V6_PAYLOAD, taken);
            self.go(other);
        }
    }

    fn protocol(&mut self, wanted: &Wanted, at: u32, other: Label) {
        if let Some(protocol) = wanted.protocol {
            self.load(LOAD_BYTE, at);
            self.go_unless(GO_IF_EQUAL, protocol.into(), other);
        }
    }

    fn has_ports(&mut self, at: u32, other: Label) {
        let has = self.label();
        self.load(LOAD_BYTE, at);
        for protocol in [TCP, UDP, SCTP] {
            self.go_if(GO_IF_EQUAL, protocol, has);
        }
        self.go(other);
        self.put(has);
    }

    fn ports(&mut self, ports: &[u16], at: u32, taken: Label) {
        for at in [at, at + 2] {
            self.load(LOAD_HALF, at);
            for port in ports {
                self.go_if(GO_IF_EQUAL, (*port).into(), taken);
            }
        }
    }

    /// From a wanted end to another one, or back?
    fn ends(
        &mut self,
        wanted: &Wanted,
        of_family: fn(&IpAddr) -> bool,
        (source, destination): (u32, u32),
        both: Label,
        other: Label,
    ) {
        let of = |addresses: &[IpAddr]| addresses.iter().copied().filter(of_family).collect::<Vec<_>>();
        let (ends, others) = (of(&wanted.ends), of(&wanted.others));
        for (end_at, other_at) in [(source, destination), (destination, source)] {
            let [from_end, turned] = [(); 2].map(|()| self.label());
            self.one_of(&ends, end_at, from_end);
            self.go(turned);
            self.put(from_end);
            if wanted.others.is_empty() {
                self.go(both);
            } else {
                self.one_of(&others, other_at, both);
            }
            self.put(turned);
        }
        self.go(other);
    }

    fn one_of(&mut self, addresses: &[IpAddr], at: u32, found: Label) {
        for address in addresses {
            let next = self.label();
            let words: Vec<u32> = match address {
                IpAddr::V4(address) => vec![address.to_bits()],
                IpAddr::V6(address) => words(*address).to_vec(),
            };
            for (at, word) in (at..).step_by(4).zip(words) {
                self.load(LOAD_WORD, at);
                self.go_unless(GO_IF_EQUAL, word, next);
            }
            self.go(found);
            self.put(next);
        }
    }

    /// Moves X to the IP header of a packet in VXLAN, whose own IP header begins at `start`.
    fn unwrap(&mut self, wanted: &Wanted, start: u32, other: Label) {
        let [v4, v6, at_v4, at_v6, inner] = [(); 5].map(|()| self.label());
        self.load(LOAD_X, start);
        self.by_version(v4, v6, other);
        self.put(v4);
        self.load(LOAD_BYTE, V4_PROTOCOL);
        self.go_unless(GO_IF_EQUAL, UDP, other);
        self.load(LOAD_HALF, V4_FRAGMENT);
        self.go_if(GO_IF_SET, FRAGMENT_OFFSET, other);
        self.load(LOAD_X_HEADER_LENGTH, start);
        self.load(LOAD_HALF, start + 2);
        for port in &wanted.vxlan_ports {
            self.go_if(GO_IF_EQUAL, (*port).into(), at_v4);
        }
        self.go(other);
        self.put(at_v4);
        self.load(COPY_FROM_X, 0);
        self.load(ADD, start + WRAPPING);
        self.load(COPY_TO_X, 0);
        self.go(inner);
        self.put(v6);
        self.load(LOAD_BYTE, V6_PROTOCOL);
        self.go_unless(GO_IF_EQUAL, UDP, other);
        self.load(LOAD_HALF, V6_PAYLOAD + 2);
        for port in &wanted.vxlan_ports {
            self.go_if(GO_IF_EQUAL, (*port).into(), at_v6);
        }
        self.go(other);
        self.put(at_v6);
        self.load(LOAD_X, start + V6_PAYLOAD + WRAPPING);
        self.put(inner);
        self.is_ip(other);
        self.load(COPY_FROM_X, 0);
        self.load(ADD, ETHERNET);
        self.load(COPY_TO_X, 0);
    }

    fn finish(self) -> Vec<Instruction> {
        let Self { steps, places } = self;
        let resolved = steps.iter().enumerate().map(|(at, step)| match step {
            Step::Instruction(instruction) => *instruction,
            Step::Go(label) => {
                let place = places[label.0].expect("invariant: every label is put");
                // Labels lie ahead: classic BPF knows no way back.
                let distance = u32::try_from(place - at - 1).expect("invariant: programs are short");
                Instruction {
                    code: GO,
                    jump_true: 0,
                    jump_false: 0,
                    operand: distance,
                }
            }
        });
        resolved.collect()
    }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let bits = address.to_bits();
    [96, 64, 32, 0].map(|shift| Ipv4Addr::from_bits((bits >> shift & u128::from(u32::MAX)) as u32).to_bits())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::super::frames::{Packet, vxlan};
    use super::*;

    /// What the kernel makes of it at a device of Ethernet and at one without a link layer: a filter works at any socket.
    #[track_caller]
    fn passes(wanted: &Wanted, frame: &[u8]) -> bool {
        let [framed, bare] = [
            (LinkLayer::Ethernet, frame),
            (
                LinkLayer::Bare,
                frame.get(ETHERNET as usize..).unwrap_or_default(),
            ),
        ]
        .map(|(layer, packet)| passes_at(layer, wanted, packet));
        let is_ip = matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
        assert!(
            framed == bare || !is_ip,
            "{framed} of Ethernet, {bare} without: {frame:?}"
        );
        framed
    }

    fn passes_at(layer: LinkLayer, wanted: &Wanted, frame: &[u8]) -> bool {
        let (sender, receiver) = UnixDatagram::pair().expect("a pair");
        ebpf::packet_socket::attach(receiver.as_fd(), &program(wanted, layer)).expect("a program");
        receiver.set_nonblocking(true).expect("a socket");
        let _ = sender.send(frame); // what is filtered out is no error everywhere
        let mut buffer = [0; 2048];
        match receiver.recv(&mut buffer) {
            Ok(length) => {
                assert_eq!(length, frame.len(), "it was cut");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                false
            }
        }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    #[track_caller]
    fn check(wanted: &Wanted, packet: &Packet, expected: bool) {
        let frame = packet.frame();
        assert_eq!(passes(wanted, &frame), expected, "{packet:?} plain");
        for outer in [("192.168.77.1", "192.168.77.2"), ("fd00:77::1", "fd00:77::2")] {
            for (port, known) in [(8472, true), (4789, true), (4790, false)] {
                let wrapped = vxlan(outer, port, &frame);
                assert_eq!(
                    passes(wanted, &wrapped),
                    expected && known,
                    "{packet:?} in {outer:?}:{port}"
                );
            }
        }
    }

    fn wanted(ends: &[&str], others: &[&str]) -> Wanted {
        Wanted {
            ends: addresses(ends),
            others: addresses(others),
            vxlan_ports: vec![4789, 8472],
            ..Wanted::default()
        }
    }

    #[test]
    fn packets_of_an_end_pass_in_both_directions_also_within_vxlan() {
        let of_one = wanted(&["10.1.0.5", "fd00:1::5"], &[]);
        let rows = [
            ("10.1.0.5:4000", "10.2.0.5:80", true),
            ("10.2.0.5:80", "10.1.0.5:4000", true),
            ("10.1.0.6:4000", "10.2.0.5:80", false),
            ("[fd00:1::5]:4000", "[fd00:2::5]:80", true),
            ("[fd00:2::5]:80", "[fd00:1::5]:4000", true),
            ("[fd00:1::6]:4000", "[fd00:2::5]:80", false),
            ("[fd00:1:0:1::5]:4000", "[fd00:2::5]:80", false),
        ];
        for (from, to, expected) in rows {
            check(&of_one, &Packet::tcp(from, to), expected);
            check(&of_one, &Packet::udp(from, to, b"hello"), expected);
        }
    }

    #[test]
    fn with_another_end_both_have_to_be_there() {
        let of_two = wanted(&["10.1.0.5"], &["10.2.0.5", "10.96.0.1"]);
        let rows = [
            ("10.1.0.5:4000", "10.2.0.5:80", true),
            ("10.2.0.5:80", "10.1.0.5:4000", true),
            ("10.1.0.5:4000", "10.96.0.1:80", true),
            ("10.1.0.5:4000", "10.2.0.6:80", false),
            ("10.2.0.5:4000", "10.96.0.1:80", false),
            // Both ends are the same one's.
            ("10.1.0.5:4000", "10.1.0.5:80", false),
            // Of a version of IP in which nobody is at the other end.
            ("[fd00:1::5]:4000", "[fd00:2::5]:80", false),
        ];
        for (from, to, expected) in rows {
            check(&of_two, &Packet::tcp(from, to), expected);
        }
        check(
            &wanted(&["10.1.0.5"], &["10.1.0.5"]),
            &Packet::tcp("10.1.0.5:1", "10.1.0.5:2"),
            true,
        );
    }

    #[test]
    fn ports_and_protocols_are_looked_at_behind_options_and_not_in_later_fragments() {
        let mut by_port = wanted(&["10.1.0.5", "fd00:1::5"], &[]);
        by_port.ports = vec![80, 443];
        let tcp = |from, to| Packet::tcp(from, to);
        check(&by_port, &tcp("10.1.0.5:4000", "10.2.0.5:80"), true);
        check(&by_port, &tcp("10.2.0.5:80", "10.1.0.5:4000"), true);
        check(&by_port, &tcp("10.1.0.5:4000", "10.2.0.5:81"), false);
        check(&by_port, &tcp("[fd00:1::5]:4000", "[fd00:2::5]:80"), true);
        check(&by_port, &tcp("[fd00:1::5]:4000", "[fd00:2::5]:81"), false);
        check(
            &by_port,
            &tcp("10.1.0.5:4000", "10.2.0.5:80").with_options(12),
            true,
        );
        check(
            &by_port,
            &tcp("10.1.0.5:4000", "10.2.0.5:81").with_options(12),
            false,
        );
        check(
            &by_port,
            &tcp("10.1.0.5:4000", "10.2.0.5:81").later_fragment(),
            true,
        );
        check(
            &by_port,
            &tcp("10.1.0.6:4000", "10.2.0.5:80").later_fragment(),
            false,
        );
        check(&by_port, &Packet::icmp("10.1.0.5", "10.2.0.5"), false);
        let mut by_protocol = wanted(&["10.1.0.5", "fd00:1::5"], &[]);
        by_protocol.protocol = Some(17);
        check(
            &by_protocol,
            &Packet::udp("10.1.0.5:4000", "10.2.0.5:80", b""),
            true,
        );
        check(&by_protocol, &tcp("10.1.0.5:4000", "10.2.0.5:80"), false);
        check(
            &by_protocol,
            &Packet::udp("[fd00:1::5]:4000", "[fd00:2::5]:80", b""),
            true,
        );
        check(&by_protocol, &tcp("[fd00:1::5]:4000", "[fd00:2::5]:80"), false);
        by_protocol.protocol = Some(1);
        check(&by_protocol, &Packet::icmp("10.1.0.5", "10.2.0.5"), true);
    }

    #[test]
    fn what_is_cut_short_or_of_another_protocol_does_not_pass() {
        let of_one = wanted(&["10.1.0.5"], &[]);
        let frame = Packet::tcp("10.1.0.5:4000", "10.2.0.5:80").frame();
        for length in 1..34 {
            assert_eq!(passes(&of_one, &frame[..length]), length >= 30, "{length}");
        }
        let mut arp = frame.clone();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(!passes(&of_one, &arp));
        let wrapped = vxlan(("192.168.77.1", "192.168.77.2"), 8472, &frame);
        assert!(!passes(&of_one, &wrapped[..14 + 20 + 16 + 14 + 12]));
    }

    #[test]
    fn as_many_addresses_as_a_service_has_endpoints_are_no_way_too_far() {
        let others: Vec<String> = (0..60).map(|number| format!("fd00:2::{number:x}")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let of_many = wanted(&["fd00:1::5"], &others);
        assert!(
            program(&of_many, LinkLayer::Ethernet).len() < 4096,
            "the kernel's limit (BPF_MAXINSNS)"
        );
        check(&of_many, &Packet::tcp("[fd00:1::5]:1", "[fd00:2::3b]:2"), true);
        check(&of_many, &Packet::tcp("[fd00:2::]:1", "[fd00:1::5]:2"), true);
        check(&of_many, &Packet::tcp("[fd00:1::5]:1", "[fd00:2::3c]:2"), false);
    }
}
