//! Addresses given, kept and taken back through the public handle.

use std::collections::BTreeSet;

use model::wiring::{Bandwidth, RateLimit};

use super::*;

mod adopted;
mod pools;

struct Place(PathBuf);

impl Place {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-pods-{label}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> PodNetwork {
        let pods = PodNetwork::open(&self.0).expect("open");
        pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450));
        pods
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn subnets(texts: &[&str]) -> ByFamily<IpNetwork> {
    let subnet = |text: &&str| text.parse::<IpNetwork>().expect("subnet");
    texts.iter().map(subnet).collect()
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey {
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        key: key(container),
        netns: "/proc/self/ns/net".to_owned(),
        pod: None,
        ..Attachment::default()
    }
}

fn addresses(pods: &PodNetwork) -> Vec<(String, String)> {
    pods.list()
        .into_iter()
        .map(|assigned| {
            let addresses: Vec<String> = assigned.addresses().values().map(IpAddr::to_string).collect();
            (assigned.key.container_id, addresses.join(" "))
        })
        .collect()
}

fn pair(container: &str, address: &str) -> (String, String) {
    (container.to_owned(), address.to_owned())
}

#[test]
fn an_address_is_kept_over_a_restart_and_the_same_key_gets_the_same_plan() {
    let place = Place::new("restart");
    let pods = place.open();
    let plan = pods.add(&attachment("a")).expect("add");
    pods.add(&attachment("b")).expect("add");
    assert_eq!(pods.add(&attachment("a")).expect("again"), plan);
    drop(pods);
    let pods = place.open();
    assert_eq!(
        addresses(&pods),
        [pair("a", "10.244.1.2"), pair("b", "10.244.1.3")]
    );
    assert_eq!(pods.check(&key("a")).expect("known"), plan);
    assert!(matches!(pods.check(&key("nobody")), Err(PodError::Unknown(_))));
}

#[test]
fn a_bandwidth_is_part_of_the_plan_over_a_restart_and_of_what_was_asked_for() {
    let place = Place::new("bandwidth");
    let number = |number| std::num::NonZeroU64::new(number).expect("not zero");
    let bandwidth = Bandwidth {
        ingress: Some(RateLimit {
            rate_bits: number(20_000_000),
            burst_bits: number(8_000),
        }),
        egress: None,
    };
    let limited = Attachment {
        wishes: Wishes {
            bandwidth,
            ..Wishes::default()
        },
        ..attachment("a")
    };
    let pods = place.open();
    let plan = pods.add(&limited).expect("add");
    assert_eq!(plan.bandwidth, bandwidth);
    assert_eq!(pods.add(&limited).expect("again"), plan);
    drop(pods);
    let pods = place.open();
    assert_eq!(pods.check(&key("a")).expect("known"), plan);
    let unlimited = pods.add(&attachment("a")).expect("another wish");
    assert!(unlimited.bandwidth.is_unlimited());
}

#[test]
fn a_freed_address_is_given_again_last_and_freeing_twice_is_fine() {
    let place = Place::new("freed");
    let pods = place.open();
    pods.add(&attachment("a")).expect("add");
    assert!(pods.remove(&key("a")).expect("remove").is_some());
    assert!(pods.remove(&key("a")).expect("remove").is_none());
    for container in ["b", "c", "d", "e", "f"] {
        pods.add(&attachment(container)).expect("add");
    }
    assert_eq!(addresses(&pods).last(), Some(&pair("f", "10.244.1.2")));
    let full = pods.add(&attachment("g")).expect_err("full");
    assert_eq!(full.to_string(), "no free address in 10.244.1.0/29: 5 in use");
    assert!(matches!(pods.ready(), Err(PodError::Exhausted { .. })));
}

