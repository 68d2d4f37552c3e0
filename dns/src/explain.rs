//! Why a name is answered as it is, for whoever asks on this machine (`causeway dns query`).
//!
//! A query with the EDNS option [`OPTION`] is answered as ever and gets one more record, a TXT record of class CH at
//! the root that holds an [`Explanation`] as JSON. An option, because it goes wherever queries go: there is no second
//! socket to configure or to guard, and a server that does not know it answers without (RFC 6891 §6.1.2). It is told
//! to clients of this machine alone: the objects behind an answer are nobody else's business.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::answer::Opt;
use crate::chain::{Block, Client, Plugin, limit};
use crate::metrics::Answerer;
use crate::mnemonic::type_name;
use crate::presentation::NameText;
use crate::question::{HEADER, Query, Record, expand_name, rtype};

/// Of those for local use (RFC 6891 §9).
pub const OPTION: u16 = 65_353;
/// Class CH, in which servers tell of themselves.
const CLASS_CH: u16 = 3;
/// The longest character string of a TXT record (RFC 1035 §3.3).
const LONGEST_STRING: usize = 255;
/// How long this machine's addresses are taken for what they were. Strangers who ask cost one look in that time.
const FRESH: Duration = Duration::from_secs(1);

/// This machine's addresses, looked up when somebody who is not known asks.
#[derive(Debug, Default)]
pub struct OwnAddresses(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

impl OwnAddresses {
    /// Whether a client has one of them, so that it is a program of this machine: packets from outside that claim one
    /// are dropped by the kernel (`fib_validate_source`).
    pub fn include(&self, client: SocketAddr, now: Instant) -> bool {
        if client.ip().to_canonical().is_loopback() {
            return true;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known
            .take()
            .filter(|(read, _)| now.saturating_duration_since(*read) < FRESH);
        let (_, own) = known.insert(fresh.unwrap_or_else(|| (now, interface_addresses())));
        own.iter().any(|own| identity(*own) == identity(client))
    }
}

/// An address, and the interface without which a link-local one is not complete.
fn identity(address: SocketAddr) -> (IpAddr, u32) {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => (address.ip(), v6.scope_id()),
        _ => (address.ip().to_canonical(), 0),
    }
}

fn interface_addresses() -> Vec<SocketAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| crate::serve::socket_addr_of(&interface.address?));
    addresses.collect()
}

/// Who answered, and of what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Explanation {
    /// The zones and ports of the server block.
    pub block: String,
    /// The plugin. Empty = none: the query came to the end of the block.
    pub plugin: String,
    /// What the plugins were asked in the place of the client's question, by `rewrite` or `autopath`: name and type.
    pub instead: Option<String>,
    /// What the plugin `kubernetes` knows by that name, or why there is nothing. None = the name is in none of its
    /// zones.
    pub object: Option<String>,
    /// Who told of it, and whether that is current.
    pub objects_from: Option<String>,
}

/// The query without its options, where one of them asks for an explanation.
#[must_use]
pub fn asked(packet: &[u8]) -> Option<Vec<u8>> {
    let query = Query::parse(packet).ok()?;
    let edns = query.edns.filter(|edns| edns.explain)?;
    let mut plain = query.head().to_vec();
    plain[6..12].fill(0);
    let version = edns.version;
    Opt {
        version,
        ..edns.into()
    }
    .add_to(&mut plain);
    Some(plain)
}

/// Adds the explanation to an answer, where it fits. `along` is the query that `autopath` answered in the place of the
/// client's.
pub fn tell(
    block: &Block,
    query: &Query<'_>,
    along: Option<&Query<'_>>,
    client: Client,
    answerer: Answerer,
    out: &mut Vec<u8>,
) {
    let explanation = Explanation::of(block, query, along, answerer);
    append(out, &explanation, limit(query, client.transport));
}

/// Whether a plugin answers that looks at the client only.
fn is_gate(answerer: Answerer) -> bool {
    matches!(answerer, Answerer::RateLimit | Answerer::Acl)
}

