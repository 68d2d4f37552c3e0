//! Roles and bindings with real clients: kubectl under another name, and the DNS server with the rights that its
//! manifest gives it and no other.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, program};
use tests::directory::Directory;
use tests::process::{Place, Process, command, installed, run_in};
use tests::{ports, skipped, wait};

use crate::{SOON, example};

const ROBOT: &str = "--as=system:serviceaccount:default:robot";
/// What binds the DNS server to its role.
const BINDING: &str = "clusterrolebinding/system:coredns";

pub fn allow_and_refuse(cluster: &Cluster) -> anyhow::Result<()> {
    let list = |namespace: &str| ["get", "pods", "-n", namespace, ROBOT].map(str::to_owned);
    let refused = |namespace: &str| {
        let arguments = list(namespace);
        cluster.refused(&arguments.each_ref().map(String::as_str), "")
    };
    let told = refused("default")?;
    let expected = "pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    ensure!(told.contains(expected), "{told}");
    let metadata = json!({ "name": "robot-views", "namespace": "default" });
    let subject = json!({ "kind": "ServiceAccount", "name": "robot", "namespace": "default" });
    let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" });
    let binding = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": metadata, "roleRef": role, "subjects": [subject] });
    cluster.apply(&binding.to_string())?;
    // `view` is made of others: its rules come from the controllers.
    cluster.await_that(
        &["get", "pods", "-l", "app=hello", "-o", "name", ROBOT],
        SOON,
        |told| told.lines().count() == 3,
    );
    ensure!(
        refused("kube-system")?.contains("in the namespace \"kube-system\""),
        "elsewhere it is nobody"
    );
    let told = cluster.refused(&["get", "secrets", ROBOT], "")?;
    ensure!(told.contains("secrets is forbidden"), "{told}");
    let told = cluster.refused(&["delete", "deployment/hello", ROBOT], "")?;
    ensure!(told.contains("deployments.apps \"hello\" is forbidden"), "{told}");
    let told = cluster.run(&["get", "rolebinding", "robot-views", "-o", "wide"])?;
    ensure!(
        told.contains("ClusterRole/view") && told.contains("default/robot"),
        "{told}"
    );
    cluster.run(&["delete", "rolebinding", "robot-views"])?;
    wait::until("the robot is nobody again", SOON, || refused("default").map(drop));
    Ok(())
}

pub fn serve_the_dns_server(cluster: &Cluster) -> anyhow::Result<()> {
    let Some(dig) = installed("dig") else {
        skipped("the DNS server with the rights of its manifest", "no dig");
        return Ok(());
    };
    let manifest = example("dns/deployment.yaml")?;
    let rights = manifest.split("\n---\n").filter(|document| {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind: "));
        kind.is_some_and(|kind| kind == "ServiceAccount" || kind.starts_with("ClusterRole"))
    });
    let rights: Vec<&str> = rights.collect();
    ensure!(rights.len() == 3, "an account, a role and a binding: {rights:?}");
    cluster.apply(&rights.join("\n---\n"))?;

    let directory = Directory::new("dns-rights");
    let kubeconfig = directory.write("kubeconfig", &kubeconfig_of_the_server(cluster, &directory)?);
    let get_as_server = |kind: &str| {
        let mut kubectl = command(&Place::default(), "kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["get", kind, "-A"]);
        run_in(&Place::default(), &mut kubectl, b"")
    };
    let told = get_as_server("secrets")?;
    ensure!(told.stderr.contains("secrets is forbidden"), "{told:?}");

    let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let corefile = format!(
        ".:{} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n kubeconfig {}\n state {}\n }}\n}}\n",
        address.port(),
        kubeconfig.display(),
        directory.path().display()
    );
    let corefile = directory.write("Corefile", &corefile);
    let mut start = command(&Place::default(), program("causeway"));
    start.args(["dns", "--conf"]).arg(&corefile);
    let _server = Process::spawn(&Place::default(), &mut start)?;
    let expected = cluster.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    wait::until_value(
        "the address of hello",
        SOON,
        || ask(&dig, address),
        |told| *told == expected,
    );
    cluster.run(&["delete", BINDING])?;
    wait::until("its rights have ended", SOON, || {
        match get_as_server("services") {
            Ok(told) if told.stderr.contains("services is forbidden") => Ok(()),
            other => Err(other),
        }
    });
    ensure!(ask(&dig, address) == expected, "it answers what it knows");
    Ok(())
}

/// With a token of the server's account.
fn kubeconfig_of_the_server(cluster: &Cluster, directory: &Directory) -> anyhow::Result<String> {
    let config: Value = serde_json::from_str(&cluster.run(&["config", "view", "--raw", "-o", "json"])?)?;
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let request = directory.write("token.json", &request.to_string());
    let request = request.to_str().context("a plain path")?;
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/coredns/token";
    let made: Value = serde_json::from_str(&cluster.run(&["create", "--raw", path, "-f", request])?)?;
    let token = made["status"]["token"].as_str().context("a token")?;
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": config["clusters"][0]["cluster"] }],
        "users": [{ "name": "u", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }] });
    Ok(config.to_string())
}

/// What the server at an address says is the address of the Service.
fn ask(dig: &std::path::Path, address: SocketAddr) -> String {
    let mut question = command(&Place::default(), dig);
    question.args(["+short", "+time=1", "+tries=1"]);
    question.args([&format!("@{}", address.ip()), "-p", &address.port().to_string()]);
    question.arg("hello.default.svc.cluster.local");
    match run_in(&Place::default(), &mut question, b"") {
        Ok(answer) => answer.stdout.trim().to_owned(),
        Err(error) => format!("{error:#}"),
    }
}
