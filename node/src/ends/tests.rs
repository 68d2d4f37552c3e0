//! What is typed, in every form, and what is refused.

use super::*;

/// What a text is read as, or why it is not; it reads back as the same.
#[track_caller]
fn check(text: &str, expected: &str) {
    let told = match Ends::parse(NAMESPACE, &[text.to_owned()]) {
        Ok(ends) => {
            let told = ends.to_string();
            assert_eq!(
                Ends::parse(NAMESPACE, std::slice::from_ref(&told)),
                Ok(ends),
                "{text}: {told}"
            );
            told
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(told, expected, "{text}");
}

#[test]
fn ends_are_read_in_every_form_in_which_they_are_typed() {
    let rows = [
        // Both ends.
        ("pod/a 10.96.0.10:80", "pod/default/a -> 10.96.0.10:80"),
        (
            "pod/shop/a -> 10.96.0.10:53/udp",
            "pod/shop/a -> 10.96.0.10:53/udp",
        ),
        ("any->[fd00::1]:80/TCP", "any -> [fd00::1]:80/tcp"),
        ("fd00::2 to fd00::1", "fd00::2 -> fd00::1"),
        // Objects.
        ("pods/a pods/b", "pod/default/a -> pod/default/b"),
        ("any pod/ns/b:8080/tcp", "any -> pod/ns/b:8080/tcp"),
        ("pod/a svc/web:80", "pod/default/a -> svc/default/web:80"),
        ("any service/web:http/tcp", "any -> svc/default/web:http/tcp"),
        ("any services/shop/web:80", "any -> svc/shop/web:80"),
        ("svc/web node/n.1:30080", "svc/default/web -> node/n.1:30080"),
        ("nodes/n any:53/sctp", "node/n -> any:53/sctp"),
        // Addresses and DNS names.
        ("any [fd00::1]", "any -> fd00::1"),
        ("any fd00::1/udp", "any -> fd00::1/udp"),
        ("any fd00::1:80", "any -> fd00::1:80"),
        ("pod/a example.org:443", "pod/default/a -> example.org:443"),
        ("any localhost/icmp", "any -> localhost/icmp"),
        ("any web.shop.svc.cluster.local.:http", "any -> svc/shop/web:http"),
        ("any db-0.db.shop.svc:80", "any -> db-0.db.shop.svc:80"),
        // As kubectl and DNS have them.
        ("po/a no/n", "pod/default/a -> node/n"),
        ("any svc/hello.shop:80", "any -> svc/shop/hello:80"),
        ("any svc/hello.shop.svc:http", "any -> svc/shop/hello:http"),
        ("any svc/hello.shop.svc.cluster.local", "any -> svc/shop/hello"),
        ("any pod/web.1", "any -> pod/default/web.1"),
        // What it is only somebody knows who knows all objects.
        ("client hello.shop:80", "client -> hello.shop:80"),
        // A protocol, or a name.
        ("any pod/tcp", "any -> pod/default/tcp"),
        ("any pod/tcp:80/tcp", "any -> pod/default/tcp:80/tcp"),
        ("any pod/shop/udp", "any -> pod/shop/udp"),
        ("any pod/shop:53/udp", "any -> pod/default/shop:53/udp"),
        ("any pod/default/shop/udp", "any -> pod/default/shop/udp"),
        ("any svc/shop/udp", "any -> svc/shop/udp"),
        ("any node/udp", "any -> node/udp"),
        ("any node/n/udp", "any -> node/n/udp"),
        ("10.0.0.1 to pod/b/icmp", "10.0.0.1 -> pod/default/b/icmp"),
        ("any pod/shop/b/icmpv6", "any -> pod/shop/b/icmpv6"),
    ];
    for (text, expected) in rows {
        check(text, expected);
    }
    let words = ["pod/a", "->", "10.0.0.1:80"].map(str::to_owned);
    assert_eq!(
        Ends::parse(NAMESPACE, &words).map(|ends| ends.to_string()),
        Ok("pod/default/a -> 10.0.0.1:80".to_owned())
    );
}

#[test]
fn a_name_and_a_protocol_are_told_apart() {
    let parse = |text: &str| Name::parse(text).map(|name| (name.subject, name.protocol));
    let pod = |namespace: &str, name: &str| Subject::Pod(ObjectName::new(namespace, name));
    let rows = [
        ("pod/udp", (pod("default", "udp"), None)),
        ("pod/shop/udp", (pod("shop", "udp"), None)),
        (
            "pod/default/shop/udp",
            (pod("default", "shop"), Some(Protocol::UDP)),
        ),
        ("pod/shop:53/udp", (pod("default", "shop"), Some(Protocol::UDP))),
        ("pod/shop/icmp", (pod("default", "shop"), Some(Protocol::ICMP))),
        ("pod/shop/17", (pod("shop", "17"), None)),
    ];
    for (text, expected) in rows {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn names_without_a_namespace_are_of_the_one_that_is_set() {
    let rows = [
        ("pod/a svc/web:80", "pod/shop/a -> svc/shop/web:80"),
        ("pod/other/a svc/web.other:80", "pod/other/a -> svc/other/web:80"),
        ("node/n web:80", "node/n -> web.shop:80"),
        ("any localhost", "any -> localhost"),
        ("10.0.0.1 example.org", "10.0.0.1 -> example.org"),
    ];
    for (text, expected) in rows {
        let read = Ends::parse("shop", &[text.to_owned()]).map(|ends| ends.to_string());
        assert_eq!(read, Ok(expected.to_owned()), "{text}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_can() {
    let both =
        |text: &str| format!("{text:?}: say who sends and to whom, as in: pod/client pod/server:8080/tcp");
    for text in [
        "",
        "pod/a",
        "a b c",
        "pod/a to",
        "pod/a ->",
        "pod/a -> to pod/b",
        "-> pod/a pod/b",
    ] {
        check(text, &both(text));
    }
    for end in [
        "pod",
        "80",
        "svc/a.b.c",
        "pod/",
        "pod//a",
        "pod/a/b/c",
        "node/a/b",
        "a.b/c",
        "10.0.0.0/24",
        "pod/a\u{1b}",
        "any/any",
        "/udp",
    ] {
        let forms = "pod/NAME, pod/NAMESPACE/NAME, svc/NAME:PORT, node/NAME, NAME, address, DNS name, or any";
        check(&format!("any {end}"), &format!("{end:?} is no {forms}"));
    }
    for end in [
        "[fd00::1]80",
        "[fd00::1",
        "[10.0.0.1]:80",
        "fd00:1:2:3:4:5:6:7:80",
        "fd00::1:http",
        "fd00::1]:80",
    ] {
        let rule =
            "an address of IPv6 with a port is written [ADDRESS]:PORT, and brackets stand nowhere else";
        check(&format!("any {end}"), &format!("{end:?}: {rule}"));
    }
    for (end, port) in [
        ("10.0.0.1:0", "0"),
        ("10.0.0.1:http", "http"),
        ("pod/a:http", "http"),
        ("node/a:70000", "70000"),
        ("svc/web:70000", "70000"),
        ("svc/web:", ""),
        ("[fd00::1]:", ""),
    ] {
        let rule = "is no port: a number from 1 to 65535 is one, or the name of a Service's port";
        check(&format!("any {end}"), &format!("{port:?} in {end:?} {rule}"));
    }
    check("any 10.0.0.1:80/icmp", "\"10.0.0.1:80/icmp\": icmp has no ports");
    for sender in ["pod/a:80", "10.0.0.1/udp"] {
        let rule = "sends: port and protocol stand behind the one to whom it sends";
        check(&format!("{sender} any"), &format!("{sender:?} {rule}"));
    }
}
