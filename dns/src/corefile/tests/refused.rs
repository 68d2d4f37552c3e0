//! The corpus, second half: Corefiles that are refused, with the exact words.
//!
//! What is refused follows CoreDNS's documentation of each plugin (coredns.io/plugins, corefile(5)) where it says so; the
//! words are ours.

use super::*;

#[test]
fn what_is_wrong_is_said_with_its_line() {
    const KNOWN: &str = "reload, bufsize, root, tls, bind, ready, health, prometheus, errors, log, ratelimit, acl, any, \
                         loadbalance, cache, rewrite, autopath, minimal, template, hosts, kubernetes, aaaa, loop, forward, \
                         whoami, import";
    let unknown = format!("Corefile:3: unknown plugin \"route53\"; known are {KNOWN}");
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
        (". {\n errors\n route53\n}".into(), &unknown),
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
            ". {\n}\n. {\n bind 0.0.0.0\n}".into(),
            "Corefile:3: cannot serve . at port 53 twice",
        ),
        (
            ". {\n bind ::\n}\n. {\n}".into(),
            "Corefile:4: cannot serve . at port 53 twice",
        ),
        (
            "a.example a.example:53 {\n}".into(),
            "Corefile:1: cannot serve a.example. at port 53 twice",
        ),
        (
            ". {\n bind 127.0.0.1 127.0.0.2\n}\n. {\n bind 127.0.0.3 127.0.0.2\n}".into(),
            "Corefile:4: cannot serve . at port 53 twice",
        ),
        (
            "https://. {\n}".into(),
            "Corefile:1: https:// is not served; dns:// and tls:// are",
        ),
        (
            "tls://. {\n}".into(),
            "Corefile:1: tls://.:853 needs the plugin tls, with a certificate and its key",
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
            "Corefile:2: too many imports within each other: a file imports itself",
        ),
        (
            doubling_snippets(40),
            "Corefile:10: the imports are too long together",
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
            inside("errors {\n stacktrace\n}"),
            "Corefile:3: unknown option \"stacktrace\" of errors; known are consolidate",
        ),
        (
            inside("errors {\n consolidate 5m\n}"),
            "Corefile:3: consolidate takes a duration and a regular expression",
        ),
        (
            inside("errors {\n consolidate 0 .*\n}"),
            "Corefile:3: consolidate needs a time to collect in",
        ),
        (
            inside("errors {\n consolidate 5m .* loud\n}"),
            "Corefile:3: consolidate goes on with debug, info, warning, error and show_first, not \"loud\"",
        ),
        (
            inside("errors {\n consolidate 5m (\n}"),
            "Corefile:3: \"(\" is no regular expression: unclosed group",
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
            inside("log a..example"),
            "Corefile:2: the zone \"a..example\" has an empty label",
        ),
        (
            inside("log {\n class\n}"),
            "Corefile:3: class takes at least one class of answers",
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
        (inside("any thing"), "Corefile:2: any takes no argument"),
        (
            inside("bufsize 511"),
            "Corefile:2: a number from 512 to 4096 is wanted, not 511",
        ),
        (inside("bufsize 512 512"), "Corefile:2: bufsize takes one size"),
        (inside("aaaa"), "Corefile:2: aaaa wants to be told that it is off"),
        (inside("aaaa on"), "Corefile:2: aaaa can be off, not \"on\""),
        (
            inside("aaaa off a..b"),
            "Corefile:2: the zone \"a..b\" has an empty label",
        ),
        (
            inside("aaaa off {\n x\n}"),
            "Corefile:3: unknown option \"x\" of aaaa; it has none",
        ),
        (
            inside("ratelimit"),
            "Corefile:2: ratelimit takes the queries per second of one client, and how many may come at once",
        ),
        (
            inside("ratelimit 0"),
            "Corefile:2: a number from 1 to 1000000 is wanted, not 0",
        ),
        (
            inside("ratelimit 1 {\n exempt\n}"),
            "Corefile:3: exempt takes at least one argument",
        ),
        (
            inside("ratelimit 1 {\n exempt all\n}"),
            "Corefile:3: \"all\" is neither an address nor a network",
        ),
        (
            inside("ratelimit 1 {\n slip 2\n}"),
            "Corefile:3: unknown option \"slip\" of ratelimit; known are exempt, ipv4-prefix-length, ipv6-prefix-length",
        ),
        (
            inside("ratelimit 1 {\n ipv4-prefix-length 33\n}"),
            "Corefile:3: a number from 1 to 32 is wanted, not 33",
        ),
        (
            inside("ratelimit 1 {\n ipv6-prefix-length 0\n}"),
            "Corefile:3: a number from 1 to 128 is wanted, not 0",
        ),
        (
            inside("ratelimit 1 {\n ipv6-prefix-length\n}"),
            "Corefile:3: ipv6-prefix-length takes exactly one argument",
        ),
        (inside("acl"), "Corefile:2: acl needs at least one rule"),
        (
            inside("acl {\n deny\n}"),
            "Corefile:3: unknown option \"deny\" of acl; known are allow, block, filter, drop",
        ),
        (
            inside("acl {\n allow from 10.0.0.1\n}"),
            "Corefile:3: a rule of acl goes on with type or net, not \"from\"",
        ),
        (
            inside("acl {\n allow type net 10.0.0.1\n}"),
            "Corefile:3: nothing stands behind type",
        ),
        (
            inside("acl {\n allow type A net\n}"),
            "Corefile:3: nothing stands behind net",
        ),
        (
            inside("acl {\n allow type B\n}"),
            "Corefile:3: \"B\" is no type of records",
        ),
        (
            inside("acl {\n allow net 10.0.0.1/33\n}"),
            "Corefile:3: \"10.0.0.1/33\" is neither an address nor a network",
        ),
        (
            inside("reload 1s"),
            "Corefile:2: reload looks at the file every 2s at the most often",
        ),
        (
            inside("reload 10s 500ms"),
            "Corefile:2: the jitter of reload is 1s at least",
        ),
        (
            inside("reload 10s 5s 1s"),
            "Corefile:2: reload takes an interval and a jitter",
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
            inside("cache {\n minttl 1\n}"),
            "Corefile:3: unknown option \"minttl\" of cache; known are success, denial, prefetch, serve_stale, servfail, \
             disable, keepttl",
        ),
        (
            inside("cache {\n prefetch\n}"),
            "Corefile:3: prefetch takes an amount of queries",
        ),
        (
            inside("cache {\n prefetch 1 1m 9%\n}"),
            "Corefile:3: a number from 10 to 90 is wanted, not 9",
        ),
        (
            inside("cache {\n prefetch 1 1m 10\n}"),
            "Corefile:3: \"10\" is no percentage like 10%",
        ),
        (
            inside("cache {\n serve_stale 0\n}"),
            "Corefile:3: serve_stale of no time serves nothing",
        ),
        (
            inside("cache {\n serve_stale 1m later\n}"),
            "Corefile:3: the mode of serve_stale is immediate or verify, not \"later\"",
        ),
        (
            inside("cache {\n servfail 6m\n}"),
            "Corefile:3: a SERVFAIL is kept for 5m at the most",
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
            inside("forward . https://1.1.1.1"),
            "Corefile:2: https:// upstreams are not supported; dns:// and tls:// are",
        ),
        (
            inside("forward . tls://1.1.1.1 {\n tls /none/ca.pem\n}"),
            "Corefile:2: cannot read /none/ca.pem: I/O error: No such file or directory (os error 2)",
        ),
        (
            inside("forward . tls://1.1.1.1 {\n tls_servername a..b\n}"),
            "Corefile:2: \"a..b\" is no server name",
        ),
        (
            in_forward("tls a b c d"),
            "Corefile:3: tls takes a certificate, its key and authorities",
        ),
        (
            in_forward("health_check 0"),
            "Corefile:3: health_check needs a time between two checks",
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
            in_forward("health_check 1s domain"),
            "Corefile:3: health_check takes a duration, no_rec, and domain with a name",
        ),
        (
            in_forward("next NXDOMAIN"),
            "Corefile:3: unknown option \"next\" of forward; known are except, policy, max_fails, max_concurrent, \
             expire, force_tcp, prefer_udp, health_check, tls, tls_servername",
        ),
    ];
    for (text, expected) in &rows {
        let error = parse(text)
            .map(|_| String::new())
            .unwrap_or_else(|error| error.to_string());
        assert_eq!(error, *expected, "{text}");
    }
}

