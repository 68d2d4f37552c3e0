//! What a network namespace has, read once, to be asked later and elsewhere: [`Recording`] answers as the kernel did.

mod look_up;

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use serde::{Deserialize, Serialize};

pub use look_up::Undecided;

use crate::address::Address;
use crate::conntrack::Usage;
use crate::error::{Error, Operation, Result};
use crate::kernel::{Kernel, Netlink};
use crate::link::{Link, LinkKind};
use crate::neighbour::{Forwarding, Neighbour};
use crate::route::{self, Route, RouteFilter};
use crate::rule::Rule;
use crate::sysctl;

/// Settings of each device that IPv4 goes by when it looks up a route, below `net/ipv4/conf/DEVICE`.
const SETTINGS: [&str; 5] = [
    "accept_local",
    "forwarding",
    "route_localnet",
    "rp_filter",
    "src_valid_mark",
];

/// What one network namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recording {
    /// The kernel's version, as `uname -r` says it.
    pub kernel: String,
    /// Devices.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// Rules of policy routing, those of each version of IP in their order.
    pub rules: Vec<Rule>,
    /// Routes of all tables, in the kernel's order.
    pub routes: Vec<TableRoute>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of tunnels.
    pub forwarding: Vec<Forwarding>,
    /// Settings by which routes are chosen, by their paths below `/proc/sys`.
    pub settings: BTreeMap<String, String>,
    /// How full the table of connections is; none where nothing is tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracked: Option<Usage>,
}

/// A route, with what a look-up has to know of it beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableRoute {
    /// What a [`Route`] tells.
    #[serde(flatten)]
    pub route: Route,
    /// Devices of its next hops, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub several: Vec<u32>,
    /// Only packets of this type of service take it; 0: all.
    #[serde(default)]
    pub tos: u8,
    /// Only packets from there take it: routes of IPv6 alone have this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<(IpAddr, u8)>,
    /// No packet takes it: its devices are down, or nothing is plugged into them and a setting says that this matters
    /// (`ignore_routes_with_linkdown`, `fib_nexthop_info`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

impl Recording {
    /// Reads all of the calling thread's network namespace. What changes meanwhile may be told in part.
    ///
    /// # Errors
    /// When the kernel does not tell something.
    pub fn take() -> Result<Self> {
        let mut kernel = Netlink::open()?;
        let links = kernel.links()?;
        let rules = kernel.all_rules()?;
        let mut forwarding = Vec::new();
        for link in links
            .iter()
            .filter(|link| matches!(link.kind, LinkKind::Vxlan(_)))
        {
            forwarding.extend(kernel.forwarding(link.index)?);
        }
        Ok(Self {
            kernel: release(),
            addresses: kernel.addresses(None)?,
            rules,
            routes: kernel.table_routes()?,
            neighbours: kernel.neighbours(None)?,
            forwarding,
            settings: settings(&links),
            tracked: Usage::read(),
            links,
        })
    }

    /// The device of that name, if there is one.
    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The device of that index, if there is one.
    #[must_use]
    pub fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }
}

fn release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Those that there are: what is missing, a look-up tells that asks for it.
fn settings(links: &[Link]) -> BTreeMap<String, String> {
    let names = || links.iter().map(|link| link.name.as_str()).chain(["all"]);
    let paths = SETTINGS
        .iter()
        .flat_map(|setting| names().map(move |device| format!("net/ipv4/conf/{device}/{setting}")));
    paths
        .filter_map(|path| Some((path.clone(), sysctl::read(&path).ok()?)))
        .collect()
}

impl Netlink {
    /// The routes of all tables, also those with several next hops.
    fn table_routes(&mut self) -> Result<Vec<TableRoute>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = route::encode_filter(&RouteFilter::default(), family);
            let messages = match self.socket.dump(Message::GetRoute(request)) {
                Ok(messages) => messages,
                Err(cause) => {
                    let error = Error::of(Operation::ListRoutes, "")(cause);
                    if family == AddressFamily::Inet6 && error.errno() == Some(nix::errno::Errno::EOPNOTSUPP)
                    {
                        continue;
                    }
                    return Err(error);
                }
            };
            routes.extend(messages.into_iter().filter_map(|message| match message {
                Message::NewRoute(message) => table_route(message),
                _ => None,
            }));
        }
        Ok(routes)
    }
}

fn table_route(mut message: RouteMessage) -> Option<TableRoute> {
    let (source_bits, tos) = (message.header.source_prefix_length, message.header.tos);
    let mut dead = message.header.flags.contains(RouteFlags::Dead);
    let mut several = Vec::new();
    let mut from = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                several = hops.iter().map(|hop| hop.interface_index).collect();
                dead = hops.iter().all(|hop| hop.flags.bits() & DEAD != 0);
            }
            RouteAttribute::Source(RouteAddress::Inet6(address)) => {
                from = Some((IpAddr::from(*address), source_bits));
            }
            _ => {}
        }
    }
    message
        .attributes
        .retain(|attribute| !matches!(attribute, RouteAttribute::MultiPath(_)));
    let is_of_several = !several.is_empty();
    let mut route = route::decode(message)?;
    if is_of_several {
        route.link = None;
    }
    Some(TableRoute {
        route,
        several,
        tos,
        from,
        dead,
    })
}

/// `RTNH_F_DEAD` of `linux/rtnetlink.h`.
const DEAD: u8 = 1;

#[cfg(test)]
mod tests;
