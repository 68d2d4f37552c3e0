//! Nodes whose addresses come and go in blocks. Time stands still, unless a test lets it pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::*;

const COOL_DOWN: Duration = Duration::from_secs(30);

/// A directory with a log, and a clock.
struct Node {
    place: Place,
    now: Arc<Mutex<Now>>,
}

impl Node {
    fn new(label: &str) -> Self {
        let now = Now {
            steady: Instant::now() + Duration::from_secs(100_000),
            wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        Self {
            place: Place::new(label),
            now: Arc::new(Mutex::new(now)),
        }
    }

    fn open(&self) -> PodNetwork {
        let now = self.now.clone();
        let clock = Clock::new(move || *now.lock().expect("no panic"));
        PodNetwork::open_by(&self.place.0, clock).expect("open")
    }

    fn serving(&self, blocks: &[(&str, u32)]) -> PodNetwork {
        let pods = self.open();
        pods.serve_pool(pool(blocks));
        pods
    }

    fn pass(&self, seconds: u64) {
        let mut now = self.now.lock().expect("no panic");
        *now = now.after(Duration::from_secs(seconds));
    }

    /// Sets the clock that people set, by so many seconds.
    fn set_wall(&self, by: i64) {
        let mut now = self.now.lock().expect("no panic");
        let distance = Duration::from_secs(by.unsigned_abs());
        now.wall = if by < 0 {
            now.wall - distance
        } else {
            now.wall + distance
        };
    }

    fn log(&self) -> PathBuf {
        self.place.0.join(LOG)
    }
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn blocks(texts: &[(&str, u32)]) -> Vec<Block> {
    let block = |(text, device_index): &(&str, u32)| Block {
        network: network(text),
        device_index: *device_index,
    };
    texts.iter().map(block).collect()
}

fn pool(texts: &[(&str, u32)]) -> Pool {
    Pool {
        blocks: blocks(texts),
        mtu: Mtu(9001),
        cool_down: COOL_DOWN,
        growth: Growth::Possible,
    }
}

fn blocked(texts: &[(&str, u32)]) -> Pool {
    Pool {
        growth: Growth::Blocked {
            reason: "the machine has all its interfaces".to_owned(),
        },
        ..pool(texts)
    }
}

/// Gives a container an address.
#[track_caller]
fn given(pods: &PodNetwork, container: &str) -> String {
    let plan = pods.add(&attachment(container)).expect("an address");
    let addresses: Vec<String> = plan
        .addresses
        .iter()
        .map(|network| network.ip().to_string())
        .collect();
    addresses.join(" ")
}

#[track_caller]
fn removed(pods: &PodNetwork, container: &str) {
    assert!(pods.remove(&key(container)).expect("writable").is_some());
}

#[track_caller]
fn none_now(result: Result<WiringPlan, PodError>) -> String {
    match result {
        Err(PodError::NoneNow { waiting_for, .. }) => waiting_for,
        other => panic!("{other:?} waits for nothing"),
    }
}

/// `assigned cooling free`, and whether the block is withdrawn.
fn counts(pods: &PodNetwork) -> Vec<String> {
    let census = pods.census().expect("a pool");
    let count = |count: &Count| {
        let Count {
            block,
            assigned,
            cooling,
            free,
            is_withdrawn,
        } = count;
        let withdrawn = if *is_withdrawn { " withdrawn" } else { "" };
        format!("{} {assigned} {cooling} {free}{withdrawn}", block.network)
    };
    census.blocks.iter().map(count).collect()
}

#[test]
fn every_address_of_a_block_is_a_pods() {
    let rows: [(&str, &[&str], usize); 6] = [
        ("10.0.0.7/32", &["10.0.0.7"], 1),
        ("10.0.0.16/28", &["10.0.0.16", "10.0.0.17"], 16),
        ("10.0.0.21/28", &["10.0.0.16", "10.0.0.17"], 16),
        ("fd00::9/128", &["fd00::9"], 1),
        ("fd00::8/127", &["fd00::8", "fd00::9"], 2),
        // The first one is the routers' (RFC 4291 §2.6.1).
        ("fd00:0:0:0:1::/80", &["fd00::1:0:0:1", "fd00::1:0:0:2"], 4096),
    ];
    for (number, (block, first, free)) in rows.into_iter().enumerate() {
        let node = Node::new(&format!("usable{number}"));
        let pods = node.serving(&[(block, 0)]);
        let census = pods.census().expect("a pool");
        assert_eq!(
            census.blocks.first().map(|count| count.free),
            Some(free),
            "{block}"
        );
        for (container, address) in ["a", "b"].into_iter().zip(first) {
            assert_eq!(given(&pods, container), *address, "{block}");
        }
    }
    let node = Node::new("usable");
    let pods = node.serving(&[("10.0.0.16/28", 0), ("10.0.0.7/32", 0)]);
    let all: BTreeSet<String> = (0..17)
        .map(|number| given(&pods, &format!("c{number}")))
        .collect();
    let expected = (16..32).chain([7]).map(|last| format!("10.0.0.{last}")).collect();
    assert_eq!(all, expected);
    none_now(pods.add(&attachment("one more")));
}

#[test]
fn pods_are_put_together_so_that_blocks_and_interfaces_become_free() {
    // Blocks, the addresses that pods have, and the next that is given.
    type Row<'a> = (&'a str, &'a [(&'a str, u32)], &'a [&'a str], &'a str);
    let rows: [Row; 6] = [
        (
            "the block that is in use most",
            &[("10.0.0.0/28", 0), ("10.0.1.0/28", 1)],
            &["10.0.1.3", "10.0.1.4", "10.0.0.3"],
            "10.0.1.0",
        ),
        (
            "of blocks that are in use alike the primary interface's, which is never given back",
            &[("10.0.1.0/28", 1), ("10.0.2.0/28", 1), ("10.0.0.0/28", 0)],
            &["10.0.1.3", "10.0.2.3", "10.0.0.3"],
            "10.0.0.0",
        ),
        (
            "of others that of the interface that is in use most",
            &[
                ("10.0.1.1/32", 1),
                ("10.0.1.2/32", 1),
                ("10.0.2.1/32", 2),
                ("10.0.2.2/32", 2),
                ("10.0.2.3/32", 2),
            ],
            &["10.0.1.1", "10.0.2.1", "10.0.2.2"],
            "10.0.2.3",
        ),
        (
            "of nothing in use the lowest interface's",
            &[("10.0.3.0/28", 3), ("10.0.2.16/28", 2), ("10.0.2.0/28", 2)],
            &[],
            "10.0.2.0",
        ),
        (
            "another block where the fullest is full",
            &[("10.0.1.0/31", 1), ("10.0.2.0/31", 2)],
            &["10.0.2.0", "10.0.2.1"],
            "10.0.1.0",
        ),
        (
            "of blocks that overlap the widest has an address",
            &[("10.0.0.1/32", 1), ("10.0.0.0/31", 2)],
            &["10.0.0.0"],
            "10.0.0.1",
        ),
    ];
    for (number, (claim, blocks, in_use, expected)) in rows.into_iter().enumerate() {
        let node = Node::new(&format!("together{number}"));
        let pods = node.serving(blocks);
        for address in in_use {
            let wishes = Wishes {
                ips: vec![ip(address)],
                ..Wishes::default()
            };
            let wished = Attachment {
                wishes,
                ..attachment(address)
            };
            pods.add(&wished).expect("it is free");
        }
        assert_eq!(given(&pods, "next"), expected, "{claim}");
    }
}

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
fn who_is_added_anew_with_other_wishes_keeps_its_address() {
    let node = Node::new("anew");
    let pods = node.serving(&[("10.0.0.0/30", 0)]);
    let plan = pods.add(&attachment("a")).expect("an address");
    let mac = Some(model::MacAddr([2, 0, 0, 0, 0, 7]));
    let anew = |ips: &[&str]| Attachment {
        wishes: Wishes {
            mac,
            ips: ips.iter().map(|text| ip(text)).collect(),
            ..Wishes::default()
        },
        ..attachment("a")
    };
    assert_eq!(pods.add(&anew(&[])).expect("again").addresses, plan.addresses);
    let other = pods.add(&anew(&["10.0.0.2"])).expect("another address");
    assert_eq!(other.addresses, [network("10.0.0.2/32")]);
    assert_eq!(counts(&pods), ["10.0.0.0/30 1 1 2"], "the one before cools down");
    drop(pods);
    assert_eq!(
        counts(&node.serving(&[("10.0.0.0/30", 0)])),
        ["10.0.0.0/30 1 1 2"]
    );
}

