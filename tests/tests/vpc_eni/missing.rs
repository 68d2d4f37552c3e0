//! What can be missing at AWS: each row takes something away, and STATUS, an ADD, the health check and doctor must say
//! which it is and what to do, while a pod that runs goes on being reached.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use fake_vpc::request::Refusal;
use fake_vpc::weather::Weather;
use fake_vpc::{Cloud, Server};
use serde_json::{Value, json};
use tests::network::run_plugin;
use tests::process::Output;
use tests::topology::Host;
use tests::{privileged, wait};
use vpc_eni::ec2::{Action, SubnetId};

use super::world::{KEYS, Node, PORT, SOON, World};

/// Something that is missing.
struct Row {
    name: &'static str,
    befalls: Befalls,
    /// What STATUS, the health check, doctor and an ADD say: what it is, and what to do.
    words: [&'static str; 2],
    /// The finding.
    id: &'static str,
}

/// How something is missed.
enum Befalls {
    /// By an agent that starts with these variables in such weather.
    Start(&'static [(&'static str, &'static str)], fn(&mut Weather)),
    /// By an agent that starts, and asks EC2 of another region.
    StartElsewhere,
    /// By a pod that comes, in such weather: it needs another interface.
    Pod(fn(&mut Weather)),
    /// By a pod that comes to a subnet without addresses.
    FullSubnet,
    /// By a pod that comes, where the account may have no interface more.
    FullAccount,
}

const NO_KEYS: &[(&str, &str)] = &[("AWS_EC2_METADATA_DISABLED", "true")];

const ROWS: [Row; 9] = [
    Row {
        name: "no credentials",
        befalls: Befalls::Start(NO_KEYS, |_| {}),
        words: ["no credentials", "IRSA or Pod Identity"],
        id: "vpc-credentials",
    },
    Row {
        name: "a permission that every start needs",
        befalls: Befalls::Start(&KEYS, |weather| {
            weather.denied.insert(Action::DescribeSubnets);
        }),
        words: [
            "DescribeSubnets: UnauthorizedOperation",
            "allow ec2:DescribeSubnets",
        ],
        id: "vpc-permission",
    },
    Row {
        name: "a permission that a pod needs",
        befalls: Befalls::Pod(|weather| {
            weather.denied.insert(Action::CreateNetworkInterface);
        }),
        words: [
            "CreateNetworkInterface: UnauthorizedOperation",
            "allow ec2:CreateNetworkInterface",
        ],
        id: "vpc-permission",
    },
    Row {
        name: "an instance type that EC2 does not know",
        befalls: Befalls::Start(&KEYS, |weather| {
            let refusal = Refusal::new("InvalidInstanceType", "they do not exist: [of.test]");
            weather.refused.insert(Action::DescribeInstanceTypes, refusal);
        }),
        words: ["EC2 knows no instance type of.test", "AWS_REGION"],
        id: "vpc-instance-type",
    },
    Row {
        name: "a subnet without addresses",
        befalls: Befalls::FullSubnet,
        words: ["InsufficientFreeAddressesInSubnet", "kubernetes.io/role/cni=1"],
        id: "vpc-subnet-exhausted",
    },
    Row {
        name: "an account that may have no interface more",
        befalls: Befalls::FullAccount,
        words: ["NetworkInterfaceLimitExceeded", "MAX_ENI"],
        id: "vpc-interface-limit",
    },
    Row {
        name: "a security group that is gone",
        befalls: Befalls::Pod(|weather| {
            let refusal = Refusal::new(
                "InvalidGroup.NotFound",
                "The security group 'sg-1' does not exist",
            );
            weather.refused.insert(Action::CreateNetworkInterface, refusal);
        }),
        words: ["InvalidGroup.NotFound", "the primary interface's groups"],
        id: "vpc-security-group",
    },
    Row {
        name: "a metadata service that is turned off",
        befalls: Befalls::Start(&KEYS, |weather| weather.metadata.is_disabled = true),
        words: ["metadata service", "HttpEndpoint"],
        id: "vpc-metadata",
    },
    Row {
        name: "another region's EC2",
        befalls: Befalls::StartElsewhere,
        words: ["InvalidInstanceID.NotFound", "AWS_REGION"],
        id: "vpc-region",
    },
];

#[test]
fn what_is_missing_is_named_and_pods_that_run_keep_running() -> Result<()> {
    if !privileged("what is missing at AWS is named, and pods that run keep running") {
        return Ok(());
    }
    let variables = json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"});
    let mut world = World::build("vpc-missing", 2, &variables)?;
    for node in &mut world.nodes {
        node.start_agent(&KEYS)?;
        node.await_status();
    }
    // As many as the primary interface has addresses for.
    for pod in 0..3 {
        world.nodes[0].add(&format!("pod-{pod}"))?;
    }
    world.nodes[1].add("pod-client")?;
    for row in &ROWS {
        println!("{}", row.name);
        row.play(&mut world).with_context(|| row.name)?;
        world.cloud.set_weather(|weather| *weather = Weather::default());
        world.cloud.limit_interfaces(5000);
        world.nodes[0].agent = None;
        world.nodes[0].start_agent(&KEYS)?;
        world.nodes[0].await_status();
        is_reached(&world);
    }
    Ok(())
}

impl Row {
    fn play(&self, world: &mut World) -> Result<()> {
        let subnet = world.subnet.clone();
        let mut elsewhere = None;
        let mut variables = KEYS.to_vec();
        let mut occupied = Vec::new();
        match &self.befalls {
            Befalls::Start(with, how) => {
                variables = with.to_vec();
                world.cloud.set_weather(how);
            }
            Befalls::StartElsewhere => {}
            Befalls::Pod(how) => world.cloud.set_weather(how),
            Befalls::FullSubnet => occupied = fill(&world.cloud, &subnet)?,
            Befalls::FullAccount => world.cloud.limit_interfaces(world.cloud.interfaces().len()),
        }
        let starts = matches!(self.befalls, Befalls::Start(..) | Befalls::StartElsewhere);
        if starts {
            let entered = world.runtime.enter();
            let node = &mut world.nodes[0];
            let listener = node.host.run(|| TcpListener::bind("127.0.0.1:0"))??;
            let other = Server::start_on(&Cloud::new(2), listener)?;
            drop(entered);
            let endpoint = format!("http://{}", other.ec2());
            if matches!(self.befalls, Befalls::StartElsewhere) {
                variables.push(("AWS_EC2_ENDPOINT", &endpoint));
            }
            node.agent = None;
            node.start_agent(&variables)?;
            elsewhere = Some(other);
        }
        let node = &world.nodes[0];
        let pod = Host::new("pod-more")?;
        // Where the node does not know itself yet there is nothing to wait for, and an ADD is answered at once.
        let waiting = (!starts).then(|| add(node, &pod));
        self.is_told(node)?;
        let adding = waiting.unwrap_or_else(|| add(node, &pod));
        is_reached(world);
        // What a pod waits for is told when its patience ends, which one row is enough to see.
        let is_heard_out = starts || self.name == "a permission that a pod needs";
        if !is_heard_out {
            world.nodes[0].agent = None;
        }
        let said = adding.join().expect("the plugin is run")?;
        let error: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        assert_eq!(error["code"], 11, "{error}");
        if is_heard_out {
            let error = error.to_string();
            assert!(self.words.iter().all(|word| error.contains(word)), "{error}");
            let without = world.nodes[0].sample("awscni_no_available_ip_addresses");
            let expected = if starts { "0" } else { "1" };
            assert_eq!(without.as_deref(), Some(expected), "pods that waited in vain");
        }
        for address in occupied {
            world.cloud.vacate(&subnet, address)?;
        }
        drop(elsewhere);
        Ok(())
    }