/// Whether a plugin answers that is asked before `kubernetes`.
fn is_before_kubernetes(answerer: Answerer) -> bool {
    matches!(answerer, Answerer::Any | Answerer::Template | Answerer::Hosts)
}

fn question_text(query: &Query<'_>) -> String {
    format!(
        "{} {}",
        NameText::of(query.name()).as_str(),
        type_name(query.qtype)
    )
}

fn append(out: &mut Vec<u8>, explanation: &Explanation, limit: usize) {
    let Ok(json) = serde_json::to_vec(explanation) else {
        return;
    };
    let mut data = Vec::with_capacity(json.len() + 8);
    for string in json.chunks(LONGEST_STRING) {
        data.push(string.len() as u8);
        data.extend_from_slice(string);
    }
    let mut record = vec![0];
    for word in [rtype::TXT, CLASS_CH, 0, 0, data.len() as u16] {
        record.extend_from_slice(&word.to_be_bytes());
    }
    record.extend_from_slice(&data);
    if out.len() + record.len() > limit {
        return;
    }
    let additionals = u16::from_be_bytes([out[10], out[11]]).saturating_add(1);
    out[10..12].copy_from_slice(&additionals.to_be_bytes());
    out.extend_from_slice(&record);
}

impl Explanation {
    fn of(block: &Block, query: &Query<'_>, along: Option<&Query<'_>>, answerer: Answerer) -> Self {
        let mut explanation = Self {
            block: block.heading().to_owned(),
            plugin: answerer.name().to_owned(),
            ..Self::default()
        };
        if is_gate(answerer) {
            return explanation;
        }
        let answered = along.unwrap_or(query);
        let rewritten = block.asked_instead(answered);
        let rewritten = rewritten.as_deref().and_then(|packet| Query::parse(packet).ok());
        let seen = rewritten.as_ref().unwrap_or(answered);
        if (seen.name(), seen.qtype) != (query.name(), query.qtype) {
            explanation.instead = Some(question_text(seen));
        }
        if is_before_kubernetes(answerer) {
            return explanation;
        }
        for plugin in block.plugins() {
            if let Plugin::Kubernetes(options, source) = plugin {
                explanation.object = options.explain(&source.table.load(), seen);
                let state = match source.age() {
                    None => "nothing heard yet".to_owned(),
                    Some(age) if age.is_zero() => "current".to_owned(),
                    Some(age) => format!("last heard {} s ago", age.as_secs()),
                };
                let told = explanation.object.is_some();
                explanation.objects_from = told.then(|| format!("{}, {state}", options.objects));
            }
        }
        explanation
    }

    /// The explanation that came with an answer: the last record of its kind, since those before it are what the name
    /// has.
    #[must_use]
    pub fn read(answer: &[u8]) -> Option<Self> {
        let counts: &[u8; HEADER] = answer.get(..HEADER)?.try_into().ok()?;
        let count = |at: usize| usize::from(u16::from_be_bytes([counts[at], counts[at + 1]]));
        let mut at = HEADER + expand_name(answer, HEADER)?.len() + 4;
        let mut told = None;
        for _ in 0..count(6) + count(8) + count(10) {
            let (record, next) = Record::read(answer, at)?;
            let is_root = answer.get(record.start) == Some(&0);
            if is_root && (record.rtype, record.class) == (rtype::TXT, CLASS_CH) {
                told = Some(record.data);
            }
            at = next;
        }
        serde_json::from_slice(&joined(told?)).ok()
    }
}

