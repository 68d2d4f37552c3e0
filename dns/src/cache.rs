//! The `cache` plugin: responses of upstreams, kept for as long as they say.
//!
//! Cluster names never get here: they are answered from the watched state, so that a new Service is never hidden by
//! an old denial.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::{adopt, code_of, fit, hide_ad};
use crate::name::{MAX_NAME, Name};
use crate::question::{HEADER, Query, Record, expand_name, flag, flags_of, rcode, rtype, set_flags};

/// Independent parts of the cache, so that threads rarely wait for each other.
const SHARDS: usize = 64;
/// How long a new answer is waited for before an entry is asked for again.
const REFRESH_PAUSE: Duration = Duration::from_secs(5);
/// Room for an entry of a usual size. A larger one takes the room of several, so that memory has a bound as well.
const BYTES_PER_ENTRY: u64 = 1024;
/// A part of the cache has room for the largest answer, however few entries it may have.
const LEAST_BYTES: u64 = 128 << 10;
/// What an entry takes beside its key and its response.
const ENTRY_OVERHEAD: usize = size_of::<(Box<[u8]>, Entry)>() + 32;
/// Name, type, class, DO and CD.
const MAX_KEY: usize = MAX_NAME + 6;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names that are cached; empty = all that the server block serves.
    pub zones: Vec<Name>,
    /// Responses with answers. Default: 9984 of them for 5 s to 1 h.
    pub success: Part,
    /// Denials (RFC 2308). Default: 9984 of them for 5 s to 30 min.
    pub denial: Part,
    /// How long a SERVFAIL is kept, at most 5 min. Default 5 s.
    pub servfail: Duration,
    /// Which entries are asked for again before they end. Default: none.
    pub prefetch: Option<Prefetch>,
    /// For how long entries are served beyond their end. Default: they are not.
    pub stale: Option<Stale>,
    /// Whether TTLs come back as they came in instead of counting down. Default: they count down.
    pub keeps_ttl: bool,
}

/// Entries that are asked for often are asked for again before they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Queries that make an entry wanted.
    pub amount: u32,
    /// The longest pause between two of them. Default 1 min.
    pub pause: Duration,
    /// The part of its life that is left then, in percent, 10 to 90. Default 10. A second at least.
    pub percentage: u32,
}

/// Entries are served beyond their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How far. Default 1 h.
    pub beyond: Duration,
    /// Whether upstreams are asked first. Default: the client has its answer first.
    pub verifies: bool,
}

/// One half of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The most entries. They take 1 KiB each on the average, or those that do not fit are not kept.
    pub capacity: usize,
    /// Longest time that an entry is kept, in seconds.
    pub max_ttl: u32,
    /// Shortest time that an entry is kept, in seconds.
    pub min_ttl: u32,
    /// Zones whose responses of this kind are not kept.
    pub disabled: Vec<Name>,
}

impl Default for Options {
    fn default() -> Self {
        let part = |max_ttl| Part {
            capacity: 9984,
            max_ttl,
            min_ttl: 5,
            disabled: Vec::new(),
        };
        Self {
            zones: Vec::new(),
            success: part(3600),
            denial: part(1800),
            servfail: Duration::from_secs(5),
            prefetch: None,
            stale: None,
            keeps_ttl: false,
        }
    }
}

/// What is kept of a response.
struct Entry {
    /// The response without its OPT record.
    response: Box<[u8]>,
    /// Where TTLs stand in it.
    ttls_at: Box<[u16]>,
    stored: Instant,
    keep: Duration,
    kind: Kind,
    /// Queries for it without a longer pause than `prefetch` allows, and when the last one was.
    hits: (u32, Instant),
    /// When it was last asked for again.
    refreshed: Option<Instant>,
}

/// The halves of the cache, each with a capacity of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Success,
    Denial,
    /// A SERVFAIL, which takes the place of a denial.
    Failure,
}

