//! The disk lost records of pods that live (F8).

mod privileged {
    use std::path::PathBuf;

    use tests::wait;

    use crate::harness::{Cluster, Node, Pod, SOON, await_talk};

    type Damage = fn(Vec<u8>) -> Vec<u8>;

    /// One byte in the middle of the first record.
    fn flip(mut log: Vec<u8>) -> Vec<u8> {
        let end = log.iter().position(|byte| *byte == b'\n').expect("a line");
        log[end / 2] ^= 0x10;
        log
    }

    #[test]
    fn a_pod_whose_record_the_disk_lost_keeps_its_address_and_nobody_else_gets_it() {
        let damages: [(&str, Damage, usize); 2] =
            [("one record", flip, 1), ("all records", |_| Vec::new(), 3)];
        for (what, damage, lost) in damages {
            let Some(cluster) = Cluster::new("lost", 2) else {
                return;
            };
            let other = cluster.node(1);
            let far = other.add_pod_when_ready("far");
            let node = cluster.node(0);
            let pods = ["a", "b", "c"].map(|id| node.add_pod_when_ready(id));
            node.stop();
            let log: PathBuf = cluster.directory.0.join("host-0/pods.log");
            let bytes = std::fs::read(&log).expect("readable");
            std::fs::write(&log, damage(bytes)).expect("writable");

            let node = cluster.node(0);
            let notes = |node: &Node<'_>| {
                let problems = node.status.borrow().problems.clone();
                let notes = problems.iter().filter(|problem| problem.contains("no record"));
                notes.count()
            };
            wait::until_value("all are told", SOON, || notes(&node), |notes| *notes == lost);
            let news = ["d", "e", "f"].map(|id| node.add_pod_when_ready(id));
            let everyone: Vec<&Pod> = pods.iter().chain(&news).collect();
            for (index, pod) in everyone.iter().enumerate() {
                let twins = everyone.iter().skip(index + 1);
                let twin = twins.clone().find(|other| other.address == pod.address);
                assert!(twin.is_none(), "{what}: {} twice", pod.address);
                await_talk(pod, &far);
                await_talk(&far, pod);
            }

            // A runtime that deletes it has it gone, whatever the log says.
            let [first, ..] = &pods;
            let answer = node.cni("DEL", &first.id, &first.host.path());
            assert!(answer.success, "{what}: {answer:?}");
            wait::until_value("one less", SOON, || notes(&node), |notes| *notes == lost - 1);
            let wished = serde_json::json!({"ips": [first.address]});
            let heir = node.add_pod_with("heir", &wished);
            assert_eq!(heir.address, first.address, "{what}");
            await_talk(&heir, &far);
        }
    }
}
