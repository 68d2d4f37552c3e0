//! Services work through what the agent programmed, while it comes and goes.

use serde_json::json;
use tests::node::Node;
use tests::wait;

use crate::DEADLINE;
use crate::traffic::{Bpffs, ask, ask_on, await_progress, lines, serve, service, slice};

#[track_caller]
fn check_services_through_the_agents_life(datapath: &str) -> anyhow::Result<()> {
    let node = Node::new(datapath)?;
    let _bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
    let place = node.place();
    for address in ["10.244.1.5", "10.244.1.6"] {
        node.host().add_address("lo", format!("{address}/32").parse()?)?;
    }
    let _server = serve(&place, "10.244.1.5")?;
    let _other = serve(&place, "10.244.1.6")?;
    node.api.put(service(80));
    node.api.put(slice(&["10.244.1.5"]));
    let config = node.configure(json!({"proxy": {
        "datapath": datapath, "podNetwork": "10.244.0.0/16",
        "cgroup": node.cgroup.path(), "pinDir": node.path("bpf/causeway"),
    }}));
    let mut agent = node.agent(&config);
    node.until_working("proxy");
    let url = "http://10.96.0.7/";
    assert_eq!(
        ask(&place, url),
        Ok("from 10.244.1.5".to_owned()),
        "{}",
        agent.output()
    );

    let client = ask_on(&place, url)?;
    let progress = |what: &str| await_progress(&client, what);
    progress("requests with the agent");
    agent.kill();
    progress("requests without the agent");
    let mut agent = node.agent(&config);
    node.until_working("proxy");
    progress("requests with the next agent");
    node.api.go_down();
    agent.kill();
    let _agent = node.agent(&config);
    node.until_working("health");
    progress("requests with an agent that never saw the API");
    node.api.come_up();
    node.until_working("proxy");

    node.api.put(slice(&["10.244.1.6"]));
    let _answer = wait::until_value(
        "the new endpoint",
        DEADLINE,
        || ask(&place, url),
        |answer| answer.as_deref() == Ok("from 10.244.1.6"),
    );
    progress("requests to the new endpoint");
    assert_eq!(lines(&client, "FAILED"), 0, "{}", client.output());
    drop(client);

    if datapath == "ebpf" {
        let hit = "causeway_hook_verdicts_total{verdict=\"translated\"} ";
        let count = |page: &String| {
            page.split_once(hit)
                .and_then(|(_, rest)| rest.lines().next()?.parse::<u64>().ok())
        };
        wait::until_value(
            "the hook is seen to translate",
            DEADLINE,
            || node.metrics().unwrap_or_default(),
            |page| count(page).is_some_and(|count| count > 50),
        );
    }
    node.host().command("nft", &["flush", "ruleset"])?;
    wait::until_value(
        "the repair is counted",
        DEADLINE,
        || node.metrics().unwrap_or_default(),
        |page| !page.contains("causeway_proxy_repairs_total 0"),
    );
    assert_eq!(ask(&place, url), Ok("from 10.244.1.6".to_owned()));
    Ok(())
}

#[test]
fn nftables_services_work_while_the_agent_is_killed_restarted_and_without_api() -> anyhow::Result<()> {
    if !tests::privileged("nftables Services work while the agent is killed") {
        return Ok(());
    }
    check_services_through_the_agents_life("nftables")
}

#[test]
fn ebpf_services_work_while_the_agent_is_killed_restarted_and_without_api() -> anyhow::Result<()> {
    if !tests::privileged("eBPF Services work while the agent is killed") {
        return Ok(());
    }
    check_services_through_the_agents_life("ebpf")
}