/// What was found for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing that may be served now.
    Nothing,
    /// An answer; it is written.
    Fresh,
    /// An answer that should be asked for again meanwhile; it is written.
    Aging,
}

/// What a cache did. Success and denial come apart, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Queries that came here.
    pub requests: u64,
    /// Those that found an answer.
    pub hits: [u64; 2],
    /// Answers that were asked for again before their end.
    pub prefetches: u64,
    /// Answers served beyond their end.
    pub served_stale: u64,
    /// Entries that made room for others.
    pub evictions: [u64; 2],
    /// Entries.
    pub entries: [u64; 2],
    /// Bytes that they take.
    pub bytes: [u64; 2],
}

/// One part of the cache.
#[derive(Default)]
struct CacheShard {
    entries: HashMap<Box<[u8]>, Entry>,
    counts: Counts,
}

/// A cache of one server block.
pub struct Cache {
    options: Options,
    shards: Vec<Mutex<CacheShard>>,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for shard in &self.shards {
            let counts = shard.lock().unwrap_or_else(PoisonError::into_inner).counts;
            total.requests += counts.requests;
            total.prefetches += counts.prefetches;
            total.served_stale += counts.served_stale;
            for half in 0..2 {
                total.hits[half] += counts.hits[half];
                total.evictions[half] += counts.evictions[half];
                total.entries[half] += counts.entries[half];
                total.bytes[half] += counts.bytes[half];
            }
        }
        total
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts().entries.iter().sum::<u64>() as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the kept response for a query into `out`, if there is one that may be served before upstreams are asked.
    /// A query that finds nothing comes here twice, and is counted by [`Cache::note_miss`].
    pub fn answer(&self, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) -> Found {
        let mut buffer = [0; MAX_KEY];
        let key = key(query, &mut buffer);
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let CacheShard { entries, counts } = &mut *shard;
        let Some(entry) = entries.get_mut(key) else {
            return Found::Nothing;
        };
        let age = now.saturating_duration_since(entry.stored);
        let found = if age < entry.keep {
            let is_wanted = self
                .options
                .prefetch
                .is_some_and(|prefetch| entry.is_wanted(prefetch, age, now));
            if is_wanted && entry.begin_refresh(now) {
                counts.prefetches += 1;
                Found::Aging
            } else {
                Found::Fresh
            }
        } else {
            match self.options.stale {
                Some(stale) if !stale.verifies && entry.is_good(Some(stale), age) => {
                    counts.served_stale += 1;
                    match entry.begin_refresh(now) {
                        true => Found::Aging,
                        false => Found::Fresh,
                    }
                }
                _ => return Found::Nothing,
            }
        };
        counts.requests += 1;
        counts.hits[entry.kind.half()] += 1;
        entry.write(age, self.options.keeps_ttl, out);
        drop(shard);
        adopt(out, query);
        hide_ad(out, query);
        fit(out, query, limit);
        found
    }

    /// Counts a query for which upstreams are asked. It may have come here twice: in its serving thread, and again
    /// where it could wait.
    pub fn note_miss(&self, query: &Query<'_>) {
        let mut buffer = [0; MAX_KEY];
        let shard = self.shard(key(query, &mut buffer));
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.counts.requests += 1;
    }

    /// Writes a response beyond its end, for when upstreams do not answer. False = there is none.
    pub fn answer_stale(&self, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) -> bool {
        let mut buffer = [0; MAX_KEY];
        let key = key(query, &mut buffer);
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let CacheShard { entries, counts } = &mut *shard;
        let Some(entry) = entries.get(key) else {
            return false;
        };
        let age = now.saturating_duration_since(entry.stored);
        if !entry.is_good(self.options.stale, age) {
            return false;
        }
        counts.served_stale += 1;
        entry.write(age, self.options.keeps_ttl, out);
        drop(shard);
        adopt(out, query);
        hide_ad(out, query);
        fit(out, query, limit);
        true
    }

