//! Each overlay on a cluster of its own: packets go through the parts that it has, the others are not there, and what
//! others have on the nodes stays theirs, also when it is taken off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, everything};
use tests::process::{self, installed};
use tests::skipped;

use crate::installation::{
    LATER, NODES, Node, Traces, are_as_before, begin_install, begin_uninstall, build_image, deploy,
    end_install, end_uninstall, import_image, install, on_a_cluster, on_a_cluster_with, traces,
};

/// The cluster's DNS address, and that of `dns-only`.
const CLUSTER_DNS: &str = "10.96.0.10";
const NODE_DNS: &str = "169.254.20.10";

/// All of it, the tunnel first.
const ALL_PARTS: [&str; 7] = [
    "tunnel",
    "routes",
    "plugin",
    "conflist",
    "rules",
    "hook",
    "DNS address",
];

/// kube-proxy's ports on a node.
const KUBE_PROXYS: [u16; 2] = [10256, 10249];

/// Of requests to a Service of two pods. Fewer than one of five hundred million runs misses one of them.
const REQUESTS: &str = "30";

#[test]
fn host_gw_routes_pods_serves_services_and_answers_names() {
    on_a_cluster("the overlay host-gw", |cluster| {
        build_image(cluster)?;
        let world = World::new(cluster, "host-gw", CLUSTER_DNS)?;
        world.install(&ALL_PARTS[1..])?;
        world.start_servers()?;
        world.every_pod_reaches_both("http://web.default.svc.cluster.local/")?;
        world.pods_reach_each_other()?;
        world.delete_servers()?;
        world.take_off()
    });
}

/// Nothing of the machine is in it but what `make image` put there.
#[test]
fn the_static_image_is_all_that_a_node_needs() {
    let what = "the archive of `make image` as the image of the DaemonSets";
    let archive = repository("target/causeway-image.tar");
    let Ok(archive_made) = archive.metadata().and_then(|found| found.modified()) else {
        return skipped(what, "no target/causeway-image.tar: make image writes it");
    };
    if newest_source() > archive_made {
        return skipped(
            what,
            "target/causeway-image.tar is older than its sources: make image",
        );
    }
    on_a_cluster(what, |cluster| {
        import_image(cluster, &archive)?;
        let world = World::new(cluster, "vxlan", CLUSTER_DNS)?;
        world.install(&ALL_PARTS)?;
        world.start_servers()?;
        world.every_pod_reaches_both("http://web.default.svc.cluster.local/")?;
        world.pods_reach_each_other()?;
        world.delete_servers()?;
        world.take_off()
    });
}

#[test]
fn helm_installs_and_removes_the_same() {
    let what = "the chart on the bundled cluster";
    let Some(helm) = installed("helm") else {
        return skipped(what, "no Helm: ./setup.sh test unpacks one");
    };
    on_a_cluster(what, |cluster| {
        build_image(cluster)?;
        let world = World::new(cluster, "vxlan", CLUSTER_DNS)?;
        let helm = |words: &[&str]| run_helm(cluster, &helm, words);
        cluster.run(&["apply", "-f", &deploy("base/namespace.yaml")])?;
        let address = ["--set", "apiServer.host=172.30.0.1"];
        helm(&[&["install", "causeway", &deploy("chart"), "--wait"][..], &address].concat())?;
        world.has(&ALL_PARTS)?;
        world.start_servers()?;
        world.every_pod_reaches_both("http://web.default.svc.cluster.local/")?;
        world.delete_servers()?;
        helm(&["uninstall", "causeway", "--wait"])?;
        let left = cluster.run(&[
            "get",
            "daemonset,configmap,serviceaccount",
            "-n",
            "causeway",
            "-o",
            "name",
        ])?;
        ensure!(!left.contains("causeway"), "{left}");
        world.take_off()
    });
}

