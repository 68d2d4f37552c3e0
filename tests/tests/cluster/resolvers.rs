//! Real resolvers ask the cluster DNS from real pods, with the `resolv.conf` that each `dnsPolicy` gives them: dig's,
//! glibc's, musl's, Go's and that of Rust's standard library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, process_of};
use tests::directory::Directory;
use tests::process::{Output, Place, command, installed, run_in};
use tests::skipped;

/// An answer of the node's own server takes moments; a resolver that asks again waits for five seconds.
const AT_ONCE: Duration = Duration::from_secs(4);
/// How often that may take longer.
const TRIES: usize = 3;

const FULL: &str = "hello.default.svc.cluster.local";
/// Of a name and its place in the cluster, what search paths complete.
const SHORT: [&str; 2] = ["hello", "hello.default"];

/// What a client is called with, its program aside.
type Arguments = fn(&str) -> Vec<String>;

struct Client {
    name: &'static str,
    program: PathBuf,
    arguments: Arguments,
    /// Whether it prints the address; the others ask the Service itself, which has to answer.
    prints_address: bool,
}

/// A pod with a resolver configuration of its own.
struct Pod {
    name: &'static str,
    place: Place,
    resolv_conf: PathBuf,
}

pub fn find_names(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = Directory::new("resolvers");
    let address = cluster.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    cluster.apply(&pods().to_string())?;
    cluster.run(&[
        "wait",
        "pods",
        "-l",
        "app=resolver",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    let first = pod(cluster, "cluster-first", &directory)?;
    let host_net = pod(cluster, "cluster-first-host-net", &directory)?;
    let own = pod(cluster, "none", &directory)?;
    let node = pod(cluster, "default", &directory)?;
    let clients = clients(cluster, &directory)?;
    ensure!(clients.len() >= 5, "dig, glibc, Python, Go and Rust");
    for client in &clients {
        for pod in [&first, &host_net] {
            for name in SHORT.into_iter().chain([FULL, &format!("{FULL}.")]) {
                client.finds(pod, name, &address)?;
            }
        }
        // Its only search path is `svc.cluster.local`, for names of fewer than two dots.
        for name in ["hello.default", FULL] {
            client.finds(&own, name, &address)?;
        }
        client.denies(&first, "nobody.default.svc.cluster.local.")?;
    }
    // The node's own resolvers know nothing of the cluster, or are not reached from here.
    let text = std::fs::read_to_string(&node.resolv_conf)?;
    ensure!(
        !text.contains("10.96.0.10") && !text.contains("cluster.local"),
        "{text}"
    );
    for client in clients
        .iter()
        .filter(|client| ["dig", "glibc"].contains(&client.name))
    {
        let found = client.ask(&node, FULL)?;
        ensure!(!client.has_found(&found, &address), "{}: {found:?}", client.name);
    }
    names_of_addresses(&first, &address)?;
    cluster.run(&["delete", "pods", "-l", "app=resolver", "--grace-period=0"])?;
    Ok(())
}

fn names_of_addresses(pod: &Pod, address: &str) -> anyhow::Result<()> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let known = pod.run("getent", &words(&["hosts", address]), &[])?;
    ensure!(known.stdout.contains(FULL), "{known:?}");
    let srv = format!("_http._tcp.{FULL}");
    let found = pod.run("dig", &words(&["+short", &srv, "SRV"]), &[])?;
    ensure!(found.stdout.trim() == format!("0 100 80 {FULL}."), "{found:?}");
    Ok(())
}

/// One pod for each policy; they do nothing.
fn pods() -> Value {
    let pod = |name: &str, node: u8, mut spec: Value| {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": format!("node-{node}")});
        spec["containers"] =
            json!([{"name": "idle", "image": "causeway/testserver:v1", "args": ["sleep", "infinity"]}]);
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "labels": {"app": "resolver"}},
        })
    };
    let own = json!({
        "nameservers": ["10.96.0.10"], "searches": ["svc.cluster.local"],
        "options": [{"name": "ndots", "value": "2"}],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("cluster-first", 1, json!({"dnsPolicy": "ClusterFirst"})),
        pod("cluster-first-host-net", 2, json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})),
        pod("none", 3, json!({"dnsPolicy": "None", "dnsConfig": own})),
        pod("default", 1, json!({"dnsPolicy": "Default"})),
    ]})
}

fn pod(cluster: &Cluster, name: &'static str, directory: &Directory) -> anyhow::Result<Pod> {
    let uid = cluster.run(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])?;
    let pid = process_of(&uid).with_context(|| format!("{name} has no process"))?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/root/etc/resolv.conf"))?;
    Ok(Pod {
        name,
        place: Place::beside(pid)?,
        resolv_conf: directory.write(name, &text),
    })
}