    /// Keeps a response, if it is of a kind that may be kept, and caps its TTLs at the time for which it is kept: the
    /// first client sees what the later ones see.
    pub fn store(&self, query: &Query<'_>, response: &mut [u8], now: Instant) {
        if !self.options.zones.is_empty() && !query.is_within(&self.options.zones) {
            return;
        }
        let Some((mut stripped, ttls_at, lifetime)) = dissect(query, response) else {
            return;
        };
        let (part, keep, kind) = match lifetime {
            Lifetime::Success(ttl) => (
                &self.options.success,
                self.options.success.clamp(ttl),
                Kind::Success,
            ),
            Lifetime::Denial(ttl) => (&self.options.denial, self.options.denial.clamp(ttl), Kind::Denial),
            Lifetime::Failure => (&self.options.denial, self.options.servfail, Kind::Failure),
        };
        if keep.is_zero() || query.is_within(&part.disabled) {
            return;
        }
        for at in &ttls_at {
            change_ttl(&mut stripped, *at, |ttl| ttl.min(keep.as_secs() as u32));
            change_ttl(response, *at, |ttl| ttl.min(keep.as_secs() as u32));
        }
        let mut buffer = [0; MAX_KEY];
        let key = key(query, &mut buffer);
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let old = shard.entries.get(key);
        let hits = old.map_or((0, now), |old| old.hits);
        let still_good =
            old.is_some_and(|old| old.is_good(self.options.stale, now.saturating_duration_since(old.stored)));
        if kind == Kind::Failure && still_good {
            // A failure that passes must not cost what is served meanwhile.
            return;
        }
        let entry = Entry {
            response: stripped,
            ttls_at,
            stored: now,
            keep,
            kind,
            hits,
            refreshed: None,
        };
        shard.insert(key, entry, part.capacity.div_ceil(SHARDS) as u64, now);
    }

    /// The upper bits of the hash tell names apart that differ in few digits; the lower ones do not.
    fn shard(&self, key: &[u8]) -> &Mutex<CacheShard> {
        const GOLDEN: u32 = 0x9e37_79b9;
        let hash = key.iter().fold(0u32, |hash, byte| {
            (hash.rotate_left(5) ^ u32::from(*byte)).wrapping_mul(GOLDEN)
        });
        &self.shards[(hash >> 16) as usize % SHARDS]
    }
}

impl Kind {
    fn half(self) -> usize {
        match self {
            Self::Success => 0,
            Self::Denial | Self::Failure => 1,
        }
    }
}

impl Entry {
    /// Notes a query, and says whether enough of them came and the end is near.
    fn is_wanted(&mut self, prefetch: Prefetch, age: Duration, now: Instant) -> bool {
        let (count, last) = self.hits;
        let goes_on = now.saturating_duration_since(last) < prefetch.pause;
        self.hits = (if goes_on { count.saturating_add(1) } else { 1 }, now);
        let left = self.keep.saturating_sub(age);
        let near = (self.keep * prefetch.percentage / 100).max(Duration::from_secs(1));
        self.hits.0 >= prefetch.amount && left <= near
    }

    /// Whether the caller is the one to ask for it again.
    fn begin_refresh(&mut self, now: Instant) -> bool {
        let is_under_way = self
            .refreshed
            .is_some_and(|at| now.saturating_duration_since(at) < REFRESH_PAUSE);
        if !is_under_way {
            self.refreshed = Some(now);
        }
        !is_under_way
    }

    /// Whether it may be served at this age, beyond its end where `stale` says so. A failure never is.
    fn is_good(&self, stale: Option<Stale>, age: Duration) -> bool {
        let beyond = stale.map_or(Duration::ZERO, |stale| stale.beyond);
        self.kind != Kind::Failure && age < self.keep + beyond
    }