/// The agent asks the metadata service of its node who it is, where, and by which right.
#[test]
fn vpc_eni_gives_pods_addresses_of_the_vpc_beside_kube_proxy() {
    on_a_cluster_with(&["--network", "vpc-eni"], "the overlay vpc-eni", |cluster| {
        build_image(cluster)?;
        let world = World::new(cluster, "vpc-eni", CLUSTER_DNS)?;
        let _kube_proxys = world.take_kube_proxys_ports()?;
        begin_install(cluster, world.overlay)?;
        let agents = ["set", "env", "daemonset/causeway-node", "-n", "causeway"];
        // Else the nodes would keep interfaces, which stay theirs.
        let variables = ["AWS_EC2_ENDPOINT=http://172.30.0.1:8773", "WARM_IP_TARGET=1"];
        cluster.run(&[&agents[..], &variables].concat())?;
        end_install(cluster)?;
        world.has(&["plugin", "conflist"])?;
        world.start_servers()?;
        let shown = [
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ];
        let addresses = cluster.run(&shown)?;
        let in_vpc = addresses
            .split(' ')
            .filter(|address| address.starts_with("172.30."));
        ensure!(in_vpc.count() == PODS.len(), "{addresses}");
        world.pods_reach_each_other()?;
        world.nobody_serves(&format!("http://{}/", world.address_of("web")?))?;
        world.delete_servers()?;
        world.take_off()
    });
}

#[test]
fn cni_only_connects_pods_beside_kube_proxy_and_serves_no_service() {
    on_a_cluster("the overlay cni-only", |cluster| {
        build_image(cluster)?;
        let world = World::new(cluster, "cni-only", CLUSTER_DNS)?;
        let _kube_proxys = world.take_kube_proxys_ports()?;
        world.install(&["tunnel", "routes", "plugin", "conflist"])?;
        world.start_servers()?;
        world.pods_reach_each_other()?;
        world.nobody_serves(&format!("http://{}/", world.address_of("web")?))?;
        world.delete_servers()?;
        world.take_off()
    });
}

#[test]
fn proxy_only_serves_services_for_another_pod_network() {
    on_a_cluster("the overlay proxy-only", |cluster| {
        let Some(world) = World::beside_another_network(cluster, "proxy-only", CLUSTER_DNS)? else {
            return Ok(());
        };
        world.nobody_serves(&format!("http://{}/", world.address_of("web")?))?;
        world.install(&["rules", "hook"])?;
        world.every_pod_reaches_both(&format!("http://{}/", world.address_of("web")?))?;
        world.take_off()?;
        world.pods_reach_each_other()
    });
}

#[test]
fn dns_only_answers_names_beside_kube_proxy_and_another_pod_network() {
    on_a_cluster("the overlay dns-only", |cluster| {
        let Some(world) = World::beside_another_network(cluster, "dns-only", NODE_DNS)? else {
            return Ok(());
        };
        let _kube_proxys = world.take_kube_proxys_ports()?;
        world.install(&["DNS address"])?;
        // Its answer is the pods' addresses: no Service is needed for it.
        world.every_pod_reaches_both("http://pods.default.svc.cluster.local:8080/")?;
        world.nobody_serves(&format!("http://{}/", world.address_of("web")?))?;
        world.take_off()?;
        world.pods_reach_each_other()
    });
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// When what the image's programs are made of changed last.
fn newest_source() -> SystemTime {
    let parts = [
        "Cargo.lock",
        "cni-plugin",
        "dns",
        "ebpf",
        "model",
        "node/src",
        "overlay",
        "proxy",
    ];
    let newest = parts.map(|part| newest_below(&repository(part)));
    newest.into_iter().max().expect("invariant: there are some")
}

/// A directory's own time is that of a name in it that came or went.
fn newest_below(path: &Path) -> SystemTime {
    let own = path.metadata().and_then(|found| found.modified());
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below = files.map(|file| newest_below(&file.path()));
    below.fold(own.expect("a source"), SystemTime::max)
}

fn run_helm(cluster: &Cluster, helm: &Path, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(helm);
    command.arg("--kubeconfig").arg(cluster.kubeconfig());
    command.args(["--namespace", "causeway"]).args(words);
    let output = command.output()?;
    ensure!(output.status.success(), "helm {words:?}: {}", everything(&output));
    Ok(())
}

/// A cluster that gets an overlay.
struct World<'a> {
    cluster: &'a Cluster,
    overlay: &'static str,
    /// Where names are answered.
    dns: &'static str,
    nodes: Vec<Node>,
    before: Vec<Traces>,
    begun: Instant,
}

