//! From a container of a pod to the OCI specification.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::devices;
use super::env::{ConfigError, expand, undefined};
use super::quantity;
use super::volumes::safe_relative;
use crate::images::Image;
use crate::images::users::Accounts;
use crate::oci::{BindMount, ContainerSpec, Resources, Security, SharedIpc};

/// Where programs are looked for when the image says nothing.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container is made from besides its own definition.
pub struct ContainerContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The image.
    pub image: &'a Image,
    /// Variables of the container.
    pub variables: &'a BTreeMap<String, String>,
    /// Volumes by name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// `hosts`, `hostname`, `resolv.conf` of the pod.
    pub etc: &'a Path,
    /// File of the termination message.
    pub termination_log: &'a Path,
    /// Host name.
    pub hostname: String,
    /// Network namespace.
    pub netns: Option<PathBuf>,
    /// IPC namespace and `/dev/shm` of the pod.
    pub ipc: Option<SharedIpc>,
    /// PID namespace of the pod, where its containers share one.
    pub shared_pids: Option<PathBuf>,
    /// Root file system.
    pub rootfs: PathBuf,
    /// cgroup path from each hierarchy's root.
    pub cgroup_path: PathBuf,
    /// The kubelet's own `oom_score_adj`, below which it cannot go.
    pub own_oom_score: i32,
    /// The kubelet's own capabilities, a bit for each number.
    pub own_capabilities: u64,
    /// A cgroup keeps containers from the node's devices.
    pub devices_guarded: bool,
}

/// The container's specification.
pub fn container_spec(
    container: &Container,
    context: &ContainerContext,
) -> Result<ContainerSpec, ConfigError> {
    let pod_security = context
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let security = Security {
        withheld: !context.own_capabilities,
        devices_unguarded: !context.devices_guarded,
        ..security(container, pod_security, context.image)?
    };
    let args = arguments(container, context);
    if args.is_empty() {
        return Err(ConfigError("no command specified".to_owned()));
    }
    let cwd = [
        container.working_dir.as_deref(),
        Some(context.image.config.working_dir.as_str()),
    ]
    .into_iter()
    .flatten()
    .find(|directory| !directory.is_empty())
    .unwrap_or("/");
    let asks = |field: fn(&PodSpec) -> Option<bool>| context.pod.spec.as_ref().and_then(field) == Some(true);
    Ok(ContainerSpec {
        args,
        terminal: container.tty.unwrap_or(false),
        env: environment(context, container.tty.unwrap_or(false)),
        cwd: cwd.to_owned(),
        hostname: context.hostname.clone(),
        netns: context.netns.clone(),
        ipc: context.ipc.clone(),
        host_pid: asks(|spec| spec.host_pid),
        shared_pids: context.shared_pids.clone(),
        sysctls: sysctls(pod_security),
        host_ipc: asks(|spec| spec.host_ipc),
        rootfs: context.rootfs.clone(),
        mounts: mounts(container, context)?,
        devices: if security.privileged {
            devices::of_node(Path::new("/dev"))
        } else {
            Vec::new()
        },
        cgroup_path: context.cgroup_path.clone(),
        resources: resources(container),
        security,
        oom_score_adj: (is_best_effort(context.pod) && context.own_oom_score <= 1000).then_some(1000),
    })
}

/// `command` replaces the entrypoint and drops the image's `cmd`; `args` replace `cmd`.
fn arguments(container: &Container, context: &ContainerContext) -> Vec<String> {
    let image = &context.image.config;
    let expanded = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| expand(word, context.variables)).collect()
    };
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    match (command.is_empty(), args.is_empty()) {
        (false, _) => [expanded(command), expanded(args)].concat(),
        (true, false) => [image.entrypoint.clone(), expanded(args)].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    }
}

