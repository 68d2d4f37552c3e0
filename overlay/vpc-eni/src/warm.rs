//! How many addresses a node keeps ready: amazon-vpc-cni-k8s's targets (docs/eni-and-ip-target.md and
//! docs/prefix-and-ip-target.md there).
//!
//! Pods that wait for an address count as if they had one: what is kept ready comes on top of them.

use serde::{Deserialize, Serialize};

/// How many addresses a `/28` block has.
pub const PREFIX_SIZE: u32 = 16;

/// What EC2 is asked for: single addresses, or blocks of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// Secondary addresses.
    #[default]
    Address,
    /// `/28` blocks (`ENABLE_PREFIX_DELEGATION`).
    Prefix,
}

impl Unit {
    /// How many pods one serves.
    #[must_use]
    pub const fn size(self) -> u32 {
        match self {
            Self::Address => 1,
            Self::Prefix => PREFIX_SIZE,
        }
    }
}

/// What shall be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// `WARM_ENI_TARGET`: the addresses of so many whole interfaces.
    Interfaces(u32),
    /// `WARM_PREFIX_TARGET`: so many blocks.
    Prefixes(u32),
    /// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`: so many free ones, and so many in all.
    Addresses {
        /// Free ones.
        warm: u32,
        /// In all.
        minimum: u32,
    },
}

/// What there is, in addresses where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// That pods can have.
    pub total: u32,
    /// That pods have.
    pub assigned: u32,
    /// That came back too lately to be given again.
    pub cooling: u32,
    /// Pods that wait for one.
    pub waiting: u32,
    /// Blocks in all.
    pub prefixes: u32,
    /// Blocks of which no pod has an address.
    pub free_prefixes: u32,
}

impl Stock {
    /// Those that nobody has, less those that pods wait for. The ones that cool down count: they will be free soon.
    fn available(&self) -> i64 {
        i64::from(self.total) - i64::from(self.used())
    }

    const fn used(&self) -> u32 {
        self.assigned.saturating_add(self.waiting)
    }

    /// How many pods wait for whom there is no address now. One that cools down is of no use to them.
    fn unserved(&self) -> u32 {
        let free = self
            .total
            .saturating_sub(self.assigned)
            .saturating_sub(self.cooling);
        self.waiting.saturating_sub(free)
    }

    fn is_dry(&self) -> bool {
        self.unserved() > 0
    }
}

/// Targets, with what they are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// What shall be ready.
    pub target: Target,
    /// What EC2 is asked for.
    pub unit: Unit,
    /// How many units an interface can have.
    pub units_per_interface: u32,
    /// How many pods the kubelet takes; more addresses than that are never kept. None: as many as there are addresses.
    pub max_pods: Option<u32>,
}

impl Targets {
    /// How many units are missing.
    #[must_use]
    pub fn shortage(&self, stock: &Stock) -> u32 {
        let is_enough_for_all = self.max_pods.is_some_and(|most| stock.total >= most);
        if is_enough_for_all && !stock.is_dry() {
            return 0;
        }
        let missing = self.wanted(stock) - i64::from(stock.total);
        units(missing.max(stock.unserved().into()), self.unit)
    }

    /// How many addresses there shall be in all.
    fn wanted(&self, stock: &Stock) -> i64 {
        let used = i64::from(stock.used());
        let size = i64::from(self.unit.size());
        match self.target {
            Target::Interfaces(warm) => {
                let whole = i64::from(self.units_per_interface) * size;
                let ready = whole * i64::from(warm);
                // Without a target there is none in advance, but one for who comes next.
                if warm == 0 && stock.available() <= 0 {
                    used + 1
                } else {
                    used + ready
                }
            }
            Target::Prefixes(0) if stock.available() <= 0 => used + 1,
            Target::Prefixes(warm) => used + size * i64::from(warm),
            Target::Addresses { warm, minimum } => (used + i64::from(warm)).max(i64::from(minimum)),
        }
    }

    /// How many units are more than needed; of those that are wholly free.
    #[must_use]
    pub fn surplus(&self, stock: &Stock) -> u32 {
        if stock.is_dry() {
            return 0;
        }
        match (self.target, self.unit) {
            // Whole interfaces go, or none.
            (Target::Interfaces(_), _) => 0,
            (Target::Prefixes(warm), _) => stock.free_prefixes.saturating_sub(warm.max(1)),
            (Target::Addresses { warm, minimum }, Unit::Address) => {
                let by_warm = stock.available() - i64::from(warm);
                let by_minimum = i64::from(stock.total) - i64::from(minimum);
                u32::try_from(by_warm.min(by_minimum).max(0)).unwrap_or(u32::MAX)
            }
            (Target::Addresses { warm, minimum }, Unit::Prefix) => {
                let needed = units(i64::from(stock.used()) + i64::from(warm), self.unit);
                let needed = needed.max(units(i64::from(minimum), self.unit));
                stock.prefixes.saturating_sub(needed).min(stock.free_prefixes)
            }
        }
    }