#[test]
fn what_is_asked_for_is_given_if_it_is_in_a_block_and_free_and_waited_for_while_it_cools_down() {
    let node = Node::new("wished");
    let pods = node.serving(&[("10.0.0.0/28", 0), ("fd00:0:0:0:1::/80", 0)]);
    given(&pods, "a");
    given(&pods, "b");
    removed(&pods, "b");
    let told = |wished: &str| {
        let wished = Attachment {
            wishes: Wishes {
                ips: vec![ip(wished)],
                ..Wishes::default()
            },
            ..attachment("c")
        };
        let answer = pods.add(&wished);
        drop(pods.remove(&key("c")));
        match answer {
            Ok(plan) => plan
                .addresses
                .iter()
                .map(|network| network.ip().to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Err(PodError::NoneNow { .. }) => "waits".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let not_here = |wished: &str| {
        format!("address {wished} cannot be given here: this node gives addresses of 10.0.0.0/28 and fd00:0:0:0:1::/80")
            .replace("fd00:0:0:0:1::/80", &network("fd00:0:0:0:1::/80").to_string())
    };
    let rows = [
        ("10.0.0.0", "address 10.0.0.0 is in use".to_owned()),
        ("10.0.0.1", "waits".to_owned()),
        ("10.0.0.16", not_here("10.0.0.16")),
        ("10.0.0.15", "10.0.0.15 fd00::1:0:0:3".to_owned()),
        ("fd00::1:0:0:0", not_here("fd00::1:0:0:0")),
        ("fd00::1:0:1:9", "10.0.0.2 fd00::1:0:1:9".to_owned()),
        ("fd00::2:0:1:9", not_here("fd00::2:0:1:9")),
    ];
    for (wished, expected) in rows {
        assert_eq!(told(wished), expected, "{wished}");
    }
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

#[test]
fn a_block_is_withdrawn_only_while_nothing_of_it_is_in_use_or_cools_down() {
    let node = Node::new("withdraw");
    let all = [("10.0.0.0/30", 0), ("10.0.1.0/30", 1), ("10.0.2.2/32", 2)];
    let pods = node.serving(&all);
    given(&pods, "a");
    given(&pods, "b");
    removed(&pods, "b");
    pods.hold([ip("10.0.2.2")].into());
    let networks = ["10.0.0.0/30", "10.0.1.1/30", "10.0.2.2/32", "10.9.9.9/32"].map(network);
    let told = pods.withdraw(&networks).expect("a pool");
    let busy = |text: &str, assigned, cooling| Busy {
        network: network(text),
        assigned,
        cooling,
    };
    let expected = Withdrawal {
        withdrawn: ["10.0.1.0/30", "10.9.9.9/32"].map(network).to_vec(),
        refused: vec![busy("10.0.0.0/30", 1, 1), busy("10.0.2.2/32", 1, 0)],
    };
    assert_eq!(told, expected);
    let with = |second: &str| {
        let second = second.to_owned();
        [
            "10.0.0.0/30 3 1 0".to_owned(),
            second,
            "10.0.2.2/32 1 0 0".to_owned(),
        ]
    };
    given(&pods, "c");
    given(&pods, "d");
    none_now(pods.add(&attachment("e")));
    assert_eq!(counts(&pods), with("10.0.1.0/30 0 0 4 withdrawn"));
    // What the manager says of other blocks meanwhile does not put it back.
    pods.serve_pool(blocked(&all));
    none_now(pods.add(&attachment("e")));
    pods.restore(&[network("10.0.1.0/30")]).expect("a pool");
    assert_eq!(counts(&pods), with("10.0.1.0/30 0 0 4"));
    assert_eq!(given(&pods, "e"), "10.0.1.0");

    // Given back, it may come again.
    removed(&pods, "e");
    node.pass(30);
    pods.withdraw(&[network("10.0.1.0/30")]).expect("a pool");
    pods.serve_pool(pool(&[("10.0.2.2/32", 2)]));
    pods.serve_pool(pool(&all));
    node.pass(30);
    assert_eq!(
        counts(&pods),
        ["10.0.0.0/30 3 0 1", "10.0.1.0/30 0 0 4", "10.0.2.2/32 1 0 0"]
    );

    // A restart forgets it: the next pool says whether the VPC still gives the block to this node.
    pods.withdraw(&[network("10.0.1.0/30")]).expect("a pool");
    drop(pods);
    let pods = node.open();
    assert_eq!(pods.census(), None);
    assert!(matches!(pods.withdraw(&networks), Err(PodError::NoPool)));
    assert!(matches!(pods.restore(&networks), Err(PodError::NoPool)));
    pods.serve_pool(pool(&all));
    assert_eq!(
        counts(&pods),
        ["10.0.0.0/30 3 0 1", "10.0.1.0/30 0 0 4", "10.0.2.2/32 0 0 1"]
    );
}

#[test]
fn an_address_whose_block_is_gone_stays_its_pods_and_is_told() {
    let node = Node::new("stranded");
    let pods = node.serving(&[("10.0.0.1/32", 0), ("10.0.1.1/32", 1)]);
    given(&pods, "a");
    given(&pods, "b");
    pods.serve_pool(pool(&[("10.0.0.1/32", 0)]));
    let expected = Census {
        blocks: vec![Count {
            block: Block {
                network: network("10.0.0.1/32"),
                device_index: 0,
            },
            assigned: 1,
            cooling: 0,
            free: 0,
            is_withdrawn: false,
        }],
        stranded: vec![Stranded {
            address: ip("10.0.1.1"),
            key: key("b"),
        }],
        unmet: 0,
    };
    assert_eq!(pods.census(), Some(expected));
    assert_eq!(addresses(&pods), [pair("a", "10.0.0.1"), pair("b", "10.0.1.1")]);
    assert_eq!(
        pods.check(&key("b")).expect("known").addresses,
        [network("10.0.1.1/32")]
    );
    removed(&pods, "b");
    assert_eq!(pods.census().expect("a pool").stranded, []);
    // It is known to cool down should the block come back.
    pods.serve_pool(pool(&[("10.0.1.1/32", 1)]));
    none_now(pods.add(&attachment("c")));
    // And forgotten once that is over: the addresses of a VPC that a node had once are many.
    pods.serve_pool(pool(&[("10.0.0.1/32", 0)]));
    node.pass(30);
    pods.serve_pool(pool(&[("10.0.0.1/32", 0), ("10.0.0.2/32", 0)]));
    assert_eq!(
        pods.lock().addresses.came_back().collect::<Vec<_>>(),
        Vec::<IpAddr>::new()
    );
}

#[test]
fn fifty_pods_that_wait_get_fifty_addresses_in_the_order_in_which_they_came() {
    let node = Node::new("fifty");
    let pods = node.serving(&[("10.0.9.9/32", 0)]);
    given(&pods, "before");
    let mut turns: Vec<Turn> = (0..50)
        .map(|number| pods.queue(attachment(&format!("w{number:02}"))))
        .collect();
    // In whatever order they ask.
    for turn in turns.iter_mut().rev() {
        none_now(turn.add());
    }
    assert_eq!(pods.unmet(), 50);
    let mut have = vec!["10.0.9.9/32".to_owned()];
    for number in 0..50 {
        have.push(format!("10.0.1.{number}/32"));
        let all: Vec<(&str, u32)> = have.iter().map(|text| (text.as_str(), 0)).collect();
        pods.serve_pool(pool(&all));
        none_now(pods.add(&attachment("newcomer")));
        let mut served = Vec::new();
        for turn in turns.iter_mut().rev() {
            match turn.add() {
                Ok(plan) => served.push((turn.key().container_id.clone(), plan.addresses)),
                refused => drop(none_now(refused)),
            }
        }
        let expected = (
            format!("w{number:02}"),
            vec![network(&format!("10.0.1.{number}/32"))],
        );
        assert_eq!(served, [expected]);
        turns.retain(|turn| turn.key().container_id != format!("w{number:02}"));
        assert_eq!(pods.unmet(), 49 - number);
    }
}

#[test]
fn as_many_are_served_at_once_as_there_are_addresses_and_who_leaves_the_line_holds_nobody_up() {
    let node = Node::new("leaves");
    let pods = node.serving(&[]);
    let mut turns = ["a", "b", "c", "d", "e"].map(|container| pods.queue(attachment(container)));
    for turn in &mut turns {
        none_now(turn.add());
    }
    let twin = pods.queue(attachment("c"));
    pods.serve_pool(pool(&[("10.0.0.1/32", 0), ("10.0.0.2/32", 0)]));
    let [mut a, mut b, mut c, mut d, mut e] = turns;
    none_now(c.add());
    b.add().expect("the second of two");
    a.add().expect("the first of two");
    pods.serve_pool(pool(&[
        ("10.0.0.1/32", 0),
        ("10.0.0.2/32", 0),
        ("10.0.0.3/32", 0),
        ("10.0.0.4/32", 0),
    ]));
    assert_eq!(pods.remove(&key("c")).expect("writable"), None);
    let dismissed = c.add().expect_err("deleted");
    assert_eq!(
        dismissed.to_string(),
        "interface eth0 of container c was deleted while it waited for an address"
    );
    drop(twin);
    drop(d);
    assert_eq!(pods.unmet(), 1);
    let mut again = pods.queue(attachment("e"));
    assert_eq!(futures::FutureExt::now_or_never(again.comes()), None);
    e.add().expect("nobody is before it");
    assert_eq!(
        futures::FutureExt::now_or_never(again.comes()),
        Some(()),
        "its answer is there"
    );
    again.add().expect("the same");
    assert_eq!(pods.unmet(), 0);
    given(&pods, "newcomer");
    // Asked again, the answer is the same.
    assert_eq!(
        e.add().expect("the same").addresses,
        pods.check(&key("e")).expect("known").addresses
    );
    d = pods.queue(attachment("d"));
    none_now(d.add());
}

type Happens<'a> = Box<dyn FnOnce() + 'a>;

#[tokio::test]
async fn who_waits_is_woken_by_whatever_may_help_and_by_nothing_else() {
    const LONG: Duration = Duration::from_secs(10);
    let node = Node::new("woken");
    let pods = node.serving(&[("10.0.0.1/32", 0)]);
    given(&pods, "holder");
    given_nothing(&pods);
    let mut turn = pods.queue(attachment("waits"));
    let other = pods.queue(attachment("leaves"));
    let wakes: [(&str, Happens); 6] = [
        (
            "a block comes",
            Box::new(|| pods.serve_pool(pool(&[("10.0.0.1/32", 0), ("10.0.0.2/31", 0)]))),
        ),
        ("a pod goes", Box::new(|| removed(&pods, "holder"))),
        (
            "a block is restored",
            Box::new(|| pods.restore(&[network("10.0.0.2/31")]).expect("a pool")),
        ),
        (
            "a stranger goes",
            Box::new(|| pods.hold([ip("10.0.0.2"), ip("10.0.0.3")].into())),
        ),
        ("another one leaves the line", Box::new(|| drop(other))),
        (
            "the mode changes",
            Box::new(|| pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450))),
        ),
    ];
    pods.hold([ip("10.0.0.2"), ip("10.0.0.3"), ip("10.0.0.9")].into());
    for (what, happens) in wakes {
        none_now(turn.add());
        let unmoved = futures::FutureExt::now_or_never(turn.comes());
        assert_eq!(unmoved, None, "before {what}");
        happens();
        tokio::time::timeout(LONG, turn.comes()).await.expect(what);
    }
    turn.add().expect("an address of the subnet");
}

/// What is the same as before is no news.
fn given_nothing(pods: &PodNetwork) {
    let mut changes = pods.changes();
    changes.borrow_and_update();
    pods.serve_pool(pool(&[("10.0.0.1/32", 0)]));
    pods.hold(HashSet::new());
    assert!(!changes.has_changed().expect("its sender lives"));
    assert_eq!(pods.remove(&key("nobody")).expect("writable"), None);
    assert!(!changes.has_changed().expect("its sender lives"));
    none_now(pods.add(&attachment("unmet")));
    assert!(changes.has_changed().expect("its sender lives"), "a pod waits");
}

#[tokio::test]
async fn who_waits_for_an_address_that_cools_down_is_woken_when_it_has() {
    let place = Place::new("cooled");
    let pods = PodNetwork::open(&place.0).expect("open");
    pods.serve_pool(Pool {
        cool_down: Duration::from_millis(300),
        ..pool(&[("10.0.0.1/32", 0)])
    });
    given(&pods, "a");
    removed(&pods, "a");
    let began = Instant::now();
    let mut turn = pods.queue(attachment("b"));
    let plan = loop {
        match turn.add() {
            Err(PodError::NoneNow { .. }) => {
                let comes = tokio::time::timeout(Duration::from_secs(10), turn.comes());
                comes.await.expect("within the cool-down");
            }
            answer => break answer.expect("cooled down"),
        }
    };
    assert_eq!(plan.addresses, [network("10.0.0.1/32")]);
    assert!(
        began.elapsed() >= Duration::from_millis(250),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_node_is_ready_as_long_as_a_pod_would_get_an_address_if_not_now() {
    let node = Node::new("ready");
    let pods = node.open();
    let told = || pods.ready().err().map(|error| error.to_string());
    let one: &[(&str, u32)] = &[("10.0.0.1/32", 0)];
    let none_yet = "this node has no pod subnet yet: its pool has no block yet";
    let no_interfaces = "this node has no pod subnet yet: the machine has all its interfaces";
    let full = "no free address: 1 in use, and no more to come: the machine has all its interfaces";
    pods.serve_pool(pool(&[]));
    assert_eq!(told().as_deref(), Some(none_yet));
    pods.serve_pool(blocked(&[]));
    assert_eq!(told().as_deref(), Some(no_interfaces));
    pods.serve_pool(blocked(one));
    assert_eq!(told(), None);
    given(&pods, "a");
    assert_eq!(told().as_deref(), Some(full));
    none_now(pods.add(&attachment("b")));
    pods.serve_pool(pool(one));
    assert_eq!(told(), None, "more may come");
    pods.serve_pool(blocked(one));
    removed(&pods, "a");
    assert_eq!(told(), None, "one cools down");
}

/// Names of devices, by container.
fn names(pods: &PodNetwork) -> BTreeMap<String, String> {
    let named = |assigned: Assigned| (assigned.key.container_id.clone(), wiring::host_ifname(&assigned));
    pods.list().into_iter().map(named).collect()
}

#[test]
fn a_pod_keeps_the_name_that_it_was_made_with_and_no_two_have_the_same() {
    let node = Node::new("names");
    let of_pod = |container: &str, ifname: &str| Attachment {
        key: AttachmentKey {
            ifname: ifname.to_owned(),
            ..key(container)
        },
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment(container)
    };
    let pods = node.open();
    pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450));
    pods.add(&of_pod("overlay", "eth0")).expect("an address");
    pods.serve_pool(pool(&[("10.0.0.0/28", 0)]));
    let web_0 = "eni0d7763386da".to_owned();
    let first = pods.add(&of_pod("first", "eth0")).expect("an address");
    assert_eq!(first.host_ifname, web_0);
    pods.add(&of_pod("remade", "eth0")).expect("an address");
    pods.add(&of_pod("second interface", "net1")).expect("an address");
    pods.add(&attachment("unnamed")).expect("an address");
    let by_key = |container: &str, ifname: &str| wiring::eni_ifname_by_key(&of_pod(container, ifname).key);
    let expected: BTreeMap<String, String> = [
        ("overlay", wiring::ifname_by_key(&key("overlay"))),
        ("first", web_0.clone()),
        ("remade", by_key("remade", "eth0")),
        ("second interface", by_key("second interface", "net1")),
        ("unnamed", by_key("unnamed", "eth0")),
    ]
    .map(|(container, name)| (container.to_owned(), name))
    .into();
    assert_eq!(names(&pods), expected);
    assert_eq!(expected.values().collect::<BTreeSet<_>>().len(), 5);
    assert!(
        expected.values().all(|name| model::wiring::is_host_ifname(name)),
        "{expected:?}"
    );
    // Over a change of mode, a restart, and an ADD that is repeated with other wishes.
    drop(pods);
    let pods = node.open();
    pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450));
    assert_eq!(names(&pods), expected);
    assert_eq!(pods.check(&key("first")).expect("known").host_ifname, web_0);
    assert_eq!(
        pods.add(&of_pod("first", "eth0"))
            .expect("in the subnet")
            .host_ifname,
        web_0
    );
    // What went leaves its name to the next.
    pods.serve_pool(pool(&[("10.0.0.0/28", 0)]));
    removed(&pods, "first");
    assert_eq!(
        pods.add(&of_pod("remade again", "eth0"))
            .expect("an address")
            .host_ifname,
        web_0
    );
}

