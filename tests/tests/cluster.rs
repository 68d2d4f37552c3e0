//! One cluster of three nodes, and what real clients do with it: kubectl of several versions, kube's Rust client,
//! pods that talk, processes that are killed.
//!
//! A harness of its own, because all of it happens on one cluster that has to come down at the end.

#[path = "cluster/commands.rs"]
mod commands;
#[path = "cluster/pods.rs"]
mod pods;
#[path = "cluster/resolvers.rs"]
mod resolvers;
#[path = "cluster/roles.rs"]
mod roles;
#[path = "cluster/streams.rs"]
mod streams;
#[path = "cluster/workloads.rs"]
mod workloads;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal;
use tests::cluster::{Cluster, everything, process_of};
use tests::process::{Place, command, run_in};
use tests::wait;

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(90);

type Scenario = fn(&Cluster) -> anyhow::Result<()>;

/// In order: later ones use what earlier ones applied.
const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "apply_makes_a_deployment_of_three_on_three_nodes",
        apply_makes_a_deployment,
    ),
    (
        "pods_on_every_node_reach_the_service_by_address_and_by_name",
        pods_reach_the_service,
    ),
    (
        "resolvers_of_every_kind_find_names_under_every_dns_policy",
        resolvers::find_names,
    ),
    (
        "another_nodes_dns_server_answers_where_the_own_one_stands_still",
        another_dns_server_answers,
    ),
    ("node_ports_answer_from_outside_on_every_node", node_ports_answer),
    ("the_socket_hook_fires_for_pods", the_hook_fires_for_pods),
    ("get_prints_wide_yaml_and_jsonpath", get_prints),
    ("get_watch_shows_changes_as_they_come", get_watch),
    ("describe_tells_endpoints_and_events", describe),
    ("label_and_patch_change_objects", label_and_patch),
    ("set_image_rolls_out_and_back", set_image),
    ("logs_follow_a_running_pod", logs_follow),
    ("every_kubectl_applies_waits_and_deletes", every_kubectl),
    (
        "every_kubectl_creates_and_deletes_with_and_without_dependents",
        commands::create_with_every_kubectl,
    ),
    (
        "lists_come_in_chunks_of_one_revision",
        commands::lists_come_in_chunks,
    ),
    (
        "a_budget_holds_a_drain_up_until_it_can_spare_a_pod",
        commands::a_budget_holds_a_drain_up,
    ),
    ("the_rust_client_lists_and_watches", rust_client),
    ("a_pod_to_talk_to_is_ready", streams::start),
    ("every_kubectl_executes_commands", streams::exec),
    (
        "every_kubectl_copies_files_and_opens_a_shell_on_a_terminal",
        streams::copies_and_shells,
    ),
    ("every_kubectl_attaches", streams::attach),
    ("every_kubectl_forwards_ports", streams::port_forward),
    (
        "every_kubectl_reaches_pods_services_and_nodes_by_proxy",
        streams::proxy,
    ),
    (
        "the_rust_client_executes_and_forwards_ports",
        streams::rust_client,
    ),
    (
        "a_client_that_goes_takes_its_commands_streams_along",
        streams::gone_clients,
    ),
    ("bad_objects_get_kubernetes_own_errors", bad_objects),
    (
        "roles_allow_what_they_say_and_nothing_else",
        roles::allow_and_refuse,
    ),
    (
        "the_dns_server_needs_no_more_than_its_manifest_gives_it",
        roles::serve_the_dns_server,
    ),
    (
        "an_image_that_is_not_there_is_told_as_kubernetes_tells_it",
        missing_image,
    ),
    (
        "images_are_built_imported_listed_and_removed",
        pods::images_are_built_imported_listed_and_removed,
    ),
    (
        "an_image_that_cannot_be_had_is_told_by_policy",
        pods::an_image_that_cannot_be_had_is_told_by_policy,
    ),
    (
        "init_containers_run_in_order_and_hold_back_the_others",
        pods::init_containers_run_in_order_and_hold_back_the_others,
    ),
    (
        "sidecars_start_before_and_end_after_the_others",
        pods::sidecars_start_before_and_end_after_the_others,
    ),
    (
        "commands_in_a_container_are_its_probes_and_hooks",
        pods::commands_in_a_container_are_its_probes_and_hooks,
    ),
    (
        "volumes_of_every_source_are_there",
        pods::volumes_of_every_source_are_there,
    ),
    (
        "a_changed_config_map_reaches_its_volume_as_a_whole",
        pods::a_changed_config_map_reaches_its_volume_as_a_whole,
    ),
    (
        "a_pod_of_the_node_sees_what_the_node_has",
        pods::a_pod_of_the_node_sees_what_the_node_has,
    ),
    (
        "a_pod_that_cannot_be_prepared_is_told_why",
        pods::a_pod_that_cannot_be_prepared_is_told_why,
    ),
    (
        "daemon_sets_follow_nodes_and_templates",
        workloads::daemon_sets_follow_nodes_and_templates,
    ),
    (
        "rollouts_go_back_pause_and_report",
        workloads::rollouts_go_back_pause_and_report,
    ),
    ("budgets_tell_what_may_go", workloads::budgets_tell_what_may_go),
    (
        "pods_stand_apart_and_the_rest_is_told_why_it_waits",
        workloads::pods_stand_apart_and_the_rest_is_told_why_it_waits,
    ),
    (
        "stateful_sets_keep_names_and_order",
        workloads::stateful_sets_keep_names_and_order,
    ),
    ("jobs_run_to_their_end", workloads::jobs_run_to_their_end),
    (
        "cron_jobs_start_jobs_at_their_times",
        workloads::cron_jobs_start_jobs_at_their_times,
    ),
    (
        "a_node_that_falls_silent_is_left_and_heals",
        workloads::a_node_that_falls_silent_is_left_and_heals,
    ),
    ("a_pods_annotations_bound_its_bandwidth", bandwidth),
    (
        "the_control_plane_restarts_while_traffic_flows",
        control_plane_restarts,
    ),
    (
        "agents_and_kubelets_restart_while_traffic_flows",
        node_daemons_restart,
    ),
    ("a_deleted_namespace_takes_its_objects_along", namespace_deletion),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runnable = tests::privileged("a cluster of three nodes");
    if arguments.list || !runnable {
        let trials = SCENARIOS
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let state_dir = PathBuf::from(format!("/var/lib/cwt-cluster-{}", std::process::id()));
    let cluster = match Cluster::up(&state_dir, &[]) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    // The trials outlive no call of `run`; a leaked reference lets them be 'static, and the cluster is taken down by
    // hand below.
    let cluster: &'static Cluster = Box::leak(Box::new(cluster));
    let trials = SCENARIOS.iter().map(|(name, scenario)| {
        Trial::test(*name, move || {
            scenario(cluster).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if conclusion.has_failed() {
        cluster.print_logs();
    }
    match cluster.causeway("down", &[]) {
        Ok(output) if output.status.success() => conclusion.exit_code(),
        Ok(output) => {
            eprintln!("causeway down: {}", everything(&output));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("causeway down: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn example(name: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn apply_makes_a_deployment(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&example("hello.yaml")?)?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let nodes = cluster.run(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    let nodes: BTreeSet<&str> = nodes.split_whitespace().collect();
    ensure!(
        nodes == BTreeSet::from(["node-1", "node-2", "node-3"]),
        "pods stand on {nodes:?}"
    );
    Ok(())
}

fn pods_reach_the_service(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&example("clients.yaml")?)?;
    for node in 1..=3 {
        let pod = format!("client-node-{node}");
        cluster.await_output(
            &["get", "pod", &pod, "-o", "jsonpath={.status.phase}"],
            "Succeeded",
            LATER,
        );
        for container in ["by-ip", "by-name"] {
            let log = cluster.run(&["logs", &pod, "-c", container])?;
            let answers = log
                .lines()
                .filter(|line| line.split(' ').nth(1) == Some("200"))
                .count();
            ensure!(answers == 40, "{pod} {container}: {log}");
            // Forty random choices miss one of three pods once in three million runs.
            let pods: BTreeSet<_> = log
                .lines()
                .filter_map(|line| line.split(' ').nth(2))
                .filter(|pod| pod.starts_with("hello-"))
                .collect();
            ensure!(pods.len() == 3, "{pod} {container}: answered by {pods:?}");
        }
    }
    Ok(())
}

fn another_dns_server_answers(cluster: &Cluster) -> anyhow::Result<()> {
    let address = cluster.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    let on_node = "jsonpath={.items[?(@.spec.nodeName==\"node-1\")].metadata.uid}";
    let uid = cluster.run(&["get", "pods", "-l", "app=hello", "-o", on_node])?;
    let place = Place::beside(process_of(&uid).context("the pod has no process")?)?;
    let ask = |over: &str| -> anyhow::Result<String> {
        let mut dig = command(&place, "dig");
        dig.args(["+short", "+tries=1", "+time=2", over, "@10.96.0.10"])
            .arg("hello.default.svc.cluster.local");
        Ok(run_in(&place, &mut dig, b"")?.stdout.trim().to_owned())
    };
    let is_answered = || {
        ["+notcp", "+tcp"]
            .iter()
            .all(|over| ask(over).is_ok_and(|answer| answer == address))
    };
    let server = nix::unistd::Pid::from_raw(cluster.pid("node-1-dns")?);
    ensure!(is_answered(), "by its own server");
    let _stopped = Stopped::now(server)?;
    wait::until_value("another server answers", SOON, is_answered, |answered| *answered);
    // Its own is one of the three endpoints.
    let unanswered = (0..10).filter(|_| !is_answered()).count();
    ensure!(unanswered == 0, "{unanswered} of ten times");
    Ok(())
}

/// A process that stands still, and goes on at the end.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn now(process: nix::unistd::Pid) -> nix::Result<Self> {
        signal::kill(process, signal::SIGSTOP).map(|()| Self(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended.
        let _ = signal::kill(self.0, signal::SIGCONT);
    }
}

fn node_ports_answer(cluster: &Cluster) -> anyhow::Result<()> {
    let names = cluster.run(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ])?;
    let pods: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
    for address in ["172.30.0.11", "172.30.0.12", "172.30.0.13"] {
        let mut missing = pods.clone();
        // Each try picks one of three at random: eighty tries miss one with a chance below one in 10^13.
        for _ in 0..80 {
            missing.remove(&hostname_behind(&format!("{address}:30080"))?);
        }
        ensure!(missing.is_empty(), "{address}: no answer from {missing:?}");
    }
    Ok(())
}

/// The name of the pod that answers an HTTP request.
fn hostname_behind(address: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let address = address.parse().context("address")?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let line = answer.lines().find_map(|line| line.strip_prefix("hostname: "));
    line.map(str::to_owned)
        .with_context(|| format!("no hostname in {answer:?}"))
}

fn the_hook_fires_for_pods(cluster: &Cluster) -> anyhow::Result<()> {
    // The agent looks at the hook's counters every ten seconds.
    let before = wait::until("the counter of connects", SOON, || translated_connects("node-2"));
    cluster.run(&["delete", "pod", "client-node-2", "--wait=true"])?;
    cluster.apply(&example("clients.yaml")?)?;
    let phase = ["get", "pod", "client-node-2", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Succeeded", LATER);
    let now = || translated_connects("node-2").unwrap_or_default();
    wait::until_value("80 connects of a pod translated", SOON, now, |after| {
        *after >= before + 80
    });
    Ok(())
}

/// The agent's counter of connects that the socket hook translated, as its metrics say it.
fn translated_connects(node: &str) -> anyhow::Result<u64> {
    let namespace = netlink::Namespace::named(&format!("causeway-{node}"))?;
    let text = namespace.run(|| http_get("127.0.0.1:10249", "/metrics"))??;
    let line = text
        .lines()
        .find(|line| line.starts_with("causeway_hook_verdicts_total") && line.contains("translated"));
    let line = line.with_context(|| format!("no counter of translated connects in {text}"))?;
    let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter of connects"
    )]
    Ok(value as u64)
}

fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn get_prints(cluster: &Cluster) -> anyhow::Result<()> {
    let wide = cluster.run(&["get", "pods", "-o", "wide", "-l", "app=hello"])?;
    let head = wide.lines().next().unwrap_or_default();
    let columns: Vec<&str> = head.split_whitespace().collect();
    ensure!(
        columns
            == [
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "IP",
                "NODE",
                "NOMINATED",
                "NODE",
                "READINESS",
                "GATES"
            ],
        "{wide}"
    );
    ensure!(
        wide.lines()
            .skip(1)
            .all(|line| line.contains("1/1") && line.contains("Running")),
        "{wide}"
    );
    let services = cluster.run(&["get", "services"])?;
    ensure!(
        services.contains("hello-nodeport") && services.contains("80:30080/TCP"),
        "{services}"
    );
    let yaml = cluster.run(&["get", "deployment", "hello", "-o", "yaml"])?;
    ensure!(
        yaml.contains("kind: Deployment") && yaml.contains("readyReplicas: 3"),
        "{yaml}"
    );
    let ready = cluster.run(&[
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ])?;
    ensure!(ready == "3", "{ready}");
    let nodes = cluster.run(&["get", "nodes", "-o", "wide"])?;
    ensure!(
        nodes.contains("172.30.0.13") && nodes.contains("v1.33"),
        "{nodes}"
    );
    Ok(())
}

fn get_watch(cluster: &Cluster) -> anyhow::Result<()> {
    let mut watch = cluster
        .kubectl("kubectl", &["get", "configmaps", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("no output")?).lines();
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: seen-by-watch}, data: {a: b}}")?;
    let seen = lines
        .map_while(Result::ok)
        .any(|line| line == "configmap/seen-by-watch");
    watch.kill()?;
    watch.wait()?;
    ensure!(seen, "the watch ended without showing the new object");
    Ok(())
}

fn describe(cluster: &Cluster) -> anyhow::Result<()> {
    let service = cluster.run(&["describe", "service", "hello"])?;
    ensure!(
        service.contains("Selector:") && service.contains(":8080"),
        "{service}"
    );
    let names = cluster.run(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])?;
    let pod = cluster.run(&["describe", "pod", &names])?;
    for wanted in ["Scheduled", "Started", "causeway/testserver:v1", "Readiness:"] {
        ensure!(pod.contains(wanted), "{wanted} is missing in {pod}");
    }
    let node = cluster.run(&["describe", "node", "node-1"])?;
    ensure!(
        node.contains("Capacity:") && node.contains("KubeletReady"),
        "{node}"
    );
    Ok(())
}

fn label_and_patch(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run(&["label", "deployment", "hello", "tier=front", "--overwrite"])?;
    let by_label = cluster.run(&["get", "deployments", "-l", "tier=front", "-o", "name"])?;
    ensure!(by_label.trim() == "deployment.apps/hello", "{by_label}");
    // Strategic merge: the container is found by its name, and its other fields stay.
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"server","env":[{"name":"COLOUR","value":"blue"}]}]}}}}"#;
    cluster.run(&["patch", "deployment", "hello", "-p", strategic])?;
    let container = [
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.spec.template.spec.containers[*].image} {.spec.template.spec.containers[0].env[0].value}",
    ];
    let text = cluster.run(&container)?;
    ensure!(text == "causeway/testserver:v1 blue", "{text}");
    cluster.run(&[
        "patch",
        "deployment",
        "hello",
        "--type=merge",
        "-p",
        r#"{"metadata":{"labels":{"tier":null}}}"#,
    ])?;
    cluster.run(&[
        "patch",
        "deployment",
        "hello",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":4}]"#,
    ])?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
    cluster.await_output(
        &[
            "get",
            "deployment",
            "hello",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ],
        "4",
        SOON,
    );
    cluster.run(&[
        "patch",
        "deployment",
        "hello",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":3}}"#,
    ])?;
    cluster.await_output(
        &["get", "deployment", "hello", "-o", "jsonpath={.status.replicas}"],
        "3",
        SOON,
    );
    Ok(())
}

