//! How long a sync takes and how much memory it needs: many Services at once, one endpoint more, a restart, an audit.
//!
//! `sudo scale [SERVICES [ENDPOINTS]]` (default 10,000 x 10), in a network namespace, a cgroup and a BPF file system
//! of its own, all removed at the end.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Pools, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};
use netlink::Namespace;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proxy::{Config, DatapathKind, Durations, Proxy, Settings, SyncReport};

/// Single changes are timed this often; the median is printed.
const ROUNDS: usize = 21;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let services = arguments.next().transpose()?.unwrap_or(10_000);
    let endpoints = arguments.next().transpose()?.unwrap_or(10);
    let place = Place::make()?;
    let kinds = [
        ("nftables", DatapathKind::Nftables),
        (
            "ebpf",
            DatapathKind::Ebpf {
                cgroup: place.cgroup.clone(),
                pin_dir: place.bpffs.join("proxy"),
            },
        ),
    ];
    println!("{services} Services x {endpoints} endpoints");
    for (name, kind) in kinds {
        let namespace = Namespace::create(&place.name)?;
        let result =
            namespace.run(|| measure(name, kind, services, endpoints).map_err(|error| error.to_string()));
        Namespace::delete(&place.name)?;
        result??;
    }
    Ok(())
}

fn measure(name: &str, datapath: DatapathKind, services: u32, endpoints: u32) -> Result<(), Box<dyn Error>> {
    let config = Config {
        settings: Settings {
            node_addresses: vec!["172.30.0.11".parse()?],
            ..Settings::new("node-1".into(), ["10.244.0.0/16".parse()?])
        },
        datapath,
    };
    let empty = resident_mib()?;
    let mut state = cluster(services, endpoints);
    let with_state = resident_mib()?;
    let mut proxy = Proxy::open(&config)?;
    let cold = timed(|| proxy.sync(&state));
    print(name, "cold sync", cold.1, &cold.0);
    println!(
        "{name:<9} {:<22} {:>6.1} MiB of it for the state {:.1}, for the proxy {:.1}",
        "memory",
        resident_mib()?,
        with_state - empty,
        resident_mib()? - with_state
    );
    let mut single = Vec::new();
    let mut last = SyncReport::default();
    for round in 0..u32::try_from(ROUNDS)? {
        state.apply(Change::EndpointSlice(slice(
            services / 2,
            endpoints + 1 + round % 2,
        )));
        let (report, took) = timed(|| proxy.sync(&state));
        single.push(took);
        last = report;
    }
    single.sort_unstable();
    print(name, "one endpoint (median)", single[ROUNDS / 2], &last);
    state.apply(Change::Service(service(services + 1)));
    state.apply(Change::EndpointSlice(slice(services + 1, endpoints)));
    let one = timed(|| proxy.sync(&state));
    print(name, "one Service more", one.1, &one.0);
    let (audit, took) = timed(|| proxy.audit());
    println!("{name:<9} {:<22} {took:>9.1?}  {} writes", "audit", audit.writes);
    let (structure, took) = timed(|| proxy.audit_structure());
    println!(
        "{name:<9} {:<22} {took:>9.1?}  {} writes",
        "audit of structure", structure.writes
    );
    drop(proxy);
    let (proxy, took) = timed(|| Proxy::open(&config));
    println!("{name:<9} {:<22} {took:>9.1?}", "open again (read back)");
    let mut proxy = proxy?;
    let again = timed(|| proxy.sync(&state));
    print(name, "first sync again", again.1, &again.0);
    Ok(())
}

/// Memory of this process that is in RAM (`VmRSS`).
fn resident_mib() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmRSS in /proc/self/status")?
        .trim()
        .parse()?;
    Ok(kib / 1024.0)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

fn print(datapath: &str, what: &str, took: Duration, report: &SyncReport) {
    let Durations { plan, apply, sockets } = report.durations;
    let failures = report.failures.len() + report.common_failures.len();
    println!(
        "{datapath:<9} {what:<22} {took:>9.1?}  plan {plan:.1?}, apply {apply:.1?} (BPF maps {sockets:.1?}), {} writes, {failures} failures",
        report.writes
    );
}

/// Where it runs; removed on drop.
struct Place {
    name: String,
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn make() -> Result<Self, Box<dyn Error>> {
        let name = format!("cwt-scale-{}", std::process::id());
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let cgroup2 = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = cgroup2
            .and_then(|line| line.split(' ').nth(1))
            .ok_or("cgroup v2 is not mounted")?;
        let place = Self {
            cgroup: PathBuf::from(root).join(&name),
            bpffs: std::env::temp_dir().join(&name),
            name,
        };
        std::fs::create_dir(&place.cgroup)?;
        std::fs::create_dir(&place.bpffs)?;
        mount(
            Some("bpf"),
            &place.bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let unmounted = umount2(&self.bpffs, MntFlags::MNT_DETACH).is_ok();
        let removed = [&self.bpffs, &self.cgroup].map(|path| std::fs::remove_dir(path).is_ok());
        if !unmounted || removed.contains(&false) {
            eprintln!("left behind: {} {}", self.bpffs.display(), self.cgroup.display());
        }
    }
}

fn cluster(services: u32, endpoints: u32) -> Snapshot {
    let mut state = Snapshot::default();
    let mut pools = Pools::default();
    for number in 0..services {
        let (mut service, mut slice) = (service(number), slice(number, endpoints));
        service.pack(&mut pools);
        slice.pack(&mut pools);
        state.apply(Change::Service(service));
        state.apply(Change::EndpointSlice(slice));
    }
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        state.apply(Change::Synced(kind));
    }
    state
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN)
}

fn service(number: u32) -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: [address([10, 96, 0, 0], number)].into(),
    };
    let mut service = Service::new(ObjectName::new("default", format!("web-{number}")), kind);
    service.ports = [ServicePort {
        name: "http".into(),
        ..ServicePort::new(Protocol::Tcp, port(80))
    }]
    .into();
    service
}

fn slice(number: u32, endpoints: u32) -> EndpointSlice {
    let endpoint = |index| {
        let node = if index % 3 == 0 { "node-1" } else { "node-2" };
        let mut endpoint = Endpoint::new(address([10, 128, 0, 0], number * 32 + index));
        endpoint.node = Some(node.into());
        endpoint.zone = Some("zone-1".into());
        endpoint.pod = Some(format!("web-{number}-5b95d558d7-{index:05}").into());
        endpoint
    };
    EndpointSlice {
        name: ObjectName::new("default", format!("web-{number}-1")),
        service: format!("web-{number}").into(),
        family: IpFamily::V4,
        endpoints: (0..endpoints).map(endpoint).collect(),
        ports: [EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(8080),
        }]
        .into(),
        last_change: None,
    }
}

fn address(base: [u8; 4], offset: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(base) + offset + 1).into()
}
