//! Workloads as people use them with kubectl: DaemonSets, rollouts of Deployments, budgets, placement, nodes that fail.

use std::collections::BTreeSet;
use std::process::Output;

use anyhow::ensure;
use tests::cluster::{Cluster, everything};

use super::traffic::Stopped;
use super::{LATER, SOON};

/// What kubectl prints; a line of arguments has no blanks within one.
fn run(cluster: &Cluster, line: &str) -> anyhow::Result<String> {
    cluster.run(&line.split(' ').collect::<Vec<_>>())
}

fn output(cluster: &Cluster, line: &str) -> anyhow::Result<Output> {
    Ok(cluster
        .kubectl("kubectl", &line.split(' ').collect::<Vec<_>>())
        .output()?)
}

#[track_caller]
fn await_line(cluster: &Cluster, line: &str, wanted: &str) {
    cluster.await_output(&line.split(' ').collect::<Vec<_>>(), wanted, LATER);
}

/// Words that kubectl prints, sorted.
fn words(cluster: &Cluster, line: &str) -> anyhow::Result<Vec<String>> {
    let mut words: Vec<String> = run(cluster, line)?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    words.sort();
    Ok(words)
}

const DAEMON: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: agent, image: "causeway/pause:v1", env: [{name: V, value: "1"}]}]
"#;

const AGENTS_ON: &str = "get pods -l app=agent -o jsonpath={.items[*].spec.nodeName}";
const AGENTS_VERSIONS: &str = "get pods -l app=agent -o jsonpath={.items[*].spec.containers[0].env[0].value}";
/// Desired, current, ready, up to date, available, as `get daemonsets` prints them.
const AGENT_COUNTS: &str = "get daemonset agent --no-headers \
    -o custom-columns=a:status.desiredNumberScheduled,b:status.currentNumberScheduled,c:status.numberReady,\
    d:status.updatedNumberScheduled,e:status.numberAvailable";

pub(super) fn daemon_sets_follow_nodes_and_templates(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    let counts = AGENT_COUNTS.replace("    ", "");
    let await_counts = |wanted: &str| {
        let line: Vec<&str> = counts.split(' ').collect();
        cluster.await_that(&line, LATER, |text| {
            text.split_whitespace().collect::<Vec<_>>().join(" ") == wanted
        })
    };
    cluster.apply(DAEMON)?;
    run("rollout status daemonset/agent --timeout=60s")?;
    ensure!(words(cluster, AGENTS_ON)? == ["node-1", "node-2", "node-3"]);
    await_counts("3 3 3 3 3");
    let table = run("get daemonset agent")?;
    let header: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let columns = "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE";
    ensure!(header.join(" ") == columns, "{table}");

    // Versions: forward, back, and back to one by its number.
    run("set env daemonset/agent V=2")?;
    run("rollout status daemonset/agent --timeout=60s")?;
    ensure!(words(cluster, AGENTS_VERSIONS)? == ["2", "2", "2"]);
    run("rollout undo daemonset/agent")?;
    run("rollout status daemonset/agent --timeout=60s")?;
    ensure!(words(cluster, AGENTS_VERSIONS)? == ["1", "1", "1"]);
    let history = run("rollout history daemonset/agent")?;
    let revisions: Vec<&str> = history
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(
        revisions == ["daemonset.apps/agent", "REVISION", "2", "3"],
        "{history}"
    );
    run("rollout undo daemonset/agent --to-revision=2")?;
    run("rollout status daemonset/agent --timeout=60s")?;
    ensure!(words(cluster, AGENTS_VERSIONS)? == ["2", "2", "2"]);

    // With surge a node has its new pod before the old one goes.
    let surge = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
    cluster.run(&["patch", "daemonset", "agent", "-p", surge])?;
    run("set env daemonset/agent V=3")?;
    run("rollout status daemonset/agent --timeout=60s")?;
    await_line(cluster, AGENTS_VERSIONS, "3 3 3");

    // OnDelete: the template waits for somebody to delete a pod.
    let on_delete = r#"{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}"#;
    cluster.run(&["patch", "daemonset", "agent", "-p", on_delete])?;
    run("set env daemonset/agent V=4")?;
    await_counts("3 3 3 <none> 3");
    let on_node_2 = "get pods -l app=agent --field-selector spec.nodeName=node-2 -o name";
    run(&format!("delete {}", run(on_node_2)?.trim()))?;
    await_counts("3 3 3 1 3");
    ensure!(words(cluster, AGENTS_VERSIONS)? == ["3", "3", "4"]);

    // Nodes: a taint that drives away, a cordon that does not, a label that chooses.
    run("taint node node-3 only=others:NoExecute")?;
    await_counts("2 2 2 1 2");
    let left = run(AGENTS_ON)?;
    ensure!(!left.contains("node-3"), "{left}");
    run("taint node node-3 only-")?;
    await_counts("3 3 3 2 3");
    run("cordon node-1")?;
    let on_node_1 = on_node_2.replace("node-2", "node-1");
    let before = run(&on_node_1)?;
    run(&format!("delete {}", before.trim()))?;
    await_counts("3 3 3 3 3");
    ensure!(run(&on_node_1)? != before, "the pod is still the same");
    run("uncordon node-1")?;
    let on_delete_too = r#"{"spec":{"template":{"spec":{"nodeSelector":{"agents":"here"}}}}}"#;
    cluster.run(&["patch", "daemonset", "agent", "-p", on_delete_too])?;
    await_line(cluster, AGENTS_ON, "");
    run("label node node-2 agents=here")?;
    await_line(cluster, AGENTS_ON, "node-2");
    run("label node node-2 agents-")?;
    await_line(cluster, AGENTS_ON, "");
    run("delete daemonset agent")?;
    await_line(cluster, "get controllerrevisions -l app=agent -o name", "");
    Ok(())
}

