//! The seam between those who decide and the kernel: [`Kernel`], and the real one, [`Netlink`].

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteMetric};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::address::{self, Address};
use crate::error::{Error, Operation, Result};
use crate::link::{self, Link, LinkChange, LinkKind, NewLink};
use crate::neighbour::{self, Entry, Forwarding, Neighbour};
use crate::netns::Namespace;
use crate::route::{self, Found, Lookup, Route, RouteFilter, Way};
use crate::rule::{self, Rule};
use crate::socket::RouteSocket;

/// Reading and writing the network state of one namespace. Every failure names its operation and object.
#[expect(
    clippy::missing_errors_doc,
    reason = "every method fails as the kernel says; `Error` tells how"
)]
pub trait Kernel {
    /// All devices.
    fn links(&mut self) -> Result<Vec<Link>>;
    /// The device of that name, if there is one.
    fn link_named(&mut self, name: &str) -> Result<Option<Link>>;
    /// The device of that index, if there is one.
    fn link_at(&mut self, index: u32) -> Result<Option<Link>>;
    /// Makes a device and returns it; `EEXIST` when the name is taken.
    fn create_link(&mut self, link: &NewLink) -> Result<Link>;
    /// Changes a device.
    fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<()>;
    /// Removes a device.
    fn delete_link(&mut self, index: u32) -> Result<()>;

    /// Addresses of one device, or of all.
    fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>>;
    /// Adds an address; one that is there already stays.
    fn add_address(&mut self, address: &Address) -> Result<()>;
    /// Removes an address.
    fn delete_address(&mut self, address: &Address) -> Result<()>;

    /// Routes of both families.
    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>>;
    /// The route that a packet to this address takes.
    fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>>;
    /// How packets from one address of this host leave for another address by a device. `None`: no route leads there by
    /// it.
    fn way_to(&mut self, address: IpAddr, source: IpAddr, link: u32) -> Result<Option<Way>>;
    /// Makes a route, or replaces the one with the same destination, table and metric.
    fn replace_route(&mut self, route: &Route) -> Result<()>;
    /// Removes a route.
    fn delete_route(&mut self, route: &Route) -> Result<()>;

    /// Rules of policy routing of both families, those of each in the order in which they are asked.
    fn all_rules(&mut self) -> Result<Vec<Rule>>;
    /// Adds a rule. The same one stays alone, which the kernel would keep beside the new one. Of an equal one of another
    /// maker some kernels have both afterwards (6.18), others that one alone: see [`Kernel::take_over_rule`].
    fn add_rule(&mut self, rule: &Rule) -> Result<()>;
    /// Puts a rule of that protocol in the place of one that somebody else made. There is no moment without.
    fn take_over_rule(&mut self, theirs: &Rule, protocol: u8) -> Result<()>;
    /// Removes a rule; where it says who made it, no other's.
    fn delete_rule(&mut self, rule: &Rule) -> Result<()>;

    /// Neighbours of one device, or of all, of both families.
    fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>>;
    /// Makes or replaces a neighbour.
    fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()>;
    /// Removes a neighbour.
    fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()>;

    /// Forwarding entries of a device.
    fn forwarding(&mut self, link: u32) -> Result<Vec<Forwarding>>;
    /// Makes a forwarding entry, or replaces the one of the same MAC address.
    fn replace_forwarding(&mut self, entry: &Forwarding) -> Result<()>;
    /// Removes a forwarding entry.
    fn delete_forwarding(&mut self, entry: &Forwarding) -> Result<()>;
}

/// An rtnetlink socket. It acts in the namespace it was opened in, from any thread.
pub struct Netlink {
    pub(crate) socket: RouteSocket,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink, or out of descriptors.
    pub fn open() -> Result<Self> {
        RouteSocket::open()
            .map(|socket| Self { socket })
            .map_err(Error::of(Operation::OpenSocket, "NETLINK_ROUTE"))
    }

