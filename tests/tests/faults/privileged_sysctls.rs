//! Others change the kernel settings that packets need (F17).

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::cluster::program;
use tests::probe::{Attempts, Kind, now};
use tests::topology::Host;
use tests::{privileged, process, wait};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::DEADLINE;
use crate::world::{Agent, TARGET_PORT, World, ip};

/// The bar of F17.
const AUDITED: Duration = Duration::from_secs(10);

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const TUNNEL_FILTER: &str = "net/ipv4/conf/flannel.1/rp_filter";

/// The bundled store on the node, for the leases of its overlay; ends when it is dropped.
struct Store {
    stop: Option<DropGuard>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    fn start(host: &Host, directory: PathBuf) -> Result<Self> {
        let config = store::Config::new(directory, vec!["127.0.0.1:2379".parse()?]);
        let stop = CancellationToken::new();
        let (guard, namespace) = (stop.clone().drop_guard(), host.namespace().clone());
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let serve = move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let serving = runtime.expect("a runtime").block_on(store::serve(config, stop));
                    serving.expect("the store runs to its shutdown");
                };
                namespace.run(serve).expect("the namespace is there");
            })?;
        Ok(Self {
            stop: Some(guard),
            thread: Some(thread),
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was printed when it happened
        }
    }
}

fn start_agent_with_overlay(world: &World) -> Agent {
    let node = &world.node;
    let proxy = world.configure(&json!({}));
    let text = std::fs::read_to_string(&proxy).expect("it was just written");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    config["network"] = json!({
        "etcd": {"endpoints": ["http://127.0.0.1:2379"]},
        "config": {"Network": "10.245.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}},
        "interface": "eth0",
        "subnetEnv": node.path("subnet.env"),
    });
    config["cni"] = json!({"socket": node.path("cni.sock"), "confDir": node.path("net.d")});
    let config = node.directory.write("node.yaml", &config.to_string());
    let place = node.place();
    let mut command = process::command(&place, program("causeway"));
    Agent::spawn(&place, command.arg("node").arg("--config").arg(config))
}

/// The outside sends by the tunnel to the first server, with its own address as the source, as another node does for a
/// process that has bound it. The answer comes back without a tunnel.
fn send_by_the_tunnel(world: &World) -> Result<Attempts> {
    let tunnel = wait::until("the tunnel is there", DEADLINE, || {
        let output = world
            .node
            .host()
            .command("ip", &["-o", "link", "show", "flannel.1"]);
        let text = output
            .map(|output| output.stdout)
            .map_err(|error| error.to_string())?;
        let mac = text.split_once("link/ether ").map(|(_, rest)| rest.to_owned());
        let mac = mac.and_then(|rest| Some(rest.split_whitespace().next()?.to_owned()));
        mac.ok_or(text)
    });
    register_the_outside(world)?;
    let outside = world.outside();
    for device in ["all", "br0"] {
        outside.set(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let vxlan = "link add tunnel type vxlan id 1 dstport 8472 local 172.30.8.1 remote 172.30.8.11 dev br0";
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    ip(outside, &words(vxlan))?;
    ip(outside, &words("link set tunnel up"))?;
    let neighbour = ["neigh", "add", "10.245.0.0", "lladdr", &tunnel, "dev", "tunnel"];
    ip(outside, &neighbour)?;
    let route = "route add 10.244.1.2 via 10.245.0.0 dev tunnel onlink src 172.30.8.1";
    ip(outside, &words(route))?;
    let server = "10.244.1.2".parse::<std::net::IpAddr>()?;
    let to = (server, TARGET_PORT).into();
    Attempts::start(&outside.place(), Kind::Connections, to, 30)
}

/// Gives the outside a lease: what comes through the tunnel from nobody's node is dropped.
fn register_the_outside(world: &World) -> Result<()> {
    let host = world.node.host();
    let lease = json!({
        "PublicIP": "172.30.8.1", "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"},
    });
    let key = "/coreos.com/network/subnets/10.245.99.0-24";
    let put = host.command("etcdctl", &["put", key, &lease.to_string()])?;
    ensure!(put.status.success(), "{put:?}");
    wait::until("its lease is known", DEADLINE, || {
        let routes = host.command("ip", &["route", "show", "10.245.99.0/24"]);
        let routes = routes
            .map(|output| output.stdout)
            .map_err(|error| error.to_string())?;
        if routes.contains("flannel.1") {
            Ok(())
        } else {
            Err(routes)
        }
    });
    Ok(())
}

fn repairs(world: &World, setting: &str) -> String {
    let page = world.node.metrics().unwrap_or_default();
    let name = format!("causeway_sysctl_repairs_total{{sysctl=\"{setting}\"}} ");
    let count = page.lines().find_map(|line| line.strip_prefix(&name));
    count.unwrap_or("0").to_owned()
}

#[test]
fn kernel_settings_that_packets_need_are_set_again() -> Result<()> {
    if !privileged("kernel settings that packets need are set again (F17)") {
        return Ok(());
    }
    let world = World::build("sysctls", "ebpf")?;
    let host = world.node.host();
    let _store = Store::start(host, world.node.directory.path().join("store"))?;
    world.put_web(&[1, 2]);
    // Set at start, too.
    host.set(FORWARD_V4, "0")?;
    host.set(FORWARD_V6, "0")?;
    let agent = start_agent_with_overlay(&world);
    for part in ["proxy", "sysctls", "overlay"] {
        world.node.until_working(part);
    }
    let read = |setting: &'static str| host.run(move || netlink::sysctl::read(setting));
    wait::until_value(
        "the tunnel hears everyone",
        DEADLINE,
        || read(TUNNEL_FILTER).expect("a thread").ok(),
        |value| value.as_deref() == Some("2"),
    );
    let mut attempts = world.connections(30)?;
    attempts.push(send_by_the_tunnel(&world)?);
    attempts.iter().for_each(|attempts| attempts.await_more(5));
    for attempts in &attempts {
        assert_eq!(attempts.lost(), []);
    }
    let rows = [
        (FORWARD_V4, "net.ipv4.ip_forward", "0", 0),
        (FORWARD_V6, "net.ipv6.conf.all.forwarding", "0", 1),
        (TUNNEL_FILTER, "net.ipv4.conf.flannel/1.rp_filter", "1", 3),
    ];
    for (setting, name, broken, concerned) in rows {
        let attempts = attempts.get(concerned).context("there are four")?;
        assert_eq!(repairs(&world, name), "0");
        let right = read(setting)??;
        let (flipped, moment) = (Instant::now(), now());
        host.set(setting, broken)?;
        wait::until_value(
            "it is set again",
            AUDITED,
            || read(setting).expect("a thread").ok(),
            |value| value.as_ref() == Some(&right),
        );
        let took = flipped.elapsed();
        assert!(took <= AUDITED, "{name}: {took:?}");
        attempts.await_outcome("traffic comes back", DEADLINE, |attempt| {
            attempt.server().is_some()
        });
        // The audit may come before any packet meets the wrong value; the count tells that it was there.
        let mut lost = attempts.since(moment);
        lost.retain(|attempt| attempt.server().is_none());
        println!(
            "F17: {name} was set again after {took:?}, {} attempts failed",
            lost.len()
        );
        wait::until_value(
            "it is counted",
            DEADLINE,
            || repairs(&world, name),
            |count| count == "1",
        );
        let told = format!("somebody changed a kernel setting, repaired setting=\"{name}\"");
        let log = agent.0.output();
        assert_eq!(log.matches(&told).count(), 1, "{told} in {log}");
    }
    // Never ours: CVE-2020-8558.
    assert_eq!(read("net/ipv4/conf/all/route_localnet")??, "0");
    assert_eq!(read("net/ipv4/conf/eth0/route_localnet")??, "0");
    Ok(())
}