fn rolled(edit: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: rolled}}
spec:
  replicas: 2
  {edit}
  selector: {{matchLabels: {{app: rolled}}}}
  template:
    metadata: {{labels: {{app: rolled}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: "causeway/pause:v1", env: [{{name: V, value: "1"}}]}}]
"#
    )
}

pub(super) fn rollouts_go_back_pause_and_report(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    let versions = "get pods -l app=rolled -o jsonpath={.items[*].spec.containers[0].env[0].value}";
    let rolled_out = || run("rollout status deployment/rolled --timeout=60s");
    cluster.apply(&rolled("revisionHistoryLimit: 2"))?;
    rolled_out()?;
    for version in 2..=3 {
        run(&format!("set env deployment/rolled V={version}"))?;
        rolled_out()?;
    }
    run("rollout undo deployment/rolled --to-revision=1")?;
    rolled_out()?;
    await_line(cluster, versions, "1 1");
    run("rollout undo deployment/rolled")?;
    rolled_out()?;
    await_line(cluster, versions, "3 3");
    let missing = everything(&output(
        cluster,
        "rollout undo deployment/rolled --to-revision=9",
    )?);
    ensure!(
        missing.contains("unable to find specified revision 9 in history"),
        "{missing}"
    );

    // Of the versions that run no more two are kept.
    for version in 4..=6 {
        run(&format!("set env deployment/rolled V={version}"))?;
        rolled_out()?;
    }
    let sets =
        "get replicasets -l app=rolled -o jsonpath={.items[*].spec.template.spec.containers[0].env[0].value}";
    cluster.await_that(&sets.split(' ').collect::<Vec<_>>(), LATER, |text| {
        text.split_whitespace().collect::<BTreeSet<_>>() == BTreeSet::from(["4", "5", "6"])
    });

    // Paused: a new template waits, the number of replicas does not.
    run("rollout pause deployment/rolled")?;
    run("set env deployment/rolled V=7")?;
    run("scale deployment/rolled --replicas=3")?;
    await_line(
        cluster,
        "get deployment rolled -o jsonpath={.status.availableReplicas}",
        "3",
    );
    await_line(cluster, versions, "6 6 6");
    let progressing =
        "get deployment rolled -o jsonpath={.status.conditions[?(@.type==\"Progressing\")].reason}";
    await_line(cluster, progressing, "DeploymentPaused");
    run("rollout resume deployment/rolled")?;
    rolled_out()?;
    await_line(cluster, versions, "7 7 7");

    // A version that never becomes available: told after the deadline, scaled in proportion, taken back.
    let stuck = r#"{"spec":{"progressDeadlineSeconds":2,"template":{"spec":{"containers":[{"name":"c",
        "image":"causeway/not-there:v9"}]}}}}"#;
    cluster.run(&["patch", "deployment", "rolled", "-p", stuck])?;
    await_line(cluster, progressing, "ProgressDeadlineExceeded");
    let told = everything(&output(
        cluster,
        "rollout status deployment/rolled --timeout=30s",
    )?);
    ensure!(told.contains("exceeded its progress deadline"), "{told}");
    run("scale deployment/rolled --replicas=6")?;
    let desired = "get replicasets -l app=rolled -o jsonpath={.items[*].spec.replicas}";
    cluster.await_that(&desired.split(' ').collect::<Vec<_>>(), LATER, |text| {
        let sizes = text
            .split_whitespace()
            .filter_map(|size| size.parse::<u32>().ok());
        sizes.sum::<u32>() == 8
    });
    run("rollout undo deployment/rolled")?;
    rolled_out()?;
    run("delete deployment rolled")?;

    // Recreate: no old pod and new one at once.
    cluster.apply(&rolled("strategy: {type: Recreate}"))?;
    rolled_out()?;
    run("set env deployment/rolled V=2")?;
    rolled_out()?;
    let new_started = words(
        cluster,
        "get pods -l app=rolled -o jsonpath={.items[*].metadata.creationTimestamp}",
    )?;
    await_line(cluster, versions, "2 2");
    ensure!(new_started.len() == 2, "{new_started:?}");
    run("delete deployment rolled")?;

    // Pods count as available only after they have been ready for long enough.
    cluster.apply(&rolled("minReadySeconds: 3"))?;
    let counts = "get deployment rolled -o jsonpath={.status.readyReplicas}/{.status.availableReplicas}";
    await_line(cluster, counts, "2/");
    await_line(cluster, counts, "2/2");
    run("delete deployment rolled")?;
    await_line(cluster, "get pods -l app=rolled -o name", "");
    Ok(())
}

