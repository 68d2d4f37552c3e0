//! Another version of the agent, with other layouts of its maps and tables, gives way to this one (F3).
//!
//! It is played by what it leaves: maps, links and tables that serve, of which one has other sizes. Which of the two is
//! the newer makes no difference, so that each round is an upgrade and a way back.

use std::collections::BTreeSet;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use ebpf::abi::service::{Endpoint, Flow, Frontend, FrontendKey, Reply, SocketPeer};
use tests::process::Process;
use tests::wait;

use crate::DEADLINE;
use crate::privileged_limits::await_failing;
use crate::traffic::{self, Traffic};
use crate::world::{VIP, World, hook_maps, layout, put_others};

/// Bytes that values of the other layout have more, with something in them.
const MORE: [u8; 8] = [0xff; 8];

/// Puts a map with longer values in the place of a pinned one. The programs that are attached keep theirs.
fn widen<K: Pod, const BYTES: usize, const WIDE: usize>(
    directory: &Path,
    name: &str,
) -> anyhow::Result<usize> {
    let pin = directory.join(name);
    let map = MapData::from_pin(&pin)?;
    let map = match map.info()?.map_type()? {
        aya::maps::MapType::LruHash => Map::LruHashMap(map),
        _ => Map::HashMap(map),
    };
    let narrow = HashMap::<_, K, [u8; BYTES]>::try_from(map)?;
    let mut wide = HashMap::<MapData, K, [u8; WIDE]>::create(1 << 16, 0)?;
    let mut entries = 0;
    for entry in narrow.iter() {
        let (key, value) = entry?;
        let mut longer = [0; WIDE];
        longer[..BYTES].copy_from_slice(&value);
        longer[BYTES..].copy_from_slice(&MORE);
        wide.insert(key, longer, 0)?;
        entries += 1;
    }
    std::fs::remove_file(&pin)?;
    wide.pin(&pin)?;
    Ok(entries)
}

/// Makes what the agent left another layout's, whose values are longer.
fn widen_maps(world: &World) -> anyhow::Result<()> {
    const FRONTEND: usize = size_of::<Frontend>();
    const ENDPOINT: usize = size_of::<Endpoint>();
    const FLOW: usize = size_of::<Flow>();
    const REPLY: usize = size_of::<Reply>();
    let other = world.pin_dir().join(format!("v{}", ebpf::abi::LAYOUT + 1));
    std::fs::rename(layout(&world.pin_dir())?, &other)?;
    let counts = [
        widen::<FrontendKey, FRONTEND, { FRONTEND + MORE.len() }>(&other, "FRONTENDS")?,
        widen::<u32, ENDPOINT, { ENDPOINT + MORE.len() }>(&other, "ENDPOINTS")?,
        widen::<SocketPeer, FLOW, { FLOW + MORE.len() }>(&other, "FLOWS")?,
        widen::<SocketPeer, REPLY, { REPLY + MORE.len() }>(&other, "REPLIES")?,
    ];
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    Ok(())
}

/// The same of the layout before values only grew: nothing of it is taken over.
fn age_maps(world: &World) -> anyhow::Result<()> {
    let other = world.pin_dir().join(format!("v{}", ebpf::abi::GROWS_SINCE - 1));
    Ok(std::fs::rename(layout(&world.pin_dir())?, other)?)
}

/// Makes the tables another layout's: keys of the clients that a port admits have one field more.
fn age_tables(world: &World) -> anyhow::Result<()> {
    for (family, address) in [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")] {
        let key = format!("{{ type mark . {address} . inet_service; flags interval; }}");
        world.nft(&["delete", "set", family, "causeway-proxy", "sources"])?;
        world.nft(&["add", "set", family, "causeway-proxy", "sources", &key])?;
    }
    Ok(())
}

/// Each way of leaving another layout behind is met by an agent, under traffic.
#[track_caller]
fn check(datapath: &'static str, ways: &[fn(&World) -> anyhow::Result<()>]) -> anyhow::Result<()> {
    let world = World::build(&format!("layouts-{datapath}"), datapath)?.with_dns();
    world.put_web(&[1, 2]);
    put_others(&world, 50);
    let mut agent = world.start_agent();
    world.node.until_working("proxy");
    world.node.until_working("dns-address");
    let _dns = world.start_dns()?;
    let traffic = Traffic::start(&world)?.with(world.queries(traffic::rate())?);
    let serving = state(&world)?;
    for leave in ways {
        agent.0.kill();
        leave(&world)?;
        traffic.await_more();
        let monitor = world.monitor_rules()?;
        agent = world.start_agent();
        world.node.until_working("proxy");
        traffic.await_more();
        wait::until_value(
            "one layout is left",
            DEADLINE,
            || state(&world).ok(),
            |state| state.as_ref() == Some(&serving),
        );
        if datapath == "nftables" {
            assert_replaced_at_once(&monitor);
        }
    }
    println!(
        "F3 {datapath}: {} layouts, {}",
        ways.len(),
        traffic.nothing_lost()
    );
    Ok(())
}

