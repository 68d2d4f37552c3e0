//! Why a name is answered as it is, for whoever asks on this machine (`causeway dns query`).
//!
//! A query with the EDNS option [`OPTION`] is answered as ever and gets one more record, a TXT record of class CH at
//! the root that holds an [`Explanation`] as JSON. An option, because it goes wherever queries go: there is no second
//! socket to configure or to guard, and a server that does not know it answers without (RFC 6891 §6.1.2). It is told
//! to clients of this machine alone: the objects behind an answer are nobody else's business.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::answer::put_opt;
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
    plain[6..12].copy_from_slice(&[0, 0, 0, 0, 0, 1]);
    put_opt(&mut plain, edns.udp_size, 0, edns.dnssec_ok);
    // In front of two bytes of flags and two of length.
    let version_at = plain.len() - 5;
    plain[version_at] = edns.version;
    Some(plain)
}

/// Adds the explanation to an answer, where the client may have it and it fits. `along` is the query that `autopath`
/// answered in the place of the client's.
pub fn tell(
    block: &Block,
    query: &Query<'_>,
    along: Option<&Query<'_>>,
    client: Client,
    answerer: Answerer,
    out: &mut Vec<u8>,
) {
    if is_of_this_machine(client.address.ip()) {
        let explanation = Explanation::of(block, query, along, answerer);
        append(out, &explanation, limit(query, client.transport));
    }
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

fn is_of_this_machine(client: IpAddr) -> bool {
    let client = client.to_canonical();
    client.is_loopback() || crate::serve::local_addresses().contains(&client)
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
    let additionals = u16::from_be_bytes([out[10], out[11]]) + 1;
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

    /// The explanation that came with an answer.
    #[must_use]
    pub fn read(answer: &[u8]) -> Option<Self> {
        let counts: &[u8; HEADER] = answer.get(..HEADER)?.try_into().ok()?;
        let count = |at: usize| usize::from(u16::from_be_bytes([counts[at], counts[at + 1]]));
        let mut at = HEADER + expand_name(answer, HEADER)?.len() + 4;
        for _ in 0..count(6) + count(8) + count(10) {
            let (record, next) = Record::read(answer, at)?;
            if (record.rtype, record.class) == (rtype::TXT, CLASS_CH) {
                return serde_json::from_slice(&joined(record.data)).ok();
            }
            at = next;
        }
        None
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
        packet[11] = 1;
        let length = (options.len() as u16).to_be_bytes();
        packet.extend([0, 0, 41, 4, 0xd0, 0, version, 0x80, 0, length[0], length[1]]);
        packet.extend(options);
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
    fn clients_of_other_machines_are_told_nothing() {
        let own = crate::serve::local_addresses();
        let rows = [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.99", false),
            ("2001:db8::99", false),
        ];
        for (address, expected) in rows {
            let address = address.parse().expect("address");
            assert_eq!(is_of_this_machine(address), expected, "{address}");
        }
        assert!(own.into_iter().all(is_of_this_machine));
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
