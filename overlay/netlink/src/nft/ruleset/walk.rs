//! A packet that nobody sends, led through a [`Ruleset`]: `nft_do_chain` in words, with what is not known left open.

use std::net::IpAddr;

use super::{Base, ChainName, Part, ReadRule, ReadSet, RuleFamily, Ruleset, Slot};
use crate::nft::{ElementData, Verdict};

/// Jumps within each other that the kernel allows (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// A device, as rules see it. None at all has index 0 and no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// What is known of a packet at a hook; `None` is what is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: IpAddr,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Port of the source.
    pub source_port: Option<u16>,
    /// Port of the destination.
    pub destination_port: Option<u16>,
    /// State of its connection as one bit: invalid 1, established 2, related 4, new 8, untracked 64.
    pub state: Option<u32>,
    /// Whether it answers the packet that began its connection.
    pub is_reply: bool,
    /// The device that it came by.
    pub comes_by: Option<Device>,
    /// The device that it leaves by.
    pub leaves_by: Option<Device>,
}

/// What rules have made of a packet so far: goes with it from chain to chain, and from hook to hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its mark; none: not known.
    mark: Option<u32>,
    /// Whether a tracked connection gives it other ends, which are not those of an untracked packet.
    is_by_connection: bool,
    /// Whether its connection may not be tracked.
    may_be_untracked: bool,
    /// Whether it may be another packet, or nowhere: something translates it, or was not evaluated and may do that.
    may_differ: bool,
}

impl Carried {
    /// Of a packet that has met no rule yet. `is_by_connection`: what is said of its ends supposes that connections are
    /// tracked.
    #[must_use]
    pub const fn new(mark: Option<u32>, is_by_connection: bool) -> Self {
        Self {
            mark,
            is_by_connection,
            may_be_untracked: false,
            may_differ: false,
        }
    }

    const fn untrack(&mut self) {
        self.may_be_untracked = true;
        self.may_differ |= self.is_by_connection;
    }
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A rule, by its handle.
    Rule(ChainName, u64),
    /// What the chain does with what no rule decides.
    Policy(ChainName),
}

/// What a base chain makes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It goes on.
    Passes,
    /// It is dropped or rejected.
    Stopped {
        /// By whom.
        by: Place,
        /// Whether an answer says so.
        is_rejected: bool,
        /// Whether it gets there in any case, and as what it is said to be: no rule before, of this chain or another
        /// one, that was not evaluated may have let it pass or changed it, and none has translated it.
        is_certain: bool,
    },
    /// Its source or destination is another one from there on.
    Translated(Place),
}

/// A base chain that a packet meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// Which.
    pub base: Base,
    /// How many rules were looked at, those of other chains that they lead to included.
    pub rules: usize,
    /// Rules that may decide about the packet and of which it is not known whether they do.
    pub unknown: Vec<(ChainName, u64)>,
    /// What becomes of it.
    pub end: End,
}

/// Leads a packet through the base chains of a hook ([`Base::hook`]) that one of its version of IP meets, until
/// one stops it for certain. `packet` is what it is when it comes to a chain; none: it does not come there. `carried` is
/// what the hooks before have made of it.
pub fn follow(
    ruleset: &Ruleset,
    hook: u32,
    carried: &mut Carried,
    packet: impl Fn(&Base) -> Option<Packet>,
) -> Vec<Met> {
    let mut met = Vec::new();
    for base in ruleset.bases.iter().filter(|base| base.hook == hook) {
        let Some(packet) = packet(base) else { continue };
        let family = if packet.destination.is_ipv4() {
            RuleFamily::Ip
        } else {
            RuleFamily::Ip6
        };
        if ![family, RuleFamily::Inet, RuleFamily::Netdev].contains(&base.name.family) {
            continue;
        }
        let mut walk = Walk {
            ruleset,
            packet: &packet,
            rules: 0,
            unknown: Vec::new(),
            // Chains of type nat are for tracked connections.
            may_leave: base.is_nat && carried.may_be_untracked,
            carried,
        };
        let end = match walk.chain(&base.name, 0) {
            Some(end) => end,
            None if base.drops => walk.stopped(Place::Policy(base.name.clone()), false),
            None => End::Passes,
        };
        let is_over = matches!(end, End::Stopped { is_certain: true, .. });
        met.push(Met {
            base: base.clone(),
            rules: walk.rules,
            unknown: walk.unknown,
            end,
        });
        if is_over {
            break;
        }
    }
    met
}

/// Whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Unknown,
}

impl Holds {
    const fn inverted_if(self, is_inverted: bool) -> Self {
        match (self, is_inverted) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (same, _) => same,
        }
    }

    const fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// What a rule does with a packet that it means.
#[derive(Clone, Debug)]
enum Action {
    Verdict(Verdict),
    Reject,
    Translate,
    /// One of these: it is not known which, or none.
    OneOf(Vec<Verdict>),
    /// Nobody here knows.
    Unknown,
}

impl Action {
    /// Whether it stops the packet, and does nothing else.
    fn only_stops(&self) -> bool {
        match self {
            Self::Reject | Self::Verdict(Verdict::Drop) => true,
            Self::OneOf(verdicts) => verdicts.iter().all(|verdict| *verdict == Verdict::Drop),
            _ => false,
        }
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    carried: &'a mut Carried,
    rules: usize,
    unknown: Vec<(ChainName, u64)>,
    /// Whether a rule of this base chain that was not evaluated may have led the packet elsewhere.
    may_leave: bool,
}

impl Walk<'_> {
    fn stopped(&self, by: Place, is_rejected: bool) -> End {
        End::Stopped {
            by,
            is_rejected,
            is_certain: !self.may_leave && !self.carried.may_differ,
        }
    }

    /// None: it comes back from the chain.
    fn chain(&mut self, name: &ChainName, depth: usize) -> Option<End> {
        for rule in self.ruleset.rules.get(name).into_iter().flatten() {
            self.rules += 1;
            let (holds, action) = self.rule(name, rule);
            let Some(action) = action.filter(|_| holds != Holds::No) else {
                continue;
            };
            let by = || Place::Rule(name.clone(), rule.handle);
            let to = |chain: &String| ChainName {
                chain: chain.clone(),
                ..name.clone()
            };
            match (holds, &action) {
                (Holds::Yes, Action::Reject) => return Some(self.stopped(by(), true)),
                (Holds::Yes, Action::Verdict(Verdict::Drop)) => return Some(self.stopped(by(), false)),
                (Holds::Yes, Action::Verdict(Verdict::Accept)) => return Some(End::Passes),
                (Holds::Yes, Action::Verdict(Verdict::Return)) => return None,
                (Holds::Yes, Action::Translate) => {
                    self.carried.may_differ = true;
                    return Some(End::Translated(by()));
                }
                (Holds::Yes, Action::Verdict(Verdict::Jump(chain))) if depth < DEPTH => {
                    if let Some(end) = self.chain(&to(chain), depth + 1) {
                        return Some(end);
                    }
                }
                (Holds::Yes, Action::Verdict(Verdict::Goto(chain))) if depth < DEPTH => {
                    return self.chain(&to(chain), depth + 1);
                }
                _ => {
                    self.may_leave |= !action.only_stops();
                    self.leave_open(name, &action, depth);
                    self.unknown.push((name.clone(), rule.handle));
                }
            }
        }
        None
    }

    /// Notes what may have become of the packet by an action of which it is not known whether it is taken.
    fn leave_open(&mut self, chain: &ChainName, action: &Action, depth: usize) {
        match action {
            Action::Translate | Action::Unknown => self.carried.may_differ = true,
            Action::Verdict(verdict) => self.leave_verdict_open(chain, verdict, depth),
            Action::OneOf(verdicts) => {
                for verdict in verdicts {
                    self.leave_verdict_open(chain, verdict, depth);
                }
            }
            Action::Reject => {}
        }
    }

