//! Packets that are not as they should be, sent through the node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::process;
use tests::topology::Host;

use crate::world::{NODE_PORT, PORT, VIP, VIP_V6, World, on_each_datapath, server, socket};

/// Sends all of them from a host, whose gateway is the node, and returns how many.
fn send_malformed(
    world: &World,
    from: &Host,
    addresses: [&str; 4],
    port: u16,
    device: &str,
) -> Result<usize> {
    let [source, destination, source_v6, destination_v6] = addresses;
    // The neighbour is known once something was sent there.
    let neighbours = from.command("ip", &["neigh", "show", "dev", device])?;
    let mac = neighbours
        .stdout
        .split_whitespace()
        .skip_while(|word| *word != "lladdr")
        .nth(1);
    let mac = mac
        .with_context(|| format!("no neighbour: {neighbours:?}"))?
        .to_owned();
    let place = from.place();
    let mut python = process::command(&place, "python3");
    python.args([
        "-c",
        include_str!("malformed.py"),
        device,
        &mac,
        source,
        destination,
        source_v6,
    ]);
    python.args([destination_v6, &port.to_string()]);
    let output = process::run_in(&place, &mut python, b"")?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        world.node.health("/livez")?.starts_with("HTTP/1.0 200"),
        "the agent lives"
    );
    Ok(output.stdout.trim().parse()?)
}

#[test]
fn malformed_packets_harm_nobody() -> Result<()> {
    if !tests::privileged("malformed packets harm nobody (F50)") {
        return Ok(());
    }
    on_each_datapath(check_malformed)
}

fn check_malformed(datapath: &'static str) -> Result<()> {
    let (world, agent) = World::with_agent(&format!("malformed-{datapath}"), datapath, &[1, 2])?;
    let flows = world.flows(20, 20)?;
    let attempts = world.connections(50)?;
    let [v4, v6] = server(1).map(|at| at.to_string());
    let mut sent = 0;
    for _ in 0..3 {
        for (to, to_v6) in [(VIP, VIP_V6), (v4.as_str(), v6.as_str())] {
            sent += send_malformed(
                &world,
                &world.pod,
                ["10.244.9.2", to, "fd00:244:9::2", to_v6],
                PORT,
                "eth0",
            )?;
        }
        let addresses = ["172.30.8.1", "172.30.8.11", "fd00:8::1", "fd00:8::11"];
        sent += send_malformed(&world, world.outside(), addresses, NODE_PORT, "br0")?;
    }
    flows.await_more(100);
    for attempts in &attempts {
        attempts.await_more(20);
        assert_eq!(attempts.lost(), [], "{datapath}");
    }
    let counts = flows.counts();
    assert_eq!(
        (counts.open, counts.broken),
        (20, 0),
        "{datapath}: {:#?}",
        flows.breaks()
    );
    assert!(!agent.0.output().contains("panicked"));
    assert_eq!(world.node.part("proxy").as_deref(), Some("working"));
    println!(
        "F50 {datapath}: {sent} packets; flows away {:?} at most",
        counts.longest
    );
    Ok(())
}

#[test]
fn fragments_to_a_service_are_put_together_and_answered() -> Result<()> {
    if !tests::privileged("fragments to a Service are put together and answered (F50)") {
        return Ok(());
    }
    on_each_datapath(check_fragments)
}

fn check_fragments(datapath: &'static str) -> Result<()> {
    let (world, _agent) = World::with_agent(&format!("fragments-{datapath}"), datapath, &[1])?;
    for (from, to) in [
        (&world.pod, socket(VIP, PORT)),
        (&world.pod, socket(VIP_V6, PORT)),
        (world.outside(), socket("172.30.8.11", NODE_PORT)),
    ] {
        // Not in the node's cgroup: the rules translate, not the hook. Two fragments, many, and none with data.
        for size in [2_000, 9_000, 60_000, 0] {
            let from_address = ask(from, to, size).with_context(|| format!("{datapath} {to} {size}"))?;
            assert!(
                server(1).contains(&from_address),
                "{datapath} {to} {size}: {from_address}"
            );
        }
    }
    Ok(())
}

/// Asks with so many bytes, and returns who answered.
fn ask(from: &Host, to: SocketAddr, size: usize) -> Result<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.run(|| UdpSocket::bind(any))??;
    client.connect(to)?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut question = vec![7; size];
    if let Some(number) = question.first_chunk_mut() {
        *number = 7_u64.to_be_bytes();
    }
    client.send(&question)?;
    let mut answer = [0; 64];
    let length = client.recv(&mut answer)?;
    let address = answer
        .get(8..24)
        .filter(|_| length == 24)
        .and_then(|own| own.first_chunk::<16>());
    let address = std::net::Ipv6Addr::from(*address.context("not an answer")?);
    Ok(address.to_canonical())
}
