//! What `kubectl kustomize` makes of `node/deploy`: valid for Kubernetes, valid for our own programs, and with no more
//! rights than the rows here give a reason for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Deserialize as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tests::cluster::{everything, program};
use tests::directory::Directory;
use tests::kubectl;
use vpc_eni::ec2::Action;

pub const OVERLAYS: [&str; 6] = [
    "vxlan",
    "host-gw",
    "proxy-only",
    "dns-only",
    "cni-only",
    "vpc-eni",
];
/// What takes them off again.
const UNINSTALL: &str = "uninstall";
const ALL: [&str; 7] = [
    "vxlan",
    "host-gw",
    "proxy-only",
    "dns-only",
    "cni-only",
    "vpc-eni",
    UNINSTALL,
];

/// Of kustomize's components: Kubernetes' oldest that these manifests are for.
const OLDEST_KUBECTL: u32 = 27;

/// Which overlays the first column of the tables below means.
const SETS: [(&str, &[&str]); 8] = [
    ("all", &OVERLAYS),
    ("network", &["vxlan", "host-gw", "cni-only"]),
    ("proxy", &["vxlan", "host-gw", "proxy-only"]),
    ("pods", &["vxlan", "host-gw", "cni-only", "vpc-eni"]),
    (
        "either",
        &["vxlan", "host-gw", "proxy-only", "cni-only", "vpc-eni"],
    ),
    ("vpc", &["vpc-eni"]),
    ("dns", &["vxlan", "host-gw", "dns-only"]),
    (UNINSTALL, &[UNINSTALL]),
];

/// Rights over the API: overlays, role, resource, verbs, and what for.
const RIGHTS: &str = "
all     | causeway-node         | services                         | list watch   | what is served
all     | causeway-node         | namespaces                       | list watch   | names in them exist, DNS says so
all     | causeway-node         | endpointslices.discovery.k8s.io  | list watch   | by whom it is served
all     | causeway-node         | nodes                            | list watch   | zones, addresses, subnets of all nodes
all     | causeway-node         | servicecidrs.networking.k8s.io   | list watch   | addresses that no Service has
all     | causeway-node         | events                           | create patch | says what is not served
network | causeway-node-network | nodes/status                     | patch        | annotations, NetworkUnavailable
network | causeway-node-network | networkpolicies.networking.k8s.io | list watch  | says that nobody enforces them
vpc     | causeway-node-vpc-eni | eniconfigs.crd.k8s.amazonaws.com | list watch   | whose subnet pods get addresses of
vpc     | causeway-node-vpc-eni | networkpolicies.networking.k8s.io | list watch  | says that nobody enforces them
";

/// Capabilities: overlays, container, capability, and what for.
const CAPABILITIES: &str = "
all       | agent   | NET_ADMIN        | links, routes, rules, settings below net/
proxy     | agent   | SYS_ADMIN        | BPF programs by id, pods' network namespaces
proxy     | agent   | NET_RAW          | causeway capture in its pod
proxy     | agent   | SYSLOG           | places of drops by name, for causeway trace and drops in its pod
dns       | dns     | NET_BIND_SERVICE | port 53
uninstall | cleanup | NET_ADMIN        | links, addresses, routes, rules
";

/// Paths of the node: overlays, container, path, whether it is writable there, and what for.
const PATHS: &str = "
all       | agent       | /var/lib/causeway/node | rw | pods' addresses outlive it
all       | agent       | /run/causeway          | rw | its sockets
all       | agent       | /proc/sys/net          | rw | settings: the container's own are read-only
proxy     | agent       | /sys/fs/bpf            | rw | pins outlive it
proxy     | agent       | /sys/fs/cgroup         | ro | where the socket hook is attached
either    | agent       | /run/netns             | ro | pods' network namespaces
pods      | agent       | /etc/cni/net.d         | rw | the plugin's configuration
network   | agent       | /run/flannel           | rw | subnet.env
vpc       | agent       | /var/run/aws-node      | ro | whom aws-node connected, and whether it runs
pods      | install-cni | /opt/cni/bin           | rw | the plugin
dns       | dns         | /run/causeway/dns      | ro | the agent's feed, and no other socket
dns       | dns         | /var/lib/causeway/dns  | rw | the last good snapshot
uninstall | cleanup     | /var/lib/causeway/node | rw | tells what is ours
uninstall | cleanup     | /var/lib/causeway/dns  | rw | the last good snapshot
uninstall | cleanup     | /run/causeway          | rw | sockets, pods that were deleted meanwhile
uninstall | cleanup     | /sys/fs/bpf            | rw | pins, with which BPF programs end
uninstall | cleanup     | /opt/cni/bin           | rw | the plugin
uninstall | cleanup     | /etc/cni/net.d         | rw | the plugin's configuration
uninstall | cleanup     | /run/flannel           | rw | subnet.env
";

