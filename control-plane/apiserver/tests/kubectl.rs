//! What real kubectl of every version on this machine asks of the server alone: no controllers, no nodes.
//! From 1.32 on `create` and its like send protobuf, older ones JSON: what is stored must be the same.

#[expect(dead_code, reason = "a real etcd is for other tests")]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use apiserver::resources::Registry;
use harness::{Etcd, Files, free_port};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(20);
const MINORS: std::ops::RangeInclusive<u32> = 27..=33;

/// One API server on the bundled store; all of it ends with this value.
struct Cluster {
    directory: PathBuf,
    files: Files,
    _server: DropGuard,
    _etcd: Etcd,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Cluster {
    async fn start(name: &str) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("cwt-kubectl-{}-{name}", std::process::id()));
        let port = free_port()?;
        let files = Files::create(&directory, port)?;
        let etcd = Etcd::bundled(&directory).await?;
        let server = apiserver::Server::bind(files.config(port, etcd.endpoint())).await?;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        tokio::spawn(async move { server.run(shutdown).await });
        Ok(Cluster {
            directory,
            files,
            _server: guard,
            _etcd: etcd,
        })
    }

    fn command(&self, kubectl: &Path, line: &str) -> Command {
        let mut command = Command::new(kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.files.kubeconfig())
            .arg("--cache-dir")
            .arg(self.directory.join("cache"))
            .args(line.split(' '));
        command
    }

    fn output(&self, kubectl: &Path, line: &str) -> anyhow::Result<Output> {
        let output = self.command(kubectl, line).output();
        output.with_context(|| format!("start {}", kubectl.display()))
    }

    /// What kubectl prints; a line of arguments has no blanks within one.
    fn run(&self, kubectl: &Path, line: &str) -> anyhow::Result<String> {
        let output = self.output(kubectl, line)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        ensure!(
            output.status.success(),
            "kubectl {line}: {}",
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    #[track_caller]
    fn expect(&self, kubectl: &Path, line: &str, expected: &str) {
        let found = self
            .run(kubectl, line)
            .unwrap_or_else(|error| format!("{error:#}"));
        assert_eq!(found, expected, "{} {line}", kubectl.display());
    }

    /// What kubectl says on standard error when it fails.
    fn refused(&self, kubectl: &Path, line: &str) -> anyhow::Result<String> {
        let output = self.output(kubectl, line)?;
        ensure!(!output.status.success(), "kubectl {line} was not refused");
        Ok(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }

    fn object(&self, kubectl: &Path, what: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(
            &self.run(kubectl, &format!("get {what} -o json"))?,
        )?)
    }

    /// A namespace of one kubectl's own, with the account that pods want; the server may still be starting.
    fn namespace(&self, kubectl: &Path, name: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.run(kubectl, "get --raw /readyz").is_err() {
            ensure!(start.elapsed() < DEADLINE, "the server was not ready");
        }
        self.expect(
            kubectl,
            &format!("create namespace {name}"),
            &format!("namespace/{name} created"),
        );
        self.expect(
            kubectl,
            &format!("create serviceaccount default -n {name}"),
            "serviceaccount/default created",
        );
        Ok(())
    }
}

/// By minor version; what is missing is told.
fn kubectls() -> BTreeMap<u32, PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("kubectl"));
    let real = on_path
        .into_iter()
        .find_map(|file| std::fs::canonicalize(file).ok());
    let beside = |minor: u32| Some(real.as_ref()?.with_file_name(format!("kubectl.1.{minor}")));
    let tools = std::env::current_exe().ok().and_then(|test| {
        let target = test.ancestors().nth(3)?;
        Some(target.join("tools/usr/bin/kubectl"))
    });
    let mut found = BTreeMap::new();
    for (minor, file) in MINORS.map(|minor| (minor, beside(minor))).chain([(20, tools)]) {
        match file.filter(|file| file.is_file()) {
            Some(file) => drop(found.insert(minor, file)),
            None => eprintln!("SKIPPED with kubectl 1.{minor}: it is not on this machine"),
        }
    }
    found
}

