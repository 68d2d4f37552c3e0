//! Pods that wait for an address.

use super::*;

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
    let none_yet = "this node has no addresses for pods yet: its pool has no block yet";
    let no_interfaces = "this node has no addresses for pods yet: the machine has all its interfaces";
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