impl<'a> World<'a> {
    fn new(cluster: &'a Cluster, overlay: &'static str, dns: &'static str) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let nodes = Node::all(cluster)?;
        let before = traces(&nodes)?;
        Ok(Self {
            cluster,
            overlay,
            dns,
            nodes,
            before,
            begun,
        })
    }

    /// With pods that another network connects. None: its plugins are not installed, which is told.
    fn beside_another_network(
        cluster: &'a Cluster,
        overlay: &'static str,
        dns: &'static str,
    ) -> anyhow::Result<Option<Self>> {
        if !Path::new(PLUGINS).join("bridge").exists() {
            skipped(overlay, "install containernetworking-plugins");
            return Ok(None);
        }
        build_image(cluster)?;
        let mut world = Self::new(cluster, overlay, dns)?;
        world.bring_another_network()?;
        world.start_servers()?;
        world.pods_reach_each_other()?;
        world.before = traces(&world.nodes)?;
        Ok(Some(world))
    }

    /// A bridge on each node, by the CNI project's plugins, and a route to the other node's pods.
    fn bring_another_network(&self) -> anyhow::Result<()> {
        let subnets = self.subnets()?;
        for (node, address) in self.nodes.iter().zip(11_u8..) {
            let subnet = &subnets[node.name];
            for (other, other_address) in self.nodes.iter().zip(11_u8..) {
                if other_address != address {
                    let via = Ipv4Addr::new(172, 30, 0, other_address).to_string();
                    node.run(&["ip", "route", "add", &subnets[other.name], "via", &via])?;
                }
            }
            for plugin in ["bridge", "host-local", "loopback"] {
                let from = Path::new(PLUGINS).join(plugin);
                process::copy_program(&from, &node.cni("bin").join(plugin))?;
            }
            let ipam = json!({
                "type": "host-local", "dataDir": node.cni("bin").with_file_name("addresses"),
                "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }],
            });
            let bridge = json!({
                "type": "bridge", "bridge": "other0", "isGateway": true, "ipam": ipam,
            });
            let list = json!({ "cniVersion": "1.0.0", "name": "other", "plugins": [bridge] });
            std::fs::write(node.cni("net.d").join("20-other.conflist"), list.to_string())?;
        }
        let ready = ["wait", "node", "--all", "--for=condition=Ready", "--timeout=30s"];
        self.cluster.run(&ready)?;
        Ok(())
    }