    /// Bytes that it takes under a key.
    fn size(&self, key: &[u8]) -> u64 {
        (key.len() + self.response.len() + size_of_val(&*self.ttls_at) + ENTRY_OVERHEAD) as u64
    }

    fn write(&self, age: Duration, keeps_ttl: bool, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.response);
        let is_stale = age >= self.keep;
        if keeps_ttl && !is_stale {
            return;
        }
        // What is beyond its end is to be asked for again at once.
        let lowered = if is_stale { u32::MAX } else { age.as_secs() as u32 };
        for at in &self.ttls_at {
            change_ttl(out, *at, |ttl| ttl.saturating_sub(lowered));
        }
    }
}

impl CacheShard {
    /// Puts an entry in the place of the old one, and takes out others of its half until there are no more than
    /// `capacity`, and no more bytes than these may have.
    fn insert(&mut self, key: &[u8], entry: Entry, capacity: u64, now: Instant) {
        self.remove(key);
        let (half, size) = (entry.kind.half(), entry.size(key));
        let most_bytes = LEAST_BYTES.max(capacity * BYTES_PER_ENTRY);
        while self.counts.entries[half] >= capacity || self.counts.bytes[half] + size > most_bytes {
            if !self.make_room(half, now) {
                return;
            }
            self.counts.evictions[half] += 1;
        }
        self.counts.entries[half] += 1;
        self.counts.bytes[half] += size;
        self.entries.insert(key.into(), entry);
    }

    /// Takes out one entry of a half: an expired one among the first few, else any. False = there is none.
    fn make_room(&mut self, half: usize, now: Instant) -> bool {
        let is_old = |entry: &Entry| now.saturating_duration_since(entry.stored) >= entry.keep;
        let own = || self.entries.iter().filter(|(_, entry)| entry.kind.half() == half);
        let old = own().take(8).find(|(_, entry)| is_old(entry));
        let key = old.or_else(|| own().next()).map(|(key, _)| key.clone());
        key.is_some_and(|key| self.remove(&key))
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.entries.remove(key);
        if let Some(entry) = &removed {
            self.counts.entries[entry.kind.half()] -= 1;
            self.counts.bytes[entry.kind.half()] -= entry.size(key);
        }
        removed.is_some()
    }
}

impl Part {
    fn clamp(&self, ttl: u32) -> Duration {
        Duration::from_secs(u64::from(
            ttl.min(self.max_ttl).max(self.min_ttl.min(self.max_ttl)),
        ))
    }
}

/// A response taken apart: without its OPT record, where its TTLs stand, how long it lives.
type Dissected = (Box<[u8]>, Box<[u16]>, Lifetime);

/// For how long a response may be kept by itself.
enum Lifetime {
    Success(u32),
    Denial(u32),
    Failure,
}

fn key<'b>(query: &Query<'_>, buffer: &'b mut [u8; MAX_KEY]) -> &'b [u8] {
    let name = query.name();
    let (front, tail) = buffer.split_at_mut(name.len());
    front.copy_from_slice(name);
    let [t0, t1] = query.qtype.to_be_bytes();
    let [c0, c1] = query.qclass.to_be_bytes();
    let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
    let checking_disabled = query.flags() & flag::CD != 0;
    let bits = u8::from(dnssec_ok) | u8::from(checking_disabled) << 1;
    // What an upstream says to a NOTIFY, or where it may not ask others, is no answer for anybody else.
    let asked_as = (query.flags() & (flag::OPCODE | flag::RD)) >> 8;
    tail[..6].copy_from_slice(&[t0, t1, c0, c1, bits, asked_as as u8]);
    &buffer[..name.len() + 6]
}

