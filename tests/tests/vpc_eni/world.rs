//! A fake AWS VPC with nodes of it, whose agents give pods its addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fake_vpc::fabric::Place;
use fake_vpc::{Cloud, Fabric, Server};
use serde_json::{Value, json};
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::network::run_plugin;
use tests::process::{self, Output, Process};
use tests::topology::Host;
use tests::{http, probe, wait};
use tokio::runtime::Runtime;
use vpc_eni::ec2::{EniId, InstanceId, Limits, SubnetId, Tags, VpcId};

/// For anything that is awaited.
pub const SOON: Duration = Duration::from_secs(30);

/// Where pods serve.
pub const PORT: u16 = 7000;

/// The gateway of the subnet.
const GATEWAY: &str = "172.30.8.1";

/// Somebody outside the VPC.
pub const OUTSIDE: &str = "198.51.100.1";

/// Processes end before what they stand on goes: fields are dropped in this order.
pub struct World {
    /// The instances.
    pub nodes: Vec<Node>,
    /// What is between them.
    pub fabric: Fabric,
    /// What EC2 knows.
    pub cloud: Cloud,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    _server: Server,
    _router: Host,
    /// What EC2 and the fabric run on.
    pub runtime: Runtime,
}

/// An instance.
pub struct Node {
    /// Its agent, while one runs.
    pub agent: Option<Process>,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its agent's configuration file.
    pub config: PathBuf,
    /// Where EC2 and the metadata service answer.
    endpoints: [String; 2],
    /// Its name at EC2.
    pub instance: InstanceId,
    /// For files of the agent.
    pub directory: Directory,
    /// The API server that its agent knows.
    pub api: FakeApi,
    _ec2: Server,
    /// Its network namespace.
    pub host: Host,
}

/// A pod: a namespace that the plugin wired.
pub struct Pod {
    /// Its namespace.
    pub host: Host,
    /// Its container's id.
    pub id: String,
    /// Its address.
    pub address: IpAddr,
}

/// Three interfaces with three addresses for pods each.
pub const SMALL: Limits = Limits {
    interfaces: 3,
    addresses_per_interface: 4,
    is_nitro: true,
};

impl World {
    /// Nodes with their primary interfaces; no agent runs yet.
    pub fn build(label: &str, nodes: usize, variables: &Value) -> Result<Self> {
        Self::of_type(label, nodes, variables, SMALL)
    }

