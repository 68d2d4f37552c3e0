//! One cluster of three nodes, and what real clients do with it.
//!
//! - [`transcript`]: what people type, with kubectl of several versions.
//! - [`streams`]: commands, files, terminals and ports of pods; [`clients`]: clients that are not kubectl.
//! - [`traffic`], [`resolvers`]: packets and names; [`restarts`]: the same while processes are killed; [`dns_pods`]: the
//!   DNS server as pods.
//! - [`connectivity`]: the program's own trial of the cluster.
//! - [`objects`], [`roles`]: what is refused, and to whom.
//! - [`pods`], [`kubelet`], [`figures`]: what pods are made of, and what they use; [`workloads`]: who makes them.
//!
//! A harness of its own, because all of it happens on one cluster that has to come down at the end.

#[path = "cluster/clients.rs"]
mod clients;
#[path = "cluster/connectivity.rs"]
mod connectivity;
#[path = "cluster/dns_pods.rs"]
mod dns_pods;
#[path = "cluster/figures.rs"]
mod figures;
#[path = "cluster/kubelet.rs"]
mod kubelet;
#[path = "cluster/objects.rs"]
mod objects;
#[path = "cluster/pods.rs"]
mod pods;
#[path = "cluster/resolvers.rs"]
mod resolvers;
#[path = "cluster/restarts.rs"]
mod restarts;
#[path = "cluster/roles.rs"]
mod roles;
#[path = "cluster/streams.rs"]
mod streams;
#[path = "cluster/traffic.rs"]
mod traffic;
#[path = "cluster/transcript.rs"]
mod transcript;
#[path = "cluster/workloads.rs"]
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tests::cluster::{Scenario, example, run_trials};

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(90);

