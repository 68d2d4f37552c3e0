//! A node that comes from amazon-vpc-cni-k8s: what that leaves, as its version 1.23 does, and an agent that starts there.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::process::installed;
use tests::topology::Host;
use tests::{privileged, probe, skipped, wait};
use vpc_eni::ec2::{Amount, Ec2 as _};

use super::world::{KEYS, PORT, Pod, SOON, World};

/// Of the pod `default/web-0`, by `printf default.web-0 | sha1sum`.
const DEVICE: &str = "eni0d7763386da";

/// What it has by iptables, with two networks as older versions had one chain for each.
const RULES: &str = "*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-1 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
:OTHERS - [0:0]
-A PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0
-A POSTROUTING -m comment --comment \"AWS is no name of theirs\" -j OTHERS
-A AWS-CONNMARK-CHAIN-0 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 172.30.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN
-A AWS-SNAT-CHAIN-0 -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-1
-A AWS-SNAT-CHAIN-1 ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 192.0.2.99
COMMIT
*mangle
-A PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
";

/// What stays of them: a rule of somebody else.
const OTHERS: &str = "-A POSTROUTING -m comment --comment \"AWS is no name of theirs\" -j OTHERS";

const OWN_TABLE: &str = "add table ip aws-cni
add chain ip aws-cni snat-mark
add chain ip aws-cni nat-prerouting { type nat hook prerouting priority -90; }
add rule ip aws-cni nat-prerouting iifname \"eni*\" counter jump snat-mark
";

/// Who has which of the primary interface's addresses.
struct Left {
    lives: IpAddr,
    gone: IpAddr,
}

impl Left {
    fn checkpoint(&self) -> String {
        let allocation = |id: &str, address: IpAddr| {
            json!({
                "networkName": "aws-cni", "containerID": id, "ifName": "eth0", "ipv4": address,
                "allocationTimestamp": 1_700_000_000_000_000_000_u64,
                "metadata": {"k8sPodNamespace": "default", "k8sPodName": id, "interfacesCount": 1},
            })
        };
        let allocations = [allocation("web-0", self.lives), allocation("web-1", self.gone)];
        json!({"version": "vpc-cni-ipam/1", "allocations": allocations}).to_string()
    }
}

/// Gives the primary interface two addresses, and connects a pod with the first as the peer's plugin does.
fn leave_pods(world: &mut World) -> Result<Left> {
    let interfaces = world.cloud.interfaces_of(&world.nodes[0].instance);
    let primary = interfaces.first().context("a primary interface")?.eni.id.clone();
    let assigned = world
        .runtime
        .block_on(world.cloud.client().assign(&primary, Amount::Addresses(2)))?;
    let [lives, gone] = assigned.secondary[..] else {
        anyhow::bail!("{assigned:?}")
    };
    let node = &mut world.nodes[0];
    let host = Host::new("web-0")?;
    let address = lives.to_string();
    let run = |at: &Host, line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let said = at.command("ip", &arguments)?;
        ensure!(said.status.success(), "ip {line}: {}", said.stderr);
        anyhow::Ok(said.stdout)
    };
    let make = format!("link add {DEVICE} type veth peer name eth0 netns {}", host.name());
    run(&node.host, &make)?;
    run(&node.host, &format!("link set {DEVICE} up"))?;
    let link: Value = serde_json::from_str(&run(&node.host, &format!("-j link show {DEVICE}"))?)?;
    let mac = link[0]["address"].as_str().context("a MAC address")?;
    run(&host, "link set eth0 up")?;
    run(&host, &format!("addr add {address}/32 dev eth0"))?;
    run(&host, "route add 169.254.1.1 dev eth0")?;
    run(&host, "route add default via 169.254.1.1 dev eth0")?;
    run(
        &host,
        &format!("neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"),
    )?;
    run(
        &node.host,
        &format!("route add {address} dev {DEVICE} scope link"),
    )?;
    run(
        &node.host,
        &format!("rule add to {address} lookup main priority 512"),
    )?;
    let lives = IpAddr::V4(lives);
    probe::serve(&host, (lives, PORT).into())?;
    node.pods.push(Pod {
        host,
        id: "web-0".to_owned(),
        address: lives,
    });
    fs::create_dir_all(node.directory.path().join("aws-node"))?;
    fs::create_dir_all(node.directory.path().join("net.d"))?;
    let conflist =
        r#"{"cniVersion":"0.4.0","name":"aws-cni","plugins":[{"type":"aws-cni"},{"type":"portmap"}]}"#;
    let _ = node.directory.write("net.d/10-aws.conflist", conflist);
    Ok(Left {
        lives,
        gone: IpAddr::V4(gone),
    })
}

/// Loads rules by a program of the node.
fn load(host: &Host, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let place = host.place();
    let path = installed(program).with_context(|| format!("no {program}"))?;
    let mut command = tests::process::command(&place, path);
    let said = tests::process::run_in(&place, command.args(arguments), input.as_bytes())?;
    ensure!(said.status.success(), "{program}: {}", said.stderr);
    Ok(())
}