    /// The same of instances with other limits.
    pub fn of_type(label: &str, nodes: usize, variables: &Value, limits: Limits) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let cloud = Cloud::new(1);
        cloud.make_instance_type("of.test", limits);
        let vpc = cloud.make_vpc(&["172.30.0.0/16".parse()?])?;
        let subnet = cloud.make_subnet(&vpc, "172.30.8.0/24".parse()?, "eu-west-1a", Tags::new())?;
        let router = Host::new(&format!("{label}-router"))?;
        let hosts = (0..nodes)
            .map(|number| Host::new(&format!("{label}-{number}")))
            .collect::<Result<Vec<_>>>()?;
        let instances = (0..nodes)
            .map(|_| cloud.make_instance("of.test", &subnet, &[]))
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
            subnet,
            _server: server,
            _router: router,
            runtime,
        })
    }

    /// The names of a node's interfaces.
    pub fn interfaces(&self, number: usize) -> BTreeSet<EniId> {
        let interfaces = self.cloud.interfaces_of(&self.nodes[number].instance).into_iter();
        interfaces.map(|interface| interface.eni.id).collect()
    }

    /// Who it was that a pod's packets come from outside the VPC.
    pub fn seen_outside(&self, number: usize, pod: usize) -> Result<IpAddr> {
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

    /// Starts its agent. `variables` come before the fake VPC's own.
    pub fn start_agent(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.agent = Some(self.spawn_agent(variables)?);
        Ok(())
    }

    /// An agent of it.
    pub fn spawn_agent(&self, variables: &[(&str, &str)]) -> Result<Process> {
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
            .envs(variables.iter().copied());
        Process::spawn(&place, &mut command)
    }

    /// Runs the plugin.
    pub fn cni(&self, command: &str, id: &str, netns: &str) -> Result<Output> {
        let socket = self.directory.path().join("cni.sock");
        run_plugin(&self.host.place(), &socket, command, id, netns)
    }

    /// Waits until pods can come.
    #[track_caller]
    pub fn await_status(&self) {
        wait::until("pods can come", SOON, || {
            let said = self.cni("STATUS", "", "").map_err(|error| format!("{error:#}"))?;
            if said.status.success() {
                Ok(())
            } else {
                Err(said.stdout)
            }
        });
    }

    /// Makes a pod, which serves at once.
    pub fn add(&mut self, id: &str) -> Result<IpAddr> {
        let host = Host::new(id)?;
        let said = self.cni("ADD", id, &host.path())?;
        ensure!(said.status.success(), "{said:?}");
        let result: Value = serde_json::from_str(&said.stdout)?;
        let network = result["ips"][0]["address"].as_str().context("an address")?;
        let (address, length) = network.split_once('/').context("a network")?;
        ensure!(length == "32", "{network}");
        let address = address.parse()?;
        // Who was answered is led, however soon it sends.
        let rules = self.ip(&["rule"])?;
        ensure!(rules.contains(&format!("to {address} lookup main")), "{rules}");
        probe::serve(&host, (address, PORT).into())?;
        self.pods.push(Pod {
            host,
            id: id.to_owned(),
            address,
        });
        Ok(address)
    }

    /// Has the newest pod send something into the VPC: where that leaves by another pod's interface it is among
    /// [`Drops`](fake_vpc::fabric::Drops).
    pub fn send_at_once(&self) -> Result<()> {
        let pod = self.pods.last().context("a pod")?;
        let socket = pod.host.run(|| UdpSocket::bind((pod.address, 0)))??;
        socket.send_to(b"first", (GATEWAY, 9))?;
        Ok(())
    }

    /// Removes a pod; its address.
    pub fn remove_last(&mut self) -> Result<IpAddr> {
        let pod = self.pods.pop().context("a pod")?;
        let said = self.cni("DEL", &pod.id, &pod.host.path())?;
        ensure!(said.status.success(), "{said:?}");
        Ok(pod.address)
    }

    /// What `ip` prints of the node.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.host.command("ip", arguments)?.stdout)
    }

    /// Asks the agent.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        let answer = self
            .host
            .run(|| http::get(SocketAddr::from(([127, 0, 0, 1], port)), path))??;
        Ok(answer)
    }

    /// A sample of the agent's metrics.
    pub fn sample(&self, name: &str) -> Option<String> {
        let page = self.get(10_249, "/metrics").ok()?;
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")))?;
        Some(line.rsplit(' ').next()?.to_owned())
    }

    /// What doctor finds, each as its kind, what it is about, what was seen and what helps.
    pub fn doctor(&self) -> Result<Vec<[String; 4]>> {
        let place = self.host.place();
        let mut command = process::command(&place, program("causeway"));
        command
            .args(["doctor", "-o", "json", "--config"])
            .arg(&self.config)
            .env_remove("NODE_NAME");
        let said = process::run_in(&place, &mut command, b"")?;
        let report: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        let findings = report["findings"].as_array().context("findings")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = findings
            .iter()
            .map(|finding| ["id", "object", "evidence", "repair"].map(|key| text(&finding[key])));
        Ok(told.collect())
    }

    /// The error of STATUS; none where pods can come.
    pub fn refusal(&self) -> Result<Option<(u64, String)>> {
        let said = self.cni("STATUS", "", "")?;
        if said.status.success() {
            return Ok(None);
        }
        let error: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        let code = error["code"].as_u64().context("a code")?;
        Ok(Some((code, format!("{} {}", error["msg"], error["details"]))))
    }

    /// What does not work, by the health check.
    #[track_caller]
    pub fn says(&self, what: &str, words: [&str; 2]) {
        wait::until_value(
            what,
            3 * SOON,
            || self.get(10_256, "/healthz").unwrap_or_default(),
            |health| words.iter().all(|word| health.contains(word)),
        );
    }
}

/// Keys that nobody checks.
pub const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
];