/// Directives of a server block that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("root", "Corefile:2: root takes exactly one argument"),
    (
        "root /a\n root /b",
        "Corefile:3: the plugin \"root\" is given twice in one server block",
    ),
    (
        "autopath",
        "Corefile:2: autopath takes a file like /etc/resolv.conf, or @kubernetes",
    ),
    (
        "autopath @erratic",
        "Corefile:2: autopath takes a file like /etc/resolv.conf, or @kubernetes, not \"@erratic\"",
    ),
    (
        "autopath @kubernetes",
        "Corefile:2: autopath @kubernetes needs the plugin kubernetes in its server block",
    ),
    (
        "kubernetes cluster.local {\n endpoint http://h\n pods insecure\n }\n autopath @kubernetes",
        "Corefile:6: autopath @kubernetes needs pods verified in the plugin kubernetes",
    ),
    (
        "autopath @kubernetes\n kubernetes cluster.local",
        "Corefile:2: autopath @kubernetes needs an API server: the agent's feed has no pods",
    ),
    (
        "autopath @kubernetes\n kubernetes cluster.local {\n feed /f\n pods verified\n }",
        "Corefile:5: pods verified needs an API server: the agent's feed has no pods",
    ),
    (
        "autopath cluster.local /none/such",
        "Corefile:2: cannot read a search path from /none/such: No such file or directory (os error 2)",
    ),
    (
        "autopath a..b /etc/hosts",
        "Corefile:2: the zone \"a..b\" has an empty label",
    ),
    ("minimal all", "Corefile:2: minimal takes no argument"),
    (
        "whoami {\n x\n}",
        "Corefile:3: unknown option \"x\" of whoami; it has none",
    ),
    ("bufsize many", "Corefile:2: \"many\" is no number in range"),
    (
        "bufsize {\n size 1232\n}",
        "Corefile:3: unknown option \"size\" of bufsize; it has none",
    ),
    (
        "cache\n cache",
        "Corefile:3: the plugin \"cache\" is given twice in one server block",
    ),
    (
        "cache 30 a..b",
        "Corefile:2: the zone \"a..b\" has an empty label",
    ),
    (
        "cache {\n success 1 2 3 4\n}",
        "Corefile:3: success takes a capacity, a TTL and a least TTL",
    ),
    ("cache {\n keepttl 5\n}", "Corefile:3: keepttl takes no argument"),
    (
        "cache {\n prefetch 1 2s 10% more\n}",
        "Corefile:3: prefetch takes an amount, a duration and a percentage",
    ),
    (
        "cache {\n serve_stale 1h verify more\n}",
        "Corefile:3: serve_stale takes a duration and a mode",
    ),
    (
        "cache {\n success 10 {\n x\n}\n}",
        "Corefile:4: unknown option \"x\" of success; it has none",
    ),
    (
        "hosts {\n ttl 0\n}",
        "Corefile:3: a number from 1 to 65535 is wanted, not 0",
    ),
    ("hosts {\n ttl\n}", "Corefile:3: ttl takes exactly one argument"),
    (
        "hosts {\n reload soon\n}",
        "Corefile:3: \"soon\" is no duration like 5s, 500ms or 1m30s",
    ),
    (
        "hosts {\n no_reverse 1\n}",
        "Corefile:3: no_reverse takes no argument",
    ),
    (
        "hosts {\n 10.0.0.1\n}",
        "Corefile:3: 10.0.0.1 takes at least one argument",
    ),
    (
        "hosts {\n 10.0.0.1 a..b\n}",
        "Corefile:3: the zone \"a..b\" has an empty label",
    ),
    (
        "hosts {\n 10.0.0 a.example\n}",
        "Corefile:3: unknown option \"10.0.0\" of hosts; known are ADDRESS NAME..., ttl, no_reverse, reload, fallthrough",
    ),
    ("hosts f a..b", "Corefile:2: the zone \"a..b\" has an empty label"),
    (
        "hosts\n hosts",
        "Corefile:3: the plugin \"hosts\" is given twice in one server block",
    ),
    ("rewrite", "Corefile:2: rewrite takes a field: name, type, ttl"),
    (
        "rewrite continue",
        "Corefile:2: rewrite takes a field: name, type, ttl",
    ),
    (
        "rewrite class CH IN",
        "Corefile:2: rewrite does not know the field \"class\"; known are name, type, ttl",
    ),
    (
        "rewrite edns0 nsid set",
        "Corefile:2: rewrite does not know the field \"edns0\"; known are name, type, ttl",
    ),
    (
        "rewrite name a.example",
        "Corefile:2: rewrite name takes a name and another one",
    ),
    (
        "rewrite name a.example b.example answer auto",
        "Corefile:2: rewrite name takes a name and another one",
    ),
    (
        "rewrite name exact a..b c",
        "Corefile:2: \"a..b\" is no domain name",
    ),
    (
        "rewrite name exact c a..b",
        "Corefile:2: \"a..b\" is no domain name",
    ),
    (
        "rewrite name regex ( b",
        "Corefile:2: \"(\" is no regular expression: unclosed group",
    ),
    ("rewrite name regex (a) {2}", "Corefile:2: \"(a)\" has no group 2"),
    (
        "rewrite name suffix a b answer",
        "Corefile:2: answer takes auto, or name or value with a pattern and what comes in its place",
    ),
    (
        "rewrite name suffix a b answer name x",
        "Corefile:2: answer takes auto, or name or value with a pattern and what comes in its place",
    ),
    (
        "rewrite name suffix a b answer data x y",
        "Corefile:2: answer takes auto, name or value, not \"data\"",
    ),
    (
        "rewrite name suffix a b reply auto",
        "Corefile:2: a name's rule goes on with answer, not \"reply\"",
    ),
    (
        "rewrite name suffix a b answer name ) y",
        "Corefile:2: \")\" is no regular expression: unopened group",
    ),
    (
        "rewrite type A",
        "Corefile:2: rewrite type takes a type and another one",
    ),
    ("rewrite type A B", "Corefile:2: \"B\" is no type of records"),
    (
        "rewrite ttl a.example",
        "Corefile:2: rewrite ttl takes a name, and seconds or bounds like 5-30",
    ),
    (
        "rewrite ttl a.example many",
        "Corefile:2: \"many\" is no number in range",
    ),
    (
        "rewrite ttl a.example 30-5",
        "Corefile:2: the least TTL, 30, is more than the most, 5",
    ),
    (
        "rewrite stop {\n ttl a.example x\n}",
        "Corefile:3: \"x\" is no number in range",
    ),
    ("template", "Corefile:2: template takes a class and a type"),
    ("template IN", "Corefile:2: template takes a class and a type"),
    (
        "template CH TXT",
        "Corefile:2: template answers the class IN or ANY, not \"CH\"",
    ),
    ("template IN B", "Corefile:2: \"B\" is no type of records"),
    (
        "template IN A a..b",
        "Corefile:2: the zone \"a..b\" has an empty label",
    ),
    (
        "template IN A {\n match\n}",
        "Corefile:3: match takes at least one argument",
    ),
    (
        "template IN A {\n match [\n}",
        "Corefile:3: \"[\" is no regular expression: unclosed character class",
    ),
    (
        "template IN A {\n rcode NOPE\n}",
        "Corefile:3: \"NOPE\" is no response code",
    ),
    (
        "template IN A {\n answer \"x 60 IN A 1.1.1\"\n}",
        "Corefile:3: \"1.1.1\" is no IPv4 address",
    ),
    (
        "template IN A {\n answer \"{{ .Name 60 IN A 1.1.1.1\"\n}",
        "Corefile:3: {{ is opened and never closed",
    ),
    (
        "template IN A {\n answer \"{{ .Group.x }} A 1.1.1.1\"\n}",
        "Corefile:3: no match has the group \"x\"",
    ),
    (
        "template IN A {\n match (a)\n answer \"{{ index .Match 2 }} A 1.1.1.1\"\n}",
        "Corefile:4: no match has the group \"2\"",
    ),
    (
        "template IN A {\n answer \"{{ if .Name }} A 1.1.1.1\"\n}",
        "Corefile:3: {{ if .Name }} is nothing that a template may hold; known are .Name, .Zone, .Type, .Class, .Remote, .Group.NAME, index \
         .Group \"NAME\", index .Match NUMBER, parseInt VALUE BASE BITS",
    ),
    (
        "template IN A {\n answer \"{{ .Name | upper }} A 1.1.1.1\"\n}",
        "Corefile:3: {{ .Name | upper }} is nothing that a template may hold; known are .Name, .Zone, .Type, .Class, .Remote, .Group.NAME, index \
         .Group \"NAME\", index .Match NUMBER, parseInt VALUE BASE BITS",
    ),
    (
        "template IN A {\n upstream\n}",
        "Corefile:3: unknown option \"upstream\" of template; known are match, answer, additional, authority, rcode, fallthrough",
    ),
    (
        "kubernetes cluster.local {\n pods\n}",
        "Corefile:3: pods takes exactly one argument",
    ),
    (
        "prometheus 9153",
        "Corefile:2: \"9153\" is no address with a port",
    ),
    ("ready :1 :2", "Corefile:2: ready takes one address"),
    (
        "reload never",
        "Corefile:2: \"never\" is no duration like 5s, 500ms or 1m30s",
    ),
    (
        "forward a..b 1.1.1.1",
        "Corefile:2: the zone \"a..b\" has an empty label",
    ),
    (
        "forward . 1.1.1.1 {\n except a..b\n}",
        "Corefile:3: the zone \"a..b\" has an empty label",
    ),
    (
        "forward . 1.1.1.1 {\n expire x\n}",
        "Corefile:3: \"x\" is no duration like 5s, 500ms or 1m30s",
    ),
    (
        "forward . 1.1.1.1 {\n tls_servername\n}",
        "Corefile:3: tls_servername takes exactly one argument",
    ),
    (
        "tls",
        "Corefile:2: tls takes a certificate, its key, and certificates of authorities",
    ),
    (
        "tls a b c d",
        "Corefile:2: tls takes a certificate, its key, and certificates of authorities",
    ),
    (
        "tls a b {\n client_auth\n}",
        "Corefile:3: client_auth takes exactly one argument",
    ),
    (
        "tls a b {\n client_auth maybe\n}",
        "Corefile:3: client_auth is one of nocert, request, verify_if_given and require_and_verify, not \"maybe\"",
    ),
    (
        "tls a b {\n client_auth require\n}",
        "Corefile:3: client_auth require lets everybody in; say require_and_verify",
    ),
    (
        "tls a b {\n ciphers x\n}",
        "Corefile:3: unknown option \"ciphers\" of tls; known are client_auth",
    ),
    (
        "forward . tls:///etc/resolv.conf",
        "Corefile:2: \"/etc/resolv.conf\" is neither an address nor a file like /etc/resolv.conf",
    ),
];

