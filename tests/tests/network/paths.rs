//! What happens to the LAN.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tests::network::{Network, Pod, SOON, Traffic};
use tests::topology::Host;
use tests::wait;

/// A partition that ended is over within this time (F30), and a mebibyte is there within it (F32).
const HEALED: Duration = Duration::from_secs(5);

fn nft(host: &Host, rules: &[&str]) {
    for rule in rules {
        let output = host.command("nft", &[rule]).expect("nft runs");
        assert!(output.status.success(), "{rule}: {}", output.stderr);
    }
}

#[test]
fn a_node_that_is_cut_off_harms_only_itself_and_comes_back() {
    let Some(world) = Network::new("a partition harms one node (F30)", "cut", 3) else {
        return;
    };
    let pods = [0, 1, 2].map(|number| world.pod(number, &format!("pod-{number}")));
    let others = Traffic::start(&pods[0], &pods[1]);
    // Both ways, then each way alone.
    for hooks in [&["input", "output"][..], &["input"], &["output"]] {
        let host = world.host(2);
        nft(host, &["add table inet cut"]);
        for hook in hooks {
            let chain = format!(
                "add chain inet cut {hook} {{ type filter hook {hook} priority -400; policy drop; }}"
            );
            nft(host, &[&chain]);
        }
        wait::until("the cut is felt", SOON, || {
            let stream = pods[0]
                .host
                .run(|| TcpStream::connect_timeout(&pods[2].server(), Duration::from_millis(300)));
            match stream.expect("entered") {
                Err(_) => Ok(()),
                Ok(_) => Err("it answers"),
            }
        });
        others.await_more();
        nft(host, &["delete table inet cut"]);
        let began = Instant::now();
        let again = |from: &Pod, to: &Pod| {
            wait::until("they talk again", SOON, || {
                let stream = from
                    .host
                    .run(|| TcpStream::connect_timeout(&to.server(), Duration::from_secs(1)));
                stream
                    .expect("entered")
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
        };
        again(&pods[0], &pods[2]);
        again(&pods[2], &pods[1]);
        let took = began.elapsed();
        assert!(took < HEALED, "{hooks:?}: {took:?}");
        println!("F30 {hooks:?} healed after {took:?}");
    }
    let lost = others.ended("F30");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
    println!("F30 between the others: {lost:?}");
}

#[test]
fn a_smaller_link_on_the_way_is_found_by_connections_that_may_not_be_cut_up() {
    let Some(world) = Network::new("a smaller link is found (F32)", "narrow", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    mebibyte(&near, &far);
    // The node's own link: its tunnel follows, the pods that are there keep what they have.
    for (from, to) in [(&near, &far), (&far, &near)] {
        for mtu in ["1300", "1500"] {
            let set = ["link", "set", "eth0", "mtu", mtu];
            assert!(
                world
                    .host(0)
                    .command("ip", &set)
                    .expect("ip runs")
                    .status
                    .success()
            );
            let tunnel = format!(" mtu {} ", mtu.parse::<u32>().expect("a number") - 50);
            wait::until("the tunnel follows", SOON, || {
                let show = ["-o", "link", "show", "flannel.1"];
                let shown = world.host(0).command("ip", &show).expect("ip runs").stdout;
                if shown.contains(&tunnel) {
                    Ok(())
                } else {
                    Err(shown)
                }
            });
            let took = mebibyte(from, to);
            println!("F32 a mebibyte at {mtu}: {took:?}");
            assert!(took < HEALED, "{mtu}: {took:?}");
        }
    }
}

/// Sends a mebibyte, and waits for its end to be confirmed.
fn mebibyte(from: &Pod, to: &Pod) -> Duration {
    let listener = to
        .host
        .run(|| TcpListener::bind((to.address, 0)))
        .expect("entered")
        .expect("bound");
    let address = listener.local_addr().expect("bound");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.set_read_timeout(Some(SOON)).expect("a timeout");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("all of it");
            stream.write_all(b"!").expect("confirmed");
            received.len()
        });
        let stream = from.host.run(|| TcpStream::connect_timeout(&address, SOON));
        let mut stream = stream.expect("entered").expect("connected");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.write_all(&vec![7; 1_048_576]).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("ended");
        stream.read_exact(&mut [0]).expect("confirmed");
        assert_eq!(reading.join().expect("no panic"), 1_048_576);
    });
    began.elapsed()
}
