//! A network namespace for each test, and commands in it.

use std::process::Command;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink::Namespace;

/// Runs a test in a fresh namespace, or says that it was skipped.
pub fn in_namespace(test: &str, body: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root");
        return;
    }
    let name = format!("cwt-nft-{}-{test}", std::process::id());
    let namespace = Namespace::create(&name).expect("a namespace");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| namespace.run(body)));
    Namespace::delete(&name).expect("the namespace was there");
    result.expect("no panic in the namespace").expect("entered");
}

/// Runs a command line, which must succeed, and returns what it printed.
#[track_caller]
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .output()
        .expect("it is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives a device an address, and waits until packets to it find their way: the kernel makes the route of an IPv6
/// address later than the address, on a thread of its own (`addrconf_dad_work`).
#[track_caller]
pub fn add_address(address: &str, device: &str) {
    let network: IpNetwork = address.parse().expect("address/prefix");
    let (family, options) = match network {
        IpNetwork::V4(_) => ("-4", ""),
        IpNetwork::V6(_) => ("-6", "nodad"),
    };
    run(&format!("ip address add {network} dev {device} {options}"));
    let is_routed = || {
        let routes = run(&format!("ip {family} route show table local"));
        let mut words = routes.split_whitespace();
        words.any(|word| word.parse() == Ok(network.ip()))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_routed() {
        assert!(Instant::now() < deadline, "no route to {network}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