/// The character strings of a TXT record, one behind the other.
fn joined(mut data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len());
    while let Some((&length, rest)) = data.split_first() {
        let (string, behind) = rest.split_at(usize::from(length).min(rest.len()));
        text.extend_from_slice(string);
        data = behind;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::code_only;
    use crate::name::Name;
    use crate::question::{query_packet, rcode};

    /// A query with an OPT record of these options.
    fn query(options: &[u8], version: u8) -> Vec<u8> {
        let name = Name::parse("svc1.testns.svc.cluster.local").expect("name");
        let mut packet = query_packet(7, name.wire(), rtype::A);
        let opt = Opt {
            udp_size: 1232,
            version,
            dnssec_ok: true,
            options,
            ..Opt::default()
        };
        opt.add_to(&mut packet);
        packet
    }

    fn option(code: u16, length: u8) -> Vec<u8> {
        let [high, low] = code.to_be_bytes();
        [&[high, low, 0, length][..], &vec![0; usize::from(length)]].concat()
    }

    #[test]
    fn a_query_that_asks_is_answered_as_if_it_had_no_options() {
        let cookie = option(10, 8);
        for (options, asks) in [
            (option(OPTION, 0), true),
            ([cookie.clone(), option(OPTION, 3)].concat(), true),
            (cookie, false),
            (Vec::new(), false),
            // An option that promises more than there is.
            (vec![0, 10, 0xff, 0xff, 1], false),
        ] {
            for version in [0, 1] {
                let plain = asked(&query(&options, version));
                assert_eq!(plain, asks.then(|| query(&[], version)), "{options:?}");
            }
        }
    }

    #[test]
    fn programs_of_this_machine_are_known_by_its_addresses() {
        let socket = |text: &str| text.parse::<SocketAddr>().expect("address");
        let now = Instant::now();
        let own = OwnAddresses(Mutex::new(Some((
            now,
            vec![
                socket("192.0.2.1:0"),
                socket("169.254.20.10:0"),
                socket("[2001:db8::1]:0"),
                socket("[fe80::1%2]:0"),
            ],
        ))));
        for (client, expected) in [
            ("127.0.0.1:4000", true),
            ("127.9.9.9:4000", true),
            ("[::1]:4000", true),
            ("[::ffff:127.0.0.1]:4000", true),
            ("192.0.2.1:4000", true),
            ("[::ffff:192.0.2.1]:4000", true),
            ("169.254.20.10:4000", true),
            ("[2001:db8::1]:4000", true),
            ("[fe80::1%2]:4000", true),
            // The same address at another link is another machine's.
            ("[fe80::1%3]:4000", false),
            ("192.0.2.2:4000", false),
            ("[2001:db8::2]:4000", false),
        ] {
            assert_eq!(own.include(socket(client), now), expected, "{client}");
        }
    }

    #[test]
    fn addresses_are_read_again_when_they_are_old_and_not_before() {
        let now = Instant::now();
        let gone: SocketAddr = "192.0.2.1:4000".parse().expect("address");
        let own = OwnAddresses(Mutex::new(Some((now, vec![gone]))));
        for (millis, expected) in [(0, true), (999, true), (1000, false), (1001, false)] {
            let asked = now + Duration::from_millis(millis);
            assert_eq!(own.include(gone, asked), expected, "after {millis} ms");
        }
        let read = interface_addresses();
        assert!(
            read.iter()
                .all(|own_address| own.include(*own_address, now + FRESH))
        );
    }

    #[test]
    fn what_is_appended_is_read_and_what_does_not_fit_is_left() {
        let packet = query(&[], 0);
        let asked = Query::parse(&packet).expect("query");
        let explanation = Explanation {
            block: ".:53".to_owned(),
            plugin: "kubernetes".to_owned(),
            instead: None,
            object: Some("Service testns/svc1 ".repeat(40)),
            objects_from: None,
        };
        let mut answer = Vec::new();
        code_only(&mut answer, &asked, rcode::NOERROR);
        let bare = answer.clone();
        append(&mut answer, &explanation, 900);
        assert_eq!((&answer, Explanation::read(&answer)), (&bare, None));
        append(&mut answer, &explanation, 65_535);
        assert_eq!(Explanation::read(&answer), Some(explanation));
        let message = hickory_proto::op::Message::from_vec(&answer).expect("hickory reads it, too");
        assert_eq!(message.additionals.len(), 1);
    }
}