#[test]
fn what_is_wrong_inside_a_block_is_said_with_its_line() {
    for (directive, expected) in REFUSED {
        let text = format!(". {{\n {directive}\n}}");
        let error = parse(&text).map_or_else(|error| error.to_string(), |_| String::new());
        assert_eq!(error, *expected, "{text}");
    }
}

#[test]
fn a_lenient_reader_warns_of_plugins_that_it_does_not_know_and_of_nothing_else() {
    let folder = std::env::temp_dir().join(format!("cwt-lenient-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("made");
    let path = folder.join("Corefile");
    let read = |text: &str, is_lenient| {
        std::fs::write(&path, text).expect("written");
        Corefile::read_again(&path, is_lenient)
    };
    let text = ". {\n route53 zone:id {\n aws_access_key x y\n}\n whoami\n geoip /db\n}";
    let warned = crate::samples::logged(|| {
        let block = read(text, true).expect("read").blocks.remove(0);
        assert!(block.whoami);
    });
    let file = path.display();
    let warning = |line, plugin| {
        format!(" WARN unknown plugin passed over file={file} line={line} plugin=\"{plugin}\"\n")
    };
    assert_eq!(warned, warning(2, "route53") + &warning(6, "geoip"));
    let refused = read(text, false).expect_err("strict").to_string();
    assert!(
        refused.starts_with(&format!(
            "{file}:2: unknown plugin \"route53\"; known are reload, "
        )),
        "{refused}"
    );
    let refused = read(". {\n cache many {\n x\n}\n}", true)
        .expect_err("an option")
        .to_string();
    assert!(
        refused.starts_with(&format!("{file}:3: unknown option \"x\" of cache; known are ")),
        "{refused}"
    );
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn everything_that_is_wrong_is_told_and_the_first_of_it_is_the_error() {
    let text = "a..b. {\n minimal x\n errors\n bufsize 1\n}\n. {\n any x\n}\n.:53 {\n}";
    let (corefile, errors) = Corefile::look_over_text("Corefile", text, &|_| None, false);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "Corefile:1: the zone \"a..b.\" has an empty label",
        "Corefile:2: minimal takes no argument",
        "Corefile:4: a number from 512 to 4096 is wanted, not 1",
        "Corefile:7: any takes no argument",
        "Corefile:9: cannot serve . at port 53 twice",
    ];
    assert_eq!(errors, expected);
    // What is right is read nevertheless.
    let errors: Vec<bool> = corefile.blocks.iter().map(|block| block.errors).collect();
    assert_eq!(errors, [true, false, false]);
    let first = parse(text).map_err(|error| error.to_string());
    assert_eq!(first, Err(expected[0].to_owned()));
    let (_, errors) = Corefile::look_over_text("Corefile", ". {\n cache x\n", &|_| None, false);
    assert_eq!(errors.len(), 1, "{errors:?}");
}

/// Each snippet imports the one before it twice.
fn doubling_snippets(count: usize) -> String {
    let mut text = "(s0) {\n whoami\n}\n".to_owned();
    for number in 1..count {
        let before = number - 1;
        text.push_str(&format!(
            "(s{number}) {{ import s{before}\n import s{before}\n}}\n"
        ));
    }
    format!("{text}. {{\n import s{}\n}}", count - 1)
}