/// A connection from the node to the pod that is there before the agent is.
struct Connection {
    node: TcpStream,
    pod: TcpStream,
}

impl Connection {
    fn open(world: &World) -> Result<Self> {
        let pod = &world.nodes[0].pods[0];
        let at = SocketAddr::from((pod.address, PORT + 1));
        let listener = pod.host.run(|| TcpListener::bind(at))??;
        let node = world.nodes[0].host.run(|| TcpStream::connect(at))??;
        let (pod, _) = listener.accept()?;
        for stream in [&node, &pod] {
            stream.set_read_timeout(Some(SOON))?;
        }
        Ok(Self { node, pod })
    }

    fn carries(&mut self) -> Result<()> {
        let mut byte = [0];
        self.node.write_all(b"?")?;
        self.pod.read_exact(&mut byte)?;
        self.pod.write_all(b"!")?;
        self.node.read_exact(&mut byte)?;
        ensure!(&byte == b"!", "{byte:?}");
        Ok(())
    }
}

/// How many pods have addresses, as the introspection endpoint tells.
fn assigned(world: &World) -> Option<u64> {
    let told = world.nodes[0].get(61_679, "/v1/enis").ok()?;
    let (_, told) = told.split_once("\r\n\r\n")?;
    serde_json::from_str::<Value>(told).ok()?["AssignedIPs"].as_u64()
}

