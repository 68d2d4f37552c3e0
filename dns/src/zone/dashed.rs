//! Addresses as labels of names: `10-244-1-7`.

use std::fmt::{self, Write as _};
use std::io;
use std::net::IpAddr;

use crate::name::MAX_LABEL;

/// Writes an address as a label: `10-244-1-7`, `fd00--1`; a label may not end in a dash, so that `fd00::` is `fd00--0`.
pub(super) fn put_dashed(address: IpAddr, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.push(0);
    // Writing into memory does not fail.
    let _infallible = io::Write::write_fmt(out, format_args!("{address}"));
    for byte in out.iter_mut().skip(length_at + 1) {
        if matches!(*byte, b'.' | b':') {
            *byte = b'-';
        }
    }
    if out.ends_with(b"-") {
        out.push(b'0');
    }
    out[length_at] = (out.len() - length_at - 1) as u8;
}

/// The address that an endpoint with this label has, where it is called by that.
#[must_use]
pub fn address_of_dashed(label: &[u8]) -> Option<IpAddr> {
    address_of_pod_label(label).filter(|address| is_dashed(*address, label))
}

/// Whether `label` is what [`put_dashed`] makes of the address, found without making it.
fn is_dashed(address: IpAddr, label: &[u8]) -> bool {
    let mut rest = Unmatched(label);
    if write!(rest, "{address}").is_err() {
        return false;
    }
    let matched = label.strip_suffix(rest.0).unwrap_or(label);
    match matched.ends_with(b"-") {
        true => rest.0 == b"0",
        false => rest.0.is_empty(),
    }
}

/// What of a label was not yet met by an address that is written into it.
struct Unmatched<'l>(&'l [u8]);

impl fmt::Write for Unmatched<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let expected = if matches!(byte, b'.' | b':') { b'-' } else { byte };
            match self.0.split_first() {
                Some((first, rest)) if *first == expected => self.0 = rest,
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// The address that a pod's label spells, in any spelling (`--1` is `::1`).
#[must_use]
pub fn address_of_pod_label(label: &[u8]) -> Option<IpAddr> {
    let dashes = label.iter().filter(|byte| **byte == b'-').count();
    let has_gap = label.windows(2).any(|pair| pair == b"--");
    let separator = match (dashes, has_gap) {
        (0, _) => return None,
        (3, false) => b'.',
        _ => b':',
    };
    let mut text = [0; MAX_LABEL];
    let text = text.get_mut(..label.len())?;
    for (to, from) in text.iter_mut().zip(label) {
        *to = if *from == b'-' { separator } else { *from };
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_labels_and_back() {
        for (address, label) in [
            ("10.244.1.7", "10-244-1-7"),
            ("fd00::1", "fd00--1"),
            ("fd00::", "fd00--0"),
            ("::1", "--1"),
            ("1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8"),
            ("1:2::3", "1-2--3"),
        ] {
            let address: IpAddr = address.parse().expect("address");
            let mut wire = Vec::new();
            put_dashed(address, &mut wire);
            let expected = [&[label.len() as u8], label.as_bytes()].concat();
            assert_eq!(wire, expected, "{label}");
            assert_eq!(address_of_dashed(label.as_bytes()), Some(address), "{label}");
        }
        for other in [
            "",
            "web",
            "10-244-1",
            "10-244-1-256",
            "fd00--00",
            "fd00--",
            "fd00--1-",
            "1-2-3-4-5-6-7-8-",
            "fd00-0--1",
            "10-244-1-7-",
            "-",
            "010-1-1-1",
            "1-2-3-4-5",
        ] {
            assert_eq!(address_of_dashed(other.as_bytes()), None, "{other}");
        }
    }
}
