//! A node with its surroundings, in network namespaces.
//!
//! ```text
//! outside 172.30.77.50 ──── 172.30.77.11 node ┬── 10.244.1.1  near 10.244.1.2   endpoint, pod of this node
//!                                             ├── 10.244.2.1  far  10.244.2.2   endpoint, pod of another node
//!                                             └── 10.244.3.1  pod  10.244.3.2   pod of this node, no endpoint,
//!                                                                               serves itself on 127.0.0.1
//! ```

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proxy::{Config, DatapathKind, Proxy};
use tests::cgroup::Cgroup;
use tests::process::{Place, command, run_in};
use tests::topology::{Host, connect};

use super::cluster::{TARGET_PORT, TCP, THIS_NODE, UDP};

pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 30, 77, 50);
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 77, 11);

/// All of it; taken down on drop.
pub struct Surroundings {
    pub node: Host,
    pub outside: Host,
    pub near: Host,
    pub far: Host,
    pub pod: Host,
    pub cgroup: Cgroup,
    pub bpffs: Bpffs,
}

impl Surroundings {
    /// Builds it and starts servers that answer `NAME CLIENT-ADDRESS`: on `near` and `far` as endpoints, on `pod` on
    /// its own loopback, on the node ports' numbers.
    pub fn build() -> Result<Self> {
        let node = Host::new("node")?;
        let all = Self {
            outside: wired(&node, "uplink", NODE, "out", OUTSIDE)?,
            near: wired(&node, "near", Ipv4Addr::new(10, 244, 1, 1), "near", NEAR)?,
            far: wired(&node, "far", Ipv4Addr::new(10, 244, 2, 1), "far", FAR)?,
            pod: wired(&node, "pod", Ipv4Addr::new(10, 244, 3, 1), "pod", POD)?,
            node,
            cgroup: Cgroup::new("proxy")?,
            bpffs: Bpffs::mount()?,
        };
        all.node.set("net/ipv4/ip_forward", "1")?;
        // Stands for a router beyond the node: without it VIPs and foreign addresses have no route at all.
        ip(
            &all.node,
            &["route", "add", "default", "via", &OUTSIDE.to_string()],
        )?;
        let endpoint = (Ipv4Addr::UNSPECIFIED, TARGET_PORT).into();
        serve(&all.near, "near", endpoint, endpoint)?;
        serve(&all.far, "far", endpoint, endpoint)?;
        let loopback = |port| (Ipv4Addr::LOCALHOST, port).into();
        serve(&all.pod, "pod", loopback(TCP.1), loopback(UDP.1))?;
        Ok(all)
    }

    /// A proxy of the node.
    pub fn proxy(&self, datapath: DatapathKind) -> Result<Proxy> {
        let config = self.config(datapath);
        Ok(self.node.run(|| Proxy::open(&config))??)
    }

    pub fn config(&self, datapath: DatapathKind) -> Config {
        Config {
            node: THIS_NODE.into(),
            datapath,
            pod_network: "10.244.0.0/16".parse().expect("a network"),
            local_dns: None,
            node_addresses: vec![NODE.into()],
        }
    }

    pub fn hook(&self) -> DatapathKind {
        DatapathKind::Ebpf {
            cgroup: self.cgroup.path().to_path_buf(),
            pin_dir: self.bpffs.path().join("proxy"),
        }
    }

    /// What `knock` prints on a host, a line for each attempt.
    pub fn knock(&self, from: &Host, how: &str, to: SocketAddr, count: u32) -> Result<Vec<String>> {
        // The machine outside is not of the node, nor in its cgroup.
        let of_node = from.name() != self.outside.name();
        let cgroup = of_node.then(|| self.cgroup.path().to_path_buf());
        let place = Place {
            cgroup,
            ..from.place()
        };
        let mut command = command(&place, env!("CARGO_BIN_EXE_knock"));
        command.args([how, &to.to_string(), &count.to_string()]);
        let output = run_in(&place, &mut command, b"")?;
        ensure!(output.status.success(), "knock: {output:?}");
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    /// The proxy's table as `nft` prints it.
    pub fn ruleset(&self) -> String {
        let output = self
            .node
            .command("nft", &["list", "ruleset"])
            .expect("nft is installed");
        output.stdout
    }
}

fn wired(node: &Host, device: &str, gateway: Ipv4Addr, label: &str, address: Ipv4Addr) -> Result<Host> {
    let host = Host::new(label)?;
    connect((node, device), (&host, "eth0"))?;
    node.add_address(device, format!("{gateway}/24").parse()?)?;
    host.add_address("eth0", format!("{address}/24").parse()?)?;
    ip(&host, &["route", "add", "default", "via", &gateway.to_string()])?;
    Ok(host)
}

pub fn ip(host: &Host, arguments: &[&str]) -> Result<()> {
    let output = host.command("ip", arguments)?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", output.stderr);
    Ok(())
}

/// Answers on TCP and UDP until the test process ends.
fn serve(host: &Host, name: &'static str, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
    let listener = host.run(|| TcpListener::bind(tcp))??;
    let socket = host.run(|| UdpSocket::bind(udp))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream
                .peer_addr()
                .map(|peer| peer.ip().to_string())
                .unwrap_or_default();
            let _ = write!(stream, "{name} {peer}"); // the client may be gone
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer); // the client may be gone
        }
    });
    Ok(())
}

/// A BPF file system of its own.
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    fn mount() -> Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "cwt-bpffs-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&path)?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount a BPF file system")?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let unmounted = umount2(&self.path, MntFlags::MNT_DETACH);
        if unmounted.is_err() || std::fs::remove_dir(&self.path).is_err() {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

/// A command that runs a test of this very program, for tests that need a process of their own.
pub fn this_program(test: &str) -> Command {
    let mut command =
        Command::new(std::env::current_exe().expect("invariant: the kernel names this program"));
    command.args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"]);
    command
}
