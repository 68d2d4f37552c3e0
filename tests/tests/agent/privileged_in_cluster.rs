//! The agent as a pod of a DaemonSet: a service account's files, and an API server that is not reached by its Service.

use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::{Authority, FakeApi};
use tests::node::Node;
use tests::process::{self, Process};
use tests::wait;

/// Connecting to an address that nobody answers ends after ten seconds.
const DEADLINE: Duration = Duration::from_secs(40);

const SERVER: &str = "172.30.8.1";

/// Where the container runtime mounts the files.
const MOUNTED: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// Starts an agent that finds the files where a container does, and in its environment the Service.
fn agent(node: &Node, config: &Path, files: &Directory) -> anyhow::Result<Process> {
    let place = node.place();
    let mut command = process::command(&place, "unshare");
    let script = format!(
        "mount -t tmpfs run /run && mkdir -p {MOUNTED} && mount --bind \"$0\" {MOUNTED} && exec \"$@\""
    );
    command.args(["--mount", "/bin/sh", "-c", &script]);
    command.arg(files.path()).arg(program("causeway"));
    command.arg("node").arg("--config").arg(config);
    command.env_remove("NODE_NAME");
    command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    command.env("KUBERNETES_SERVICE_PORT", "443");
    Process::spawn(&place, &mut command)
}

/// As kubelet does: the name then means another file.
fn replace(files: &Directory, name: &str, text: &str) -> anyhow::Result<()> {
    let fresh = files.write(&format!("{name}.new"), text);
    Ok(std::fs::rename(fresh, files.path().join(name))?)
}

/// How many watches fail, and how many there are.
fn failing(node: &Node) -> (usize, usize) {
    let page = node.metrics().unwrap_or_default();
    let watches = page
        .lines()
        .filter(|line| line.starts_with("causeway_watch_failing{"));
    let watches: Vec<_> = watches.collect();
    let failing = watches.iter().filter(|line| line.ends_with(" 1")).count();
    (failing, watches.len())
}

#[track_caller]
fn until(node: &Node, what: &str, condition: impl Fn(usize, usize) -> bool) {
    wait::until_value(
        what,
        DEADLINE,
        || failing(node),
        |(failing, all)| condition(*failing, *all),
    );
}

fn works(failing: usize, all: usize) -> bool {
    all == 5 && failing == 0
}

fn fails(failing: usize, all: usize) -> bool {
    all == 5 && failing == all
}

#[test]
fn a_pods_agent_reaches_the_api_without_its_service_and_reads_replaced_files() -> anyhow::Result<()> {
    if !tests::privileged("a pod's agent reaches the API without its Service") {
        return Ok(());
    }
    let node = Node::new("pod")?;
    let address: IpAddr = SERVER.parse()?;
    let api = FakeApi::start_on(node.lan.switch.run(|| TcpListener::bind((address, 0)))??)?;
    api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    let [first, second] = [Authority::new("first")?, Authority::new("second")?];
    api.speak_tls(&first.issue("kube-apiserver", &[address])?, None)?;
    api.behave(|behaviour| behaviour.token = Some("first".to_owned()));
    let files = Directory::new("account");
    replace(&files, "ca.crt", &first.pem())?;
    replace(&files, "token", "first")?;
    replace(&files, "namespace", "kube-system")?;

    // Nobody serves the Service's address: that would be this agent.
    let by_service = node.configure(json!({"kubernetes": {"kubeconfig": null}}));
    let stranded = agent(&node, &by_service, &files)?;
    until(&node, "the Service's address leads nowhere", fails);
    drop(stranded);

    let port = api.address().port();
    let kubernetes = json!({"kubeconfig": null, "serviceHost": SERVER, "servicePort": port});
    let by_address = node.configure(json!({"kubernetes": kubernetes}));
    let agent = agent(&node, &by_address, &files)?;
    until(&node, "the server's own address leads there", works);

    api.behave(|behaviour| behaviour.token = Some("second".to_owned()));
    api.cut();
    until(&node, "the old token is refused", |failing, _| failing > 0);
    replace(&files, "token", "second")?;
    until(&node, "the new token is used", works);

    api.speak_tls(&second.issue("kube-apiserver", &[address])?, None)?;
    until(&node, "nobody believes a stranger", fails);
    replace(&files, "ca.crt", &second.pem())?;
    until(&node, "the new authority is believed", works);
    drop(agent);
    Ok(())
}
