//! Domain names in wire form (RFC 1035 §3.1), lower case: what is compared and what is written literally.

use std::fmt;
use std::net::IpAddr;

/// Longest name in wire form, the root's zero byte included (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;
/// Longest label.
pub const MAX_LABEL: usize = 63;

/// A name in wire form, lower case, ending in the root's zero byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why a text is no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots in a row, or a dot in front.
    #[error("has an empty label")]
    EmptyLabel,
    /// RFC 1035 §2.3.4.
    #[error("has a label longer than 63 bytes")]
    LongLabel,
    /// RFC 1035 §2.3.4.
    #[error("is longer than 255 bytes")]
    LongName,
    /// A byte that needs no place in a name that people write down.
    #[error("has a character that is not printable ASCII")]
    BadCharacter,
}

impl Name {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Reads `svc.cluster.local` or `svc.cluster.local.`; every name is taken as absolute.
    ///
    /// # Errors
    /// When the text breaks RFC 1035's limits.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        if !text.is_empty() {
            for label in text.split('.') {
                push_label(&mut wire, label.as_bytes())?;
            }
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(NameError::LongName);
        }
        Ok(Self(wire.into()))
    }

    /// Takes bytes that are already a lower-case name in wire form.
    pub(crate) fn from_lower_wire(wire: &[u8]) -> Self {
        Self(wire.into())
    }

    /// The name of an address in `in-addr.arpa` or `ip6.arpa` (RFC 1035 §3.5, RFC 3596 §2.5).
    #[must_use]
    pub fn reverse(address: IpAddr) -> Self {
        let text = match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(v6) => {
                let nibbles = v6.octets().into_iter().rev();
                let nibbles: String = nibbles.map(|o| format!("{:x}.{:x}.", o & 15, o >> 4)).collect();
                format!("{nibbles}ip6.arpa")
            }
        };
        Self::parse(&text).expect("invariant: a reversed address keeps RFC 1035's limits")
    }

    /// The wire form, root's zero byte included.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Labels from the left, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        Labels(&self.0)
    }

    /// How many labels, the root not counted.
    #[must_use]
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// Whether this name is `zone` or below it.
    #[must_use]
    pub fn is_within(&self, zone: &Self) -> bool {
        self.ends_in(zone.wire())
    }

    fn ends_in(&self, zone: &[u8]) -> bool {
        let mut tail: &[u8] = &self.0;
        loop {
            if tail == zone {
                return true;
            }
            match tail.split_first() {
                Some((&length, rest)) if length > 0 => tail = rest.get(usize::from(length)..).unwrap_or(&[]),
                _ => return false,
            }
        }
    }

    /// Whether this is a zone of reversed addresses.
    #[must_use]
    pub fn is_reverse(&self) -> bool {
        self.ends_in(b"\x07in-addr\x04arpa\0") || self.ends_in(b"\x03ip6\x04arpa\0")
    }
}

/// A map by names can be asked for a question's name as it stands.
impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    let length = u8::try_from(label.len()).map_err(|_| NameError::LongLabel)?;
    match usize::from(length) {
        0 => return Err(NameError::EmptyLabel),
        1..=MAX_LABEL => {}
        _ => return Err(NameError::LongLabel),
    }
    if !label.iter().all(u8::is_ascii_graphic) {
        return Err(NameError::BadCharacter);
    }
    wire.push(length);
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
    Ok(())
}

/// Walks the labels of a name in wire form.
struct Labels<'n>(&'n [u8]);

impl<'n> Iterator for Labels<'n> {
    type Item = &'n [u8];

    fn next(&mut self) -> Option<&'n [u8]> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 || rest.len() < usize::from(length) {
            return None;
        }
        let (label, tail) = rest.split_at(usize::from(length));
        self.0 = tail;
        Some(label)
    }
}

impl fmt::Display for Name {
    /// With the final dot, as in CoreDNS's logs and metrics.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    byte if byte.is_ascii_graphic() => write!(f, "{}", char::from(*byte))?,
                    byte => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_form_agree() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(60).as_str(); 5].join(".");
        for (text, expected) in [
            ("", Ok(&b"\0"[..])),
            (".", Ok(b"\0")),
            ("Cluster.Local", Ok(b"\x07cluster\x05local\0")),
            ("cluster.local.", Ok(b"\x07cluster\x05local\0")),
            ("_http._tcp", Ok(b"\x05_http\x04_tcp\0")),
            ("a..b", Err(NameError::EmptyLabel)),
            (".a", Err(NameError::EmptyLabel)),
            (long_label.as_str(), Err(NameError::LongLabel)),
            (long_name.as_str(), Err(NameError::LongName)),
            ("a b", Err(NameError::BadCharacter)),
            ("ä.de", Err(NameError::BadCharacter)),
        ] {
            let name = Name::parse(text);
            assert_eq!(
                name.as_ref().map(Name::wire),
                expected.as_ref().copied(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_zone_holds_itself_and_what_is_below_on_label_borders() {
        let within = |name: &str, zone: &str| {
            Name::parse(name)
                .expect("name")
                .is_within(&Name::parse(zone).expect("zone"))
        };
        assert!(within("a.cluster.local", "cluster.local"));
        assert!(within("cluster.local", "cluster.local"));
        assert!(within("anything", "."));
        assert!(!within("xcluster.local", "cluster.local"));
        assert!(!within("local", "cluster.local"));
    }

    #[test]
    fn addresses_reverse() {
        let reverse = |ip: &str| Name::reverse(ip.parse().expect("address")).to_string();
        assert_eq!(reverse("10.96.0.1"), "1.0.96.10.in-addr.arpa.");
        assert_eq!(
            reverse("fd00::1"),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."
        );
    }
}
