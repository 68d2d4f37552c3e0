//! The `cache` plugin: responses of upstreams, kept for as long as they say.
//!
//! Cluster names never get here: they are answered from the watched state, so that a new Service is never hidden by
//! an old denial.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::{code_of, fit, put_client_opt};
use crate::name::{MAX_NAME, Name};
use crate::question::{HEADER, Query, Record, rcode, rtype};

/// Independent parts of the cache, so that threads rarely wait for each other.
const SHARDS: usize = 64;
const FLAG_TC: u8 = 0x02;
const FLAG_AA: u8 = 0x04;
const FLAG_CD: u16 = 0x0010;
/// Name, type, class, DO and CD.
const MAX_KEY: usize = MAX_NAME + 5;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names that are cached; empty = all that the server block serves.
    pub zones: Vec<Name>,
    /// Responses with answers. Default: 9984 of them for 5 s to 1 h.
    pub success: Part,
    /// Denials (RFC 2308). Default: 9984 of them for 5 s to 30 min.
    pub denial: Part,
    /// How long a SERVFAIL is kept. Default 5 s.
    pub servfail: Duration,
}

/// One half of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The most entries.
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
}

/// A cache of one server block.
pub struct Cache {
    options: Options,
    shards: Vec<Mutex<HashMap<Box<[u8]>, Entry>>>,
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

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the kept response for a query into `out`, if there is one that is still good.
    pub fn answer(&self, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) -> bool {
        let mut buffer = [0; MAX_KEY];
        let key = key(query, &mut buffer);
        let shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = shard.get(key) else { return false };
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.keep {
            return false;
        }
        out.clear();
        out.extend_from_slice(&entry.response);
        for at in &entry.ttls_at {
            lower_ttl(out, usize::from(*at), age.as_secs() as u32);
        }
        drop(shard);
        adopt_question(out, query);
        fit(out, query, limit);
        true
    }

    /// Keeps a response, if it is of a kind that may be kept.
    pub fn store(&self, query: &Query<'_>, response: &[u8], now: Instant) {
        if !self.options.zones.is_empty() && !query.is_within(&self.options.zones) {
            return;
        }
        let Some((stripped, ttls_at, lifetime)) = dissect(query, response) else {
            return;
        };
        let (part, keep) = match lifetime {
            Lifetime::Success(ttl) => (&self.options.success, self.options.success.clamp(ttl)),
            Lifetime::Denial(ttl) => (&self.options.denial, self.options.denial.clamp(ttl)),
            Lifetime::Failure => (&self.options.denial, self.options.servfail),
        };
        if keep.is_zero() || query.is_within(&part.disabled) {
            return;
        }
        let mut buffer = [0; MAX_KEY];
        let key = key(query, &mut buffer);
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= part.capacity.div_ceil(SHARDS) && !shard.contains_key(key) {
            make_room(&mut shard, now);
        }
        let entry = Entry {
            response: stripped,
            ttls_at,
            stored: now,
            keep,
        };
        shard.insert(key.into(), entry);
    }

