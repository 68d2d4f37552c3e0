//! The corpus, first half: Corefiles that are read. Each form that CoreDNS's documentation of a plugin shows
//! (coredns.io/plugins, corefile(5)), with names and numbers of our own; what they mean is told by the tests of options.

use super::*;

/// Directives that are right in a server block.
const READ: &[&str] = &[
    "errors",
    "errors {\n consolidate 5m \".* i/o timeout$\" warning\n consolidate 30s \"^Failed to .+\"\n}",
    "log",
    "log .",
    "log example.org",
    "log example.org example.net",
    "log . {combined}",
    "log . \"{remote} {type} {name}\"",
    "log example.org \"{name} {rcode}\" {\n class denial error\n}",
    "log {\n class all\n}",
    "log a.example\n log b.example {\n class error\n}",
    "health",
    "health localhost:8091",
    "health :8080 {\n lameduck 1s\n}",
    "health {\n lameduck 1m30s\n}",
    "ready",
    "ready localhost:8091",
    "prometheus",
    "prometheus localhost:9253",
    "prometheus 0.0.0.0:9153",
    "prometheus [::]:9153",
    "reload",
    "reload 10s",
    "reload 45s 10s",
    "reload 2s 1s",
    "loop",
    "loadbalance",
    "loadbalance round_robin",
    "any",
    "autopath /etc/hosts",
    "autopath cluster.local /etc/hosts",
    "autopath cluster.local @kubernetes\n kubernetes cluster.local {\n endpoint http://h\n pods verified\n }",
    "minimal",
    "whoami",
    "bufsize",
    "bufsize 512",
    "bufsize 1232",
    "bufsize 4096",
    "bind 127.0.0.1",
    "bind 127.0.0.1 ::1",
    "bind lo",
    "bind 127.0.0.1\n bind ::1",
    "root /etc/coredns",
    "aaaa off",
    "aaaa off example.org 10.0.0.0/8",
    "ratelimit 100",
    "ratelimit 100 200",
    "ratelimit 1 {\n exempt 10.0.0.0/8 192.0.2.1 fd00::/8\n exempt ::1\n}",
    "ratelimit 1 {\n ipv4-prefix-length 24\n ipv6-prefix-length 56\n}",
    "acl {\n allow net 192.168.0.0/16\n block\n}",
    "acl {\n block type A net 192.168.0.0/16\n}",
    "acl example.org {\n block type * net 192.168.1.0/24\n filter type AAAA\n drop net *\n}",
    "acl {\n allow net 192.168.0.0/16 192.168.1.0/24 10.0.0.1\n block net * type ANY\n}",
    "acl a.example {\n allow\n}\n acl b.example c.example {\n drop\n}",
    "cache",
    "cache 10",
    "cache example.org",
    "cache 10 example.org example.net",
    "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n}",
    "cache {\n disable success\n disable denial example.org\n}",
    "cache {\n success 5000\n denial 2500\n}",
    "cache {\n success 5000 3600\n denial 2500 1800 5\n}",
    "cache 900 {\n denial 9984 30\n}",
    "cache {\n success 9984 30\n denial 9984 5\n prefetch 500 5s\n}",
    "cache {\n prefetch 1\n}",
    "cache {\n prefetch 10 1m 10%\n}",
    "cache {\n serve_stale\n}",
    "cache {\n serve_stale 24h\n}",
    "cache {\n serve_stale 1h verify\n}",
    "cache {\n serve_stale 1h immediate\n keepttl\n servfail 0\n}",
    "cache {\n servfail 5m\n}",
    "forward . 8.8.8.8",
    "forward . 8.8.8.8:5353 9.9.9.9",
    "forward . dns://8.8.8.8",
    "forward . 2001:db8::1 [2001:db8::2]:53 [2001:db8::3]",
    "forward . tls://9.9.9.9 {\n tls_servername dns.quad9.net\n health_check 5s\n}",
    "forward . tls://1.1.1.1 tls://1.0.0.1:853 {\n tls\n}",
    "forward example.org 127.0.0.1:9005 127.0.0.1:9006 127.0.0.1:9007",
    "forward . 10.0.0.10:53 {\n except example.org\n}",
    "forward 10.9.3.0/18 10.9.0.1",
    "forward . 1.1.1.1 {\n policy random\n}",
    "forward . 1.1.1.1 {\n policy sequential\n max_fails 3\n expire 20s\n}",
    "forward . 1.1.1.1 {\n max_concurrent 1000\n}",
    "forward . 1.1.1.1 {\n force_tcp\n}",
    "forward . 1.1.1.1 {\n prefer_udp\n}",
    "forward . 1.1.1.1 {\n health_check 0.5s no_rec domain example.org\n}",
    "forward a.example 1.1.1.1\n forward b.example 2.2.2.2",
    "kubernetes cluster.local",
    "kubernetes cluster.local in-addr.arpa ip6.arpa {\n pods insecure\n fallthrough in-addr.arpa ip6.arpa\n ttl 30\n}",
    "kubernetes cluster.local 10.0.0.0/24 {\n pods verified\n}",
    "kubernetes cluster.local {\n pods disabled\n ttl 0\n endpoint_pod_names\n fallthrough\n}",
    "kubernetes cluster.local {\n ttl 3600\n}",
    "hosts",
    "hosts example.hosts",
    "hosts /etc/coredns/NodeHosts {\n ttl 60\n reload 15s\n fallthrough\n}",
    "hosts example.hosts example.org example.net {\n fallthrough example.net\n}",
    "hosts {\n 10.0.0.1 example.org\n fallthrough\n}",
    "hosts {\n 10.0.0.1 a.example b.example # two names\n fd00::1 a.example\n 10.0.0.2 *.example\n no_reverse\n reload 0\n}",
    "rewrite name example.net example.org",
    "rewrite name exact example.net. example.org.",
    "rewrite stop name prefix a b",
    "rewrite name suffix .schmoogle.com. .google.com.",
    "rewrite name suffix .coredns.rocks .consul answer auto",
    "rewrite name substring service.us-west-1.example.org service.us-west-1.consul",
    "rewrite name regex (.*)-(us-west-1)\\.example\\.org {1}.service.{2}.consul",
    "rewrite name regex (.*)\\.a\\.example {1}.b.test answer name (.*)\\.b\\.test {1}.a.example answer value (.*)\\.b\\.test {1}.a.example",
    "rewrite stop {\n name regex (.*)-(us-west-1)\\.coredns\\.rocks {1}.service.{2}.consul\n answer name (.*)\\.service\\.(us-west-1)\\.consul \
     {1}-{2}.coredns.rocks\n}",
    "rewrite continue {\n ttl regex (.*)\\.coredns\\.rocks 15\n}",
    "rewrite ttl example.com. 30",
    "rewrite ttl suffix .coredns.rocks. 30-300",
    "rewrite ttl prefix a -30",
    "rewrite ttl substring a 30-",
    "rewrite type ANY HINFO",
    "rewrite continue type AAAA A\n rewrite type A TYPE65",
    "template ANY ANY {\n rcode NXDOMAIN\n}",
    "template IN AAAA",
    "template IN ANY example.com.dc1.example.com {\n rcode NXDOMAIN\n authority \"{{ .Zone }} 60 IN SOA ns.example.com hostmaster.example.com \
     (1 60 60 60 60)\"\n}",
    "template IN ANY example.com {\n match \"example\\.com\\.(dc1\\.example\\.com\\.)$\"\n rcode NXDOMAIN\n authority \"{{ index .Match 1 }} 60 IN \
     SOA ns.{{ index .Match 1 }} hostmaster.{{ index .Match 1 }} (1 60 60 60 60)\"\n fallthrough\n}",
    "template IN PTR in-addr.arpa {\n match ^(?P<d>[0-9]*)[.](?P<c>[0-9]*)[.](?P<b>[0-9]*)[.](?P<a>[0-9]*)[.]in-addr[.]arpa[.]$\n answer \
     \"{{ .Name }} 60 IN PTR ip-{{ .Group.a }}-{{ .Group.b }}-{{ .Group.c }}-{{ .Group.d }}.example.\"\n}",
    "template IN A example {\n match \"^ip0a(?P<b>[a-f0-9]{2})[.]example[.]$\"\n answer \"{{ .Name }} 60 IN A 10.{{ parseInt .Group.b 16 8 }}.0.1\"\n \
     fallthrough\n}",
    "template IN MX example {\n match ^ip- ^vm-\n answer \"{{ .Name }} 60 IN MX 10 {{ .Name }}\"\n additional \"{{ .Name }} 60 IN A 10.0.0.1\"\n \
     fallthrough example\n}",
];

