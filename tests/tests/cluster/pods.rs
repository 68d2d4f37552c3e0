//! What pods are made of: init containers, images that were imported, volumes, host namespaces, rights.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, SHELL, SHELL_FLAGS, busybox, everything};
use tests::directory::Directory;

const SOON: Duration = Duration::from_secs(30);
/// The kubelet looks every minute whether ConfigMaps and Secrets of its pods have changed.
const REFRESHED: Duration = Duration::from_secs(120);

/// A pod of one node, which ends quickly when it is deleted.
pub(super) fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = json!("node-1");
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "of": "pods" } }, "spec": spec })
}

pub(super) fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": SHELL, "args": ["-c", script] })
}

pub(super) fn with(container: Value, more: Value) -> Value {
    let (mut container, more) = (container, more);
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn config_map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

pub(super) fn apply(cluster: &Cluster, object: &Value) -> anyhow::Result<()> {
    cluster.apply(&object.to_string()).map(drop)
}

pub(super) fn status_cell(cluster: &Cluster, name: &str, wanted: &[&str]) {
    let get = ["get", "pod", name, "--no-headers"];
    cluster.await_that(&get, SOON, |line| {
        let cells: Vec<&str> = line.split_whitespace().skip(1).take(wanted.len()).collect();
        cells == wanted
    });
}

pub(super) fn events_of(cluster: &Cluster, name: &str, wanted: &[&str]) {
    let selector = format!("involvedObject.name={name}");
    let columns = "custom-columns=R:.reason,F:.involvedObject.fieldPath,M:.message";
    let get = [
        "get",
        "events",
        "--field-selector",
        &selector,
        "--no-headers",
        "-o",
        columns,
    ];
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    cluster.await_that(&get, SOON, |text| {
        let lines: Vec<String> = text.lines().map(squeezed).collect();
        wanted
            .iter()
            .all(|wanted| lines.iter().any(|line| line.starts_with(wanted)))
    });
}

pub(super) fn succeeded(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let phase = ["get", "pod", name, "-o", "jsonpath={.status.phase}"];
    let ended = cluster.await_that(&phase, SOON, |text| matches!(text, "Succeeded" | "Failed"));
    let log = cluster.run(&["logs", name, "--all-containers"])?;
    ensure!(ended == "Succeeded", "{name} {ended}: {log}");
    Ok(log)
}

pub(super) fn delete(cluster: &Cluster) -> anyhow::Result<()> {
    cluster
        .run(&["delete", "pods", "-l", "of=pods", "--wait=true"])
        .map(drop)
}

/// An image of the machine's static busybox, through the archive that `docker load` would read.
pub fn images_are_built_imported_listed_and_removed(cluster: &Cluster) -> anyhow::Result<()> {
    let image = |words: &[&str]| -> anyhow::Result<(bool, String)> {
        let output = cluster.causeway_words("image", words)?;
        Ok((output.status.success(), everything(&output)))
    };
    let good = |words: &[&str]| -> anyhow::Result<String> {
        let (good, said) = image(words)?;
        ensure!(good, "causeway image {}: {said}", words.join(" "));
        Ok(said)
    };
    let directory = Directory::new("images");
    let archive = directory.path().join("sh.tar");
    let archive = archive.to_str().context("a path")?;
    let busybox = busybox()?;
    let busybox = busybox.to_str().context("a path")?;
    let build = [
        "build",
        "--tag",
        SHELL,
        "--from-binary",
        busybox,
        "--archive",
        archive,
    ];
    good(&[&build[..], &SHELL_FLAGS[..]].concat())?;
    let said = good(&["import", archive])?;
    ensure!(
        said.contains("docker.io/cwt/sh:v1") && said.contains("on node-1, node-2, node-3"),
        "{said}"
    );
    good(&["import", archive, "--name", "cwt/other:v2", "--node", "node-2"])?;
    let listed = good(&["ls"])?;
    let row = |name: &str| {
        let line = listed
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    };
    ensure!(row("docker.io/cwt/sh:v1") == "node-1,node-2,node-3", "{listed}");
    ensure!(
        row("docker.io/cwt/other:v2") == "node-1,node-2,node-3",
        "{listed}"
    );

    apply(
        cluster,
        &pod(
            "uses",
            json!({ "containers": [shell("c", "echo $FROM; exec sleep 1000")] }),
        ),
    )?;
    status_cell(cluster, "uses", &["1/1", "Running"]);
    ensure!(
        cluster.run(&["logs", "uses"])?.trim() == "image",
        "the image's variable"
    );
    good(&["rm", "cwt/other:v2"])?;
    let (removed, said) = image(&["rm", SHELL])?;
    ensure!(
        !removed && said.contains("is used by container c of pod default/uses"),
        "{said}"
    );
    // Of the node that uses it; the others had no need of it and have let it go.
    let node_images = [
        "get",
        "node",
        "node-1",
        "-o",
        "jsonpath={.status.images[*].names}",
    ];
    cluster.await_that(&node_images, SOON, |text| text.contains("docker.io/cwt/sh:v1"));

    let hostile = directory.path().join("hostile.tar");
    std::fs::write(&hostile, b"no archive")?;
    let (imported, said) = image(&["import", hostile.to_str().context("a path")?])?;
    ensure!(!imported && said.contains("image archive"), "{said}");
    delete(cluster)
}

/// Reasons and texts as Kubernetes has them.
pub fn an_image_that_cannot_be_had_is_told_by_policy(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let rows = [
        (
            "absent",
            "nowhere/nothing:v1",
            "IfNotPresent",
            "ImagePullBackOff",
            "Failed spec.containers{c} Error: ImagePullBackOff",
        ),
        (
            "always",
            SHELL,
            "Always",
            "ImagePullBackOff",
            "Failed spec.containers{c} Failed to pull image \"cwt/sh:v1\": failed to resolve reference \
             \"docker.io/cwt/sh:v1\": failed to do request: GET \
             \"https://registry-1.docker.io/v2/cwt/sh/manifests/v1\": ",
        ),
        (
            "never",
            "nowhere/nothing:v1",
            "Never",
            "ErrImageNeverPull",
            "ErrImageNeverPull spec.containers{c} Container image \"nowhere/nothing:v1\" is not present with pull \
             policy of Never",
        ),
        (
            "name",
            "Upper",
            "IfNotPresent",
            "InvalidImageName",
            "InspectFailed spec.containers{c} Failed to apply default image tag \"Upper\": couldn't parse image \
             name \"Upper\": invalid reference format: repository name (library/Upper) must be lowercase",
        ),
    ];
    for (name, image, policy, ..) in rows {
        let container = json!({ "name": "c", "image": image, "imagePullPolicy": policy });
        apply(cluster, &pod(name, json!({ "containers": [container] })))?;
    }
    for (name, _, _, reason, event) in rows {
        status_cell(cluster, name, &["0/1", reason]);
        events_of(cluster, name, &[event]);
    }
    delete(cluster)
}

pub fn init_containers_run_in_order_and_hold_back_the_others(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let scratch = json!({ "volumeMounts": [{ "name": "scratch", "mountPath": "/s" }] });
    let until = |file: &str| format!("while [ ! -e /gate/{file} ]; do sleep 0.05; done");
    let directory = Directory::new("gate");
    let gate = directory.path();
    let gates = json!({ "volumeMounts": [
        { "name": "scratch", "mountPath": "/s" },
        { "name": "gate", "mountPath": "/gate" },
    ] });
    let volumes = json!([
        { "name": "scratch", "emptyDir": {} },
        { "name": "gate", "hostPath": { "path": gate, "type": "Directory" } },
    ]);
    let first = format!("{}; echo one > /s/log", until("first"));
    let ordered = json!({
        "restartPolicy": "Never",
        "initContainers": [
            with(shell("one", &first), gates),
            with(shell("two", "echo two >> /s/log"), scratch.clone()),
        ],
        "containers": [with(shell("main", "cat /s/log"), scratch)],
        "volumes": volumes,
    });
    apply(cluster, &pod("ordered", ordered))?;
    status_cell(cluster, "ordered", &["0/1", "Init:0/2"]);
    let initialized = [
        "get",
        "pod",
        "ordered",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Initialized\")].message}",
    ];
    cluster.await_output(&initialized, "containers with incomplete status: [one two]", SOON);
    let waiting = [
        "get",
        "pod",
        "ordered",
        "-o",
        "jsonpath={.status.containerStatuses[0].state.waiting.reason}",
    ];
    cluster.await_output(&waiting, "PodInitializing", SOON);
    let said = cluster.refused(&["logs", "ordered"], "")?;
    ensure!(said.contains("is waiting to start: PodInitializing"), "{said}");
    std::fs::write(gate.join("first"), "")?;
    ensure!(succeeded(cluster, "ordered")?.ends_with("one\ntwo\n"), "order");
    events_of(
        cluster,
        "ordered",
        &["Started spec.initContainers{two} Started container two"],
    );
    let described = cluster.run(&["describe", "pod", "ordered"])?;
    ensure!(
        described.contains("Init Containers:") && described.contains("Initialized                 True"),
        "{described}"
    );

    let failing = |policy: &str| {
        json!({
            "restartPolicy": policy,
            "initContainers": [shell("bad", "exit 3")],
            "containers": [shell("main", "true")],
        })
    };
    apply(cluster, &pod("never", failing("Never")))?;
    status_cell(cluster, "never", &["0/1", "Init:Error", "0"]);
    let phase = ["get", "pod", "never", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Failed", SOON);
    apply(cluster, &pod("always", failing("Always")))?;
    status_cell(cluster, "always", &["0/1", "Init:CrashLoopBackOff"]);
    delete(cluster)
}

pub fn sidecars_start_before_and_end_after_the_others(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let scratch = json!({ "volumeMounts": [{ "name": "scratch", "mountPath": "/s" }] });
    let script = "trap 'cat /s/log; exit 0' TERM; echo sidecar > /s/log; while true; do sleep 0.05; done";
    let startup = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 60 });
    let probe = json!({ "restartPolicy": "Always", "startupProbe": startup });
    // Nothing that follows starts before its port is open.
    let server = with(
        json!({ "name": "server", "image": "causeway/testserver:v1" }),
        probe,
    );
    let sidecar = with(
        with(shell("sidecar", script), scratch.clone()),
        json!({ "restartPolicy": "Always" }),
    );
    let main = with(shell("main", "echo main >> /s/log; sleep 1"), scratch);
    let spec = json!({
        "restartPolicy": "Never", "initContainers": [server, sidecar], "containers": [main],
        "volumes": [{ "name": "scratch", "emptyDir": {} }],
    });
    apply(cluster, &pod("job", spec.clone()))?;
    succeeded(cluster, "job")?;
    let log = cluster.run(&["logs", "job", "-c", "sidecar"])?;
    ensure!(
        log == "sidecar\nmain\n",
        "the sidecar ends after the main container: {log}"
    );

    let mut lasting = spec;
    lasting["restartPolicy"] = json!("Always");
    lasting["containers"][0]["args"][1] = json!("exec sleep 1000");
    apply(cluster, &pod("lasting", lasting))?;
    status_cell(cluster, "lasting", &["3/3", "Running", "0"]);
    delete(cluster)
}

