//! Cluster DNS, black box: `causeway dns` as a process, fed over its socket, asked by `dig`.
//!
//! The rows use nothing but DNS, so that they could be put to any server that knows the same Services.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::process::{Place, Process, command};
use tests::wait;

use crate::survival::snapshot_in;

const DEADLINE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "cluster.local";

/// A DNS process with its agent's side of the feed.
struct Dns {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

impl Dns {
    /// Starts the program in a folder of its own; it forwards to `upstream`.
    fn start(folder: PathBuf, upstream: &str) -> Self {
        let text = format!(
            ".:0 {{
    bind 127.0.0.1
    errors
    kubernetes {CLUSTER} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
        feed {0}/dns.sock
        state {0}
    }}
    forward . {upstream}
    cache 30
    loop
    loadbalance
}}
",
            folder.display()
        );
        let mut process = spawn(&Place::default(), &folder, &text);
        process.await_line("serving", DEADLINE);
        let address = listening_address(&process.output());
        Self {
            process,
            address,
            folder,
        }
    }

    /// What `dig` says: the status, then answers and authorities, each in one line, sorted.
    fn dig(&self, arguments: &[&str]) -> String {
        let mut dig = Command::new("dig");
        dig.arg(format!("@{}", self.address.ip()))
            .args(["-p", &self.address.port().to_string()])
            .args([
                "+tries=1",
                "+time=5",
                "+noall",
                "+comments",
                "+answer",
                "+authority",
            ])
            .args(arguments);
        let output = dig
            .output()
            .expect("dig, of the package bind9-dnsutils, is installed");
        summary(&String::from_utf8_lossy(&output.stdout))
    }

    #[track_caller]
    fn check(&self, rows: &[(&str, &str)]) {
        let found: Vec<(&str, String)> = rows
            .iter()
            .map(|(question, _)| {
                let arguments: Vec<&str> = question.split(' ').collect();
                (*question, self.dig(&arguments))
            })
            .collect();
        let expected: Vec<(&str, String)> = rows
            .iter()
            .map(|(question, answer)| (*question, (*answer).to_owned()))
            .collect();
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn await_answer(&self, question: &str, expected: &str) {
        let arguments: Vec<&str> = question.split(' ').collect();
        wait::until_value(
            question,
            DEADLINE,
            || self.dig(&arguments),
            |found| found == expected,
        );
    }
}

/// Starts `causeway dns` with a Corefile.
fn spawn(place: &Place, folder: &Path, corefile: &str) -> Process {
    let path = folder.join("Corefile");
    fs::write(&path, corefile).expect("Corefile");
    let mut start = command(place, tests::cluster::programs().join("causeway"));
    start.arg("dns").arg("--conf").arg(path);
    Process::spawn(place, &mut start).expect("causeway dns")
}

/// The log line `serving addresses=[127.0.0.1:40404]`.
fn listening_address(log: &str) -> SocketAddr {
    let (_, list) = log
        .split_once("addresses=[")
        .expect("the log names the addresses");
    let (address, _) = list.split_once(']').expect("the list ends");
    address.parse().expect("one address")
}

fn summary(output: &str) -> String {
    let mut status = "no answer";
    let mut records = Vec::new();
    for line in output.lines() {
        if let Some((_, rest)) = line.split_once("status: ") {
            status = rest.split(',').next().unwrap_or(rest);
        } else if !line.is_empty() && !line.starts_with(';') {
            records.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    records.sort();
    std::iter::once(status.to_owned())
        .chain(records)
        .collect::<Vec<_>>()
        .join(" | ")
}

/// A folder for one test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cwt-{}-dns-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder); // of a test process with the same pid
    fs::create_dir_all(&folder).expect("folder");
    folder
}

/// The agent's side of the feed: `model::feed` as lines of JSON.
struct Feed(UnixStream);

impl Feed {
    fn accept(listener: &UnixListener) -> Self {
        Self(listener.accept().expect("the DNS process connects").0)
    }

    fn send(&mut self, messages: &[Value]) {
        for message in messages {
            writeln!(self.0, "{message}").expect("the DNS process reads");
        }
    }
}

fn listen(folder: &Path) -> UnixListener {
    let path = folder.join("dns.sock");
    let _ = fs::remove_file(&path); // left by an agent that died
    UnixListener::bind(path).expect("socket")
}

fn service(namespace: &str, name: &str, kind: Value) -> Value {
    json!({"change": {"service": {
        "name": {"namespace": namespace, "name": name},
        "kind": kind,
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "node_port": null, "app_protocol": null}],
        "external_addresses": [], "load_balancer": [], "source_ranges": [],
        "external_policy": "Cluster", "internal_policy": "Cluster", "health_check_node_port": null,
        "affinity": "None", "traffic_distribution": null, "publish_not_ready": false, "proxy_labels": {},
    }}})
}