impl Pod {
    /// Runs a program of the host in the pod's network, with the pod's `resolv.conf` in the place of the host's.
    fn run(
        &self,
        program: impl AsRef<Path>,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Output> {
        let mut run = command(&self.place, "unshare");
        run.args(["--mount", "/bin/sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec timeout 20 \"$@\"")
            .arg(&self.resolv_conf)
            .arg(program.as_ref())
            .args(arguments)
            .envs(environment.iter().copied());
        run_in(&self.place, &mut run, b"")
    }
}

impl Client {
    /// Asks, and again where it took as long as if it had to repeat its question: who has to does so each time, and the
    /// machine is slow at times.
    fn ask(&self, pod: &Pod, name: &str) -> anyhow::Result<Output> {
        let mut took = Duration::ZERO;
        for _ in 0..TRIES {
            let began = Instant::now();
            // Go's own resolver, also where it could use the C library's.
            let environment = [("GODEBUG", "netdns=go")];
            let output = pod.run(&self.program, &(self.arguments)(name), &environment)?;
            took = began.elapsed();
            if took < AT_ONCE {
                return Ok(output);
            }
        }
        bail!("{} in {}: {name}: {took:?}, {TRIES} times", self.name, pod.name)
    }

    fn has_found(&self, output: &Output, address: &str) -> bool {
        output.status.success() && (!self.prints_address || output.stdout.contains(address))
    }

    fn finds(&self, pod: &Pod, name: &str, address: &str) -> anyhow::Result<()> {
        let found = self.ask(pod, name)?;
        ensure!(
            self.has_found(&found, address),
            "{} in {}: {name}: {found:?}",
            self.name,
            pod.name
        );
        Ok(())
    }

    fn denies(&self, pod: &Pod, name: &str) -> anyhow::Result<()> {
        let found = self.ask(pod, name)?;
        let is_denied = !found.status.success() || (self.name == "dig" && found.stdout.is_empty());
        ensure!(is_denied, "{} in {}: {name}: {found:?}", self.name, pod.name);
        Ok(())
    }
}

fn clients(cluster: &Cluster, directory: &Directory) -> anyhow::Result<Vec<Client>> {
    let mut clients = vec![
        Client {
            name: "dig",
            program: "dig".into(),
            arguments: |name| ["+search", "+short", name, "A"].map(str::to_owned).to_vec(),
            prints_address: true,
        },
        Client {
            name: "glibc",
            program: "getent".into(),
            arguments: |name| ["ahostsv4", name].map(str::to_owned).to_vec(),
            prints_address: true,
        },
        Client {
            name: "Python",
            program: "python3".into(),
            arguments: |name| {
                let script = format!("import socket; print(socket.getaddrinfo({name:?}, 80))");
                vec!["-c".to_owned(), script]
            },
            prints_address: true,
        },
        Client {
            name: "Go",
            program: "kubectl".into(),
            arguments: |name| {
                let server = format!("http://{name}:80");
                [
                    "--kubeconfig",
                    "/dev/null",
                    "--server",
                    &server,
                    "get",
                    "--raw",
                    "/",
                ]
                .map(str::to_owned)
                .to_vec()
            },
            prints_address: false,
        },
        Client {
            name: "Rust",
            program: testserver(cluster, directory)?,
            arguments: |name| ["fetch", &format!("http://{name}/")].map(str::to_owned).to_vec(),
            prints_address: false,
        },
    ];
    match installed("musl-gcc") {
        Some(compiler) => clients.push(Client {
            name: "musl",
            program: compile(&compiler, directory)?,
            arguments: |name| vec![name.to_owned()],
            prints_address: true,
        }),
        None => skipped("musl's resolver", "musl-gcc is not installed: ./setup.sh test"),
    }
    Ok(clients)
}

/// The program of the pods' image.
fn testserver(cluster: &Cluster, directory: &Directory) -> anyhow::Result<PathBuf> {
    let uid = cluster.run(&["get", "pod", "cluster-first", "-o", "jsonpath={.metadata.uid}"])?;
    let pid = process_of(&uid).context("the pod has a process")?;
    let program = directory.path().join("testserver");
    tests::process::copy_program(Path::new(&format!("/proc/{pid}/exe")), &program)?;
    Ok(program)
}

fn compile(compiler: &Path, directory: &Directory) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/lookup.c");
    let program = directory.path().join("lookup");
    let compiled = Command::new(compiler)
        .arg("-static")
        .arg("-o")
        .args([&program, &source])
        .output()?;
    ensure!(compiled.status.success(), "{compiled:?}");
    Ok(program)
}