    /// The pods' networks that the cluster gave out.
    fn subnets(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let shown = "jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR}{\"\\n\"}{end}";
        let is_there = |text: &str| text.lines().filter(|line| line.contains('/')).count() == NODES.len();
        let text = self
            .cluster
            .await_that(&["get", "nodes", "-o", shown], LATER, is_there);
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines
            .map(|(node, subnet)| (node.to_owned(), subnet.to_owned()))
            .collect())
    }

    /// Installs the overlay, and looks which parts that brought.
    fn install(&self, parts: &[&str]) -> anyhow::Result<()> {
        install(self.cluster, self.overlay)?;
        self.has(parts)
    }

    /// These parts are on the nodes, and no others.
    fn has(&self, parts: &[&str]) -> anyhow::Result<()> {
        let ready = ["wait", "node", "--all", "--for=condition=Ready", "--timeout=30s"];
        self.cluster.run(&ready)?;
        let wanted: BTreeSet<&str> = parts.iter().copied().collect();
        for node in &self.nodes {
            let found = node.parts(self.dns)?;
            ensure!(found == wanted, "{}: {found:?}, not {wanted:?}", node.name);
        }
        Ok(())
    }

    /// Takes it off again: the nodes are as they were before.
    fn take_off(&self) -> anyhow::Result<()> {
        begin_uninstall(self.cluster, self.overlay)?;
        end_uninstall(self.cluster)?;
        are_as_before(&self.nodes, &self.before)?;
        println!("{}: {:.1} s", self.overlay, self.begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// What kube-proxy has on each node.
    fn take_kube_proxys_ports(&self) -> anyhow::Result<Vec<TcpListener>> {
        let bind = |port| move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        let nodes = self.nodes.iter();
        let ports = nodes.flat_map(|node| KUBE_PROXYS.map(|port| Ok(node.within(bind(port))??)));
        ports.collect()
    }

    /// A pod on each node that answers with its name, and Services of both.
    fn start_servers(&self) -> anyhow::Result<()> {
        for (node, pod) in NODES.iter().zip(PODS) {
            self.cluster.apply(&server(pod, node, self.dns).to_string())?;
        }
        for (name, cluster_ip) in [("web", None), ("pods", Some("None"))] {
            let port = json!({ "port": 80, "targetPort": 8080 });
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
                "spec": { "selector": { "app": "web" }, "clusterIP": cluster_ip, "ports": [port] },
            });
            self.cluster.apply(&service.to_string())?;
        }
        let ready = [
            "wait",
            "pod",
            "-l",
            "app=web",
            "--for=condition=Ready",
            "--timeout=60s",
        ];
        self.cluster.run(&ready)?;
        Ok(())
    }

    fn delete_servers(&self) -> anyhow::Result<()> {
        self.cluster
            .run(&["delete", "pod", "-l", "app=web", "--timeout=60s"])?;
        self.cluster.run(&["delete", "service", "web", "pods"])?;
        Ok(())
    }

    fn address_of(&self, service: &str) -> anyhow::Result<String> {
        self.cluster
            .run(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
    }

    /// `kubectl exec POD -- testserver fetch`, which fails when a request does.
    fn fetch(&self, pod: &str, url: &str, count: &str) -> anyhow::Result<BTreeSet<String>> {
        let words = ["exec", pod, "--", "/testserver", "fetch", url, "--count", count];
        let text = self.cluster.run(&words)?;
        let (_, hosts) = text.rsplit_once("hosts: ").context("a summary")?;
        let hosts = hosts.split_whitespace().filter_map(|host| host.split_once('='));
        Ok(hosts.map(|(host, _)| host.to_owned()).collect())
    }

    /// From the pods of both nodes a Service leads to both of its pods.
    #[track_caller]
    fn every_pod_reaches_both(&self, url: &str) -> anyhow::Result<()> {
        for pod in PODS {
            let hosts = self.fetch(pod, url, REQUESTS)?;
            ensure!(hosts == PODS.map(str::to_owned).into(), "{pod} {url}: {hosts:?}");
        }
        Ok(())
    }

    /// By their own addresses.
    fn pods_reach_each_other(&self) -> anyhow::Result<()> {
        let [near, far] = PODS;
        for (from, to) in [(near, far), (far, near)] {
            let address = self
                .cluster
                .run(&["get", "pod", to, "-o", "jsonpath={.status.podIP}"])?;
            let hosts = self.fetch(from, &format!("http://{address}:8080/"), "10")?;
            ensure!(hosts == [to.to_owned()].into(), "{from} to {to}: {hosts:?}");
        }
        Ok(())
    }

    /// Whoever asks there gets no answer.
    fn nobody_serves(&self, url: &str) -> anyhow::Result<()> {
        let fetch = [
            "exec",
            PODS[0],
            "--",
            "/testserver",
            "fetch",
            url,
            "--timeout-ms",
            "1000",
        ];
        let told = self.cluster.refused(&fetch, "")?;
        ensure!(told.contains("exit code 1"), "{told}");
        Ok(())
    }
}

/// One on each node.
const PODS: [&str; 2] = ["web-1", "web-2"];

/// Where Debian has the CNI project's plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn server(name: &str, node: &str, dns: &str) -> Value {
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 });
    let container = json!({
        "name": "server", "image": "causeway/testserver:v1", "args": ["serve", "--http", ":8080"],
        "readinessProbe": probe,
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container],
            "dnsPolicy": "None", "dnsConfig": { "nameservers": [dns] },
        },
    })
}