#[test]
fn a_device_that_is_there_and_not_this_interfaces_leaves_it_another_name() {
    let node = Node::new("strange");
    let pods = node.serving(&[("10.0.0.0/28", 0)]);
    let named = Attachment {
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment("a")
    };
    let rows = [
        ("nothing there", None, "eni0d7763386da".to_owned()),
        (
            "its own, of an ADD that broke off",
            Some(Some(wiring::host_mac(&key("a")))),
            "eni0d7763386da".to_owned(),
        ),
        (
            "another plugin's",
            Some(Some(model::MacAddr([2, 0, 0, 0, 0, 9]))),
            wiring::eni_ifname_by_key(&key("a")),
        ),
        (
            "one without an address",
            Some(None),
            wiring::eni_ifname_by_key(&key("a")),
        ),
    ];
    for (what, device, expected) in rows {
        assert_eq!(pods.lock().host_ifname(&named, device), Some(expected), "{what}");
    }
}

/// What must be so whatever happened before.
struct Model {
    /// Who has which address.
    assigned: BTreeMap<String, IpAddr>,
    came_back: BTreeMap<IpAddr, SystemTime>,
    withdrawn: BTreeSet<IpNetwork>,
    blocks: Vec<(&'static str, u32)>,
}

const BLOCKS: [(&str, u32); 7] = [
    ("10.0.0.1/32", 0),
    ("10.0.0.2/32", 0),
    ("10.0.0.16/29", 0),
    ("10.0.1.1/32", 1),
    ("10.0.1.16/29", 1),
    ("10.0.2.1/32", 2),
    ("10.0.2.16/30", 2),
];

impl Model {
    fn add(&mut self, pods: &PodNetwork, container: &str, now: Now) {
        let answer = pods.add(&attachment(container));
        let plan = match answer {
            Ok(plan) => plan,
            refused => {
                none_now(refused);
                assert_eq!(self.free(now), Vec::<IpAddr>::new(), "there was a free one");
                return;
            }
        };
        let [network] = plan.addresses.as_slice() else {
            panic!("{plan:?}")
        };
        let address = network.ip();
        if self.assigned.get(container) == Some(&address) && self.is_in_a_block(address) {
            return;
        }
        if let Some(before) = self.assigned.remove(container) {
            self.came_back.insert(before, now.wall);
        }
        assert!(self.free(now).contains(&address), "{address} is not free");
        self.assigned.insert(container.to_owned(), address);
        self.came_back.remove(&address);
    }

