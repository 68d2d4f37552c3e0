//! What real kubectl of every version on this machine asks of the server alone: no controllers, no nodes.
//! From 1.32 on `create` and its like send protobuf, older ones JSON: what is stored must be the same.

#[expect(dead_code, reason = "a real etcd is for other tests")]
mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::{Etcd, Files, free_port};
use serde_json::Value;
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

    fn output(&self, kubectl: &Path, line: &str) -> anyhow::Result<Output> {
        Command::new(kubectl)
            .arg("--kubeconfig")
            .arg(self.files.kubeconfig())
            .arg("--cache-dir")
            .arg(self.directory.join("cache"))
            .args(line.split(' '))
            .output()
            .with_context(|| format!("start {}", kubectl.display()))
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
        // It looks for the parameter in a version 2 of OpenAPI that is not served whole.
        if minor < 21 {
            continue;
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