/// PATH, HOSTNAME and, with a terminal, TERM, then the image's, then the pod's.
fn environment(context: &ContainerContext, terminal: bool) -> Vec<String> {
    let mut own = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", context.hostname)];
    if terminal {
        own.push("TERM=xterm".to_owned());
    }
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for pair in own.iter().chain(&context.image.config.env) {
        if let Some((name, value)) = pair.split_once('=') {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    variables.extend(context.variables.clone());
    variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn mounts(container: &Container, context: &ContainerContext) -> Result<Vec<BindMount>, ConfigError> {
    let bind = |source: PathBuf, target: &str, read_only| BindMount {
        source,
        within: None,
        target: PathBuf::from(target),
        read_only,
        follows_node: false,
    };
    let volumes = context
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let written_here: Vec<&str> = volumes
        .filter(|volume| is_written_by_kubelet(volume))
        .map(|volume| volume.name.as_str())
        .collect();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = context.volumes.get(&mount.name).ok_or_else(|| {
            ConfigError(format!(
                "volume mount \"{}\" names no volume of the pod",
                mount.name
            ))
        })?;
        let read_only = mount.read_only.unwrap_or(false) || written_here.contains(&mount.name.as_str());
        let whole = BindMount {
            follows_node: follows_node(mount)?,
            ..bind(volume.clone(), &mount.mount_path, read_only)
        };
        mounts.push(match sub_path(mount, context.variables)? {
            Some(path) => BindMount {
                source: volume.join(safe_relative(&path)),
                within: Some(volume.clone()),
                ..whole
            },
            None => whole,
        });
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !mounts.iter().any(|mount| mount.target == Path::new(&target)) {
            mounts.push(bind(context.etc.join(name), &target, false));
        }
    }
    let message = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    mounts.push(bind(context.termination_log.to_owned(), message, false));
    Ok(mounts)
}

/// What the pod sets of the kernel, once it was allowed to; names as sysctl(8) writes them.
fn sysctls(pod: Option<&PodSecurityContext>) -> BTreeMap<String, String> {
    let sysctls = pod.into_iter().flat_map(|pod| pod.sysctls.iter().flatten());
    sysctls
        .map(|one| (one.name.replace('/', "."), one.value.clone()))
        .collect()
}

fn follows_node(mount: &VolumeMount) -> Result<bool, ConfigError> {
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(false),
        Some("HostToContainer") => Ok(true),
        Some(other) => Err(ConfigError(format!(
            "mountPropagation {other} of volume mount \"{}\" is not supported by this kubelet yet",
            mount.name
        ))),
    }
}

/// The part of the volume that is mounted (`ExpandContainerVolumeMounts` of `pkg/kubelet/container`).
fn sub_path(
    mount: &VolumeMount,
    variables: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let expression = mount.sub_path_expr.as_deref().filter(|path| !path.is_empty());
    let path = match expression {
        None => mount.sub_path.clone().unwrap_or_default(),
        Some(expression) => match undefined(expression, variables) {
            Some(name) => return Err(ConfigError(format!("missing value for \"{name}\""))),
            None => expand(expression, variables),
        },
    };
    if path.starts_with('/') {
        return Err(ConfigError(format!(
            "error SubPath `{path}` must not be an absolute path"
        )));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(ConfigError(format!(
            "unable to provision SubPath `{path}`: must not contain '..'"
        )));
    }
    Ok(Some(path).filter(|path| !path.is_empty()))
}

/// Contents that come from the API. Containers only read them: the kubelet goes on writing there, as root, and must
/// not follow links that a container made (CVE-2017-1002102).
fn is_written_by_kubelet(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn security(
    container: &Container,
    pod: Option<&PodSecurityContext>,
    image: &Image,
) -> Result<Security, ConfigError> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let wanted = number(own.run_as_user).or(number(pod.and_then(|pod| pod.run_as_user)));
    let named = wanted.map_or_else(|| image.config.user.clone(), |uid| uid.to_string());
    let accounts = Accounts::of(&image.rootfs);
    let user = accounts.find(&named).map_err(|name| {
        ConfigError(format!(
            "unable to find user {name}: no matching entries in passwd file"
        ))
    })?;
    let gid = number(own.run_as_group)
        .or(number(pod.and_then(|pod| pod.run_as_group)))
        .unwrap_or(user.gid);
    let non_root = own.run_as_non_root.or(pod.and_then(|pod| pod.run_as_non_root));
    if non_root == Some(true) {
        check_non_root(wanted, &image.config.user, user.uid)?;
    }
    let of_pod = pod
        .into_iter()
        .flat_map(|pod| pod.supplemental_groups.iter().flatten().chain(&pod.fs_group));
    let of_pod = of_pod.filter_map(|group| u32::try_from(*group).ok());
    let groups: BTreeSet<u32> = user.groups.iter().copied().chain(of_pod).collect();
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(Security {
        uid: user.uid,
        gid,
        groups: groups.into_iter().collect(),
        privileged: own.privileged.unwrap_or(false),
        withheld: 0,
        devices_unguarded: false,
        add: capabilities.add.unwrap_or_default(),
        drop: capabilities.drop.unwrap_or_default(),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
    })
}

/// `verifyRunAsNonRoot` of `pkg/kubelet/kuberuntime`: a name in the image may mean root, whatever it is now. `uid` is
/// what the container gets.
fn check_non_root(wanted: Option<u32>, image_user: &str, uid: u32) -> Result<(), ConfigError> {
    let name = image_user.split(':').next().unwrap_or_default();
    let refused = match (wanted, uid) {
        (Some(_), 0) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, 0) => "container has runAsNonRoot and image will run as root".to_owned(),
        (None, _) if name.parse::<u32>().is_err() => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
        (None, _) => return Ok(()),
    };
    Err(ConfigError(refused))
}

