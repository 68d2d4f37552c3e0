//! §2.2, record for the schema version.

use crate::Rule;
use crate::subject::Subject;

pub const RULES: &[Rule] = &[
    (
        "§2.2: dns-version tells the version of the specification",
        &[
            ("dns-version TXT", "NOERROR TXT 1.1.0"),
            ("DNS-Version TXT", "NOERROR TXT 1.1.0"),
        ],
    ),
    (
        "nothing is below dns-version",
        &[
            ("x.dns-version TXT", "NXDOMAIN"),
            ("_tcp.dns-version SRV", "NXDOMAIN"),
        ],
    ),
];

#[test]
fn the_version_is_told() {
    Subject::start("").check(RULES);
}