/// In order: later ones use what earlier ones applied.
const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "apply_makes_a_deployment_of_three_on_three_nodes",
        traffic::apply_makes_a_deployment,
    ),
    (
        "pods_on_every_node_reach_the_service_by_address_and_by_name",
        traffic::pods_reach_the_service,
    ),
    (
        "resolvers_of_every_kind_find_names_under_every_dns_policy",
        resolvers::find_names,
    ),
    (
        "another_nodes_dns_server_answers_where_the_own_one_stands_still",
        traffic::another_dns_server_answers,
    ),
    (
        "node_ports_answer_from_outside_on_every_node",
        traffic::node_ports_answer,
    ),
    ("the_socket_hook_fires_for_pods", traffic::the_hook_fires_for_pods),
    (
        "connectivity_reaches_everything_and_leaves_nothing",
        connectivity::everything_is_reached,
    ),
    (
        "connectivity_tells_a_fault_with_its_place",
        connectivity::a_fault_is_told_with_its_place,
    ),
    (
        "connectivity_leaves_nothing_when_it_is_interrupted_or_killed",
        connectivity::nothing_is_left_when_it_is_interrupted_or_killed,
    ),
    (
        "connectivity_tells_what_cannot_be_tried",
        connectivity::what_cannot_be_tried_is_told,
    ),
    ("a_pod_to_talk_to_is_ready", streams::start),
    ("every_kubectl_executes_commands", streams::exec),
    (
        "every_kubectl_copies_files_and_opens_a_shell_on_a_terminal",
        streams::copies_and_shells,
    ),
    ("every_kubectl_attaches", streams::attach),
    ("every_kubectl_forwards_ports", streams::port_forward),
    (
        "every_kubectl_reaches_pods_services_and_nodes_by_proxy",
        streams::proxy,
    ),
    (
        "the_rust_client_lists_and_watches",
        clients::rust_lists_and_watches,
    ),
    (
        "the_rust_client_patches_in_all_types_and_evicts",
        clients::rust_patches_in_all_types,
    ),
    (
        "the_rust_client_executes_attaches_and_forwards_ports",
        clients::rust_streams,
    ),
    (
        "the_python_client_lists_watches_patches_executes_and_reads_logs",
        clients::python,
    ),
    (
        "a_client_that_goes_takes_its_commands_streams_along",
        streams::gone_clients,
    ),
    ("bad_objects_get_kubernetes_own_errors", objects::bad_objects),
    (
        "roles_allow_what_they_say_and_nothing_else",
        roles::allow_and_refuse,
    ),
    (
        "the_dns_server_needs_no_more_than_its_manifest_gives_it",
        roles::serve_the_dns_server,
    ),
    (
        "images_are_built_imported_listed_and_removed",
        pods::images_are_built_imported_listed_and_removed,
    ),
    (
        "an_image_that_cannot_be_had_is_told_by_policy",
        pods::an_image_that_cannot_be_had_is_told_by_policy,
    ),
    (
        "init_containers_run_in_order_and_hold_back_the_others",
        pods::init_containers_run_in_order_and_hold_back_the_others,
    ),
    (
        "sidecars_start_before_and_end_after_the_others",
        pods::sidecars_start_before_and_end_after_the_others,
    ),
    (
        "commands_in_a_container_are_its_probes_and_hooks",
        pods::commands_in_a_container_are_its_probes_and_hooks,
    ),
    (
        "volumes_of_every_source_are_there",
        pods::volumes_of_every_source_are_there,
    ),
    (
        "a_changed_config_map_reaches_its_volume_as_a_whole",
        pods::a_changed_config_map_reaches_its_volume_as_a_whole,
    ),
    (
        "a_pod_of_the_node_sees_what_the_node_has",
        pods::a_pod_of_the_node_sees_what_the_node_has,
    ),
    (
        "a_pod_that_cannot_be_prepared_is_told_why",
        pods::a_pod_that_cannot_be_prepared_is_told_why,
    ),
    (
        "what_nodes_and_pods_use_is_told_by_top",
        figures::what_nodes_and_pods_use_is_told_by_top,
    ),
    (
        "a_hook_after_the_start_holds_back_what_follows_and_costs_its_container_when_it_fails",
        kubelet::hooks_after_the_start,
    ),
    (
        "a_pod_is_ended_at_its_deadline_when_it_fills_the_disk_or_asks_for_what_it_may_not",
        kubelet::ended_pods,
    ),
    (
        "the_containers_of_a_pod_share_memory_and_processes_as_it_says",
        kubelet::shared_memory_and_processes,
    ),
    (
        "a_container_that_wrote_no_last_words_has_the_end_of_its_log",
        kubelet::last_words,
    ),
    (
        "images_come_from_a_registry_with_the_pods_own_login",
        kubelet::images_come_from_a_registry,
    ),
    (
        "a_node_does_not_lead_to_the_api_server",
        figures::no_way_to_itself,
    ),
    (
        "the_manifests_of_the_dns_server_answer_from_pods",
        dns_pods::the_manifests_answer_from_pods,
    ),
    (
        "daemon_sets_follow_nodes_and_templates",
        workloads::daemon_sets_follow_nodes_and_templates,
    ),
    (
        "rollouts_go_back_pause_and_report",
        workloads::rollouts_go_back_pause_and_report,
    ),
    ("budgets_tell_what_may_go", workloads::budgets_tell_what_may_go),
    (
        "pods_stand_apart_and_the_rest_is_told_why_it_waits",
        workloads::pods_stand_apart_and_the_rest_is_told_why_it_waits,
    ),
    (
        "stateful_sets_keep_names_and_order",
        workloads::stateful_sets_keep_names_and_order,
    ),
    ("jobs_run_to_their_end", workloads::jobs_run_to_their_end),
    (
        "cron_jobs_start_jobs_at_their_times",
        workloads::cron_jobs_start_jobs_at_their_times,
    ),
    (
        "a_node_that_falls_silent_is_left_and_heals",
        workloads::a_node_that_falls_silent_is_left_and_heals,
    ),
    ("a_pods_annotations_bound_its_bandwidth", traffic::bandwidth),
    (
        "the_control_plane_restarts_while_traffic_flows",
        restarts::control_plane_restarts,
    ),
    (
        "agents_and_kubelets_restart_while_traffic_flows",
        restarts::node_daemons_restart,
    ),
    (
        "a_deleted_namespace_takes_its_objects_along",
        objects::namespace_deletion,
    ),
    ("the_transcript_holds_with_every_kubectl", transcript::holds),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runnable = tests::privileged("a cluster of three nodes");
    if arguments.list || !runnable {
        let trials = SCENARIOS
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let state_dir = PathBuf::from(format!("/var/lib/cwt-cluster-{}", std::process::id()));
    if run_trials(&arguments, &state_dir, &[], SCENARIOS) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
