//! The table on real packets, and what outlives the proxy. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::IpFamily;
use tests::topology::Host;

use crate::cases::From;
use crate::cluster::{FAMILIES, FAR, NEAR, NODE, State, TCP, VIP};
use crate::node::Surroundings;

mod changes;
mod damage;
mod restart;
mod table;

fn both() -> State {
    State::new([NEAR, FAR])
}

const fn loopback(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

fn host(surroundings: &Surroundings, from: From) -> &Host {
    match from {
        From::Outside => &surroundings.outside,
        From::Stranger => &surroundings.stranger,
        From::Pod => &surroundings.pod,
        From::Near => surroundings.near(),
        From::Far => surroundings.far(),
        From::Node => &surroundings.node,
    }
}

/// What comes of one TCP connection, in `knock`'s words.
#[track_caller]
fn outcome(surroundings: &Surroundings, from: &Host, to: SocketAddr) -> String {
    surroundings.knock_once(from, "tcp", to).expect("knock ran")
}

/// Who answers one TCP connection.
#[track_caller]
fn answers(surroundings: &Surroundings, from: &Host, to: SocketAddr) -> String {
    let outcome = outcome(surroundings, from, to);
    let answer = outcome
        .strip_prefix("answer ")
        .and_then(|answer| answer.split_once(' '));
    let Some((name, _)) = answer else {
        panic!("{} to {to}: {outcome}", from.name());
    };
    name.to_owned()
}

/// Every way by which the hook and the packet rules are met.
#[track_caller]
fn assert_translated(surroundings: &Surroundings) {
    for family in FAMILIES {
        for (from, to) in [
            (&surroundings.pod, SocketAddr::new(VIP.of(family), TCP.0)),
            (&surroundings.outside, SocketAddr::new(NODE.of(family), TCP.1)),
            (&surroundings.node, SocketAddr::new(loopback(family), TCP.1)),
        ] {
            let name = answers(surroundings, from, to);
            assert!(
                ["near", "far"].contains(&name.as_str()),
                "{} to {to}: {name}",
                from.name()
            );
        }
    }
}