fn set_image(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run(&["set", "image", "deployment/hello", "server=causeway/not-there:v9"])?;
    // The rollout stops at the first pod that cannot start; the old pods go on.
    let waiting = [
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}",
    ];
    cluster.await_that(&waiting, LATER, |text| text.contains("ImagePull"));
    let available = cluster.run(&[
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.status.availableReplicas}",
    ])?;
    ensure!(
        available == "3",
        "{available} replicas are available while a rollout is stuck"
    );
    cluster.run(&[
        "set",
        "image",
        "deployment/hello",
        "server=causeway/testserver:v1",
    ])?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
    let history = cluster.run(&["rollout", "history", "deployment/hello"])?;
    ensure!(history.contains("REVISION"), "{history}");
    Ok(())
}

fn logs_follow(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&example("load.yaml")?)?;
    cluster.await_output(
        &["get", "pod", "load", "-o", "jsonpath={.status.phase}"],
        "Running",
        SOON,
    );
    let mut follow = cluster
        .kubectl("kubectl", &["logs", "-f", "load", "--tail=1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(follow.stdout.take().context("no output")?).lines();
    let followed = lines.map_while(Result::ok).take(50).count();
    follow.kill()?;
    follow.wait()?;
    ensure!(followed == 50, "the log ended after {followed} lines");
    cluster.run(&["delete", "pod", "load", "--grace-period=1"])?;
    Ok(())
}

/// `kubectl` on PATH, the minors that lie beside the file it links to, and the oldest one beside the build.
fn kubectls() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("kubectl")];
    if let Some(real) = std::env::var_os("PATH")
        .and_then(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join("kubectl"))
                .find(|file| file.exists())
        })
        .and_then(|file| std::fs::canonicalize(file).ok())
    {
        for minor in 27..=33 {
            let beside = real.with_file_name(format!("kubectl.1.{minor}"));
            match beside.exists() {
                true => found.push(beside),
                false => tests::skipped(
                    &format!("kubectl 1.{minor}"),
                    "it is not beside the kubectl on PATH",
                ),
            }
        }
    }
    let oldest = tests::cluster::programs().join("../tools/usr/bin/kubectl");
    if oldest.exists() {
        found.push(oldest);
    } else {
        tests::skipped(
            "kubectl 1.20",
            "target/tools/usr/bin/kubectl is missing: ./setup.sh test",
        );
    }
    found
}