pub(super) fn budgets_tell_what_may_go(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    let healthy = "{.status.currentHealthy}/{.status.desiredHealthy}/{.status.expectedPods}";
    let counts =
        format!("get poddisruptionbudget spare -o jsonpath={healthy}/{{.status.disruptionsAllowed}}");
    let reason = "get poddisruptionbudget spare -o jsonpath={.status.conditions[0].reason}";
    run("create poddisruptionbudget spare --selector=app=spare --min-available=2")?;
    await_line(cluster, &counts, "0/2/0/0");
    run("create deployment spare --image=causeway/pause:v1 --replicas=3")?;
    await_line(cluster, &counts, "3/2/3/1");
    await_line(cluster, reason, "SufficientPods");
    let table = run("get poddisruptionbudget spare")?;
    for column in ["MIN AVAILABLE", "MAX UNAVAILABLE", "ALLOWED DISRUPTIONS"] {
        ensure!(table.contains(column), "{table}");
    }
    run("scale deployment spare --replicas=2")?;
    await_line(cluster, &counts, "2/2/2/0");
    await_line(cluster, reason, "InsufficientPods");
    let most = r#"{"spec":{"minAvailable":null,"maxUnavailable":"50%"}}"#;
    cluster.run(&[
        "patch",
        "poddisruptionbudget",
        "spare",
        "--type=merge",
        "-p",
        most,
    ])?;
    await_line(cluster, &counts, "2/1/2/1");
    run("scale deployment spare --replicas=4")?;
    await_line(cluster, &counts, "4/2/4/2");

    // A pod that is not ready may go where the others suffice, or where the budget says so.
    let unready = r#"{"spec":{"template":{"spec":{"containers":[{"name":"pause","image":"causeway/pause:v1",
        "readinessProbe":{"tcpSocket":{"port":9}}}]}},"strategy":{"type":"Recreate","rollingUpdate":null}}}"#;
    cluster.run(&["patch", "deployment", "spare", "-p", unready])?;
    await_line(cluster, &counts, "0/2/4/0");
    let phases = "get pods -l app=spare -o jsonpath={.items[*].status.phase}";
    await_line(cluster, phases, "Running Running Running Running");
    let on = run("get pods -l app=spare -o jsonpath={.items[0].spec.nodeName}")?;
    let drain = format!("drain {on} --pod-selector=app=spare --timeout=3s");
    let said = everything(&output(cluster, &drain)?);
    ensure!(said.contains("violate the pod's disruption budget"), "{said}");
    let always = r#"{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}"#;
    cluster.run(&[
        "patch",
        "poddisruptionbudget",
        "spare",
        "--type=merge",
        "-p",
        always,
    ])?;
    run(&drain.replace("timeout=3s", "timeout=60s"))?;
    run(&format!("uncordon {on}"))?;
    run("delete deployment/spare poddisruptionbudget/spare")?;
    await_line(cluster, "get pods -l app=spare -o name", "");
    Ok(())
}