/// Without what the server draws or the moment decides.
fn comparable(mut object: Value) -> anyhow::Result<Value> {
    let volume = object.pointer("/spec/volumes/0/name").and_then(Value::as_str);
    let drawn = [object["metadata"]["uid"].as_str(), volume];
    let drawn: Vec<String> = drawn.into_iter().flatten().map(str::to_owned).collect();
    for (section, fields) in [
        (
            "/metadata",
            &[
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "namespace",
                "managedFields",
            ][..],
        ),
        ("/spec", &["clusterIP", "clusterIPs"]),
        ("/spec/ports/0", &["nodePort"]),
    ] {
        if let Some(section) = object.pointer_mut(section).and_then(Value::as_object_mut) {
            section.retain(|field, _| !fields.contains(&field.as_str()));
        }
    }
    let text = object.to_string();
    let text = drawn
        .iter()
        .fold(text, |text, drawn| text.replace(drawn.as_str(), "drawn"));
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_creates_the_same_objects() -> anyhow::Result<()> {
    const CREATED: &[(&str, &str)] = &[
        (
            "create deployment web --image=a:1 --replicas=0 --port=80",
            "deployment.apps/web created",
        ),
        (
            "create service clusterip web --tcp=80:8080",
            "service/web created",
        ),
        (
            "create service nodeport node --tcp=81:http",
            "service/node created",
        ),
        (
            "create service externalname out --external-name=example.com",
            "service/out created",
        ),
        (
            "create configmap words --from-literal=a=b",
            "configmap/words created",
        ),
        (
            "create secret generic keys --from-literal=a=b",
            "secret/keys created",
        ),
        (
            "create secret docker-registry pull --docker-server=r --docker-username=u --docker-password=p",
            "secret/pull created",
        ),
        (
            "create job once --image=a:1 -- echo hello",
            "job.batch/once created",
        ),
        (
            "create cronjob often --image=a:1 --schedule=@hourly -- date",
            "cronjob.batch/often created",
        ),
        (
            "create role reader --verb=get --resource=pods",
            "role.rbac.authorization.k8s.io/reader created",
        ),
        (
            "create rolebinding reads --role=reader --user=u",
            "rolebinding.rbac.authorization.k8s.io/reads created",
        ),
        (
            "create quota few --hard=pods=3,cpu=1",
            "resourcequota/few created",
        ),
        (
            "create poddisruptionbudget keep --selector=app=web --min-available=50%",
            "poddisruptionbudget.policy/keep created",
        ),
        (
            "create ingress in --rule=h/a*=web:80",
            "ingress.networking.k8s.io/in created",
        ),
        ("create serviceaccount robot", "serviceaccount/robot created"),
        (
            "run alone --image=a:1 --port=80 --restart=Never --env=A=b",
            "pod/alone created",
        ),
        (
            "expose deployment web --name=exposed --port=82 --target-port=8080",
            "service/exposed exposed",
        ),
        (
            "autoscale deployment web --min=1 --max=3 --cpu-percent=50",
            "horizontalpodautoscaler.autoscaling/web autoscaled",
        ),
    ];
    let cluster = Cluster::start("create").await?;
    let mut first: BTreeMap<&str, Value> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        for (line, expected) in CREATED {
            let (command, rest) = line.split_at(line.find(" -- ").unwrap_or(line.len()));
            let line = format!("{command} -n {namespace}{rest}");
            let said = cluster.run(&kubectl, &line)?;
            if said != *expected {
                wrong.push(format!("kubectl 1.{minor} {line}: {said}"));
            }
            let what = expected.split(' ').next().context("a name")?;
            let found = comparable(cluster.object(&kubectl, &format!("{what} -n {namespace}"))?)?;
            let first = first.entry(what).or_insert_with(|| found.clone());
            if found != *first {
                wrong.push(format!("kubectl 1.{minor} {line}:\n  {found}\nnot\n  {first}"));
            }
        }
        cluster.expect(
            &kubectl,
            &format!("delete deployment web -n {namespace}"),
            "deployment.apps \"web\" deleted",
        );
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_asks_for_tokens_rights_and_dry_runs() -> anyhow::Result<()> {
    let cluster = Cluster::start("ask").await?;
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        cluster.expect(&kubectl, "auth can-i create pods", "yes");
        let rights = cluster.run(&kubectl, "auth can-i --list")?;
        ensure!(rights.contains("*.*"), "{rights}");
        if minor >= 24 {
            let token = cluster.run(
                &kubectl,
                &format!("create token default -n {namespace} --duration=20m"),
            )?;
            let claims = token.split('.').nth(1).context("no JWT")?;
            let claims: Value = serde_json::from_slice(&base64::Engine::decode(
                &base64::engine::general_purpose::URL_SAFE_NO_PAD,
                claims,
            )?)?;
            ensure!(
                claims["sub"] == format!("system:serviceaccount:{namespace}:default"),
                "{claims}"
            );
            ensure!(
                claims["exp"]
                    .as_i64()
                    .zip(claims["iat"].as_i64())
                    .map(|(to, from)| to - from)
                    == Some(1200),
                "{claims}"
            );
            let told = cluster.refused(
                &kubectl,
                &format!("create token default -n {namespace} --duration=1m"),
            )?;
            ensure!(
                told.contains("may not specify a duration less than 10 minutes"),
                "{told}"
            );
            let told = cluster.refused(&kubectl, &format!("create token absent -n {namespace}"))?;
            ensure!(told.contains("serviceaccounts \"absent\" not found"), "{told}");
        }
        if minor >= 27 {
            cluster.expect(
                &kubectl,
                &format!("create secret generic x -n {namespace}"),
                "secret/x created",
            );
            let bound = format!(
                "create token default -n {namespace} --bound-object-kind=Secret --bound-object-name=x"
            );
            ensure!(cluster.run(&kubectl, &bound)?.split('.').count() == 3);
        }
        let dry = "create configmap dry --dry-run=server";
        cluster.expect(
            &kubectl,
            &format!("{dry} -n {namespace}"),
            "configmap/dry created (server dry run)",
        );
        let told = cluster.refused(&kubectl, &format!("get configmap dry -n {namespace}"))?;
        ensure!(told.ends_with("configmaps \"dry\" not found"), "{told}");
    }
    Ok(())
}

/// `explain` as the last lines of a field's description tell; old and new kubectl lay it out differently.
#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_explains_what_is_served() -> anyhow::Result<()> {
    let cluster = Cluster::start("explain").await?;
    for (minor, kubectl) in kubectls() {
        cluster.namespace(&kubectl, &format!("v{minor}"))?;
        // Arguments, and what must be said.
        for (line, texts) in [
            (
                "explain pod.spec.containers",
                &[
                    "A single application container that you want to run within a pod.",
                    "volumeMounts",
                ][..],
            ),
            (
                "explain pod.spec.containers --recursive",
                &["secretKeyRef", "httpHeaders", "terminationGracePeriodSeconds"],
            ),
            (
                "explain deploy",
                &[
                    "Deployment enables declarative updates for Pods and ReplicaSets.",
                    "apps",
                ],
            ),
            (
                "explain deploy.spec.strategy.rollingUpdate.maxSurge --api-version=apps/v1",
                &["The maximum number of pods that can be scheduled above the desired number of pods."],
            ),
            (
                "explain svc.spec.ports.targetPort",
                &["Number or name of the port"],
            ),
            (
                "explain clusterrole.rules.verbs",
                &["Verbs is a list of Verbs that apply to ALL the ResourceKinds"],
            ),
            (
                "explain events --api-version=events.k8s.io/v1",
                &["regarding", "reportingController"],
            ),
            (
                "explain events",
                &["involvedObject", "The component reporting this event."],
            ),
        ] {
            let said = cluster.run(&kubectl, line)?;
            // Lines are broken where the width ends.
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            for text in texts {
                ensure!(
                    said.contains(text),
                    "kubectl 1.{minor} {line} does not say {text:?}: {said}"
                );
            }
        }
        let told = cluster.refused(&kubectl, "explain pod.spec.contaners")?;
        ensure!(
            told.contains("field \"contaners\" does not exist"),
            "kubectl 1.{minor}: {told}"
        );
        let told = cluster.refused(&kubectl, "explain absent")?;
        ensure!(
            told.contains("the server doesn't have a resource type \"absent\""),
            "kubectl 1.{minor}: {told}"
        );
    }
    Ok(())
}