fn every_kubectl(cluster: &Cluster) -> anyhow::Result<()> {
    let manifest = std::env::temp_dir().join(format!("cwt-{}.yaml", std::process::id()));
    std::fs::write(
        &manifest,
        "apiVersion: apps/v1
kind: Deployment
metadata: {name: small}
spec:
  replicas: 1
  selector: {matchLabels: {app: small}}
  template:
    metadata: {labels: {app: small}}
    spec: {containers: [{name: server, image: 'causeway/testserver:v1', args: [serve]}], terminationGracePeriodSeconds: 1}
",
    )?;
    let file = manifest.display().to_string();
    for kubectl in kubectls() {
        let program = kubectl.display().to_string();
        let version = Command::new(&kubectl)
            .args(["version", "--client"])
            .output()
            .context("kubectl version")?;
        println!(
            "{program}: {}",
            String::from_utf8_lossy(&version.stdout)
                .trim()
                .lines()
                .next()
                .unwrap_or_default()
        );
        let commands: [&[&str]; 5] = [
            &["apply", "-f", &file],
            &["rollout", "status", "deployment/small", "--timeout=60s"],
            &["apply", "-f", &file],
            &[
                "wait",
                "--for=condition=Available",
                "deployment/small",
                "--timeout=30s",
            ],
            &["delete", "-f", &file],
        ];
        for arguments in commands {
            let output = cluster.kubectl(&program, arguments).output()?;
            ensure!(
                output.status.success(),
                "{program} {}: {}",
                arguments.join(" "),
                everything(&output)
            );
        }
        cluster.await_output(&["get", "pods", "-l", "app=small", "-o", "name"], "", SOON);
    }
    std::fs::remove_file(manifest)?;
    Ok(())
}