pub(super) fn pods_stand_apart_and_the_rest_is_told_why_it_waits(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    let apart = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: apart}
spec:
  replicas: 4
  selector: {matchLabels: {app: apart}}
  template:
    metadata: {labels: {app: apart}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "causeway/pause:v1"}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: apart}}}
"#;
    cluster.apply(apart)?;
    await_line(
        cluster,
        "get deployment apart -o jsonpath={.status.availableReplicas}",
        "3",
    );
    let nodes = words(
        cluster,
        "get pods -l app=apart --field-selector status.phase=Running -o jsonpath={.items[*].spec.nodeName}",
    )?;
    ensure!(nodes == ["node-1", "node-2", "node-3"], "{nodes:?}");
    let told = "get pods -l app=apart --field-selector status.phase=Pending \
        -o jsonpath={.items[0].status.conditions[0].message}"
        .replace("        ", "");
    let refused = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.";
    await_line(cluster, &told, refused);
    let waiting = run("get pods -l app=apart --field-selector status.phase=Pending -o name")?;
    let described = run(&format!("describe {}", waiting.trim()))?;
    ensure!(
        described.contains("FailedScheduling") && described.contains(refused),
        "{described}"
    );
    // One of the others goes, and its place is taken.
    run("scale deployment apart --replicas=3")?;
    await_line(
        cluster,
        "get pods -l app=apart --field-selector status.phase=Pending -o name",
        "",
    );

    let spread = apart
        .replace("apart", "even")
        .replace("replicas: 4", "replicas: 6")
        .split("      affinity:")
        .next()
        .unwrap_or_default()
        .to_owned()
        + r#"      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: even}}
"#;
    cluster.apply(&spread)?;
    run("rollout status deployment/even --timeout=60s")?;
    let nodes = words(
        cluster,
        "get pods -l app=even -o jsonpath={.items[*].spec.nodeName}",
    )?;
    ensure!(
        nodes == ["node-1", "node-1", "node-2", "node-2", "node-3", "node-3"],
        "{nodes:?}"
    );
    run("delete deployment apart even")?;
    await_line(cluster, "get pods -l app=even -o name", "");
    Ok(())
}

const LOST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: moved}
spec:
  replicas: 3
  selector: {matchLabels: {app: moved}}
  template:
    metadata: {labels: {app: moved}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "causeway/pause:v1"}]
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
---
apiVersion: v1
kind: Service
metadata: {name: moved}
spec:
  selector: {app: moved}
  ports: [{port: 80}]
"#;

pub(super) fn a_node_that_falls_silent_is_left_and_heals(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    cluster.apply(LOST)?;
    cluster.apply(DAEMON)?;
    run("rollout status deployment/moved --timeout=60s")?;
    run("rollout status daemonset/agent --timeout=60s")?;
    let nodes = "get endpointslices -l kubernetes.io/service-name=moved \
        -o jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].nodeName}"
        .replace("        ", "");
    ensure!(
        words(cluster, &nodes)?.contains(&"node-3".to_owned()),
        "no pod on node-3"
    );
    let agents = words(
        cluster,
        "get pods -l app=agent -o jsonpath={.items[*].metadata.uid}",
    )?;
    let kubelet = nix::unistd::Pid::from_raw(cluster.pid("node-3-kubelet")?);
    {
        let _silent = Stopped::now(kubelet)?;
        let ready = "get node node-3 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        await_line(cluster, ready, "Unknown");
        let taints = "get node node-3 -o jsonpath={.spec.taints[*].effect}";
        cluster.await_that(&taints.split(' ').collect::<Vec<_>>(), SOON, |text| {
            text.split_whitespace().collect::<BTreeSet<_>>() == BTreeSet::from(["NoExecute", "NoSchedule"])
        });
        let table = run("get nodes")?;
        ensure!(table.contains("NotReady"), "{table}");
        // Its pods leave the Service, and others come elsewhere.
        cluster.await_that(&nodes.split(' ').collect::<Vec<_>>(), LATER, |text| {
            let nodes: Vec<&str> = text.split_whitespace().collect();
            nodes.len() == 3 && !nodes.contains(&"node-3")
        });
    }
    let ready = "get node node-3 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    await_line(cluster, ready, "True");
    await_line(cluster, "get node node-3 -o jsonpath={.spec.taints}", "");
    run("rollout status deployment/moved --timeout=60s")?;
    cluster.await_that(&["get", "pods", "-l", "app=moved", "-o", "name"], LATER, |text| {
        text.lines().count() == 3
    });
    // A DaemonSet's pods stay through all of it.
    let after = words(
        cluster,
        "get pods -l app=agent -o jsonpath={.items[*].metadata.uid}",
    )?;
    ensure!(after == agents, "{agents:?} became {after:?}");
    run("delete deployment/moved service/moved daemonset/agent")?;
    await_line(cluster, "get pods -l app=agent -o name", "");
    Ok(())
}

