//! Names of record types and response codes, as people and Corefiles write them (IANA's "DNS Parameters" registry).

use std::borrow::Cow;

/// Types by name.
const TYPES: [(u16, &str); 39] = [
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (10, "NULL"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (25, "KEY"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (39, "DNAME"),
    (41, "OPT"),
    (43, "DS"),
    (44, "SSHFP"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
    (257, "CAA"),
];

/// Codes by name.
const CODES: [(u16, &str); 12] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (6, "YXDOMAIN"),
    (7, "YXRRSET"),
    (8, "NXRRSET"),
    (9, "NOTAUTH"),
    (10, "NOTZONE"),
    (16, "BADVERS"),
];

/// The type of a name like `AAAA`, or `TYPE65` (RFC 3597 §5), in any case.
#[must_use]
pub fn type_number(text: &str) -> Option<u16> {
    number_of(&TYPES, text).or_else(|| {
        let digits = text.get(..4).filter(|front| front.eq_ignore_ascii_case("TYPE"))?;
        text[digits.len()..].parse().ok()
    })
}

/// The name of a type.
#[must_use]
pub fn type_name(number: u16) -> Cow<'static, str> {
    name_of(&TYPES, number).unwrap_or_else(|| format!("TYPE{number}").into())
}

/// The response code of a name like `NXDOMAIN`, in any case.
#[must_use]
pub fn code_number(text: &str) -> Option<u16> {
    number_of(&CODES, text)
}

/// The name of a response code.
#[must_use]
pub fn code_name(number: u16) -> Cow<'static, str> {
    name_of(&CODES, number).unwrap_or_else(|| number.to_string().into())
}

fn number_of(table: &[(u16, &str)], text: &str) -> Option<u16> {
    let row = table.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    row.map(|(number, _)| *number)
}

fn name_of(table: &[(u16, &'static str)], number: u16) -> Option<Cow<'static, str>> {
    let row = table.iter().find(|(known, _)| *known == number);
    row.map(|(_, name)| Cow::Borrowed(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (text, number, name) in [
            ("a", Some(1), "A"),
            ("AAAA", Some(28), "AAAA"),
            ("TYPE65", Some(65), "HTTPS"),
            ("type4711", Some(4711), "TYPE4711"),
        ] {
            assert_eq!(type_number(text), number, "{text}");
            assert_eq!(number.map(type_name).as_deref(), Some(name), "{text}");
        }
        for text in ["", "B", "TYPE", "TYPE65536", "TYPE-1", "ÄÄÄÄ1"] {
            assert_eq!(type_number(text), None, "{text}");
        }
        assert_eq!((code_number("nxdomain"), code_number("NOPE")), (Some(3), None));
        assert_eq!((code_name(5), code_name(23)), ("REFUSED".into(), "23".into()));
    }
}
