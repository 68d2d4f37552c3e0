//! Interfaces are answered for once the kernel leads their packets.

use std::sync::mpsc;

use super::*;

const AT_ONCE: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(work)
}

fn led(pods: &PodNetwork, container: &str, patience: Duration) -> Result<(), String> {
    wait(pods.await_led(&key(container), patience)).map_err(|error| error.to_string())
}

fn not_led(reason: &str) -> Result<(), String> {
    Err(format!("the kernel does not lead the pod's packets: {reason}"))
}

/// Leads every pod, or tells for all why not; what it was asked.
fn lead(pods: &PodNetwork, standing: &Standing) -> mpsc::Receiver<Asked> {
    let (sender, asked) = mpsc::channel();
    let standing = standing.clone();
    pods.lead_by(move |asked| {
        asked.tell(standing.clone());
        sender.send(asked).expect("the test looks at it");
    });
    asked
}

#[test]
fn with_a_subnet_nobody_is_asked() {
    let place = Place::new("unled");
    let pods = place.open();
    pods.add(&attachment("a")).expect("add");
    assert_eq!(led(&pods, "a", Duration::ZERO), Ok(()));
}

#[test]
fn an_interface_whose_packets_are_not_led_gives_its_address_back_unless_it_was_answered_for() {
    let node = Node::new("not-led");
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let refused = Standing::NotYet("there is no such device".to_owned());
    let given = |container| {
        pods.add(&attachment(container)).expect("add");
        addresses(&pods).len()
    };

    assert_eq!(given("a"), 1);
    assert_eq!(
        led(&pods, "a", AT_ONCE),
        not_led("nobody programs the kernel yet")
    );
    assert_eq!(addresses(&pods), []);

    let asked = lead(&pods, &refused);
    assert_eq!(given("a"), 1);
    assert_eq!(led(&pods, "a", AT_ONCE), not_led("there is no such device"));
    assert_eq!(addresses(&pods), []);
    let asked = asked.recv().expect("asked");
    assert!(!asked.is_awaited(), "nobody waits any more");
    let [way] = asked.routes.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(way.address, ip("10.0.0.17"), "the first one cools down");

    // Answered for once, it is wired, and keeps its address whatever comes.
    let _asked = lead(&pods, &Standing::Led);
    assert_eq!(given("a"), 1);
    let had = addresses(&pods);
    assert_eq!(led(&pods, "a", LONG), Ok(()));
    let _asked = lead(&pods, &refused);
    assert_eq!(led(&pods, "a", AT_ONCE), not_led("there is no such device"));
    assert_eq!(addresses(&pods), had);
    // So does one of an earlier agent, which may have answered.
    drop(pods);
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let _asked = lead(&pods, &refused);
    pods.add(&attachment("a")).expect("the same");
    assert_eq!(led(&pods, "a", AT_ONCE), not_led("there is no such device"));
    assert_eq!(addresses(&pods), had);
}

#[test]
fn a_pod_that_was_removed_meanwhile_is_not_answered_for() {
    let node = Node::new("led-and-gone");
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let gone = "interface eth0 of container a was deleted while it waited for an address";
    assert_eq!(led(&pods, "a", LONG), Err(gone.to_owned()));
    let remover = pods.clone();
    pods.lead_by(move |asked| {
        remover.remove(&key("a")).expect("written");
        asked.tell(Standing::Led);
    });
    pods.add(&attachment("a")).expect("add");
    assert_eq!(led(&pods, "a", LONG), Err(gone.to_owned()));
}

#[test]
fn who_comes_after_one_that_ended_leads_what_that_one_was_asked() {
    let node = Node::new("next-leader");
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let next = pods.clone();
    // It ends before it has answered, and its successor is there.
    pods.lead_by(move |asked| {
        drop(asked);
        next.lead_by(|asked| asked.tell(Standing::Led));
    });
    pods.add(&attachment("a")).expect("add");
    assert_eq!(led(&pods, "a", LONG), Ok(()));
}

#[test]
fn what_the_kernel_has_is_awaited_until_a_look_that_began_afterwards() {
    let node = Node::new("looked");
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let looked = |patience| wait(async { tokio::time::timeout(patience, pods.await_look()).await.is_ok() });
    // One that is over says nothing of what came since.
    pods.hold(HashSet::new());
    assert!(!looked(AT_ONCE), "nobody looks");

    let (ask, asked) = std::sync::mpsc::channel();
    // Who looks may have looked often enough.
    pods.listen(move || {
        let _ = ask.send(());
    });
    let looks = pods.clone();
    let looks = std::thread::spawn(move || asked.iter().take(2).for_each(|()| looks.hold(HashSet::new())));
    assert!(looked(LONG));
    looks.join().expect("no panic");
}

#[test]
fn an_interface_is_answered_for_as_soon_as_it_is_led() {
    let node = Node::new("led-later");
    let pods = node.serving(&[("10.0.0.16/28", 0)]);
    let asked = lead(&pods, &Standing::NotYet("its device comes up".to_owned()));
    pods.add(&attachment("a")).expect("add");
    let leads = std::thread::spawn(move || asked.recv().expect("asked").tell(Standing::Led));
    assert_eq!(led(&pods, "a", LONG), Ok(()));
    leads.join().expect("no panic");
}