pub fn commands_in_a_container_are_its_probes_and_hooks(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let probe = |script: &str| {
        let command = ["/busybox", "sh", "-c", script];
        json!({ "exec": { "command": command }, "periodSeconds": 1, "failureThreshold": 1 })
    };
    let hook =
        json!({ "preStop": { "exec": { "command": ["/busybox", "sh", "-c", "echo not today; exit 4"] } } });
    let container = with(
        shell("c", "while :; do sleep 1; done"),
        json!({ "readinessProbe": probe("cat /tmp/ready"), "livenessProbe": probe("test ! -e /tmp/ill"),
            "lifecycle": hook }),
    );
    let mut asked = pod("asked", json!({ "containers": [container] }));
    asked["spec"]["terminationGracePeriodSeconds"] = json!(5);
    apply(cluster, &asked)?;
    let place = "spec.containers{c}";
    events_of(
        cluster,
        "asked",
        &[&format!("Unhealthy {place} Readiness probe failed: cat:")],
    );
    status_cell(cluster, "asked", &["0/1", "Running", "0"]);
    let inside = |script: &str| cluster.run(&["exec", "asked", "--", "/busybox", "sh", "-c", script]);
    inside("touch /tmp/ready")?;
    status_cell(cluster, "asked", &["1/1", "Running", "0"]);
    inside("touch /tmp/ill")?;
    events_of(
        cluster,
        "asked",
        &[
            &format!("Unhealthy {place} Liveness probe failed:"),
            &format!("FailedPreStopHook {place} PreStopHook failed: not today"),
        ],
    );
    // A container that is started anew has files of its own: it is well, and not ready.
    status_cell(cluster, "asked", &["0/1", "Running", "1"]);
    delete(cluster)
}

