//! What pods may ask of their kubelet besides running: hooks, deadlines, shared namespaces, images of a registry.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, everything};
use tests::directory::Directory;

use super::pods::{apply, delete, events_of, pod, shell, status_cell, succeeded, with};
use super::{LATER, SOON};

fn after_start(container: Value, script: &str) -> Value {
    let exec = json!({ "exec": { "command": ["/busybox", "sh", "-c", script] } });
    with(container, json!({ "lifecycle": { "postStart": exec } }))
}

/// A field of a pod's status, by the path below it.
fn await_status(cluster: &Cluster, name: &str, paths: &str, wanted: &str) {
    let query = format!("jsonpath={paths}");
    cluster.await_output(&["get", "pod", name, "-o", &query], wanted, LATER);
}

pub fn hooks_after_the_start(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let directory = Directory::new("hooks");
    let gate = json!({ "volumeMounts": [{ "name": "gate", "mountPath": "/gate" }] });
    let volumes = json!([{ "name": "gate", "hostPath": { "path": directory.path(), "type": "Directory" } }]);
    let first = with(shell("first", "exec sleep 1000"), gate);
    let first = after_start(first, "until [ -e /gate/open ]; do sleep 0.05; done");
    let spec = json!({ "containers": [first, shell("second", "exec sleep 1000")], "volumes": volumes });
    apply(cluster, &pod("held", spec))?;
    // The first runs, and is not told of before its hook is through; the second has not been started.
    let log = [
        "get",
        "pod",
        "held",
        "-o",
        "jsonpath={.status.containerStatuses[*].containerID}",
    ];
    cluster.await_that(&log, SOON, |ids| ids.split_whitespace().count() == 1);
    status_cell(cluster, "held", &["0/2", "ContainerCreating"]);
    std::fs::write(directory.path().join("open"), "")?;
    status_cell(cluster, "held", &["2/2", "Running", "0"]);

    let failing = after_start(shell("c", "exec sleep 1000"), "echo hidden; exit 3");
    apply(cluster, &pod("failing", json!({ "containers": [failing] })))?;
    let place = "spec.containers{c}";
    events_of(
        cluster,
        "failing",
        &[
            &format!("FailedPostStartHook {place} PostStartHook failed"),
            &format!("Killing {place} FailedPostStartHook"),
            &format!("BackOff {place} Back-off restarting failed container c"),
        ],
    );
    let said = cluster.run(&["get", "events", "--field-selector", "involvedObject.name=failing"])?;
    ensure!(!said.contains("hidden"), "{said}");
    let waits = json!({ "lifecycle": { "postStart": { "sleep": { "seconds": 1 } } } });
    apply(
        cluster,
        &pod(
            "sleeps",
            json!({ "containers": [with(shell("c", "exec sleep 1000"), waits)] }),
        ),
    )?;
    status_cell(cluster, "sleeps", &["1/1", "Running", "0"]);
    delete(cluster)
}

