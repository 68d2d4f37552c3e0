//! Many nodes at once, against a real etcd. What they claim and follow is as on a node; nothing of it reaches a kernel,
//! which needs no more than one network namespace for all of them.

mod privileged {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use ::tests::directory::Directory;
    use ::tests::topology::Host;
    use etcd_client::{Client, DeleteOptions};
    use tokio::task::JoinSet;

    use super::super::*;
    use crate::config::Leases;
    use crate::fast_path;

    /// Those that start together.
    const NODES: u8 = 50;

    /// How often they do. One node is slower than 99 of a hundred in two and a half.
    const ROUNDS: usize = 5;

    /// For everything that nodes wait for. What they took is told.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn etcd() -> Etcd {
        Etcd {
            endpoints: vec![::tests::etcd::URL.to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            ca: None,
            cert: None,
            key: None,
            username: None,
            password_file: None,
        }
    }

    /// Runs it beside an etcd, in a namespace of their own.
    fn beside_etcd(test: &str, label: &str, work: impl AsyncFnOnce(&Directory) + Send) {
        if !::tests::privileged(test) {
            return;
        }
        let Some(program) = ::tests::etcd::program() else {
            ::tests::skipped(test, "needs etcd: setup.sh test");
            return;
        };
        let directory = Directory::new(label);
        let host = Host::new(label).expect("a namespace");
        let data = directory.path().join("etcd");
        let data = data.to_str().expect("a plain path");
        let _etcd = ::tests::etcd::start(&host.place(), &program, data).expect("etcd starts");
        let run = || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(work(&directory));
        };
        host.run(run).expect("entered");
    }

    /// Nodes that follow leases until they are dropped.
    struct Nodes {
        running: Vec<JoinSet<()>>,
        followed: Vec<watch::Receiver<Followed>>,
        began: Instant,
    }

    impl Nodes {
        /// Starts them at once, without a memory.
        fn start(network: &serde_json::Value, directory: &Path) -> Self {
            let mut followers = Vec::new();
            let mut followed = Vec::new();
            for number in 1..=NODES {
                let public_ip = format!("172.30.9.{number}").parse().expect("an address");
                let own = OwnNode {
                    name: format!("node-{number}").as_str().into(),
                    interface: "eth0".to_owned(),
                    public_ips: ByFamily {
                        v4: Some(public_ip),
                        v6: None,
                    },
                };
                let state_dir = directory.join(number.to_string());
                std::fs::create_dir_all(&state_dir).expect("made");
                let config = Config {
                    node: own.name.clone(),
                    leases: Leases::Etcd(etcd()),
                    interface: None,
                    public_ips: own.public_ips,
                    network: Some(network.clone()),
                    subnet_env: state_dir.join("subnet.env"),
                    anti_spoofing: true,
                    pin_dir: state_dir.clone(),
                    state_dir,
                    fast_path: fast_path::State::Off,
                };
                let (published, receiver) = watch::channel(Followed::default());
                followers.push(Follower::new(own, etcd(), &config, published));
                followed.push(receiver);
            }
            let began = Instant::now();
            let run = |follower: Follower| {
                let mut set = JoinSet::new();
                set.spawn(follower.run());
                set
            };
            Self {
                running: followers.into_iter().map(run).collect(),
                followed,
                began,
            }
        }

        /// When each had a lease.
        async fn times_to_lease(&self) -> Vec<Duration> {
            let mut waiting = JoinSet::new();
            for mut followed in self.followed.iter().cloned() {
                let began = self.began;
                waiting.spawn(async move {
                    let found = followed.wait_for(|followed| followed.network.is_some()).await;
                    drop(found.expect("it runs"));
                    began.elapsed()
                });
            }
            let all = tokio::time::timeout(DEADLINE, waiting.join_all()).await;
            all.unwrap_or_else(|_| panic!("not each has a lease within {DEADLINE:?}: {}", self.told()))
        }

        /// Waits for what is known to be so on every node.
        async fn await_each(&self, what: &str, condition: impl Fn(&Followed) -> bool) {
            for followed in &self.followed {
                let mut followed = followed.clone();
                let found = tokio::time::timeout(DEADLINE, followed.wait_for(&condition)).await;
                let Ok(found) = found else {
                    panic!("not within {DEADLINE:?}: {what}; last seen: {}", self.told())
                };
                drop(found.expect("it runs"));
            }
        }

        /// The subnets that nodes have, by their number.
        fn subnets(&self) -> Vec<(usize, String)> {
            let subnet = |(number, followed): (usize, &watch::Receiver<Followed>)| {
                let followed = followed.borrow();
                let network = followed.network.as_ref()?;
                Some((number, network.own.to_string()))
            };
            self.followed.iter().enumerate().filter_map(subnet).collect()
        }

        /// How each stands.
        fn told(&self) -> String {
            let mut told = String::new();
            for (number, followed) in self.followed.iter().enumerate() {
                let followed = followed.borrow();
                let own = followed.network.as_ref().map(|network| network.own.to_string());
                let trouble = &followed.trouble;
                writeln!(told, "{}: {own:?} {trouble:?}", number + 1).expect("a text takes all");
            }
            told
        }
    }

    fn are_distinct(subnets: &[(usize, String)]) -> bool {
        let distinct: BTreeSet<&String> = subnets.iter().map(|(_, subnet)| subnet).collect();
        distinct.len() == subnets.len()
    }

    /// Of every hundred, 99 took no longer.
    fn p99(times: &mut [Duration]) -> Duration {
        times.sort_unstable();
        let rank = (times.len() * 99).div_ceil(100);
        times[rank - 1]
    }

    async fn delete_leases() {
        let mut client = Client::connect([::tests::etcd::URL], None)
            .await
            .expect("connected");
        let options = DeleteOptions::new().with_prefix();
        let deleted = client.delete("/coreos.com/network/subnets/", Some(options)).await;
        deleted.expect("deleted");
    }

    #[test]
    fn fifty_nodes_that_start_at_once_have_a_subnet_each() {
        beside_etcd("fifty nodes start at once (F28)", "fifty", async |directory| {
            // 63 subnets: the first one of 64 is never leased.
            let network = serde_json::json!({
                "Network": "10.5.0.0/20", "SubnetLen": 26, "Backend": {"Type": "vxlan"},
            });
            let mut times = Vec::new();
            for round in 0..ROUNDS {
                let nodes = Nodes::start(&network, &directory.path().join(round.to_string()));
                times.extend(nodes.times_to_lease().await);
                let others = usize::from(NODES) - 1;
                nodes
                    .await_each("it knows all the others", |followed| {
                        let known = followed.network.as_ref().map(|network| network.others.len());
                        known == Some(others) && followed.trouble.is_none()
                    })
                    .await;
                let subnets = nodes.subnets();
                assert_eq!(subnets.len(), usize::from(NODES));
                assert!(are_distinct(&subnets), "round {round}: {subnets:?}");
                drop(nodes);
                delete_leases().await;
            }
            let p99 = p99(&mut times);
            println!(
                "F28 {NODES} nodes at once, {ROUNDS} times: all distinct; to the lease p50 {:.0?}, p99 {p99:.0?}, \
                 the slowest {:.0?}",
                times[times.len() / 2],
                times[times.len() - 1],
            );
        });
    }

    #[test]
    fn of_fifty_nodes_in_a_network_of_fifteen_subnets_fifteen_have_one_and_the_others_say_why_not() {
        let test = "fifty nodes in a network of fifteen subnets (F28)";
        beside_etcd(test, "fifteen", async |directory| {
            const SUBNETS: usize = 15;
            let network = serde_json::json!({
                "Network": "10.5.0.0/20", "SubnetLen": 24, "Backend": {"Type": "vxlan"},
            });
            let mut nodes = Nodes::start(&network, directory.path());
            let told = "no free subnet in 10.5.0.0/20: 15 taken";
            let settled = |followed: &Followed| match &followed.network {
                Some(network) => network.others.len() == SUBNETS - 1 && followed.trouble.is_none(),
                None => followed.trouble.as_deref() == Some(told),
            };
            nodes
                .await_each("it has a lease, or is told why not", settled)
                .await;
            let took = nodes.began.elapsed();
            let subnets = nodes.subnets();
            assert_eq!(subnets.len(), SUBNETS, "{}", nodes.told());
            assert!(are_distinct(&subnets), "{subnets:?}");

            // The subnet of one that goes is another's, and no more than one other's.
            let (leaves, freed) = &subnets[0];
            nodes.running.remove(*leaves);
            nodes.followed.remove(*leaves);
            let key = format!("/coreos.com/network/subnets/{}", freed.replace('/', "-"));
            let mut client = Client::connect([::tests::etcd::URL], None)
                .await
                .expect("connected");
            let deleted = client.delete(key, None).await.expect("deleted").deleted();
            assert_eq!(deleted, 1, "its key was there");
            let began = Instant::now();
            let mut waiting = JoinSet::new();
            for mut followed in nodes.followed.iter().cloned() {
                let freed = freed.clone();
                waiting.spawn(async move {
                    let has_it = |followed: &Followed| {
                        let network = followed.network.as_ref();
                        network.is_some_and(|network| network.own.to_string() == freed)
                    };
                    drop(followed.wait_for(has_it).await.expect("it runs"));
                });
            }
            let taken = tokio::time::timeout(DEADLINE, waiting.join_next()).await;
            assert!(taken.is_ok(), "nobody took {freed}: {}", nodes.told());
            println!(
                "F28 {NODES} nodes for {SUBNETS} subnets: settled after {took:.0?}; a free one was taken after {:.0?}",
                began.elapsed()
            );
            nodes.await_each("each knows where it stands", settled).await;
            let subnets = nodes.subnets();
            assert_eq!(subnets.len(), SUBNETS, "{}", nodes.told());
            assert!(are_distinct(&subnets), "{subnets:?}");
        });
    }
}
