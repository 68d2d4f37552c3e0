//! Agents whose pods have addresses of an AWS VPC, on a fake one: EC2 and the metadata service by HTTP, devices that come
//! when an interface is attached, a router that drops what an interface does not own, pods that the CNI plugin wires. Needs
//! root.

#[path = "vpc_eni/taken_over.rs"]
mod taken_over;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fake_vpc::fabric::{Drops, Place};
use fake_vpc::{Cloud, Fabric, Server};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::network::run_plugin;
use tests::process::{self, Output, Process};
use tests::topology::Host;
use tests::{http, privileged, probe, wait};
use tokio::runtime::Runtime;
use vpc_eni::ec2::{Action, InstanceId, Tags, VpcId};

const SOON: Duration = Duration::from_secs(30);

/// Where pods serve.
const PORT: u16 = 7000;

/// Somebody outside the VPC.
const OUTSIDE: &str = "198.51.100.1";

/// Processes end before what they stand on goes: fields are dropped in this order.
struct World {
    nodes: Vec<Node>,
    fabric: Fabric,
    cloud: Cloud,
    vpc: VpcId,
    _server: Server,
    _router: Host,
    runtime: Runtime,
}

struct Node {
    agent: Option<Process>,
    pods: Vec<Pod>,
    config: PathBuf,
    /// Where EC2 and the metadata service answer.
    endpoints: [String; 2],
    instance: InstanceId,
    directory: Directory,
    api: FakeApi,
    _ec2: Server,
    host: Host,
}

struct Pod {
    host: Host,
    id: String,
    address: IpAddr,
}