pub fn volumes_of_every_source_are_there(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    apply(cluster, &config_map("cm", json!({ "a": "1", "b": "2" })))?;
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "sec" } });
    apply(
        cluster,
        &with(secret, json!({ "stringData": { "key": "hidden" } })),
    )?;
    let directory = Directory::new("host");
    let host = directory.path();
    std::fs::create_dir_all(host.join("sub"))?;
    std::fs::set_permissions(host, std::fs::Permissions::from_mode(0o777))?;
    std::fs::write(host.join("sub/file"), "of-the-host\n")?;
    let item = |path: &str, source: Value| with(json!({ "path": path }), source);
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let downward = json!([
        item("labels", field("metadata.labels")),
        item(
            "cpu",
            json!({ "resourceFieldRef": { "containerName": "c", "resource": "requests.cpu", "divisor": "1m" } })
        ),
    ]);
    let projected = json!([
        { "configMap": { "name": "cm", "items": [{ "key": "a", "path": "from/cm", "mode": 0o400 }] } },
        { "secret": { "name": "sec" } },
        { "downwardAPI": { "items": [item("name", field("metadata.name"))] } },
        { "serviceAccountToken": { "path": "token", "audience": "somebody" } },
        { "configMap": { "name": "absent", "optional": true } },
    ]);
    let script = "\
        cat /cm/a /sub-b /sec/key /down/cpu /all/from/cm /all/key /all/name /host/sub/file; \
        echo; cat /down/labels; echo; \
        cut -d. -f2 /all/token | base64 -d 2>/dev/null | grep -o somebody; stat -Lc '%a %g' /all/from/cm /cm/a /empty; \
        cat /expr/mark; \
        grep -c ' /cm [a-z0-9]* ro' /proc/mounts; touch /host/x 2>/dev/null || echo host-read-only; \
        touch /tmp/x 2>/dev/null || echo root-read-only; id -u; id -G; grep CapBnd /proc/self/status; \
        grep NoNewPrivs /proc/self/status; echo $MEM $CPU; mount | grep -c 'tmpfs on /memory'";
    let mount = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
    let security = json!({
        "runAsUser": 1000, "runAsGroup": 2000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
    });
    let resource = |name: &str, resource: &str| {
        let source = json!({ "resourceFieldRef": { "resource": resource } });
        json!({ "name": name, "valueFrom": source })
    };
    let more = json!({
        "securityContext": security,
        "resources": { "requests": { "cpu": "250m" }, "limits": { "memory": "64Mi" } },
        "env": [resource("MEM", "limits.memory"), resource("CPU", "requests.cpu"),
                { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
        "volumeMounts": [
            mount("cm", "/cm"), with(mount("cm", "/sub-b"), json!({ "subPath": "b" })),
            mount("sec", "/sec"), mount("down", "/down"),
            mount("all", "/all"), with(mount("host", "/host"), json!({ "readOnly": true })), mount("empty", "/empty"),
            with(mount("empty", "/expr"), json!({ "subPathExpr": "$(POD)/deep" })), mount("memory", "/memory"),
        ],
    });
    let make = with(
        shell(
            "make",
            "mkdir -p /empty/volumes/deep; echo mark > /empty/volumes/deep/mark",
        ),
        json!({ "volumeMounts": [mount("empty", "/empty")] }),
    );
    let spec = json!({
        "restartPolicy": "Never",
        "securityContext": { "fsGroup": 3000, "supplementalGroups": [4000] },
        "initContainers": [make],
        "containers": [with(shell("c", script), more)],
        "volumes": [
            { "name": "cm", "configMap": { "name": "cm" } },
            { "name": "sec", "secret": { "secretName": "sec", "defaultMode": 0o400 } },
            { "name": "down", "downwardAPI": { "items": downward } },
            { "name": "all", "projected": { "sources": projected } },
            { "name": "host", "hostPath": { "path": host, "type": "Directory" } },
            { "name": "empty", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
        ],
    });
    apply(cluster, &pod("volumes", spec))?;
    let log = succeeded(cluster, "volumes")?;
    let expected = "\
12hidden2501hiddenvolumesof-the-host

of=\"pods\"
somebody
440 3000
644 3000
2777 3000
mark
1
host-read-only
root-read-only
1000
2000 3000 4000
CapBnd:\t0000000000000400
NoNewPrivs:\t1
67108864 1
1
";
    ensure!(log == expected, "{log}\nexpected:\n{expected}");
    delete(cluster)
}

pub fn a_changed_config_map_reaches_its_volume_as_a_whole(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let config = |value: &str| config_map("changing", json!({ "a": value, "b": value }));
    apply(cluster, &config("old"))?;
    // Reads both through the link of one moment: an older a beside a newer b would be a torn volume.
    let script = "cd /cm; while true; do d=$(readlink ..data); [ \"$(cat $d/a)\" = \"$(cat $d/b)\" ] || echo torn; \
        [ \"$(cat a)\" = new ] && [ -e /later/a ] && echo $A && exit 0; sleep 0.1; done";
    let source = json!({ "configMapKeyRef": { "name": "changing", "key": "a" } });
    let mounts = json!({
        "env": [{ "name": "A", "valueFrom": source }],
        "volumeMounts": [{ "name": "cm", "mountPath": "/cm" }, { "name": "later", "mountPath": "/later" }],
    });
    let spec = json!({
        "restartPolicy": "Never", "containers": [with(shell("c", script), mounts)],
        "volumes": [
            { "name": "cm", "configMap": { "name": "changing" } },
            { "name": "later", "secret": { "secretName": "later", "optional": true } },
        ],
    });
    apply(cluster, &pod("reader", spec))?;
    status_cell(cluster, "reader", &["1/1", "Running"]);
    apply(cluster, &config("new"))?;
    let later = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "later" } });
    apply(cluster, &with(later, json!({ "stringData": { "a": "1" } })))?;
    let phase = ["get", "pod", "reader", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Succeeded", REFRESHED);
    // What a variable was given stays.
    let log = cluster.run(&["logs", "reader"])?;
    ensure!(
        log == "old\n",
        "a torn volume was seen, or a variable that changed: {log}"
    );
    cluster.run(&["delete", "secret", "later"])?;
    delete(cluster)
}