pub fn ended_pods(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let late = json!({ "activeDeadlineSeconds": 2, "containers": [shell("c", "exec sleep 1000")] });
    apply(cluster, &pod("late", late))?;
    let mounts = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let filling = with(
        shell("c", "head -c 3000000 /dev/zero > /v/file; exec sleep 1000"),
        mounts,
    );
    let volumes = json!([{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }]);
    apply(
        cluster,
        &pod("full", json!({ "containers": [filling], "volumes": volumes })),
    )?;
    let sysctls = |name: &str, value: &str| {
        let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
        json!({
            "restartPolicy": "Never", "containers": [shell("c", script)],
            "securityContext": { "sysctls": [{ "name": name, "value": value }] },
        })
    };
    apply(cluster, &pod("forbidden", sysctls("kernel.msgmax", "1")))?;
    apply(
        cluster,
        &pod("allowed", sysctls("net.ipv4.ip_unprivileged_port_start", "7")),
    )?;
    for (name, expected) in [
        (
            "late",
            "Failed DeadlineExceeded Pod was active on the node longer than the specified deadline",
        ),
        (
            "full",
            "Failed Evicted Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\".",
        ),
        (
            "forbidden",
            "Failed SysctlForbidden Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
    ] {
        await_status(
            cluster,
            name,
            "{.status.phase} {.status.reason} {.status.message}",
            expected,
        );
    }
    events_of(
        cluster,
        "late",
        &["DeadlineExceeded <none> Pod was active on the node longer"],
    );
    events_of(
        cluster,
        "full",
        &["Evicted <none> Usage of EmptyDir volume \"v\" exceeds"],
    );
    let log = succeeded(cluster, "allowed")?;
    ensure!(log == "7\n", "{log}");
    delete(cluster)
}

pub fn shared_memory_and_processes(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let containers = || json!([shell("one", "exec sleep 1000"), shell("two", "exec sleep 1000")]);
    apply(cluster, &pod("apart", json!({ "containers": containers() })))?;
    let together = json!({ "shareProcessNamespace": true, "containers": containers() });
    apply(cluster, &pod("together", together))?;
    for name in ["apart", "together"] {
        status_cell(cluster, name, &["2/2", "Running", "0"]);
        let inside = |container: &str, script: &str| {
            cluster.run(&[
                "exec", name, "-c", container, "--", "/busybox", "sh", "-c", script,
            ])
        };
        inside("one", "echo shared > /dev/shm/mark")?;
        ensure!(inside("two", "cat /dev/shm/mark")? == "shared\n", "{name}");
        let ipc = "readlink /proc/self/ns/ipc";
        ensure!(inside("one", ipc)? == inside("two", ipc)?, "{name}");
        let first = inside("two", "tr '\\0' ' ' < /proc/1/cmdline")?;
        let expected = if name == "together" {
            "/pause"
        } else {
            "sleep 1000"
        };
        ensure!(first.trim() == expected, "{name}: {first}");
    }
    // One container ends the other's process, and only that one is started again.
    let kill = "for p in /proc/[0-9]*; do grep -q sleep $p/cmdline && [ $(readlink $p/ns/mnt) != \
                $(readlink /proc/self/ns/mnt) ] && kill ${p#/proc/}; done; true";
    cluster.run(&[
        "exec", "together", "-c", "two", "--", "/busybox", "sh", "-c", kill,
    ])?;
    await_status(
        cluster,
        "together",
        "{.status.containerStatuses[*].restartCount}",
        "1 0",
    );
    status_cell(cluster, "together", &["2/2", "Running", "1"]);
    delete(cluster)
}

pub fn last_words(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let words = |name: &str, script: &str, policy: &str| {
        let policy = json!({ "terminationMessagePolicy": policy, "terminationMessagePath": "/words" });
        with(shell(name, script), policy)
    };
    let from_log = "FallbackToLogsOnError";
    let spec = json!({ "restartPolicy": "Never", "containers": [
        words("a", "echo spoken; exit 1", from_log),
        words("b", "echo spoken; echo written > /words; exit 1", from_log),
        words("c", "echo spoken", from_log),
        words("d", "echo spoken; exit 1", "File"),
    ] });
    apply(cluster, &pod("words", spec))?;
    await_status(cluster, "words", "{.status.phase}", "Failed");
    let told = "{range .status.containerStatuses[*]}{.name}={.state.terminated.message};{end}";
    let query = format!("jsonpath={told}");
    let said = cluster.run(&["get", "pod", "words", "-o", &query])?;
    ensure!(said == "a=spoken\n;b=written\n;c=;d=;", "{said:?}");
    delete(cluster)
}

/// A registry in the network namespace of a node, at its loopback, which wants a name and a password.
pub fn images_come_from_a_registry(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = Directory::new("registry");
    let contents = registry_contents(cluster, directory.path())?;
    let namespace = netlink::Namespace::named("causeway-node-1")?;
    let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves early is the kubelet's to explain.
            let _ = answer(&stream, &contents);
        }
    });
    let image = format!("{address}/cwt/pulled:v1");
    let create = [
        "create",
        "secret",
        "docker-registry",
        "login",
        "--docker-username=me",
        "--docker-password=secret",
        &format!("--docker-server={address}"),
    ];
    cluster.run(&create)?;
    let container = json!({ "name": "c", "image": image, "args": ["-c", "echo pulled"] });
    let spec = |more: Value| {
        with(
            json!({ "restartPolicy": "Never", "containers": [container.clone()] }),
            more,
        )
    };
    apply(cluster, &pod("stranger", spec(json!({}))))?;
    status_cell(cluster, "stranger", &["0/1", "ImagePullBackOff"]);
    let denied = format!(
        "Failed spec.containers{{c}} Failed to pull image \"{image}\": failed to resolve reference \"{image}\": pull \
         access denied, repository does not exist or may require authorization: server answered 401 Unauthorized"
    );
    events_of(
        cluster,
        "stranger",
        &[&denied, "Failed spec.containers{c} Error: ErrImagePull"],
    );
    let login = json!({ "imagePullSecrets": [{ "name": "login" }] });
    apply(cluster, &pod("friend", spec(login)))?;
    let log = succeeded(cluster, "friend")?;
    ensure!(log == "pulled\n", "{log}");
    let pulling = format!("Pulling spec.containers{{c}} Pulling image \"{image}\"");
    let pulled = format!("Pulled spec.containers{{c}} Successfully pulled image \"{image}\" in ");
    events_of(cluster, "friend", &[&pulling, &pulled]);
    cluster.run(&["delete", "secret", "login"])?;
    delete(cluster)
}