/// Takes a response apart. `None` = it is not to be kept.
fn dissect(query: &Query<'_>, response: &[u8]) -> Option<Dissected> {
    let header = response.get(..HEADER)?;
    if flags_of(response) & flag::TC != 0 {
        return None;
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (answers, authorities, additionals) = (count(6), count(8), count(10));
    let mut at = query.question_end;
    let mut end = at;
    let mut kept_additionals = additionals;
    let mut ttls_at = Vec::new();
    let mut least = u32::MAX;
    let mut denial = Denial::of(query);
    for index in 0..answers + authorities + additionals {
        let (record, next) = Record::read(response, at)?;
        if record.rtype == rtype::OPT {
            // Only where it comes last, as an additional record, can it be cut off; servers put it there.
            if index + 1 != answers + authorities + additionals || additionals == 0 {
                return None;
            }
            kept_additionals -= 1;
        } else {
            ttls_at.push(u16::try_from(record.ttl_at).ok()?);
            least = least.min(record.ttl);
            if index < answers {
                denial.note_answer(response, &record)?;
            } else if index < answers + authorities && record.rtype == rtype::SOA {
                denial.note_soa(response, &record)?;
            }
            end = next;
        }
        at = next;
    }
    let lifetime = match (code_of(response), answers, denial.ttl()) {
        (rcode::NOERROR, _, Some(ttl)) if !denial.is_answered => Lifetime::Denial(ttl),
        (rcode::NOERROR, 1.., _) => Lifetime::Success(least),
        (rcode::NXDOMAIN, _, Some(ttl)) => Lifetime::Denial(ttl),
        (rcode::SERVFAIL, _, _) => Lifetime::Failure,
        _ => return None,
    };
    let mut stripped: Box<[u8]> = response.get(..end)?.into();
    set_flags(&mut stripped, flag::AA, 0);
    stripped[10..12].copy_from_slice(&(kept_additionals as u16).to_be_bytes());
    Some((stripped, ttls_at.into(), lifetime))
}

/// What a response denies: the name at the end of its aliases, or records of that name, for as long as the SOA of a
/// zone around that name says, and each alias lasts (RFC 2308 §2, §5).
struct Denial {
    qtype: u16,
    /// The name that the aliases seen so far lead to.
    name: Name,
    aliases: u32,
    soa: Option<u32>,
    /// There is an answer that is no alias on the way to one.
    is_answered: bool,
}

impl Denial {
    fn of(query: &Query<'_>) -> Self {
        Self {
            qtype: query.qtype,
            name: Name::from_lower_wire(query.name()),
            aliases: u32::MAX,
            soa: None,
            is_answered: false,
        }
    }

    fn note_answer(&mut self, response: &[u8], record: &Record<'_>) -> Option<()> {
        const RRSIG: u16 = 46;
        self.aliases = self.aliases.min(record.ttl);
        let is_on_the_way = matches!(record.rtype, rtype::CNAME | rtype::DNAME | RRSIG);
        self.is_answered |= !is_on_the_way || record.rtype == self.qtype || self.qtype == rtype::ANY;
        if record.rtype == rtype::CNAME && lower_name(response, record.start)? == self.name {
            self.name = lower_name(response, record.data_at)?;
        }
        Some(())
    }

    fn note_soa(&mut self, response: &[u8], record: &Record<'_>) -> Option<()> {
        let minimum: [u8; 4] = record.data.last_chunk().copied()?;
        if self.name.is_within(&lower_name(response, record.start)?) {
            self.soa = Some(record.ttl.min(u32::from_be_bytes(minimum)));
        }
        Some(())
    }

    fn ttl(&self) -> Option<u32> {
        self.soa.map(|soa| soa.min(self.aliases))
    }
}

fn lower_name(response: &[u8], at: usize) -> Option<Name> {
    let mut name = expand_name(response, at)?;
    name.make_ascii_lowercase();
    Some(Name::from_lower_wire(&name))
}

fn change_ttl(response: &mut [u8], at: u16, change: impl FnOnce(u32) -> u32) {
    let at = usize::from(at);
    if let Some(field) = response.get_mut(at..at + 4) {
        let ttl = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        field.copy_from_slice(&change(ttl).to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