    /// Opens a socket inside another namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)?
    }

    /// The other end of a veth, in whichever namespace it is; `None` where the device is gone, or no veth.
    ///
    /// # Errors
    /// When the kernel does not tell, as one before Linux 4.20 does not.
    pub fn peer_of(&mut self, veth: u32) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.header.index = veth;
        let Some(near) = self.link_message(&veth.to_string(), request)? else {
            return Ok(None);
        };
        if link::decode(near.clone()).kind != LinkKind::Veth {
            return Ok(None);
        }
        let mut request = LinkMessage::default();
        for attribute in near.attributes {
            match attribute {
                LinkAttribute::Link(index) => request.header.index = index,
                LinkAttribute::LinkNetNsId(number) => {
                    request.attributes.push(LinkAttribute::IfNetnsId(number));
                }
                _ => {}
            }
        }
        self.link(&format!("the other end of {veth}"), request)
    }

    fn link(&mut self, object: &str, request: LinkMessage) -> Result<Option<Link>> {
        Ok(self.link_message(object, request)?.map(link::decode))
    }

    fn link_message(&mut self, object: &str, request: LinkMessage) -> Result<Option<LinkMessage>> {
        let answer = match self.socket.get(Message::GetLink(request)) {
            Ok(answer) => answer,
            Err(cause) => {
                let error = Error::of(Operation::GetLink, object)(cause);
                return if error.is_absent() { Ok(None) } else { Err(error) };
            }
        };
        Ok(match answer {
            Some(Message::NewLink(message)) => Some(message),
            _ => None,
        })
    }

    /// What the routing tables make of a packet that is not sent.
    ///
    /// # Errors
    /// When the kernel does not answer; what it refuses is an answer.
    pub fn look_up(&mut self, packet: &Lookup) -> Result<Found> {
        match self.socket.get(Message::GetRoute(route::encode_packet(packet))) {
            Ok(Some(Message::NewRoute(message))) => {
                Ok(route::decode(message)
                    .map_or(Found::Other, |found| Found::Route(route::usual_table(found))))
            }
            Ok(_) => Ok(Found::Other),
            Err(cause) => {
                let error = Error::of(Operation::LookUpRoute, packet.destination)(cause);
                error.errno().map(Found::Refused).ok_or(error)
            }
        }
    }

    /// The kernel's answer; none where it has no route.
    fn look_up_route(&mut self, address: IpAddr, question: RouteMessage) -> Result<Option<RouteMessage>> {
        use nix::errno::Errno::{EHOSTUNREACH, ENETUNREACH};
        match self.socket.get(Message::GetRoute(question)) {
            Ok(Some(Message::NewRoute(route))) => Ok(Some(route)),
            Ok(_) => Ok(None),
            Err(cause) => {
                let error = Error::of(Operation::LookUpRoute, address)(cause);
                match error.errno() {
                    Some(ENETUNREACH | EHOSTUNREACH) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    fn new_rule(&mut self, operation: Operation, new: &Rule, flags: u16) -> Result<()> {
        let message = rule_message(operation, new)?;
        self.socket
            .change(Message::NewRule(message), flags)
            .map_err(Error::of(operation, new))
    }

    fn neighbour_dump(&mut self, family: AddressFamily, link: Option<u32>) -> Result<Vec<Entry>> {
        let operation = match family {
            AddressFamily::Bridge => Operation::ListForwarding,
            _ => Operation::ListNeighbours,
        };
        let messages = self
            .socket
            .dump(Message::GetNeighbour(neighbour::encode_filter(family, link)))
            .map_err(Error::of(
                operation,
                link.map_or_else(String::new, |link| format!("of link {link}")),
            ))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                Message::NewNeighbour(message) => neighbour::decode(message),
                _ => None,
            })
            .collect())
    }
}

fn rule_message(operation: Operation, rule: &Rule) -> Result<RuleMessage> {
    rule::encode(rule).ok_or_else(|| Error::of(operation, rule)(nix::errno::Errno::EINVAL))
}