/// Whole files that are right.
const READ_WHOLE: &[&str] = &[
    ".",
    ".:53",
    "example.org\nwhoami",
    "example.org {\n whoami\n}",
    "example.org, example.net {\n whoami\n}",
    "example.org example.net:1053 .:54 {\n}",
    "dns://example.org:1053 {\n}",
    ":53 {\n}\n:54 {\n}",
    "10.0.0.0/24 {\n whoami\n}",
    "2003::1/64 {\n whoami\n}",
    ". {\n bind 127.0.0.1\n}\n. {\n bind 127.0.0.2\n}",
    "(snip) {\n prometheus\n log\n errors\n}\n. {\n whoami\n import snip\n}\nexample.org {\n import snip\n}",
    ".:{$PORT} {\n log {$NOTHING:example.org}\n}",
    "{$NOTHING:a.example}:{$PORT} {\n}",
    "# only\n. { # comments\n # here\n whoami # and here\n}\n# end",
    ". {\n forward . 1.1.1.1\n cache\n errors\n kubernetes cluster.local\n reload\n}",
    // As distributions have them: k3s, OpenShift, AKS, NodeLocal DNSCache.
    ".:53 {\n errors\n health\n ready\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n pods insecure\n fallthrough in-addr.arpa \
     ip6.arpa\n }\n hosts /etc/coredns/NodeHosts {\n ttl 60\n reload 15s\n fallthrough\n }\n prometheus :9153\n cache 30\n loop\n \
     reload\n loadbalance\n import /none/custom/*.override\n forward . 10.0.0.2\n}\nimport /none/custom/*.server",
    ".:5353 {\n bufsize 1232\n errors\n log . {\n class error\n }\n health {\n lameduck 20s\n }\n ready\n kubernetes cluster.local \
     in-addr.arpa ip6.arpa {\n pods insecure\n fallthrough in-addr.arpa ip6.arpa\n }\n prometheus 127.0.0.1:9153\n forward . 10.0.0.2 \
     {\n policy sequential\n }\n cache 900 {\n denial 9984 30\n }\n reload\n}",
    ".:53 {\n errors\n ready\n health {\n lameduck 5s\n }\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n pods insecure\n \
     fallthrough in-addr.arpa ip6.arpa\n ttl 30\n }\n prometheus :9153\n forward . 10.0.0.2\n cache 30\n loop\n reload\n loadbalance\n \
     import /none/custom/*.override\n template ANY ANY internal.cloudapp.example {\n match \"^(?:[^.]+\\.){4,}internal\\.cloudapp\\.example\\.$\"\n rcode \
     NXDOMAIN\n fallthrough\n }\n}\nimport /none/custom/*.server",
    "cluster.local:53 {\n errors\n cache {\n success 9984 30\n denial 9984 5\n }\n reload\n loop\n bind 169.254.20.10 10.96.0.10\n forward . \
     10.96.0.11 {\n force_tcp\n }\n prometheus :9253\n health 169.254.20.10:8080\n}\nin-addr.arpa:53 {\n errors\n cache 30\n reload\n loop\n \
     bind 169.254.20.10 10.96.0.10\n forward . 10.96.0.11 {\n force_tcp\n }\n prometheus :9253\n}\n.:53 {\n errors\n cache 30\n reload\n \
     loop\n bind 169.254.20.10 10.96.0.10\n forward . 10.0.0.2\n prometheus :9253\n}",
];

