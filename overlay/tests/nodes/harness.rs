//! Nodes of a LAN that run the overlay in their namespaces, against a real etcd on the LAN's own host.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use cni_plugin::plugin;
use cni_plugin::protocol::{self, Request, Response};
use ipnetwork::IpNetwork;
use model::{ByFamily, IpFamily};
use netlink::{Kernel, Netlink};
use overlay::pods::{Attachment, AttachmentKey, PodNetwork};
use overlay::{Config, Etcd, Leases, Status};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tests::bpffs::Bpffs;
use tests::process::{Process, command};
use tests::topology::{Host, Lan};
use tests::wait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(20);

/// A directory that is removed.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-{label}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("make a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the leases are kept in; ends when it is dropped.
enum Server {
    Etcd {
        process: Process,
    },
    Store {
        shutdown: CancellationToken,
        thread: Option<JoinHandle<()>>,
    },
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Store { shutdown, thread } = self {
            shutdown.cancel();
            let _ = thread.take().map(JoinHandle::join); // its panic was told when it happened
        }
    }
}

/// A certificate authority, and the files of those that it knows: a server, and clients by their names.
pub struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("make a directory");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = directory.display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("sign").pem();
        std::fs::write(directory.join("ca.crt"), certificate).expect("write");
        let pki = Self {
            directory: directory.to_owned(),
            issuer: Issuer::new(params, key),
        };
        pki.issue("server", "172.30.9.1");
        pki.issue("client", "node");
        pki
    }

    /// Writes a certificate and its key, for a host and a user of that name.
    pub fn issue(&self, file: &str, name: &str) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
        // What opens the network's keys, and nothing else, to a client of the bundled store.
        subject.push(DnType::OrganizationName, "system:nodes");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign").pem();
        for (kind, text) in [("crt", certificate), ("key", key.serialize_pem())] {
            std::fs::write(self.path(&format!("{file}.{kind}")), text).expect("write");
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// A LAN, its etcd, and what tests do to them. Fields are dropped in this order: processes before namespaces.
pub struct Cluster {
    etcd: Mutex<Option<Server>>,
    pub pki: Option<Pki>,
    pub lan: Lan,
    bpffs: Bpffs,
    pub directory: Directory,
    program: PathBuf,
}

impl Cluster {
    pub fn new(label: &str, hosts: u32) -> Option<Self> {
        let cluster = Self::with_program(label, hosts)?;
        cluster.start_etcd("etcd");
        Some(cluster)
    }

    /// A LAN whose etcd shows a certificate, and asks for its clients'.
    pub fn secured(label: &str, hosts: u32) -> Option<Self> {
        let mut cluster = Self::with_program(label, hosts)?;
        let pki = Pki::new(&cluster.directory.0.join("pki"));
        pki.issue("root", "root");
        cluster.pki = Some(pki);
        cluster.start_etcd_asking("etcd");
        Some(cluster)
    }

    /// A LAN whose etcd does not run yet.
    fn with_program(label: &str, hosts: u32) -> Option<Self> {
        let test = format!("overlay {label}");
        if !tests::privileged(&test) {
            return None;
        }
        let Some(program) = tests::etcd::program() else {
            tests::skipped(
                &test,
                "needs etcd: apt-get download etcd-server, dpkg -x to target/tools",
            );
            return None;
        };
        let directory = Directory::new(label);
        let lan = Lan::new(label, "172.30.9.0/24".parse().expect("network"), hosts).expect("build a LAN");
        Some(Self {
            etcd: Mutex::new(None),
            pki: None,
            lan,
            bpffs: Bpffs::mount(label).expect("a BPF file system"),
            directory,
            program,
        })
    }

    /// A LAN without an etcd.
    pub fn without_etcd(label: &str, hosts: u32) -> Option<Self> {
        if !tests::privileged(&format!("overlay {label}")) {
            return None;
        }
        let directory = Directory::new(label);
        let lan = Lan::new(label, "172.30.9.0/24".parse().expect("network"), hosts).expect("build a LAN");
        Some(Self {
            etcd: Mutex::new(None),
            pki: None,
            lan,
            bpffs: Bpffs::mount(label).expect("a BPF file system"),
            directory,
            program: PathBuf::new(),
        })
    }

    pub fn start_etcd(&self, data: &str) {
        self.start_etcd_with(data, &[]);
    }

    /// The same with an etcd that serves nobody without a certificate.
    pub fn start_etcd_asking(&self, data: &str) {
        let pki = self.pki.as_ref().expect("it has certificates");
        let ca = pki.path("ca.crt").display().to_string();
        self.start_etcd_with(data, &["--client-cert-auth", "--trusted-ca-file", &ca]);
    }

    fn start_etcd_with(&self, data: &str, arguments: &[&str]) {
        let place = self.lan.switch.place();
        let url = &self.endpoint();
        let mut etcd = command(&place, &self.program);
        etcd.arg("--data-dir").arg(self.directory.0.join(data));
        etcd.args([
            "--listen-client-urls",
            url,
            "--advertise-client-urls",
            url,
            "--name",
            data,
        ]);
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        // A cluster id of its own for every data directory.
        etcd.args([
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:2380",
            "--initial-cluster-token",
            data,
        ]);
        etcd.arg("--initial-cluster")
            .arg(format!("{data}=http://127.0.0.1:2380"));
        if let Some(pki) = &self.pki {
            let files = [("--cert-file", "server.crt"), ("--key-file", "server.key")];
            for (option, file) in files {
                etcd.arg(option).arg(pki.path(file));
            }
        }
        etcd.args(arguments);
        let mut process = Process::spawn(&place, &mut etcd).expect("start etcd");
        process.await_line("ready to serve client requests", SOON);
        *self.etcd.lock().expect("no panic") = Some(Server::Etcd { process });
    }

    /// A LAN whose etcd is the bundled store, with mutual TLS.
    pub fn bundled(label: &str, hosts: u32) -> Option<Self> {
        if !tests::privileged(&format!("overlay {label}")) {
            return None;
        }
        let directory = Directory::new(label);
        let lan = Lan::new(label, "172.30.9.0/24".parse().expect("network"), hosts).expect("build a LAN");
        let pki = Some(Pki::new(&directory.0));
        let cluster = Self {
            etcd: Mutex::new(None),
            pki,
            lan,
            bpffs: Bpffs::mount(label).expect("a BPF file system"),
            directory,
            program: PathBuf::new(),
        };
        cluster.start_store();
        Some(cluster)
    }

    pub fn start_store(&self) {
        let pki = self.pki.as_ref().expect("the bundled store has certificates");
        let mut config = store::Config::new(
            self.directory.0.join("store"),
            vec!["172.30.9.1:2379".parse().expect("address")],
        );
        config.tls = Some(store::TlsFiles {
            cert: pki.path("server.crt"),
            key: pki.path("server.key"),
            client_ca: pki.path("ca.crt"),
        });
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let thread = spawn_in(&self.lan.switch, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime
                .block_on(store::serve(config, stop))
                .expect("the store runs to its shutdown");
        });
        *self.etcd.lock().expect("no panic") = Some(Server::Store {
            shutdown,
            thread: Some(thread),
        });
    }

    pub fn stop_etcd(&self) {
        *self.etcd.lock().expect("no panic") = None;
    }

    /// What the etcd printed.
    pub fn etcd_output(&self) -> String {
        match &*self.etcd.lock().expect("no panic") {
            Some(Server::Etcd { process }) => process.output(),
            _ => panic!("no etcd runs"),
        }
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://172.30.9.1:2379")
    }

    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let sibling = self.program.with_file_name("etcdctl");
        let mut etcdctl = Command::new(if sibling.exists() {
            sibling
        } else {
            "etcdctl".into()
        });
        etcdctl
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint()])
            .args(arguments);
        if let Some(pki) = &self.pki {
            for (option, file) in [
                ("--cacert", "ca.crt"),
                ("--cert", "root.crt"),
                ("--key", "root.key"),
            ] {
                etcdctl.arg(option).arg(pki.path(file));
            }
        }
        let output =
            tests::process::run_in(&self.lan.switch.place(), &mut etcdctl, b"").expect("run etcdctl");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// Where a host's fast path is pinned.
    pub fn pin_dir(&self, number: usize) -> PathBuf {
        self.bpffs.path().join(format!("host-{number}"))
    }

    pub fn host(&self, number: usize) -> &Host {
        &self.lan.hosts[number].host
    }

    /// Starts the overlay on a host.
    pub fn node(&self, number: usize) -> Node<'_> {
        self.node_named(number, &format!("node-{number}"), "vxlan")
    }

    pub fn node_named(&self, number: usize, name: &str, backend: &str) -> Node<'_> {
        let network = serde_json::json!({"Network": "10.244.0.0/16", "Backend": {"Type": backend}});
        self.node_of(number, name, network)
    }

    /// Gives every host an IPv6 address on the LAN, which ends as its IPv4 address does: `fd77::11` and so on.
    pub fn add_ipv6(&self) {
        let own = "fd77::1/64".parse().expect("a network");
        self.lan.switch.add_address("br0", own).expect("add an address");
        for host in &self.lan.hosts {
            let [.., last] = host.address.octets();
            let network = format!("fd77::{last}/64").parse().expect("a network");
            host.host.add_address("eth0", network).expect("add an address");
        }
    }

    /// Starts the overlay on a host, with a configuration for the network where etcd has none.
    pub fn node_of(&self, number: usize, name: &str, network: serde_json::Value) -> Node<'_> {
        self.node_with(number, name, network, Leases::Etcd(self.client("client")))
    }

    /// A client of the etcd, where that asks for certificates with the one of that name.
    pub fn client(&self, file: &str) -> Etcd {
        let path = |name: &str| self.pki.as_ref().map(|pki| pki.path(name));
        Etcd {
            endpoints: vec![self.endpoint()],
            prefix: "/coreos.com/network".to_owned(),
            ca: path("ca.crt"),
            cert: path(&format!("{file}.crt")),
            key: path(&format!("{file}.key")),
            username: None,
            password_file: None,
        }
    }

    /// The same, with leases wherever they are kept.
    pub fn node_with(
        &self,
        number: usize,
        name: &str,
        network: serde_json::Value,
        leases: Leases,
    ) -> Node<'_> {
        // The agent's, which does without one here.
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.host(number).set(setting, "1").expect("let packets through");
        }
        let directory = self.directory.0.join(format!("host-{number}"));
        let config = Config {
            node: name.into(),
            leases,
            interface: Some("eth0".to_owned()),
            public_ips: ByFamily::default(),
            network: Some(network),
            subnet_env: directory.join("subnet.env"),
            anti_spoofing: true,
            fast_path: overlay::fast_path::State::On,
            pin_dir: self.pin_dir(number),
            state_dir: directory.clone(),
        };
        let pods = PodNetwork::open(&directory).expect("open the pod log");
        let socket = directory.join("cni.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("listen");
        let (sender, status) = watch::channel(Status::default());
        let shutdown = CancellationToken::new();
        let host = self.host(number);
        let threads = vec![
            spawn_in(
                host,
                serve_overlay(config, pods.clone(), sender, shutdown.clone()),
            ),
            spawn_in(host, serve_cni(listener, pods.clone())),
        ];
        Node {
            host,
            socket,
            status,
            shutdown,
            threads,
        }
    }
}

