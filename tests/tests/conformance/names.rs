//! Names of Services and pods, and the files by which pods find them.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::namespace::{HTTP, Namespace, SERVERS, server};
use crate::world::{await_answer, image};

/// Waits until a name has exactly this data in the eyes of a pod, over UDP and over TCP. What it has by the way, an alias
/// for one, counts; names are written without their last dot.
#[track_caller]
pub fn await_records(at: &Namespace<'_>, pod: &str, name: &str, kind: &str, wanted: &[&str]) {
    let client = at.client(pod);
    let mut wanted: Vec<String> = wanted.iter().map(|data| (*data).to_owned()).collect();
    wanted.sort();
    for over in [&[][..], &["--over-tcp"]] {
        await_answer(
            &format!("{kind} of {name} in {pod} {over:?} is {wanted:?}"),
            || {
                let printed = client.run(&[&["resolve", name, "--type", kind], over].concat())?;
                let mut found: Vec<String> = printed.lines().filter_map(data).collect();
                found.sort();
                Ok((found, printed))
            },
            |(found, _)| *found == wanted,
        );
    }
}

/// Of a line `NAME TTL TYPE DATA`.
fn data(line: &str) -> Option<String> {
    let mut words = line.splitn(4, ' ');
    let _: u32 = words.nth(1)?.parse().ok()?;
    Some(words.nth(1)?.trim_end_matches('.').to_owned())
}

/// A pod that does nothing, and what its specification has besides.
fn idle(at: &Namespace<'_>, name: &str, spec: &Value) -> anyhow::Result<()> {
    let mut whole = spec.clone();
    whole["containers"] = json!([{"name": "idle", "image": image(), "args": ["sleep", "infinity"]}]);
    at.pod(name, 0, &whole)?;
    at.address(name);
    Ok(())
}

/// DNS: should provide DNS for the cluster \[Conformance\]
pub fn of_the_cluster(at: &Namespace<'_>) -> anyhow::Result<()> {
    idle(at, "asks", &json!({}))?;
    let service = at.api.read("/api/v1/namespaces/default/services/kubernetes")?;
    let address = service["spec"]["clusterIP"].as_str().context("clusterIP")?;
    await_records(
        at,
        "asks",
        "kubernetes.default.svc.cluster.local.",
        "A",
        &[address],
    );
    await_records(at, "asks", "kubernetes.default", "A", &[address]);
    let srv = "_https._tcp.kubernetes.default.svc.cluster.local.";
    let wanted = "0 100 443 kubernetes.default.svc.cluster.local";
    await_records(at, "asks", srv, "SRV", &[wanted]);
    Ok(())
}

/// DNS: should provide DNS for services \[Conformance\]
pub fn of_services(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let plain = at.service("plain", &json!({}))?.cluster_ip()?.ip().to_string();
    at.service("headless", &json!({"clusterIP": "None"}))?;
    let full = |service: &str| format!("{service}.{}.svc.cluster.local", at.name);
    let pods = SERVERS.map(|pod| at.address(pod).to_string());
    let pods = pods.each_ref().map(String::as_str);
    await_records(at, "server-1", &format!("{}.", full("plain")), "A", &[&plain]);
    await_records(at, "server-1", &format!("{}.", full("headless")), "A", &pods);
    await_records(at, "server-1", &plain, "PTR", &[&full("plain")]);
    for (label, of) in [("_http._tcp", "80"), ("_udp._udp", "80")] {
        let name = format!("{label}.{}.", full("plain"));
        await_records(
            at,
            "server-1",
            &name,
            "SRV",
            &[&format!("0 100 {of} {}", full("plain"))],
        );
    }
    // A server of each pod, by a name that leads to the pod alone.
    let printed = at.client("server-1").run(&[
        "resolve",
        &format!("_http._tcp.{}.", full("headless")),
        "--type",
        "SRV",
    ])?;
    let targets: Vec<String> = printed.lines().filter_map(data).collect();
    ensure!(targets.len() == pods.len(), "{printed}");
    let mut addresses = Vec::new();
    for target in &targets {
        let [_, _, port, name] = target.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("no SRV: {target}");
        };
        ensure!(port == HTTP.to_string(), "{target}");
        let found = at.client("server-1").run(&["resolve", &format!("{name}.")])?;
        addresses.extend(found.lines().filter_map(data));
    }
    addresses.sort();
    let mut wanted = pods.map(str::to_owned);
    wanted.sort();
    ensure!(addresses == wanted, "{addresses:?} and not {wanted:?}");
    Ok(())
}

