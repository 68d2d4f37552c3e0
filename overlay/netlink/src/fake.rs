//! A kernel in memory: keeps links, addresses, routes, rules, neighbours and forwarding entries, records every write, and
//! fails on demand. For tests of those who decide.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use nix::errno::Errno;

use crate::address::Address;
use crate::error::{Error, Operation, Result};
use crate::kernel::Kernel;
use crate::link::{Link, LinkChange, LinkKind, NewLink, NewLinkKind};
use crate::neighbour::{Forwarding, Neighbour};
use crate::route::{Route, RouteFilter, Way};
use crate::rule::Rule;

/// The fake. Its state is public, so that a test can damage it as an operator would.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    /// Devices.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Rules of policy routing, in no order.
    pub rules: Vec<Rule>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries.
    pub forwarding: Vec<Forwarding>,
    /// Every write that succeeded, in order: operation and object.
    pub writes: Vec<(Operation, String)>,
    faults: BTreeMap<Operation, VecDeque<Errno>>,
    last_index: u32,
}

impl FakeKernel {
    /// An empty namespace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a hardware device, as the machine's network card.
    pub fn plug(&mut self, name: &str, mac: crate::Mac, mtu: u32) -> u32 {
        let index = self.next_index();
        self.links.push(Link {
            index,
            name: name.to_owned(),
            mac: Some(mac),
            mtu,
            up: true,
            running: true,
            loopback: false,
            master: None,
            alias: None,
            parent: None,
            parent_elsewhere: false,
            kind: LinkKind::Physical,
        });
        index
    }

    /// Makes the next call of an operation fail; called twice, the next two.
    pub fn fail_next(&mut self, operation: Operation, errno: Errno) {
        self.faults.entry(operation).or_default().push_back(errno);
    }

    fn next_index(&mut self) -> u32 {
        self.last_index += 1;
        self.last_index
    }

    fn admit(&mut self, operation: Operation, object: &dyn std::fmt::Display) -> Result<()> {
        match self.faults.get_mut(&operation).and_then(VecDeque::pop_front) {
            Some(errno) => Err(Error::of(operation, object)(errno)),
            None => Ok(()),
        }
    }

    fn write(&mut self, operation: Operation, object: &dyn std::fmt::Display) -> Result<()> {
        self.admit(operation, object)?;
        self.writes.push((operation, object.to_string()));
        Ok(())
    }

    fn require_link(&self, operation: Operation, index: Option<u32>) -> Result<()> {
        let known = index.is_none_or(|index| self.links.iter().any(|link| link.index == index));
        if known {
            Ok(())
        } else {
            Err(Error::of(operation, "")(Errno::ENODEV))
        }
    }
}

/// Removes what matches, or says that nothing did.
fn remove<T>(
    from: &mut Vec<T>,
    operation: Operation,
    errno: Errno,
    matches: impl Fn(&T) -> bool,
) -> Result<()> {
    let before = from.len();
    from.retain(|item| !matches(item));
    if from.len() == before {
        Err(Error::of(operation, "")(errno))
    } else {
        Ok(())
    }
}

fn same_route(a: &Route, b: &Route) -> bool {
    (a.destination, a.table, a.metric) == (b.destination, b.table, b.metric)
}

impl Kernel for FakeKernel {
    fn links(&mut self) -> Result<Vec<Link>> {
        self.admit(Operation::ListLinks, &"")?;
        Ok(self.links.clone())
    }

    fn link_named(&mut self, name: &str) -> Result<Option<Link>> {
        self.admit(Operation::GetLink, &name)?;
        Ok(self.links.iter().find(|link| link.name == name).cloned())
    }

    fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        self.admit(Operation::GetLink, &index)?;
        Ok(self.links.iter().find(|link| link.index == index).cloned())
    }

    fn create_link(&mut self, new: &NewLink) -> Result<Link> {
        if self.links.iter().any(|link| link.name == new.name) {
            return Err(Error::of(Operation::CreateLink, &new.name)(Errno::EEXIST));
        }
        self.write(Operation::CreateLink, &new.name)?;
        let index = self.next_index();
        let random = u8::try_from(index % 256).unwrap_or(0);
        let link = Link {
            index,
            name: new.name.clone(),
            mac: Some(new.mac.unwrap_or([0x02, 0, 0, 0, 0, random])),
            mtu: new.mtu.unwrap_or(1500),
            up: new.up,
            running: new.up,
            loopback: false,
            master: None,
            alias: new.alias.clone(),
            parent: None,
            parent_elsewhere: false,
            kind: match &new.kind {
                NewLinkKind::Veth(_) => LinkKind::Veth,
                NewLinkKind::Bridge => LinkKind::Bridge,
                NewLinkKind::Vxlan(vxlan) => LinkKind::Vxlan(vxlan.clone()),
            },
        };
        self.links.push(link.clone());
        Ok(link)
    }

    fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        self.require_link(Operation::ChangeLink, Some(index))?;
        self.write(Operation::ChangeLink, &index)?;
        let LinkChange {
            up,
            mtu,
            mac,
            name,
            alias,
            master,
            namespace,
        } = change.clone();
        if namespace.is_some() {
            return self.delete_link(index);
        }
        for link in self.links.iter_mut().filter(|link| link.index == index) {
            link.up = up.unwrap_or(link.up);
            link.running = link.up;
            link.mtu = mtu.unwrap_or(link.mtu);
            link.mac = mac.or(link.mac);
            link.name = name.clone().unwrap_or_else(|| link.name.clone());
            link.alias = alias.clone().or_else(|| link.alias.clone());
            link.master = master.or(link.master).filter(|master| *master != 0);
        }
        if up == Some(false) {
            self.routes.retain(|route| route.link != Some(index)); // fib_disable_ip
        }
        Ok(())
    }

    fn delete_link(&mut self, index: u32) -> Result<()> {
        self.require_link(Operation::DeleteLink, Some(index))?;
        self.write(Operation::DeleteLink, &index)?;
        self.links.retain(|link| link.index != index);
        self.addresses.retain(|address| address.link != index);
        self.routes.retain(|route| route.link != Some(index));
        self.neighbours.retain(|neighbour| neighbour.link != index);
        self.forwarding.retain(|entry| entry.link != index);
        Ok(())
    }

    fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>> {
        self.admit(Operation::ListAddresses, &"")?;
        let of_link = |address: &&Address| link.is_none_or(|link| link == address.link);
        Ok(self.addresses.iter().filter(of_link).cloned().collect())
    }

    fn add_address(&mut self, new: &Address) -> Result<()> {
        self.require_link(Operation::AddAddress, Some(new.link))?;
        self.write(Operation::AddAddress, new)?;
        self.addresses
            .retain(|address| (address.link, address.network) != (new.link, new.network));
        self.addresses.push(new.clone());
        Ok(())
    }

    fn delete_address(&mut self, old: &Address) -> Result<()> {
        self.write(Operation::DeleteAddress, old)?;
        remove(
            &mut self.addresses,
            Operation::DeleteAddress,
            Errno::EADDRNOTAVAIL,
            |address| (address.link, address.network) == (old.link, old.network),
        )
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>> {
        self.admit(Operation::ListRoutes, &"")?;
        Ok(self
            .routes
            .iter()
            .filter(|route| filter.admits(route))
            .cloned()
            .collect())
    }

    fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>> {
        self.admit(Operation::LookUpRoute, &address)?;
        let matching = self
            .routes
            .iter()
            .filter(|route| route.destination.contains(address));
        Ok(matching.max_by_key(|route| route.destination.prefix()).cloned())
    }

    fn way_to(&mut self, address: IpAddr, _source: IpAddr, link: u32) -> Result<Option<Way>> {
        let route = self.route_to(address)?.filter(|route| route.link == Some(link));
        Ok(route.map(|route| Way {
            neighbour: Some(route.gateway.unwrap_or(address)),
            mtu: None,
            hops: None,
        }))
    }

    fn replace_route(&mut self, new: &Route) -> Result<()> {
        self.require_link(Operation::ReplaceRoute, new.link)?;
        self.write(Operation::ReplaceRoute, new)?;
        self.routes.retain(|route| !same_route(route, new));
        self.routes.push(new.clone());
        Ok(())
    }

    fn delete_route(&mut self, old: &Route) -> Result<()> {
        self.write(Operation::DeleteRoute, old)?;
        remove(&mut self.routes, Operation::DeleteRoute, Errno::ESRCH, |route| {
            same_route(route, old)
        })
    }

    fn all_rules(&mut self) -> Result<Vec<Rule>> {
        self.admit(Operation::ListRules, &"")?;
        let mut rules = self.rules.clone();
        rules.sort_by_key(|rule| (rule.is_v6, rule.priority)); // stable: those of one priority in the order they came
        Ok(rules)
    }

    fn add_rule(&mut self, new: &Rule) -> Result<()> {
        if self.rules.contains(new) {
            return self.admit(Operation::AddRule, new);
        }
        self.write(Operation::AddRule, new)?;
        self.rules.push(new.clone());
        Ok(())
    }

    fn take_over_rule(&mut self, theirs: &Rule, protocol: u8) -> Result<()> {
        self.write(Operation::TakeOverRule, theirs)?;
        let ours = Rule {
            protocol,
            ..theirs.clone()
        };
        self.rules.push(ours);
        remove(&mut self.rules, Operation::TakeOverRule, Errno::ENOENT, |rule| {
            rule == theirs
        })
    }

    fn delete_rule(&mut self, old: &Rule) -> Result<()> {
        self.write(Operation::DeleteRule, old)?;
        remove(&mut self.rules, Operation::DeleteRule, Errno::ENOENT, |rule| {
            rule == old
        })
    }

    fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>> {
        self.admit(Operation::ListNeighbours, &"")?;
        let of_link = |neighbour: &&Neighbour| link.is_none_or(|link| link == neighbour.link);
        Ok(self.neighbours.iter().filter(of_link).cloned().collect())
    }

    fn replace_neighbour(&mut self, new: &Neighbour) -> Result<()> {
        self.require_link(Operation::ReplaceNeighbour, Some(new.link))?;
        self.write(Operation::ReplaceNeighbour, new)?;
        self.neighbours
            .retain(|neighbour| (neighbour.link, neighbour.address) != (new.link, new.address));
        self.neighbours.push(new.clone());
        Ok(())
    }

    fn delete_neighbour(&mut self, old: &Neighbour) -> Result<()> {
        self.write(Operation::DeleteNeighbour, old)?;
        remove(
            &mut self.neighbours,
            Operation::DeleteNeighbour,
            Errno::ENOENT,
            |neighbour| (neighbour.link, neighbour.address) == (old.link, old.address),
        )
    }

    fn forwarding(&mut self, link: u32) -> Result<Vec<Forwarding>> {
        self.admit(Operation::ListForwarding, &link)?;
        Ok(self
            .forwarding
            .iter()
            .filter(|entry| entry.link == link)
            .cloned()
            .collect())
    }

    fn replace_forwarding(&mut self, new: &Forwarding) -> Result<()> {
        self.require_link(Operation::ReplaceForwarding, Some(new.link))?;
        self.write(Operation::ReplaceForwarding, new)?;
        self.forwarding
            .retain(|entry| (entry.link, entry.mac) != (new.link, new.mac));
        self.forwarding.push(new.clone());
        Ok(())
    }

    fn delete_forwarding(&mut self, old: &Forwarding) -> Result<()> {
        self.write(Operation::DeleteForwarding, old)?;
        remove(
            &mut self.forwarding,
            Operation::DeleteForwarding,
            Errno::ENOENT,
            |entry| (entry.link, entry.mac, entry.destination) == (old.link, old.mac, old.destination),
        )
    }
}
