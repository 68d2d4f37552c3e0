//! What to ask EC2 for next: one step at a time, of what is known and wanted. Total and deterministic.
//!
//! More comes first: an address for a pod that waits must not stand behind one that is given back.

use ipnetwork::IpNetwork;

use crate::ec2::{Amount, EniId};
use crate::warm::{Stock, Target, Targets, Unit};

/// What there is and what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What shall be ready.
    pub targets: Targets,
    /// The interfaces, by their device index.
    pub interfaces: Vec<Interface>,
    /// How many interfaces may be added.
    pub more_interfaces: u32,
    /// Pods that wait for an address.
    pub waiting: u32,
    /// Whether anything may be given back now: not while the last change is young, nor on a node that is being drained.
    pub may_give_back: bool,
}

/// An interface and how its addresses are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub id: EniId,
    /// How many units it can still be given.
    pub room: u32,
    /// What it has for pods.
    pub blocks: Vec<Block>,
    /// Whether it can go as a whole: it is ours, not the primary one, and not young.
    pub may_go: bool,
}

/// Addresses that came together, and go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// `/32` or `/28`.
    pub network: IpNetwork,
    /// How many of its addresses pods have.
    pub assigned: u32,
    /// How many came back so lately that nobody is given them.
    pub cooling: u32,
}

impl Block {
    /// How many addresses it has.
    #[must_use]
    pub fn size(&self) -> u32 {
        match self.network {
            IpNetwork::V4(network) => network.size(),
            // Nobody counts those.
            IpNetwork::V6(_) => u32::MAX,
        }
    }

    const fn is_free(&self) -> bool {
        self.assigned == 0 && self.cooling == 0
    }

    fn is_prefix(&self) -> bool {
        self.size() > 1
    }
}

impl Interface {
    fn addresses(&self) -> u32 {
        self.blocks.iter().map(Block::size).sum()
    }

    fn prefixes(&self) -> u32 {
        self.blocks.iter().filter(|block| block.is_prefix()).count() as u32
    }

    fn is_free(&self) -> bool {
        self.blocks.iter().all(Block::is_free)
    }
}

/// What to ask EC2 for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// More is wanted, and there is no room for it on this instance.
    Full,
    /// More for an interface.
    Fill {
        /// Which.
        eni: EniId,
        /// How much.
        amount: Amount,
    },
    /// Another interface.
    Add {
        /// What it shall have.
        amount: Amount,
    },
    /// What an interface gives back.
    GiveBack {
        /// Which.
        eni: EniId,
        /// What.
        blocks: Vec<IpNetwork>,
    },
    /// An interface that goes.
    Remove {
        /// Which.
        eni: EniId,
    },
}

/// Decides what is next.
#[must_use]
pub fn next_step(view: &View) -> Step {
    let stock = stock(view);
    let shortage = view.targets.shortage(&stock);
    if shortage > 0 {
        return more(view, shortage);
    }
    if !view.may_give_back {
        return Step::Rest;
    }
    let spare = |interface: &&Interface| {
        let (addresses, prefixes) = (interface.addresses(), interface.prefixes());
        interface.may_go && interface.is_free() && view.targets.can_spare(&stock, addresses, prefixes)
    };
    // The last that came goes first: those before it are fuller.
    if let Some(interface) = view.interfaces.iter().rev().find(spare) {
        return Step::Remove {
            eni: interface.id.clone(),
        };
    }
    if let Some(step) = less_of_other_units(view, &stock) {
        return step;
    }
    match view.targets.surplus(&stock) {
        0 => Step::Rest,
        surplus => less(view, surplus as usize),
    }
}

/// What there is in all.
#[must_use]
pub fn stock(view: &View) -> Stock {
    let blocks = || view.interfaces.iter().flat_map(|interface| &interface.blocks);
    let prefixes = || blocks().filter(|block| block.is_prefix());
    Stock {
        total: blocks().map(Block::size).sum(),
        assigned: blocks().map(|block| block.assigned).sum(),
        cooling: blocks().map(|block| block.cooling).sum(),
        waiting: view.waiting,
        prefixes: prefixes().count() as u32,
        free_prefixes: prefixes().filter(|block| block.is_free()).count() as u32,
    }
}

