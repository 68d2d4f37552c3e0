//! Corefiles that are read, and Corefiles that are refused with the exact words.

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
            zone: Name::root(),
            port: 53,
        }],
        bind: Vec::new(),
        errors: true,
        log: None,
        health: Some(Health {
            address: socket("[::]:8080"),
            lameduck: Duration::from_secs(5),
        }),
        ready: Some(socket("[::]:8181")),
        prometheus: Some(socket("[::]:9153")),
        cache: Some(cache),
        detect_loops: true,
        reload: Some(Duration::from_secs(30)),
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
            to: vec![socket("10.0.0.2:53")],
            max_concurrent: Some(1000),
            ..forward::Options::default()
        }],
        whoami: false,
    };
    assert_eq!(block(text), expected);
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
            to: vec![socket("1.1.1.1:53")],
            ..forward::Options::default()
        };
        change(&mut options);
        vec![options]
    };
    for (text, expected) in [
        (". 1.1.1.1", one(&|_| {})),
        (
            ". dns://1.1.1.1:54",
            one(&|options| options.to = vec![socket("1.1.1.1:54")]),
        ),
        (
            ". 1.1.1.1 [fd00::1]:54",
            one(&|options| options.to.push(socket("[fd00::1]:54"))),
        ),
        (
            ". 1.1.1.1 fd00::1",
            one(&|options| options.to.push(socket("[fd00::1]:53"))),
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
            one(&|options| options.health_check = Duration::from_millis(250)),
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
    let classes = |success, denial, error| {
        Some(Log {
            success,
            denial,
            error,
        })
    };
    assert_eq!(log(""), classes(true, true, true));
    assert_eq!(log(". {\n class error denial\n}"), classes(false, true, true));
    assert_eq!(log("{\n class all\n}"), classes(true, true, true));
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
    };
    assert_eq!(cache.cache, Some(expected));
    let kubernetes = block(
        "cluster.local {\n kubernetes {\n pods verified\n fallthrough\n feed /f.sock\n state /s\n endpoint_pod_names\n}\n}",
    );
    let expected = kubernetes::Options {
        zones: names(&["cluster.local"]),
        ttl: 5,
        pods: PodMode::Verified,
        fallthrough: Fallthrough(vec![Name::root()]),
        endpoint_names: EndpointNames::Pod,
        exposed: Exposed::All,
        endpoints: true,
        empty_services: true,
        objects: Objects::Agent("/f.sock".into()),
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
            Some(Duration::from_secs(10))
        )
    );
    let bound: Vec<String> = endpoints.bind.iter().map(IpAddr::to_string).collect();
    assert!(
        bound.starts_with(&["10.0.0.1".to_owned(), "::1".to_owned(), "127.0.0.1".to_owned()]),
        "{bound:?}"
    );
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