/// The rows of a table for an overlay, without their reasons, each as words between blanks.
fn rows(table: &str, overlay: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for line in table.lines().filter(|line| !line.is_empty()) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [set, cells @ .., reason] = cells.as_slice() else {
            panic!("not a row: {line}");
        };
        assert!(!reason.is_empty(), "without a reason: {line}");
        let (_, overlays) = SETS.iter().find(|(name, _)| name == set).expect(line);
        if overlays.contains(&overlay) {
            rows.insert(cells.join(" "));
        }
    }
    rows
}

fn overlay(name: &str) -> PathBuf {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy");
    match name {
        UNINSTALL => deploy.join(name),
        overlay => deploy.join("overlays").join(overlay),
    }
}

fn rendered_by(kubectl: &Path, overlay: &Path) -> String {
    let output = Command::new(kubectl).arg("kustomize").arg(overlay).output();
    let output = output.expect("kubectl can be started");
    assert!(output.status.success(), "{overlay:?}: {}", everything(&output));
    String::from_utf8(output.stdout).expect("YAML is text")
}

/// The objects of an overlay, or of what takes them off.
pub fn objects(name: &str) -> Vec<Value> {
    objects_at(&overlay(name))
}

/// The same by the overlay's directory, by the first kubectl that is new enough.
fn objects_at(overlay: &Path) -> Vec<Value> {
    let mut kubectls = kubectl::all().iter();
    let kubectl = kubectls.find(|kubectl| kubectl.minor >= OLDEST_KUBECTL);
    let text = rendered_by(&kubectl.expect("a kubectl with kustomize 5").program, overlay);
    documents(&text)
}

/// The objects of a text of YAML; empty documents are none.
pub fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).expect("YAML"));
    objects.filter(|object| !object.is_null()).collect()
}

fn of_kind<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<T> {
    let wanted = objects.iter().filter(|object| object["kind"] == kind);
    wanted
        .map(|object| T::deserialize(object).expect("checked by the test of all objects"))
        .collect()
}

/// Nothing is lost on the way through Kubernetes' types: there is no field that they do not know, and none of another
/// type.
#[track_caller]
fn check_strictly<T: DeserializeOwned + Serialize + Debug>(object: &Value) {
    let typed = T::deserialize(object).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    assert_eq!(serde_json::to_value(&typed).expect("plain data"), *object);
}

#[test]
fn every_object_is_of_kubernetes_types_to_the_last_field() {
    for name in ALL {
        for object in objects(name) {
            match object["kind"].as_str().unwrap_or_default() {
                "Namespace" => check_strictly::<Namespace>(&object),
                "ServiceAccount" => check_strictly::<ServiceAccount>(&object),
                "ClusterRole" => check_strictly::<ClusterRole>(&object),
                "ClusterRoleBinding" => check_strictly::<ClusterRoleBinding>(&object),
                "ConfigMap" => check_strictly::<ConfigMap>(&object),
                "DaemonSet" => check_strictly::<DaemonSet>(&object),
                other => panic!("{name}: a {other} is not checked here"),
            }
        }
    }
}

#[test]
fn every_kubectl_renders_the_same() {
    for kubectl in kubectl::minors() {
        if kubectl.minor < OLDEST_KUBECTL {
            continue;
        }
        for name in ALL {
            let on_path = rendered_by(&kubectl::all()[0].program, &overlay(name));
            assert_eq!(
                rendered_by(&kubectl.program, &overlay(name)),
                on_path,
                "{kubectl} {name}"
            );
        }
    }
}

#[test]
fn the_programs_accept_what_the_manifests_tell_them() {
    let directory = Directory::new("manifests");
    for name in ALL {
        let maps: Vec<ConfigMap> = of_kind(&objects(name), "ConfigMap");
        let files = maps.iter().flat_map(|map| map.data.iter().flatten());
        for (file, text) in files {
            let path = directory.write(file, text);
            let mut check = Command::new(program("causeway"));
            match file.as_str() {
                "node.yaml" => check.args(["node", "config", "check", "--config"]).arg(path),
                "Corefile" => check.args(["dns", "check"]).arg(path),
                other => panic!("{name}: what reads {other}?"),
            };
            let output = check
                .envs([("NODE_NAME", "node-1"), ("NODE_IP", "192.0.2.1")])
                .output();
            let output = output.expect("causeway can be started");
            assert!(output.status.success(), "{name} {file}: {}", everything(&output));
        }
    }
}