/// A pod as node agents are: on the node's network, among its processes, with its files.
pub fn a_pod_of_the_node_sees_what_the_node_has(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let script = "\
        ip -4 -o addr show eth0 | grep -o '172.30.0.11'; hostname; \
        [ -e /proc/$KUBELET/status ] && echo sees-processes; [ -c /dev/kmsg ] && echo has-devices; \
        ls -d /sys/fs/cgroup >/dev/null && echo has-sys; \
        until [ -e /run-node/late/mark ]; do sleep 0.05; done; echo followed; (sleep 1000 &) ; echo done";
    let kubelet = cluster.pid("node-1-kubelet")?.to_string();
    let mount = json!({ "name": "run", "mountPath": "/run-node", "mountPropagation": "HostToContainer" });
    let more = json!({
        "env": [{ "name": "KUBELET", "value": kubelet }],
        "volumeMounts": [mount],
        "securityContext": { "privileged": true },
    });
    let spec = json!({
        "restartPolicy": "Never", "hostNetwork": true, "hostPID": true, "hostIPC": true,
        "containers": [with(shell("c", script), more)],
        "volumes": [{ "name": "run", "hostPath": { "path": "/run", "type": "Directory" } }],
    });
    apply(cluster, &pod("agent", spec))?;
    cluster.await_that(&["logs", "agent"], SOON, |log| log.contains("has-sys"));
    cluster.await_output(
        &["get", "pod", "agent", "-o", "jsonpath={.status.podIP}"],
        "172.30.0.11",
        SOON,
    );
    mount_in_node(&kubelet)?;
    let log = succeeded(cluster, "agent")?;
    ensure!(
        log == "172.30.0.11\nnode-1\nsees-processes\nhas-devices\nhas-sys\nfollowed\ndone\n",
        "{log}"
    );
    delete(cluster)
}

