//! What upstream's [sig-network] suite checks, on any cluster: by the Kubernetes API and by packets alone.
//!
//! ```text
//! cargo test -p tests --test conformance                            a cluster of its own, taken down at the end
//! CONFORMANCE_KUBECONFIG=… cargo test -p tests --test conformance   the current context's
//! ```
//! Packets are sent from pods: on each node one, and one of the host's network. They run `causeway/testserver:v1`, which
//! Causeway's kubelet brings along; another cluster needs it as an image (`causeway image build --from-binary testserver
//! --archive FILE`, entrypoint and path `/testserver`), and `CONFORMANCE_IMAGE` says its name there. Images with other
//! programs do not do. `CONFORMANCE_PATIENCE` is the seconds that a cluster may take to follow a change, 60 unless it says
//! so.
//!
//! Each case has a namespace of its own, and in its documentation the name of upstream's test. Several run at once. Who is
//! outside of the cluster is there only where the cluster is the suite's own: on others these cases are skipped, and those
//! that need more nodes, zones or versions of IP than there are.

mod affinity;
mod basics;
mod ends;
mod families;
mod names;
mod namespace;
mod networking;
mod objects;
mod policies;
mod slices;
mod types;
mod udp;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use namespace::Namespace;
use world::World;

/// What a case needs of the cluster besides pods on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// Three nodes that take pods.
    Nodes,
    /// Three nodes of two zones.
    Zones,
    /// Somebody who is no part of the cluster, and three nodes.
    Outside,
    /// Three nodes whose pods have addresses of both versions of IP.
    Families,
}

use Needs::{Families, Nodes, Nothing, Outside, Zones};

