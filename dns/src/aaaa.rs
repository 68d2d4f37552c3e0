//! The `aaaa` plugin: names outside have no IPv6 addresses, where nobody could reach them.
//!
//! Clients ask for both families, so that half of what they ask upstreams is for nothing where there is no IPv6. What
//! `hosts`, `template` and the cluster know stays: this stands behind them, and in front of the cache.

use crate::answer::{Section, Writer, put_soa};
use crate::name::Name;
use crate::question::{Query, rcode, rtype};

/// For how long clients may take it that there are none, in seconds.
const TTL: u32 = 60;
const SERIAL: u32 = 1;

/// `aaaa off`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Off {
    /// The names that have no IPv6 addresses. Default: those of the server block.
    pub zones: Vec<Name>,
}

impl Off {
    /// Answers a query for IPv6 addresses that there are none (RFC 2308 §2.2). False = it is about something else.
    pub fn answer(&self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) -> bool {
        let zones = self.zones.iter().filter_map(|zone| query.labels_before(zone));
        let Some(before) = zones.min().filter(|_| query.qtype == rtype::AAAA) else {
            return false;
        };
        let mut writer = Writer::start(out, query, limit);
        let zone_at = query.packet_offset(before);
        put_soa(&mut writer, Section::Authority, zone_at, SERIAL, TTL, TTL);
        writer.finish(rcode::NOERROR, false);
        true
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};

    use super::*;
    use crate::question::query_packet;

    #[test]
    fn ipv6_addresses_of_the_zones_are_denied_with_the_longest_zones_soa() {
        let zones = ["example", "a.example"].map(|text| Name::parse(text).expect("zone"));
        let off = Off { zones: zones.into() };
        for (name, qtype, expected) in [
            ("www.a.example", rtype::AAAA, Some("a.example.")),
            ("a.example", rtype::AAAA, Some("a.example.")),
            ("www.b.example", rtype::AAAA, Some("example.")),
            ("www.a.example", rtype::A, None),
            ("www.test", rtype::AAAA, None),
        ] {
            let packet = query_packet(7, Name::parse(name).expect("name").wire(), qtype);
            let query = Query::parse(&packet).expect("query");
            let mut out = Vec::new();
            let denied = off.answer(&query, 512, &mut out).then(|| {
                let message = Message::from_vec(&out).expect("hickory reads it");
                assert_eq!(message.metadata.response_code, ResponseCode::NoError);
                assert_eq!((message.answers.len(), message.authorities.len()), (0, 1));
                message.authorities[0].name.to_string()
            });
            assert_eq!(denied.as_deref(), expected, "{name} {qtype}");
        }
    }
}
