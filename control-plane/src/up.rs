//! `causeway up`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use apiserver::{Cidrs, Gates, KubernetesVersion};

use crate::cgroup::Cgroup;
use crate::layout::StateDir;
use crate::node_files::{self, NodeFiles};
use crate::owner::{self, Owner};
use crate::pki::{self, Authority, Leaf, Usage};
use crate::preflight::{self, Programs};
use crate::progress::Progress;
use crate::settings::{Agent, Datapath, EtcdArgs, Leases, Network, Settings, VpcArgs, default_underlay};
use crate::status::Wanted;
use crate::{DEFAULT_STATE_DIR, StateDirArg, down, kubeconfig, machine, status, supervise, underlay, vpc};

/// Flags of `up`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    state_dir: StateDirArg,
    /// Number of nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// How Services reach their endpoints
    #[arg(long, value_enum, default_value = "ebpf")]
    datapath: Datapath,
    /// How pods of different nodes reach each other. With vpc-eni they have addresses of a VPC that is a fake one: EC2
    /// at port 8773 of the network's first address, and a metadata service at 169.254.169.254 on each node
    #[arg(long, value_enum, default_value = "vxlan")]
    network: Network,
    /// Where it is kept which node has which addresses for pods: in etcd as flannel does, or in Node objects
    /// (spec.podCIDRs) [default: etcd]
    #[arg(long, value_enum)]
    leases: Option<Leases>,
    #[command(flatten)]
    vpc: VpcArgs,
    /// What programs the nodes' network: this build's agent and DNS server, or (none) what you install into the
    /// cluster, which says itself what --datapath and --network say otherwise; until then the nodes are not Ready.
    /// With none, pod networks of node/deploy need --leases kubernetes, which gives the Nodes podCIDRs
    #[arg(long, value_enum, default_value = "built-in")]
    agent: Agent,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Addresses for pods; each node leases a /24. With an IPv6 network behind a comma they have both
    /// [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pod_cidr: Option<Cidrs>,
    /// Addresses for Services; with an IPv6 network behind a comma they may have both
    #[arg(long, default_value = "10.96.0.0/12", value_name = "CIDR[,CIDR]")]
    service_cidr: Cidrs,
    /// Serve externalIPs of Services: whoever may write a Service can then take over any address
    #[arg(long)]
    allow_external_ips: bool,
    /// The network between the nodes; with an IPv6 network behind a comma they have both. With --network vpc-eni it is the
    /// VPC's, and pods have addresses of it, too [default: 172.30.0.0/24; of a VPC 172.30.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    underlay_cidr: Option<Cidrs>,
    /// Port of the API server
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
    /// Port of the built-in store
    #[arg(long, default_value_t = 2379)]
    etcd_port: u16,
    /// The Kubernetes version whose API is served, 1.27 to 1.33: what clients and agents meet on older clusters
    #[arg(long, default_value_t, value_name = "VERSION")]
    kubernetes_version: KubernetesVersion,
    /// Features of the API that are on or off whatever the version, for example WatchList=false,OpenAPIV3=false
    #[arg(
        long,
        default_value_t,
        value_name = "FEATURE=BOOL[,...]",
        hide_default_value = true
    )]
    feature_gates: Gates,
    /// Give up when the nodes are not Ready (with --agent none: not registered) after this many seconds
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

impl UpArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let vpc = self.vpc.vpc(self.network)?;
        ensure!(
            vpc.is_none() || self.leases.is_none() && self.pod_cidr.is_none(),
            "--leases and --pod-cidr do not go with --network vpc-eni, whose pods have addresses of --underlay-cidr"
        );
        let underlay_cidr = self
            .underlay_cidr
            .unwrap_or_else(|| default_underlay(self.network));
        let pod_cidr = match vpc {
            Some(_) => underlay_cidr,
            None => self.pod_cidr.unwrap_or_else(default_pod_cidr),
        };
        let settings = Settings {
            nodes: self.nodes,
            datapath: self.datapath,
            network: self.network,
            agent: self.agent,
            leases: self.leases.unwrap_or_default(),
            vpc,
            pod_cidr,
            service_cidr: self.service_cidr,
            allow_external_ips: self.allow_external_ips,
            underlay_cidr,
            api_port: self.api_port,
            etcd_port: self.etcd_port,
            etcd: self.etcd.external()?,
            domain: "cluster.local".to_owned(),
            kubernetes_version: self.kubernetes_version,
            feature_gates: self.feature_gates.clone(),
        };
        settings.validate()?;
        Ok(settings)
    }
}

