//! The rules that kube-proxy writes for `web` with its servers 1 and 2, in its two forms: as `pkg/proxy/iptables` and
//! `pkg/proxy/nftables` of Kubernetes 1.33 name chains, maps and marks, cut down to what packets to `web` meet.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use tests::process;

use crate::world::{NODE_PORT, PORT, TARGET_PORT, VIP, VIP_V6, World, server};

/// How kube-proxy was told to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables,
    Nftables,
}

/// What differs between the versions of IP.
struct Family {
    index: usize,
    vip: &'static str,
    pods: &'static str,
    /// `ip` or `ip6`, in nft's words.
    word: &'static str,
    nft_address: &'static str,
    loopback: &'static str,
    restore: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        index: 0,
        vip: VIP,
        pods: "10.244.0.0/16",
        word: "ip",
        nft_address: "ipv4_addr",
        loopback: "127.0.0.0/8",
        restore: "iptables-nft-restore",
    },
    Family {
        index: 1,
        vip: VIP_V6,
        pods: "fd00:244::/32",
        word: "ip6",
        nft_address: "ipv6_addr",
        loopback: "::1",
        restore: "ip6tables-nft-restore",
    },
];

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];
const SERVERS: [u16; 2] = [1, 2];

impl Family {
    fn endpoint(&self, number: u16) -> IpAddr {
        server(number)[self.index]
    }

    fn target(&self, number: u16) -> String {
        match self.endpoint(number) {
            IpAddr::V4(address) => format!("{address}:{TARGET_PORT}"),
            IpAddr::V6(address) => format!("[{address}]:{TARGET_PORT}"),
        }
    }

    fn iptables(&self) -> String {
        let mut chains = String::new();
        let mut rules = String::from(
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
             -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n",
        );
        for chain in [
            "SERVICES",
            "NODEPORTS",
            "MARK-MASQ",
            "POSTROUTING",
            "PROXY-CANARY",
        ] {
            let _infallible = writeln!(chains, ":KUBE-{chain} - [0:0]");
        }
        for protocol in PROTOCOLS {
            let (more_chains, more_rules) = self.iptables_port(protocol);
            chains.push_str(&more_chains);
            rules.push_str(&more_rules);
        }
        rules.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n");
        format!("*nat\n{chains}{rules}COMMIT\n")
    }

    /// Chains, and rules, of one port.
    fn iptables_port(&self, protocol: &str) -> (String, String) {
        let (vip, pods) = (self.vip, self.pods);
        // Names end in 16 letters of base32, which are a hash elsewhere.
        let chain = |kind: &str, number: u16| {
            let number = char::from_digit(u32::from(number) + 2, 10).unwrap_or('X');
            format!("KUBE-{kind}-{:A<15}{number}", protocol.to_uppercase())
        };
        let (service, external) = (chain("SVC", 0), chain("EXT", 0));
        let mut chains = format!(":{service} - [0:0]\n:{external} - [0:0]\n");
        let mut rules = format!(
            "-A KUBE-SERVICES -d {vip} -p {protocol} -m {protocol} --dport {PORT} -j {service}\n\
             -A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {NODE_PORT} -j {external}\n\
             -A {external} -j KUBE-MARK-MASQ\n\
             -A {external} -j {service}\n\
             -A {service} ! -s {pods} -d {vip} -p {protocol} -m {protocol} --dport {PORT} -j KUBE-MARK-MASQ\n"
        );
        for (number, draw) in SERVERS
            .into_iter()
            .zip(["-m statistic --mode random --probability 0.5 ", ""])
        {
            let (endpoint, address, target) =
                (chain("SEP", number), self.endpoint(number), self.target(number));
            let _infallible = writeln!(chains, ":{endpoint} - [0:0]");
            let _infallible = write!(
                rules,
                "-A {service} {draw}-j {endpoint}\n\
                 -A {endpoint} -s {address} -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {target}\n"
            );
        }
        (chains, rules)
    }

    fn nftables(&self) -> String {
        let Self {
            vip,
            word,
            nft_address,
            loopback,
            ..
        } = self;
        let port = |protocol: &str| self.nftables_port(protocol);
        let ports: String = PROTOCOLS.map(port).concat();
        format!(
            "table {word} kube-proxy {{
                set cluster-ips {{ type {nft_address}; elements = {{ {vip} }}; }}
                map service-ips {{ type {nft_address} . inet_proto . inet_service : verdict; elements = {{
                    {vip} . tcp . {PORT} : goto service-tcp, {vip} . udp . {PORT} : goto service-udp }}; }}
                map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{
                    tcp . {NODE_PORT} : goto external-tcp, udp . {NODE_PORT} : goto external-udp }}; }}
                chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
                chain masquerading {{
                    meta mark & 0x4000 == 0 return;
                    meta mark set meta mark xor 0x4000;
                    masquerade fully-random;
                }}
                {ports}
                chain cluster-ips-check {{ {word} daddr @cluster-ips reject; }}
                chain services {{
                    {word} daddr . meta l4proto . th dport vmap @service-ips;
                    fib daddr type local {word} daddr != {loopback} meta l4proto . th dport vmap @service-nodeports;
                }}
                chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
                chain nat-output {{ type nat hook output priority -100; jump services; }}
                chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
                chain filter-forward {{ type filter hook forward priority -110; ct state new jump cluster-ips-check; }}
                chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
            }}\n"
        )
    }

    fn nftables_port(&self, protocol: &str) -> String {
        let Self { vip, pods, word, .. } = self;
        let mut chains = String::new();
        for number in SERVERS {
            let (address, target) = (self.endpoint(number), self.target(number));
            let _infallible = write!(
                chains,
                "chain endpoint-{number}-{protocol} {{
                    {word} saddr {address} jump mark-for-masquerade;
                    meta l4proto {protocol} dnat to {target};
                }}\n"
            );
        }
        format!(
            "{chains}
            chain service-{protocol} {{
                {word} daddr {vip} {protocol} dport {PORT} {word} saddr != {pods} jump mark-for-masquerade;
                numgen random mod 2 vmap {{ 0 : goto endpoint-1-{protocol}, 1 : goto endpoint-2-{protocol} }};
            }}
            chain external-{protocol} {{ jump mark-for-masquerade; goto service-{protocol}; }}\n"
        )
    }
}

/// Writes the rules, as kube-proxy does at its start.
pub fn write_rules(world: &World, mode: Mode) -> Result<()> {
    let place = world.node.place();
    for family in &FAMILIES {
        let (program, arguments, text) = match mode {
            Mode::Iptables => (family.restore, ["--noflush", "--wait"], family.iptables()),
            Mode::Nftables => ("nft", ["-f", "-"], family.nftables()),
        };
        let mut command = process::command(&place, program);
        let output = process::run_in(&place, command.args(arguments), text.as_bytes())?;
        ensure!(output.status.success(), "{program}: {}\n{text}", output.stderr);
    }
    Ok(())
}

/// What is there of it, in lines.
pub fn rules_left(world: &World) -> Result<Vec<String>> {
    let mut left: Vec<String> = world
        .rules()
        .into_iter()
        .filter(|rule| rule.contains("kube-proxy"))
        .collect();
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let output = world.node.host().command(program, &[])?;
        ensure!(output.status.success(), "{program}: {}", output.stderr);
        left.extend(
            output
                .stdout
                .lines()
                .filter(|line| line.contains("KUBE-"))
                .map(str::to_owned),
        );
    }
    Ok(left)
}
