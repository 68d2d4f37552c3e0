//! A recording answers as the kernel did: random tables, rules and settings in a namespace made for it, the same packets
//! asked of both. Needs root; says so when it is not.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netlink::{Found, Kernel, Lookup, Namespace, Netlink, Recording, sysctl};

/// Each round has tables of its own.
const ROUNDS: u64 = 60;
/// Packets of each round.
const PACKETS: u32 = 400;

/// A named namespace, removed on drop.
struct Place {
    name: String,
    namespace: Namespace,
}

impl Place {
    fn new(label: &str) -> Self {
        let name = format!("cwt-rec-{label}-{}", std::process::id());
        let namespace = Namespace::create(&name).expect("make a namespace");
        Self { name, namespace }
    }

    /// Has `ip` do each line, those of IPv6 after the others; what it refuses (a route that is there already) is refused.
    fn ip(&self, lines: &[String]) {
        for version in ["-4", "-6"] {
            let of_version = |line: &&String| line.starts_with("-6 ") == (version == "-6");
            let lines = lines.iter().filter(of_version);
            let lines: Vec<_> = lines
                .map(|line| line.trim_start_matches(['-', '4', '6', ' ']))
                .collect();
            self.batch(version, &lines);
        }
    }

    fn batch(&self, version: &str, lines: &[&str]) {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, version, "-force", "-batch", "-"]);
        command
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn().expect("ip runs");
        let text = lines.join("\n");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        child.wait().expect("it ends");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(&self.name) {
            eprintln!("left behind: {error}");
        }
    }
}

/// The same numbers each time (`splitmix64`).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = self.below(all.len() as u64);
        &all[usize::try_from(place).expect("small")]
    }

    /// Of few networks, so that prefixes lie within each other.
    fn address(&mut self, is_v6: bool) -> IpAddr {
        let (second, third, last) = (self.below(3) as u8, self.below(4) as u8, self.below(6) as u8);
        if is_v6 {
            let (second, third, last) = (u16::from(second), u16::from(third), u16::from(last));
            Ipv6Addr::new(0xfd00, second, third, 0, 0, 0, 0, last + 1).into()
        } else {
            Ipv4Addr::new(10, second, third, last + 1).into()
        }
    }

    fn prefix(&mut self, is_v6: bool) -> String {
        let lengths: &[u8] = if is_v6 {
            &[0, 16, 32, 48, 64, 128]
        } else {
            &[0, 8, 14, 16, 24, 30, 32]
        };
        let length = *self.one_of(lengths);
        let address = self.address(is_v6);
        let network = ipnetwork::IpNetwork::new(address, length).expect("a prefix");
        format!("{}/{length}", network.network())
    }
}

const DEVICES: [&str; 3] = ["a0", "b0", "c0"];
const TABLES: [&str; 4] = ["main", "100", "101", "default"];

fn devices() -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    for (number, device) in DEVICES.iter().enumerate() {
        let other = device.replace('0', "1");
        lines.push(format!("link add {device} type veth peer name {other}"));
        for end in [*device, other.as_str()] {
            lines.push(format!("link set {end} addrgenmode none"));
            lines.push(format!("link set {end} up"));
        }
        // The last has none.
        if number < 2 {
            lines.push(format!("address add 10.{number}.0.1/24 dev {device}"));
            lines.push(format!("-6 address add fd00:{number}::1/64 dev {device} nodad"));
        }
    }
    lines
}

fn route(numbers: &mut Numbers, is_v6: bool) -> String {
    let version = if is_v6 { "-6" } else { "-4" };
    let (to, table) = (numbers.prefix(is_v6), *numbers.one_of(&TABLES));
    let metric = numbers.one_of(&[1, 7, 20, 300]).to_string();
    let kind = numbers.below(14);
    let device = *numbers.one_of(&DEVICES);
    let rest = format!("table {table} metric {metric}");
    let gateway = if is_v6 { "fd00:0::9" } else { "10.0.0.9" };
    match kind {
        0 => format!("{version} route add blackhole {to} {rest}"),
        1 => format!("{version} route add unreachable {to} {rest}"),
        2 => format!("{version} route add prohibit {to} {rest}"),
        3 => format!("{version} route add throw {to} {rest}"),
        4 => format!("{version} route add {to} {rest} nexthop dev a0 nexthop dev b0"),
        5 | 6 => format!("{version} route add {to} via {gateway} dev a0 onlink {rest}"),
        7 => format!("{version} route append {to} dev {device} {rest}"),
        8 if !is_v6 => format!("{version} route add {to} dev {device} tos 4 {rest}"),
        9 if !is_v6 => format!("{version} route add local {to} dev lo table 100"),
        _ => format!("{version} route add {to} dev {device} {rest}"),
    }
}

fn rule(numbers: &mut Numbers, is_v6: bool) -> String {
    let version = if is_v6 { "-6" } else { "-4" };
    let priority = 10 + numbers.below(90);
    let mut text = format!("{version} rule add ");
    if numbers.below(6) == 0 {
        text += "not ";
    }
    text += &match numbers.below(7) {
        0 => format!("from {} ", numbers.prefix(is_v6)),
        1 => format!("to {} ", numbers.prefix(is_v6)),
        2 => format!("iif {} ", numbers.one_of(&["a0", "b0", "lo", "gone"])),
        3 => format!("fwmark {:#x}/{:#x} ", numbers.below(4), numbers.below(4)),
        4 => format!("from {} iif {} ", numbers.prefix(is_v6), numbers.one_of(&DEVICES)),
        5 => format!("to {} uidrange {}-5 ", numbers.prefix(is_v6), numbers.below(2)),
        _ => "from all ".to_owned(),
    };
    text += &format!("priority {priority} ");
    text += match numbers.below(10) {
        0 => "goto 99",
        1 => "nop",
        2 => "blackhole",
        3 => "prohibit",
        4 => "unreachable",
        5 => "lookup main suppress_prefixlength 0",
        6 => "lookup 101 suppress_prefixlength 16",
        7 => "lookup default",
        8 => "lookup 100",
        _ => "lookup 101",
    };
    text
}