/// DNS: should resolve DNS of partial qualified names for services \[LinuxOnly\] \[Conformance\]
pub fn partial_names(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("partial", &json!({}))?.cluster_ip()?.ip().to_string();
    for name in [
        "partial".to_owned(),
        format!("partial.{}", at.name),
        format!("partial.{}.svc", at.name),
    ] {
        await_records(at, "server-1", &name, "A", &[&service]);
    }
    let url = "http://partial/";
    let printed = at.client("server-1").run(&["fetch", url])?;
    ensure!(printed.contains(" 200 server-"), "{url}: {printed}");
    Ok(())
}

/// DNS HostNetwork: should resolve DNS of partial qualified names for services on hostNetwork pods with dnsPolicy:
/// ClusterFirstWithHostNet \[LinuxOnly\]
pub fn partial_names_on_hosts(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("partial", &json!({}))?.cluster_ip()?.ip().to_string();
    idle(
        at,
        "on-host",
        &json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
    )?;
    for name in ["partial".to_owned(), format!("partial.{}", at.name)] {
        await_records(at, "on-host", &name, "A", &[&service]);
    }
    Ok(())
}

/// DNS: should provide DNS for pods for Hostname \[Conformance\], and for Subdomain \[Conformance\]
pub fn of_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    let spec = json!({"hostname": "host", "subdomain": "sub", "containers": [server(HTTP, "/readyz")]});
    at.pod("named", 0, &spec)?;
    at.service("sub", &json!({"clusterIP": "None"}))?;
    let address = at.address("named").to_string();
    let full = format!("host.sub.{}.svc.cluster.local", at.name);
    await_records(at, "named", &format!("{full}."), "A", &[&address]);
    await_records(at, "named", &format!("host.sub.{}", at.name), "A", &[&address]);
    await_records(at, "named", "sub", "A", &[&address]);
    await_records(at, "named", &address, "PTR", &[&full]);
    let named = at.client("named").run(&["hostname"])?;
    ensure!(named.trim() == "host", "{named}");
    Ok(())
}

/// DNS: should provide DNS for ExternalName services \[Conformance\]
pub fn of_external_names(at: &Namespace<'_>) -> anyhow::Result<()> {
    idle(at, "asks", &json!({}))?;
    let spec = json!({"type": "ExternalName", "externalName": "foo.example.com"});
    let mut service = at.make(
        "services",
        &json!({"metadata": {"name": "external"}, "spec": spec}),
    )?;
    let name = format!("external.{}.svc.cluster.local.", at.name);
    await_records(at, "asks", &name, "CNAME", &["foo.example.com"]);
    service.patch(&json!({"externalName": "bar.example.com"}))?;
    await_records(at, "asks", &name, "CNAME", &["bar.example.com"]);
    let ports = json!([{"name": "http", "port": 80}]);
    service.patch(&json!({"type": "ClusterIP", "externalName": null, "ports": ports}))?;
    let address = service.cluster_ip()?.ip().to_string();
    await_records(at, "asks", &name, "A", &[&address]);
    Ok(())
}

/// DNS: should provide /etc/hosts entries for the cluster \[Conformance\]
pub fn hosts_files(at: &Namespace<'_>) -> anyhow::Result<()> {
    let aliases = json!([{"ip": "192.0.2.7", "hostnames": ["alias", "alias.example.com"]}]);
    idle(
        at,
        "asks",
        &json!({"hostname": "host", "subdomain": "sub", "hostAliases": aliases}),
    )?;
    let text = at.client("asks").run(&["cat", "/etc/hosts"])?;
    let own = at.address("asks").to_string();
    let full = format!("host.sub.{}.svc.cluster.local", at.name);
    let wanted = [
        ("127.0.0.1", vec!["localhost"]),
        (own.as_str(), vec![full.as_str(), "host"]),
        ("192.0.2.7", vec!["alias", "alias.example.com"]),
    ];
    for (address, names) in wanted {
        let lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = lines
            .filter(|words| words.first() == Some(&address))
            .any(|words| words[1..] == names);
        ensure!(found, "no line {address} {names:?} in {text}");
    }
    Ok(())
}