fn pods(name: &str) -> Vec<PodSpec> {
    let sets: Vec<DaemonSet> = of_kind(&objects(name), "DaemonSet");
    let specs = sets.into_iter().filter_map(|set| set.spec?.template.spec);
    specs.collect()
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

/// `role resource.group verbs`, as in the table of rights.
fn granted(roles: &[ClusterRole]) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for role in roles {
        let of = role.metadata.name.clone().unwrap_or_default();
        for rule in role.rules.iter().flatten() {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    let full = format!("{resource}.{group}");
                    let verbs = rule.verbs.join(" ");
                    granted.insert(format!("{of} {} {verbs}", full.trim_end_matches('.')));
                }
            }
            assert_eq!(
                (&rule.non_resource_urls, &rule.resource_names),
                (&None, &None),
                "{of}"
            );
        }
    }
    granted
}

/// The overlay vxlan with one of the components that no overlay has.
pub fn objects_with_component(component: &str) -> Vec<Value> {
    let directory = Directory::new(component);
    let deploy = deploy_from(directory.path());
    let _ = directory.write(
        "kustomization.yaml",
        &format!("resources: [{deploy}/overlays/vxlan]\ncomponents: [{deploy}/components/{component}]\n"),
    );
    objects_at(directory.path())
}

/// `node/deploy` as kustomize takes it from a directory: it takes no absolute paths.
fn deploy_from(directory: &Path) -> String {
    let depth = directory.components().count() - 1;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy");
    let deploy = deploy.canonicalize().expect("there");
    format!("{}{}", "../".repeat(depth), deploy.display()).replace("//", "/")
}

#[test]
fn a_service_for_the_dns_servers_selects_them_at_the_address_that_they_have() {
    let objects = objects_with_component("dns-service");
    let [service] = &of_kind::<Service>(&objects, "Service")[..] else {
        panic!("not one Service: {objects:#?}")
    };
    let spec = service.spec.as_ref().expect("a Service has one");
    let servers = of_kind::<DaemonSet>(&objects, "DaemonSet").into_iter();
    let mut servers = servers.filter(|set| set.metadata.name.as_deref() == Some("causeway-dns"));
    let template = servers.next().and_then(|set| set.spec).expect("there").template;
    assert_eq!(
        spec.selector,
        template.metadata.and_then(|of_pods| of_pods.labels)
    );
    let config = of_kind::<ConfigMap>(&objects, "ConfigMap").into_iter();
    let mut files = config.filter_map(|map| map.data?.remove("node.yaml"));
    let config = documents(&files.next().expect("an agent has one")).remove(0);
    assert_eq!(config["dns"]["address"], json!(spec.cluster_ip));
}

/// What an agent asks of EC2 and what its policy lets it are the same.
#[test]
fn the_iam_policy_has_the_actions_that_the_agent_takes_and_no_other() {
    let text = fs::read_to_string(overlay("vpc-eni").join("iam-policy.json")).expect("there");
    let policy: Value = serde_json::from_str(&text).expect("JSON");
    let statements = policy["Statement"].as_array().into_iter().flatten();
    let actions = statements.flat_map(|statement| {
        assert_eq!(statement["Effect"], "Allow");
        statement["Action"].as_array().into_iter().flatten()
    });
    let found: BTreeSet<_> = actions.filter_map(Value::as_str).map(str::to_owned).collect();
    let needed = Action::ALL.into_iter().filter(|action| action.is_needed());
    let wanted: BTreeSet<_> = needed.map(|action| format!("ec2:{action}")).collect();
    assert_eq!(found, wanted);
}

#[test]
fn the_overlay_of_ones_own_that_the_readme_shows_is_one() {
    let directory = Directory::new("own-overlay");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy");
    let readme = fs::read_to_string(deploy.join("README.md")).expect("there");
    let (_, shown) = readme
        .split_once("```yaml\n# kustomization.yaml\n")
        .expect("it shows one");
    let (shown, _) = shown.split_once("```").expect("its end");
    let overlay = shown.replace("causeway/node/deploy", &deploy_from(directory.path()));
    let _ = directory.write("kustomization.yaml", &overlay);
    let _ = directory.write("node.yaml", "dns: {address: 172.20.0.10}\n");
    let _ = directory.write("Corefile", ". {\n}\n");
    let objects = objects_at(directory.path());
    let text = json!(objects).to_string();
    let images = text.matches("registry.example/causeway:v0.1.0").count();
    assert_eq!(
        (images, text.matches("\"causeway:v0.1.0\"").count()),
        (3, 0),
        "{text}"
    );
    let [service] = &of_kind::<Service>(&objects, "Service")[..] else {
        panic!("not one Service: {text}")
    };
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    assert_eq!(address, Some("172.20.0.10"));
    let maps = of_kind::<ConfigMap>(&objects, "ConfigMap").into_iter();
    let files: Vec<_> = maps.flat_map(|map| map.data.into_iter().flatten()).collect();
    let expected = [
        ("Corefile", ". {\n}\n"),
        ("node.yaml", "dns: {address: 172.20.0.10}\n"),
    ];
    assert!(
        expected
            .iter()
            .all(|(name, said)| files.iter().any(|(file, text)| file == name && text == said)),
        "{files:?}"
    );
    assert_eq!(files.len(), expected.len(), "{files:?}");
}

