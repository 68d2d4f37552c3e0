//! Blocks that come and go while pods have addresses of them.

use super::*;

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