    /// Whether an interface with so many addresses, none in use, can go as a whole.
    #[must_use]
    pub fn can_spare(&self, stock: &Stock, addresses: u32, prefixes: u32) -> bool {
        let less = Stock {
            total: stock.total.saturating_sub(addresses),
            prefixes: stock.prefixes.saturating_sub(prefixes),
            free_prefixes: stock.free_prefixes.saturating_sub(prefixes),
            ..*stock
        };
        self.shortage(&less) == 0 && !less.is_dry() && i64::from(less.total) >= self.wanted(&less)
    }
}

/// So many addresses in units, the last one perhaps not whole.
fn units(addresses: i64, unit: Unit) -> u32 {
    let addresses = u32::try_from(addresses).unwrap_or(u32::MAX);
    addresses.div_ceil(unit.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: Target, unit: Unit, stock: Stock, shortage: u32, surplus: u32) {
        let targets = Targets {
            target,
            unit,
            units_per_interface: 3,
            max_pods: Some(1000),
        };
        let found = (targets.shortage(&stock), targets.surplus(&stock));
        assert_eq!(found, (shortage, surplus), "{target:?} {unit:?} {stock:?}");
    }

    fn addresses(total: u32, assigned: u32, waiting: u32) -> Stock {
        Stock {
            total,
            assigned,
            waiting,
            ..Stock::default()
        }
    }

    fn prefixes(prefixes: u32, assigned: u32, free_prefixes: u32) -> Stock {
        Stock {
            total: prefixes * PREFIX_SIZE,
            assigned,
            prefixes,
            free_prefixes,
            ..Stock::default()
        }
    }

    #[test]
    fn what_is_kept_ready_comes_on_top_of_what_pods_have_and_wait_for() {
        let target = Target::Addresses { warm: 2, minimum: 5 };
        for (stock, shortage, surplus) in [
            (addresses(0, 0, 0), 5, 0),
            (addresses(5, 0, 0), 0, 0),
            (addresses(5, 3, 0), 0, 0),
            (addresses(5, 4, 0), 1, 0),
            (addresses(5, 5, 0), 2, 0),
            (addresses(5, 5, 4), 6, 0),
            (addresses(9, 5, 0), 0, 2),
            (addresses(9, 0, 0), 0, 4),
        ] {
            check(target, Unit::Address, stock, shortage, surplus);
        }
    }

    #[test]
    fn who_waits_is_not_served_by_addresses_that_cool_down() {
        let target = Target::Addresses { warm: 1, minimum: 1 };
        let stock = |waiting, cooling| Stock {
            cooling,
            ..addresses(6, 3, waiting)
        };
        for (stock, shortage, surplus) in [
            (stock(0, 3), 0, 2),
            (stock(1, 2), 0, 1),
            (stock(1, 3), 1, 0),
            (stock(2, 3), 2, 0),
            (stock(3, 0), 1, 0),
        ] {
            check(target, Unit::Address, stock, shortage, surplus);
        }
    }

    #[test]
    fn blocks_are_counted_whole() {
        let target = Target::Addresses { warm: 7, minimum: 20 };
        for (stock, shortage, surplus) in [
            (prefixes(0, 0, 0), 2, 0),
            (prefixes(2, 5, 1), 0, 0),
            (prefixes(2, 25, 0), 0, 0),
            (prefixes(2, 26, 0), 1, 0),
            (prefixes(4, 5, 3), 0, 2),
            // Free addresses, but no free block.
            (prefixes(4, 5, 0), 0, 0),
        ] {
            check(target, Unit::Prefix, stock, shortage, surplus);
        }
        for (stock, shortage, surplus) in [
            (prefixes(1, 0, 1), 0, 0),
            (prefixes(1, 1, 0), 1, 0),
            (prefixes(2, 16, 1), 0, 0),
            (prefixes(2, 17, 0), 1, 0),
            (prefixes(3, 5, 2), 0, 1),
            // Half used blocks keep a free one from going: it would be asked for again with the next pod.
            (prefixes(3, 16, 1), 0, 0),
        ] {
            check(Target::Prefixes(1), Unit::Prefix, stock, shortage, surplus);
        }
    }

    #[test]
    fn without_a_target_there_is_one_for_who_comes_next() {
        check(Target::Interfaces(0), Unit::Address, addresses(3, 2, 0), 0, 0);
        check(Target::Interfaces(0), Unit::Address, addresses(3, 3, 0), 1, 0);
        check(Target::Prefixes(0), Unit::Prefix, prefixes(1, 16, 0), 1, 0);
        check(Target::Prefixes(0), Unit::Prefix, prefixes(1, 15, 0), 0, 0);
        check(Target::Prefixes(0), Unit::Prefix, prefixes(2, 15, 1), 0, 0);
    }

    #[test]
    fn more_addresses_than_the_kubelet_takes_pods_are_kept_for_nobody_but_who_waits() {
        let targets = Targets {
            target: Target::Interfaces(1),
            unit: Unit::Address,
            units_per_interface: 3,
            max_pods: Some(6),
        };
        assert_eq!(targets.shortage(&addresses(6, 5, 0)), 0);
        assert_eq!(targets.shortage(&addresses(5, 5, 0)), 3);
        assert_eq!(targets.shortage(&addresses(6, 6, 1)), 4);
    }
}