impl World {
    /// Nodes with their primary interfaces; no agent runs yet.
    fn build(label: &str, nodes: usize, variables: &Value) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let cloud = Cloud::new(1);
        let vpc = cloud.make_vpc(&["172.30.0.0/16".parse()?])?;
        let subnet = cloud.make_subnet(&vpc, "172.30.8.0/24".parse()?, "eu-west-1a", Tags::new())?;
        let router = Host::new(&format!("{label}-router"))?;
        let hosts = (0..nodes)
            .map(|number| Host::new(&format!("{label}-{number}")))
            .collect::<Result<Vec<_>>>()?;
        let instances = (0..nodes)
            .map(|_| cloud.make_instance("t3.small", &subnet, &[]))
            .collect::<Result<Vec<_>, _>>()?;
        let namespaces = hosts.iter().map(|host| host.namespace().clone());
        let place = Place {
            vpc: vpc.clone(),
            router: router.namespace().clone(),
            nodes: instances.iter().cloned().zip(namespaces).collect(),
            internet: vec![OUTSIDE.parse()?],
        };
        let fabric = runtime.block_on(Fabric::start(&cloud, place))?;
        let server = Server::start(&cloud, "127.0.0.1:0".parse()?)?;
        let nodes = hosts.into_iter().zip(instances).enumerate();
        let nodes = nodes
            .map(|(number, (host, instance))| {
                Node::new(
                    &format!("{label}-{number}"),
                    host,
                    instance,
                    &server,
                    &cloud,
                    variables,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        drop(entered);
        Ok(Self {
            nodes,
            fabric,
            cloud,
            vpc,
            _server: server,
            _router: router,
            runtime,
        })
    }

    /// The names of a node's interfaces.
    fn interfaces(&self, number: usize) -> BTreeSet<vpc_eni::ec2::EniId> {
        let interfaces = self.cloud.interfaces_of(&self.nodes[number].instance).into_iter();
        interfaces.map(|interface| interface.eni.id).collect()
    }

    /// Who it was that a pod's packets come from outside the VPC.
    fn seen_outside(&self, number: usize, pod: usize) -> Result<IpAddr> {
        let to: SocketAddr = (OUTSIDE.parse::<IpAddr>()?, 9).into();
        let outside = self.fabric.listen(to)?;
        outside.set_read_timeout(Some(Duration::from_millis(200)))?;
        let pod = &self.nodes[number].pods[pod];
        let socket = pod.host.run(|| UdpSocket::bind((pod.address, 0)))??;
        Ok(wait::until("a packet arrives", SOON, || {
            socket.send_to(b"packet", to)?;
            let (_, from) = outside.recv_from(&mut [0; 16])?;
            std::io::Result::Ok(from.ip())
        }))
    }
}

impl Node {
    fn new(
        label: &str,
        host: Host,
        instance: InstanceId,
        server: &Server,
        cloud: &Cloud,
        variables: &Value,
    ) -> Result<Self> {
        host.set("net/ipv4/ip_forward", "1")?;
        let listen = || host.run(|| TcpListener::bind("127.0.0.1:0"))?.context("a port");
        let ec2 = Server::start_on(cloud, listen()?)?;
        let metadata = server.serve_metadata_on(&instance, listen()?)?;
        let endpoints = [ec2.ec2(), metadata].map(|at| format!("http://{at}"));
        let api = FakeApi::start_on(listen()?)?;
        let directory = Directory::new(label);
        let path = |name: &str| directory.path().join(name);
        api.write_kubeconfig(&path("kubeconfig"))?;
        let config = json!({
            "nodeName": "node-1",
            "kubernetes": {"kubeconfig": path("kubeconfig")},
            "proxy": {"datapath": "none"},
            "dns": {"feedSocket": path("dns.sock")},
            "stateDir": path("state"),
            "healthBind": "127.0.0.1:10256",
            "metricsBind": "127.0.0.1:10249",
            "vpcEni": {"variables": variables, "awsNodeDir": path("aws-node")},
            "cni": {"socket": path("cni.sock"), "confDir": path("net.d")},
        });
        let config = directory.write("node.yaml", &config.to_string());
        Ok(Self {
            agent: None,
            pods: Vec::new(),
            config,
            endpoints,
            instance,
            directory,
            api,
            host,
            _ec2: ec2,
        })
    }

    fn start_agent(&mut self, credentials: &[(&str, &str)]) -> Result<()> {
        let place = self.host.place();
        let [ec2, metadata] = &self.endpoints;
        let mut command = process::command(&place, program("causeway"));
        command
            .arg("node")
            .arg("--config")
            .arg(&self.config)
            .env_remove("NODE_NAME")
            .env("AWS_EC2_ENDPOINT", ec2)
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
            .envs(credentials.iter().copied());
        self.agent = Some(Process::spawn(&place, &mut command)?);
        Ok(())
    }

    fn cni(&self, command: &str, id: &str, netns: &str) -> Result<Output> {
        let socket = self.directory.path().join("cni.sock");
        run_plugin(&self.host.place(), &socket, command, id, netns)
    }

    #[track_caller]
    fn await_status(&self) {
        wait::until("pods can come", SOON, || {
            let said = self.cni("STATUS", "", "").map_err(|error| format!("{error:#}"))?;
            if said.status.success() {
                Ok(())
            } else {
                Err(said.stdout)
            }
        });
    }

    fn add(&mut self, id: &str) -> Result<IpAddr> {
        let host = Host::new(id)?;
        let said = self.cni("ADD", id, &host.path())?;
        ensure!(said.status.success(), "{said:?}");
        let result: Value = serde_json::from_str(&said.stdout)?;
        let network = result["ips"][0]["address"].as_str().context("an address")?;
        let (address, length) = network.split_once('/').context("a network")?;
        ensure!(length == "32", "{network}");
        let address = address.parse()?;
        probe::serve(&host, (address, PORT).into())?;
        self.pods.push(Pod {
            host,
            id: id.to_owned(),
            address,
        });
        Ok(address)
    }

    fn remove_last(&mut self) -> Result<IpAddr> {
        let pod = self.pods.pop().context("a pod")?;
        let said = self.cni("DEL", &pod.id, &pod.host.path())?;
        ensure!(said.status.success(), "{said:?}");
        Ok(pod.address)
    }

    /// What `ip` prints of the node.
    fn ip(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.host.command("ip", arguments)?.stdout)
    }

    fn get(&self, port: u16, path: &str) -> Result<String> {
        let answer = self
            .host
            .run(|| http::get(SocketAddr::from(([127, 0, 0, 1], port)), path))??;
        Ok(answer)
    }

    /// A sample of the agent's metrics.
    fn sample(&self, name: &str) -> Option<String> {
        let page = self.get(10_249, "/metrics").ok()?;
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")))?;
        Some(line.rsplit(' ').next()?.to_owned())
    }

    /// What does not work, by the health check.
    fn says(&self, what: &str, words: [&str; 2]) {
        wait::until_value(
            what,
            3 * SOON,
            || self.get(10_256, "/healthz").unwrap_or_default(),
            |health| words.iter().all(|word| health.contains(word)),
        );
    }
}

/// Keys that nobody checks.
const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
];

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
    assert_eq!(node.sample("awscni_eni_allocated").as_deref(), Some("2"));
    wait::until_value(
        "each pod has its rules",
        SOON,
        || node.ip(&["rule"]).unwrap_or_default(),
        |rules| rules.matches("512:").count() == 5 && rules.matches("1536:").count() == 2,
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
            }
        }
        // A pod's ways come a moment after it: what it sends before may leave by another's interface.
        for node in &world.nodes {
            wait::until_value(
                "each pod has its rules",
                SOON,
                || node.ip(&["rule"]).unwrap_or_default(),
                |rules| rules.matches("512:").count() == 5 && rules.matches("1536:").count() == 2,
            );
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
    let rules = || world.nodes[0].ip(&["rule"]).unwrap_or_default();
    wait::until_value("each pod has its rules", SOON, rules, |rules| {
        rules.matches("512:").count() == 5 && rules.matches("1536:").count() == 5
    });
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

#[test]
fn what_is_missing_is_named_and_pods_that_run_keep_running() -> Result<()> {
    if !privileged("what is missing at AWS is named, and pods that run keep running") {
        return Ok(());
    }
    let mut world = World::build(
        "vpc-denied",
        2,
        &json!({"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1"}),
    )?;
    for node in &mut world.nodes {
        node.start_agent(&KEYS)?;
        node.await_status();
        let id = format!("pod-{}", node.instance);
        node.add(&id)?;
    }
    let reaches = |world: &World| {
        let [a, b] = [0, 1].map(|number| &world.nodes[number].pods[0]);
        let to = SocketAddr::from((b.address, PORT));
        wait::until("the pods reach each other", SOON, || {
            a.host
                .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
                .map_err(|error| format!("{error:#}"))?
                .map_err(|error| error.to_string())
        });
    };
    reaches(&world);
    // A permission that is missing.
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::AssignPrivateIpAddresses);
    });
    // The one that was ready.
    world.nodes[0].add("pod-second")?;
    world.nodes[0].says(
        "the action is named",
        ["UnauthorizedOperation", "allow ec2:AssignPrivateIpAddresses"],
    );
    world.cloud.set_weather(|weather| weather.denied.clear());

    // No metadata service.
    world.nodes[0].agent = None;
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].says(
        "the metadata service is asked for",
        ["metadata service", "HttpEndpoint"],
    );
    reaches(&world);
    Ok(())
}