fn rust_client(cluster: &Cluster) -> anyhow::Result<()> {
    use futures::{StreamExt as _, TryStreamExt as _};
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::runtime::watcher;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let client = kube::Client::try_from(config)?;
        let pods = kube::Api::<Pod>::default_namespaced(client.clone())
            .list(&Default::default())
            .await?;
        ensure!(pods.items.len() >= 3, "{} pods", pods.items.len());
        for config in [
            watcher::Config::default(),
            watcher::Config::default().streaming_lists(),
        ] {
            let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(client.clone());
            let mut events = watcher(maps, config).boxed();
            let first_list = async {
                while let Some(event) = events.try_next().await? {
                    if matches!(event, watcher::Event::InitDone) {
                        return anyhow::Ok(());
                    }
                }
                anyhow::bail!("the watch ended before the first list was complete")
            };
            tokio::time::timeout(SOON, first_list)
                .await
                .context("no complete list in time")??;
        }
        Ok(())
    })
}

fn bad_objects(cluster: &Cluster) -> anyhow::Result<()> {
    let service =
        |spec: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: bad}}, spec: {spec}}}");
    let rows = [
        ("{apiVersion: v1, kind: Service", "error"),
        (
            "{apiVersion: v1, kind: Nonsense, metadata: {name: x}}",
            "no matches for kind \"Nonsense\"",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
            "spec.selector: Required value",
        ),
        (
            &service("{type: NodePort, ports: [{port: 80, nodePort: 80}]}"),
            "The range of valid ports is 30000-32767",
        ),
        (
            &service("{type: NodePort, ports: [{port: 80, nodePort: 30080}]}"),
            "provided port is already allocated",
        ),
        (
            &service("{clusterIP: 192.0.2.1, ports: [{port: 80}]}"),
            "The range of valid IPs is 10.96.0.0/12",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: Bad_Name}, spec: {containers: [{name: c, image: i}]}}",
            "metadata.name: Invalid value",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, lifecycle: {preStop: {}}}]}}",
            "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: nowhere}}",
            "namespaces \"nowhere\" not found",
        ),
    ];
    for (manifest, wanted) in rows {
        let said = cluster.refused(&["apply", "-f", "-"], manifest)?;
        ensure!(
            said.contains(wanted),
            "{manifest}\nwanted: {wanted}\nsaid:   {said}"
        );
    }
    let left = cluster.run(&["get", "services,deployments", "-o", "name"])?;
    ensure!(!left.contains("bad"), "something half-made stayed: {left}");
    Ok(())
}