/// Rules, lists and layouts.
fn state(world: &World) -> anyhow::Result<(BTreeSet<String>, Vec<String>)> {
    let mut maps = Vec::new();
    if world.datapath == "ebpf" {
        maps = hook_maps(world)?;
        let layouts = std::fs::read_dir(world.pin_dir())?.flatten();
        maps.extend(layouts.map(|layout| layout.path().display().to_string()));
    }
    Ok((world.rules(), maps))
}

/// No packet met a table without its elements: they came in the transaction that took the old table away.
#[track_caller]
fn assert_replaced_at_once(monitor: &Process) {
    let output = monitor.output();
    for (family, element) in [("ip", VIP), ("ip6", "fd00:96::7")] {
        let away = format!("delete table {family} causeway-proxy");
        let mut transactions = output.split("# new generation");
        let replaced = transactions.find(|transaction| transaction.contains(&away));
        let replaced = replaced.unwrap_or_else(|| panic!("no {away}: {output}"));
        let added = format!("add element {family} causeway-proxy service-ips {{ {element} . tcp . 80");
        assert!(replaced.contains(&added), "{added}: {replaced}");
    }
}

/// Chains that hook arriving packets of IPv4, so many that the kernel takes no other (`MAX_HOOK_COUNT` in
/// net/netfilter/core.c), and the table that must not change meanwhile is of IPv4.
const MOST_HOOKS: u32 = 1024;
const CROWD: &str = "cwt-crowd";
/// `web` and 51 others.
const WAITING: &str = "causeway_proxy_failed_services 52\n";

/// Fills the hook that the proxy's table needs a place at; returns how many chains that took.
fn crowd_the_hook(world: &World) -> anyhow::Result<u32> {
    world.nft(&["add", "table", "ip", CROWD])?;
    let chain = |number| {
        let hook = "{ type filter hook prerouting priority 300; }";
        world.nft(&["add", "chain", "ip", CROWD, &format!("c{number}"), hook])
    };
    let count = (0..MOST_HOOKS).find(|number| chain(*number).is_err());
    count.ok_or_else(|| anyhow::anyhow!("the kernel takes {MOST_HOOKS} chains at a hook"))
}

/// The proxy's table for IPv4, without what changes by itself.
fn table_of_v4(world: &World) -> anyhow::Result<String> {
    let words = ["-s", "list", "table", "ip", "causeway-proxy"];
    let output = world.node.host().command("nft", &words)?;
    anyhow::ensure!(output.status.success(), "{}", output.stderr);
    Ok(output.stdout)
}

#[test]
fn nothing_is_lost_when_the_socket_hook_has_another_layout() -> anyhow::Result<()> {
    if !tests::privileged("nothing is lost when the socket hook has another layout (F3)") {
        return Ok(());
    }
    check("ebpf", &[widen_maps, age_maps, widen_maps])
}

#[test]
fn nothing_is_lost_when_the_tables_have_another_layout() -> anyhow::Result<()> {
    if !tests::privileged("nothing is lost when the tables have another layout (F3)") {
        return Ok(());
    }
    check("nftables", &[age_tables, age_tables])
}

#[test]
fn the_tables_of_another_layout_serve_while_the_kernel_refuses_new_ones() -> anyhow::Result<()> {
    if !tests::privileged("tables of another layout serve until new ones are taken (F3)") {
        return Ok(());
    }
    let world = &World::build("layouts-refused", "nftables")?.with_dns();
    world.put_web(&[1, 2]);
    put_others(world, 50);
    let mut agent = world.start_agent();
    world.node.until_working("proxy");
    world.node.until_working("dns-address");
    let _dns = world.start_dns()?;
    let traffic = Traffic::start(world)?.with(world.queries(traffic::rate())?);
    agent.0.kill();
    age_tables(world)?;
    let hooks = crowd_the_hook(world)?;
    let other = table_of_v4(world)?;
    traffic.await_more();
    let monitor = world.monitor_rules()?;
    let _agent = world.start_agent();
    await_failing(world, "rules of another layout serve");
    // Another Service tries nothing by itself, and all of the other one's stays.
    put_others(world, 51);
    wait::until_value(
        "all Services wait, the new one too",
        DEADLINE,
        || world.node.metrics().ok(),
        |page| page.as_ref().is_some_and(|page| page.contains(WAITING)),
    );
    traffic.await_more();
    assert_eq!(table_of_v4(world)?, other);
    world.nft(&["delete", "table", "ip", CROWD])?;
    world.node.until_working("proxy");
    traffic.await_more();
    assert_replaced_at_once(&monitor);
    println!(
        "F3 refused: {hooks} chains at the hook, {}",
        traffic.nothing_lost()
    );
    Ok(())
}