/// The error of a misspelt field comes from kubectl itself up to 1.26, afterwards from the server.
#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_tells_of_a_misspelt_field() -> anyhow::Result<()> {
    let cluster = Cluster::start("validate").await?;
    let file = cluster.directory.join("deployment.yaml");
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        let write = |replicas: &str| {
            std::fs::write(
                &file,
                format!(
                    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  {replicas}: 1\n  \
                     selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
                     spec: {{containers: [{{name: a, image: 'a:1', resources: {{limits: {{cpu: 1}}}}}}]}}\n"
                ),
            )
        };
        write("replicsa")?;
        let apply = format!("apply -f {} -n {namespace}", file.display());
        let told = cluster.refused(&kubectl, &apply)?;
        let expected = match minor {
            ..27 => {
                "ValidationError(Deployment.spec): unknown field \"replicsa\" in io.k8s.api.apps.v1.DeploymentSpec"
            }
            _ => "strict decoding error: unknown field \"spec.replicsa\"",
        };
        ensure!(told.contains(expected), "kubectl 1.{minor}: {told}");
        write("replicas")?;
        cluster.expect(
            &kubectl,
            &format!("{apply} --dry-run=server"),
            "deployment.apps/web created (server dry run)",
        );
        cluster.expect(&kubectl, &apply, "deployment.apps/web created");
    }
    Ok(())
}