    fn is_in_a_block(&self, address: IpAddr) -> bool {
        self.blocks
            .iter()
            .any(|(text, _)| network(text).contains(address))
    }

    fn free(&self, now: Now) -> Vec<IpAddr> {
        let given = self
            .blocks
            .iter()
            .map(|(text, _)| network(text))
            .filter(|block| !self.withdrawn.contains(block));
        let cools = |address: &IpAddr| {
            let came_back = self.came_back.get(address);
            came_back.is_some_and(|at| *at + COOL_DOWN > now.wall)
        };
        let each = given.flat_map(|block| block.iter());
        each.filter(|address| !cools(address) && self.assigned.values().all(|used| used != address))
            .collect()
    }

    fn withdraw(&mut self, pods: &PodNetwork, text: &str, now: Now) {
        let block = network(text);
        let told = pods.withdraw(&[block]).expect("a pool");
        let in_use = self
            .assigned
            .values()
            .filter(|address| block.contains(**address))
            .count();
        let cooling = self.came_back.iter();
        let cooling = cooling
            .filter(|(address, at)| block.contains(**address) && **at + COOL_DOWN > now.wall)
            .count();
        if in_use + cooling > 0 {
            let refused = Busy {
                network: block,
                assigned: in_use,
                cooling,
            };
            assert_eq!((told.withdrawn, told.refused), (vec![], vec![refused]));
        } else {
            assert_eq!((told.withdrawn, told.refused), (vec![block], vec![]));
            if self.blocks.iter().any(|(of, _)| *of == text) {
                self.withdrawn.insert(block);
            }
        }
    }
}

#[test]
fn no_address_is_given_twice_or_before_it_cooled_down_or_of_a_block_that_is_withdrawn() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let node = Node::new(&format!("random{seed}"));
        let mut model = Model {
            assigned: BTreeMap::new(),
            came_back: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            blocks: BLOCKS.to_vec(),
        };
        let mut pods = node.serving(&model.blocks);
        for _ in 0..150 {
            let now = *node.now.lock().expect("no panic");
            let container = format!("c{}", random.random_range(0..20));
            let (block, _) = *BLOCKS.choose(&mut random).expect("some");
            match random.random_range(0..14) {
                0..5 => model.add(&pods, &container, now),
                5..8 => {
                    let gone = pods.remove(&key(&container)).expect("writable");
                    let expected = model.assigned.remove(&container);
                    assert_eq!(gone.and_then(|gone| gone.addresses().v4), expected);
                    if let Some(address) = expected {
                        model.came_back.insert(address, now.wall);
                    }
                }
                8 | 9 => model.withdraw(&pods, block, now),
                10 => {
                    pods.restore(&[network(block)]).expect("a pool");
                    model.withdrawn.remove(&network(block));
                }
                11 => {
                    model.blocks = BLOCKS.into_iter().filter(|_| random.random_bool(0.8)).collect();
                    pods.serve_pool(pool(&model.blocks));
                    let has =
                        |block: &IpNetwork| model.blocks.iter().any(|(text, _)| network(text) == *block);
                    model.withdrawn.retain(has);
                }
                12 => node.pass(random.random_range(1..20)),
                _ => {
                    drop(pods);
                    pods = node.serving(&model.blocks);
                    model.withdrawn.clear();
                }
            }
            let have: BTreeMap<String, IpAddr> = pods
                .list()
                .into_iter()
                .filter_map(|assigned| Some((assigned.key.container_id.clone(), assigned.addresses().v4?)))
                .collect();
            assert_eq!(have, model.assigned, "seed {seed}");
            let free: usize = pods
                .census()
                .expect("a pool")
                .blocks
                .iter()
                .filter(|count| !count.is_withdrawn)
                .map(|count| count.free)
                .sum();
            let now = *node.now.lock().expect("no panic");
            assert_eq!(free, model.free(now).len(), "seed {seed}");
        }
    }
}

