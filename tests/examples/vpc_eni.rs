//! How long a pod with an address of an AWS VPC takes, on a fake one: CNI ADD and DEL by `causeway-cni` with its agent as
//! they are built beside this program, from addresses that are ready, and what those cost.
//!
//! ```text
//! vpc_eni [--pods N]     default 100
//!
//! at rest     there is an address for each of them, and EC2 is asked for nothing
//! growing     so many addresses are kept ready beside those that pods have: EC2 is asked as they come
//! throttled   the same where nine of ten calls to EC2 are refused
//!
//! one         one runtime, one pod after the other
//! eight       eight runtimes at once, which share the pods
//! all         all pods asked for at the same moment
//!
//! filled      from the agent's start to so many addresses, and the calls that it took
//! resident    VmRSS of the agent with all of these pods, and VmHWM: the most that it ever had
//! without     the same of an agent that has no such part: the difference is what the addresses cost
//! calls       to EC2 while the pods came and went
//! ```
//! Each figure of ADD and DEL is for one call of the plugin from start to end, in milliseconds: middle, 99 of 100, slowest.
//! An ADD is answered once the pod's rules are in the kernel. Root; nodes and pods are network namespaces. Build with
//! `cargo build --release -p node -p cni-plugin`, run with `cargo run --release -p tests --example vpc_eni`.

#[path = "../tests/vpc_eni/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::topology::Host;
use tests::{process, wait};
use vpc_eni::ec2::Limits;

use world::{KEYS, Node, World};

/// How many of a hundred calls are refused.
const THROTTLED: u8 = 90;

/// Eight interfaces with 29 addresses for pods each, as of an m5.4xlarge.
const LIMITS: Limits = Limits {
    interfaces: 8,
    addresses_per_interface: 30,
    is_nitro: true,
};

const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pods = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 100,
        (Some("--pods"), Some(number)) => number.parse().context("--pods takes a number")?,
        _ => anyhow::bail!("usage: vpc_eni [--pods N]"),
    };
    println!(
        "{:<10} {:<6} {:>22} {:>22} {:>16} {:>20} {:>6}",
        "", "", "ADD p50 p99 max", "DEL p50 p99 max", "filled, calls", "resident, peak", "calls"
    );
    println!("{:<10} {:<6} {:>82}", "without", "", without()?);
    let all = pods.to_string();
    let [enough, more] = [("0", &all), (all.as_str(), &all)].map(|(warm, least)| {
        json!({"WARM_IP_TARGET": warm, "MINIMUM_IP_TARGET": least, "IP_COOLDOWN_PERIOD": "0"})
    });
    for (weather, variables, throttled) in [
        ("at rest", &enough, 0),
        ("growing", &more, 0),
        ("throttled", &more, THROTTLED),
    ] {
        for (name, at_once) in [("one", 1), ("eight", 8), ("all", pods)] {
            let run = run(variables, pods, at_once, throttled)?;
            println!("{weather:<10} {name:<6} {run}");
        }
    }
    Ok(())
}

/// A node from its agent's start to its last pod's end, in words.
fn run(variables: &Value, pods: usize, at_once: usize, throttled: u8) -> Result<String> {
    let mut world = World::of_type("figures", 1, variables, LIMITS)?;
    let began = Instant::now();
    world.nodes[0].start_agent(&KEYS)?;
    await_addresses(&world.nodes[0], pods);
    let (filled, calls) = (began.elapsed(), world.cloud.take_calls().len());
    world
        .cloud
        .set_weather(|weather| weather.throttled_per_cent = throttled);
    let node = &world.nodes[0];
    let hosts: Vec<Host> = (0..pods).map(|_| Host::new("pod")).collect::<Result<_>>()?;
    let add = times(node, &hosts, at_once, "ADD");
    let memory = memory(node)?;
    let del = times(node, &hosts, at_once, "DEL");
    Ok(format!(
        "{:>22} {:>22} {:>16} {:>20} {:>6}",
        told(add),
        told(del),
        format!("{:.1} s, {calls}", filled.as_secs_f64()),
        memory,
        world.cloud.calls().len()
    ))
}

#[track_caller]
fn await_addresses(node: &Node, count: usize) {
    let all = Some(count.to_string());
    wait::until_value(
        "the addresses are there",
        DEADLINE,
        || node.sample("awscni_total_ip_addresses"),
        |total| *total == all,
    );
    node.await_status();
}

/// How long each call of the plugin took.
fn times(node: &Node, hosts: &[Host], at_once: usize, verb: &str) -> Vec<Duration> {
    let hosts: Vec<(usize, &Host)> = hosts.iter().enumerate().collect();
    std::thread::scope(|scope| {
        let runtimes: Vec<_> = hosts
            .chunks(hosts.len().div_ceil(at_once))
            .map(|chunk| {
                scope.spawn(move || {
                    let one = |(number, host): &(usize, &Host)| {
                        let began = Instant::now();
                        let ran = node.cni(verb, &format!("c{number}"), &host.path());
                        let took = began.elapsed();
                        let ran: process::Output = ran.expect("it runs");
                        assert!(ran.status.success(), "{verb}: {ran:?}");
                        took
                    };
                    chunk.iter().map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        runtimes
            .into_iter()
            .flat_map(|runtime| runtime.join().expect("every call succeeds"))
            .collect()
    })
}

/// The memory of an agent without the section.
fn without() -> Result<String> {
    let mut world = World::of_type("figures", 1, &json!({}), LIMITS)?;
    let node = &mut world.nodes[0];
    let mut config: Value = serde_json::from_slice(&std::fs::read(&node.config)?)?;
    let sections = config.as_object_mut().context("sections")?;
    sections.retain(|name, _| !["vpcEni", "cni"].contains(&name.as_str()));
    std::fs::write(&node.config, config.to_string())?;
    node.start_agent(&KEYS)?;
    let is_there = |told: &Option<String>| told.is_some();
    let told = || node.sample("causeway_config_keys_waiting_for_restart");
    wait::until_value("the agent is up", DEADLINE, told, is_there);
    memory(node)
}

/// What the kernel says of the agent's memory: now, and the most that it had.
fn memory(node: &Node) -> Result<String> {
    let agent = node.agent.as_ref().context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.context("a number")?.parse::<f64>()? / 1024.0)
    };
    Ok(format!("{:.1}, {:.1} MiB", mib("VmRSS:")?, mib("VmHWM:")?))
}

fn told(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1));
    let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!(
        "{:.1} {:.1} {:.1}",
        millis(at(50)),
        millis(at(99)),
        millis(times.last())
    )
}
