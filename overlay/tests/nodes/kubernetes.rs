//! Leases in Node objects: the API's place is taken by a snapshot that all nodes of the test share.

mod privileged {
    use std::sync::{Arc, Mutex};
    use std::thread::JoinHandle;

    use model::{Change, Kind, Node as Object, Snapshot, Text};
    use overlay::{Announcement, Leases, Nodes};
    use serde_json::{Value, json};
    use tests::wait;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use crate::dual_stack::FAMILIES;
    use crate::harness::{Cluster, Node, SOON, await_talk, await_talk_over};

    /// The Nodes, and what writes the annotations that overlays announce.
    struct Api {
        snapshot: Arc<Mutex<Snapshot>>,
        sender: watch::Sender<Arc<Snapshot>>,
        shutdown: CancellationToken,
        writers: Mutex<Vec<JoinHandle<()>>>,
    }

    impl Api {
        fn new() -> Self {
            Self {
                snapshot: Arc::default(),
                sender: watch::Sender::default(),
                shutdown: CancellationToken::new(),
                writers: Mutex::default(),
            }
        }

        fn change(&self, change: Change) {
            apply(&self.snapshot, &self.sender, change);
        }

        fn put(&self, name: &str, pod_cidrs: &[&str], annotations: &[(&str, &str)]) {
            let annotations = annotations.iter();
            self.change(Change::Node(Object {
                pod_cidrs: pod_cidrs
                    .iter()
                    .map(|cidr| cidr.parse().expect("a network"))
                    .collect(),
                flannel: annotations
                    .map(|(name, value)| (Text::from(*name), Text::from(*value)))
                    .collect(),
                ..Object::new(name)
            }));
        }

