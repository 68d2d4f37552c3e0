//! The OCI runtime specification of one container: a pure translation of what the kubelet decided.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The capabilities of a container that asks for nothing: those of docker and containerd.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that a privileged container gets, where the kubelet has it itself. By number (`linux/capability.h`).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Kernel interfaces that tell about the machine or change it.
const MASKED_PATHS: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Microseconds of one CPU accounting period, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Limits of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Most memory, in bytes.
    pub memory_limit_bytes: Option<i64>,
    /// Most CPU time, in thousandths of a CPU.
    pub cpu_limit_millis: Option<u64>,
    /// Share of CPU time under contention, in thousandths of a CPU.
    pub cpu_request_millis: u64,
}

/// A directory or file of the node that the container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// On the node.
    pub source: PathBuf,
    /// The volume that `source` is a part of, and must not lead out of (`subPath`).
    pub within: Option<PathBuf>,
    /// In the container.
    pub target: PathBuf,
    /// Not writable in the container.
    pub read_only: bool,
    /// What the node mounts there later appears in the container too.
    pub follows_node: bool,
}

/// A device file of the node that the container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Below `/dev`.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    /// Numbers of driver and device.
    pub numbers: (u64, u64),
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// Rights of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Everything is allowed.
    pub privileged: bool,
    /// Capabilities to add, without `CAP_`, or `ALL`.
    pub add: Vec<String>,
    /// Capabilities to take away, without `CAP_`, or `ALL`.
    pub drop: Vec<String>,
    /// Capabilities that nobody gets, a bit for each number: the kubelet lacks them itself, and execve(2) would fail.
    pub withheld: u64,
    /// No cgroup keeps the container from the node's devices, so that it must not make device files.
    pub devices_unguarded: bool,
    /// The root file system is not writable.
    pub read_only_root: bool,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
}

/// What the containers of a pod share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedIpc {
    /// Their IPC namespace.
    pub namespace: PathBuf,
    /// What they see at `/dev/shm`.
    pub shm: PathBuf,
}

/// What a container is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// It has a terminal.
    pub terminal: bool,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Host name in its UTS namespace.
    pub hostname: String,
    /// Network namespace to join; `None` = the node's own.
    pub netns: Option<PathBuf>,
    /// IPC namespace and `/dev/shm` of its pod; `None` = its own.
    pub ipc: Option<SharedIpc>,
    /// It sees the processes of the node.
    pub host_pid: bool,
    /// PID namespace to join; `None` = its own.
    pub shared_pids: Option<PathBuf>,
    /// Settings of the kernel for its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// It shares memory and semaphores with the node.
    pub host_ipc: bool,
    /// Root file system, as the shim mounts it.
    pub rootfs: PathBuf,
    /// Volumes and the files in `/etc`, in the order in which they are mounted.
    pub mounts: Vec<BindMount>,
    /// Devices besides those that every container has.
    pub devices: Vec<Device>,
    /// cgroup path from each hierarchy's root.
    pub cgroup_path: PathBuf,
    /// Limits.
    pub resources: Resources,
    /// Rights.
    pub security: Security,
    /// `oom_score_adj`; `None` leaves the kubelet's (lowering it needs CAP_SYS_RESOURCE).
    pub oom_score_adj: Option<i32>,
}

/// The `config.json` of the container.
pub fn oci_config(spec: &ContainerSpec) -> Value {
    let capabilities: Vec<String> = capabilities(&spec.security)
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    let mut process = json!({
        "terminal": spec.terminal,
        "user": {
            "uid": spec.security.uid,
            "gid": spec.security.gid,
            "additionalGids": spec.security.groups,
        },
        "args": spec.args,
        "env": spec.env,
        "cwd": spec.cwd,
        "noNewPrivileges": spec.security.no_new_privileges,
        "capabilities": {
            "bounding": capabilities,
            // A user other than root gets none of them by execve(2), as with every other runtime.
            "effective": capabilities,
            "permitted": capabilities,
        },
    });
    if let (Some(score), Some(process)) = (spec.oom_score_adj, process.as_object_mut()) {
        process.insert("oomScoreAdj".to_owned(), json!(score));
    }
    let (masked, read_only): (&[&str], &[&str]) = if spec.security.privileged {
        (&[], &[])
    } else {
        (&MASKED_PATHS, &READ_ONLY_PATHS)
    };
    json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": spec.rootfs, "readonly": spec.security.read_only_root },
        "hostname": spec.hostname,
        "mounts": mounts(spec),
        "linux": {
            "cgroupsPath": spec.cgroup_path,
            "namespaces": namespaces(spec),
            "sysctl": spec.sysctls,
            "devices": spec.devices.iter().map(device).collect::<Vec<Value>>(),
            "resources": resources(spec),
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    })
}