/// Runs the closure on a thread inside the host; what it starts is there too.
fn spawn_in(host: &Host, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let namespace = host.namespace().clone();
    std::thread::spawn(move || {
        namespace.enter().expect("enter the host");
        work();
    })
}

fn serve_overlay(
    config: Config,
    pods: PodNetwork,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> impl FnOnce() + Send {
    move || {
        // One thread, inside the namespace: those for blocking work are started by it, and so inside as well.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime
            .block_on(overlay::run(config, pods, status, shutdown))
            .expect("the overlay runs to its shutdown");
    }
}

/// What the agent does with the plugin's requests.
fn serve_cni(listener: UnixListener, pods: PodNetwork) -> impl FnOnce() + Send {
    move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let Ok(request) = protocol::read::<Request>(&mut stream) else {
                return;
            };
            let answer = match request {
                Request::Add {
                    key,
                    netns,
                    pod,
                    wishes,
                    taken,
                    ..
                } => {
                    let attachment = Attachment {
                        key: overlay_key(&key),
                        netns,
                        pod,
                        wishes,
                        taken: taken.into_iter().collect(),
                    };
                    pods.add(&attachment).map(|plan| Response::Wired { plan })
                }
                Request::Check { key } => pods
                    .check(&overlay_key(&key))
                    .map(|plan| Response::Wired { plan }),
                Request::Del { key } => pods.remove(&overlay_key(&key)).map(|_| Response::Done),
                _ => Ok(Response::Done),
            };
            let response = answer.unwrap_or_else(|error| {
                Response::Error(protocol::Failure {
                    code: 11,
                    msg: error.to_string(),
                    details: String::new(),
                })
            });
            let frame = protocol::encode(&response).expect("encode");
            std::io::Write::write_all(&mut stream, &frame).expect("answer");
        }
    }
}