        /// What an overlay is started with; what it announces is written to its object.
        fn nodes(&self, name: &str) -> Nodes {
            let (announced, mut announcements) = watch::channel::<Option<Announcement>>(None);
            let (snapshot, sender, shutdown) =
                (self.snapshot.clone(), self.sender.clone(), self.shutdown.clone());
            let name = Text::from(name);
            let write = async move {
                while announcements.changed().await.is_ok() {
                    let announcement = announcements.borrow_and_update().clone().unwrap_or_default();
                    let found = {
                        let snapshot = snapshot.lock().expect("no panic");
                        let found = snapshot.nodes.get(&model::NodeName(name.clone()));
                        found.map(|node| Object::clone(node))
                    };
                    let Some(mut node) = found else { continue };
                    node.flannel.extend(
                        announcement
                            .into_iter()
                            .map(|(name, value)| (name.into(), value.into())),
                    );
                    apply(&snapshot, &sender, Change::Node(node));
                }
            };
            let writer = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .expect("a runtime");
                runtime.block_on(shutdown.run_until_cancelled(write));
            });
            self.writers.lock().expect("no panic").push(writer);
            Nodes {
                snapshots: self.sender.subscribe(),
                announced,
            }
        }

        fn annotation(&self, node: &str, name: &str) -> Option<String> {
            let snapshot = self.snapshot.lock().expect("no panic");
            let node = snapshot.nodes.get(&model::NodeName(node.into()))?;
            node.flannel.get(name).map(ToString::to_string)
        }
    }

    fn apply(snapshot: &Mutex<Snapshot>, sender: &watch::Sender<Arc<Snapshot>>, change: Change) {
        let mut snapshot = snapshot.lock().expect("no panic");
        snapshot.apply(change);
        sender.send_replace(Arc::new(snapshot.clone()));
    }

    impl Drop for Api {
        fn drop(&mut self) {
            self.shutdown.cancel();
            for writer in self.writers.get_mut().expect("no panic").drain(..) {
                let _ = writer.join(); // its panic was told when it happened
            }
        }
    }

    const NAMES: [&str; 3] = ["node-0", "node-1", "node-2"];

    fn dual_stack(backend: &str) -> Value {
        json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/56",
            "Backend": {"Type": backend},
        })
    }

    fn start<'c>(cluster: &'c Cluster, api: &Api, number: usize, network: &Value) -> Node<'c> {
        let name = NAMES[number];
        cluster.node_with(number, name, network.clone(), Leases::Kubernetes(api.nodes(name)))
    }

    fn cidrs(number: usize) -> [String; 2] {
        [
            format!("10.244.{}.0/24", number + 1),
            format!("fd00:244:0:{}::/64", number + 1),
        ]
    }

    fn put(api: &Api, number: usize) {
        let [v4, v6] = cidrs(number);
        api.put(NAMES[number], &[&v4, &v6], &[]);
    }

    fn routes_to_others(node: &Node<'_>) -> usize {
        let routes = node.routes();
        routes.iter().filter(|route| route.contains(" via ")).count()
    }

    #[test]
    fn pods_of_nodes_with_pod_cidrs_talk_through_outages_and_changes_of_nodes() {
        for backend in ["vxlan", "host-gw"] {
            check(backend);
        }
    }

    fn check(backend: &str) {
        let Some(cluster) = Cluster::without_etcd(&format!("kube-{backend}"), 3) else {
            return;
        };
        cluster.add_ipv6();
        let network = dual_stack(backend);
        let api = Api::new();
        let first = start(&cluster, &api, 0, &network);
        // An overlay that knows nothing yet says what it waits for, and gives no address.
        first.await_status("it waits for the Nodes", |status| {
            status
                .problems
                .iter()
                .any(|problem| problem.contains("has not told of the Nodes"))
        });
        api.change(Change::Synced(Kind::Node));
        first.await_status("its Node is missing", |status| {
            status
                .problems
                .iter()
                .any(|problem| problem.contains("there is no Node node-0"))
        });
        let [v4, _] = cidrs(0);
        api.put(NAMES[0], &[&v4], &[]);
        first.await_status("a podCIDR is missing", |status| {
            status
                .problems
                .iter()
                .any(|problem| problem.contains("has no IPv6 podCIDR"))
        });
        put(&api, 0);
        first.await_others(0);

        put(&api, 1);
        put(&api, 2);
        let nodes = [
            first,
            start(&cluster, &api, 1, &network),
            start(&cluster, &api, 2, &network),
        ];
        let await_routes = |node: &Node<'_>, routes: usize| {
            wait::until_value(
                "a route for each",
                SOON,
                || routes_to_others(node),
                |found| *found == routes,
            );
        };
        for node in &nodes {
            await_routes(node, 4);
        }
        let pods = [0, 1, 2].map(|number| nodes[number].add_pod_when_ready(&format!("{backend}-{number}")));
        for family in FAMILIES {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0)] {
                await_talk_over(family, &pods[from], &pods[to]);
            }
        }
        assert_eq!(api.annotation("node-1", "backend-type").as_deref(), Some(backend));
        assert_eq!(
            api.annotation("node-1", "public-ip").as_deref(),
            Some("172.30.9.12")
        );
        assert_eq!(
            api.annotation("node-1", "kube-subnet-manager").as_deref(),
            Some("true")
        );

        // A node that goes, and one that lies: told alone, the others go on.
        api.change(Change::DeleteNode("node-2".into()));
        await_routes(&nodes[0], 2);
        let [v4, v6] = cidrs(2);
        let lie = [
            ("kube-subnet-manager", "true"),
            ("backend-type", backend),
            ("public-ip", "127.0.0.1"),
        ];
        api.put(NAMES[2], &[&v4, &v6], &lie);
        nodes[0].await_status("the liar is named", |status| {
            status
                .problems
                .iter()
                .any(|problem| problem.contains("Node node-2"))
        });
        assert_eq!(routes_to_others(&nodes[0]), 2);
        await_talk(&pods[0], &pods[1]);
    }

    #[test]
    fn a_node_that_starts_without_the_api_serves_from_what_it_remembers() {
        let Some(cluster) = Cluster::without_etcd("kube-restart", 2) else {
            return;
        };
        let network = json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}});
        let api = Api::new();
        api.change(Change::Synced(Kind::Node));
        for (number, name) in NAMES.iter().enumerate().take(2) {
            let [v4, _] = cidrs(number);
            api.put(name, &[&v4], &[]);
        }
        let nodes = [
            start(&cluster, &api, 0, &network),
            start(&cluster, &api, 1, &network),
        ];
        nodes[0].await_others(1);
        nodes[1].await_others(1);
        let far = nodes[1].add_pod("far");
        let near = nodes[0].add_pod("near");
        await_talk(&near, &far);
        let [first, _second] = nodes;
        let before = first.entries();
        first.stop();

        let silent = Api::new();
        let again = start(&cluster, &silent, 0, &network);
        again.await_status("it serves", |status| status.ready);
        let new = again.add_pod("new");
        await_talk(&new, &far);
        await_talk(&near, &far);
        let entries = again.entries();
        assert!(
            before.iter().all(|entry| entries.contains(entry)),
            "{before:#?} {entries:#?}"
        );
        let status = again.status.borrow().clone();
        assert!(
            status
                .problems
                .iter()
                .any(|problem| problem.contains("the API server")),
            "{status:?}"
        );
    }
}
