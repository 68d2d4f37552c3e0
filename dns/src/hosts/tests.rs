//! Lines in, answers out.

use std::path::Path;

use super::*;
use crate::answer::code_of;
use crate::question::{Record, expand_name, query_packet};

const FILE: &str = "\
# comment\n127.0.0.1 localhost localhost.localdomain # loopback\n::1 localhost\n10.0.0.1 web.a.example www.a.example\n\
10.0.0.2 web.a.example\n10.0.0.2 web.a.example\nfd00::1 v6.a.example\nnonsense here\n10.0.0.3\n10.0.0.4 b..d ok.a.example\n\
10.0.0.5 *.w.example\n10.0.0.6 known.w.example\nfe80::1%eth0 link.a.example\n10.0.0.7 other.example\n";

/// A file that goes away with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-hosts-{name}-{}", std::process::id()));
        std::fs::write(&path, text).expect("written");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // What is left over in a temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn names(names: &[&str]) -> Vec<Name> {
    names
        .iter()
        .map(|name| Name::parse(name).expect("name"))
        .collect()
}

fn options(file: &Path) -> Options {
    Options {
        file: file.to_owned(),
        zones: names(&["."]),
        inline: Vec::new(),
        ttl: 3600,
        reverse: true,
        reload: Duration::from_millis(1),
        fallthrough: Vec::new(),
    }
}

/// `CODE data data …`, or `next` where the next plugin is to be asked.
fn ask(hosts: &Hosts, name: &str, qtype: u16) -> String {
    let packet = query_packet(1, Name::parse(name).expect("name").wire(), qtype);
    let query = Query::parse(&packet).expect("query");
    let mut out = Vec::new();
    let shape = Shape {
        limit: 512,
        rotation: 0,
    };
    if hosts.answer(&query, shape, &mut out) == Verdict::NotOurs {
        return "next".to_owned();
    }
    let mut text = crate::mnemonic::code_name(code_of(&out)).into_owned();
    let mut at = query.question_end;
    for _ in 0..out[7] {
        let (record, next) = Record::read(&out, at).expect("a record");
        assert_eq!(record.ttl, hosts.options.ttl);
        let data = match *record.data {
            [a, b, c, d] => IpAddr::from([a, b, c, d]).to_string(),
            ref data if data.len() == 16 && record.rtype == rtype::AAAA => {
                IpAddr::from(<[u8; 16]>::try_from(data).expect("16 bytes")).to_string()
            }
            _ => Name::from_lower_wire(&expand_name(&out, record.data_at).expect("a name")).to_string(),
        };
        text = format!("{text} {data}");
        at = next;
    }
    text
}

#[test]
fn names_addresses_and_wildcards_of_a_file_are_answered() {
    let file = File::new("answers", FILE);
    let hosts = Hosts::new(options(&file.0));
    for (name, qtype, expected) in [
        ("localhost", rtype::A, "NOERROR 127.0.0.1"),
        ("LOCALHOST", rtype::AAAA, "NOERROR ::1"),
        ("web.a.example", rtype::A, "NOERROR 10.0.0.1 10.0.0.2"),
        ("web.a.example", rtype::AAAA, "NOERROR"),
        ("web.a.example", rtype::TXT, "NOERROR"),
        ("v6.a.example", rtype::AAAA, "NOERROR fd00::1"),
        ("v6.a.example", rtype::A, "NOERROR"),
        ("ok.a.example", rtype::A, "NOERROR 10.0.0.4"),
        ("link.a.example", rtype::AAAA, "NOERROR fe80::1"),
        ("nothing.a.example", rtype::A, "SERVFAIL"),
        ("here", rtype::A, "SERVFAIL"),
        ("any.w.example", rtype::A, "NOERROR 10.0.0.5"),
        ("known.w.example", rtype::A, "NOERROR 10.0.0.6"),
        ("w.example", rtype::A, "SERVFAIL"),
        ("deep.any.w.example", rtype::A, "SERVFAIL"),
        (
            "1.0.0.10.in-addr.arpa",
            rtype::PTR,
            "NOERROR web.a.example. www.a.example.",
        ),
        ("2.0.0.10.in-addr.arpa", rtype::PTR, "NOERROR web.a.example."),
        ("5.0.0.10.in-addr.arpa", rtype::PTR, "next"),
        ("9.9.9.9.in-addr.arpa", rtype::PTR, "next"),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            rtype::PTR,
            "NOERROR v6.a.example.",
        ),
    ] {
        assert_eq!(ask(&hosts, name, qtype), expected, "{name} {qtype}");
    }
}

