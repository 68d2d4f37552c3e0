//! Traffic through what the agent programmed, while it comes and goes.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::process::{self, Process};
use tests::wait;

use crate::DEADLINE;
use crate::node::Node;

/// A BPF file system of the test's own.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn service(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": port}]},
    })
}

fn slice(endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}],
    })
}

/// An HTTP server on this node, at an address of the pod network.
fn serve(node: &Node, address: &str) -> anyhow::Result<Process> {
    node.host().add_address("lo", format!("{address}/32").parse()?)?;
    let script = format!(
        "import http.server, sys\n\
         class Hello(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       self.send_response(200); self.end_headers(); self.wfile.write(b'from {address}\\n')\n\
         \x20   def log_message(self, *_): pass\n\
         server = http.server.ThreadingHTTPServer(('{address}', 8080), Hello)\n\
         print('ready', flush=True)\n\
         server.serve_forever()\n"
    );
    let place = node.place();
    let mut command = process::command(&place, "python3");
    command.args(["-c", &script]);
    let mut server = Process::spawn(&place, &mut command)?;
    server.await_line("ready", DEADLINE);
    Ok(server)
}

/// One request to the Service, from a process of the node.
fn ask(node: &Node, url: &str) -> Result<String, String> {
    let place = node.place();
    let mut command: Command = process::command(&place, "curl");
    command.args(["--silent", "--show-error", "--max-time", "2", url]);
    match process::run_in(&place, &mut command, b"") {
        Ok(output) if output.status.success() => Ok(output.stdout.trim().to_owned()),
        Ok(output) => Err(output.stderr),
        Err(error) => Err(error.to_string()),
    }
}

/// Requests one after the other, as long as it lives; a failure is a line with `FAILED`.
fn ask_on(node: &Node, url: &str) -> anyhow::Result<Process> {
    let place = node.place();
    let mut command = process::command(&place, "sh");
    let script = format!("while :; do curl --silent --max-time 1 {url} || echo FAILED; done");
    command.args(["-c", &script]);
    Process::spawn(&place, &mut command)
}

fn lines(client: &Process, text: &str) -> usize {
    client.output().lines().filter(|line| line.contains(text)).count()
}

#[track_caller]
fn check_services_through_the_agents_life(datapath: &str) -> anyhow::Result<()> {
    let node = Node::new(datapath)?;
    let _bpffs = Bpffs::mount(&node.directory.0.join("bpf"))?;
    let _server = serve(&node, "10.244.1.5")?;
    let _other = serve(&node, "10.244.1.6")?;
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
        ask(&node, url),
        Ok("from 10.244.1.5".to_owned()),
        "{}",
        agent.output()
    );

    let client = ask_on(&node, url)?;
    let progress = |what: &str| {
        let before = lines(&client, "from");
        wait::until_value(
            what,
            DEADLINE,
            || lines(&client, "from"),
            |now| *now >= before + 20,
        );
    };
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
        || ask(&node, url),
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
    assert_eq!(ask(&node, url), Ok("from 10.244.1.6".to_owned()));
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
