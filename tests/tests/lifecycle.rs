//! `causeway up` and `down` as such: what they refuse, what they leave behind, and what they make of a crash.

#[path = "lifecycle/external_etcd.rs"]
mod external_etcd;
#[path = "lifecycle/older_apis.rs"]
mod older_apis;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tests::cluster::{Cluster, causeway, everything, programs};
use tests::process::copy_program;

type Scenario = fn() -> anyhow::Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("up_refuses_what_cannot_work_and_leaves_nothing", up_refuses),
    (
        "up_names_what_the_kernel_lacks_and_how_to_get_it",
        up_names_what_is_missing,
    ),
    ("only_root_can_bring_a_cluster_up", only_root),
    ("down_leaves_nothing_behind", down_leaves_nothing),
    (
        "a_cluster_runs_on_an_etcd_with_certificates_users_and_a_member_that_is_away",
        external_etcd::a_cluster_on_an_external_etcd,
    ),
    ("up_after_a_crash_cleans_up_first", up_after_a_crash),
    (
        "agents_follow_an_api_server_that_becomes_older_and_newer",
        older_apis,
    ),
    (
        "down_without_a_cluster_is_no_error_and_status_says_so",
        nothing_is_up,
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runnable = tests::privileged("bringing clusters up and down");
    let trials = SCENARIOS.iter().map(|(name, scenario)| {
        Trial::test(*name, move || {
            scenario().map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_ignored_flag(!runnable)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn state_dir() -> PathBuf {
    PathBuf::from(format!("/var/lib/cwt-lifecycle-{}", std::process::id()))
}

/// What a cluster makes in the kernel and on disk, by name.
fn kernel_state() -> anyhow::Result<BTreeSet<String>> {
    let mut state = BTreeSet::new();
    let mut netlink = netlink::Netlink::open()?;
    for link in netlink::Kernel::links(&mut netlink)? {
        state.insert(format!("link {}", link.name));
    }
    for name in netlink::Namespace::pinned()? {
        state.insert(format!("namespace {name}"));
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        state.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
    }
    for entry in fs::read_dir("/proc")?.flatten() {
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let name = program
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        // A program's own name, also where a container runs it from its image.
        if name.starts_with("causeway") || ["testserver", "pause"].contains(&name.as_str()) {
            state.insert(format!("process {}", entry.file_name().display()));
        }
    }
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        for cgroup in cgroups_named(root, 3) {
            state.insert(format!("cgroup {cgroup}"));
        }
    }
    let tables = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .context("starting nft")?;
    state.extend(
        String::from_utf8_lossy(&tables.stdout)
            .lines()
            .map(|table| format!("nft {table}")),
    );
    state.insert(format!(
        "ip_forward {}",
        netlink::sysctl::read("net/ipv4/ip_forward")?
    ));
    state.extend(state_dir().exists().then(|| "state directory".to_owned()));
    state.extend(
        PathBuf::from("/run/causeway.owner")
            .exists()
            .then(|| "owner file".to_owned()),
    );
    Ok(state)
}

fn cgroups_named(root: &str, depth: usize) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let dirs = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found = Vec::new();
    for dir in dirs {
        let path = dir.path().display().to_string();
        if dir.file_name().to_string_lossy().contains("causeway") {
            found.push(path.clone());
        }
        if depth > 1 {
            found.extend(cgroups_named(&path, depth - 1));
        }
    }
    found
}

fn ensure_unchanged(before: &BTreeSet<String>) -> anyhow::Result<()> {
    let after = kernel_state()?;
    let left: Vec<_> = after.difference(before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(
        left.is_empty() && lost.is_empty(),
        "left behind: {left:#?}\ntaken away: {lost:#?}"
    );
    Ok(())
}

fn down_leaves_nothing() -> anyhow::Result<()> {
    let before = kernel_state()?;
    let ours: Vec<_> = before.iter().filter(|thing| thing.contains("causeway")).collect();
    ensure!(
        ours.is_empty(),
        "there before the test, so that it could not tell what is left after: {ours:#?}"
    );
    let cluster = Cluster::up(&state_dir(), &["--nodes", "2"])?;
    let manifest = include_str!("../../examples/hello.yaml");
    cluster.apply(manifest)?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let status = cluster.causeway("status", &[])?;
    ensure!(status.status.success(), "{}", everything(&status));
    let json = cluster.causeway("status", &["-o", "json"])?;
    let report: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    ensure!(report["nodes"].as_array().map(Vec::len) == Some(2), "{report}");
    let again = cluster.causeway("up", &["--nodes", "2"])?;
    ensure!(
        again.status.success() && everything(&again).contains("up already"),
        "{}",
        everything(&again)
    );
    let other = causeway("up", &state_dir().with_extension("other"), &[])?;
    ensure!(
        other.status.code() == Some(2) && everything(&other).contains("is up on this machine"),
        "{}",
        everything(&other)
    );
    let down = cluster.causeway("down", &[])?;
    ensure!(down.status.success(), "{}", everything(&down));
    ensure_unchanged(&before)
}

fn up_after_a_crash() -> anyhow::Result<()> {
    let before = kernel_state()?;
    let cluster = Cluster::up(&state_dir(), &["--nodes", "2"])?;
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: b}}")?;
    // The machine's worst day: the supervisor first, then the control plane and an agent.
    let supervisor = supervisor_pid()?;
    let victims = [
        supervisor,
        cluster.pid("control-plane")?,
        cluster.pid("node-1-agent")?,
    ];
    for pid in victims {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    }
    let status = cluster.causeway("status", &[])?;
    ensure!(status.status.code() == Some(1), "{}", everything(&status));
    let up = cluster.causeway("up", &["--nodes", "2"])?;
    ensure!(
        up.status.success() && everything(&up).contains("clean up after a crash"),
        "{}",
        everything(&up)
    );
    let kept = cluster.run(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])?;
    ensure!(kept == "b", "the store lost an object: {kept:?}");
    let down = cluster.causeway("down", &[])?;
    ensure!(down.status.success(), "{}", everything(&down));
    ensure_unchanged(&before)
}

fn older_apis() -> anyhow::Result<()> {
    let cluster = Cluster::up(&state_dir(), &["--nodes", "1"])?;
    older_apis::agents_follow(&cluster).inspect_err(|_| cluster.print_logs())
}

fn supervisor_pid() -> anyhow::Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        if words.get(1) == Some(&&b"supervise"[..]) {
            return entry.file_name().to_string_lossy().parse().context("pid");
        }
    }
    anyhow::bail!("no supervisor runs")
}

