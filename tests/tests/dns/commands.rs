//! `causeway dns check` and `causeway dns query`, as they are called.

use std::process::Command;

use serde_json::{Value, json};
use tests::directory::Directory;

use crate::subject::{Config, Subject};

/// Exit code, standard output, standard error.
fn causeway(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(tests::cluster::programs().join("causeway"))
        .args(arguments)
        .output()
        .expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Of each directive the first thing that is wrong.
const SEVERAL: &str = "\
FILE:1: the zone \"b..d\" has an empty label
FILE:2: unknown plugin \"ttl\"; known are reload, bufsize, root, tls, bind, ready, health, prometheus, errors, log, ratelimit, \
acl, any, loadbalance, cache, rewrite, autopath, minimal, template, hosts, kubernetes, aaaa, loop, forward, whoami, import
FILE:4: ttl is 0 to 3600 seconds, not 4000
FILE:7: a number from 512 to 4096 is wanted, not 1
FILE:10: cannot serve . at port 53 twice
";

#[test]
fn a_corefile_is_checked_with_an_exit_code_for_each_outcome() {
    let directory = Directory::new("dns-check");
    let good = directory.write(
        "Good",
        "cluster.local:1053 {\n kubernetes\n}\n. {\n forward . 1.1.1.1\n}\n",
    );
    let wrong = directory.write(
        "Wrong",
        ".:53 {\n kubernetes cluster.local {\n  ttl 4000\n }\n}\n",
    );
    let several = directory.write(
        "Several",
        ".:53 b..d {\n ttl 4\n kubernetes cluster.local {\n  ttl 4000\n  pods all\n }\n bufsize 1\n errors\n}\n.:53 {\n}\n",
    );
    let imports = directory.write("Imports", ".:53 {\n import Part\n}\n");
    let part = directory.write("Part", "errors\nhostess\n");
    let missing = directory.path().join("Missing");
    for (corefile, code, out, error) in [
        (
            &good,
            0,
            format!("{}: good, serves cluster.local.:1053; .:53\n", good.display()),
            String::new(),
        ),
        (
            &wrong,
            1,
            format!("{}:3: ttl is 0 to 3600 seconds, not 4000\n", wrong.display()),
            String::new(),
        ),
        (
            &several,
            1,
            SEVERAL.replace("FILE", &several.display().to_string()),
            String::new(),
        ),
        (
            &missing,
            2,
            String::new(),
            format!(
                "error: read {}: No such file or directory (os error 2)\n",
                missing.display()
            ),
        ),
    ] {
        let path = corefile.display().to_string();
        assert_eq!(causeway(&["dns", "check", &path]), (Some(code), out, error));
    }
    let path = imports.display().to_string();
    let (code, out, error) = causeway(&["dns", "check", "--lenient", &path]);
    assert_eq!((code, out), (Some(0), format!("{path}: good, serves .:53\n")));
    assert!(error.contains("unknown plugin passed over"), "{error}");
    // What is wrong in an imported file is said with that file's line.
    let (code, out, _) = causeway(&["dns", "check", &imports.display().to_string()]);
    let expected = format!("{}:2: unknown plugin \"hostess\"; known are ", part.display());
    assert!(code == Some(1) && out.starts_with(&expected), "{out}");

    let json = |path: &str| {
        let (code, out, _) = causeway(&["dns", "check", path, "-o", "json"]);
        (code, serde_json::from_str::<Value>(&out).expect("JSON"))
    };
    let (good, wrong) = (good.display().to_string(), wrong.display().to_string());
    assert_eq!(json(&good), (Some(0), json!({"file": good, "errors": []})));
    let error = json!({"file": wrong, "line": 3, "message": "ttl is 0 to 3600 seconds, not 4000"});
    assert_eq!(json(&wrong), (Some(1), json!({"file": wrong, "errors": [error]})));
}

/// The answer to a question, as JSON.
#[track_caller]
fn reply(subject: &Subject, question: &str, code: i32) -> Value {
    let corefile = subject.corefile();
    let mut arguments = vec!["dns", "query"];
    arguments.extend(question.split(' '));
    arguments.extend(["--conf", &corefile, "-o", "json"]);
    let (found, out, error) = causeway(&arguments);
    assert_eq!(found, Some(code), "{question}: {error}");
    serde_json::from_str(&out).expect("JSON")
}

/// What the server says of a name: exit code, plugin, object.
#[track_caller]
fn check(subject: &Subject, rows: &[(&str, i32, &str, Option<&str>)]) {
    for (question, code, plugin, object) in rows {
        let reply = reply(subject, question, *code);
        let explanation = &reply["explanation"];
        assert_eq!(explanation["plugin"], *plugin, "{question}: {reply}");
        assert_eq!(explanation["object"].as_str(), *object, "{question}: {reply}");
        let port = subject.address.port();
        assert_eq!(explanation["block"], format!(".:{port}"), "{question}");
        let told_by = format!("{}, current", subject.api.url());
        let expected = object.map(|_| told_by.as_str());
        assert_eq!(explanation["objectsFrom"].as_str(), expected, "{question}");
    }
}

#[test]
fn an_answer_is_told_with_its_block_plugin_and_object() {
    let subject = Subject::with(Config {
        options: "fallthrough in-addr.arpa ip6.arpa",
        plugins: "forward . 127.0.0.1:1",
        ..Config::default()
    });
    if !subject.is_ours {
        tests::skipped("causeway dns query", "another server does not explain itself");
        return;
    }
    let zone = "cluster.local";
    check(
        &subject,
        &[
            (
                "svc1.testns.svc.cluster.local",
                0,
                "kubernetes",
                Some("Service testns/svc1 with 10.0.0.1"),
            ),
            (
                "svc1.testns.svc.cluster.local AAAA",
                1,
                "kubernetes",
                Some("Service testns/svc1 with 10.0.0.1"),
            ),
            (
                "_http._tcp.svc1.testns.svc.cluster.local SRV",
                0,
                "kubernetes",
                Some("port 80 of Service testns/svc1 with 10.0.0.1"),
            ),
            (
                "dup-name.hdls1.testns.svc.cluster.local",
                0,
                "kubernetes",
                Some("endpoints 172.0.0.4, 172.0.0.5 of Service testns/hdls1"),
            ),
            (
                "172-0-0-3.hdls1.testns.svc.cluster.local",
                0,
                "kubernetes",
                Some("endpoints 172.0.0.3 of Service testns/hdls1"),
            ),
            (
                "hdls-120.testns.svc.cluster.local",
                0,
                "kubernetes",
                Some(
                    "headless Service testns/hdls-120: endpoints 10.244.120.1, 10.244.120.2, 10.244.120.3, \
                     10.244.120.4, 10.244.120.5 and 115 more",
                ),
            ),
            (
                "external-internal.testns.svc.cluster.local",
                0,
                "kubernetes",
                Some("Service testns/external-internal, an ExternalName for svc1.testns.svc.cluster.local."),
            ),
            (
                "10.0.0.1",
                0,
                "kubernetes",
                Some("10.0.0.1 is svc1.testns.svc.cluster.local."),
            ),
            (
                "testns.svc.cluster.local",
                1,
                "kubernetes",
                Some("holds only other names"),
            ),
            (
                "nosvc.testns.svc.cluster.local",
                1,
                "kubernetes",
                Some("there is no Service testns/nosvc"),
            ),
            (
                "svc1.nons.svc.cluster.local",
                1,
                "kubernetes",
                Some("there is no namespace \"nons\""),
            ),
            (
                "hdls-unready.testns.svc.cluster.local",
                1,
                "kubernetes",
                Some("headless Service testns/hdls-unready has no ready endpoint"),
            ),
            (
                "_ftp._tcp.svc1.testns.svc.cluster.local SRV",
                1,
                "kubernetes",
                Some("Service testns/svc1 has no port _ftp._tcp"),
            ),
            (
                "x.svc1.testns.svc.cluster.local",
                1,
                "kubernetes",
                Some("Service testns/svc1 has no ready endpoint that is called \"x\""),
            ),
            (
                "1-2-3-4.testns.pod.cluster.local",
                1,
                "kubernetes",
                Some("pods have no names (pods disabled)"),
            ),
            (
                "x.y.cluster.local",
                1,
                "kubernetes",
                Some("not a name of the specification"),
            ),
            (
                "external-ip.testns.svc.cluster.local",
                1,
                "kubernetes",
                Some("Service testns/external-ip has an externalName that is no name"),
            ),
            (zone, 1, "kubernetes", Some("the zone itself")),
            (
                "10.0.0.99",
                1,
                "forward",
                Some(
                    "no Service and no ready endpoint has 10.0.0.99; the query falls through to the next plugin",
                ),
            ),
            ("example.com", 1, "forward", None),
        ],
    );
}

#[test]
fn each_plugin_that_answers_is_named_and_what_it_was_asked_instead() {
    let directory = Directory::new("dns-query");
    let path = directory.write(
        "resolv.conf",
        "search testns.svc.cluster.local svc.cluster.local\n",
    );
    let plugins = format!(
        "any
    acl refused.example {{
        block
    }}
    rewrite name exact web.example svc1.testns.svc.cluster.local
    autopath cluster.local {}
    template IN A made.example {{
        answer \"{{{{ .Name }}}} 60 IN A 192.0.2.1\"
    }}
    hosts {{
        192.0.2.2 host.example
        fallthrough
    }}
    cache
    forward . {} {{
        prefer_udp
    }}",
        path.display(),
        crate::section_2_5_external_name::upstream(),
    );
    let subject = Subject::with(Config {
        plugins: &plugins,
        ..Config::default()
    });
    if !subject.is_ours {
        tests::skipped("causeway dns query", "another server does not explain itself");
        return;
    }
    let service = Some("Service testns/svc1 with 10.0.0.1");
    let rows = [
        ("refused.example", 1, "acl", None, None),
        ("svc1.testns.svc.cluster.local ANY", 0, "any", None, None),
        ("made.example", 0, "template", None, None),
        ("host.example", 0, "hosts", None, None),
        (
            "web.example",
            0,
            "kubernetes",
            Some("svc1.testns.svc.cluster.local. A"),
            service,
        ),
        (
            "svc1.testns.testns.svc.cluster.local",
            0,
            "kubernetes",
            Some("svc1.testns.svc.cluster.local. A"),
            service,
        ),
        ("svc1.testns.svc.cluster.local", 0, "kubernetes", None, service),
        ("ext.interwebs.test", 0, "forward", None, None),
        ("ext.interwebs.test", 0, "cache", None, None),
    ];
    for (question, code, plugin, instead, object) in rows {
        let reply = reply(&subject, question, code);
        let explanation = &reply["explanation"];
        let found = ["plugin", "instead", "object"].map(|key| explanation[key].as_str());
        assert_eq!(found, [Some(plugin), instead, object], "{question}: {reply}");
    }
}

#[test]
fn people_read_the_same() {
    let subject = Subject::start("");
    let server = subject.address.to_string();
    let name = "svc1.testns.svc.cluster.local";
    let (code, out, error) = causeway(&["dns", "query", name, "--server", &server]);
    assert_eq!(code, Some(0), "{error}");
    let lines: Vec<&str> = out.lines().filter(|line| !line.starts_with("answer ")).collect();
    let block = format!("block    .:{}", subject.address.port());
    let told_by = format!("told by  {}, current", subject.api.url());
    let server_line = format!("server   {server}");
    if subject.is_ours {
        assert_eq!(
            lines,
            [
                "svc1.testns.svc.cluster.local. 5 IN A 10.0.0.1",
                &server_line,
                &block,
                "plugin   kubernetes",
                "object   Service testns/svc1 with 10.0.0.1",
                &told_by,
            ]
        );
    } else {
        // Any server is asked; only ours explains itself.
        assert_eq!(
            lines[1..],
            [
                &*server_line,
                "block    not told (by another server, or to another machine)"
            ]
        );
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_code_2() {
    for (arguments, words) in [
        (
            &["a..b", "--server", "127.0.0.1"][..],
            "error: the name \"a..b\" has an empty label\n",
        ),
        (
            &["web", "WHAT", "--server", "127.0.0.1"],
            "error: \"WHAT\" is no record type like A, SRV or TYPE65\n",
        ),
        (
            &["web", "--server", "127.0.0.1:1"],
            "error: ask 127.0.0.1:1 by tcp: Connection refused (os error 111)",
        ),
        (
            &["web", "--conf", "/nonexistent/Corefile"],
            "error: find the server by its Corefile: /nonexistent/Corefile:0: cannot read the Corefile: ",
        ),
    ] {
        let (code, out, error) = causeway(&[&["dns", "query"], arguments].concat());
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(error.starts_with(words), "{arguments:?}: {error}");
    }
}

#[test]
fn an_endpoint_is_told_with_its_pod_where_it_is_called_by_that() {
    let subject = Subject::with(Config {
        options: "endpoint_pod_names",
        ..Config::default()
    });
    if !subject.is_ours {
        tests::skipped("causeway dns query", "another server does not explain itself");
        return;
    }
    let object = "endpoints 172.0.0.3 (pod web-0) of Service testns/hdls1";
    check(
        &subject,
        &[(
            "web-0.hdls1.testns.svc.cluster.local",
            0,
            "kubernetes",
            Some(object),
        )],
    );
}