    fn leave_verdict_open(&mut self, chain: &ChainName, verdict: &Verdict, depth: usize) {
        let (Verdict::Jump(to) | Verdict::Goto(to)) = verdict else {
            return;
        };
        let to = ChainName {
            chain: to.clone(),
            ..chain.clone()
        };
        let ruleset = self.ruleset;
        let rules = ruleset.rules.get(&to).into_iter().flatten();
        for part in rules.flat_map(|rule| &rule.parts) {
            // Nothing is certain any more, whatever else may happen to it.
            if self.carried.may_differ {
                return;
            }
            match part {
                Part::SetsMark => self.carried.mark = None,
                Part::Untracks => self.carried.untrack(),
                Part::Translates => self.carried.may_differ = true,
                Part::Other(name) => self.carried.may_differ |= may_change(name),
                Part::Verdict(verdict) if depth < DEPTH => self.leave_verdict_open(&to, verdict, depth + 1),
                Part::Lookup {
                    set,
                    is_verdict: true,
                    ..
                } if depth < DEPTH => {
                    let action = self.any_of(&to, set);
                    self.leave_open(&to, &action, depth + 1);
                }
                _ => {}
            }
        }
    }

    /// What a map of verdicts may say.
    fn any_of(&self, chain: &ChainName, set: &str) -> Action {
        let key = (chain.family, chain.table.clone(), set.to_owned());
        let set = self.ruleset.sets.get(&key);
        let Some(elements) = set.and_then(|set| set.elements.as_ref()) else {
            return Action::Unknown;
        };
        let verdicts = elements.iter().filter_map(|(element, _)| match &element.data {
            ElementData::Verdict(verdict) => Some(verdict.clone()),
            _ => None,
        });
        Action::OneOf(verdicts.collect())
    }

    /// The state of its connection.
    fn state(&self) -> Option<u32> {
        self.packet.state.filter(|_| !self.carried.may_be_untracked)
    }

    /// Whether a rule means the packet, and what it does with it; none where it decides nothing.
    fn rule(&mut self, chain: &ChainName, rule: &ReadRule) -> (Holds, Option<Action>) {
        let mut registers = Registers::default();
        let mut all = Holds::Yes;
        for part in &rule.parts {
            let holds = match part {
                Part::Meta { key, to } => {
                    registers.load(*to, self.meta(*key));
                    Holds::Yes
                }
                Part::Conntrack { key, to } => {
                    registers.load(*to, self.conntrack(*key));
                    Holds::Yes
                }
                Part::Payload {
                    base,
                    offset,
                    len,
                    to,
                } => {
                    registers.load(*to, self.payload(*base, *offset as usize, *len as usize));
                    Holds::Yes
                }
                Part::Immediate { to, value } => {
                    registers.load(*to, value.iter().copied().map(Some).collect());
                    Holds::Yes
                }
                Part::Bitwise { from, to, mask, xor } => {
                    let value = registers.read(*from, mask.len());
                    let changed = value.into_iter().zip(mask.iter().zip(xor));
                    let changed = changed.map(|(byte, (mask, xor))| match (byte, mask) {
                        (_, 0) => Some(*xor),
                        (byte, mask) => byte.map(|byte| byte & mask ^ xor),
                    });
                    let changed = changed.collect();
                    registers.load(*to, changed);
                    Holds::Yes
                }
                Part::Compare {
                    from,
                    operation,
                    value,
                } => compare(&registers.read(*from, value.len()), *operation, value),
                Part::Range {
                    from,
                    is_inverted,
                    first,
                    last,
                } => {
                    let value = registers.read(*from, first.len());
                    let within = match known(&value) {
                        Some(value) => Holds::of(*first <= value && value <= *last),
                        None => Holds::Unknown,
                    };
                    within.inverted_if(*is_inverted)
                }
                Part::XtState { states, is_inverted } => {
                    let holds = self
                        .state()
                        .map(|state| Holds::of(u32::from(*states) & state != 0));
                    holds.unwrap_or(Holds::Unknown).inverted_if(*is_inverted)
                }
                Part::Lookup {
                    set,
                    from,
                    to,
                    is_verdict,
                    is_inverted,
                } => {
                    let key = (chain.family, chain.table.clone(), set.clone());
                    let found = match self.ruleset.sets.get(&key) {
                        Some(set) => find(set, &registers, *from),
                        None => Err(()),
                    };
                    match (found, to, *is_verdict) {
                        (Ok(Some(ElementData::Verdict(verdict))), _, true) => {
                            return (all, Some(Action::Verdict(verdict)));
                        }
                        (Ok(Some(ElementData::Value(value))), Some(to), _) => {
                            registers.load(*to, value.into_iter().map(Some).collect());
                            Holds::Yes
                        }
                        (Ok(found), _, _) => Holds::of(found.is_some()).inverted_if(*is_inverted),
                        (Err(()), _, true) => return (Holds::Unknown, Some(self.any_of(chain, set))),
                        (Err(()), _, false) => {
                            registers = Registers::default();
                            Holds::Unknown
                        }
                    }
                }
                Part::Verdict(verdict) => return (all, Some(Action::Verdict(verdict.clone()))),
                Part::Reject => return (all, Some(Action::Reject)),
                Part::Translates => return (all, Some(Action::Translate)),
                Part::Passive => Holds::Yes,
                Part::SetsMark => {
                    self.carried.mark = None;
                    Holds::Yes
                }
                Part::Untracks => {
                    self.carried.untrack();
                    Holds::Yes
                }
                Part::Other(name) if DECIDES.contains(&name.as_str()) => {
                    return (Holds::Unknown, Some(Action::Unknown));
                }
                Part::Other(name) => {
                    self.carried.may_differ |= may_change(name);
                    registers = Registers::default();
                    Holds::Unknown
                }
            };
            match holds {
                Holds::No => return (Holds::No, None),
                Holds::Unknown => all = Holds::Unknown,
                Holds::Yes => {}
            }
        }
        (all, None)
    }