#[test]
fn what_is_wrong_is_said_with_its_line() {
    const KNOWN: &str = "reload, bind, health, ready, prometheus, errors, log, loadbalance, cache, kubernetes, loop, \
                         forward, whoami, import";
    let unknown = format!("Corefile:3: unknown plugin \"hosts\"; known are {KNOWN}");
    let inside = |directive: &str| format!(". {{\n {directive}\n}}");
    let in_kubernetes = |option: &str| format!(". {{\n kubernetes cluster.local {{\n {option}\n}}\n}}");
    let in_forward = |option: &str| format!(". {{\n forward . 1.1.1.1 {{\n {option}\n}}\n}}");
    let rows: Vec<(String, &str)> = vec![
        (
            String::new(),
            "Corefile:0: there is no server block: the least is '. { whoami }'",
        ),
        (
            "# nothing\n".into(),
            "Corefile:0: there is no server block: the least is '. { whoami }'",
        ),
        (". {\n errors\n hosts\n}".into(), &unknown),
        (
            ". {\n errors\n".into(),
            "Corefile:1: the block of \".\" is never closed",
        ),
        (
            "{\n errors\n}".into(),
            "Corefile:1: a server block needs a zone in front of '{'",
        ),
        ("}".into(), "Corefile:1: unexpected '}'"),
        (".\nerrors\n}".into(), "Corefile:3: unexpected '}'"),
        (". {\n {\n}".into(), "Corefile:2: unexpected '{'"),
        (
            ". {\n log \"open\n}".into(),
            "Corefile:2: a quote is opened here and never closed",
        ),
        (
            ". {\n}\n. {\n}".into(),
            "Corefile:3: cannot serve . at port 53 twice",
        ),
        (
            "a.example a.example:53 {\n}".into(),
            "Corefile:1: cannot serve a.example. at port 53 twice",
        ),
        (
            "tls://. {\n}".into(),
            "Corefile:1: tls:// is not served yet; only dns:// is",
        ),
        (".:dns {\n}".into(), "Corefile:1: \"dns\" is no port number"),
        (".:70000 {\n}".into(), "Corefile:1: \"70000\" is no port number"),
        (
            "a..b {\n}".into(),
            "Corefile:1: the zone \"a..b\" has an empty label",
        ),
        (
            "10.0.0.0/33 {\n}".into(),
            "Corefile:1: \"10.0.0.0/33\" is neither a zone nor a network",
        ),
        ("(snip)\n".into(), "Corefile:1: the snippet (snip) needs a block"),
        (
            "(s) {\n}\n(s) {\n}".into(),
            "Corefile:3: the snippet (s) is defined twice",
        ),
        (
            "(s) {\n import s\n}\n. {\n import s\n}".into(),
            "Corefile:2: too many imports: a file imports itself",
        ),
        (
            inside("import"),
            "Corefile:2: import takes one file, pattern or snippet",
        ),
        (
            inside("import /none/such"),
            "Corefile:2: cannot import /none/such: No such file or directory (os error 2)",
        ),
        (inside("errors stdout"), "Corefile:2: errors takes no argument"),
        (
            inside("errors {\n consolidate 5m .*\n}"),
            "Corefile:3: unknown option \"consolidate\" of errors; it has none",
        ),
        (
            inside("errors\n errors"),
            "Corefile:3: the plugin \"errors\" is given twice in one server block",
        ),
        (
            inside("loadbalance weighted f"),
            "Corefile:2: loadbalance knows round_robin, not \"weighted\"",
        ),
        (
            inside("log a.example"),
            "Corefile:2: log takes no names or formats yet, only the option class",
        ),
        (
            inside("log {\n class some\n}"),
            "Corefile:3: \"some\" is no class of log; known are all, success, denial and error",
        ),
        (
            inside("log {\n format x\n}"),
            "Corefile:3: unknown option \"format\" of log; known are class",
        ),
        (
            inside("health nonsense"),
            "Corefile:2: \"nonsense\" is no address with a port",
        ),
        (inside("health :1 :2"), "Corefile:2: health takes one address"),
        (
            inside("health {\n lameduck 5\n}"),
            "Corefile:3: \"5\" is no duration like 5s, 500ms or 1m30s",
        ),
        (
            inside("health {\n lameduck\n}"),
            "Corefile:3: lameduck takes exactly one argument",
        ),
        (
            inside("reload 1s"),
            "Corefile:2: reload looks at the file every 2s at the most often",
        ),
        (
            inside("bind"),
            "Corefile:2: bind takes at least one address or interface",
        ),
        (
            inside("bind nosuch0"),
            "Corefile:2: \"nosuch0\" is neither an address nor an interface that has one",
        ),
        (
            inside("cache {\n prefetch 1\n}"),
            "Corefile:3: unknown option \"prefetch\" of cache; known are success, denial, disable, servfail",
        ),
        (
            inside("cache {\n success many\n}"),
            "Corefile:3: \"many\" is no number in range",
        ),
        (
            inside("cache {\n success\n}"),
            "Corefile:3: success takes a capacity",
        ),
        (
            inside("cache {\n disable all\n}"),
            "Corefile:3: disable takes success or denial, not \"all\"",
        ),
        (
            inside("cache {\n disable\n}"),
            "Corefile:3: disable takes success or denial, and zones",
        ),
        (
            inside("kubernetes in-addr.arpa"),
            "Corefile:2: kubernetes needs a zone that is not a reverse zone",
        ),
        (
            in_kubernetes("pods all"),
            "Corefile:3: pods is disabled, insecure or verified, not \"all\"",
        ),
        (
            in_kubernetes("ttl 3601"),
            "Corefile:3: ttl is 0 to 3600 seconds, not 3601",
        ),
        (
            in_kubernetes("ttl -1"),
            "Corefile:3: \"-1\" is no number in range",
        ),
        (in_kubernetes("ttl"), "Corefile:3: ttl takes exactly one argument"),
        (
            in_kubernetes("multicluster"),
            "Corefile:3: unknown option \"multicluster\" of kubernetes; known are pods, ttl, fallthrough, endpoint_pod_names, \
             namespaces, namespace_labels, labels, noendpoints, ignore, endpoint, tls, kubeconfig, feed, state, startup_timeout",
        ),
        (
            inside("forward"),
            "Corefile:2: forward takes a zone and at least one upstream",
        ),
        (
            inside("forward ."),
            "Corefile:2: forward takes at least one upstream behind the zone",
        ),
        (
            inside("forward . tls://1.1.1.1"),
            "Corefile:2: tls:// upstreams are not supported yet; only dns:// are",
        ),
        (
            inside("forward . resolver"),
            "Corefile:2: \"resolver\" is neither an address nor a file like /etc/resolv.conf",
        ),
        (
            inside("forward . /none/resolv.conf"),
            "Corefile:2: cannot read name servers from /none/resolv.conf: No such file or directory (os error 2)",
        ),
        (
            in_forward("policy best"),
            "Corefile:3: policy is random, round_robin or sequential, not \"best\"",
        ),
        (
            in_forward("max_fails many"),
            "Corefile:3: \"many\" is no number in range",
        ),
        (
            in_forward("force_tcp yes"),
            "Corefile:3: force_tcp takes no argument",
        ),
        (
            in_forward("health_check 1s no_rec"),
            "Corefile:3: health_check takes a duration and nothing else yet",
        ),
        (
            in_forward("tls_servername x"),
            "Corefile:3: unknown option \"tls_servername\" of forward; known are except, policy, max_fails, max_concurrent, \
             expire, force_tcp, prefer_udp, health_check",
        ),
    ];
    for (text, expected) in &rows {
        let error = parse(text)
            .map(|_| String::new())
            .unwrap_or_else(|error| error.to_string());
        assert_eq!(error, *expected, "{text}");
    }
}
