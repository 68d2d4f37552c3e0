//! Figures of a running cluster, printed and not judged: pod created to Running, endpoint ready to first packet.
//!
//! `figures` uses `$KUBECONFIG` and the cluster that `causeway up` made (it enters node-2 to send the packets).
//! `figures probe ADDRESS:PORT` is what it runs there: connects until it succeeds, then prints the time in
//! microseconds since the epoch.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

/// How often each figure is taken.
const ROUNDS: usize = 11;
/// How long one round may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// The node that serves and the node that asks.
const SERVER_NODE: &str = "node-1";
const CLIENT_NODE: &str = "node-2";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => tokio::runtime::Runtime::new()?.block_on(figures()),
        [command, address] if command == "probe" => probe(address.parse().context("ADDRESS:PORT")?),
        _ => bail!("usage: figures | figures probe ADDRESS:PORT"),
    }
}

async fn figures() -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    let (mut running, mut first_packet) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("figures-{}-{round}", std::process::id());
        let result = one_round(&pods, &services, &slices, &name).await;
        let _ = services.delete(&name, &DeleteParams::default()).await;
        let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        let (until_running, until_packet) = result?;
        running.push(until_running);
        first_packet.push(until_packet);
    }
    print("pod created to Running", 500, running);
    print(
        "endpoint ready to first packet from another node",
        100,
        first_packet,
    );
    Ok(())
}

/// One pod with a Service of its own: how long until it ran, and how long after its endpoint was ready until a
/// packet from another node got an answer.
async fn one_round(
    pods: &Api<Pod>,
    services: &Api<Service>,
    slices: &Api<EndpointSlice>,
    name: &str,
) -> anyhow::Result<(Duration, Duration)> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"selector": {"figures": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    let service = services.create(&PostParams::default(), &service).await?;
    let address = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .context("the Service has no ClusterIP")?;
    let mut prober = start_probe(&format!("{address}:80"))?;

    let version = pods
        .list(&Default::default())
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let slice_version = slices
        .list(&Default::default())
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let began = Instant::now();
    pods.create(&PostParams::default(), &pod(name)?).await?;
    let ready = tokio::spawn(endpoint_ready(slices.clone(), name.to_owned(), slice_version));
    wait_running(pods, name, &version).await?;
    let until_running = began.elapsed();
    let ready = ready.await??;
    let answered = tokio::task::spawn_blocking(move || read_probe(&mut prober)).await??;
    Ok((until_running, answered.saturating_sub(ready)))
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"figures": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": SERVER_NODE},
            "containers": [{
                "name": "server",
                "image": "causeway/testserver:v1",
                "args": ["serve", "--http", ":8080"],
            }],
        },
    }))?)
}

async fn wait_running(pods: &Api<Pod>, name: &str, version: &str) -> anyhow::Result<()> {
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&params, version).await?.boxed();
    let wait = async {
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                continue;
            };
            if pod.status.and_then(|status| status.phase).as_deref() == Some("Running") {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .context("the pod did not run in time")?
}

/// Time since the epoch at which a slice of the Service showed a ready endpoint.
async fn endpoint_ready(
    slices: Api<EndpointSlice>,
    service: String,
    version: String,
) -> anyhow::Result<Duration> {
    let params = WatchParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut events = slices.watch(&params, &version).await?.boxed();
    let wait = async {
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(slice) | WatchEvent::Modified(slice)) = event else {
                continue;
            };
            let mut conditions = slice
                .endpoints
                .iter()
                .filter_map(|endpoint| endpoint.conditions.as_ref());
            if conditions.any(|conditions| conditions.ready == Some(true)) {
                return Ok(SystemTime::now().duration_since(UNIX_EPOCH)?);
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .with_context(|| format!("{service}: no ready endpoint in time"))?
}

/// Starts this program inside the client's node, in its network namespace and in its cgroup, where the socket hooks
/// of its pods are.
fn start_probe(address: &str) -> anyhow::Result<Child> {
    let this = std::env::current_exe()?;
    let cluster = this.with_file_name("causeway-cluster");
    Command::new(cluster)
        .args([
            "enter",
            "--net",
            &format!("/run/netns/causeway-{CLIENT_NODE}"),
            "--cgroup",
        ])
        .arg(node_cgroup()?)
        .arg("--")
        .arg(&this)
        .args(["probe", address])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the probe")
}

fn node_cgroup() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2");
    let mount = mount
        .map(|fields| fields[1].to_owned())
        .context("cgroup v2 is not mounted")?;
    Ok(PathBuf::from(mount)
        .join("causeway")
        .join(CLIENT_NODE)
        .join("system"))
}

fn read_probe(prober: &mut Child) -> anyhow::Result<Duration> {
    let mut text = String::new();
    prober
        .stdout
        .take()
        .context("the probe has no output")?
        .read_to_string(&mut text)?;
    prober.wait()?;
    let micros = text
        .trim()
        .parse()
        .with_context(|| format!("the probe said {text:?}"))?;
    Ok(Duration::from_micros(micros))
}

fn probe(address: SocketAddr) -> anyhow::Result<()> {
    let give_up = Instant::now() + DEADLINE;
    while Instant::now() < give_up {
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
            println!("{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("{address} did not answer")
}

fn print(what: &str, goal_ms: u64, mut values: Vec<Duration>) {
    values.sort_unstable();
    let at = |percent: usize| {
        values
            .get((values.len() - 1) * percent / 100)
            .map_or(0.0, |v| v.as_secs_f64() * 1e3)
    };
    println!(
        "   {what:<50} p50 {:>6.1} ms   (goal {goal_ms} ms; fastest {:.1}, slowest {:.1}, {} rounds)",
        at(50),
        at(0),
        at(100),
        values.len()
    );
}