#[test]
fn a_pod_that_is_added_again_after_its_node_got_ipv6_gets_both_addresses() {
    let place = Place::new("dual");
    let pods = place.open();
    pods.add(&attachment("a")).expect("add");
    pods.serve(subnets(&["10.244.1.0/29", "fd05:0:0:1::/64"]), Mtu(1430));
    assert_eq!(
        addresses(&pods),
        [pair("a", "10.244.1.2")],
        "a pod that runs keeps what it has"
    );
    pods.add(&attachment("a")).expect("add again");
    pods.add(&attachment("b")).expect("add");
    let expected = [
        pair("a", "10.244.1.3 fd05:0:0:1::2"),
        pair("b", "10.244.1.4 fd05:0:0:1::3"),
    ];
    assert_eq!(addresses(&pods), expected);
    drop(pods);
    let pods = place.open();
    assert_eq!(addresses(&pods), expected, "kept over a restart");
    assert!(pods.remove(&key("a")).expect("remove").is_some());
    let pods = place.open();
    assert_eq!(addresses(&pods), expected.get(1..).expect("two"), "both went");
}

#[test]
fn nothing_is_given_before_the_node_has_a_subnet() {
    let place = Place::new("waiting");
    let pods = PodNetwork::open(&place.0).expect("open");
    pods.wait_for("etcd does not answer".to_owned());
    let error = pods.add(&attachment("a")).expect_err("no subnet");
    assert_eq!(
        error.to_string(),
        "this node has no addresses for pods yet: etcd does not answer"
    );
}

#[test]
fn interfaces_of_an_earlier_boot_are_forgotten_unless_their_namespace_is_there() {
    let place = Place::new("boot");
    fs::create_dir_all(&place.0).expect("directory");
    let (log, _) = Log::open::<Record>(&place.0.join("pods.log")).expect("open");
    let assigned = |container: &str, address: &str, netns: &str| {
        let address: IpAddr = address.parse().expect("an address");
        Record::Add(Assigned {
            netns: netns.to_owned(),
            boot: "another".to_owned(),
            ..Assigned::new(key(container), &[address].into_iter().collect())
        })
    };
    log.rewrite([
        assigned("gone", "10.244.1.2", "/nonexistent"),
        assigned("there", "10.244.1.3", "/proc/self/ns/net"),
    ])
    .expect("write");
    assert_eq!(addresses(&place.open()), [pair("there", "10.244.1.3")]);
    assert_eq!(
        addresses(&place.open()),
        [pair("there", "10.244.1.3")],
        "and stay forgotten"
    );
}

#[test]
fn concurrent_callers_get_different_addresses() {
    let place = Place::new("concurrent");
    let pods = PodNetwork::open(&place.0).expect("open");
    pods.serve(subnets(&["10.244.2.0/24", "fd05:0:0:2::/64"]), Mtu(1430));
    let plans: Vec<WiringPlan> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..64)
            .map(|number| {
                let pods = pods.clone();
                scope.spawn(move || pods.add(&attachment(&format!("c{number}"))).expect("add"))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    let distinct: BTreeSet<_> = plans.iter().flat_map(|plan| plan.addresses.clone()).collect();
    assert_eq!(distinct.len(), 2 * plans.len(), "one of each version");
}

#[test]
fn the_log_does_not_grow_for_ever_and_says_the_same_after_it_was_rewritten() {
    let place = Place::new("rewrite");
    let pods = place.open();
    pods.add(&attachment("stays")).expect("add");
    for turn in 0..600 {
        let container = format!("c{turn}");
        pods.add(&attachment(&container)).expect("add");
        pods.remove(&key(&container)).expect("remove");
    }
    let lines = fs::read_to_string(place.0.join("pods.log"))
        .expect("read")
        .lines()
        .count();
    assert!(lines < REWRITE_AFTER, "{lines} lines");
    let next = pods.add(&attachment("next")).expect("add").addresses;
    pods.remove(&key("next")).expect("remove");
    drop(pods);
    let pods = place.open();
    assert_eq!(addresses(&pods), [pair("stays", "10.244.1.2")]);
    for _ in 0..3 {
        pods.add(&attachment("turn")).expect("add");
        pods.remove(&key("turn")).expect("remove");
    }
    assert_eq!(
        pods.add(&attachment("last")).expect("add").addresses,
        next,
        "in the same order as before"
    );
}