fn capabilities(security: &Security) -> BTreeSet<&str> {
    let named = |list: &[String], name: &str| list.iter().any(|entry| entry == name || entry == "ALL");
    let plain = |entry: &'_ str| entry.strip_prefix("CAP_").unwrap_or(entry).to_owned();
    let add: Vec<String> = security.add.iter().map(|entry| plain(entry)).collect();
    let drop: Vec<String> = security.drop.iter().map(|entry| plain(entry)).collect();
    ALL_CAPABILITIES
        .into_iter()
        .enumerate()
        .filter(|(number, _)| security.withheld >> number & 1 == 0)
        .map(|(_, name)| name)
        .filter(|name| *name != "MKNOD" || security.privileged || !security.devices_unguarded)
        .filter(|name| {
            let default = DEFAULT_CAPABILITIES.contains(name) && !named(&drop, name);
            security.privileged || named(&add, name) && !drop.iter().any(|entry| entry == name) || default
        })
        .collect()
}

fn mounts(spec: &ContainerSpec) -> Vec<Value> {
    let system = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let sys_access = if spec.security.privileged { "rw" } else { "ro" };
    // Memory that is shared by name (shm_overview(7)) is files there, which an IPC namespace alone does not share.
    let shared = |source: &Path| {
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"];
        json!({ "destination": "/dev/shm", "type": "bind", "source": source, "options": options })
    };
    let shm = match &spec.ipc {
        _ if spec.host_ipc => shared(Path::new("/dev/shm")),
        Some(ipc) => shared(&ipc.shm),
        None => {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
            system("/dev/shm", "tmpfs", &options)
        }
    };
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        system(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        shm,
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys_access]),
    ];
    mounts.extend(spec.mounts.iter().map(|mount| {
        let access = if mount.read_only { "ro" } else { "rw" };
        let propagation = if mount.follows_node { "rslave" } else { "rprivate" };
        json!({
            "destination": mount.target,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", propagation, access],
        })
    }));
    mounts
}

fn device(device: &Device) -> Value {
    json!({
        "path": device.path, "type": device.kind, "major": device.numbers.0, "minor": device.numbers.1,
        "fileMode": device.mode, "uid": device.owner.0, "gid": device.owner.1,
    })
}

fn namespaces(spec: &ContainerSpec) -> Vec<Value> {
    let of_pod = |kind: &str, path: Option<&PathBuf>| match path {
        Some(path) => json!({ "type": kind, "path": path }),
        None => json!({ "type": kind }),
    };
    let mut namespaces = vec![of_pod("uts", None), of_pod("mount", None)];
    if !spec.host_pid {
        namespaces.push(of_pod("pid", spec.shared_pids.as_ref()));
    }
    if !spec.host_ipc {
        namespaces.push(of_pod("ipc", spec.ipc.as_ref().map(|ipc| &ipc.namespace)));
    }
    if spec.netns.is_some() {
        namespaces.push(of_pod("network", spec.netns.as_ref()));
    }
    namespaces
}

fn resources(spec: &ContainerSpec) -> Value {
    let mut cpu = json!({ "shares": cpu_shares(spec.resources.cpu_request_millis) });
    if let (Some(limit), Some(cpu)) = (spec.resources.cpu_limit_millis, cpu.as_object_mut()) {
        cpu.insert(
            "quota".to_owned(),
            json!((limit * CPU_PERIOD_US / 1000).max(1000)),
        );
        cpu.insert("period".to_owned(), json!(CPU_PERIOD_US));
    }
    let mut resources = json!({ "cpu": cpu });
    if let Some(map) = resources.as_object_mut() {
        if let Some(limit) = spec.resources.memory_limit_bytes {
            map.insert("memory".to_owned(), json!({ "limit": limit }));
        }
        // libcontainer adds what every container may use (null, zero, random, its terminals).
        let all = json!([{ "allow": spec.security.privileged, "access": "rwm" }]);
        map.insert("devices".to_owned(), all);
    }
    resources
}

