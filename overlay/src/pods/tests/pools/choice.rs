//! Which address of the pool a pod is given.

use super::*;

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