fn missing_image(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = |name: &str, policy: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'nowhere/nothing:v1', imagePullPolicy: {policy}}}]}}}}"
        )
    };
    for (name, policy, reasons) in [
        ("no-image", "IfNotPresent", ["ErrImagePull", "ImagePullBackOff"]),
        ("never-image", "Never", ["ErrImageNeverPull"; 2]),
    ] {
        cluster.apply(&pod(name, policy))?;
        let reason = [
            "get",
            "pod",
            name,
            "-o",
            "jsonpath={.status.containerStatuses[0].state.waiting.reason}",
        ];
        cluster.await_that(&reason, SOON, |text| reasons.contains(&text));
        let said = cluster.refused(&["logs", name], "")?;
        ensure!(said.contains("is waiting to start"), "{said}");
        cluster.run(&["delete", "pod", name])?;
    }
    Ok(())
}

/// That the bounds hold is shown where the plugin is, `overlay/tests/nodes/capabilities.rs`.
fn bandwidth(cluster: &Cluster) -> anyhow::Result<()> {
    let apply = |name: &str, ingress: &str| {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{kubernetes.io/ingress-bandwidth: {ingress}}}}}, spec: {{nodeName: node-1, terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'causeway/pause:v1'}}]}}}}"
        ))
    };
    let queues = || {
        let namespace = netlink::Namespace::named("causeway-node-1")?;
        let tc = namespace.run(|| std::process::Command::new("tc").args(["qdisc", "show"]).output())??;
        anyhow::Ok(String::from_utf8(tc.stdout)?)
    };
    let limited = |queues: &str| {
        queues
            .lines()
            .any(|line| line.contains("tbf") && line.contains("rate 21Mbit"))
    };
    ensure!(!limited(&queues()?), "{}", queues()?);
    apply("limited", "21M")?;
    let phase = ["get", "pod", "limited", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Running", SOON);
    ensure!(limited(&queues()?), "{}", queues()?);
    cluster.run(&["delete", "pod", "limited"])?;
    // Its sandbox goes after its object.
    let left = || queues().unwrap_or_else(|error| error.to_string());
    wait::until_value("no queue", SOON, left, |queues| !limited(queues));

    apply("boundless", "fast")?;
    let events = [
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=boundless",
        "-o",
        "jsonpath={.items[*].message}",
    ];
    let told = "annotation kubernetes.io/ingress-bandwidth: \"fast\" is not a quantity from 1k to 1P";
    cluster.await_that(&events, SOON, |text| text.contains(told));
    cluster.run(&["delete", "pod", "boundless"])?;
    Ok(())
}