    fn is_told(&self, node: &Node) -> Result<()> {
        let is_all = |text: &str| self.words.iter().all(|word| text.contains(word));
        let refusal = wait::until_value(
            &format!("STATUS says {:?}", self.words),
            3 * SOON,
            || node.refusal().unwrap_or_default(),
            |refusal| refusal.as_ref().is_some_and(|(_, text)| is_all(text)),
        );
        assert_eq!(refusal.map(|(code, _)| code), Some(50));
        let health = wait::until_value(
            "the health check says so",
            SOON,
            || node.get(10_256, "/healthz").unwrap_or_default(),
            |health| is_all(health),
        );
        assert!(health.contains("200 OK"), "traffic goes on: {health}");
        let findings = wait::until_value(
            &format!("doctor finds {}", self.id),
            SOON,
            || node.doctor().unwrap_or_default(),
            |findings| {
                let mut findings = findings.iter();
                findings.any(|[id, _, evidence, repair]| {
                    id == self.id && evidence.contains(self.words[0]) && repair.contains(self.words[1])
                })
            },
        );
        let waits = findings.iter().any(|[id, ..]| id == "vpc-pods-waiting");
        let is_start = matches!(self.befalls, Befalls::Start(..) | Befalls::StartElsewhere);
        assert_eq!(waits, !is_start, "a pod that waits is found: {findings:?}");
        let twice = findings
            .iter()
            .find(|[_, object, ..]| object == "part vpc-addresses");
        assert_eq!(
            twice, None,
            "what is a finding of its own is not told of the part as well"
        );
        Ok(())
    }
}

/// Asks for one pod more, which waits as long as the plugin does.
fn add(node: &Node, pod: &Host) -> thread::JoinHandle<Result<Output>> {
    let (place, socket) = (node.host.place(), node.directory.path().join("cni.sock"));
    let netns = pod.path();
    thread::spawn(move || run_plugin(&place, &socket, "ADD", "pod-more", &netns))
}

/// Takes every address that the subnet has left.
fn fill(cloud: &Cloud, subnet: &SubnetId) -> Result<Vec<std::net::Ipv4Addr>> {
    let network = cloud.subnet(subnet).context("it is there")?.network;
    let taken = network
        .iter()
        .filter(|address| cloud.occupy(subnet, *address).is_ok());
    let taken = taken.collect();
    assert_eq!(cloud.subnet(subnet).context("it is there")?.free_addresses, 0);
    Ok(taken)
}

/// The pod of the other node begins connections to each of this one.
#[track_caller]
fn is_reached(world: &World) {
    let client = &world.nodes[1].pods[0];
    for pod in &world.nodes[0].pods {
        let to = SocketAddr::from((pod.address, PORT));
        wait::until(&format!("{to} is reached"), SOON, || {
            client
                .host
                .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
                .map_err(|error| format!("{error:#}"))?
                .map_err(|error| error.to_string())
        });
    }
}