fn overlay_key(key: &protocol::AttachmentKey) -> AttachmentKey {
    AttachmentKey {
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
    }
}

/// A node under test. Dropping it ends the overlay, as an agent ends.
pub struct Node<'c> {
    pub host: &'c Host,
    pub socket: PathBuf,
    pub status: watch::Receiver<Status>,
    shutdown: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Node<'_> {
    #[track_caller]
    pub fn await_status(&self, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
        wait::until_value(what, SOON, || self.status.borrow().clone(), condition)
    }

    #[track_caller]
    pub fn await_others(&self, others: usize) -> Status {
        let status = self.await_status("the overlay is ready and knows the others", |status| {
            status.ready && status.others == others && status.problems.is_empty()
        });
        // Ready means that the kernel was right once; the newest lease may be on its way.
        wait::until("a route for each", SOON, || {
            let routes = self
                .routes()
                .into_iter()
                .filter(|route| route.contains("/24 via"))
                .count();
            if routes == others {
                Ok(())
            } else {
                Err(self.routes())
            }
        });
        status
    }

    pub fn netlink(&self) -> Netlink {
        self.host.netlink().expect("a socket")
    }

    pub fn tunnel(&self) -> Option<netlink::Link> {
        self.device("flannel.1")
    }

    pub fn device(&self, name: &str) -> Option<netlink::Link> {
        self.netlink().link_named(name).expect("readable")
    }

    /// Routes, neighbours and forwarding entries of the overlay, as text.
    pub fn routes(&self) -> Vec<String> {
        let mut kernel = self.netlink();
        let routes = kernel
            .routes(&netlink::RouteFilter::made_by(213))
            .expect("readable");
        routes.iter().map(ToString::to_string).collect()
    }

    pub fn entries(&self) -> Vec<String> {
        self.entries_on("flannel.1")
    }

    /// The same of another tunnel device than IPv4's. The routes are those of both.
    pub fn entries_on(&self, device: &str) -> Vec<String> {
        let mut kernel = self.netlink();
        let Some(tunnel) = kernel.link_named(device).expect("readable") else {
            return Vec::new();
        };
        let neighbours = kernel.neighbours(Some(tunnel.index)).expect("readable");
        let neighbours = neighbours.iter().filter(|neighbour| neighbour.permanent);
        let mut entries: Vec<String> = neighbours
            .map(|neighbour| format!("{neighbour} {:x?}", neighbour.mac))
            .collect();
        entries.extend(
            kernel
                .forwarding(tunnel.index)
                .expect("readable")
                .iter()
                .map(ToString::to_string),
        );
        entries.extend(self.routes());
        entries.push(format!(
            "{:?}",
            kernel.addresses(Some(tunnel.index)).expect("readable").first()
        ));
        entries.push(format!("{:?} {} {}", tunnel.mac, tunnel.mtu, tunnel.up));
        entries.sort();
        entries
    }

    /// Adds a pod by the plugin, as a runtime does.
    #[track_caller]
    pub fn add_pod(&self, id: &str) -> Pod {
        self.add_pod_with(id, &serde_json::json!({}))
    }

    /// The same once the node serves.
    #[track_caller]
    pub fn add_pod_when_ready(&self, id: &str) -> Pod {
        self.await_status("the overlay is ready", |status| status.ready);
        self.add_pod(id)
    }

    /// The same with what a runtime asks for by capabilities.
    #[track_caller]
    pub fn add_pod_with(&self, id: &str, runtime_config: &serde_json::Value) -> Pod {
        let host = Host::new(id).expect("make a pod's namespace");
        let answer = self.cni_with("ADD", id, &host.path(), runtime_config);
        assert!(answer.success, "{answer:?}");
        let result: serde_json::Value = serde_json::from_str(&answer.output).expect("JSON");
        let ips = result["ips"].as_array().expect("addresses").iter();
        let networks = ips.map(|ip| ip["address"].as_str().expect("a text").parse::<IpNetwork>());
        let addresses: ByFamily<IpAddr> = networks
            .map(|network| network.expect("an address").ip())
            .collect();
        Pod {
            host,
            id: id.to_owned(),
            address: addresses.v4.expect("IPv4"),
            addresses,
        }
    }

    pub fn cni(&self, command: &str, id: &str, netns: &str) -> plugin::Answer {
        self.cni_with(command, id, netns, &serde_json::json!({}))
    }

    pub fn cni_with(
        &self,
        command: &str,
        id: &str,
        netns: &str,
        runtime_config: &serde_json::Value,
    ) -> plugin::Answer {
        let variables: BTreeMap<String, String> = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let config = serde_json::json!({"cniVersion": "1.1.0", "name": "causeway", "type": "causeway-cni", "socket": self.socket, "runtimeConfig": runtime_config});
        self.host
            .run(|| plugin::answer(&variables, config.to_string().as_bytes()))
            .expect("enter the host")
    }

    /// Ends the overlay and waits for it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shutdown.cancel();
        // A connection that says nothing ends the CNI server.
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the node panicked");
            }
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// A pod: a namespace that the plugin wired.
pub struct Pod {
    pub host: Host,
    pub id: String,
    /// That of IPv4.
    pub address: IpAddr,
    pub addresses: ByFamily<IpAddr>,
}

