//! What flanneld does not survive (etcd mode, its `main` of August 2026, each seen on a machine), and the test that we do:
//!
//! | flanneld | here |
//! |---|---|
//! | a remote's new MAC address: the old forwarding entry stays for ever | `flannels_mac_change_and_duplicate_addresses_…` |
//! | a node that leaves while it is down: its entries stay for ever | `a_restart_writes_nothing_…_a_node_that_left_…` |
//! | a route or neighbour deleted by somebody: not healed | `…_drift_is_repaired_within_a_second` |
//! | its device deleted: made again with a new MAC address, without entries, and nobody is told | the same |
//! | two nodes with one address: both use the first one's subnet | `flannels_mac_change_and_duplicate_addresses_…` |
//! | two nodes that claim one subnet together: the loser exits | `nodes_that_start_together_…` |
//! | an operator's reservation: becomes a lease of 24 hours | `…_and_reservations_are_handled` |
//! | started without etcd: waits for ever | `a_restart_writes_nothing_and_needs_no_etcd_…` |
//! | etcd comes back empty: nodes do not register again for up to 23 hours | `…_a_lost_etcd_is_filled_again` |
//! | no subnet is free: exits | `a_node_for_which_no_subnet_is_free_waits_for_one` |
//! | its own key deleted: exits | `a_deleted_key_is_written_again_…` |

mod privileged {
    use std::collections::BTreeSet;

    use serde_json::json;

    use crate::harness::Cluster;

    /// Three subnets of a /24 each: the first one of four is never leased.
    fn three_subnets() -> serde_json::Value {
        json!({"Network": "10.5.0.0/22", "SubnetLen": 24, "Backend": {"Type": "vxlan"}})
    }

    #[test]
    fn nodes_that_start_together_get_a_subnet_each_though_there_are_no_more() {
        let Some(cluster) = Cluster::new("race", 3) else {
            return;
        };
        for round in 0..5 {
            let start = |number| cluster.node_of(number, &format!("node-{number}"), three_subnets());
            let nodes = [start(0), start(1), start(2)];
            let leases: BTreeSet<String> = nodes
                .iter()
                .map(|node| node.await_others(2).lease.expect("a lease").to_string())
                .collect();
            assert_eq!(leases.len(), 3, "round {round}: {leases:?}");
            drop(nodes);
            // They have to race again.
            cluster.etcdctl(&["del", "--prefix", "/coreos.com/network/subnets"]);
            for number in 0..3 {
                let directory = cluster.directory.0.join(format!("host-{number}"));
                std::fs::remove_dir_all(directory).expect("removed");
            }
        }
    }

    #[test]
    fn a_node_for_which_no_subnet_is_free_waits_for_one() {
        let Some(cluster) = Cluster::new("full", 4) else {
            return;
        };
        let start = |number| cluster.node_of(number, &format!("node-{number}"), three_subnets());
        let nodes = [start(0), start(1), start(2)];
        for node in &nodes {
            node.await_others(2);
        }
        let late = start(3);
        late.await_status("it is told", |status| {
            let told = "no free subnet in 10.5.0.0/22: 3 taken";
            !status.ready && status.problems.iter().any(|problem| problem == told)
        });
        let [.., leaves] = nodes;
        let freed = leaves.status.borrow().lease.clone().expect("a lease");
        leaves.stop();
        let subnet = freed.subnets().v4.expect("IPv4").network();
        cluster.etcdctl(&["del", &format!("/coreos.com/network/subnets/{subnet}-24")]);
        assert_eq!(
            late.await_others(2).lease.expect("a lease").subnets(),
            freed.subnets()
        );
    }
}