/// Runs `disturb` while a pod asks the Service without pause, and returns how many requests failed.
fn failures_under_load(
    cluster: &Cluster,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    cluster.apply(&example("load.yaml")?)?;
    let log = ["logs", "load"];
    let answers = |text: &str| {
        text.lines()
            .filter(|line| line.split(' ').nth(1) == Some("200"))
            .count()
    };
    cluster.await_that(&log, LATER, |text| answers(text) >= 20);
    disturb()?;
    let seen = answers(&cluster.run(&log)?);
    let text = cluster.await_that(&log, LATER, |text| answers(text) >= seen + 100);
    cluster.run(&["delete", "pod", "load", "--grace-period=1"])?;
    let failed: Vec<&str> = text
        .lines()
        .filter(|line| line.split(' ').nth(1) != Some("200"))
        .collect();
    if !failed.is_empty() {
        println!("failed requests:\n{}", failed.join("\n"));
    }
    Ok(failed.len())
}

fn kill(pid: i32) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    Ok(kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
}

fn kill_and_await_successor(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let before = cluster.pid(name)?;
    kill(before)?;
    wait::until_value(
        name,
        SOON,
        || cluster.pid(name).unwrap_or(before),
        |pid| *pid != before,
    );
    Ok(())
}

fn control_plane_restarts(cluster: &Cluster) -> anyhow::Result<()> {
    let started = [
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ];
    let before = cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let version = cluster.run(&[
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ])?;
    let failed = failures_under_load(cluster, || {
        kill_and_await_successor(cluster, "control-plane")?;
        cluster.await_that(&["get", "--raw", "/readyz"], LATER, |text| text.contains("ok"));
        Ok(())
    })?;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])? == before,
        "pods were replaced"
    );
    ensure!(
        cluster
            .run(&started)?
            .split_whitespace()
            .all(|count| count == "0"),
        "containers were restarted"
    );
    ensure!(
        cluster.run(&[
            "get",
            "deployment",
            "hello",
            "-o",
            "jsonpath={.metadata.resourceVersion}"
        ])? >= version,
        "the store went back in time"
    );
    Ok(())
}

