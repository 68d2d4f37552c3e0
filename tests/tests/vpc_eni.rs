//! Agents whose pods have addresses of an AWS VPC, on a fake one: EC2 and the metadata service by HTTP, devices that come
//! when an interface is attached, a router that drops what an interface does not own, pods that the CNI plugin wires. Needs
//! root.

#[path = "vpc_eni/doctor.rs"]
mod doctor;
#[path = "vpc_eni/faults.rs"]
mod faults;
#[path = "vpc_eni/missing.rs"]
mod missing;
#[path = "vpc_eni/taken_over.rs"]
mod taken_over;
#[path = "vpc_eni/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use fake_vpc::fabric::Drops;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tests::{privileged, wait};
use vpc_eni::ec2::Tags;

use world::{KEYS, PORT, SOON, World};

#[test]
fn pods_have_addresses_of_the_vpc_and_interfaces_come_and_go_with_them() -> Result<()> {
    if !privileged("pods have addresses of the VPC, and interfaces come and go with them") {
        return Ok(());
    }
    // Of three interfaces with three addresses each.
    let mut world = World::build(
        "vpc-pods",
        1,
        &json!({"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1"}),
    )?;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    let mut addresses = BTreeSet::new();
    for number in 0..5 {
        let address = world.nodes[0].add(&format!("pod-{number}"))?;
        assert!(addresses.insert(address), "{address} twice");
        let owner = world
            .cloud
            .owner(&world.vpc, address)
            .context("an address of an interface")?;
        assert!(world.interfaces(0).contains(&owner), "{address}");
        let route = world.nodes[0].ip(&["route", "get", &address.to_string()])?;
        assert!(route.contains(" dev eni"), "{route}");
    }
    let node = &mut world.nodes[0];
    let is = |wanted: &'static str| move |sample: &Option<String>| sample.as_deref() == Some(wanted);
    wait::until_value(
        "one more is ready",
        SOON,
        || node.sample("awscni_total_ip_addresses"),
        is("6"),
    );
    for (name, value) in [
        ("awscni_eni_allocated", "2"),
        ("awscni_add_ip_req_count", "5"),
        ("awscni_no_available_ip_addresses", "0"),
        ("awscni_total_ipv4_prefixes", "0"),
    ] {
        assert_eq!(node.sample(name).as_deref(), Some(value), "{name}");
    }
    let page = node.get(10_249, "/metrics")?;
    let of_interfaces = page.lines().filter_map(|line| {
        let (_, count) = line
            .strip_prefix("awscni_assigned_ip_per_eni{")?
            .split_once("} ")?;
        count.parse::<u32>().ok()
    });
    let mut of_interfaces: Vec<u32> = of_interfaces.collect();
    of_interfaces.sort_unstable();
    assert_eq!(of_interfaces, [2, 3], "{page}");
    let rules = node.ip(&["rule"])?;
    assert_eq!(
        [rules.matches("512:").count(), rules.matches("1536:").count()],
        [5, 2]
    );
    let table = node.ip(&["route", "show", "table", "2"])?;
    assert!(table.contains("default via 172.30.8.1 dev eth1"), "{table}");
    let told = node.get(61_679, "/v1/enis")?;
    let (_, told) = told.split_once("\r\n\r\n").context("an answer")?;
    let told: Value = serde_json::from_str(told)?;
    let enis = told["ENIs"].as_object().map(|enis| enis.len());
    assert_eq!((&told["AssignedIPs"], enis), (&json!(5), Some(2)), "{told}");

    // What came back is given to nobody so soon, also by an agent that was not there when it did.
    let freed = node.remove_last()?;
    assert_ne!(node.add("pod-again")?, freed);
    let freed = [freed, node.remove_last()?];
    node.agent = None;
    node.start_agent(&KEYS)?;
    node.await_status();
    let after = node.add("pod-after")?;
    assert!(!freed.contains(&after), "{after}");
    while !node.pods.is_empty() {
        node.remove_last()?;
    }
    // After the cool-down, the rests between steps, and the youth of an interface.
    wait::until_value(
        "what came for pods goes with them",
        6 * SOON,
        || world.interfaces(0).len(),
        |count| *count == 1,
    );
    wait::until_value(
        "nothing is left with nobody",
        SOON,
        || world.cloud.interfaces().len(),
        |count| *count == 1,
    );
    wait::until_value(
        "so do the rules",
        SOON,
        || world.nodes[0].ip(&["rule"]).unwrap_or_default(),
        |rules| !rules.contains("512:") && !rules.contains("1536:"),
    );
    Ok(())
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_leave_the_vpc_with_the_nodes_address() -> Result<()> {
    if !privileged("pods of two nodes reach each other, and leave the VPC with the node's address") {
        return Ok(());
    }
    for (external, variables) in [
        (false, json!({"WARM_IP_TARGET": "1"})),
        (
            true,
            json!({"WARM_IP_TARGET": "1", "AWS_VPC_K8S_CNI_EXTERNALSNAT": "true"}),
        ),
    ] {
        let mut world = World::build("vpc-ways", 2, &variables)?;
        for (number, node) in world.nodes.iter_mut().enumerate() {
            node.start_agent(&KEYS)?;
            node.await_status();
            // The last ones are the second interface's.
            for pod in 0..5 {
                node.add(&format!("pod-{number}-{pod}"))?;
                node.send_at_once()?;
            }
        }
        let pods = || world.nodes.iter().flat_map(|node| &node.pods);
        for (from, to) in pods().flat_map(|from| pods().map(move |to| (from, to))) {
            let to = SocketAddr::from((to.address, PORT));
            wait::until(&format!("{} reaches {to}", from.address), SOON, || {
                from.host
                    .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
                    .map_err(|error| format!("{error:#}"))?
                    .map_err(|error| error.to_string())
            });
        }
        for number in 0..2 {
            let primary = world
                .cloud
                .interfaces_of(&world.nodes[number].instance)
                .into_iter();
            let primary = primary
                .map(|interface| interface.eni)
                .find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device_index == 0));
            let primary = IpAddr::V4(primary.context("it has one")?.primary);
            for pod in 0..5 {
                let own = world.nodes[number].pods[pod].address;
                assert_eq!(
                    world.seen_outside(number, pod)?,
                    if external { own } else { primary }
                );
            }
        }
        assert_eq!(
            world.fabric.drops()?,
            Drops::default(),
            "nobody sends by an interface that is another's"
        );
    }
    Ok(())
}