/// An image of the machine's shell as a registry serves it: contents by path.
fn registry_contents(cluster: &Cluster, directory: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let busybox = std::fs::canonicalize("/bin/busybox").context("the package busybox-static")?;
    let (busybox, archive) = (busybox.display().to_string(), directory.join("image.tar"));
    let archive = archive.display().to_string();
    let build = [
        "build",
        "--tag",
        "cwt/pulled:v1",
        "--from-binary",
        &busybox,
        "--entrypoint",
        "/busybox",
        "--entrypoint",
        "sh",
        "--archive",
        &archive,
    ];
    let output = cluster.causeway_words("image", &build)?;
    ensure!(output.status.success(), "{}", everything(&output));
    let untar = Command::new("tar")
        .args(["-xf", &archive, "-C"])
        .arg(directory)
        .output()?;
    ensure!(untar.status.success(), "{}", everything(&untar));
    let document: Value = serde_json::from_slice(&std::fs::read(directory.join("manifest.json"))?)?;
    let place = |value: &Value| value.as_str().map(|path| directory.join(path)).context("a path");
    let config = place(&document[0]["Config"])?;
    let layers = document[0]["Layers"].as_array().context("layers")?;
    let layers: Vec<PathBuf> = layers.iter().map(place).collect::<anyhow::Result<_>>()?;
    let mut contents = Vec::new();
    let mut blob = |path: &Path| -> anyhow::Result<Value> {
        let digest = digest_of(path)?;
        let bytes = std::fs::read(path)?;
        let descriptor = json!({ "mediaType": "x", "digest": digest, "size": bytes.len() });
        contents.push((format!("/v2/cwt/pulled/blobs/{digest}"), bytes));
        Ok(descriptor)
    };
    let config = blob(&config)?;
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| blob(layer))
        .collect::<anyhow::Result<_>>()?;
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    contents.push((
        "/v2/cwt/pulled/manifests/v1".to_owned(),
        manifest.to_string().into_bytes(),
    ));
    Ok(contents)
}

fn digest_of(path: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    let hex = text.split_whitespace().next().context("a digest")?;
    Ok(format!("sha256:{hex}"))
}

fn answer(stream: &TcpStream, contents: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    // `me:secret` (RFC 7617).
    const LOGIN: &str = "authorization: Basic bWU6c2VjcmV0";
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default();
    let mut known = false;
    for line in lines {
        let line = line?;
        known |= line == LOGIN;
        if line.is_empty() {
            break;
        }
    }
    let found = contents.iter().find(|(place, _)| place == path);
    let (status, more, body): (&str, &str, &[u8]) = match (known, found) {
        (false, _) => (
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"cwt\"\r\n",
            b"",
        ),
        (true, None) => ("404 Not Found", "", b""),
        (true, Some((_, body))) => ("200 OK", "", body),
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}
