//! Addresses that came back: when they are given again, also after a restart, and by logs of older versions.

use super::*;

#[test]
fn an_address_cools_down_and_then_the_longest_free_one_comes_first() {
    let node = Node::new("cools");
    let pods = node.serving(&[("10.0.0.0/30", 0)]);
    for container in ["a", "b", "c", "d"] {
        given(&pods, container);
    }
    removed(&pods, "c");
    node.pass(10);
    removed(&pods, "a");
    node.pass(19);
    let waiting = none_now(pods.add(&attachment("e")));
    assert_eq!(
        waiting,
        "1 blocks with 2 addresses in use, 2 that cool down, 0 pods before this one: more are asked for"
    );
    assert_eq!(counts(&pods), ["10.0.0.0/30 2 2 0"]);
    node.pass(1);
    assert_eq!(counts(&pods), ["10.0.0.0/30 2 1 1"]);
    node.pass(10);
    assert_eq!(counts(&pods), ["10.0.0.0/30 2 0 2"]);
    assert_eq!(given(&pods, "e"), "10.0.0.2");
    assert_eq!(given(&pods, "f"), "10.0.0.0");
}

#[test]
fn the_rest_of_a_cool_down_is_kept_over_a_restart_whatever_the_clock_says() {
    // How long after it came back the node starts again, how its clock is set meanwhile, and how long the address is
    // given to nobody after that.
    let rows = [
        ("at once", 0, 0, 30),
        ("the rest", 12, 0, 18),
        ("nothing", 30, 0, 0),
        ("long ago", 100_000_000, 0, 0),
        ("a clock that went back", 10, -3600, 30),
        ("a clock that was far ahead", 10, -1_000_000_000, 30),
        ("a clock that went forward is believed", 0, 20, 10),
    ];
    for (number, (claim, passed, set, rest)) in rows.into_iter().enumerate() {
        let node = Node::new(&format!("rest{number}"));
        let pods = node.serving(&[("10.0.0.1/32", 0)]);
        given(&pods, "a");
        removed(&pods, "a");
        drop(pods);
        node.pass(passed);
        node.set_wall(set);
        let pods = node.serving(&[("10.0.0.1/32", 0)]);
        if rest > 0 {
            node.pass(rest - 1);
            none_now(pods.add(&attachment("b")));
            drop(pods);
            // The next start does not begin anew.
            let pods = node.serving(&[("10.0.0.1/32", 0)]);
            none_now(pods.add(&attachment("b")));
            node.pass(1);
            assert_eq!(given(&pods, "b"), "10.0.0.1", "{claim}");
        } else {
            assert_eq!(given(&pods, "b"), "10.0.0.1", "{claim}");
        }
    }
}

/// The log's lines as they were before there were pools, for what such a version reads.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum OldRecord {
    Add(OldAssigned),
    Free { address: IpAddr },
}

#[derive(Debug, PartialEq, Deserialize)]
struct OldAssigned {
    #[serde(flatten)]
    key: AttachmentKey,
    #[serde(default)]
    address: Option<std::net::Ipv4Addr>,
    netns: String,
    pod: Option<ObjectName>,
    boot: String,
}

#[test]
fn older_versions_read_the_log_and_their_logs_are_read() {
    let node = Node::new("versions");
    let pods = node.serving(&[("10.0.0.0/30", 0)]);
    let named = Attachment {
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment("a")
    };
    pods.add(&named).expect("an address");
    given(&pods, "b");
    removed(&pods, "b");
    drop(pods);
    let bytes = fs::read(node.log()).expect("a log");
    let old: Vec<OldRecord> = log::records(&bytes);
    let add = |container: &str, address: &str, pod: Option<ObjectName>| {
        OldRecord::Add(OldAssigned {
            key: key(container),
            address: Some(address.parse().expect("an address")),
            netns: "/proc/self/ns/net".to_owned(),
            pod,
            boot: boot_id(),
        })
    };
    let free = OldRecord::Free {
        address: ip("10.0.0.1"),
    };
    assert_eq!(
        old,
        [
            add("a", "10.0.0.0", named.pod.clone()),
            add("b", "10.0.0.1", None),
            free
        ]
    );

    let line: Record = serde_json::from_str(r#"{"op":"free","address":"10.0.0.1"}"#).expect("readable");
    let address = ip("10.0.0.1");
    assert_eq!(line, Record::Free { address, at: None });
    let (older, _) = Log::open::<Record>(&node.log()).expect("open");
    older.rewrite([line]).expect("write");
    let pods = node.serving(&[("10.0.0.1/32", 0)]);
    none_now(pods.add(&attachment("c")));
    node.pass(30);
    assert_eq!(
        given(&pods, "c"),
        "10.0.0.1",
        "nobody knows when it came back: at the start at the latest"
    );
}