fn resources(container: &Container) -> Resources {
    let none = k8s_openapi::api::core::v1::ResourceRequirements::default();
    let wanted = container.resources.as_ref().unwrap_or(&none);
    let find = |list: &Option<BTreeMap<String, Quantity>>, name: &str| {
        list.as_ref()
            .and_then(|list| list.get(name))
            .map(|quantity| quantity.0.clone())
    };
    let cpu = |list| find(list, "cpu").and_then(|text| u64::try_from(quantity::millis(&text)?).ok());
    let limit = cpu(&wanted.limits);
    Resources {
        memory_limit_bytes: find(&wanted.limits, "memory").and_then(|text| quantity::whole(&text)),
        cpu_limit_millis: limit,
        cpu_request_millis: cpu(&wanted.requests).or(limit).unwrap_or(0),
    }
}

/// Whether no container asks for or limits anything: quality of service `BestEffort`.
pub fn is_best_effort(pod: &Pod) -> bool {
    let asks = |container: &Container| {
        container.resources.as_ref().is_some_and(|resources| {
            let some =
                |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().is_some_and(|l| !l.is_empty());
            some(&resources.requests) || some(&resources.limits)
        })
    };
    let init = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let main = pod.spec.iter().flat_map(|spec| &spec.containers);
    !init.chain(main).any(asks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageConfig;
    use serde_json::{Value, json};

    fn spec_of(container: Value) -> Result<ContainerSpec, ConfigError> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}}))
                .expect("a valid pod");
        let image = Image {
            id: "sha256:0".to_owned(),
            names: Vec::new(),
            size_bytes: 0,
            config: ImageConfig {
                entrypoint: vec!["/entry".to_owned()],
                cmd: vec!["cmd".to_owned()],
                ..ImageConfig::default()
            },
            rootfs: PathBuf::from("/image"),
        };
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let volumes = BTreeMap::from([("v".to_owned(), PathBuf::from("/volumes/v"))]);
        let context = ContainerContext {
            pod: &pod,
            image: &image,
            variables: &variables,
            volumes: &volumes,
            etc: Path::new("/pod/etc"),
            termination_log: Path::new("/pod/message"),
            hostname: "p".to_owned(),
            netns: None,
            ipc: None,
            shared_pids: None,
            rootfs: PathBuf::from("/rootfs"),
            cgroup_path: PathBuf::from("/cgroup"),
            own_oom_score: 0,
            own_capabilities: u64::MAX,
            devices_guarded: true,
        };
        let container = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.first())
            .expect("one container");
        container_spec(container, &context)
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        for (container, expected) in [
            (json!({}), vec!["/entry", "cmd"]),
            (json!({"args": ["x", "$(A)"]}), vec!["/entry", "x", "1"]),
            (json!({"command": ["/c"]}), vec!["/c"]),
            (
                json!({"command": ["/c", "$(NO)"], "args": ["x"]}),
                vec!["/c", "$(NO)", "x"],
            ),
        ] {
            assert_eq!(spec_of(container).expect("a valid container").args, expected);
        }
    }

    #[test]
    fn limits_become_resources() {
        let container = json!({"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}});
        let expected = Resources {
            memory_limit_bytes: Some(64 << 20),
            cpu_limit_millis: Some(500),
            cpu_request_millis: 500,
        };
        assert_eq!(spec_of(container).expect("valid").resources, expected);
    }

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let mounted = |mount: Value| {
            let spec = spec_of(json!({"volumeMounts": [mount]})).map_err(|error| error.to_string())?;
            Ok(spec.mounts.first().map(|mount| mount.source.clone()))
        };
        for (mount, expected) in [
            (json!({"subPath": "etc"}), Ok(Some("/volumes/v/etc".into()))),
            (
                json!({"subPathExpr": "a/$(A)"}),
                Ok(Some("/volumes/v/a/1".into())),
            ),
            (json!({"subPathExpr": "$(NO)/a"}), Err("missing value for \"NO\"")),
            (
                json!({"subPath": "../../etc"}),
                Err("unable to provision SubPath `../../etc`: must not contain '..'"),
            ),
            (
                json!({"subPath": "/etc"}),
                Err("error SubPath `/etc` must not be an absolute path"),
            ),
            (
                json!({"name": "no"}),
                Err("volume mount \"no\" names no volume of the pod"),
            ),
            (
                json!({"mountPropagation": "Bidirectional"}),
                Err(
                    "mountPropagation Bidirectional of volume mount \"v\" is not supported by this kubelet yet",
                ),
            ),
        ] {
            let mut full = json!({"name": "v", "mountPath": "/x"});
            for (key, value) in mount.as_object().into_iter().flatten() {
                full[key] = value.clone();
            }
            assert_eq!(mounted(full), expected.map_err(str::to_owned), "{mount}");
        }
    }

    #[test]
    fn what_the_kubelet_writes_is_read_only_in_containers() {
        for (volume, expected) in [
            (json!({"configMap": {"name": "c"}}), true),
            (json!({"secret": {"secretName": "s"}}), true),
            (json!({"projected": {"sources": []}}), true),
            (json!({"downwardAPI": {"items": []}}), true),
            (json!({"emptyDir": {}}), false),
            (json!({"hostPath": {"path": "/x"}}), false),
        ] {
            let mut volume = volume;
            volume["name"] = json!("v");
            let volume: Volume = serde_json::from_value(volume).expect("a valid volume");
            assert_eq!(is_written_by_kubelet(&volume), expected, "{volume:?}");
        }
    }

    #[test]
    fn root_is_refused_where_the_pod_forbids_it() {
        let error = spec_of(json!({"securityContext": {"runAsNonRoot": true}})).expect_err("root");
        assert_eq!(
            error.to_string(),
            "container has runAsNonRoot and image will run as root"
        );
        let spec = spec_of(json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 1000}}));
        assert_eq!(spec.expect("valid").security.uid, 1000);
    }
}
