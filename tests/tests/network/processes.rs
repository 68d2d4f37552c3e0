//! What happens to agents, and to whole nodes.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::network::{Network, SOON, Traffic};
use tests::topology::Host;
use tests::wait;

/// A runtime gives up on a plugin after minutes; it must hear sooner that it is to try again.
const ANSWERED: Duration = Duration::from_secs(30);

#[test]
fn a_node_that_starts_again_keeps_its_subnet_and_gives_no_address_twice() {
    let Some(mut world) = Network::new("a node starts again (F41)", "reboot", 2) else {
        return;
    };
    let key = world.lease_of(0).expect("a lease");
    let far = world.pod(1, "far");
    let pods: Vec<_> = (0..5)
        .map(|number| world.pod(0, &format!("old-{number}")))
        .collect();
    let traffic = Traffic::start(&pods[0], &far);
    traffic.ended("before");
    drop(traffic);
    // Power is cut: the agent, the pods and everything in the kernel is gone; the disk is not.
    world.kill_agent(0);
    drop(pods);
    let host = world.host(0);
    let links = host
        .command("ip", &["-o", "link", "show"])
        .expect("ip runs")
        .stdout;
    let devices = links
        .split_whitespace()
        .filter(|word| word.starts_with("cw") && word.contains('@'));
    let devices: Vec<&str> = devices.filter_map(|word| word.split('@').next()).collect();
    assert_eq!(devices.len(), 5, "{links}");
    for device in devices {
        let output = host.command("ip", &["link", "delete", device]).expect("ip runs");
        assert!(output.status.success(), "{device}: {}", output.stderr);
    }
    for arguments in [
        &["link", "delete", "flannel.1"][..],
        &["route", "flush", "proto", "213"],
    ] {
        let output = host.command("ip", arguments).expect("ip runs");
        assert!(output.status.success(), "{arguments:?}: {}", output.stderr);
    }
    for table in ["causeway-guard", "causeway-masq"] {
        let output = host
            .command("nft", &["delete", "table", "ip", table])
            .expect("nft runs");
        assert!(output.status.success(), "{table}: {}", output.stderr);
    }
    world.start_agent(0);
    world.await_ready(0);
    assert_eq!(world.lease_of(0).expect("a lease"), key);
    let pods: Vec<_> = (0..5)
        .map(|number| world.pod(0, &format!("new-{number}")))
        .collect();
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    assert_eq!(addresses.len(), 5);
    let traffic = Traffic::start(&pods[0], &far);
    let lost = traffic.ended("F41");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
}

#[test]
fn a_plugin_whose_agent_does_not_answer_says_that_it_is_to_be_tried_again_and_leaves_nothing() {
    let Some(mut world) = Network::new("no agent behind the socket (F43)", "silent", 1) else {
        return;
    };
    let before = world.ledger(0);
    let pod = Host::new("waits").expect("a namespace");
    let add = |world: &Network| {
        let began = Instant::now();
        let ran = world.cni(0, "ADD", "waits", &pod.path());
        (ran, began.elapsed())
    };
    let socket = world.path(0, "cni.sock");

    // It stands still for good, then only for a moment.
    Network::signal(world.agents[0].as_ref(), Signal::SIGSTOP);
    let (ran, took) = add(&world);
    assert_eq!(ran.output["code"], 11, "stopped: {ran:?}");
    assert!(took < ANSWERED, "stopped: {took:?}");
    println!("F43 told after {took:?} that a stopped agent is to be tried again");
    std::thread::scope(|scope| {
        let waking = scope.spawn(|| {
            // How many wait for the agent to take them is in the second column after the state.
            wait::until("the plugin asks", SOON, || {
                let sockets = world.host(0).command("ss", &["-xlH"]).expect("ss runs").stdout;
                let listening = sockets.lines().find(|line| line.contains("cni.sock"));
                let waiting = listening.and_then(|line| line.split_whitespace().nth(2));
                if waiting.is_some_and(|waiting| waiting != "0") {
                    Ok(())
                } else {
                    Err(sockets)
                }
            });
            Network::signal(world.agents[0].as_ref(), Signal::SIGCONT);
        });
        let (ran, _) = add(&world);
        assert!(ran.success, "woken: {ran:?}");
        waking.join().expect("no panic");
    });
    assert!(world.cni(0, "DEL", "waits", &pod.path()).success);

    // It is gone and left its socket; the socket is gone too; something else listens there and says nothing.
    world.kill_agent(0);
    assert!(world.is_socket(0, "cni.sock"));
    let (ran, took) = add(&world);
    assert_eq!(ran.output["code"], 11, "left behind: {ran:?}");
    assert!(took < ANSWERED, "left behind: {took:?}");
    std::fs::remove_file(&socket).expect("removed");
    let (ran, _) = add(&world);
    assert_eq!(ran.output["code"], 11, "gone: {ran:?}");
    let _mute = UnixListener::bind(&socket).expect("bound");
    let (ran, took) = add(&world);
    assert_eq!(ran.output["code"], 11, "mute: {ran:?}");
    assert!(took < ANSWERED, "mute: {took:?}");
    assert!(!world.cni(0, "STATUS", "", "").success);
    world.start_agent(0);
    world.await_ready(0);
    wait::until_value(
        "nothing is left",
        SOON,
        || world.ledger(0).changes_since(&before),
        Vec::is_empty,
    );
    let (ran, _) = add(&world);
    assert!(ran.success, "{ran:?}");
}

#[test]
fn a_second_agent_waits_for_nobody_and_changes_nothing() {
    let Some(world) = Network::new("two agents at once (F54)", "two", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    let traffic = Traffic::start(&near, &far);
    let before = world.ledger(0);
    let mut second = world.agent(0);
    let status = second.await_end(SOON);
    assert_eq!(status.code(), Some(2));
    assert!(
        second.output().contains("does another agent run?"),
        "{}",
        second.output()
    );
    assert_eq!(world.ledger(0).changes_since(&before), Vec::<String>::new());
    let lost = traffic.ended("F54");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
    // The socket is the first one's still.
    let pod = world.pod(0, "after");
    world.delete(&pod);
}
