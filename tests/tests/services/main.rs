//! Every feature of Services, on a real cluster with each datapath in turn: kubectl writes them, and programs in pods,
//! on nodes and outside of the cluster try what comes of it.
//!
//! A trial makes its own Services and removes them. It awaits what the API promises for some time after a change, so
//! that none depends on how fast a node follows.

mod client;
mod endpoints;
mod exposure;
mod families;
mod network;
mod oddities;
mod policies;
mod world;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use world::World;

type Claim = fn(&World) -> anyhow::Result<()>;

const DATAPATHS: [&str; 3] = ["ebpf", "nftables", "iptables"];

const CLAIMS: &[(&str, Claim)] = &[
    (
        "a ClusterIP serves pods and nodes, TCP and UDP",
        exposure::cluster_ip,
    ),
    (
        "a ClusterIP that no Service has does not leave the node",
        exposure::no_such_cluster_ip,
    ),
    ("a pod reaches itself by its Service", exposure::hairpin),
    (
        "pods of the host's network are endpoints like others",
        exposure::host_network,
    ),
    (
        "a node port serves on every node, and ends with the type",
        exposure::node_port,
    ),
    (
        "a load balancer's address serves outside and inside",
        exposure::load_balancer,
    ),
    (
        "loadBalancerSourceRanges admit and refuse",
        exposure::source_ranges,
    ),
    ("externalIPs serve where they are allowed", exposure::external_ips),
    (
        "externalIPs do not serve by default",
        exposure::external_ips_by_default,
    ),
    (
        "a PreferDualStack Service serves over both versions, from pods, nodes and outside",
        families::prefer_dual_stack,
    ),
    (
        "both addresses of a RequireDualStack Service serve, with affinity and policy",
        families::cluster_ip,
    ),
    (
        "IPv6 from outside: node port, load balancer, source ranges, externalIPs, policy Local",
        families::from_outside,
    ),
    (
        "externalTrafficPolicy Local keeps the client's address",
        policies::external_local,
    ),
    (
        "internalTrafficPolicy Local stays on the node",
        policies::internal_local,
    ),
    (
        "healthCheckNodePort tells which nodes have endpoints",
        policies::health_checks,
    ),
    (
        "sessionAffinity ClientIP stays with one endpoint",
        policies::affinity,
    ),
    (
        "trafficDistribution keeps traffic in the zone and on the node",
        policies::distribution,
    ),
    (
        "a hostPort leads to its pod by its node's addresses, and ends with it",
        exposure::host_port,
    ),
    (
        "the nodes' subnets are kept in etcd or in the Nodes, as the cluster was told",
        network::leases,
    ),
    (
        "a Service without endpoints refuses at once",
        endpoints::scaled_to_zero,
    ),
    (
        "publishNotReadyAddresses serves pods that are not ready",
        endpoints::not_ready,
    ),
    (
        "service-proxy-name leaves a Service to another proxy",
        endpoints::other_proxy,
    ),
    ("a headless Service's names lead to its pods", endpoints::headless),
    (
        "pods of one node pass by its stack unless the datapath needs them in it",
        endpoints::fast_path,
    ),
    (
        "an address that two Services want has one owner, then the other",
        oddities::shared_address,
    ),
    (
        "a ClusterIP serves its next Service at once",
        oddities::reused_address,
    ),
    ("a node port moves to another Service", oddities::moved_node_port),
    (
        "the protocol of a port changes in place",
        oddities::changed_protocol,
    ),
    ("a Service becomes headless and back", oddities::headless_and_back),
    ("affinity flips and agents die under traffic", oddities::toggles),
    (
        "endpoints written by hand serve, and wrong ones harm nobody",
        oddities::hand_written_endpoints,
    ),
    ("100 Services come and go at once", oddities::many_at_once),
    (
        "service-proxy-name comes and goes beside traffic",
        oddities::proxy_name_under_traffic,
    ),
];

/// The cluster of the trials that run now; an error is kept, so that a cluster that does not come up is tried once.
type Current = Option<(&'static str, Result<World, String>)>;
static CURRENT: Mutex<Current> = Mutex::new(None);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runnable = tests::privileged("Services on a cluster with each datapath");
    let trials = DATAPATHS.into_iter().flat_map(|datapath| {
        CLAIMS.iter().map(move |(claim, check)| {
            Trial::test(format!("{datapath}: {claim}"), move || {
                run(datapath, *check).map_err(Failed::from)
            })
            .with_ignored_flag(!runnable)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    leave(&mut CURRENT.lock().unwrap_or_else(PoisonError::into_inner));
    conclusion.exit_code()
}

fn run(datapath: &'static str, check: Claim) -> Result<(), String> {
    // A trial that panicked leaves the cluster as good as one that failed.
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if !matches!(&*current, Some((of, _)) if *of == datapath) {
        leave(&mut current);
        *current = Some((
            datapath,
            World::up(datapath).map_err(|error| format!("{error:#}")),
        ));
    }
    match &*current {
        Some((_, Ok(world))) => {
            let outcome = world.watch(check);
            outcome.map_err(|error| format!("{error:#}"))
        }
        Some((_, Err(error))) => Err(error.clone()),
        None => unreachable!("made above"),
    }
}

/// Takes the cluster down.
fn leave(current: &mut Current) {
    *current = None;
}
