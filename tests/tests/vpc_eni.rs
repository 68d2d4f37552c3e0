//! An agent whose pods have addresses of an AWS VPC, on a fake one: EC2 and the metadata service by HTTP, devices that come
//! when an interface is attached, pods that the CNI plugin wires. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fake_vpc::Cloud;
use fake_vpc::server::Server;
use netlink::{Kernel as _, NewLink, NewLinkKind};
use serde_json::{Value, json};
use tests::cluster::{program, programs};
use tests::node::Node;
use tests::process::{self, Output, Process};
use tests::topology::Host;
use tests::{privileged, wait};
use tokio::runtime::Runtime;
use vpc_eni::ec2::{Action, InstanceId, Tags, VpcId};

const SOON: Duration = Duration::from_secs(30);

/// Processes end before what they stand on goes: fields are dropped in this order.
struct World {
    agent: Option<Process>,
    pods: Vec<Pod>,
    node: Node,
    config: PathBuf,
    /// Where EC2 and the metadata service answer.
    endpoints: [String; 2],
    cloud: Cloud,
    vpc: VpcId,
    instance: InstanceId,
    _server: Server,
    _runtime: Runtime,
}

struct Pod {
    host: Host,
    id: String,
    address: IpAddr,
}

impl World {
    /// A node with its primary interface; no agent runs yet.
    fn build(label: &str, instance_type: &str, variables: Value) -> Result<Self> {
        let node = Node::new(label)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let cloud = Cloud::new(1);
        let vpc = cloud.make_vpc(&["172.30.0.0/16".parse()?])?;
        let subnet = cloud.make_subnet(&vpc, "172.30.8.0/24".parse()?, "eu-west-1a", Tags::new())?;
        let group = cloud.default_group(&vpc).context("a VPC has one")?;
        let instance = cloud.make_instance(instance_type, &subnet, &[group])?;
        let primary = cloud
            .interfaces_of(&instance)
            .into_iter()
            .next()
            .context("it has one")?
            .eni;
        node.host().command(
            "ip",
            &["link", "set", "eth0", "address", &primary.mac.to_string()],
        )?;
        node.host()
            .add_address("eth0", format!("{}/24", primary.primary).parse()?)?;

        let listen = || {
            node.host()
                .run(|| TcpListener::bind("127.0.0.1:0"))?
                .context("a port")
        };
        let _entered = runtime.enter();
        let server = Server::start_on(&cloud, listen()?)?;
        let metadata = server.serve_metadata_on(&instance, listen()?)?;
        let endpoints = [server.ec2(), metadata].map(|at| format!("http://{at}"));
        let namespace = node.host().path();
        let (watched, watcher) = (cloud.clone(), instance.clone());
        runtime.spawn(async move {
            let mut changes = watched.changes();
            loop {
                plug(&namespace, &watched, &watcher).expect("devices come and go");
                changes.next().await;
            }
        });
        let config = node.configure(json!({
            "vpcEni": {"variables": variables},
            "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
        }));
        Ok(Self {
            agent: None,
            pods: Vec::new(),
            node,
            config,
            endpoints,
            cloud,
            vpc,
            instance,
            _server: server,
            _runtime: runtime,
        })
    }

    fn start_agent(&mut self, credentials: &[(&str, &str)]) -> Result<()> {
        let place = self.node.place();
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
        let place = self.node.host().place();
        let mut plugin = process::command(&place, programs().join("causeway-cni"));
        plugin.env("CNI_COMMAND", command).env("CNI_PATH", programs());
        if command != "STATUS" {
            plugin
                .env("CNI_CONTAINERID", id)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={id}"));
        }
        let socket = self.node.path("cni.sock");
        let config =
            json!({"cniVersion": "1.1.0", "name": "causeway", "type": "causeway-cni", "socket": socket});
        process::run_in(&place, &mut plugin, config.to_string().as_bytes())
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
        Ok(self.node.host().command("ip", arguments)?.stdout)
    }

    /// A sample of the agent's metrics.
    fn sample(&self, name: &str) -> Option<String> {
        let page = self.node.metrics().ok()?;
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")))?;
        Some(line.rsplit(' ').next()?.to_owned())
    }
}