#[test]
fn what_is_right_is_read() {
    let inside = READ.iter().map(|directive| format!(". {{\n {directive}\n}}"));
    let whole = READ_WHOLE.iter().map(|text| (*text).to_owned());
    for text in inside.chain(whole) {
        if let Err(error) = parse(&text) {
            panic!("{error}\n{text}");
        }
    }
}

#[test]
fn a_block_tells_every_plugin_that_it_was_given() {
    let files = PemFiles::new("given");
    let given = |plugin: &str| match plugin {
        "tls" => files.directive(),
        "root" => "root /".to_owned(),
        "autopath" => "autopath /etc/hosts".to_owned(),
        "bind" => "bind 127.0.0.1".to_owned(),
        "aaaa" => "aaaa off".to_owned(),
        "ratelimit" => "ratelimit 1".to_owned(),
        "acl" => "acl {\n allow\n}".to_owned(),
        "rewrite" => "rewrite type A AAAA".to_owned(),
        "template" => "template IN A".to_owned(),
        "kubernetes" => "kubernetes cluster.local".to_owned(),
        "forward" => "forward . 1.1.1.1".to_owned(),
        plain => plain.to_owned(),
    };
    let plugins = || plugins::KNOWN.into_iter().filter(|plugin| *plugin != "import");
    for plugin in plugins() {
        assert_eq!(
            block(&format!(". {{\n {}\n}}", given(plugin))).plugins(),
            [plugin]
        );
    }
    let all: Vec<String> = plugins().map(given).collect();
    let all = block(&format!(". {{\n {}\n}}", all.join("\n "))).plugins();
    assert_eq!(all, plugins().collect::<Vec<_>>());
}

/// Good files with a few bytes changed, cut off, doubled or moved: what is wrong is said, with a line that there is.
#[test]
fn no_text_makes_the_reader_panic_and_every_error_names_a_line_of_the_file() {
    let mut noise = crate::xorshift::Xorshift::new(0x9e37_79b9_7f4a_7c15);
    let mut below = |limit: usize| noise.below(limit);
    const ODD: &[&str] = &[
        "{", "}", "\"", "\n", " ", "#", "\\", "{$", "{%A%}", "(", ")", "*", "/", ":", "-", "0", "é", "\0",
    ];
    let mut refused = 0;
    for _ in 0..20_000 {
        let directive = READ[below(READ.len())];
        let mut text = format!(". {{\n {directive}\n}}\n{}", READ_WHOLE[below(READ_WHOLE.len())]);
        for _ in 0..=below(3) {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let at = places[below(places.len())];
            match below(4) {
                0 => text.truncate(at),
                1 => text.insert_str(at, ODD[below(ODD.len())]),
                2 => drop(text.remove(at)),
                _ => text = format!("{}{}", &text[at..], &text[..at]),
            }
            if text.is_empty() {
                break;
            }
        }
        // An import could read a file of this machine.
        if text.contains("import") {
            continue;
        }
        crate::fuzz::corefile(&text);
        if parse(&text).is_err() {
            refused += 1;
        }
    }
    assert!(refused > 5_000, "{refused}");
}