    fn shard(&self, key: &[u8]) -> &Mutex<HashMap<Box<[u8]>, Entry>> {
        let hash = key.iter().fold(0u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        &self.shards[hash as usize % SHARDS]
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
    let checking_disabled = query.flags() & FLAG_CD != 0;
    let bits = u8::from(dnssec_ok) | u8::from(checking_disabled) << 1;
    tail[..5].copy_from_slice(&[t0, t1, c0, c1, bits]);
    &buffer[..name.len() + 5]
}

/// Takes a response apart. `None` = it is not to be kept.
fn dissect(query: &Query<'_>, response: &[u8]) -> Option<Dissected> {
    let header = response.get(..HEADER)?;
    if header[2] & FLAG_TC != 0 {
        return None;
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (answers, authorities, additionals) = (count(6), count(8), count(10));
    let mut at = query.question_end;
    let mut end = at;
    let mut kept_additionals = additionals;
    let mut ttls_at = Vec::new();
    let mut least = u32::MAX;
    let mut denial = None;
    for index in 0..answers + authorities + additionals {
        let (record, next) = Record::read(response, at)?;
        if record.rtype == rtype::OPT {
            // Only where it comes last can it be cut off; servers put it there.
            if index + 1 != answers + authorities + additionals {
                return None;
            }
            kept_additionals -= 1;
        } else {
            ttls_at.push(u16::try_from(record.ttl_at).ok()?);
            least = least.min(record.ttl);
            if record.rtype == rtype::SOA && index >= answers {
                // RFC 2308 §5: the smaller of the SOA's own TTL and its MINIMUM.
                let minimum: [u8; 4] = record.data.last_chunk().copied()?;
                denial = Some(record.ttl.min(u32::from_be_bytes(minimum)));
            }
            end = next;
        }
        at = next;
    }
    let lifetime = match (code_of(response), answers, denial) {
        (rcode::NOERROR, 1.., _) => Lifetime::Success(least),
        (rcode::NOERROR, 0, Some(ttl)) | (rcode::NXDOMAIN, _, Some(ttl)) => Lifetime::Denial(ttl),
        (rcode::SERVFAIL, _, _) => Lifetime::Failure,
        _ => return None,
    };
    let mut stripped: Box<[u8]> = response.get(..end)?.into();
    stripped[2] &= !FLAG_AA;
    stripped[10..12].copy_from_slice(&(kept_additionals as u16).to_be_bytes());
    Some((stripped, ttls_at.into(), lifetime))
}

fn lower_ttl(response: &mut [u8], at: usize, age: u32) {
    let Some(field) = response.get_mut(at..at + 4) else {
        return;
    };
    let ttl = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
}

/// Makes a kept response this query's own: id, RD and CD, the question in its case, an OPT record if it has one.
fn adopt_question(out: &mut Vec<u8>, query: &Query<'_>) {
    let head = query.head();
    out[..2].copy_from_slice(&head[..2]);
    out[2] = out[2] & !1 | head[2] & 1;
    out[3] = out[3] & !0x10 | head[3] & 0x10;
    out[HEADER..query.question_end].copy_from_slice(&head[HEADER..]);
    put_client_opt(out, query);
}

/// Takes out one entry: an expired one among the first few, else any.
fn make_room(shard: &mut HashMap<Box<[u8]>, Entry>, now: Instant) {
    let is_old = |entry: &Entry| now.saturating_duration_since(entry.stored) >= entry.keep;
    let old = shard.iter().take(8).find(|(_, entry)| is_old(entry));
    let Some(key) = old.or_else(|| shard.iter().next()).map(|(key, _)| key.clone()) else {
        return;
    };
    shard.remove(&key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Owner, Section, Writer, put_soa};
    use crate::question::query_packet;

    fn question(name: &str) -> Vec<u8> {
        query_packet(1, Name::parse(name).expect("name").wire(), rtype::A)
    }

    fn response(packet: &[u8], code: u16, ttl: Option<u32>) -> Vec<u8> {
        let query = Query::parse(packet).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 512);
        match ttl {
            Some(ttl) if code == rcode::NOERROR => {
                writer.address(Section::Answer, Owner::QUESTION, [1, 2, 3, 4].into(), ttl);
            }
            Some(ttl) => {
                put_soa(
                    &mut writer,
                    Section::Authority,
                    query.packet_offset(1),
                    1,
                    900,
                    ttl,
                );
            }
            None => {}
        }
        writer.finish(code, true);
        out
    }

    #[test]
    fn responses_are_kept_for_their_lifetime_and_come_back_as_the_asker_wrote() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (what, code, ttl, kept_for) in [
            ("an answer", rcode::NOERROR, Some(60), Some(minutes(1))),
            (
                "an answer with a TTL of zero",
                rcode::NOERROR,
                Some(0),
                Some(Duration::from_secs(5)),
            ),
            (
                "an answer with a TTL of a day",
                rcode::NOERROR,
                Some(86_400),
                Some(minutes(60)),
            ),
            (
                "a denial",
                rcode::NXDOMAIN,
                Some(30),
                Some(Duration::from_secs(30)),
            ),
            ("a denial without SOA", rcode::NXDOMAIN, None, None),
            ("an answer without records", rcode::NOERROR, None, None),
            ("a failure", rcode::SERVFAIL, None, Some(Duration::from_secs(5))),
            ("a refusal", rcode::REFUSED, None, None),
        ] {
            let cache = Cache::new(Options::default());
            let asked = question("a.example");
            let query = Query::parse(&asked).expect("query");
            let start = Instant::now();
            cache.store(&query, &response(&asked, code, ttl), start);

            let mut again = question("a.example");
            again[0..2].copy_from_slice(&[7, 7]);
            again[13] = b'A';
            let query = Query::parse(&again).expect("query");
            let mut out = Vec::new();
            let Some(kept_for) = kept_for else {
                assert!(!cache.answer(&query, 512, start, &mut out), "{what} is not kept");
                continue;
            };
            let just_before = start + kept_for - Duration::from_millis(1);
            assert!(cache.answer(&query, 512, just_before, &mut out), "{what} is kept");
            assert_eq!(
                (&out[..2], out[13], out[2] & FLAG_AA),
                (&[7, 7][..], b'A', 0),
                "{what}"
            );
            assert!(
                !cache.answer(&query, 512, start + kept_for, &mut out),
                "{what} ends"
            );
        }
    }

    #[test]
    fn a_full_cache_makes_room_and_disabled_zones_are_not_kept() {
        let mut options = Options::default();
        options.success.capacity = SHARDS;
        options
            .success
            .disabled
            .push(Name::parse("private.example").expect("name"));
        let cache = Cache::new(options);
        let now = Instant::now();
        for index in 0..1000 {
            let asked = question(&format!("n{index}.example"));
            cache.store(
                &Query::parse(&asked).expect("query"),
                &response(&asked, 0, Some(60)),
                now,
            );
        }
        assert!(cache.len() <= SHARDS, "{} entries", cache.len());
        let before = cache.len();
        let asked = question("x.private.example");
        cache.store(
            &Query::parse(&asked).expect("query"),
            &response(&asked, 0, Some(60)),
            now,
        );
        assert_eq!(cache.len(), before);
        assert!(!cache.answer(&Query::parse(&asked).expect("query"), 512, now, &mut Vec::new()));
    }
}