    /// `enum nft_meta_keys`.
    fn meta(&self, key: u32) -> Value {
        let packet = self.packet;
        let name = |device: &Option<Device>| match device {
            Some(Device { name, .. }) => {
                let mut bytes: Value = name.bytes().map(Some).collect();
                bytes.resize(IFNAMSIZ, Some(0));
                bytes
            }
            None => vec![None; IFNAMSIZ],
        };
        let index = |device: &Option<Device>| device.as_ref().map(|device| device.index);
        match key {
            1 if packet.destination.is_ipv4() => all_known(&[0x08, 0x00]),
            1 => all_known(&[0x86, 0xdd]),
            3 => number(self.carried.mark),
            4 => number(index(&packet.comes_by)),
            5 => number(index(&packet.leaves_by)),
            6 => name(&packet.comes_by),
            7 => name(&packet.leaves_by),
            15 if packet.destination.is_ipv4() => all_known(&[2]),
            15 => all_known(&[10]),
            16 => all_known(&[packet.protocol]),
            _ => vec![None; IFNAMSIZ],
        }
    }

    /// `enum nft_ct_keys`.
    fn conntrack(&self, key: u32) -> Value {
        match key {
            0 => number(self.state()),
            1 if !self.carried.may_be_untracked => all_known(&[u8::from(self.packet.is_reply)]),
            _ => vec![None; IFNAMSIZ],
        }
    }

    /// RFC 791 §3.1, RFC 8200 §3, RFC 9293 §3.1: what of the headers is known.
    fn payload(&self, base: u32, offset: usize, len: usize) -> Value {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let packet = self.packet;
        let mut header: Value = vec![None; 64];
        let mut put = |at: usize, bytes: &[u8]| {
            for (place, byte) in header.iter_mut().skip(at).zip(bytes) {
                *place = Some(*byte);
            }
        };
        match (base, packet.destination) {
            (NETWORK, IpAddr::V4(to)) => {
                put(0, &[0x45]);
                put(9, &[packet.protocol]);
                put(16, &to.octets());
                if let Some(IpAddr::V4(from)) = packet.source {
                    put(12, &from.octets());
                }
            }
            (NETWORK, IpAddr::V6(to)) => {
                put(6, &[packet.protocol]);
                put(24, &to.octets());
                if let Some(IpAddr::V6(from)) = packet.source {
                    put(8, &from.octets());
                }
            }
            (TRANSPORT, _) => {
                if let Some(port) = packet.source_port {
                    put(0, &port.to_be_bytes());
                }
                if let Some(port) = packet.destination_port {
                    put(2, &port.to_be_bytes());
                }
                if i32::from(packet.protocol) == libc::IPPROTO_TCP {
                    // SYN, or SYN and ACK.
                    put(13, &[if packet.is_reply { 0x12 } else { 0x02 }]);
                }
            }
            _ => {}
        }
        let mut value: Value = header.into_iter().skip(offset).take(len).collect();
        value.resize(len, None);
        value
    }
}