#[test]
fn options_bound_what_is_answered() {
    let file = File::new("options", FILE);
    let mut scoped = options(&file.0);
    scoped.zones = names(&["a.example"]);
    scoped.fallthrough = names(&["sub.a.example"]);
    scoped.reverse = false;
    scoped.ttl = 7;
    scoped.inline = vec![Entry {
        address: [10, 1, 1, 1].into(),
        names: names(&["inline.a.example", "web.a.example"]),
    }];
    let hosts = Hosts::new(scoped);
    for (name, qtype, expected) in [
        ("web.a.example", rtype::A, "NOERROR 10.0.0.1 10.0.0.2 10.1.1.1"),
        ("inline.a.example", rtype::A, "NOERROR 10.1.1.1"),
        ("other.example", rtype::A, "next"),
        ("none.a.example", rtype::A, "SERVFAIL"),
        ("none.sub.a.example", rtype::A, "next"),
        ("1.0.0.10.in-addr.arpa", rtype::PTR, "next"),
    ] {
        assert_eq!(ask(&hosts, name, qtype), expected, "{name} {qtype}");
    }
    assert_eq!(Hosts::new(options(Path::new("/none/such"))).entry_count(), 0);
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Written(&'static str),
    Removed,
    /// One stands in its place.
    Directory,
}

impl Change {
    fn make(self, path: &Path) {
        match self {
            Self::Written(text) => {
                if path.is_dir() {
                    std::fs::remove_dir(path).expect("removed");
                }
                std::fs::write(path, text).expect("written");
            }
            Self::Removed => std::fs::remove_file(path).expect("removed"),
            Self::Directory => std::fs::create_dir(path).expect("made"),
        }
    }
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_one_that_cannot_be_read_counts_as_it_was() {
    let file = File::new("reload", "10.0.0.1 a.example\n");
    let mut options = options(&file.0);
    options.inline = vec![Entry {
        address: [10, 1, 1, 1].into(),
        names: names(&["inline.example"]),
    }];
    let hosts = Arc::new(Hosts::new(options));
    let (lines, _guard) = crate::samples::captured();
    let following = tokio::spawn(Arc::clone(&hosts).follow());
    let path = &file.0;
    for (change, expected) in [
        (Change::Written("10.0.0.22 a.example\n"), "NOERROR 10.0.0.22"),
        (Change::Removed, "NOERROR 10.0.0.22"),
        // Another reason is news.
        (Change::Directory, "NOERROR 10.0.0.22"),
        (Change::Written("10.0.0.3 a.example\n"), "NOERROR 10.0.0.3"),
        // And so is the same one after a time without.
        (Change::Removed, "NOERROR 10.0.0.3"),
        (Change::Written("10.0.0.44 a.example\n"), "NOERROR 10.0.0.44"),
    ] {
        change.make(path);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let failed = hosts.failed.load(Ordering::Relaxed);
        // Of two looks more one at least began after the change.
        let is_readable = matches!(change, Change::Written(_));
        let is_seen = || is_readable || hosts.failed.load(Ordering::Relaxed) > failed + 2;
        while ask(&hosts, "a.example", rtype::A) != expected || !is_seen() {
            assert!(std::time::Instant::now() < deadline, "{change:?}");
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&hosts, "inline.example", rtype::A), "NOERROR 10.1.1.1");
    }
    following.abort();
    let told = lines.take();
    assert_eq!(told.matches("hosts file not read").count(), 3, "{told}");
}