/// Patches are made by the merge keys of the schemas: what an earlier `apply` had is taken away, the rest stays.
#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_applies_lists_by_their_keys() -> anyhow::Result<()> {
    let cluster = Cluster::start("merge").await?;
    let file = cluster.directory.join("pod.json");
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        let apply = |ports: &[u16]| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|port| json!({ "port": port, "name": format!("p{port}") }))
                .collect();
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
                "spec": { "selector": { "app": "web" }, "ports": ports },
            });
            std::fs::write(&file, service.to_string())?;
            cluster.run(&kubectl, &format!("apply -f {} -n {namespace}", file.display()))
        };
        apply(&[80, 81])?;
        let again = apply(&[80, 81])?;
        ensure!(again == "service/web unchanged", "kubectl 1.{minor}: {again}");
        let foreign = "[{\"port\":90,\"name\":\"foreign\"}]";
        let patch = format!("patch service web -n {namespace} -p {{\"spec\":{{\"ports\":{foreign}}}}}");
        cluster.run(&kubectl, &patch)?;
        apply(&[81, 82])?;
        let service = cluster.object(&kubectl, &format!("service/web -n {namespace}"))?;
        let ports = service["spec"]["ports"].as_array().context("ports")?;
        let ports: BTreeSet<u64> = ports.iter().filter_map(|port| port["port"].as_u64()).collect();
        ensure!(
            ports == BTreeSet::from([81, 82, 90]),
            "kubectl 1.{minor}: {service}"
        );
    }
    Ok(())
}