fn up_refuses() -> anyhow::Result<()> {
    let before = kernel_state()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let address = format!("port {port} on 127.0.0.1: Address already in use");
    let rows: [(&[&str], &str); 9] = [
        (&["--nodes", "0"], "--nodes 0: from 1 to 64"),
        (&["--nodes", "many"], "invalid value 'many'"),
        (
            &["--datapath", "magic"],
            "possible values: ebpf, nftables, iptables",
        ),
        (&["--api-port", &port], &address),
        (
            &[
                "--underlay-cidr",
                "127.0.0.0/24",
                "--nodes",
                "1",
                "--pod-cidr",
                "127.0.0.0/16",
            ],
            "overlaps",
        ),
        (
            &["--kubernetes-version", "1.26"],
            "\"1.26\" is no version that can be served: 1.27 to 1.33",
        ),
        (
            &["--feature-gates", "WatchLists=false"],
            "\"WatchLists\" is no feature that can be switched: WatchList,",
        ),
        (&["--etcd", "localhost:2379"], "expected a URL"),
        (&["--etcd-ca", "/nowhere"], "go with --etcd"),
    ];
    for (flags, wanted) in rows {
        let output = causeway("up", &state_dir(), flags)?;
        ensure!(
            output.status.code() == Some(2),
            "{flags:?}: {}",
            everything(&output)
        );
        ensure!(
            everything(&output).contains(wanted),
            "{flags:?}: wanted {wanted:?}, got {}",
            everything(&output)
        );
    }
    let _ = fs::remove_dir_all(state_dir());
    ensure_unchanged(&before)
}

/// A machine that lacks something, played by a mount namespace in which it is hidden.
fn up_names_what_is_missing() -> anyhow::Result<()> {
    let before = kernel_state()?;
    let up = format!(
        "exec {} up --state-dir {}",
        programs().join("causeway").display(),
        state_dir().display()
    );
    let filesystems = std::env::temp_dir().join(format!("cwt-{}-filesystems", std::process::id()));
    fs::write(&filesystems, "nodev\tbpf\n")?;
    let hide_overlay = format!("mount --bind {} /proc/filesystems && {up}", filesystems.display());
    let hide_cgroups = format!("umount -l $(awk '$3 == \"cgroup2\" {{print $2}}' /proc/mounts) && {up}");
    let hide_bpf = format!("mount -t tmpfs none /sys/fs && {up}");
    let hide_iptables =
        format!("mount --bind /dev/null $(readlink -f $(command -v iptables)) && {up} --datapath iptables");
    let rows = [
        (
            hide_iptables,
            "--datapath iptables: iptables is not installed (Debian: apt-get install iptables)",
        ),
        (
            hide_overlay,
            "this kernel has no overlay file system, which containers' root directories need",
        ),
        (
            hide_cgroups,
            "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup",
        ),
        (
            hide_bpf,
            "/sys/fs/bpf is missing: the kernel must be built with CONFIG_BPF_SYSCALL",
        ),
    ];
    for (script, wanted) in rows {
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .output()?;
        let said = everything(&output);
        ensure!(
            output.status.code() == Some(2) && said.contains(wanted),
            "wanted {wanted:?}, got {said}"
        );
    }
    fs::remove_file(filesystems)?;
    let _ = fs::remove_dir_all(state_dir());
    ensure_unchanged(&before)
}

fn only_root() -> anyhow::Result<()> {
    // A copy that an unprivileged user can reach, whatever the rights on the build directory.
    let dir = std::env::temp_dir().join(format!("cwt-{}-programs", std::process::id()));
    fs::create_dir_all(&dir)?;
    for name in ["causeway", "causeway-cluster"] {
        copy_program(&programs().join(name), &dir.join(name))?;
    }
    let output = Command::new(dir.join("causeway"))
        .arg("up")
        .uid(65534)
        .gid(65534)
        .output()?;
    fs::remove_dir_all(&dir)?;
    let said = everything(&output);
    ensure!(
        output.status.code() == Some(2) && said.contains("must run as root"),
        "{said}"
    );
    Ok(())
}

fn nothing_is_up() -> anyhow::Result<()> {
    let down = causeway("down", &state_dir(), &[])?;
    ensure!(
        down.status.success() && everything(&down).contains("Nothing to remove"),
        "{}",
        everything(&down)
    );
    let status = causeway("status", &state_dir(), &[])?;
    ensure!(
        status.status.code() == Some(2) && everything(&status).contains("no cluster is up"),
        "{}",
        everything(&status)
    );
    Ok(())
}
