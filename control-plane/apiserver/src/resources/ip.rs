//! Addresses and networks in fields, in apimachinery's words (`validation.IsValidIP`, `IsValidCIDR`).

use std::net::IpAddr;

use super::field::{Errors, Path};

/// The address of a field; an error is noted when it is none.
pub(super) fn validate_ip(text: &str, at: &Path, errors: &mut Errors) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid(at, text, detail);
    }
    parsed
}

/// A network with its prefix length, which alone makes it one.
pub(super) fn validate_cidr(text: &str, at: &Path, errors: &mut Errors) {
    if !text.contains('/') || text.parse::<ipnetwork::IpNetwork>().is_err() {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.invalid(at, text, detail);
    }
}

/// Addresses that mean something to one machine only are of no use to others (`ValidateNonSpecialIP`).
pub(super) fn validate_not_special(ip: IpAddr, at: &Path, errors: &mut Errors) {
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let complaints = [
        (ip.is_unspecified(), format!("may not be unspecified ({ip})")),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        ),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ];
    for (_, detail) in complaints.into_iter().filter(|(applies, _)| *applies) {
        errors.invalid(at, ip.to_string(), detail);
    }
}