/// By one request for each group, by both aggregated forms, and by the first of these.
#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_discovers_the_same_resources() -> anyhow::Result<()> {
    let cluster = Cluster::start("discover").await?;
    let mut served = BTreeSet::new();
    let groups = Registry::global().groups();
    for row in Registry::global().rows() {
        // Of a resource in several versions kubectl tells the one that its group prefers.
        let mut versions = groups[row.group].iter().copied();
        let served_in = |version: &str| Registry::global().find(row.group, version, row.plural).is_some();
        let preferred = versions.find(|version| served_in(version));
        if preferred != Some(row.version) {
            continue;
        }
        let (short, verbs) = (row.short_names.join(","), row.verbs().join(","));
        let words = [
            row.plural,
            &short,
            &row.api_version(),
            if row.namespaced { "true" } else { "false" },
            row.kind,
        ];
        let words = words.into_iter().chain([&*verbs]).filter(|word| !word.is_empty());
        served.insert(words.collect::<Vec<_>>().join(" "));
    }
    let versions: BTreeSet<String> = Registry::global()
        .rows()
        .iter()
        .map(|row| row.api_version())
        .collect();
    let definition = cluster.directory.join("things.json");
    let content = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.com" }, "spec": { "group": "example.com" },
    });
    std::fs::write(&definition, content.to_string())?;
    for (minor, kubectl) in kubectls() {
        cluster.namespace(&kubectl, &format!("v{minor}"))?;
        let said = cluster.run(&kubectl, "api-resources -o wide --no-headers")?;
        let found: BTreeSet<String> = said
            .lines()
            .map(|line| {
                // Up to 1.25 or so verbs are a list of Go's, and categories are not told.
                let line = line.replace("[", "").replace("]", "");
                let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "all").collect();
                let kind = words
                    .iter()
                    .position(|word| matches!(*word, "true" | "false"))
                    .map_or(0, |at| at + 2);
                [&words[..kind], &[&*words[kind..].join(",")]].concat().join(" ")
            })
            .collect();
        ensure!(
            found == served,
            "kubectl 1.{minor}: {:?}",
            found.symmetric_difference(&served).collect::<Vec<_>>()
        );
        cluster.expect(&kubectl, "get customresourcedefinitions -o name", "");
        let told = cluster.refused(&kubectl, &format!("create -f {}", definition.display()))?;
        ensure!(
            told.contains("this server has no customresourcedefinitions yet"),
            "kubectl 1.{minor}: {told}"
        );
        let said = cluster.run(&kubectl, "api-versions")?;
        let found: BTreeSet<String> = said.lines().map(str::to_owned).collect();
        ensure!(found == versions, "kubectl 1.{minor}: {said}");
    }
    Ok(())
}

/// Both kinds of Events are views of one object; kubectl reads the older one, whoever wrote it.
#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_shows_events_of_both_kinds() -> anyhow::Result<()> {
    let cluster = Cluster::start("events").await?;
    let file = cluster.directory.join("events.json");
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        cluster.run(&kubectl, &format!("run web --image=a:1 -n {namespace}"))?;
        let pod = cluster.object(&kubectl, &format!("pod/web -n {namespace}"))?;
        let about = json!({ "kind": "Pod", "apiVersion": "v1", "name": "web", "namespace": namespace, "uid": pod["metadata"]["uid"] });
        let older = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": "older" }, "involvedObject": about,
            "type": "Normal", "reason": "Pulled", "message": "has its image", "source": { "component": "kubelet" },
            "count": 3, "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:01:00Z",
        });
        let newer = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "newer" }, "regarding": about,
            "type": "Warning", "reason": "BackOff", "note": "starts it later", "action": "Start",
            "reportingController": "kubelet", "reportingInstance": "n1", "eventTime": "2024-01-01T00:00:00.000000Z",
            "series": { "count": 7, "lastObservedTime": "2024-01-01T00:02:00.000000Z" },
        });
        for event in [older, newer] {
            std::fs::write(&file, event.to_string())?;
            cluster.run(&kubectl, &format!("create -f {} -n {namespace}", file.display()))?;
        }
        for (line, expected) in [
            ("get events --field-selector=type=Warning -o name", "event/newer"),
            (
                "get events --field-selector=reason=Pulled,involvedObject.name=web -o name",
                "event/older",
            ),
            (
                "get events --field-selector=source=kubelet,type!=Normal -o name",
                "event/newer",
            ),
            ("get events --sort-by=.reason -o name", "event/newer\nevent/older"),
            (
                "get events.v1.events.k8s.io --field-selector=regarding.name=web,type=Normal -o name",
                "event.events.k8s.io/older",
            ),
            (
                "get event older -o jsonpath={.count}:{.message}",
                "3:has its image",
            ),
            (
                "get events.v1.events.k8s.io older -o jsonpath={.deprecatedCount}:{.note}:{.regarding.name}",
                "3:has its image:web",
            ),
            (
                "get event newer -o jsonpath={.series.count}:{.message}:{.reportingComponent}",
                "7:starts it later:kubelet",
            ),
        ] {
            cluster.expect(&kubectl, &format!("{line} -n {namespace}"), expected);
        }
        let mut shown = vec![
            format!("describe pod web -n {namespace}"),
            format!("get events -n {namespace}"),
        ];
        if minor >= 27 {
            shown.push(format!("events --for pod/web -n {namespace}"));
        }
        for line in shown {
            let said = cluster.run(&kubectl, &line)?;
            for texts in [
                ["Normal", "Pulled", "has its image"],
                ["Warning", "BackOff", "starts it later"],
            ] {
                let told = said
                    .lines()
                    .any(|line| texts.iter().all(|text| line.contains(text)));
                ensure!(told, "kubectl 1.{minor} {line}: {said}");
            }
        }
        let wrong = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": "wrong" },
            "involvedObject": { "namespace": "elsewhere" },
        });
        std::fs::write(&file, wrong.to_string())?;
        let told = cluster.refused(&kubectl, &format!("create -f {} -n {namespace}", file.display()))?;
        ensure!(told.contains("does not match event.namespace"), "{told}");
    }
    Ok(())
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'web:1', ports: [{containerPort: 80}]}
";