/// DNS HostNetwork: spec.Hostname field is not silently ignored and is used for hostname for a Pod; spec.Hostname field is
/// silently ignored and the node hostname is used when hostNetwork is set to true for a Pod
pub fn host_names(at: &Namespace<'_>) -> anyhow::Result<()> {
    idle(at, "own", &json!({"hostname": "chosen"}))?;
    idle(at, "nodes", &json!({"hostname": "chosen", "hostNetwork": true}))?;
    let own = at.client("own").run(&["hostname"])?;
    ensure!(own.trim() == "chosen", "{own}");
    let node = at.client("nodes").run(&["hostname"])?;
    ensure!(node.trim() == at.nodes[0].name, "{node}");
    Ok(())
}

/// The lines of a pod's `resolv.conf`, each as its words.
fn resolv_conf(at: &Namespace<'_>, pod: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let text = at.client(pod).run(&["cat", "/etc/resolv.conf"])?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect())
}

/// The server that pods ask.
fn cluster_dns(at: &Namespace<'_>) -> anyhow::Result<IpAddr> {
    idle(at, "cluster-first", &json!({}))?;
    let conf = resolv_conf(at, "cluster-first")?;
    let server = conf
        .iter()
        .find(|line| line[0] == "nameserver")
        .context("no nameserver")?;
    Ok(server[1].parse()?)
}

/// DNS: should support configurable pod DNS nameservers \[Conformance\]
pub fn chosen_name_servers(at: &Namespace<'_>) -> anyhow::Result<()> {
    let config = json!({"nameservers": ["192.0.2.53"], "searches": ["resolv.conf.local"]});
    idle(at, "chosen", &json!({"dnsPolicy": "None", "dnsConfig": config}))?;
    let conf = resolv_conf(at, "chosen")?;
    let wanted = [["search", "resolv.conf.local"], ["nameserver", "192.0.2.53"]];
    let found: Vec<_> = conf.iter().filter(|line| line[0] != "options").collect();
    ensure!(
        found.len() == 2 && wanted.iter().all(|line| conf.iter().any(|found| found == line)),
        "{conf:?}"
    );
    Ok(())
}

/// DNS: should support configurable pod resolv.conf
pub fn a_chosen_resolv_conf_resolves(at: &Namespace<'_>) -> anyhow::Result<()> {
    let dns = cluster_dns(at)?.to_string();
    let service = at.service("plain", &json!({}))?.cluster_ip()?.ip().to_string();
    let config = json!({
        "nameservers": [dns], "searches": [format!("{}.svc.cluster.local", at.name)],
        "options": [{"name": "ndots", "value": "2"}],
    });
    idle(at, "chosen", &json!({"dnsPolicy": "None", "dnsConfig": config}))?;
    let conf = resolv_conf(at, "chosen")?;
    let options = conf
        .iter()
        .find(|line| line[0] == "options")
        .context("no options")?;
    ensure!(options[1..] == ["ndots:2"], "{conf:?}");
    await_records(at, "chosen", "plain", "A", &[&service]);
    Ok(())
}

/// DNS: should work with the pod containing more than 6 DNS search paths and longer than 256 search list characters; should
/// work with a search path containing an underscore and a search path with a single dot
pub fn long_and_odd_search_paths(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("plain", &json!({}))?.cluster_ip()?.ip().to_string();
    let long = (0..8).map(|number| format!("{}{number}.example.com", "long".repeat(8)));
    let searches: Vec<String> = [".".to_owned(), "under_score.example.com".to_owned()]
        .into_iter()
        .chain(long)
        .collect();
    idle(at, "odd", &json!({"dnsConfig": {"searches": searches}}))?;
    let conf = resolv_conf(at, "odd")?;
    let search = conf
        .iter()
        .find(|line| line[0] == "search")
        .context("no search")?;
    ensure!(searches.iter().all(|path| search.contains(path)), "{search:?}");
    ensure!(search.join(" ").len() > 256, "{search:?}");
    await_records(at, "odd", "plain", "A", &[&service]);
    Ok(())
}