/// cgroup v1 shares: 1024 per CPU, at least 2 (the kernel's smallest), as Kubernetes computes them.
fn cpu_shares(millis: u64) -> u64 {
    (millis * 1024 / 1000).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_but(name: &'static str) -> impl Iterator<Item = &'static str> {
        ALL_CAPABILITIES.into_iter().filter(move |one| *one != name)
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn capabilities_follow_add_and_drop() {
        let default: BTreeSet<&str> = DEFAULT_CAPABILITIES.into_iter().collect();
        let all: BTreeSet<&str> = ALL_CAPABILITIES.into_iter().collect();
        let with = |name| default.iter().copied().chain([name]).collect::<BTreeSet<_>>();
        for (add, drop, privileged, expected) in [
            (words(&[]), words(&[]), false, default.clone()),
            (words(&["NET_ADMIN"]), words(&[]), false, with("NET_ADMIN")),
            (words(&["CAP_NET_ADMIN"]), words(&[]), false, with("NET_ADMIN")),
            (
                words(&["NET_BIND_SERVICE"]),
                words(&["ALL"]),
                false,
                BTreeSet::from(["NET_BIND_SERVICE"]),
            ),
            (words(&["ALL"]), words(&[]), false, all.clone()),
            (words(&[]), words(&["ALL"]), true, all),
        ] {
            let security = Security {
                add,
                drop,
                privileged,
                ..Security::default()
            };
            assert_eq!(capabilities(&security), expected, "{security:?}");
        }
        let without = Security {
            privileged: true,
            withheld: 1 << 24,
            ..Security::default()
        };
        let expected: BTreeSet<&str> = all_but("SYS_RESOURCE").collect();
        assert_eq!(capabilities(&without), expected);
    }

    #[test]
    fn device_files_are_made_only_where_a_cgroup_guards_the_devices() {
        for (add, privileged, devices_unguarded, expected) in [
            (words(&[]), false, false, true),
            (words(&[]), false, true, false),
            (words(&["MKNOD"]), false, true, false),
            (words(&["ALL"]), false, true, false),
            (words(&[]), true, true, true),
        ] {
            let security = Security {
                add,
                privileged,
                devices_unguarded,
                ..Security::default()
            };
            let seen = capabilities(&security).contains("MKNOD");
            assert_eq!(seen, expected, "{security:?}");
        }
    }

    #[test]
    fn namespaces_are_the_pods_the_nodes_or_the_containers_own() {
        let ipc = SharedIpc {
            namespace: "/pod/ipc".into(),
            shm: "/pod/shm".into(),
        };
        let (pids, netns): (PathBuf, PathBuf) = ("/proc/7/ns/pid".into(), "/run/netns/a".into());
        let (of_pod, of_node) = (
            ContainerSpec {
                ipc: Some(ipc),
                shared_pids: Some(pids),
                netns: Some(netns),
                ..ContainerSpec::default()
            },
            ContainerSpec {
                host_pid: true,
                host_ipc: true,
                ..ContainerSpec::default()
            },
        );
        for (spec, expected, shm) in [
            (&ContainerSpec::default(), "uts mount pid ipc", "tmpfs"),
            (
                &of_pod,
                "uts mount pid=/proc/7/ns/pid ipc=/pod/ipc network=/run/netns/a",
                "/pod/shm",
            ),
            (&of_node, "uts mount", "/dev/shm"),
        ] {
            let config = oci_config(spec);
            let told = |one: &Value| match one["path"].as_str() {
                Some(path) => format!("{}={path}", one["type"].as_str().unwrap_or_default()),
                None => one["type"].as_str().unwrap_or_default().to_owned(),
            };
            let namespaces: Vec<String> = config["linux"]["namespaces"]
                .as_array()
                .expect("a list")
                .iter()
                .map(told)
                .collect();
            assert_eq!(namespaces.join(" "), expected);
            let mounts = config["mounts"].as_array().expect("a list").iter();
            let sources = mounts
                .filter(|mount| mount["destination"] == "/dev/shm")
                .map(|mount| &mount["source"]);
            assert_eq!(sources.collect::<Vec<_>>(), [shm]);
        }
    }

    #[test]
    fn cpu_shares_are_those_of_kubernetes() {
        for (millis, shares) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(cpu_shares(millis), shares);
        }
    }
}