/// Name and operation of the managers of an object, and whether they own its replicas.
fn managers(object: &Value) -> Vec<(String, String, bool)> {
    let list = object["metadata"]["managedFields"].as_array();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let mut managers: Vec<_> = list
        .into_iter()
        .flatten()
        .map(|entry| {
            let replicas = entry.pointer("/fieldsV1/f:spec/f:replicas").is_some();
            (text(entry, "manager"), text(entry, "operation"), replicas)
        })
        .collect();
    managers.sort();
    managers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_applies_on_the_server() -> anyhow::Result<()> {
    let cluster = Cluster::start("apply").await?;
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        let file = cluster.directory.join("web.yaml");
        let write = |text: &str| std::fs::write(&file, text);
        let path = file.display();
        let apply = format!("apply --server-side -n {namespace} -f {path}");
        let applied = "deployment.apps/web serverside-applied";
        let shown = if minor >= 21 { " --show-managed-fields" } else { "" };
        let web =
            |cluster: &Cluster| cluster.object(&kubectl, &format!("deployment web -n {namespace}{shown}"));
        let manager =
            |name: &str, operation: &str, replicas: bool| (name.to_owned(), operation.to_owned(), replicas);

        write(WEB)?;
        cluster.expect(&kubectl, &apply, applied);
        let made = web(&cluster)?;
        ensure!(
            managers(&made) == [manager("kubectl", "Apply", true)],
            "{minor}: {made}"
        );
        cluster.expect(&kubectl, &apply, applied);
        ensure!(
            web(&cluster)? == made,
            "{minor}: an apply of the same changed something"
        );

        cluster.expect(
            &kubectl,
            &format!("scale deployment web -n {namespace} --replicas=5"),
            "deployment.apps/web scaled",
        );
        let told = cluster.refused(&kubectl, &apply)?;
        // It names itself after its file.
        let program = kubectl.file_name().context("a file")?.display().to_string();
        let conflict =
            format!("conflict with \"{program}\" with subresource \"scale\" using apps/v1: .spec.replicas");
        ensure!(
            told.contains("Apply failed with 1 conflict") && told.contains(&conflict),
            "{minor}: {told}"
        );
        cluster.expect(&kubectl, &format!("{apply} --force-conflicts"), applied);
        let forced = web(&cluster)?;
        ensure!(forced["spec"]["replicas"] == 2, "{minor}: {forced}");
        ensure!(
            managers(&forced) == [manager("kubectl", "Apply", true)],
            "{minor}: {forced}"
        );

        // Somebody who came from client-side apply goes on with what they had.
        cluster.run(&kubectl, &format!("delete deployment web -n {namespace}"))?;
        cluster.expect(
            &kubectl,
            &format!("apply -n {namespace} -f {path}"),
            "deployment.apps/web created",
        );
        write(&WEB.replace("replicas: 2", "replicas: 3"))?;
        cluster.expect(&kubectl, &apply, applied);
        let moved = web(&cluster)?;
        ensure!(moved["spec"]["replicas"] == 3, "{minor}: {moved}");
        // Since 1.26 kubectl moves the ownership, too.
        if minor >= 27 {
            let replicas: Vec<String> = managers(&moved)
                .into_iter()
                .filter_map(|(name, operation, replicas)| replicas.then(|| format!("{name} {operation}")))
                .collect();
            ensure!(replicas == ["kubectl Apply"], "{minor}: {moved}");
            write(&WEB.replace("  replicas: 2\n", ""))?;
            let diff = cluster.output(&kubectl, &format!("diff --server-side -n {namespace} -f {path}"))?;
            let text = String::from_utf8_lossy(&diff.stdout);
            ensure!(
                diff.status.code() == Some(1)
                    && text.contains("-  replicas: 3")
                    && text.contains("+  replicas: 1"),
                "{minor}: {text} {}",
                String::from_utf8_lossy(&diff.stderr)
            );
            cluster.expect(
                &kubectl,
                &format!("{apply} --dry-run=server"),
                "deployment.apps/web serverside-applied (server dry run)",
            );
            ensure!(web(&cluster)? == moved, "{minor}: a dry run wrote");
            cluster.expect(&kubectl, &apply, applied);
            ensure!(
                web(&cluster)?["spec"]["replicas"] == 1,
                "{minor}: replicas outlived their applier"
            );
        }
    }
    Ok(())
}