fn variables() -> Value {
    json!({"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "3"})
}

#[test]
fn a_node_comes_from_aws_node_with_its_pods_and_without_its_rules() -> Result<()> {
    const CLAIM: &str = "a node comes from aws-node with its pods, and without its rules";
    if !privileged(CLAIM) {
        return Ok(());
    }
    if installed("iptables-nft-restore").is_none() || installed("nft").is_none() {
        skipped(CLAIM, "no iptables-nft-restore, or no nft");
        return Ok(());
    }
    let mut world = World::build("vpc-former", 1, &variables())?;
    let left = leave_pods(&mut world)?;
    let checkpoint = left.checkpoint();
    let directory = world.nodes[0].directory.path().to_owned();
    fs::write(directory.join("aws-node/ipam.json"), checkpoint)?;
    load(&world.nodes[0].host, "iptables-nft-restore", &[], RULES)?;
    load(&world.nodes[0].host, "nft", &["-f", "-"], OWN_TABLE)?;
    let mut connection = Connection::open(&world)?;
    connection.carries()?;

    // Its daemon still runs.
    let socket = directory.join("aws-node/ipamd.sock");
    let daemon = UnixListener::bind(&socket)?;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].says(
        "who is in the way is named",
        ["aws-node runs on this node", "VPC-ENI.md"],
    );
    let status = world.nodes[0].cni("STATUS", "", "")?;
    assert!(!status.status.success(), "{status:?}");
    assert!(
        directory.join("net.d/10-aws.conflist").exists(),
        "it is that one's network"
    );
    drop(daemon);
    fs::remove_file(socket)?;

    world.nodes[0].await_status();
    let rules = || -> Result<String> {
        let tables = world.nodes[0].host.command("nft", &["list", "tables"])?.stdout;
        let by_iptables = world.nodes[0].host.command("iptables-nft-save", &[])?.stdout;
        Ok(tables + &by_iptables)
    };
    wait::until_value(
        "its rules are gone",
        SOON,
        || rules().unwrap_or_default(),
        |rules| {
            let ours = rules.contains("table ip causeway-vpc");
            let theirs = ["aws-cni", "AWS-", "AWS, ", "AWS SNAT"]
                .iter()
                .any(|word| rules.contains(word));
            ours && !theirs && rules.contains(OTHERS)
        },
    );
    wait::until_value(
        "so is its conflist",
        SOON,
        || -> Vec<String> {
            let files = fs::read_dir(directory.join("net.d"))
                .into_iter()
                .flatten()
                .flatten();
            files
                .map(|file| file.file_name().to_string_lossy().into_owned())
                .collect()
        },
        |names| *names == ["10-causeway.conflist"],
    );
    wait::until_value(
        "the pod that lives is counted",
        SOON,
        || assigned(&world),
        |pods| *pods == Some(1),
    );
    connection.carries()?;
    let reaches = |world: &World| {
        let to = SocketAddr::from((left.lives, PORT));
        world.nodes[0].host.run(|| TcpStream::connect_timeout(&to, SOON))
    };
    reaches(&world)??;

    // Nobody else gets its address, an agent that starts again takes nobody a second time, and DEL finds it.
    let mut given = vec![world.nodes[0].add("pod-1")?, world.nodes[0].add("pod-2")?];
    world.nodes[0].agent = None;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    given.push(world.nodes[0].add("pod-3")?);
    is_started_again(&mut world)?;
    assert!(!given.contains(&left.lives), "{given:?}");
    wait::until_value(
        "all are counted",
        SOON,
        || assigned(&world),
        |pods| *pods == Some(4),
    );
    connection.carries()?;
    let interfaces = world.cloud.interfaces_of(&world.nodes[0].instance);
    let primary = IpAddr::V4(interfaces.first().context("it has one")?.eni.primary);
    assert_eq!(world.seen_outside(0, 0)?, primary, "by our rules");
    let node = &mut world.nodes[0];
    let web = node.pods.remove(0);
    let said = node.cni("DEL", &web.id, &web.host.path())?;
    ensure!(said.status.success(), "{said:?}");
    wait::until_value(
        "it is gone from the book",
        SOON,
        || assigned(&world),
        |pods| *pods == Some(3),
    );
    wait::until_value(
        "it is gone from the kernel",
        SOON,
        || {
            world.nodes[0].ip(&["rule"]).unwrap_or_default()
                + &world.nodes[0].ip(&["link"]).unwrap_or_default()
        },
        |text| !text.contains(DEVICE) && !text.contains(&format!("to {} ", left.lives)),
    );
    goes_back(&mut world)
}

/// Beside its daemon nothing is given, whenever that comes.
fn is_started_again(world: &mut World) -> Result<()> {
    let node = &mut world.nodes[0];
    let socket = node.directory.path().join("aws-node/ipamd.sock");
    let daemon = UnixListener::bind(&socket)?;
    let refused = wait::until_value(
        "pods cannot come",
        SOON,
        || node.refusal().unwrap_or_default(),
        Option::is_some,
    );
    let (_, words) = refused.context("it is")?;
    ensure!(words.contains("aws-node runs on this node"), "{words}");
    let host = tests::topology::Host::new("pod-beside")?;
    let said = node.cni("ADD", "pod-beside", &host.path())?;
    ensure!(!said.status.success(), "{said:?}");
    drop(daemon);
    fs::remove_file(socket)?;
    node.await_status();
    Ok(())
}

/// A node without pods is cleaned for who comes next.
fn goes_back(world: &mut World) -> Result<()> {
    let before = world.cloud.interfaces();
    let node = &mut world.nodes[0];
    node.agent = None;
    let config = node.config.to_string_lossy().into_owned();
    let program = tests::cluster::program("causeway");
    let program = program.to_str().context("a path of text")?;
    let clean = |node: &super::world::Node| {
        node.host
            .command(program, &["node", "cleanup", "--config", &config])
    };
    let refused = clean(node)?;
    assert!(
        !refused.status.success() && refused.stderr.contains("pod-1"),
        "pods live: {refused:?}"
    );
    while !node.pods.is_empty() {
        node.remove_last()?;
    }
    let said = clean(node)?;
    ensure!(said.status.success(), "{said:?}");
    let rules = node.ip(&["rule"])?;
    for priority in ["512:", "1024:", "1536:"] {
        assert!(!rules.contains(priority), "{rules}");
    }
    let tables = node.host.command("nft", &["list", "tables"])?.stdout;
    assert!(!tables.contains("causeway"), "{tables}");
    let path = |name: &str| node.directory.path().join(name);
    assert_eq!(fs::read_dir(path("net.d"))?.count(), 0);
    assert!(!path("state").exists(), "nothing is remembered");
    assert!(path("aws-node/ipam.json").exists(), "which is not ours");
    assert_eq!(world.cloud.interfaces(), before, "they are who comes next's");
    Ok(())
}

#[test]
fn pods_that_no_checkpoint_tells_of_keep_their_addresses() -> Result<()> {
    if !privileged("pods that no checkpoint tells of keep their addresses") {
        return Ok(());
    }
    for (what, version, part) in [
        ("torn", "vpc-cni-ipam/1", 2),
        ("of the future", "vpc-cni-ipam/2", 1),
    ] {
        let mut world = World::build("vpc-lost", 1, &variables())?;
        let left = leave_pods(&mut world)?;
        let path = world.nodes[0].directory.path().join("aws-node/ipam.json");
        let text = left.checkpoint().replace("vpc-cni-ipam/1", version);
        fs::write(path, &text[..text.len() / part])?;
        let mut connection = Connection::open(&world)?;
        world.nodes[0].start_agent(&KEYS)?;
        world.nodes[0].await_status();
        let given = [
            world.nodes[0].add("pod-1")?,
            world.nodes[0].add("pod-2")?,
            world.nodes[0].add("pod-3")?,
        ];
        assert!(!given.contains(&left.lives), "{what}: {given:?}");
        world.nodes[0].says("the device is told of", [DEVICE, "no record"]);
        connection.carries().context(what)?;
        let pods = &world.nodes[0].pods;
        let [lost, ours] = [&pods[0], &pods[1]];
        let to = SocketAddr::from((ours.address, PORT));
        wait::until("it reaches another pod", SOON, || {
            lost.host
                .run(|| TcpStream::connect_timeout(&to, SOON))
                .map_err(|error| format!("{error:#}"))?
                .map_err(|error| error.to_string())
        });
    }
    Ok(())
}