pub(super) fn jobs_run_to_their_end(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    run("create job hello --image=causeway/testserver:v1 -- env")?;
    run("wait --for=condition=complete job/hello --timeout=60s")?;
    let log = run("logs job/hello")?;
    ensure!(log.contains("KUBERNETES_SERVICE_HOST"), "{log}");
    let table = run("get job hello --no-headers")?;
    let cells: Vec<&str> = table.split_whitespace().take(3).collect();
    ensure!(cells == ["hello", "Complete", "1/1"], "{table}");
    // The ended pod stays, counted and let go, until its Job goes.
    let finalizers = "get pods -l job-name=hello -o jsonpath={.items[*].metadata.finalizers}";
    await_line(cluster, finalizers, "");
    run("delete job hello")?;
    await_line(cluster, "get pods -l job-name=hello -o name", "");

    // Each index once, and every pod knows its own.
    let job = |name: &str, rest: &str| {
        format!(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  {rest}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: "causeway/testserver:v1", args: [env]}}]
"#
        )
    };
    let four = "completions: 4\n  parallelism: 2\n  completionMode: Indexed";
    cluster.apply(&job("parts", four))?;
    run("wait --for=condition=complete job/parts --timeout=60s")?;
    let status = run("get job parts -o jsonpath={.status.completedIndexes}/{.status.succeeded}")?;
    ensure!(status == "0-3/4", "{status}");
    let logs = run("logs -l job-name=parts --tail=-1")?;
    let told: BTreeSet<&str> = logs
        .lines()
        .filter_map(|line| line.strip_prefix("JOB_COMPLETION_INDEX="))
        .collect();
    ensure!(told == BTreeSet::from(["0", "1", "2", "3"]), "{logs}");
    run("delete job parts")?;

    // One that cannot succeed fails, and says why.
    let failing = job("failing", "backoffLimit: 0").replace("args: [env]", "args: [no-such-command]");
    cluster.apply(&failing)?;
    run("wait --for=condition=failed job/failing --timeout=60s")?;
    let reason = run("get job failing -o jsonpath={.status.conditions[?(@.type==\"Failed\")].reason}")?;
    ensure!(reason == "BackoffLimitExceeded", "{reason}");
    run("delete job failing")?;

    // One that takes too long is ended, with its pods.
    let sleeping = |name: &str, rest: &str| {
        job(name, rest).replace("causeway/testserver:v1\", args: [env]", "causeway/pause:v1\"")
    };
    cluster.apply(&sleeping("late", "activeDeadlineSeconds: 2"))?;
    run("wait --for=condition=failed job/late --timeout=60s")?;
    let reason = run("get job late -o jsonpath={.status.conditions[?(@.type==\"Failed\")].reason}")?;
    ensure!(reason == "DeadlineExceeded", "{reason}");
    await_line(
        cluster,
        "get pods -l job-name=late --field-selector status.phase=Running -o name",
        "",
    );
    run("delete job late")?;

    // Suspended and resumed; and gone by itself after its end.
    cluster.apply(&sleeping("held", "suspend: true"))?;
    run("wait --for=condition=suspended job/held --timeout=60s")?;
    ensure!(
        run("get pods -l job-name=held -o name")?.is_empty(),
        "a suspended job has pods"
    );
    run("patch job held -p {\"spec\":{\"suspend\":false}}")?;
    await_line(cluster, "get job held -o jsonpath={.status.ready}", "1");
    run("delete job held")?;
    await_line(cluster, "get pods -l job-name=held -o name", "");
    cluster.apply(&job("brief", "ttlSecondsAfterFinished: 1"))?;
    cluster.await_that(&["get", "job", "brief"], LATER, |text| text.contains("not found"));
    await_line(cluster, "get pods -l job-name=brief -o name", "");
    Ok(())
}

