//! A node of one process: a network namespace with loopback alone, a cgroup, a BPF file system and the hook.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey, MemberKey, Membership, SlotKey, flags};
use ebpf::{Capacity, HookConfig, SocketHook};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// A cgroup holds processes, not threads: one test at a time has this one.
static TURN: Mutex<()> = Mutex::new(());

/// Long enough for anything that loopback does.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Whether a privileged test can run; says loudly on standard error when it cannot.
#[must_use]
pub fn privileged(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        eprintln!("\n==== SKIPPED: {test}: needs root ====\n");
    }
    root
}

/// All of it; taken down on drop.
pub struct World {
    pub hook: SocketHook,
    pub config: HookConfig,
    home: PathBuf,
    mount: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// The calling thread enters a network namespace of its own, the process a cgroup under the hook.
    pub fn build(capacity: Capacity) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        enter_namespace();
        let root = cgroup_mount();
        let home = root.join(own_cgroup().trim_start_matches('/'));
        let label = format!("cwt-{}-hook", std::process::id());
        let cgroup = root.join(&label);
        fs::create_dir(&cgroup).expect("a cgroup");
        move_process(&cgroup);
        let mount_dir = std::env::temp_dir().join(label);
        fs::create_dir_all(&mount_dir).expect("a directory");
        mount(
            Some("bpf"),
            &mount_dir,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("a BPF file system");
        let config = HookConfig {
            cgroup,
            pin_dir: mount_dir.join("pins"),
            capacity,
            loopback: true,
        };
        let hook = SocketHook::open(&config).expect("the hook");
        Self {
            hook,
            config,
            home,
            mount: mount_dir,
            _turn: turn,
        }
    }

    /// Where this layout's maps are pinned.
    pub fn layout_dir(&self) -> PathBuf {
        self.config.pin_dir.join(format!("v{}", ebpf::abi::LAYOUT))
    }

    /// A counter.
    pub fn counted(&self, name: &str) -> u64 {
        let counters = self.hook.counters().expect("counters");
        counters
            .into_iter()
            .find(|(counter, _)| *counter == name)
            .expect("a counter of that name")
            .1
    }

    /// Makes the Service what is said, as the renderer does: all that it leads to is there before the frontend is.
    pub fn publish(&mut self, service: &Service<'_>) {
        for (id, address) in service.endpoints.iter().chain(service.draining) {
            let endpoint = Endpoint {
                addr: address.ip().into(),
                port: Port::new(address.port()),
                proto: service.proto,
                flags: 0,
                id: *id,
            };
            self.hook.endpoints.insert(*id, endpoint).expect("written");
        }
        let before = self.hook.members.entries().expect("read");
        for (id, _) in service.draining {
            self.put_member(service.id, *id, Membership::SERVING);
        }
        for ((id, _), slot) in service.endpoints.iter().zip(0..) {
            let bits = Membership::IN_CLUSTER | Membership::SERVING;
            self.put_member(service.id, *id, bits);
            let key = SlotKey {
                service: service.id,
                revision: service.revision,
                slot,
            };
            self.hook.slots.insert(key, *id).expect("written");
        }
        for key in service.frontends {
            self.hook
                .frontends
                .insert(*key, service.frontend())
                .expect("written");
        }
        let wanted: Vec<u32> = service
            .endpoints
            .iter()
            .chain(service.draining)
            .map(|(id, _)| *id)
            .collect();
        for key in before.keys() {
            if key.service == service.id && !wanted.contains(&key.endpoint) {
                self.hook.members.remove(key).expect("removed");
            }
        }
    }

    fn put_member(&mut self, service: u32, endpoint: u32, bits: u32) {
        let key = MemberKey { service, endpoint };
        self.hook.members.insert(key, Membership(bits)).expect("written");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        move_process(&self.home);
        let deadline = Instant::now() + DEADLINE;
        // The kernel takes a moment to see that the process has left (EBUSY).
        while let Err(error) = fs::remove_dir(&self.config.cgroup) {
            if Instant::now() >= deadline {
                eprintln!("left behind: {}: {error}", self.config.cgroup.display());
                break;
            }
            std::thread::yield_now();
        }
        let unmounted = umount2(&self.mount, MntFlags::MNT_DETACH);
        if unmounted.is_err() || fs::remove_dir(&self.mount).is_err() {
            eprintln!("left behind: {}", self.mount.display());
        }
    }
}

/// A port of a Service.
#[derive(Clone, Copy)]
pub struct Service<'a> {
    pub id: u32,
    pub proto: u8,
    pub revision: u16,
    pub affinity_seconds: u32,
    pub frontends: &'a [FrontendKey],
    /// In the list for cluster-wide traffic, with their ids.
    pub endpoints: &'a [(u32, SocketAddr)],
    /// In no list, but they serve.
    pub draining: &'a [(u32, SocketAddr)],
}

impl<'a> Service<'a> {
    /// Spreads over the endpoints.
    pub fn new(id: u32, proto: u8, frontends: &'a [FrontendKey], endpoints: &'a [(u32, SocketAddr)]) -> Self {
        Self {
            id,
            proto,
            revision: 1,
            affinity_seconds: 0,
            frontends,
            endpoints,
            draining: &[],
        }
    }

    fn frontend(&self) -> Frontend {
        let cluster = u16::try_from(self.endpoints.len()).expect("few");
        Frontend {
            service: self.id,
            revision: self.revision,
            flags: if cluster == 0 { flags::REFUSE } else { 0 },
            cluster,
            local: 0,
            affinity_seconds: self.affinity_seconds,
        }
    }
}

pub fn frontend(address: SocketAddr, proto: u8) -> FrontendKey {
    FrontendKey {
        addr: address.ip().into(),
        port: Port::new(address.port()),
        proto,
        kind: FrontendKey::ADDRESS,
    }
}

pub fn node_port(kind: u8, port: u16, proto: u8) -> FrontendKey {
    FrontendKey {
        addr: Ip::ANY,
        port: Port::new(port),
        proto,
        kind,
    }
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// A network namespace with loopback alone, for the calling thread and those that it starts.
pub fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(status.expect("`ip` is installed").success());
}

/// Answers each TCP connection and each datagram with its own address, until the test process ends.
pub fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("bound");
    let socket = UdpSocket::bind(address).expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = write!(stream, "{address}"); // the client may be gone
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(address.to_string().as_bytes(), peer); // the client may be gone
        }
    });
}

/// Who answers a TCP connection, and who the socket says its peer is.
pub fn ask_tcp(to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    (at(&answer), stream.peer_addr().expect("a peer"))
}

/// A UDP socket of the family.
pub fn udp(like: SocketAddr) -> UdpSocket {
    let any: IpAddr = if like.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).expect("bound");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

/// Who answers a datagram that is sent with an address, and who the answer is from.
pub fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    socket.send_to(b"?", to).expect("sent");
    receive(socket)
}

/// Who answers, and who the answer is from.
pub fn receive(socket: &UdpSocket) -> (SocketAddr, SocketAddr) {
    let mut buffer = [0; 64];
    let (bytes, source) = socket.recv_from(&mut buffer).expect("an answer");
    (at(std::str::from_utf8(&buffer[..bytes]).expect("text")), source)
}

fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let cgroup2 = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| path.into())
    };
    mounts.lines().find_map(cgroup2).expect("cgroup v2 is mounted")
}

fn own_cgroup() -> String {
    let groups = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    own.expect("a place in cgroup v2").to_owned()
}

fn move_process(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("moved");
}