type Case = fn(&Namespace<'_>) -> anyhow::Result<()>;

/// Long ones first, so that the last minute is not one case alone.
const CASES: &[(&str, Needs, Case)] = &[
    (
        "affinity of a ClusterIP ends with its timeout",
        Nothing,
        affinity::ends_by_cluster_ip,
    ),
    (
        "affinity of a node port ends with its timeout",
        Nothing,
        affinity::ends_by_node_port,
    ),
    ("affinity of a ClusterIP", Nothing, affinity::works_by_cluster_ip),
    ("affinity of a node port", Nothing, affinity::works_by_node_port),
    (
        "affinity of a ClusterIP comes and goes",
        Nothing,
        affinity::switches_by_cluster_ip,
    ),
    (
        "affinity of a node port comes and goes",
        Nothing,
        affinity::switches_by_node_port,
    ),
    (
        "a UDP flow to a ClusterIP goes on while servers are replaced",
        Nothing,
        udp::a_flow_to_a_cluster_ip_goes_on,
    ),
    (
        "a UDP flow of a node goes on while servers are replaced",
        Nothing,
        udp::a_hosts_flow_to_a_cluster_ip_goes_on,
    ),
    (
        "a UDP flow by internalTrafficPolicy Local goes on",
        Nothing,
        udp::a_flow_within_the_node_goes_on,
    ),
    (
        "a UDP flow to a node port goes on while servers are replaced",
        Nodes,
        udp::a_flow_to_a_node_port_goes_on,
    ),
    (
        "a UDP flow that began before the endpoints is served",
        Nodes,
        udp::a_flow_begun_too_early_is_served,
    ),
    (
        "a UDP flow follows its Service's target port",
        Nodes,
        udp::a_flow_follows_its_target_port,
    ),
    ("large requests by UDP", Nodes, udp::large_requests_by_udp),
    ("large requests by HTTP", Nothing, udp::large_requests_by_http),
    (
        "UDP follows endpoints, by ClusterIP and node port",
        Nothing,
        udp::endpoints_follow_by_udp,
    ),
    ("endpoints follow pods", Nodes, basics::endpoints_follow_pods),
    ("endpoints of several ports", Nodes, basics::multiport_endpoints),
    ("ports come and go", Nothing, basics::ports_come_and_go),
    (
        "a port of both protocols",
        Nothing,
        basics::same_port_of_two_protocols,
    ),
    (
        "a node port of both protocols",
        Nothing,
        basics::same_node_port_of_two_protocols,
    ),
    ("a node port from inside", Nothing, basics::node_port_from_inside),
    (
        "a node port from outside",
        Outside,
        basics::node_port_from_outside,
    ),
    (
        "a pod reaches itself through its Service",
        Nothing,
        basics::hairpin,
    ),
    (
        "a server sees the pod that asks its ClusterIP",
        Nothing,
        basics::servers_see_the_pod,
    ),
    ("Services come and go", Nothing, basics::services_up_and_down),
    (
        "a Service that is made again serves",
        Nothing,
        basics::a_recreated_service_serves,
    ),
    (
        "a named port is each pod's own",
        Nodes,
        basics::a_named_port_is_each_pods_own,
    ),
    ("sidecars serve", Nothing, basics::sidecars_serve),
    ("no endpoints refuse", Nothing, basics::no_endpoints_refuse),
    (
        "an external IP of no node serves",
        Nothing,
        basics::an_external_ip_of_no_node_serves,
    ),
    (
        "another proxy's Service is left alone",
        Nothing,
        basics::another_proxys_service_is_left,
    ),
    (
        "a Service labelled headless is left alone",
        Nothing,
        basics::a_service_labelled_headless_is_left,
    ),
    (
        "two Services share their pods",
        Nothing,
        basics::two_services_share_their_pods,
    ),
    (
        "ExternalName to ClusterIP",
        Nothing,
        types::external_name_to_cluster_ip,
    ),
    (
        "ExternalName to NodePort",
        Nothing,
        types::external_name_to_node_port,
    ),
    (
        "ClusterIP to ExternalName",
        Nothing,
        types::cluster_ip_to_external_name,
    ),
    (
        "NodePort to ExternalName",
        Nothing,
        types::node_port_to_external_name,
    ),
    ("node ports collide", Nothing, types::node_ports_collide),
    (
        "node ports are in their range",
        Nothing,
        types::node_ports_are_in_range,
    ),
    ("node ports are released", Nothing, types::node_ports_are_released),
    (
        "NodePort to ClusterIP",
        Nodes,
        types::a_node_port_ends_with_the_type,
    ),
    (
        "internalTrafficPolicy Local from pods",
        Nodes,
        policies::internal_local_from_pods,
    ),
    (
        "internalTrafficPolicy Local from nodes",
        Nodes,
        policies::internal_local_from_hosts,
    ),
    (
        "internalTrafficPolicy Local to pods of the host's network",
        Nodes,
        policies::internal_local_to_hosts,
    ),
    (
        "endpoints of the host's network",
        Nodes,
        policies::endpoints_of_the_hosts_network,
    ),
    (
        "externalTrafficPolicy Local from other nodes",
        Nodes,
        policies::external_local_from_hosts,
    ),
    (
        "externalTrafficPolicy Local from outside",
        Outside,
        policies::external_local_from_outside,
    ),
    (
        "health checks follow externalTrafficPolicy",
        Nodes,
        policies::health_checks_follow_the_policy,
    ),
    (
        "trafficDistribution keeps traffic in its zone",
        Zones,
        policies::traffic_stays_in_its_zone,
    ),
    (
        "trafficDistribution goes elsewhere from an empty zone",
        Zones,
        policies::a_zone_without_pods_uses_the_others,
    ),
    (
        "ready endpoints come before ending ones",
        Nodes,
        ends::ready_endpoints_come_first,
    ),
    (
        "ending endpoints serve inside where none is ready",
        Nodes,
        ends::ending_ones_serve_inside,
    ),
    (
        "ending endpoints serve inside their node",
        Nodes,
        ends::ending_ones_serve_inside_their_node,
    ),
    (
        "ending endpoints serve outside where none is ready",
        Nodes,
        ends::ending_ones_serve_outside,
    ),
    (
        "ending endpoints serve outside by their node",
        Nodes,
        ends::ending_ones_serve_outside_by_their_node,
    ),
    (
        "health checks fail where endpoints only end",
        Nodes,
        ends::health_checks_fail_for_ending_ones,
    ),
    (
        "publishNotReadyAddresses comes and goes",
        Nothing,
        ends::unready_pods_serve_where_it_is_said,
    ),
    (
        "publishNotReadyAddresses with pods that end",
        Nodes,
        ends::ending_unready_pods_serve_where_it_is_said,
    ),
    (
        "pods that end and are not ready serve nobody else",
        Nodes,
        ends::ending_unready_pods_serve_nobody_else,
    ),
    (
        "pods that end reach others and are reached",
        Nodes,
        ends::ending_pods_talk,
    ),
    ("slices of the API server", Nothing, slices::of_the_api_server),
    (
        "slices come and go with the Service",
        Nothing,
        slices::come_and_go_with_the_service,
    ),
    ("slices say where pods are", Nodes, slices::say_where_pods_are),
    ("slices of one port each", Nodes, slices::of_one_port_each),
    ("slices of one address each", Nodes, slices::of_one_address_each),
    ("slices have all operations", Nothing, slices::have_all_operations),
    ("slices mirror Endpoints", Nodes, slices::mirror_endpoints),
    (
        "slices mirror two subsets of an address",
        Nothing,
        slices::mirror_two_subsets_of_an_address,
    ),
    (
        "Endpoints have all operations",
        Nothing,
        slices::endpoints_have_all_operations,
    ),
    (
        "the API server's own Service",
        Nothing,
        objects::of_the_api_server,
    ),
    (
        "Services are found in all namespaces",
        Nothing,
        objects::are_found_in_all_namespaces,
    ),
    ("Services have a status", Nothing, objects::have_a_status),
    (
        "Services are deleted as a collection",
        Nothing,
        objects::are_deleted_as_a_collection,
    ),
    (
        "Services have addresses of their own",
        Nothing,
        objects::have_addresses_of_their_own,
    ),
    (
        "pods and Services by the API server's proxy",
        Nothing,
        objects::are_reached_by_the_api_server,
    ),
    (
        "Services have endpoints soon",
        Nodes,
        objects::have_endpoints_soon,
    ),
    ("names of the cluster", Nothing, names::of_the_cluster),
    ("names of Services", Nothing, names::of_services),
    ("partial names", Nothing, names::partial_names),
    (
        "partial names in pods of the host's network",
        Nothing,
        names::partial_names_on_hosts,
    ),
    ("names of pods by hostname and subdomain", Nothing, names::of_pods),
    (
        "names of ExternalName Services",
        Nothing,
        names::of_external_names,
    ),
    ("/etc/hosts of pods", Nothing, names::hosts_files),
    ("hostname of pods", Nothing, names::host_names),
    ("chosen name servers", Nothing, names::chosen_name_servers),
    (
        "a chosen resolv.conf resolves",
        Nothing,
        names::a_chosen_resolv_conf_resolves,
    ),
    (
        "long and odd search paths",
        Nothing,
        names::long_and_odd_search_paths,
    ),
    ("pods that failed refuse", Nothing, basics::failed_pods_refuse),
    (
        "a pod takes over without loss",
        Nodes,
        ends::a_pod_takes_over_without_loss,
    ),
    ("Services may be of SCTP", Nothing, objects::may_be_of_sctp),
    (
        "a proxy tells of itself",
        Nothing,
        networking::a_proxy_tells_of_itself,
    ),
    ("pods have IPv4 and IPv6", Families, families::pods_have_both),
    (
        "Services have the families that they say",
        Families,
        families::services_have_the_families_that_they_say,
    ),
    (
        "the second family serves",
        Families,
        families::the_second_family_serves,
    ),
    ("pods reach pods", Nothing, networking::pods_reach_pods),
    ("nodes reach pods", Nothing, networking::nodes_reach_pods),
    ("pods see pods", Nothing, networking::pods_see_pods),
    (
        "host ports of other addresses and protocols",
        Nodes,
        networking::host_ports_of_other_addresses_and_protocols,
    ),
    (
        "a host port from outside",
        Outside,
        networking::host_ports_from_outside,
    ),
];

/// So many cases run at once; most of their time is waiting.
const AT_ONCE: usize = 4;

impl Needs {
    /// Why the cluster does not have it.
    fn lacking(self, world: &World) -> Option<&'static str> {
        let zones: std::collections::BTreeSet<_> = world.nodes.iter().map(|node| &node.zone).collect();
        if self != Nothing && world.nodes.len() < 3 {
            Some("needs three nodes")
        } else if self == Zones && (zones.len() < 2 || zones.contains(&None)) {
            Some("needs nodes of two zones")
        } else if self == Families && !world.has_both_families {
            Some("needs pods with IPv4 and IPv6")
        } else if self == Outside && world.outside.is_none() {
            Some("needs somebody outside, who is there where the suite brings the cluster up")
        } else {
            None
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(AT_ONCE);
    let kubeconfig = std::env::var_os("CONFORMANCE_KUBECONFIG").filter(|path| !path.is_empty());
    let runnable = kubeconfig.is_some() || tests::privileged("[sig-network] on a cluster of its own");
    if arguments.list || !runnable {
        let trials = CASES
            .iter()
            .map(|(name, ..)| Trial::test(*name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let world = match &kubeconfig {
        Some(path) => World::foreign(Path::new(path)),
        None => World::own(),
    };
    let world = match world {
        Ok(world) => Arc::new(world),
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = CASES
        .iter()
        .map(|(name, needs, case)| trial(&world, name, *needs, *case));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if conclusion.has_failed() {
        world.print_logs();
    }
    conclusion.exit_code()
}

fn trial(world: &Arc<World>, name: &'static str, needs: Needs, case: Case) -> Trial {
    let lacking = needs.lacking(world);
    if let Some(reason) = lacking {
        tests::skipped(name, reason);
    }
    let world = Arc::clone(world);
    let run = move || {
        let tried = Namespace::new(&world).and_then(|namespace| case(&namespace));
        tried.map_err(|error| Failed::from(format!("{error:#}")))
    };
    Trial::test(name, run).with_ignored_flag(lacking.is_some())
}