fn cluster_ip(name: &str, addresses: &[&str]) -> Value {
    service("default", name, json!({"ClusterIp": {"addresses": addresses}}))
}

/// One ready endpoint with a hostname, and many without.
fn slice(service: &str, addresses: &[String], hostname: Option<&str>) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| {
            json!({"address": address, "conditions": {"ready": true, "serving": true, "terminating": false},
               "node": null, "zone": null, "hostname": hostname, "pod": null,
               "hinted_zones": [], "hinted_nodes": []})
        })
        .collect();
    json!({"change": {"endpoint-slice": {
        "name": {"namespace": "default", "name": format!("{service}-{}", hostname.unwrap_or("all"))},
        "service": service, "family": "V4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    }}})
}

fn cluster() -> Vec<Value> {
    let many: Vec<String> = (0..200).map(|n| format!("10.244.7.{n}")).collect();
    let mut messages = vec![json!({"begin": {"version": 1}})];
    messages.extend(["default", "empty"].map(|name| json!({"change": {"namespace": {"name": name}}})));
    messages.extend([
        cluster_ip("web", &["10.96.0.20", "fd00:10:96::20"]),
        service("default", "db", json!("Headless")),
        service("default", "many", json!("Headless")),
        service("default", "none", json!("Headless")),
        service(
            "default",
            "alias",
            json!({"ExternalName": "web.default.svc.cluster.local"}),
        ),
        slice("db", &["10.244.1.5".to_owned()], Some("db-0")),
        slice("db", &["10.244.1.6".to_owned()], None),
        slice("many", &many, None),
    ]);
    messages
        .extend(["Service", "EndpointSlice", "Namespace"].map(|kind| json!({"change": {"synced": kind}})));
    messages.push(json!("end"));
    messages
}

/// The SOA of denials, its serial taken out.
fn without_serial(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let soa = words.iter().position(|word| *word == "SOA");
    let kept = words
        .iter()
        .enumerate()
        .filter(|(index, _)| soa.is_none_or(|soa| *index != soa + 3));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_kind_of_record_over_udp_and_tcp() {
    let folder = folder("records");
    let listener = listen(&folder);
    let dns = Dns::start(folder, "127.0.0.1:1");
    let mut feed = Feed::accept(&listener);
    feed.send(&cluster());
    dns.await_answer(
        "web.default.svc.cluster.local A",
        "NOERROR | web.default.svc.cluster.local. 30 IN A 10.96.0.20",
    );
    let rows = [
        (
            "web.default.svc.cluster.local AAAA",
            "NOERROR | web.default.svc.cluster.local. 30 IN AAAA fd00:10:96::20",
        ),
        (
            "WEB.default.svc.Cluster.Local A",
            "NOERROR | WEB.default.svc.Cluster.Local. 30 IN A 10.96.0.20",
        ),
        (
            "_http._tcp.web.default.svc.cluster.local SRV",
            "NOERROR | _http._tcp.web.default.svc.cluster.local. 30 IN SRV 0 50 80 web.default.svc.cluster.local.",
        ),
        (
            "db.default.svc.cluster.local A",
            "NOERROR | db.default.svc.cluster.local. 30 IN A 10.244.1.5 | db.default.svc.cluster.local. 30 IN A 10.244.1.6",
        ),
        (
            "db-0.db.default.svc.cluster.local A",
            "NOERROR | db-0.db.default.svc.cluster.local. 30 IN A 10.244.1.5",
        ),
        (
            "10-244-1-6.db.default.svc.cluster.local A",
            "NOERROR | 10-244-1-6.db.default.svc.cluster.local. 30 IN A 10.244.1.6",
        ),
        (
            "_http._tcp.db.default.svc.cluster.local SRV",
            "NOERROR | _http._tcp.db.default.svc.cluster.local. 30 IN SRV 0 50 80 10-244-1-6.db.default.svc.cluster.local. \
             | _http._tcp.db.default.svc.cluster.local. 30 IN SRV 0 50 80 db-0.db.default.svc.cluster.local.",
        ),
        (
            "alias.default.svc.cluster.local A",
            "NOERROR | alias.default.svc.cluster.local. 30 IN CNAME web.default.svc.cluster.local. \
             | web.default.svc.cluster.local. 30 IN A 10.96.0.20",
        ),
        (
            "-x 10.96.0.20",
            "NOERROR | 20.0.96.10.in-addr.arpa. 30 IN PTR web.default.svc.cluster.local.",
        ),
        (
            "-x 10.244.1.5",
            "NOERROR | 5.1.244.10.in-addr.arpa. 30 IN PTR db-0.db.default.svc.cluster.local.",
        ),
        (
            "-x fd00:10:96::20",
            "NOERROR | 0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 30 IN PTR \
             web.default.svc.cluster.local.",
        ),
        (
            "10-1-2-3.default.pod.cluster.local A",
            "NOERROR | 10-1-2-3.default.pod.cluster.local. 30 IN A 10.1.2.3",
        ),
        (
            "dns-version.cluster.local TXT",
            "NOERROR | dns-version.cluster.local. 28800 IN TXT \"1.1.0\"",
        ),
        ("-c CH version.bind TXT", "REFUSED"),
        (
            "+edns=1 +noednsnegotiation web.default.svc.cluster.local A",
            "BADVERS",
        ),
        // Nobody answers for names outside, and nothing inside depends on that.
        ("example.com A", "SERVFAIL"),
    ];
    dns.check(&rows);
    let by_tcp: Vec<(String, &str)> = rows
        .iter()
        .map(|(question, answer)| (format!("+tcp {question}"), *answer))
        .collect();
    let by_tcp: Vec<(&str, &str)> = by_tcp
        .iter()
        .map(|(question, answer)| (question.as_str(), *answer))
        .collect();
    dns.check(&by_tcp);
    fs::remove_dir_all(&dns.folder).expect("folder");
}

#[test]
fn what_does_not_exist_and_what_has_no_such_record() {
    let folder = folder("negative");
    let listener = listen(&folder);
    let dns = Dns::start(folder, "127.0.0.1:1");
    let mut feed = Feed::accept(&listener);
    feed.send(&cluster());
    dns.await_answer(
        "db-0.db.default.svc.cluster.local A",
        "NOERROR | db-0.db.default.svc.cluster.local. 30 IN A 10.244.1.5",
    );
    let soa = |zone: &str| format!("{zone} 30 IN SOA ns.dns.{zone} hostmaster.{zone} 7200 1800 86400 30");
    for (question, code, zone) in [
        (
            "nothing.default.svc.cluster.local A",
            "NXDOMAIN",
            "cluster.local.",
        ),
        ("none.default.svc.cluster.local A", "NXDOMAIN", "cluster.local."),
        ("web.nowhere.svc.cluster.local A", "NXDOMAIN", "cluster.local."),
        (
            "nothing.default.svc.CLUSTER.local A",
            "NXDOMAIN",
            "CLUSTER.local.",
        ),
        (
            "1-2-3-4.nowhere.pod.cluster.local A",
            "NXDOMAIN",
            "cluster.local.",
        ),
        ("db.default.svc.cluster.local AAAA", "NOERROR", "cluster.local."),
        ("web.default.svc.cluster.local MX", "NOERROR", "cluster.local."),
        ("empty.svc.cluster.local A", "NOERROR", "cluster.local."),
        ("empty.svc.cluster.local TXT", "NOERROR", "cluster.local."),
        (
            "_tcp.web.default.svc.cluster.local A",
            "NOERROR",
            "cluster.local.",
        ),
        ("dns-version.cluster.local A", "NOERROR", "cluster.local."),
        ("cluster.local A", "NOERROR", "cluster.local."),
    ] {
        let arguments: Vec<&str> = question.split(' ').collect();
        let found = without_serial(&dns.dig(&arguments));
        assert_eq!(found, format!("{code} | {}", soa(zone)), "{question}");
    }
    fs::remove_dir_all(&dns.folder).expect("folder");
}

#[test]
fn a_long_answer_is_truncated_by_udp_and_whole_by_tcp() {
    let folder = folder("long");
    let listener = listen(&folder);
    let dns = Dns::start(folder, "127.0.0.1:1");
    let mut feed = Feed::accept(&listener);
    feed.send(&cluster());
    let answers = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        dns.dig(&arguments).matches(" IN A 10.244.7.").count()
    };
    let question = "many.default.svc.cluster.local A";
    wait::until_value(
        "all addresses",
        DEADLINE,
        || answers(question),
        |count| *count == 200,
    );
    // `+ignore` keeps dig from asking again by TCP.
    for (how, expected) in [
        ("+ignore +noedns", 29),
        ("+ignore +bufsize=1232", 73),
        ("+ignore +bufsize=4096", 73),
        ("+noedns", 200),
        ("+tcp +noedns", 200),
    ] {
        assert_eq!(answers(&format!("{how} {question}")), expected, "{how}");
    }
    fs::remove_dir_all(&dns.folder).expect("folder");
}

#[test]
fn answers_outlive_the_agent_and_a_crash() {
    const WEB: &str = "NOERROR | web.default.svc.cluster.local. 30 IN A 10.96.0.20";
    let folder = folder("crash");
    let mut dns = Dns::start(folder.clone(), "127.0.0.1:1");
    let unsynced = dns.dig(&["web.default.svc.cluster.local", "A"]);
    assert!(unsynced.starts_with("SERVFAIL | cluster.local. "), "{unsynced}");

    let listener = listen(&folder);
    let mut feed = Feed::accept(&listener);
    feed.send(&cluster());
    dns.await_answer("web.default.svc.cluster.local A", WEB);
    feed.send(&[cluster_ip("late", &["10.96.0.21"])]);
    let late = "NOERROR | late.default.svc.cluster.local. 30 IN A 10.96.0.21";
    dns.await_answer("late.default.svc.cluster.local A", late);
    drop((feed, listener));
    dns.check(&[("web.default.svc.cluster.local A", WEB)]);

    wait::until("the snapshot on disk has the last change", DEADLINE, || {
        let snapshot = snapshot_in(&folder).unwrap_or_default();
        let text = fs::read_to_string(snapshot).unwrap_or_default();
        if text.contains("10.96.0.21") {
            Ok(())
        } else {
            Err(text.len())
        }
    });
    dns.process.kill();
    let dns = Dns::start(folder, "127.0.0.1:1");
    dns.check(&[
        ("web.default.svc.cluster.local A", WEB),
        ("late.default.svc.cluster.local A", late),
    ]);
    assert!(
        dns.dig(&["nothing.default.svc.cluster.local", "A"])
            .starts_with("NXDOMAIN | ")
    );
    fs::remove_dir_all(&dns.folder).expect("folder");
}

#[test]
fn names_outside_are_forwarded_to_another_server() {
    let (inner_folder, outer_folder) = (folder("inner"), folder("outer"));
    let listener = listen(&outer_folder);
    let outer = Dns::start(outer_folder, "127.0.0.1:1");
    let mut feed = Feed::accept(&listener);
    feed.send(&cluster());
    outer.await_answer(
        "web.default.svc.cluster.local A",
        "NOERROR | web.default.svc.cluster.local. 30 IN A 10.96.0.20",
    );
    // The inner server knows the reverse zone, does not know the address, and asks the outer one.
    let inner_listener = listen(&inner_folder);
    let inner = Dns::start(inner_folder, &outer.address.to_string());
    let mut inner_feed = Feed::accept(&inner_listener);
    inner_feed.send(&cluster()[..1]);
    inner_feed.send(&[
        json!({"change": {"synced": "Service"}}),
        json!({"change": {"synced": "EndpointSlice"}}),
        json!({"change": {"synced": "Namespace"}}),
        json!("end"),
    ]);
    let answer = "NOERROR | 20.0.96.10.in-addr.arpa. 30 IN PTR web.default.svc.cluster.local.";
    inner.await_answer("-x 10.96.0.20", answer);
    inner.await_answer("+tcp -x 10.96.0.20", answer);
    for dns in [inner, outer] {
        fs::remove_dir_all(&dns.folder).expect("folder");
    }
}

#[test]
fn a_wrong_corefile_and_a_taken_port_end_the_program_with_one_line() {
    let folder = folder("refused");
    let dns = Dns::start(folder.clone(), "127.0.0.1:1");
    let corefile = folder.join("Wrong");
    let program = tests::cluster::programs().join("causeway");
    for (text, expected) in [
        (
            ".:53 {\n  hostess\n}".to_owned(),
            format!("{}:2: unknown plugin \"hostess\"; known are ", corefile.display()),
        ),
        (
            format!(".:{} {{\n  bind 127.0.0.1\n  whoami\n}}", dns.address.port()),
            format!(
                "cannot listen at {} (udp): another program does; stop it, or choose another address or port",
                dns.address
            ),
        ),
    ] {
        fs::write(&corefile, text).expect("Corefile");
        let output = Command::new(&program)
            .arg("dns")
            .arg("--conf")
            .arg(&corefile)
            .output()
            .expect("causeway");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&expected), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
    fs::remove_dir_all(&dns.folder).expect("folder");
}

mod privileged {
    //! On a host of its own: addresses that come late, and addresses that replies leave from.

    use tests::topology::Host;

    use super::*;

    const VERSION: &str = "NOERROR | dns-version.cluster.local. 28800 IN TXT \"1.1.0\"";

    fn dig(host: &Host, server: &str, more: &str) -> String {
        let server = format!("@{server}");
        let mut arguments = vec![
            server.as_str(),
            "+tries=1",
            "+time=5",
            "+noall",
            "+comments",
            "+answer",
        ];
        arguments.extend(more.split(' ').filter(|word| !word.is_empty()));
        arguments.extend(["dns-version.cluster.local", "TXT"]);
        summary(&host.command("dig", &arguments).expect("dig").stdout)
    }

    #[test]
    fn an_address_that_comes_late_is_waited_for_and_one_that_goes_and_comes_is_served_again() {
        if !tests::privileged("causeway dns at an address that the agent gives") {
            return;
        }
        let (host, folder) = (Host::new("dns").expect("host"), folder("late"));
        let corefile = format!(
            ".:53 {{\n bind 10.96.0.10\n kubernetes {CLUSTER} {{\n feed {}/dns.sock\n}}\n}}",
            folder.display()
        );
        let mut dns = spawn(&host.place(), &folder, &corefile);
        dns.await_line("waiting for it", DEADLINE);
        host.add_address("lo", "10.96.0.10/32".parse().expect("network"))
            .expect("address");
        dns.await_line("serving", DEADLINE);
        assert_eq!(dig(&host, "10.96.0.10", ""), VERSION);
        let gone = host
            .command("ip", &["address", "del", "10.96.0.10/32", "dev", "lo"])
            .expect("ip");
        assert!(gone.status.success(), "{gone:?}");
        host.add_address("lo", "10.96.0.10/32".parse().expect("network"))
            .expect("address");
        for how in ["", "+tcp"] {
            assert_eq!(dig(&host, "10.96.0.10", how), VERSION, "{how}");
        }
        fs::remove_dir_all(&folder).expect("folder");
    }

    #[test]
    fn a_reply_leaves_from_the_address_that_was_asked() {
        if !tests::privileged("causeway dns at every address of a host") {
            return;
        }
        let (host, folder) = (Host::new("dns").expect("host"), folder("every"));
        let corefile = format!(
            ".:53 {{\n kubernetes {CLUSTER} {{\n feed {}/dns.sock\n}}\n}}",
            folder.display()
        );
        for address in ["10.96.0.10/32", "169.254.20.10/32", "fd00:10:96::a/128"] {
            host.add_address("lo", address.parse().expect("network"))
                .expect("address");
        }
        let mut dns = spawn(&host.place(), &folder, &corefile);
        dns.await_line("serving", DEADLINE);
        // dig takes a reply from another address for none.
        for address in ["10.96.0.10", "169.254.20.10", "127.0.0.1", "fd00:10:96::a", "::1"] {
            for how in ["", "+tcp"] {
                assert_eq!(dig(&host, address, how), VERSION, "{address} {how}");
            }
        }
        fs::remove_dir_all(&folder).expect("folder");
    }
}