fn more(view: &View, shortage: u32) -> Step {
    let targets = &view.targets;
    // Whole interfaces are kept ready by filling them whole.
    let wanted = match targets.target {
        Target::Interfaces(_) => u32::MAX,
        Target::Prefixes(_) | Target::Addresses { .. } => shortage,
    };
    let amount = |room: u32| match targets.unit {
        Unit::Address => Amount::Addresses(wanted.min(room)),
        Unit::Prefix => Amount::Prefixes(wanted.min(room)),
    };
    if let Some(interface) = view.interfaces.iter().find(|interface| interface.room > 0) {
        return Step::Fill {
            eni: interface.id.clone(),
            amount: amount(interface.room),
        };
    }
    if view.more_interfaces == 0 {
        return Step::Full;
    }
    Step::Add {
        amount: amount(targets.units_per_interface),
    }
}

/// What came before `ENABLE_PREFIX_DELEGATION` was turned on or off goes when the rest is enough.
fn less_of_other_units(view: &View, stock: &Stock) -> Option<Step> {
    let is_other =
        |block: &&Block| block.is_free() && block.is_prefix() != (view.targets.unit == Unit::Prefix);
    view.interfaces.iter().rev().find_map(|interface| {
        let (mut addresses, mut prefixes) = (0, 0);
        let can_go = |block: &&Block| {
            let more = (addresses + block.size(), prefixes + u32::from(block.is_prefix()));
            let is_spare = view.targets.can_spare(stock, more.0, more.1);
            if is_spare {
                (addresses, prefixes) = more;
            }
            is_spare
        };
        let going = interface.blocks.iter().filter(is_other).filter(can_go);
        let blocks: Vec<IpNetwork> = going.map(|block| block.network).collect();
        (!blocks.is_empty()).then(|| Step::GiveBack {
            eni: interface.id.clone(),
            blocks,
        })
    })
}

fn less(view: &View, surplus: usize) -> Step {
    let is_spare = |block: &&Block| match view.targets.unit {
        Unit::Address => block.is_free() && !block.is_prefix(),
        Unit::Prefix => block.is_free() && block.is_prefix(),
    };
    for interface in view.interfaces.iter().rev() {
        let free = interface.blocks.iter().filter(is_spare);
        let blocks: Vec<IpNetwork> = free.map(|block| block.network).take(surplus).collect();
        if !blocks.is_empty() {
            return Step::GiveBack {
                eni: interface.id.clone(),
                blocks,
            };
        }
    }
    Step::Rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str, assigned: u32) -> Block {
        Block {
            network: text.parse().expect("a network"),
            assigned,
            cooling: 0,
        }
    }

    /// What goes of one interface that cannot go as a whole.
    #[track_caller]
    fn check(target: Target, unit: Unit, blocks: &[Block], going: &[&str]) {
        let view = View {
            targets: Targets {
                target,
                unit,
                units_per_interface: 9,
                max_pods: None,
            },
            interfaces: vec![Interface {
                id: "eni-0".into(),
                room: 9,
                blocks: blocks.to_vec(),
                may_go: false,
            }],
            more_interfaces: 0,
            waiting: 0,
            may_give_back: true,
        };
        let step = match going {
            [] => Step::Rest,
            _ => Step::GiveBack {
                eni: "eni-0".into(),
                blocks: going
                    .iter()
                    .map(|text| text.parse().expect("a network"))
                    .collect(),
            },
        };
        assert_eq!(next_step(&view), step, "{target:?} {unit:?}");
        let late = View {
            may_give_back: false,
            ..view
        };
        assert_eq!(next_step(&late), Step::Rest, "{target:?} {unit:?}");
    }

    #[test]
    fn units_from_before_a_change_of_settings_go_as_far_as_the_rest_is_enough() {
        let (one, two, three) = ("10.0.0.16/28", "10.0.0.32/28", "10.0.0.48/28");
        let (single, other) = ("10.0.1.5/32", "10.0.1.6/32");
        let free = |text| block(text, 0);
        let warm = Target::Addresses { warm: 20, minimum: 0 };
        check(warm, Unit::Address, &[free(one), free(two), free(three)], &[one]);
        check(
            warm,
            Unit::Address,
            &[block(one, 1), free(two), free(three)],
            &[two],
        );
        check(warm, Unit::Address, &[free(one), free(two)], &[]);
        let prefix = Target::Prefixes(1);
        check(
            prefix,
            Unit::Prefix,
            &[free(one), free(single), free(other)],
            &[single, other],
        );
        check(prefix, Unit::Prefix, &[block(one, 1), free(single)], &[]);
        check(
            prefix,
            Unit::Prefix,
            &[free(one), free(two), block(single, 1), free(other)],
            &[other],
        );
    }
}
