//! Somebody changes what the agent programmed.

use std::time::{Duration, Instant};

use tests::network::{Network, SOON, Traffic};
use tests::wait;

/// How soon an entry is put back (F15), and a device made again (F16).
const ENTRY: Duration = Duration::from_secs(1);
const DEVICE: Duration = Duration::from_secs(3);

#[test]
fn entries_and_devices_that_are_deleted_or_changed_come_back_and_connections_live() {
    let Some(world) = Network::new("entries and devices come back (F15, F16)", "damage", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    let traffic = Traffic::start(&near, &far);
    let host = world.host(0);
    let route = world.routes(0).pop().expect("one to the other node");
    let subnet = route.split(' ').next().expect("a network").to_owned();
    let vtep = subnet.split('/').next().expect("an address").to_owned();
    let entry = host
        .command("bridge", &["fdb", "show", "dev", "flannel.1"])
        .expect("bridge runs");
    let mac = entry.stdout.split(' ').next().expect("a MAC address").to_owned();
    let pod_route = format!("{}/32", near.address);
    let of_the_pod = host
        .command("ip", &["route", "show", &pod_route])
        .expect("ip runs")
        .stdout;
    let pod_device = of_the_pod.split(' ').nth(2).expect("a device").to_owned();
    let near_address = near.address.to_string();

    let entries: [(&str, &[&str]); 7] = [
        ("ip", &["route", "delete", &subnet]),
        (
            "ip",
            &["route", "replace", &subnet, "via", "172.30.8.1", "proto", "213"],
        ),
        ("ip", &["neighbour", "delete", &vtep, "dev", "flannel.1"]),
        (
            "ip",
            &[
                "neighbour",
                "replace",
                &vtep,
                "lladdr",
                "02:00:00:00:00:99",
                "dev",
                "flannel.1",
            ],
        ),
        (
            "bridge",
            &["fdb", "delete", &mac, "dev", "flannel.1", "dst", "172.30.8.12"],
        ),
        ("ip", &["route", "delete", &pod_route]),
        ("ip", &["neighbour", "delete", &near_address, "dev", &pod_device]),
    ];
    let devices: [(&str, &[&str]); 4] = [
        ("ip", &["link", "set", "flannel.1", "mtu", "1200"]),
        (
            "ip",
            &["link", "set", "flannel.1", "address", "02:00:00:00:00:77"],
        ),
        ("ip", &["link", "set", "flannel.1", "down"]),
        ("ip", &["link", "delete", "flannel.1"]),
    ];
    let mut slowest = [Duration::ZERO; 2];
    for (number, (damages, bound)) in [(&entries[..], ENTRY), (&devices[..], DEVICE)]
        .into_iter()
        .enumerate()
    {
        for (program, arguments) in damages {
            let before = world.entries(0);
            let output = host.command(program, arguments).expect("it runs");
            assert!(
                output.status.success(),
                "{program} {arguments:?}: {}",
                output.stderr
            );
            let took = world.await_entries(0, &before);
            assert!(took < bound, "{program} {arguments:?}: {took:?}");
            slowest[number] = slowest[number].max(took);
            traffic.await_more();
        }
    }
    let lost = traffic.ended("F15, F16");
    println!(
        "F15 entries back after {:?} at most, F16 devices {:?}; {lost:?}",
        slowest[0], slowest[1]
    );
    // The same for the rules; nothing of others' is touched.
    let foreign = ["route", "add", "198.51.100.0/24", "via", "172.30.8.1"];
    assert!(host.command("ip", &foreign).expect("ip runs").status.success());
    for table in ["causeway-guard", "causeway-masq"] {
        // Without counters, which begin anew.
        let rules = || {
            host.command("nft", &["-s", "list", "table", "ip", table])
                .expect("nft runs")
                .stdout
        };
        let before = rules();
        let began = Instant::now();
        let output = host
            .command("nft", &["delete", "table", "ip", table])
            .expect("nft runs");
        assert!(output.status.success(), "{table}: {}", output.stderr);
        wait::until_value("the rules are back", SOON, rules, |rules| *rules == before);
        assert!(began.elapsed() < ENTRY, "{table}: {:?}", began.elapsed());
    }
    let left = host
        .command("ip", &["route", "show", "198.51.100.0/24"])
        .expect("ip runs")
        .stdout;
    assert!(left.contains("172.30.8.1"), "{left}");
}