pub(super) fn cron_jobs_start_jobs_at_their_times(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    // Two are kept: of Jobs that began in one second the one that is first by its name counts as the older one.
    let often = |policy: &str| {
        format!(
            r#"
apiVersion: batch/v1
kind: CronJob
metadata: {{name: often}}
spec:
  schedule: "@every 2s"
  concurrencyPolicy: {policy}
  successfulJobsHistoryLimit: 2
  jobTemplate:
    spec:
      template:
        metadata: {{labels: {{app: often}}}}
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: 0
          containers: [{{name: c, image: "causeway/testserver:v1", args: [env]}}]
"#
        )
    };
    cluster.apply(&often("Allow"))?;
    let last = "get cronjob often -o jsonpath={.status.lastSuccessfulTime}";
    cluster.await_that(&last.split(' ').collect::<Vec<_>>(), LATER, |text| {
        !text.is_empty()
    });
    let table = run("get cronjob often --no-headers")?;
    ensure!(table.contains("@every 2s") && table.contains("False"), "{table}");
    let described = run("describe cronjob often")?;
    ensure!(described.contains("Created job often-"), "{described}");
    run("patch cronjob often -p {\"spec\":{\"suspend\":true}}")?;
    await_line(cluster, "get cronjob often -o jsonpath={.status.active}", "");
    run("create job by-hand --from=cronjob/often")?;
    run("wait --for=condition=complete job/by-hand --timeout=60s")?;
    run("delete job/by-hand cronjob/often")?;
    await_line(cluster, "get jobs,pods -l app=often -o name", "");
    Ok(())
}

pub(super) fn stateful_sets_keep_names_and_order(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| run(cluster, line);
    cluster.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: places}
spec: {clusterIP: None, selector: {app: places}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: places}
spec:
  replicas: 3
  serviceName: places
  selector: {matchLabels: {app: places}}
  template:
    metadata: {labels: {app: places}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "causeway/testserver:v1", args: [serve, --http, ":80"], env: [{name: V, value: "1"}]}]
"#,
    )?;
    run("rollout status statefulset/places --timeout=60s")?;
    ensure!(
        words(cluster, "get pods -l app=places -o name")? == ["pod/places-0", "pod/places-1", "pod/places-2"]
    );
    let table = run("get statefulset places --no-headers")?;
    ensure!(table.contains("3/3"), "{table}");
    let name = "places-1.places.default.svc.cluster.local";
    let address = run("get pod places-1 -o jsonpath={.status.podIP}")?;
    let found = cluster.await_that(
        &["exec", "places-0", "--", "/testserver", "resolve", name],
        LATER,
        |text| text.contains(&address),
    );
    ensure!(found.contains(&address), "{found}");

    // A pod that is deleted comes back under its name.
    let before = run("get pod places-1 -o jsonpath={.metadata.uid}")?;
    run("delete pod places-1")?;
    run("rollout status statefulset/places --timeout=60s")?;
    cluster.await_that(
        &["get", "pod", "places-1", "-o", "jsonpath={.metadata.uid}"],
        LATER,
        |uid| !uid.contains(&before) && !uid.contains("not found"),
    );

    // Only places from the partition on change; then all; and back.
    let versions = "get pods -l app=places -o jsonpath={.items[*].spec.containers[0].env[0].value}";
    let partition = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}"#;
    cluster.run(&["patch", "statefulset", "places", "-p", partition])?;
    run("set env statefulset/places V=2")?;
    run("rollout status statefulset/places --timeout=60s")?;
    await_line(cluster, versions, "1 1 2");
    cluster.run(&[
        "patch",
        "statefulset",
        "places",
        "-p",
        &partition.replace('2', "0"),
    ])?;
    run("rollout status statefulset/places --timeout=60s")?;
    await_line(cluster, versions, "2 2 2");
    run("rollout undo statefulset/places")?;
    run("rollout status statefulset/places --timeout=60s")?;
    await_line(cluster, versions, "1 1 1");

    run("scale statefulset places --replicas=1")?;
    await_line(cluster, "get pods -l app=places -o name", "pod/places-0");
    run("delete statefulset/places service/places")?;
    await_line(cluster, "get pods -l app=places -o name", "");
    Ok(())
}
