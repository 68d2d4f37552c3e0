//! The `acl` plugin: who may ask what.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnetwork::IpNetwork;

use crate::name::Name;
use crate::question::Query;

/// One `acl` of a server block, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The names that the rules are for.
    pub zones: Vec<Name>,
    /// The rules; the first one that fits decides.
    pub rules: Vec<Rule>,
}

/// What is done with queries of some types from some clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What is done.
    pub action: Action,
    /// Types of queries; empty = all.
    pub types: Vec<u16>,
    /// Clients; empty = all.
    pub clients: Vec<IpNetwork>,
}

/// What becomes of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on.
    Allow,
    /// REFUSED.
    Block,
    /// NOERROR without records.
    Filter,
    /// No answer.
    Drop,
}

/// The rules of a server block, and what they did.
#[derive(Debug)]
pub struct Acl {
    options: Vec<Options>,
    /// By [`Action`].
    counts: [AtomicU64; 4],
}

impl Acl {
    /// Makes the plugin of all `acl` directives of a block, in the file's order.
    #[must_use]
    pub fn new(options: Vec<Options>) -> Self {
        Self {
            options,
            counts: Default::default(),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &[Options] {
        &self.options
    }

    /// What is done with a query, counted. A query that no rule fits goes on.
    pub fn decide(&self, query: &Query<'_>, client: IpAddr) -> Action {
        let client = client.to_canonical();
        let mut fitting = self.options.iter().filter_map(|options| {
            let covered = query.is_within(&options.zones);
            let rule = options.rules.iter().find(|rule| rule.fits(query.qtype, client));
            rule.filter(|_| covered)
        });
        let action = fitting.next().map_or(Action::Allow, |rule| rule.action);
        self.counts[action as usize].fetch_add(1, Ordering::Relaxed);
        action
    }

    /// How often an action was taken.
    #[must_use]
    pub fn count(&self, action: Action) -> u64 {
        self.counts[action as usize].load(Ordering::Relaxed)
    }
}

impl Rule {
    fn fits(&self, qtype: u16, client: IpAddr) -> bool {
        (self.types.is_empty() || self.types.contains(&qtype))
            && (self.clients.is_empty() || self.clients.iter().any(|net| net.contains(client)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::{query_packet, rtype};

    #[test]
    fn the_first_rule_that_fits_decides_and_is_counted() {
        let net = |text: &str| text.parse::<IpNetwork>().expect("network");
        let rule = |action, types: &[u16], clients: &[&str]| Rule {
            action,
            types: types.to_vec(),
            clients: clients.iter().map(|text| net(text)).collect(),
        };
        let zone = |text: &str| vec![Name::parse(text).expect("zone")];
        let gate = Acl::new(vec![
            Options {
                zones: zone("a.example"),
                rules: vec![
                    rule(Action::Allow, &[], &["10.1.0.0/16"]),
                    rule(Action::Drop, &[rtype::TXT], &[]),
                    rule(Action::Block, &[], &["10.0.0.0/8", "fd00::/8"]),
                ],
            },
            Options {
                zones: zone("."),
                rules: vec![rule(Action::Filter, &[rtype::AAAA], &["192.0.2.1/32"])],
            },
        ]);
        for (name, qtype, client, expected) in [
            ("x.a.example", rtype::A, "10.1.2.3", Action::Allow),
            // The first acl allowed it; the second one is not asked.
            ("x.a.example", rtype::TXT, "10.1.2.3", Action::Allow),
            ("a.example", rtype::TXT, "192.0.2.1", Action::Drop),
            ("a.example", rtype::A, "10.2.0.1", Action::Block),
            ("a.example", rtype::A, "::ffff:10.2.0.1", Action::Block),
            ("a.example", rtype::A, "fd00::1", Action::Block),
            ("a.example", rtype::AAAA, "192.0.2.1", Action::Filter),
            ("b.example", rtype::A, "10.2.0.1", Action::Allow),
            ("b.example", rtype::AAAA, "192.0.2.2", Action::Allow),
        ] {
            let packet = query_packet(1, Name::parse(name).expect("name").wire(), qtype);
            let query = Query::parse(&packet).expect("query");
            let action = gate.decide(&query, client.parse().expect("address"));
            assert_eq!(action, expected, "{name} {qtype} from {client}");
        }
        let counts = [Action::Allow, Action::Block, Action::Filter, Action::Drop];
        assert_eq!(counts.map(|action| gate.count(action)), [4, 3, 1, 1]);
    }
}