#[test]
fn a_block_that_is_withdrawn_while_pods_come_has_none_of_them() {
    let node = Node::new("race");
    let blocks: Vec<(String, u32)> = (0..64)
        .map(|number| (format!("10.0.{number}.0/30"), number))
        .collect();
    let texts: Vec<(&str, u32)> = blocks
        .iter()
        .map(|(text, device)| (text.as_str(), *device))
        .collect();
    let pods = node.serving(&texts);
    let withdrawn = std::thread::scope(|scope| {
        for thread in 0..4 {
            let pods = &pods;
            scope.spawn(move || {
                for number in 0..30 {
                    given(pods, &format!("c{thread}-{number}"));
                }
            });
        }
        let mut withdrawn = Vec::new();
        for (text, _) in blocks.iter().rev().take(30) {
            withdrawn.extend(pods.withdraw(&[network(text)]).expect("a pool").withdrawn);
        }
        withdrawn
    });
    let inside = |assigned: &Assigned| {
        let mut addresses = assigned.each_address();
        addresses.any(|address| withdrawn.iter().any(|block| block.contains(address)))
    };
    assert_eq!(pods.list().len(), 120);
    assert_eq!(pods.list().into_iter().filter(inside).collect::<Vec<_>>(), []);
    assert!(withdrawn.len() >= 20, "{withdrawn:?}");
}