/// Bytes, as far as they are known.
type Value = Vec<Option<u8>>;

fn all_known(bytes: &[u8]) -> Value {
    bytes.iter().copied().map(Some).collect()
}

/// In host order.
fn number(value: Option<u32>) -> Value {
    value.map_or_else(|| vec![None; 4], |value| all_known(&value.to_ne_bytes()))
}

fn known(value: &[Option<u8>]) -> Option<Vec<u8>> {
    value.iter().copied().collect()
}

/// `NFT_REG32_00` to `NFT_REG32_15`.
struct Registers([Option<u8>; 64]);

impl Default for Registers {
    fn default() -> Self {
        Self([None; 64])
    }
}

impl Registers {
    /// A value ends with the register that its last byte is in, which is zero behind it (`nft_reg_store8` and its like).
    fn load(&mut self, to: Slot, mut value: Value) {
        value.resize(value.len().next_multiple_of(4), Some(0));
        for (place, byte) in self.0.iter_mut().skip(to.0).zip(value) {
            *place = byte;
        }
    }

    fn read(&self, from: Slot, len: usize) -> Value {
        let mut value: Value = self.0.iter().copied().skip(from.0).take(len).collect();
        value.resize(len, None);
        value
    }
}

/// `enum nft_cmp_ops`: bytes are compared as `memcmp` does.
fn compare(present: &[Option<u8>], operation: u32, value: &[u8]) -> Holds {
    const EQUAL: u32 = 0;
    const NOT_EQUAL: u32 = 1;
    let differs = present
        .iter()
        .zip(value)
        .any(|(byte, wanted)| byte.is_some_and(|byte| byte != *wanted));
    match (known(present), operation) {
        (_, EQUAL) if differs => Holds::No,
        (_, NOT_EQUAL) if differs => Holds::Yes,
        (None, _) => Holds::Unknown,
        (Some(present), EQUAL) => Holds::of(present == value),
        (Some(present), NOT_EQUAL) => Holds::of(present != value),
        (Some(present), 2) => Holds::of(*present < *value),
        (Some(present), 3) => Holds::of(*present <= *value),
        (Some(present), 4) => Holds::of(*present > *value),
        (Some(present), 5) => Holds::of(*present >= *value),
        (Some(_), _) => Holds::Unknown,
    }
}

/// What lies beside a key, where it is there. An error: it cannot be told.
fn find(set: &ReadSet, registers: &Registers, from: Slot) -> Result<Option<ElementData>, ()> {
    let elements = set.elements.as_ref().ok_or(())?;
    let Some((first, _)) = elements.first() else {
        return Ok(None);
    };
    // Fields of keys are ranges of their own there.
    if set.is_concatenated && set.has_intervals {
        return Err(());
    }
    let value = registers.read(from, first.key.len());
    if !set.has_intervals {
        let mut is_open = false;
        for (element, _) in elements {
            match compare(&value, 0, &element.key) {
                Holds::Yes => return Ok(Some(element.data.clone())),
                Holds::Unknown => is_open = true,
                Holds::No => {}
            }
        }
        return if is_open { Err(()) } else { Ok(None) };
    }
    let key = known(&value).ok_or(())?;
    // The last that begins at the key or before it, if it has not ended before the key.
    let within = elements
        .iter()
        .take_while(|(element, _)| element.key <= key)
        .last();
    Ok(match within {
        Some((element, false)) if element.end.as_ref().is_none_or(|end| key <= *end) => {
            Some(element.data.clone())
        }
        _ => None,
    })
}

/// Expressions that may end a packet's way by themselves.
const DECIDES: [&str; 6] = ["queue", "fwd", "tproxy", "synproxy", "target", "dup"];
/// A write to a header, beside those: reads are understood.
const WRITES: &str = "payload";

/// Whether an expression that is not understood may make another packet of it, or lead it elsewhere.
fn may_change(name: &str) -> bool {
    name == WRITES || DECIDES.contains(&name)
}

const IFNAMSIZ: usize = 16;