#[test]
fn under_custom_networking_pods_have_addresses_of_the_eniconfigs_subnet() -> Result<()> {
    if !privileged("under custom networking pods have addresses of the ENIConfig's subnet") {
        return Ok(());
    }
    let variables = json!({
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true",
        "ENI_CONFIG_LABEL_DEF": "topology.kubernetes.io/zone",
        "WARM_IP_TARGET": "1",
        "MINIMUM_IP_TARGET": "1",
    });
    let mut world = World::build("vpc-custom", 1, &variables)?;
    world.nodes[0].api.put(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "eu-west-1a"}},
        "status": {"allocatable": {"pods": "8"}},
    }));
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].says(
        "what is missing is named",
        [
            "there is no ENIConfig eu-west-1a",
            "the Node's label topology.kubernetes.io/zone names",
        ],
    );
    assert_eq!(world.interfaces(0).len(), 1, "nothing is guessed");
    let network: IpNetwork = "172.30.9.0/24".parse()?;
    let IpNetwork::V4(of_pods) = network else {
        unreachable!("a network of IPv4")
    };
    let entered = world.runtime.enter();
    let subnet = world
        .cloud
        .make_subnet(&world.vpc, of_pods, "eu-west-1a", Tags::new())?;
    drop(entered);
    world.nodes[0].api.put(json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": "eu-west-1a"},
        "spec": {"subnet": subnet.0},
    }));
    world.nodes[0].await_status();
    // Of two interfaces with three addresses each, since the primary one has none.
    for number in 0..5 {
        let address = world.nodes[0].add(&format!("pod-{number}"))?;
        assert!(network.contains(address), "{address}");
    }
    let interfaces = world.cloud.interfaces_of(&world.nodes[0].instance).into_iter();
    let primary = interfaces
        .map(|interface| interface.eni)
        .find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device_index == 0))
        .context("it has one")?;
    assert_eq!(primary.secondary, Vec::<std::net::Ipv4Addr>::new());
    let rules = world.nodes[0].ip(&["rule"])?;
    assert_eq!(
        ["512:", "1536:"].map(|rule| rules.matches(rule).count()),
        [5, 5],
        "{rules}"
    );
    for pod in 0..5 {
        assert_eq!(world.seen_outside(0, pod)?, IpAddr::V4(primary.primary));
    }
    assert_eq!(world.fabric.drops()?, Drops::default());
    Ok(())
}

#[test]
fn a_pod_waits_for_an_address_that_ec2_is_slow_to_give() -> Result<()> {
    if !privileged("a pod waits for an address that EC2 is slow to give") {
        return Ok(());
    }
    let mut world = World::build(
        "vpc-slow",
        1,
        &json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"}),
    )?;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    world.nodes[0].add("pod-first")?;
    world.cloud.set_weather(|weather| weather.throttled_per_cent = 60);
    let address = world.nodes[0].add("pod-second")?;
    assert!(world.cloud.owner(&world.vpc, address).is_some());
    Ok(())
}
