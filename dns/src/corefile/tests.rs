//! Corefiles that are read, and Corefiles that are refused with the exact words.

mod read;
mod refused;

use super::*;
use crate::forward::Policy;
use crate::kubernetes::{Exposed, Fallthrough, Objects, PodMode};
use crate::zone::EndpointNames;

fn environment(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("1053".to_owned()),
        "ZONES" => Some("a.example b.example".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Corefile, Error> {
    Corefile::parse("Corefile", text, &environment)
}

#[track_caller]
fn block(text: &str) -> ServerBlock {
    let corefile = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let [block] = corefile.blocks.as_slice() else {
        panic!("{} blocks in {text}", corefile.blocks.len())
    };
    block.clone()
}

fn names(zones: &[&str]) -> Vec<Name> {
    zones
        .iter()
        .map(|zone| Name::parse(zone).expect("zone"))
        .collect()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// A certificate and its key in a folder that goes away with the test.
struct PemFiles(PathBuf);

impl PemFiles {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("cwt-pem-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("made");
        let files = Self(folder);
        files.renew();
        files
    }

    /// Puts others in their place.
    fn renew(&self) {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["dns.example".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("signed");
        std::fs::write(self.0.join("certificate.pem"), certificate.pem()).expect("written");
        std::fs::write(self.0.join("key.pem"), key.serialize_pem()).expect("written");
    }

    fn directive(&self) -> String {
        let folder = self.0.display();
        format!("tls {folder}/certificate.pem {folder}/key.pem")
    }
}

impl Drop for PemFiles {
    fn drop(&mut self) {
        // What is left over in a temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn tls_has_a_port_of_its_own_and_files_that_mean_something() {
    let files = PemFiles::new("meaning");
    let tls = files.directive();
    let read = |heading: &str| block(&format!("{heading} {{\n {tls}\n}}"));
    let keys = |heading: &str| read(heading).keys.iter().map(Key::to_string).collect::<Vec<_>>();
    assert_eq!(keys("tls://."), ["tls://.:853"]);
    assert_eq!(
        keys("tls://a.example:1853 dns://b.example"),
        ["tls://a.example.:1853", "b.example.:53"]
    );
    let first = read("tls://.");
    assert_eq!(read("tls://."), first);
    files.renew();
    assert_ne!(read("tls://."), first);
}

#[test]
fn a_port_is_served_in_one_way() {
    let (files, others) = (PemFiles::new("one-way"), PemFiles::new("other-way"));
    let (tls, other) = (files.directive(), others.directive());
    let clash = |key: &str, scheme: &str| {
        format!("{key}: another server block has port 853 for {scheme}:// with another certificate or none")
    };
    for (first, second, expected) in [
        (format!("tls://a {{\n {tls}"), format!("tls://b {{\n {tls}"), None),
        (
            format!("tls://a {{\n {tls}"),
            format!("tls://b {{\n {other}"),
            Some(clash("tls://b.:853", "tls")),
        ),
        (
            format!("tls://a {{\n {tls}"),
            "b:853 {".to_owned(),
            Some(clash("b.:853", "tls")),
        ),
        (
            "b:853 {".to_owned(),
            format!("tls://a {{\n {tls}"),
            Some(clash("tls://a.:853", "dns")),
        ),
        (
            format!("tls://a {{\n bind 127.0.0.1\n {tls}"),
            "b:853 {\n bind 127.0.0.2".to_owned(),
            None,
        ),
    ] {
        let text = format!("{first}\n}}\n{second}\n}}");
        let refused = parse(&text).err().map(|error| error.message);
        assert_eq!(refused, expected, "{text}");
    }
}

#[test]
fn kubeadms_corefile_is_read_whole() {
    let text = ".:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . 10.0.0.2 {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
";
    let mut cache = cache::Options::default();
    for part in [&mut cache.success, &mut cache.denial] {
        part.max_ttl = 30;
        part.disabled = names(&["cluster.local"]);
    }
    let expected = ServerBlock {
        keys: vec![Key {
            scheme: Scheme::Dns,
            zone: Name::root(),
            port: 53,
        }],
        bind: Vec::new(),
        errors: true,
        log: Vec::new(),
        health: Some(Health {
            address: socket("[::]:8080"),
            lameduck: Duration::from_secs(5),
        }),
        ready: Some(socket("[::]:8181")),
        prometheus: Some(socket("[::]:9153")),
        cache: Some(cache),
        detect_loops: true,
        reload: Some(Reload {
            interval: Duration::from_secs(30),
            jitter: Duration::from_secs(15),
        }),
        load_balance: true,
        kubernetes: Some(kubernetes::Options {
            zones: names(&["cluster.local", "in-addr.arpa", "ip6.arpa"]),
            ttl: 30,
            pods: PodMode::Insecure,
            fallthrough: Fallthrough(names(&["in-addr.arpa", "ip6.arpa"])),
            endpoint_names: EndpointNames::Dashed,
            exposed: Exposed::All,
            endpoints: true,
            empty_services: true,
            objects: Objects::Agent("/run/causeway/dns.sock".into()),
            state: "/run/causeway".into(),
            startup_timeout: Duration::from_secs(5),
        }),
        forward: vec![forward::Options {
            to: vec![socket("10.0.0.2:53").into()],
            max_concurrent: Some(1000),
            ..forward::Options::default()
        }],
        ..ServerBlock::default()
    };
    assert_eq!(block(text), expected);
}

#[test]
fn no_limit_of_queries_under_way_is_said_by_zero_or_by_nothing() {
    for (option, expected) in [
        ("", None),
        ("max_concurrent 0", None),
        ("max_concurrent 2", Some(2)),
    ] {
        let block = block(&format!(". {{\n forward . 192.0.2.1 {{\n {option}\n }}\n}}"));
        assert_eq!(block.forward[0].max_concurrent, expected, "{option}");
    }
}

#[test]
fn headings_name_zones_and_ports() {
    for (heading, expected) in [
        (". {", vec![(".", 53)]),
        ("cluster.local:1053 {", vec![("cluster.local", 1053)]),
        ("dns://Example.COM:54 {", vec![("example.com", 54)]),
        (":5353 {", vec![(".", 5353)]),
        (
            "a.example b.example:54 {",
            vec![("a.example", 53), ("b.example", 54)],
        ),
        (
            "a.example, b.example {",
            vec![("a.example", 53), ("b.example", 53)],
        ),
        (
            "a.example,\nb.example {",
            vec![("a.example", 53), ("b.example", 53)],
        ),
        (".:{$PORT} {", vec![(".", 1053)]),
        (".:{%PORT%} {", vec![(".", 1053)]),
        (".:{$NOTHING:54} {", vec![(".", 54)]),
        ("10.0.0.0/8 {", vec![("10.in-addr.arpa", 53)]),
        ("10.1.2.0/24:54 {", vec![("2.1.10.in-addr.arpa", 54)]),
        (
            "10.0.0.0/15 {",
            vec![("0.10.in-addr.arpa", 53), ("1.10.in-addr.arpa", 53)],
        ),
        ("0.0.0.0/0 {", vec![("in-addr.arpa", 53)]),
        ("10.1.2.3/32 {", vec![("3.2.1.10.in-addr.arpa", 53)]),
        ("fd00::/8 {", vec![("d.f.ip6.arpa", 53)]),
        ("fd00::/7:54 {", vec![("c.f.ip6.arpa", 54), ("d.f.ip6.arpa", 54)]),
    ] {
        let keys = block(&format!("{heading}\n whoami\n}}")).keys;
        let keys: Vec<_> = keys.iter().map(|key| (key.zone.clone(), key.port)).collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(zone, port)| (Name::parse(zone).expect("zone"), port))
            .collect();
        assert_eq!(keys, expected, "{heading}");
    }
}

#[test]
fn options_are_read() {
    let forward = |text: &str| block(&format!(". {{\n forward {text}\n}}")).forward;
    let one = |change: &dyn Fn(&mut forward::Options)| {
        let mut options = forward::Options {
            to: vec![socket("1.1.1.1:53").into()],
            ..forward::Options::default()
        };
        change(&mut options);
        vec![options]
    };
    for (text, expected) in [
        (". 1.1.1.1", one(&|_| {})),
        (
            ". dns://1.1.1.1:54",
            one(&|options| options.to = vec![socket("1.1.1.1:54").into()]),
        ),
        (
            ". 1.1.1.1 [fd00::1]:54",
            one(&|options| options.to.push(socket("[fd00::1]:54").into())),
        ),
        (
            ". 1.1.1.1 fd00::1",
            one(&|options| options.to.push(socket("[fd00::1]:53").into())),
        ),
        (
            "a.example 1.1.1.1",
            one(&|options| options.from = names(&["a.example"])),
        ),
        (
            ". 1.1.1.1 {\n policy sequential\n}",
            one(&|options| options.policy = Policy::Sequential),
        ),
        (
            ". 1.1.1.1 {\n policy round_robin\n}",
            one(&|options| options.policy = Policy::RoundRobin),
        ),
        (
            ". 1.1.1.1 {\n max_fails 0\n}",
            one(&|options| options.max_fails = 0),
        ),
        (
            ". 1.1.1.1 {\n expire 1m30s\n}",
            one(&|options| options.expire = Duration::from_secs(90)),
        ),
        (
            ". 1.1.1.1 {\n force_tcp\n prefer_udp\n}",
            one(&|options| (options.force_tcp, options.prefer_udp) = (true, true)),
        ),
        (
            ". 1.1.1.1 {\n health_check 250ms\n}",
            one(&|options| options.health_check.interval = Duration::from_millis(250)),
        ),
        (
            ". 1.1.1.1 {\n health_check 1s no_rec domain a.example\n}",
            one(&|options| {
                options.health_check = forward::HealthCheck {
                    interval: Duration::from_secs(1),
                    recursion_desired: false,
                    domain: names(&["a.example"]).remove(0),
                }
            }),
        ),
        (
            ". 1.1.1.1 {\n tls_servername dns.example\n tls /c /k /a\n}",
            one(&|options| {
                options.tls = forward::Tls {
                    server_name: Some("dns.example".to_owned()),
                    authorities: Some("/a".into()),
                    identity: Some(("/c".into(), "/k".into())),
                }
            }),
        ),
        (
            ". 1.1.1.1 {\n except a.example b.example\n}",
            one(&|options| options.except = names(&["a.example", "b.example"])),
        ),
    ] {
        assert_eq!(forward(text), expected, "{text}");
    }
    assert_eq!(forward(". 1.1.1.1\n forward a.example 2.2.2.2").len(), 2);
    let log = |text: &str| block(&format!(". {{\n log {text}\n}}")).log;
    let rule = |zones: &[&str], success, denial, error, format: Option<&str>| {
        vec![query_log::Rule {
            zones: names(zones),
            classes: query_log::Classes {
                success,
                denial,
                error,
            },
            format: format.map(query_log::Format::parse),
        }]
    };
    for (text, expected) in [
        ("", rule(&["."], true, true, true, None)),
        (
            ". {\n class error denial\n}",
            rule(&["."], false, true, true, None),
        ),
        ("{\n class all\n}", rule(&["."], true, true, true, None)),
        (
            "a.example b.example {\n class success\n}",
            rule(&["a.example", "b.example"], true, false, false, None),
        ),
        (
            "a.example \"{name} {rcode}\"",
            rule(&["a.example"], true, true, true, Some("{name} {rcode}")),
        ),
        ("{common}", rule(&["."], true, true, true, Some("{common}"))),
    ] {
        assert_eq!(log(text), expected, "{text}");
    }
    assert_eq!(log("a.example\n log b.example").len(), 2);
    let errors = block(
        ". {\n errors {\n consolidate 5m \".* timeout$\" warning\n consolidate 30s ^x debug show_first\n consolidate 1s y \
         info\n consolidate 1s z\n}\n}",
    );
    let kind = |seconds, pattern: &str, level, show_first| error_log::Consolidation {
        period: Duration::from_secs(seconds),
        errors: crate::pattern::Pattern::parse(pattern).expect("a pattern"),
        level,
        show_first,
    };
    let expected = [
        kind(300, ".* timeout$", error_log::Level::Warning, false),
        kind(30, "^x", error_log::Level::Debug, true),
        kind(1, "y", error_log::Level::Info, false),
        kind(1, "z", error_log::Level::Error, false),
    ];
    assert_eq!(
        (errors.errors, errors.consolidations.as_slice()),
        (true, &expected[..])
    );
    let cache = block(
        ". {\n cache 60 a.example {\n success 100 50 7\n denial 10 5\n servfail 1s\n disable denial\n}\n}",
    );
    let part = |capacity, max_ttl, min_ttl, disabled| cache::Part {
        capacity,
        max_ttl,
        min_ttl,
        disabled,
    };
    let expected = cache::Options {
        zones: names(&["a.example"]),
        success: part(100, 50, 7, Vec::new()),
        denial: part(10, 5, 5, vec![Name::root()]),
        servfail: Duration::from_secs(1),
        ..cache::Options::default()
    };
    assert_eq!(cache.cache, Some(expected));
    let cache = |option: &str| block(&format!(". {{\n cache {{\n {option}\n}}\n}}")).cache;
    let prefetch = |amount, pause, percentage| cache::Options {
        prefetch: Some(cache::Prefetch {
            amount,
            pause: Duration::from_secs(pause),
            percentage,
        }),
        ..cache::Options::default()
    };
    let stale = |beyond, verifies| cache::Options {
        stale: Some(cache::Stale {
            beyond: Duration::from_secs(beyond),
            verifies,
        }),
        ..cache::Options::default()
    };
    let keeps_ttl = cache::Options {
        keeps_ttl: true,
        ..cache::Options::default()
    };
    for (option, expected) in [
        ("prefetch 10", prefetch(10, 60, 10)),
        ("prefetch 10 5m", prefetch(10, 300, 10)),
        ("prefetch 1 5s 90%", prefetch(1, 5, 90)),
        ("serve_stale", stale(3600, false)),
        ("serve_stale 1m", stale(60, false)),
        ("serve_stale 1m immediate", stale(60, false)),
        ("serve_stale 1m Verify", stale(60, true)),
        ("keepttl", keeps_ttl),
    ] {
        assert_eq!(cache(option), Some(expected), "{option}");
    }
    let kubernetes = block(
        "cluster.local {\n kubernetes {\n pods insecure\n fallthrough\n feed /f.sock\n state /s\n endpoint_pod_names\n}\n}",
    );
    let expected = kubernetes::Options {
        zones: names(&["cluster.local"]),
        ttl: 5,
        pods: PodMode::Insecure,
        fallthrough: Fallthrough(vec![Name::root()]),
        endpoint_names: EndpointNames::Pod,
        exposed: Exposed::All,
        endpoints: true,
        empty_services: true,
        objects: Objects::Agent("/f.sock".into()).with_pod_names(),
        state: "/s".into(),
        startup_timeout: Duration::from_secs(5),
    };
    assert_eq!(kubernetes.kubernetes, Some(expected));
    let endpoints = block(
        ". {\n health localhost:1\n ready 10.0.0.1:2\n prometheus\n bind 10.0.0.1 ::1\n bind lo\n reload 10s 5s\n}",
    );
    assert_eq!(
        (
            endpoints.health.map(|health| health.address),
            endpoints.ready,
            endpoints.prometheus,
            endpoints.reload
        ),
        (
            Some(socket("127.0.0.1:1")),
            Some(socket("10.0.0.1:2")),
            Some(socket("127.0.0.1:9153")),
            Some(Reload {
                interval: Duration::from_secs(10),
                jitter: Duration::from_secs(5),
            })
        )
    );
    let bound: Vec<String> = endpoints.bind.iter().map(IpAddr::to_string).collect();
    assert!(
        bound.starts_with(&["10.0.0.1".to_owned(), "::1".to_owned(), "127.0.0.1".to_owned()]),
        "{bound:?}"
    );
}

#[test]
fn rules_about_clients_are_read() {
    let only = block(
        "a.example {\n any\n minimal\n bufsize 1400\n ratelimit 100 200 {\n exempt 10.0.0.0/8 ::1\n ipv6-prefix-length \
         64\n}\n acl {\n \
         allow net 10.1.0.0/16 fd00::1\n drop type TXT ANY\n block type AAAA TYPE65 net 192.0.2.1\n filter net * \
         type A\n block\n}\n acl b.example {\n allow\n}\n}",
    );
    assert_eq!((only.any, only.minimal, only.bufsize), (true, true, Some(1400)));
    let network = |text: &str| text.parse().expect("network");
    let limit = rate_limit::Options {
        per_second: 100,
        burst: 200,
        exempt: vec![network("10.0.0.0/8"), network("::1")],
        prefixes: rate_limit::Prefixes { v4: 32, v6: 64 },
    };
    assert_eq!(only.rate_limit, Some(limit));
    let rule = |action, types: &[u16], clients: &[&str]| acl::Rule {
        action,
        types: types.to_vec(),
        clients: clients.iter().map(|text| network(text)).collect(),
    };
    let expected = [
        acl::Options {
            zones: names(&["a.example"]),
            rules: vec![
                rule(acl::Action::Allow, &[], &["10.1.0.0/16", "fd00::1"]),
                rule(acl::Action::Drop, &[], &[]),
                rule(acl::Action::Block, &[28, 65], &["192.0.2.1"]),
                rule(acl::Action::Filter, &[1], &[]),
                rule(acl::Action::Block, &[], &[]),
            ],
        },
        acl::Options {
            zones: names(&["b.example"]),
            rules: vec![rule(acl::Action::Allow, &[], &[])],
        },
    ];
    assert_eq!(only.acl, expected);
    assert_eq!(block(". {\n bufsize\n}").bufsize, Some(1232));
    let limit = block(". {\n ratelimit 7\n}").rate_limit;
    assert_eq!(limit.map(|limit| (limit.per_second, limit.burst)), Some((7, 7)));
}

#[test]
fn layout_comments_quotes_snippets_and_imports() {
    let whoami = |text: &str| block(text).whoami;
    for text in [
        ".\nwhoami",
        "# a comment\n. { # another\n whoami # and one\n}",
        ". {\n \"whoami\"\n}",
        "\u{feff}. {\n whoami\n}\n\n",
        "(snip) {\n whoami\n}\n. {\n import snip\n}",
        "(outer) {\n import inner\n}\n(inner) {\n whoami\n}\n. {\n import outer\n}",
    ] {
        assert!(whoami(text), "{text}");
    }
    let blocks = parse("a.example {\n whoami\n}\nb.example {\n}")
        .expect("two blocks")
        .blocks;
    assert_eq!(
        blocks.iter().map(|block| block.whoami).collect::<Vec<_>>(),
        [true, false]
    );
    // What is imported often is not imported deeply.
    let often = format!(
        "(plain) {{\n errors\n}}\n{}",
        ". {\n import plain\n}\n".repeat(150)
    );
    let often = often.split(". {").enumerate();
    let often: Vec<String> = often
        .map(|(number, part)| match number {
            0 => part.to_owned(),
            number => format!("z{number}.example {{{part}"),
        })
        .collect();
    assert_eq!(parse(&often.concat()).map(|file| file.blocks.len()), Ok(150));
    let spaced = block("\"quoted.example\" {\n forward \"a.example\" 1.1.1.1\n}");
    assert_eq!(spaced.forward[0].from, names(&["a.example"]));
}

#[test]
fn files_are_imported_from_beside_the_importing_file() {
    let folder = std::env::temp_dir().join(format!("cwt-corefile-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("custom")).expect("made");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write(
        "Corefile",
        ". {\n import custom/*.override\n}\nimport custom/*.server\nimport none/*.server\n",
    );
    write("custom/a.override", "whoami\n");
    write("custom/b.override", "errors\n");
    write("custom/ignored.txt", "nonsense\n");
    write("custom/c.server", "c.example {\n nonsense\n}\n");
    let error = Corefile::read(&folder.join("Corefile")).expect_err("nonsense");
    let place = format!(
        "{}:2: unknown plugin \"nonsense\"",
        folder.join("custom/c.server").display()
    );
    assert!(error.to_string().starts_with(&place), "{error}");
    write("custom/c.server", "c.example {\n loop\n}\n");
    let blocks = Corefile::read(&folder.join("Corefile")).expect("read").blocks;
    let flags: Vec<_> = blocks
        .iter()
        .map(|block| (block.whoami, block.errors, block.detect_loops))
        .collect();
    assert_eq!(flags, [(true, true, false), (false, false, true)]);
    let absent = Corefile::read(&folder.join("absent"))
        .expect_err("absent")
        .to_string();
    assert!(
        absent.ends_with("absent:0: cannot read the Corefile: No such file or directory (os error 2)"),
        "{absent}"
    );
    std::fs::remove_dir_all(&folder).expect("removed");
}