/// Whether a datagram from one pod reaches the other and is answered, and the source that the other saw.
pub fn talk(from: &Pod, to: &Pod) -> Result<IpAddr, String> {
    talk_over(IpFamily::V4, from, to)
}

/// The same over a version of IP.
pub fn talk_over(family: IpFamily, from: &Pod, to: &Pod) -> Result<IpAddr, String> {
    let address = |pod: &Pod| *pod.addresses.get(family).expect("an address of the version");
    let bind = |pod: &Pod, port| {
        let socket = pod
            .host
            .run(|| UdpSocket::bind((address(pod), port)))
            .expect("enter")
            .map_err(|e| e.to_string())?;
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("timeout");
        Ok::<_, String>(socket)
    };
    let (server, client) = (bind(to, 7000)?, bind(from, 0)?);
    client
        .send_to(b"ping", (address(to), 7000))
        .map_err(|error| format!("send: {error}"))?;
    let mut buffer = [0; 16];
    let (_, source) = server
        .recv_from(&mut buffer)
        .map_err(|error| format!("no request: {error}"))?;
    server
        .send_to(b"pong", source)
        .map_err(|error| format!("answer: {error}"))?;
    client
        .recv_from(&mut buffer)
        .map_err(|error| format!("no answer: {error}"))?;
    Ok(source.ip())
}

#[track_caller]
pub fn await_talk(from: &Pod, to: &Pod) {
    await_talk_over(IpFamily::V4, from, to);
}

#[track_caller]
pub fn await_talk_over(family: IpFamily, from: &Pod, to: &Pod) {
    let source = wait::until("the pods talk", SOON, || talk_over(family, from, to));
    assert_eq!(
        from.addresses.get(family),
        Some(&source),
        "pods keep their addresses"
    );
}
