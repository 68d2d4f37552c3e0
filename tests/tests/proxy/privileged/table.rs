//! The table on the kernel's datapaths.

use std::thread;

use model::IpFamily;
use proxy::datapath::iptables::Variant;
use proxy::{DatapathKind, Proxy, Settings};
use tests::privileged;

use super::host;
use crate::cases::{Becomes, From, How, LONGER_THAN_SHORT, PacketCase, Scene, scenes};
use crate::judge::{Outcome, judge, name};
use crate::node::{Knocks, Surroundings};

/// What renders the plans, and what then becomes of a row.
struct Executor {
    name: &'static str,
    datapath: fn(&Surroundings) -> DatapathKind,
    expected: fn(&PacketCase) -> Becomes,
}

/// A row in one version of IP.
type FamilyCase<'a> = (&'a PacketCase, IpFamily);

impl Executor {
    /// Runs every row and reports all that went wrong together. Scenes follow each other on one proxy; where what it
    /// is told changes, the next one finds what its predecessor left.
    fn check_table(&self) {
        let surroundings = Surroundings::build().expect("namespaces");
        let mut current: Option<(Settings, Proxy)> = None;
        let mut wrong = Vec::new();
        for scene in &scenes() {
            let settings = scene.state.settings();
            let mut proxy = match current.take() {
                Some((before, proxy)) if before == settings => proxy,
                before => {
                    drop(before);
                    self.open(&surroundings, scene.name, &settings, &mut wrong)
                }
            };
            // iptables are run in the namespace of the thread that syncs.
            let report = surroundings.node.run(|| proxy.sync(&scene.state.snapshot()));
            let report = report.expect("entered");
            if !report.failures.is_empty() || !report.common_failures.is_empty() {
                wrong.push(format!("{} {}: {report:?}", self.name, scene.name));
            }
            surroundings.forget_flows().expect("conntrack ran");
            wrong.extend(self.wrong_rows(&surroundings, scene));
            current = Some((settings, proxy));
        }
        assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// One that cannot take over from its predecessor is told, and starts from nothing.
    fn open(
        &self,
        surroundings: &Surroundings,
        scene: &str,
        settings: &Settings,
        wrong: &mut Vec<String>,
    ) -> Proxy {
        let open = || surroundings.proxy(settings.clone(), (self.datapath)(surroundings));
        open().unwrap_or_else(|error| {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            wrong.push(format!(
                "{} {scene}: not opened: {}",
                self.name,
                causes.join(": ")
            ));
            surroundings.uninstall();
            open().expect("a proxy")
        })
    }

    /// All clients knock at the same time.
    fn wrong_rows(&self, surroundings: &Surroundings, scene: &Scene) -> Vec<String> {
        thread::scope(|scope| {
            let clients: Vec<_> = From::ALL
                .into_iter()
                .map(|from| scope.spawn(move || self.wrong_rows_of(surroundings, scene, from)))
                .collect();
            let wrong = clients.into_iter().map(|client| client.join().expect("no panic"));
            wrong.flatten().collect()
        })
    }

    fn wrong_rows_of(&self, surroundings: &Surroundings, scene: &Scene, from: From) -> Vec<String> {
        let cases = scene.cases.iter().filter(|case| case.from == from);
        let cases: Vec<FamilyCase<'_>> = cases
            .flat_map(|case| case.families.iter().map(move |family| (case, *family)))
            .collect();
        if cases.is_empty() {
            return Vec::new();
        }
        let knocks = cases
            .iter()
            .enumerate()
            .map(|(number, case)| self.knocks(number, case));
        let knocks: Vec<_> = knocks.collect();
        let results = surroundings
            .knock(host(surroundings, from), &knocks)
            .expect("knock ran");
        let wrong = cases.iter().zip(results).filter_map(|((case, family), lines)| {
            let outcomes: Vec<_> = lines.iter().map(|line| Outcome::parse(line)).collect();
            let reason = judge(case, (self.expected)(case), &outcomes).err()?;
            Some(format!(
                "{} {family:?} {}\n    {reason}",
                self.name,
                name(scene.name, case)
            ))
        });
        wrong.collect()
    }

    /// Rows in which a client keeps what it got first come one after the other, and so do those of raw sockets, which
    /// hear each other's errors.
    fn knocks(&self, number: usize, (case, family): &FamilyCase<'_>) -> Knocks {
        let expected = (self.expected)(case);
        let lane = match expected {
            _ if case.how == How::Sctp => format!("sctp-{family:?}"),
            Becomes::Keeps(..) => format!("{family:?}"),
            _ => number.to_string(),
        };
        Knocks {
            lane,
            how: match case.how {
                How::Tcp => "tcp",
                How::Udp => "udp",
                How::UdpUnconnected => "udp-unconnected",
                How::Sctp => "sctp",
            },
            count: expected.attempts(),
            pause: matches!(expected, Becomes::Leaves(..)).then_some(LONGER_THAN_SHORT),
            addresses: case.to.addresses(case.how, *family),
        }
    }
}

#[test]
fn every_row_holds_with_packet_rules_alone() {
    if privileged("every row holds with packet rules alone") {
        let executor = Executor {
            name: "nftables",
            datapath: |_| DatapathKind::Nftables,
            expected: |case| case.packets,
        };
        executor.check_table();
    }
}

/// The hook sees what runs in the node's cgroup; a machine outside is not there, and neither is its cgroup.
#[test]
fn every_row_holds_with_the_socket_hook() {
    if privileged("every row holds with the socket hook") {
        let executor = Executor {
            name: "hook",
            datapath: Surroundings::hook,
            expected: |case| case.hook.unwrap_or(case.packets),
        };
        executor.check_table();
    }
}

#[test]
fn every_row_holds_with_legacy_iptables() {
    if privileged("every row holds with legacy iptables") {
        let executor = Executor {
            name: "iptables-legacy",
            datapath: |_| DatapathKind::Iptables {
                variant: Variant::Legacy,
            },
            expected: |case| case.packets,
        };
        executor.check_table();
    }
}

#[test]
fn every_row_holds_with_iptables_over_nftables() {
    if privileged("every row holds with iptables over nftables") {
        let executor = Executor {
            name: "iptables-nft",
            datapath: |_| DatapathKind::Iptables {
                variant: Variant::Nft,
            },
            expected: |case| case.packets,
        };
        executor.check_table();
    }
}
