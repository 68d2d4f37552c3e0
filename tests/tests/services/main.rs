//! Every feature of Services, on a real cluster with each datapath in turn: kubectl writes them, and programs in pods,
//! on nodes and outside of the cluster try what comes of it.
//!
//! A trial makes its own Services and removes them. It awaits what the API promises for some time after a change, so
//! that none depends on how fast a node follows. Trials of one datapath run beside each other, most of their time being
//! waits: so each has names, addresses and ports that no other has.

mod endpoints;
mod exposure;
mod families;
mod network;
mod oddities;
mod policies;
mod world;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use anyhow::anyhow;
use libtest_mimic::{Arguments, Failed, Trial};
use tests::client;
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

/// They change the agents' configuration, and keep an agent from following.
const ALONE: [&str; 2] = [
    "externalIPs do not serve by default",
    "affinity flips and agents die under traffic",
];

/// So many trials run at once.
const TRIALS: usize = 4;

/// A datapath's cluster, and who may change it. An error is kept, so that a cluster that does not come up is tried once.
#[derive(Default)]
struct Stage {
    world: OnceLock<Result<World, String>>,
    /// Written by a trial that changes what the others rely on.
    turn: RwLock<()>,
}

impl Stage {
    fn run(&self, datapath: &str, claim: &str, check: Claim) -> anyhow::Result<()> {
        let world = self
            .world
            .get_or_init(|| World::up(datapath).map_err(|error| format!("{error:#}")));
        let world = world.as_ref().map_err(|error| anyhow!("{error}"))?;
        // A trial that panicked leaves the cluster as good as one that failed.
        if ALONE.contains(&claim) {
            let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
            world.watch(check)
        } else {
            let _turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
            world.watch(check)
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(TRIALS);
    let runnable = tests::privileged("Services on a cluster with each datapath");
    let passed = DATAPATHS.map(|datapath| {
        // Goes with the last trial, and takes the cluster down.
        let stage = Arc::new(Stage::default());
        let trials = CLAIMS.iter().map(|(claim, check)| {
            let stage = Arc::clone(&stage);
            let trial = move || {
                stage
                    .run(datapath, claim, *check)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            };
            Trial::test(format!("{datapath}: {claim}"), trial).with_ignored_flag(!runnable)
        });
        !libtest_mimic::run(&arguments, trials.collect()).has_failed()
    });
    ExitCode::from(u8::from(passed.contains(&false)))
}
