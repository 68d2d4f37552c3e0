//! What this machine must give before anything is made on it. Each lack is one line that says how to mend it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::serve;
use crate::settings::{Datapath, ExternalEtcd, Leases, Settings};

/// Where nodes keep their subnets, in flannel's keys.
const NETWORK: &str = "/coreos.com/network/";

/// The programs of a node, found beside this one.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `causeway-cluster`: this program.
    pub cluster: PathBuf,
    /// `causeway`: agent and DNS.
    pub causeway: PathBuf,
    /// `causeway-shim`: a container's parent.
    pub shim: PathBuf,
    /// The directory of `causeway-cni`.
    pub cni_dir: PathBuf,
}

impl Programs {
    /// Finds them.
    pub fn find() -> anyhow::Result<Self> {
        let cluster = std::env::current_exe().context("finding this program")?;
        let dir = cluster.parent().map(Path::to_path_buf).unwrap_or_default();
        let beside = |name: &str| {
            let path = dir.join(name);
            ensure!(
                path.is_file(),
                "{name} is missing beside {}: run make build",
                cluster.display()
            );
            Ok(path)
        };
        let (causeway, shim) = (beside("causeway")?, beside("causeway-shim")?);
        beside("causeway-cni")?;
        Ok(Self {
            causeway,
            shim,
            cni_dir: dir,
            cluster,
        })
    }
}

/// Refuses anyone but root.
pub fn require_root() -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "must run as root: a cluster is made of namespaces, mounts and BPF programs"
    );
    Ok(())
}

/// Checks the kernel.
pub fn check_kernel() -> anyhow::Result<()> {
    let filesystems = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    for (name, why, option) in [
        ("overlay", "containers' root directories", "CONFIG_OVERLAY_FS"),
        ("bpf", "BPF pins", "CONFIG_BPF_SYSCALL"),
    ] {
        let there = filesystems
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name));
        // A file system that is a module is listed once it was used.
        ensure!(
            there || module_exists(name),
            "this kernel has no {name} file system, which {why} need: it must be built with {option}"
        );
    }
    ensure!(
        Path::new("/sys/fs/bpf").is_dir(),
        "/sys/fs/bpf is missing: the kernel must be built with CONFIG_BPF_SYSCALL and sysfs mounted on /sys"
    );
    Ok(())
}

fn module_exists(name: &str) -> bool {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let list = format!("/lib/modules/{}/modules.dep", release.trim());
    fs::read_to_string(list).is_ok_and(|list| list.contains(&format!("/{name}.ko")))
}

/// Checks for the programs that a datapath runs.
pub fn check_datapath(datapath: Datapath) -> anyhow::Result<()> {
    let needed: &[&str] = match datapath {
        Datapath::Ebpf | Datapath::Nftables => &[],
        Datapath::Iptables => &["iptables", "iptables-save", "iptables-restore"],
    };
    match needed.iter().find(|name| !is_installed(name)) {
        Some(missing) => bail!(
            "--datapath iptables: {missing} is not installed (Debian: apt-get install iptables); \
            ebpf and nftables do without"
        ),
        None => Ok(()),
    }
}

/// Looks where the proxy does, too: the directories of root's programs are often not on `PATH`.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .any(|dir| dir.join(program).is_file())
}

/// Refuses ports that somebody listens on.
pub fn check_ports(settings: &Settings) -> anyhow::Result<()> {
    let mut ports = vec![("--api-port", settings.api_port)];
    if settings.etcd.is_none() {
        ports.push(("--etcd-port", settings.etcd_port));
    }
    for (flag, port) in ports {
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            bail!("port {port} on 127.0.0.1: {error}; choose another with {flag}");
        }
    }
    Ok(())
}

/// Refuses an external etcd that nobody answers for, that does not let us in, or that does not let us read and write
/// what we have to. Called once the underlay is there: it may listen on that.
pub fn check_etcd(settings: &Settings, etcd: &ExternalEtcd) -> anyhow::Result<()> {
    let config = serve::external_etcd_config(etcd);
    let registry = format!("{}/", serve::REGISTRY);
    let mut prefixes = vec![registry.as_str()];
    if settings.leases == Leases::Etcd {
        prefixes.push(NETWORK);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match runtime.block_on(apiserver::etcd::check(&config, &prefixes)) {
        Ok(warnings) => {
            for warning in warnings {
                eprintln!("warning: --etcd {}", with_causes(&warning));
            }
            Ok(())
        }
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(with_causes).collect();
            bail!("--etcd {}", errors.join("; --etcd "))
        }
    }
}

/// An error of a file names the file, and its cause why.
fn with_causes(error: &apiserver::etcd::Error) -> String {
    match error {
        apiserver::etcd::Error::ReadFile { source, .. } => format!("{error}: {source}"),
        error => error.to_string(),
    }
}