fn default_pod_cidr() -> Cidrs {
    "10.244.0.0/16"
        .parse()
        .expect("invariant: a network in a constant")
}

/// Brings the cluster up and waits until its nodes are Ready. What was half-made is removed when that fails.
pub fn up(args: &UpArgs) -> anyhow::Result<()> {
    preflight::require_root()?;
    let _change = owner::begin_change()?;
    let settings = args.settings()?;
    let state = args.state_dir.open()?;
    let programs = Programs::find()?;
    let progress = Progress::start();
    match owner::find()? {
        Owner::Running(dir) if dir == state.root() => return already_up(&state, &settings),
        Owner::Running(dir) => bail!(
            "a cluster with its state in {} is up on this machine: causeway down --state-dir {} removes it",
            dir.display(),
            dir.display()
        ),
        Owner::Remains(dir) => {
            progress.stage("clean up after a crash", || {
                down::remove_from_kernel(&StateDir::new(dir))
            })?;
        }
        Owner::Nobody => {}
    }
    if state.store().exists()
        && let Some(kept) = Settings::load(&state.settings())?
    {
        settings.check_kept(&kept)?;
    }
    // Until the owner is recorded nothing in the kernel is ours, and nothing may be removed from it.
    check_machine(&progress, &settings)?;
    progress.stage("certificates", || prepare_state(&state, &settings, &programs))?;
    owner::record(state.root())?;
    let timeout = Duration::from_secs(args.timeout);
    if let Err(error) = bring_up(&progress, &state, &settings, &programs, timeout) {
        // Logs are what explains the failure: they stay.
        if let Err(error) = down::remove_from_kernel(&state) {
            eprintln!("warning: {error:#}");
        }
        return Err(error.context(format!(
            "the cluster did not come up; its logs are in {}",
            state.logs().display()
        )));
    }
    announce(&progress, &state, &settings);
    Ok(())
}

fn already_up(state: &StateDir, settings: &Settings) -> anyhow::Result<()> {
    let running = Settings::load(&state.settings())?;
    if running.as_ref() != Some(settings) {
        let down = down_command(state);
        bail!("a cluster with other settings is up already: {down} removes it");
    }
    println!(
        "The cluster is up already.\n\n  export KUBECONFIG={}",
        state.admin_kubeconfig().display()
    );
    Ok(())
}

fn check_machine(progress: &Progress, settings: &Settings) -> anyhow::Result<()> {
    progress.stage("check this machine", || {
        preflight::check_kernel()?;
        preflight::check_datapath(settings.datapath)?;
        preflight::check_ports(settings)?;
        underlay::check_free(settings)?;
        Cgroup::find().map(drop)
    })
}

fn bring_up(
    progress: &Progress,
    state: &StateDir,
    settings: &Settings,
    programs: &Programs,
    timeout: Duration,
) -> anyhow::Result<()> {
    progress.stage(
        &format!("{} nodes on {}", settings.nodes, settings.underlay_cidr),
        || make_machines(state, settings),
    )?;
    if let Some(etcd) = &settings.etcd {
        progress.stage("reach the external etcd", || {
            preflight::check_etcd(settings, etcd)
        })?;
    }
    let began = SystemTime::now();
    progress.stage("start the processes", || start_supervisor(state, programs))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    progress.stage("API server ready", || {
        runtime.block_on(status::wait_for_api(state, timeout))
    })?;
    let (what, wanted) = match settings.agent {
        Agent::BuiltIn => ("all nodes Ready", Wanted::Ready),
        Agent::None => ("all nodes registered", Wanted::Registered),
    };
    progress.stage(what, || {
        runtime.block_on(status::wait_for_nodes(state, settings, wanted, began, timeout))
    })
}