impl Kernel for Netlink {
    fn links(&mut self) -> Result<Vec<Link>> {
        let messages = self
            .socket
            .dump(Message::GetLink(LinkMessage::default()))
            .map_err(Error::of(Operation::ListLinks, ""))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                Message::NewLink(message) => Some(link::decode(message)),
                _ => None,
            })
            .collect())
    }

    fn link_named(&mut self, name: &str) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(name, request)
    }

    fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.link(&index.to_string(), request)
    }

    fn create_link(&mut self, new: &NewLink) -> Result<Link> {
        self.socket
            .change(Message::NewLink(link::encode_new(new)), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(Error::of(Operation::CreateLink, &new.name))?;
        let absent = || Error::of(Operation::CreateLink, &new.name)(nix::errno::Errno::ENODEV);
        let mut made = self.link_named(&new.name)?.ok_or_else(absent)?;
        if let Some(alias) = &new.alias {
            let change = LinkChange {
                alias: Some(alias.clone()),
                ..LinkChange::default()
            };
            self.change_link(made.index, &change)?;
            made.alias = Some(alias.clone());
        }
        Ok(made)
    }

    fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        self.socket
            .change(Message::SetLink(link::encode_change(index, change)), 0)
            .map_err(Error::of(Operation::ChangeLink, index))
    }

    fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.socket
            .change(Message::DelLink(request), 0)
            .map_err(Error::of(Operation::DeleteLink, index))
    }

    fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>> {
        let mut request = AddressMessage::default();
        request.header.index = link.unwrap_or(0);
        let messages = self
            .socket
            .dump(Message::GetAddress(request))
            .map_err(Error::of(Operation::ListAddresses, ""))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                Message::NewAddress(message) => address::decode(&message),
                _ => None,
            })
            // IPv6 does the filtering only since 4.20, IPv4 too: older kernels send all.
            .filter(|address| link.is_none_or(|link| link == address.link))
            .collect())
    }

    fn add_address(&mut self, new: &Address) -> Result<()> {
        self.socket
            .change(
                Message::NewAddress(address::encode(new)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .map_err(Error::of(Operation::AddAddress, new))
    }

    fn delete_address(&mut self, old: &Address) -> Result<()> {
        self.socket
            .change(Message::DelAddress(address::encode(old)), 0)
            .map_err(Error::of(Operation::DeleteAddress, old))
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let messages = match self
                .socket
                .dump(Message::GetRoute(route::encode_filter(filter, family)))
            {
                Ok(messages) => messages,
                Err(cause) => {
                    // A table that does not exist yet, or a kernel without IPv6.
                    let error = Error::of(Operation::ListRoutes, "")(cause);
                    if error.is_absent() || error.errno() == Some(nix::errno::Errno::EOPNOTSUPP) {
                        continue;
                    }
                    return Err(error);
                }
            };
            routes.extend(
                messages
                    .into_iter()
                    .filter_map(|message| match message {
                        Message::NewRoute(message) => route::decode(message),
                        _ => None,
                    })
                    .filter(|route| filter.admits(route)),
            );
        }
        Ok(routes)
    }

    fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>> {
        let answer = self.look_up_route(address, route::encode_lookup(address))?;
        Ok(answer.and_then(|mut message| {
            // The answer is marked as a clone of the route it was found by.
            message
                .header
                .flags
                .remove(netlink_packet_route::route::RouteFlags::Cloned);
            route::decode(message)
        }))
    }

    fn way_to(&mut self, address: IpAddr, source: IpAddr, link: u32) -> Result<Option<Way>> {
        let mut look_up = |as_in_table| {
            let question = route::encode_lookup_from(source, address, link, as_in_table);
            self.look_up_route(address, question)
        };
        let (Some(in_table), Some(chosen)) = (look_up(true)?, look_up(false)?) else {
            return Ok(None);
        };
        // IPv6 prefers the device that is asked for, and answers with another one where there is no route by it.
        if !route::leaves_by(&chosen, link) {
            return Ok(None);
        }
        let mtu = |metric: &RouteMetric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        };
        let hops = |metric: &RouteMetric| match metric {
            RouteMetric::Hoplimit(hops) => Some(*hops),
            _ => None,
        };
        Ok(Some(Way {
            neighbour: route::neighbour(&in_table, address),
            mtu: route::metric(&chosen, mtu),
            hops: route::metric(&chosen, hops),
        }))
    }

    fn replace_route(&mut self, new: &Route) -> Result<()> {
        self.socket
            .change(
                Message::NewRoute(route::encode(new)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .map_err(Error::of(Operation::ReplaceRoute, new))
    }

    fn delete_route(&mut self, old: &Route) -> Result<()> {
        self.socket
            .change(Message::DelRoute(route::encode(old)), 0)
            .map_err(Error::of(Operation::DeleteRoute, old))
    }

    fn all_rules(&mut self) -> Result<Vec<Rule>> {
        let mut rules = self.rules()?;
        match self.rules_v6() {
            Ok(more) => rules.extend(more),
            // A kernel without IPv6.
            Err(error) if error.errno() == Some(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        Ok(rules)
    }

    fn add_rule(&mut self, new: &Rule) -> Result<()> {
        let added = self.new_rule(Operation::AddRule, new, NLM_F_CREATE | NLM_F_EXCL);
        added.or_else(|error| if error.is_present() { Ok(()) } else { Err(error) })
    }

    fn take_over_rule(&mut self, theirs: &Rule, protocol: u8) -> Result<()> {
        let ours = Rule {
            protocol,
            ..theirs.clone()
        };
        // Behind theirs, which goes by its maker's number, or, where it has none, as the first of the two
        // (`fib_nl_newrule`, `rule_find`).
        self.new_rule(Operation::TakeOverRule, &ours, NLM_F_CREATE)?;
        self.delete_rule(theirs)
    }

    fn delete_rule(&mut self, old: &Rule) -> Result<()> {
        let message = rule_message(Operation::DeleteRule, old)?;
        self.socket
            .change(Message::DelRule(message), 0)
            .map_err(Error::of(Operation::DeleteRule, old))
    }

    fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            neighbours.extend(self.neighbour_dump(family, link)?.into_iter().filter_map(
                |entry| match entry {
                    Entry::Neighbour(neighbour) => Some(neighbour),
                    Entry::Forwarding(_) => None,
                },
            ));
        }
        Ok(neighbours)
    }

    fn replace_neighbour(&mut self, new: &Neighbour) -> Result<()> {
        self.socket
            .change(
                Message::NewNeighbour(neighbour::encode(new)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .map_err(Error::of(Operation::ReplaceNeighbour, new))
    }

    fn delete_neighbour(&mut self, old: &Neighbour) -> Result<()> {
        self.socket
            .change(Message::DelNeighbour(neighbour::encode(old)), 0)
            .map_err(Error::of(Operation::DeleteNeighbour, old))
    }

    fn forwarding(&mut self, link: u32) -> Result<Vec<Forwarding>> {
        let entries = self.neighbour_dump(AddressFamily::Bridge, Some(link))?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Forwarding(entry) if entry.link == link => Some(entry),
                _ => None,
            })
            .collect())
    }

    fn replace_forwarding(&mut self, new: &Forwarding) -> Result<()> {
        self.socket
            .change(
                Message::NewNeighbour(neighbour::encode_forwarding(new)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .map_err(Error::of(Operation::ReplaceForwarding, new))
    }

    fn delete_forwarding(&mut self, old: &Forwarding) -> Result<()> {
        self.socket
            .change(Message::DelNeighbour(neighbour::encode_forwarding(old)), 0)
            .map_err(Error::of(Operation::DeleteForwarding, old))
    }
}