/// Makes the devices of a namespace those that the cloud says.
fn plug(namespace: &str, cloud: &Cloud, instance: &InstanceId) -> Result<()> {
    let namespace = netlink::Namespace::open(namespace)?;
    let mut kernel = netlink::Netlink::open_in(&namespace)?;
    let wanted = cloud.devices(instance);
    let links = kernel.links()?;
    for eni in &wanted {
        let index = eni
            .attachment
            .as_ref()
            .map_or(0, |attached| attached.device_index);
        if !links.iter().any(|link| link.mac == Some(eni.mac.0)) {
            let mut device = NewLink::new(&format!("eth{index}"), NewLinkKind::Dummy);
            device.mac = Some(eni.mac.0);
            kernel.create_link(&device)?;
        }
    }
    let gone = links.iter().filter(|link| {
        link.name.starts_with("eth")
            && link.name != "eth0"
            && !wanted.iter().any(|eni| Some(eni.mac.0) == link.mac)
    });
    for link in gone {
        kernel.delete_link(link.index)?;
    }
    Ok(())
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
    // Three interfaces of three addresses.
    let mut world = World::build(
        "vpc-pods",
        "t3.small",
        json!({"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1"}),
    )?;
    world.start_agent(&KEYS)?;
    world.await_status();
    let mut addresses = BTreeSet::new();
    for number in 0..5 {
        let address = world.add(&format!("pod-{number}"))?;
        assert!(addresses.insert(address), "{address} twice");
        let owner = world.cloud.owner(&world.vpc, address);
        let own = world
            .cloud
            .interfaces_of(&world.instance)
            .into_iter()
            .map(|interface| interface.eni.id);
        assert!(
            owner.is_some_and(|owner| own.into_iter().any(|own| own == owner)),
            "{address}"
        );
        let route = world.ip(&["route", "get", &address.to_string()])?;
        assert!(route.contains(" dev eni"), "{route}");
    }
    wait::until_value(
        "one more is ready",
        SOON,
        || world.sample("awscni_total_ip_addresses"),
        |sample| sample.as_deref() == Some("6"),
    );
    assert_eq!(world.sample("awscni_eni_allocated").as_deref(), Some("2"));
    wait::until_value(
        "pods of the second interface answer by it",
        SOON,
        || world.ip(&["rule"]).unwrap_or_default(),
        |rules| rules.matches("512:").count() == 5 && rules.matches("1536:").count() == 2,
    );
    let told = world.node.get(61_679, "/v1/enis")?;
    let (_, told) = told.split_once("\r\n\r\n").context("an answer")?;
    let told: Value = serde_json::from_str(told)?;
    assert_eq!(
        (
            &told["AssignedIPs"],
            told["ENIs"].as_object().map(|enis| enis.len())
        ),
        (&json!(5), Some(2)),
        "{told}"
    );
    let table = world.ip(&["route", "show", "table", "2"])?;
    assert!(table.contains("default via 172.30.8.1 dev eth1"), "{table}");

    // What came back is given to nobody so soon: another address is asked for.
    let freed = world.remove_last()?;
    let again = world.add("pod-again")?;
    assert_ne!(again, freed);

    // The agent dies, and knows all of it again: also what was freed a moment ago.
    let freed_before_death = world.remove_last()?;
    world.agent = None;
    world.start_agent(&KEYS)?;
    world.await_status();
    let after = world.add("pod-after")?;
    assert!(![freed, freed_before_death].contains(&after), "{after}");
    while !world.pods.is_empty() {
        world.remove_last()?;
    }
    // The cool-down, the rests between steps, and the youth of an interface.
    wait::until_value(
        "what came for pods goes with them",
        6 * SOON,
        || world.cloud.interfaces_of(&world.instance).len(),
        |count| *count == 1,
    );
    assert_eq!(world.cloud.interfaces().len(), 1, "nothing is left with nobody");
    Ok(())
}

#[test]
fn a_pod_waits_for_an_address_that_ec2_is_slow_to_give() -> Result<()> {
    if !privileged("a pod waits for an address that EC2 is slow to give") {
        return Ok(());
    }
    let mut world = World::build(
        "vpc-slow",
        "t3.small",
        json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"}),
    )?;
    world.start_agent(&KEYS)?;
    world.await_status();
    world.add("pod-first")?;
    world.cloud.set_weather(|weather| weather.throttled_per_cent = 60);
    let address = world.add("pod-second")?;
    assert!(world.cloud.owner(&world.vpc, address).is_some());
    Ok(())
}

#[test]
fn what_is_missing_is_told_by_the_plugin_and_pods_that_run_keep_running() -> Result<()> {
    if !privileged("what is missing at AWS is told by the plugin") {
        return Ok(());
    }
    let mut world = World::build(
        "vpc-denied",
        "t3.small",
        json!({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "1"}),
    )?;
    world.start_agent(&KEYS)?;
    world.await_status();
    let address = world.add("pod-first")?;
    let says = |world: &World, what: &'static str, words: [&'static str; 2]| {
        wait::until_value(
            what,
            3 * SOON,
            || world.node.health("/healthz").unwrap_or_default(),
            |health| words.iter().all(|word| health.contains(word)),
        );
    };
    // A permission that is missing.
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::AssignPrivateIpAddresses);
    });
    let host = Host::new("vpc-denied-pod")?;
    let refused = world.cni("ADD", "pod-refused", &host.path())?;
    assert!(!refused.status.success(), "{refused:?}");
    says(
        &world,
        "the action is named",
        ["UnauthorizedOperation", "allow ec2:AssignPrivateIpAddresses"],
    );
    world.cloud.set_weather(|weather| weather.denied.clear());

    // No credentials.
    world.agent = None;
    world.start_agent(&[])?;
    says(&world, "credentials are asked for", ["no credentials", "IRSA"]);
    let route = world.ip(&["route", "get", &address.to_string()])?;
    assert!(route.contains(" dev eni"), "{route}");

    // No metadata service.
    world.agent = None;
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    world.start_agent(&KEYS)?;
    says(
        &world,
        "the metadata service is asked for",
        ["metadata service", "HttpEndpoint"],
    );
    Ok(())
}