/// What a start must find: who has which address by which name, and what is given to nobody for how many seconds.
type Found = (Vec<(String, String, String)>, Vec<(IpAddr, u64)>);

fn found(node: &Node) -> Found {
    let pods = node.serving(&[("10.0.0.0/29", 0)]);
    let have = |assigned: Assigned| {
        let name = wiring::host_ifname(&assigned);
        let addresses: Vec<String> = assigned
            .each_address()
            .map(|address| address.to_string())
            .collect();
        (assigned.key.container_id, addresses.join(" "), name)
    };
    let list = pods.list().into_iter().map(have).collect();
    let now = *node.now.lock().expect("no panic");
    let state = pods.lock();
    let mut cooling: Vec<(IpAddr, u64)> = state
        .addresses
        .came_back()
        .filter_map(|address| {
            let until = state.addresses.cools_until(address, COOL_DOWN, now)?;
            Some((address, until.duration_since(now.steady).as_secs()))
        })
        .collect();
    cooling.sort_unstable();
    (list, cooling)
}

#[test]
fn a_crash_at_any_byte_of_the_log_leaves_what_was_answered_for_or_the_step_after_it() {
    let node = Node::new("crash");
    let named = |container: &str| Attachment {
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment(container)
    };
    let elsewhere = Attachment {
        wishes: Wishes {
            ips: vec![ip("10.0.0.5")],
            ..Wishes::default()
        },
        ..named("a")
    };
    let steps: [&dyn Fn(&PodNetwork); 7] = [
        &|pods| drop(pods.add(&named("a")).expect("an address")),
        &|pods| drop(pods.add(&named("b")).expect("an address")),
        &|pods| removed(pods, "b"),
        // Another address: the one before comes back by the same step.
        &|pods| drop(pods.add(&elsewhere).expect("an address")),
        &|pods| drop(pods.add(&attachment("c")).expect("an address")),
        &|pods| removed(pods, "c"),
        &|pods| removed(pods, "a"),
    ];
    // After each step: how long the log is, and what stands in it.
    let mut answered: Vec<(usize, Found)> = Vec::new();
    let began = *node.now.lock().expect("no panic");
    for step in 0..=steps.len() {
        let _ = fs::remove_dir_all(&node.place.0);
        *node.now.lock().expect("no panic") = began;
        let pods = node.serving(&[("10.0.0.0/29", 0)]);
        for happens in steps.iter().take(step) {
            node.pass(1);
            happens(&pods);
        }
        drop(pods);
        let length = fs::read(node.log()).expect("a log").len();
        *node.now.lock().expect("no panic") = began.after(Duration::from_secs(10));
        answered.push((length, found(&node)));
    }
    let bytes = fs::read(node.log()).expect("a log");
    assert_eq!(answered.last().map(|(length, _)| *length), Some(bytes.len()));
    for length in 0..=bytes.len() {
        fs::write(node.log(), bytes.get(..length).expect("shorter")).expect("tear");
        *node.now.lock().expect("no panic") = began.after(Duration::from_secs(10));
        let (_, expected) = answered
            .iter()
            .rev()
            .find(|(at, _)| *at <= length)
            .expect("the first is empty");
        let (list, mut cooling) = found(&node);
        if list != expected.0 {
            // Between the two records of one step it is not known when the address came back: now.
            let (_, next) = answered
                .iter()
                .find(|(at, _)| *at > length)
                .expect("the last is whole");
            assert_eq!(list, next.0, "torn at {length}");
            for (address, rest) in &mut cooling {
                if *address == ip("10.0.0.0") {
                    assert_eq!(*rest, 30, "torn at {length}");
                    *rest = 24;
                }
            }
            assert_eq!(cooling, next.1, "torn at {length}");
        } else {
            assert_eq!(cooling, expected.1, "torn at {length}");
        }
    }
}