#[test]
fn the_role_that_vpc_eni_md_shows_is_the_agents() {
    let directory = Directory::new("role");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy");
    let page = fs::read_to_string(deploy.join("VPC-ENI.md")).expect("there");
    let (_, shown) = page.split_once("```yaml\n").expect("it shows one");
    let (shown, _) = shown.split_once("```").expect("its end");
    let _ = directory.write(
        "kustomization.yaml",
        &shown.replace("causeway/node/deploy", &deploy_from(directory.path())),
    );
    let _ = directory.write("node.yaml", "vpcEni: {variables: {WARM_IP_TARGET: \"2\"}}\n");
    let objects = objects_at(directory.path());
    let accounts: Vec<ServiceAccount> = of_kind(&objects, "ServiceAccount");
    let annotations: Vec<_> = accounts
        .into_iter()
        .map(|account| account.metadata.annotations)
        .collect();
    let role = (
        "eks.amazonaws.com/role-arn",
        "arn:aws:iam::111122223333:role/causeway-node",
    );
    let expected = BTreeMap::from([(role.0.to_owned(), role.1.to_owned())]);
    assert_eq!(annotations, [Some(expected)]);
    let maps = of_kind::<ConfigMap>(&objects, "ConfigMap").into_iter();
    let files: Vec<_> = maps.filter_map(|map| map.data?.remove("node.yaml")).collect();
    assert_eq!(files, ["vpcEni: {variables: {WARM_IP_TARGET: \"2\"}}\n"]);
}

#[test]
fn a_startup_taint_costs_one_right_more() {
    let roles: Vec<ClusterRole> = of_kind(&objects_with_component("startup-taint"), "ClusterRole");
    let mut expected = rows(RIGHTS, "vxlan");
    expected.insert("causeway-node-startup-taint nodes patch".to_owned());
    assert_eq!(granted(&roles), expected);
}

#[test]
fn rights_over_the_api_are_those_that_have_a_reason() {
    for name in ALL {
        let roles: Vec<ClusterRole> = of_kind(&objects(name), "ClusterRole");
        let found = granted(&roles);
        assert_eq!(found, rows(RIGHTS, name), "{name}");

        let bindings: Vec<ClusterRoleBinding> = of_kind(&objects(name), "ClusterRoleBinding");
        let bound = bindings.iter().map(|binding| {
            let subjects = binding.subjects.iter().flatten();
            let accounts = subjects.map(|subject| {
                let namespace = subject.namespace.clone().unwrap_or_default();
                format!("{} {namespace}/{}", subject.kind, subject.name)
            });
            (
                binding.role_ref.name.clone(),
                accounts.collect::<Vec<_>>().join(", "),
            )
        });
        let account = "ServiceAccount causeway/causeway-node".to_owned();
        let roles = roles.into_iter().filter_map(|role| role.metadata.name);
        assert_eq!(
            bound.collect::<BTreeSet<_>>(),
            roles.map(|role| (role, account.clone())).collect(),
            "{name}"
        );
    }
}

#[test]
fn capabilities_are_those_that_have_a_reason_and_nothing_is_privileged() {
    for name in ALL {
        let mut found = BTreeSet::new();
        for pod in pods(name) {
            assert_eq!((pod.host_pid, pod.host_ipc), (None, None), "{name}");
            assert_eq!(pod.automount_service_account_token, Some(false), "{name}");
            for container in containers(&pod) {
                let security = container.security_context.clone().expect("it has one");
                let bounds = (
                    security.privileged,
                    security.allow_privilege_escalation,
                    security.read_only_root_filesystem,
                    security.seccomp_profile.map(|profile| profile.type_),
                );
                let wanted = (
                    Some(false),
                    Some(false),
                    Some(true),
                    Some("RuntimeDefault".to_owned()),
                );
                assert_eq!(bounds, wanted, "{name} {}", container.name);
                let capabilities = security.capabilities.expect("it says which");
                assert_eq!(
                    capabilities.drop,
                    Some(vec!["ALL".to_owned()]),
                    "{name} {}",
                    container.name
                );
                let added = capabilities.add.into_iter().flatten();
                found.extend(added.map(|capability| format!("{} {capability}", container.name)));
            }
        }
        assert_eq!(found, rows(CAPABILITIES, name), "{name}");
    }
}