fn node_daemons_restart(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let failed = failures_under_load(cluster, || {
        for node in 1..=3 {
            kill_and_await_successor(cluster, &format!("node-{node}-agent"))?;
            kill_and_await_successor(cluster, &format!("node-{node}-kubelet"))?;
        }
        Ok(())
    })?;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])? == before,
        "pods were replaced"
    );
    cluster.await_that(&["get", "nodes"], LATER, |text| {
        text.matches(" Ready ").count() == 3
    });
    Ok(())
}

fn namespace_deletion(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: passing}}")?;
    cluster.await_output(
        &["get", "serviceaccount", "default", "-n", "passing", "-o", "name"],
        "serviceaccount/default",
        SOON,
    );
    let manifest = example("hello.yaml")?.replace("nodePort: 30080", "nodePort: 30081");
    let path = std::env::temp_dir().join(format!("cwt-ns-{}.yaml", std::process::id()));
    std::fs::write(&path, manifest)?;
    cluster.run(&["apply", "-n", "passing", "-f", &path.display().to_string()])?;
    std::fs::remove_file(&path)?;
    cluster.run(&[
        "rollout",
        "status",
        "-n",
        "passing",
        "deployment/hello",
        "--timeout=90s",
    ])?;
    cluster.run(&["delete", "namespace", "passing", "--timeout=90s"])?;
    let left = cluster.run(&[
        "get",
        "pods",
        "-A",
        "-o",
        "jsonpath={.items[*].metadata.namespace}",
    ])?;
    ensure!(!left.contains("passing"), "{left}");
    Ok(())
}