fn packet(numbers: &mut Numbers, devices: &[u32]) -> Lookup {
    let is_v6 = numbers.below(2) == 0;
    let device = (numbers.below(3) > 0).then(|| *numbers.one_of(devices));
    let mut source = device.map(|_| numbers.address(is_v6));
    let mut destination = numbers.address(is_v6);
    if !is_v6 && numbers.below(12) == 0 {
        let odd = [
            "127.0.0.1",
            "127.0.3.4",
            "0.0.0.0",
            "10.0.0.255",
            "224.0.0.5",
            "255.255.255.255",
        ];
        let odd: IpAddr = numbers.one_of(&odd).parse().expect("an address");
        match (numbers.below(2), source) {
            (0, Some(_)) => source = Some(odd),
            _ if odd.is_unspecified() => {}
            _ => destination = odd,
        }
    }
    Lookup {
        destination,
        source,
        device,
        mark: u32::try_from(numbers.below(4)).expect("small"),
    }
}

fn take(place: &Place) -> Recording {
    let taken = place.namespace.run(Recording::take);
    taken.expect("in the namespace").expect("read")
}

/// What the kernel told of packets while nothing changed, and what it had then. Devices that come up bring routes when
/// the kernel gets to it.
fn told(place: &Place, packets: &[Lookup]) -> (Recording, Vec<Found>) {
    let mut kernel = Netlink::open_in(&place.namespace).expect("open a socket in it");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let before = take(place);
        let told = packets
            .iter()
            .map(|packet| kernel.look_up(packet).expect("an answer"));
        let told = told.collect();
        let after = take(place);
        if (&before.routes, &before.links, &before.addresses)
            == (&after.routes, &after.links, &after.addresses)
        {
            return (before, told);
        }
        assert!(Instant::now() < deadline, "it changes all the time");
    }
}

/// How many packets both told of, and of how many the recording said that it does not tell.
fn compare(place: &Place, numbers: &mut Numbers, log: &str) -> (u32, u32) {
    let mut kernel = Netlink::open_in(&place.namespace).expect("open a socket in it");
    let mut index = |name: &&str| kernel.link_named(name).expect("asked").expect("there").index;
    let devices: Vec<u32> = DEVICES.iter().map(&mut index).collect();
    let packets: Vec<_> = (0..PACKETS).map(|_| packet(numbers, &devices)).collect();
    let (recording, told) = told(place, &packets);
    let json = serde_json::to_string(&recording).expect("JSON");
    let recording: Recording = serde_json::from_str(&json).expect("read back");
    let (mut alike, mut open) = (0, 0);
    for (packet, told) in packets.iter().zip(told) {
        match recording.look_up(packet) {
            Ok(found) => {
                assert_eq!(found, told, "{packet:?}\n{log}");
                alike += 1;
            }
            Err(_) => open += 1,
        }
    }
    (alike, open)
}

#[test]
fn a_recording_answers_as_the_kernel_did() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED a recording answers as the kernel did: needs root");
        return;
    }
    let (mut alike, mut open, mut routed) = (0, 0, 0);
    for round in 0..ROUNDS {
        let place = Place::new(&round.to_string());
        let mut numbers = Numbers(round);
        let mut lines = devices();
        for _ in 0..60 {
            let is_v6 = numbers.below(2) == 0;
            lines.push(route(&mut numbers, is_v6));
        }
        // The first rounds have the rules that every namespace begins with.
        if round >= 4 {
            for _ in 0..8 {
                let is_v6 = numbers.below(2) == 0;
                lines.push(rule(&mut numbers, is_v6));
            }
            lines.extend(["-4", "-6"].map(|version| format!("{version} rule add priority 99 nop")));
        }
        if round % 3 == 2 {
            lines.push("link set b1 down".to_owned());
            lines.push("link set c0 down".to_owned());
        }
        place.ip(&lines);
        let mut log = lines.join("\n");
        place
            .namespace
            .run(|| {
                for device in ["all", "a0", "b0", "c0"] {
                    for (setting, end) in [
                        ("rp_filter", 3),
                        ("forwarding", 2),
                        ("accept_local", 2),
                        ("src_valid_mark", 2),
                        ("route_localnet", 2),
                        ("ignore_routes_with_linkdown", 2),
                    ] {
                        // Mostly on, so that packets come far.
                        let value = if setting == "forwarding" && numbers.below(4) > 0 {
                            1
                        } else {
                            numbers.below(end)
                        };
                        let path = format!("net/ipv4/conf/{device}/{setting}");
                        sysctl::write(&path, &value.to_string()).expect("written");
                        log += &format!("\n{path} = {value}");
                    }
                }
            })
            .expect("entered");
        let told = compare(&place, &mut numbers, &format!("round {round}\n{log}"));
        alike += told.0;
        open += told.1;
        let mut kernel = Netlink::open_in(&place.namespace).expect("open a socket in it");
        let to = Lookup {
            destination: "10.0.0.7".parse().expect("an address"),
            source: None,
            device: None,
            mark: 0,
        };
        routed += u32::from(matches!(kernel.look_up(&to), Ok(Found::Route(_))));
    }
    println!(
        "{alike} of {} packets are told alike, {open} are left open",
        alike + open
    );
    assert!(routed > 0, "tables lead somewhere");
    assert!(open * 10 < alike, "{open} of {} are left open", alike + open);
}