/// `kubectl proxy`, ended with this value.
struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    fn start(cluster: &Cluster, kubectl: &Path) -> anyhow::Result<Self> {
        let mut command = cluster.command(kubectl, "proxy --port=0");
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let said = child.stdout.take().context("its output")?;
        BufReader::new(said).read_line(&mut line)?;
        let address = line.trim_end().rsplit(' ').next().unwrap_or_default().to_owned();
        Ok(Proxy { child, address })
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.address).with_context(|| self.address.clone())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kubectl_passes_requests_on() -> anyhow::Result<()> {
    let cluster = Cluster::start("proxy").await?;
    for (minor, kubectl) in kubectls() {
        let namespace = format!("v{minor}");
        cluster.namespace(&kubectl, &namespace)?;
        let proxy = Proxy::start(&cluster, &kubectl)?;
        let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        for (path, text) in [
            ("/version", "\"gitVersion\":\"v1.33.0+causeway\""),
            ("/readyz", "ok"),
            ("/apis", "APIGroupList"),
            ("/openapi/v2", "io.k8s.api.core.v1.Pod"),
            ("/openapi/v3", "/openapi/v3/apis/apps/v1?hash="),
            (&account, "\"kind\":\"ServiceAccount\""),
        ] {
            let raw = cluster.run(&kubectl, &format!("get --raw {path}"))?;
            ensure!(raw.contains(text), "kubectl 1.{minor} get --raw {path}: {raw}");
            let answer = proxy.get(path)?;
            ensure!(
                answer.starts_with("HTTP/1.1 200") && answer.contains(text),
                "kubectl 1.{minor} proxy {path}: {answer}"
            );
        }
        let told = cluster.refused(&kubectl, "get --raw /api/v1/absent")?;
        ensure!(
            told.contains("the server could not find the requested resource"),
            "{told}"
        );
        ensure!(proxy.get("/api/v1/absent")?.starts_with("HTTP/1.1 404"));
    }
    Ok(())
}