/// Mounts a file system with a mark in it on the node's `/run/late`, after the pod has started.
fn mount_in_node(kubelet: &str) -> anyhow::Result<()> {
    let script = "mkdir -p /run/late && mount -t tmpfs cwt /run/late && touch /run/late/mark";
    let output = std::process::Command::new("nsenter")
        .args(["--target", kubelet, "--mount", "sh", "-c", script])
        .output()?;
    ensure!(output.status.success(), "{}", everything(&output));
    Ok(())
}

/// What upstream's kubelet says of each, by reason and text.
pub fn a_pod_that_cannot_be_prepared_is_told_why(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let volume = |source: Value| {
        let mounts = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
        let volume = with(json!({ "name": "v" }), source);
        json!({ "containers": [with(shell("c", "true"), mounts)], "volumes": [volume] })
    };
    let variable = |source: Value| {
        let variables = json!({ "env": [{ "name": "A", "valueFrom": source }] });
        json!({ "containers": [with(shell("c", "true"), variables)] })
    };
    let setup = "FailedMount <none> MountVolume.SetUp failed for volume \"v\" : ";
    apply(cluster, &config_map("cm", json!({ "a": "1" })))?;
    for (name, spec, status, event) in [
        (
            "no-map",
            volume(json!({ "configMap": { "name": "nowhere" } })),
            "ContainerCreating",
            format!("{setup}configmap \"nowhere\" not found"),
        ),
        (
            "no-secret",
            volume(json!({ "secret": { "secretName": "nowhere" } })),
            "ContainerCreating",
            format!("{setup}secret \"nowhere\" not found"),
        ),
        (
            "no-key",
            volume(json!({ "configMap": { "name": "cm", "items": [{ "key": "z", "path": "z" }] } })),
            "ContainerCreating",
            format!("{setup}configmap references non-existent config key: z"),
        ),
        (
            "no-path",
            volume(json!({ "hostPath": { "path": "/nowhere", "type": "Directory" } })),
            "ContainerCreating",
            format!("{setup}hostPath type check failed: /nowhere is not a directory"),
        ),
        (
            "no-plugin",
            volume(json!({ "nfs": { "server": "192.0.2.1", "path": "/" } })),
            "ContainerCreating",
            format!("{setup}no volume plugin matched"),
        ),
        (
            "no-env",
            variable(json!({ "configMapKeyRef": { "name": "nowhere", "key": "a" } })),
            "CreateContainerConfigError",
            "Failed spec.containers{c} Error: configmap \"nowhere\" not found".to_owned(),
        ),
        (
            "no-env-key",
            variable(json!({ "configMapKeyRef": { "name": "cm", "key": "z" } })),
            "CreateContainerConfigError",
            "Failed spec.containers{c} Error: couldn't find key z in ConfigMap default/cm".to_owned(),
        ),
    ] {
        apply(cluster, &pod(name, spec))?;
        status_cell(cluster, name, &["0/1", status]);
        events_of(cluster, name, &[&event]);
    }
    delete(cluster)
}
