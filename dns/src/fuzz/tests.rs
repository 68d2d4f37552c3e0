//! Good inputs with a few bytes changed, cut off, doubled or moved, by the same numbers on every run.

use super::*;
use crate::forward::fake_upstream::{alias, answer};
use crate::question::rcode;
use crate::xorshift::Xorshift;

struct Noise(RefCell<Xorshift>);

impl Noise {
    fn of(seed: u64) -> Self {
        Self(RefCell::new(Xorshift::new(seed)))
    }

    fn next(&self) -> u64 {
        self.0.borrow_mut().next()
    }

    fn below(&self, limit: usize) -> usize {
        self.0.borrow_mut().below(limit)
    }

    fn one_of<T: Copy>(&self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn bytes(&self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn bent(&self, mut packet: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.below(4) {
            let at = self.below(packet.len());
            packet[at] = self.next() as u8;
        }
        if self.below(4) == 0 {
            packet.truncate(self.below(packet.len()) + 1);
        }
        let more = self.below(8);
        packet.extend(self.bytes(more));
        packet
    }
}

fn query(name: &str, qtype: u16) -> Vec<u8> {
    query_packet(4711, Name::parse(name).expect("name").wire(), qtype)
}

/// Adds an OPT record with these options.
fn with_opt(mut packet: Vec<u8>, size: u16, options: &[u8]) -> Vec<u8> {
    let opt = Opt {
        udp_size: size,
        dnssec_ok: true,
        options,
        ..Opt::default()
    };
    opt.add_to(&mut packet);
    packet
}

#[test]
fn no_packet_makes_it_panic_and_every_answer_echoes_and_fits() {
    const NAMES: &[&str] = &[
        "svc1.testns.svc.cluster.local",
        "dual.testns.svc.cluster.local",
        "_http._tcp.hdls1.testns.svc.cluster.local",
        "hdls-two-ports.testns.svc.cluster.local",
        "big.testns.svc.cluster.local",
        "dup-name.hdls1.testns.svc.cluster.local",
        "external-internal.testns.svc.cluster.local",
        "loop-a.testns.svc.cluster.local",
        "172-0-0-3.testns.pod.cluster.local",
        "svc1.testns.svc.old",
        "external-internal.testns.svc.old",
        "odd.a.b.test",
        "1.0.0.10.in-addr.arpa",
        "0.10.in-addr.arpa",
        "cluster.local",
        "dns-version.cluster.local",
        "nothing.cluster.local",
        "alias.test",
        "made.test",
        "hosted.test",
        "any.wild.test",
        "www.minimal.test",
        ".",
    ];
    const TYPES: &[u16] = &[
        rtype::A,
        rtype::AAAA,
        rtype::SRV,
        rtype::PTR,
        rtype::TXT,
        rtype::MX,
        rtype::SOA,
        rtype::NS,
        rtype::CNAME,
        rtype::AXFR,
        rtype::ANY,
    ];
    let noise = Noise::of(0x9e37_79b9_7f4a_7c15);
    let [high, low] = crate::explain::OPTION.to_be_bytes();
    let asks_why = [high, low, 0, 0];
    for round in 0..60_000 {
        let good = query(noise.one_of(NAMES), noise.one_of(TYPES));
        packet(&match round % 6 {
            0 => noise.bytes(noise.below(80)),
            1 => noise.bent(with_opt(good, noise.next() as u16, &[])),
            2 => with_opt(good, noise.next() as u16, &asks_why),
            3 => good,
            _ => noise.bent(good),
        });
    }
}

#[test]
fn no_response_of_an_upstream_makes_it_panic_and_what_is_believed_echoes_and_fits() {
    let noise = Noise::of(42);
    let asked = query("www.example", rtype::A);
    let asked_with_opt = with_opt(asked.clone(), 1232, &[]);
    let many: Vec<[u8; 4]> = (0..100).map(|number| [10, 0, 0, number]).collect();
    let target = Name::parse("real.example").expect("name");
    let code = |code| crate::forward::fake_upstream::code(&asked, code);
    let good = [
        answer(&asked, &many),
        answer(&asked_with_opt, &many[..3]),
        alias(&asked, target.wire(), [9, 9, 9, 9]),
        code(rcode::NXDOMAIN),
        code(rcode::SERVFAIL),
    ];
    let behind_the_question = |response: &[u8]| {
        let records = &response[asked.len().min(response.len())..];
        [&response[2..4], &response[6..12], records].concat()
    };
    for round in 0..20_000 {
        let response = &good[noise.below(good.len())];
        upstream_reply(&match round % 3 {
            0 => noise.bent(response.clone()),
            1 => noise.bent(behind_the_question(response)),
            _ => behind_the_question(response),
        });
    }
}

#[test]
fn counts_and_records_out_of_place_break_no_answer() {
    // As many additional records promised as there can be, and none there.
    upstream_reply(&[0x84, 0, 0, 0, 0, 0, 0xff, 0xff]);
    // An OPT record that is the last answer, behind an alias that leads to no name.
    let head = [0x84, 0, 0, 2, 0, 0, 0, 0];
    let alias = [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 0];
    let opt = [0xc0, 12, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    upstream_reply(&[&head[..], &alias, &opt].concat());
}
