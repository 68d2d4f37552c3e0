//! A node goes from kube-proxy to this proxy, and back, and no connection is lost.

use anyhow::Result;
use serde_json::json;
use tests::cluster::program;
use tests::process::{self, Output};

use crate::kube_proxy::{Mode, rules_left, write_rules};
use crate::traffic::Traffic;
use crate::world::{DATAPATHS, NOTHING, World};

/// Runs `causeway node cleanup` with these options.
fn clean_up(world: &World, options: &[&str]) -> Result<Output> {
    let place = world.node.place();
    let mut command = process::command(&place, program("causeway"));
    command
        .args(["node", "cleanup", "--config"])
        .arg(world.configure(&json!({})));
    process::run_in(&place, command.args(options).env_remove("NODE_NAME"), b"")
}

#[track_caller]
fn check(mode: Mode, datapath: &'static str) -> Result<()> {
    let world = World::build(&format!("move-{datapath}-{mode:?}").to_lowercase(), datapath)?;
    world.put_web(&[1, 2]);
    write_rules(&world, mode)?;
    let before = world.ledger()?;
    let traffic = Traffic::start(&world)?;

    // Whoever takes them away too early is told.
    clean_up(&world, &["--kube-proxy"])?.assert_said(2, &["nobody else serves Services here"]);
    assert_eq!(world.ledger()?.changes_since(&before), NOTHING);

    let mut agent = world.start_agent();
    world.node.until_working("proxy");
    traffic.await_more();
    let kind = match mode {
        Mode::Iptables => "iptables rulesets",
        Mode::Nftables => "nftables tables",
    };
    clean_up(&world, &["--kube-proxy"])?.assert_said(0, &[&format!("removed  kube-proxy's {kind}: 2")]);
    assert_eq!(rules_left(&world)?, NOTHING);
    clean_up(&world, &["--kube-proxy"])?.assert_said(0, &["nothing to remove"]);
    traffic.await_more();

    // And back: kube-proxy serves first.
    write_rules(&world, mode)?;
    traffic.await_more();
    agent.0.kill();
    clean_up(&world, &[])?.assert_said(0, &["removed"]);
    traffic.await_more();
    println!(
        "{datapath}, kube-proxy's {mode:?}, to and fro: {}",
        traffic.nothing_lost()
    );
    assert_eq!(world.ledger()?.changes_since(&before), NOTHING);
    Ok(())
}

#[test]
fn no_connection_is_lost_from_kube_proxys_nftables_and_back() -> Result<()> {
    if !tests::privileged("no connection is lost from kube-proxy's nftables and back") {
        return Ok(());
    }
    DATAPATHS
        .into_iter()
        .try_for_each(|datapath| check(Mode::Nftables, datapath))
}

#[test]
fn no_connection_is_lost_from_kube_proxys_iptables_and_back() -> Result<()> {
    if !tests::privileged("no connection is lost from kube-proxy's iptables and back") {
        return Ok(());
    }
    DATAPATHS
        .into_iter()
        .try_for_each(|datapath| check(Mode::Iptables, datapath))
}