fn prepare_state(state: &StateDir, settings: &Settings, programs: &Programs) -> anyhow::Result<()> {
    for dir in [state.root().to_path_buf(), state.logs()] {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let settings_file = state.settings();
    fs::write(&settings_file, serde_json::to_vec_pretty(settings)?)
        .with_context(|| format!("writing {}", settings_file.display()))?;
    let authority = Authority::open(state)?;
    for (name, leaf) in control_plane_leaves(settings) {
        authority.ensure(&state.key_pair(name), &leaf)?;
    }
    pki::ensure_key(&state.key_pair("service-account").key)?;
    let server = format!("https://127.0.0.1:{}", settings.api_port);
    let admin = state.key_pair("admin");
    kubeconfig::write(
        &state.admin_kubeconfig(),
        &server,
        authority.ca_pem(),
        "admin",
        &admin,
    )?;
    let controllers = state.key_pair("controllers");
    kubeconfig::write(
        &state.pki().join("controllers.kubeconfig"),
        &server,
        authority.ca_pem(),
        "controllers",
        &controllers,
    )?;
    for (index, name) in (0u8..).zip(settings.node_names()) {
        node_files::write(&NodeFiles {
            state,
            settings,
            programs,
            authority: &authority,
            name: &name,
            index,
        })?;
    }
    Ok(())
}

fn control_plane_leaves(settings: &Settings) -> Vec<(&'static str, Leaf)> {
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    let here = settings.control_plane_address().into();
    let api_names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    let mut names: Vec<String> = api_names.iter().map(|&name| name.to_owned()).collect();
    names.push(format!("kubernetes.default.svc.{}", settings.domain));
    let api_server = Leaf {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        addresses: vec![loopback, here, settings.kubernetes_service().into()],
        names,
        usage: Usage::Server,
    };
    let store = Leaf {
        common_name: "etcd".to_owned(),
        organizations: Vec::new(),
        addresses: vec![loopback, here],
        names: vec!["localhost".to_owned()],
        usage: Usage::ServerAndClient,
    };
    vec![
        ("apiserver", api_server),
        ("etcd", store),
        ("admin", Leaf::client("kubernetes-admin", &["system:masters"])),
        (
            "controllers",
            Leaf::client("system:kube-controller-manager", &["system:masters"]),
        ),
        (
            "apiserver-etcd-client",
            Leaf::client("kube-apiserver-etcd-client", &["system:masters"]),
        ),
        (
            "apiserver-kubelet-client",
            Leaf::client("kube-apiserver-kubelet-client", &["system:masters"]),
        ),
    ]
}

fn make_machines(state: &StateDir, settings: &Settings) -> anyhow::Result<()> {
    let cgroup = Cgroup::find()?;
    machine::mount_namespace_dir(&state.namespaces())?;
    cgroup.create(&cgroup.control_plane())?;
    cgroup.create(&cgroup.supervisor())?;
    underlay::create(settings, state)?;
    for name in settings.node_names() {
        cgroup.create(&cgroup.node_system(&name))?;
        cgroup.create(&cgroup.node(&name).join("pods"))?;
        machine::create_mount_namespace(&state.namespaces().join(format!("{name}.mnt")))
            .with_context(|| format!("making {name}"))?;
    }
    Ok(())
}

/// The supervisor makes itself a session of its own: it outlives the terminal that `up` was typed in.
fn start_supervisor(state: &StateDir, programs: &Programs) -> anyhow::Result<()> {
    let cgroup = Cgroup::find()?;
    let log = supervise::open_log(&state.logs().join("supervisor.log"))?;
    let mut child = Command::new(&programs.cluster)
        .args(["enter", "--cgroup"])
        .arg(cgroup.supervisor())
        .arg("--")
        .arg(&programs.cluster)
        .args(["supervise", "--state-dir"])
        .arg(state.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the supervisor")?;
    match child.try_wait()? {
        Some(status) => bail!("the supervisor ended at once: {status}"),
        None => Ok(()),
    }
}

fn announce(progress: &Progress, state: &StateDir, settings: &Settings) {
    println!("\n{}", what_now(settings, progress.total_seconds(), state));
}

/// What there is after so many seconds, and what to type next.
fn what_now(settings: &Settings, seconds: f64, state: &StateDir) -> String {
    let (are, next) = match settings.agent {
        Agent::BuiltIn => ("Ready", String::new()),
        Agent::None => ("registered", hint_without_agent(settings)),
    };
    let noun = if settings.nodes == 1 { "node" } else { "nodes" };
    let ec2 = match &settings.vpc {
        Some(_) => format!(
            "EC2 of the nodes' VPC answers at http://{}, for region {}.\n\n",
            vpc::ec2_address(settings),
            vpc::REGION
        ),
        None => String::new(),
    };
    format!(
        "{} {noun} {are} after {seconds:.1} s.\n\n{next}{ec2}  export KUBECONFIG={}\n  kubectl get nodes -o wide\n  {}",
        settings.nodes,
        state.admin_kubeconfig().display(),
        down_command(state)
    )
}

fn hint_without_agent(settings: &Settings) -> String {
    let pod_cidrs = match (settings.leases, &settings.vpc) {
        (Leases::Kubernetes, _) | (_, Some(_)) => "",
        (Leases::Etcd, None) => {
            "Nodes have no podCIDRs, which pod networks of node/deploy need: up --leases kubernetes gives them.\n"
        }
    };
    format!(
        "They are Ready once a pod network is installed. The API server, for what runs before Services are served: \
         {}.\n{pod_cidrs}\n",
        settings.api_address()
    )
}

/// What removes the cluster.
fn down_command(state: &StateDir) -> String {
    if state.root() == Path::new(DEFAULT_STATE_DIR) {
        "causeway down".to_owned()
    } else {
        format!("causeway down --state-dir {}", state.root().display())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: UpArgs,
    }

    #[test]
    fn what_is_printed_at_the_end_can_be_typed_as_it_is() {
        let no_cidrs = "Nodes have no podCIDRs, which pod networks of node/deploy need: up --leases kubernetes \
                        gives them.\n";
        let installed = "They are Ready once a pod network is installed. The API server, for what runs before Services are \
                         served: 172.30.0.1:6443.\n";
        let rows = [
            (
                DEFAULT_STATE_DIR,
                &["--nodes", "3"][..],
                "3 nodes Ready",
                String::new(),
                "causeway down",
            ),
            (
                "/x",
                &["--nodes", "1"],
                "1 node Ready",
                String::new(),
                "causeway down --state-dir /x",
            ),
            (
                "/x",
                &["--agent", "none"],
                "3 nodes registered",
                format!("{installed}{no_cidrs}\n"),
                "causeway down --state-dir /x",
            ),
            (
                "/x",
                &["--agent", "none", "--leases", "kubernetes"],
                "3 nodes registered",
                format!("{installed}\n"),
                "causeway down --state-dir /x",
            ),
            (
                "/x",
                &["--network", "vpc-eni"],
                "3 nodes Ready",
                "EC2 of the nodes' VPC answers at http://172.30.0.1:8773, for region eu-west-1.\n\n"
                    .to_owned(),
                "causeway down --state-dir /x",
            ),
        ];
        for (root, flags, are, hint, down) in rows {
            let start = ["up", "--state-dir", root];
            let line = start.iter().chain(flags);
            let up = Line::try_parse_from(line).expect("valid").up;
            let state = up.state_dir.open().expect("absolute");
            let expected = format!(
                "{are} after 0.3 s.\n\n{hint}  export KUBECONFIG={root}/admin.kubeconfig\n  kubectl get nodes -o wide\n  \
                 {down}"
            );
            let printed = what_now(&up.settings().expect("they can work"), 0.3, &state);
            assert_eq!(printed, expected, "for {flags:?}");
        }
    }
}