#[test]
fn paths_of_the_node_are_those_that_have_a_reason() {
    for name in ALL {
        let mut found = BTreeSet::new();
        for pod in pods(name) {
            for container in containers(&pod) {
                for mount in container.volume_mounts.iter().flatten() {
                    let mut volumes = pod.volumes.iter().flatten();
                    let volume = volumes.find(|volume| volume.name == mount.name);
                    let volume = volume.unwrap_or_else(|| panic!("{name}: no volume {}", mount.name));
                    if let Some(host) = &volume.host_path {
                        let access = if mount.read_only == Some(true) { "ro" } else { "rw" };
                        found.insert(format!("{} {} {access}", container.name, host.path));
                    }
                }
            }
        }
        assert_eq!(found, rows(PATHS, name), "{name}");
    }
}

/// The places that the agent's configuration of an overlay, or of what takes them off, names, defaults included.
fn places(name: &str) -> BTreeMap<&'static str, Value> {
    let directory = Directory::new("places");
    let maps: Vec<ConfigMap> = of_kind(&objects(name), "ConfigMap");
    let mut files = maps.into_iter().filter_map(|map| map.data?.remove("node.yaml"));
    let path = directory.write("node.yaml", &files.next().expect("it has one"));
    let mut print = Command::new(program("causeway"));
    print.args(["node", "config", "print", "--node-name=node-1", "--config"]);
    let output = print.arg(path).output().expect("causeway can be started");
    assert!(output.status.success(), "{name}: {}", everything(&output));
    let config: Value = serde_yaml_ng::from_slice(&output.stdout).expect("YAML");
    let feeds = config["dns"]["enabled"] == true;
    let named = [
        "/stateDir",
        "/network/subnetEnv",
        "/network/leases",
        "/proxy/pinDir",
        "/cni/socket",
        "/cni/confDir",
        "/dns/feedSocket",
    ];
    let named = named.into_iter().filter(|key| feeds || *key != "/dns/feedSocket");
    let there = named.filter_map(|key| Some((key, config.pointer(key)?.clone())));
    there.collect()
}

#[test]
fn what_takes_them_off_looks_where_the_overlays_put_things() {
    let looked_at = places(UNINSTALL);
    assert_eq!(looked_at.len(), 7, "{looked_at:?}");
    let removable = written_paths(UNINSTALL);
    for name in OVERLAYS {
        for (key, place) in places(name) {
            assert_eq!(looked_at.get(key), Some(&place), "{name}: {key}");
        }
        let mut written = written_paths(name);
        // Settings stay, and are told.
        written.remove("/proc/sys/net");
        assert!(
            written.is_subset(&removable),
            "{name}: {written:?}, not {removable:?}"
        );
    }
}

/// The paths of the node that an overlay's containers can write to.
fn written_paths(name: &str) -> BTreeSet<String> {
    let rows = rows(PATHS, name).into_iter();
    let path = |row: String| Some(row.strip_suffix(" rw")?.split_once(' ')?.1.to_owned());
    rows.filter_map(path).collect()
}

/// Only the agent speaks to the API, and what a pod refers to is there.
#[test]
fn the_token_is_the_agents_alone_and_every_config_map_is_there() {
    for name in ALL {
        let maps: Vec<ConfigMap> = of_kind(&objects(name), "ConfigMap");
        let made: BTreeSet<_> = maps.into_iter().filter_map(|map| map.metadata.name).collect();
        for pod in pods(name) {
            let volumes = || pod.volumes.iter().flatten();
            for map in volumes().filter_map(|volume| volume.config_map.as_ref()) {
                assert!(
                    made.contains(&map.name),
                    "{name}: {} is not in {made:?}",
                    map.name
                );
            }
            let tokens = volumes().filter(|volume| volume.projected.is_some());
            let tokens: BTreeSet<&str> = tokens.map(|volume| volume.name.as_str()).collect();
            for container in containers(&pod) {
                let mut mounts = container.volume_mounts.iter().flatten();
                let has_token = mounts.any(|mount| tokens.contains(mount.name.as_str()));
                assert_eq!(has_token, container.name == "agent", "{name} {}", container.name);
            }
        }
    }
}
