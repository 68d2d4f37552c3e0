//! Nodes against each other and a real etcd, through the faults that flannel does not survive. Needs root and etcd.

mod capabilities;
mod direct_routing;
mod dual_stack;
mod fast_path;
mod flannels_failures;
mod harness;
mod kubernetes;
mod lost_records;
mod secured_etcd;
mod spoofing;
mod ten_thousand;
mod wire;

mod privileged {
    use std::time::{Duration, Instant};

    use std::net::{TcpListener, TcpStream};

    use netlink::{Kernel, LinkChange};
    use overlay::fast_path::State;
    use tests::wait;

    use crate::harness::{Cluster, Pod, SOON, await_talk, talk};

    #[test]
    fn pods_on_three_nodes_talk_and_drift_is_repaired_within_a_second() {
        let Some(cluster) = Cluster::new("drift", 3) else {
            return;
        };
        let nodes = [cluster.node(0), cluster.node(1), cluster.node(2)];
        for node in &nodes {
            node.await_others(2);
        }
        let pods = [
            nodes[0].add_pod("a"),
            nodes[1].add_pod("b"),
            nodes[2].add_pod("c"),
        ];
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            await_talk(&pods[from], &pods[to]);
        }
        let near = nodes[0].add_pod("a2");
        await_talk(&pods[0], &near);

        let good = nodes[0].entries();
        type Damage = fn(&mut netlink::Netlink, u32);
        let damages: [(&str, Damage); 6] = [
            ("routes deleted", |kernel, _| {
                for route in kernel
                    .routes(&netlink::RouteFilter::made_by(213))
                    .expect("readable")
                {
                    kernel.delete_route(&route).expect("delete");
                }
            }),
            ("neighbours deleted", |kernel, tunnel| {
                for neighbour in kernel
                    .neighbours(Some(tunnel))
                    .expect("readable")
                    .iter()
                    .filter(|n| n.permanent)
                {
                    kernel.delete_neighbour(neighbour).expect("delete");
                }
            }),
            ("forwarding entries deleted", |kernel, tunnel| {
                for entry in kernel.forwarding(tunnel).expect("readable") {
                    kernel.delete_forwarding(&entry).expect("delete");
                }
            }),
            ("address deleted", |kernel, tunnel| {
                for address in kernel.addresses(Some(tunnel)).expect("readable") {
                    kernel.delete_address(&address).expect("delete");
                }
            }),
            ("device down", |kernel, tunnel| {
                kernel.change_link(tunnel, &LinkChange::down()).expect("down")
            }),
            ("device deleted", |kernel, tunnel| {
                kernel.delete_link(tunnel).expect("delete")
            }),
        ];
        for (name, damage) in damages {
            let tunnel = nodes[0].tunnel().expect("there").index;
            let began = Instant::now();
            damage(&mut nodes[0].netlink(), tunnel);
            let without_indices = |entries: Vec<String>| -> Vec<String> {
                entries
                    .iter()
                    .map(|entry| entry.replace(char::is_numeric, ""))
                    .collect()
            };
            let wanted = without_indices(good.clone());
            wait::until_value(
                name,
                SOON,
                || without_indices(nodes[0].entries()),
                |entries| *entries == wanted,
            );
            let took = began.elapsed();
            assert!(took < Duration::from_secs(1), "{name}: repaired after {took:?}");
            eprintln!("{name}: repaired within {took:?}");
            await_talk(&pods[0], &pods[1]);
            await_talk(&pods[1], &pods[0]);
        }
        let table = nodes[0]
            .host
            .command("nft", &["delete", "table", "ip", "causeway-masq"])
            .expect("run nft");
        assert!(table.status.success(), "{table:?}");
        wait::until("the masquerade table is back", SOON, || {
            let listed = nodes[0]
                .host
                .command("nft", &["list", "table", "ip", "causeway-masq"])
                .expect("run nft");
            if listed.stdout.contains("masquerade") {
                Ok(())
            } else {
                Err(listed)
            }
        });
    }

    #[test]
    fn a_restart_writes_nothing_and_needs_no_etcd_and_a_node_that_left_meanwhile_is_removed() {
        let Some(cluster) = Cluster::new("restart", 2) else {
            return;
        };
        {
            let (first, second) = (cluster.node(0), cluster.node(1));
            let before = first.await_others(1);
            second.await_others(1);
            let pods = [first.add_pod("a"), second.add_pod("b")];
            await_talk(&pods[0], &pods[1]);

            let entries = first.entries();
            let mut events = netlink::Events::open_in(
                first.host.namespace(),
                &[
                    netlink::Group::Links,
                    netlink::Group::AddressesV4,
                    netlink::Group::RoutesV4,
                ],
            )
            .expect("subscribe");
            first.stop();
            let first = cluster.node(0);
            let after = first.await_others(1);
            assert_eq!((after.lease, &after.network), (before.lease, &before.network));
            assert_eq!(first.entries(), entries);
            let ours = |event: &netlink::Event| match event {
                netlink::Event::Route(route) | netlink::Event::RouteGone(route) => route.protocol == 213,
                netlink::Event::Link(link) | netlink::Event::LinkGone(link) => link.name == "flannel.1",
                netlink::Event::AddressGone(_) | netlink::Event::Address(_) => true,
                _ => false,
            };
            while let Some(event) = events.next(Duration::from_millis(200)).expect("read") {
                assert!(!ours(&event), "the restart wrote: {event:?}");
            }
            await_talk(&pods[0], &pods[1]);
            // The devices of pods go before their nodes.
            for (node, pod) in [(&first, &pods[0]), (&second, &pods[1])] {
                assert!(node.cni("DEL", &pod.id, &pod.host.path()).success);
            }
        }
        // Without etcd a node serves what it remembers.
        cluster.stop_etcd();
        {
            let first = cluster.node(0);
            let status = first.await_status("ready without etcd", |status| status.ready);
            assert_eq!(status.others, 1);
            assert!(!status.problems.is_empty(), "and says that etcd is away");
            let pod = first.add_pod("c");
            assert!(first.cni("DEL", &pod.id, &pod.host.path()).success);
        }
        cluster.start_etcd("etcd");
        // A node that left while this one was away.
        let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
        let own = std::fs::read_to_string(cluster.directory.0.join("host-0/subnet.env")).expect("written");
        let other = keys.lines().find(|key| {
            key.starts_with('/') && {
                let subnet = key.rsplit('/').next().expect("a name").replace(".0-24", ".");
                !own.contains(&subnet)
            }
        });
        cluster.etcdctl(&["del", other.expect("the other node's key")]);
        let first = cluster.node(0);
        first.await_others(0);
    }

    #[test]
    fn a_deleted_key_is_written_again_and_a_lost_etcd_is_filled_again() {
        let Some(cluster) = Cluster::new("loss", 2) else {
            return;
        };
        {
            let nodes = [cluster.node(0), cluster.node(1)];
            let leases: Vec<_> = nodes.iter().map(|node| node.await_others(1).lease).collect();
            cluster.etcdctl(&["del", "--prefix", "/coreos.com/network/subnets"]);
            let keys = || cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
            wait::until_value("both keys are back", SOON, keys, |keys| {
                keys.matches("-24").count() == 2
            });
            for (node, lease) in nodes.iter().zip(&leases) {
                assert_eq!(&node.await_others(1).lease, lease);
            }
        }
        let nodes = [cluster.node(0), cluster.node(1)];
        let leases: Vec<_> = nodes.iter().map(|node| node.await_others(1).lease).collect();
        let pods = [nodes[0].add_pod("a"), nodes[1].add_pod("b")];
        await_talk(&pods[0], &pods[1]);
        let mut events = netlink::Events::open_in(nodes[0].host.namespace(), &[netlink::Group::RoutesV4])
            .expect("subscribe");
        cluster.stop_etcd();
        cluster.start_etcd("another");
        let keys = || cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
        wait::until_value("both nodes are in the new etcd", SOON, keys, |keys| {
            keys.matches("-24").count() == 2
        });
        for (node, lease) in nodes.iter().zip(leases) {
            assert_eq!(
                node.await_others(1).lease,
                lease,
                "the same subnet in an etcd that knew nothing"
            );
        }
        await_talk(&pods[0], &pods[1]);
        while let Some(event) = events.next(Duration::from_millis(200)).expect("read") {
            let gone = matches!(&event, netlink::Event::RouteGone(route) if route.protocol == 213);
            assert!(!gone, "traffic was interrupted: {event:?}");
        }
    }

    #[test]
    fn flannels_mac_change_and_duplicate_addresses_and_reservations_are_handled() {
        let Some(cluster) = Cluster::new("lease", 2) else {
            return;
        };
        let prefix = "/coreos.com/network/subnets";
        cluster.etcdctl(&[
            "put",
            "/coreos.com/network/config",
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
        ]);
        // An operator's reservation for our address, without a time to live.
        let reserved = format!("{prefix}/10.5.77.0-24");
        let value = r#"{"PublicIP":"172.30.9.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"},"Rack":"r7"}"#;
        cluster.etcdctl(&["put", &reserved, value]);
        let node = cluster.node(0);
        let status = node.await_others(0);
        assert_eq!(status.lease.expect("a lease").to_string(), "10.5.77.0/24");
        let written: serde_json::Value =
            serde_json::from_str(&cluster.etcdctl(&["get", "-w", "json", &reserved])).expect("JSON");
        assert_eq!(
            written["kvs"][0].get("lease"),
            None,
            "the reservation stays one: {written}"
        );
        let value = cluster.etcdctl(&["get", "--print-value-only", &reserved]);
        assert!(
            value.contains(r#""Rack":"r7""#) && value.contains(r#""CausewayNode":"node-0""#),
            "{value}"
        );

        // A flannel node that comes back with another MAC address: no old forwarding entry stays.
        let remote = |mac: &str| {
            format!(
                r#"{{"PublicIP":"172.30.9.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            )
        };
        let key = format!("{prefix}/10.5.9.0-24");
        for mac in ["02:00:00:00:00:09", "02:00:00:00:00:aa"] {
            cluster.etcdctl(&["put", &key, &remote(mac)]);
            wait::until_value(
                "one forwarding entry, the new one",
                SOON,
                || {
                    node.entries()
                        .into_iter()
                        .filter(|entry| entry.contains(" to "))
                        .collect::<Vec<_>>()
                },
                |entries| matches!(entries.as_slice(), [only] if only.starts_with(mac)),
            );
        }
        cluster.etcdctl(&["del", &key]);
        node.await_others(0);

        // Another node has our address: refused, with the holder's name, and served as soon as that is gone.
        let taken = format!("{prefix}/10.5.8.0-24");
        let holder = r#"{"PublicIP":"172.30.9.12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:08","CausewayNode":"it"}}"#;
        cluster.etcdctl(&["put", &taken, holder]);
        let twin = cluster.node(1);
        let told = "public address 172.30.9.12 belongs to node it already, which has 10.5.8.0/24: give each node its own";
        twin.await_status("the duplicate is told", |status| {
            !status.ready && status.problems.iter().any(|p| p == told)
        });
        cluster.etcdctl(&["del", &taken]);
        twin.await_others(1);
    }

    #[test]
    fn host_gw_routes_plainly_and_the_node_reaches_pods_and_pods_reach_the_world_masqueraded() {
        let Some(cluster) = Cluster::new("gw", 2) else {
            return;
        };
        let nodes = [
            cluster.node_named(0, "n0", "host-gw"),
            cluster.node_named(1, "n1", "host-gw"),
        ];
        for node in &nodes {
            let status = node.await_others(1);
            assert_eq!(status.mtu, Some(model::Mtu(1500)));
            assert!(node.tunnel().is_none());
        }
        let pods = [nodes[0].add_pod("a"), nodes[1].add_pod("b")];
        await_talk(&pods[0], &pods[1]);
        // The LAN's own host has no route to pods: only masqueraded packets are answered.
        let server = cluster
            .lan
            .switch
            .run(|| std::net::UdpSocket::bind("172.30.9.1:7001"))
            .expect("enter")
            .expect("bind");
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("timeout");
        let client = pods[0]
            .host
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0"))
            .expect("enter")
            .expect("bind");
        client.send_to(b"hello", "172.30.9.1:7001").expect("send");
        let (_, source) = server.recv_from(&mut [0; 16]).expect("receive");
        assert_eq!(source.ip().to_string(), "172.30.9.11");
        assert!(talk(&pods[1], &pods[0]).is_ok());
    }

    #[test]
    fn pods_of_one_node_take_the_fast_path_unless_somebodys_rules_are_in_the_way() {
        let Some(cluster) = Cluster::new("fast", 1) else {
            return;
        };
        let node = cluster.node(0);
        node.await_others(0);
        let pods = [node.add_pod("a"), node.add_pod("b")];
        let links = || {
            let links = ebpf::fast_path::links_dir(&cluster.pin_dir(0));
            std::fs::read_dir(links).map_or(0, Iterator::count)
        };
        let given = || {
            let counters = ebpf::fast_path::counters(&cluster.pin_dir(0)).expect("readable")?;
            counters.into_iter().find(|(name, _)| *name == "given")
        };
        wait::until_value("both pods have it", SOON, links, |links| *links == 2);
        assert_eq!(given(), Some(("given", 0)));
        connect(&pods[0], &pods[1]);
        assert!(given().expect("it is there").1 > 2);
        {
            let rules = [
                "add table inet firewall",
                "add chain inet firewall forward { type filter hook forward priority 0; }",
                "add rule inet firewall forward ct state invalid drop",
            ];
            let began = Instant::now();
            for rule in rules {
                let output = node.host.command("nft", &[rule]).expect("nft runs");
                assert!(output.status.success(), "{output:?}");
            }
            let status = node.await_status("the rules are seen", |status| {
                matches!(status.fast_path, State::Refused(_))
            });
            let took = began.elapsed();
            assert!(
                took < Duration::from_secs(5),
                "seen after {took:?}, not by their event"
            );
            let reason = "nftables chain forward of table inet firewall may mean packets between pods";
            assert_eq!(status.fast_path, State::Refused(reason.to_owned()));
            assert!(status.ready && status.problems.is_empty(), "{status:?}");
            assert_eq!(links(), 0);
            // A link whose pin is gone goes in the kernel's own time.
            wait::until("connections take the stack", SOON, || {
                let before = given();
                connect(&pods[0], &pods[1]);
                if given() == before { Ok(()) } else { Err(given()) }
            });
        }
        let delete = ["delete", "table", "inet", "firewall"];
        assert!(
            node.host
                .command("nft", &delete)
                .expect("nft runs")
                .status
                .success()
        );
        node.await_status("the rules are gone", |status| status.fast_path == State::On);
        let before = given();
        connect(&pods[1], &pods[0]);
        assert!(given() > before);
        // A pod that goes takes its entry and its link with it.
        let deleted = node.cni("DEL", &pods[0].id, &pods[0].host.path());
        assert!(deleted.success, "{deleted:?}");
        wait::until_value("one pod has it", SOON, links, |links| *links == 1);
    }

    /// A connection from one pod to the other.
    #[track_caller]
    fn connect(from: &Pod, to: &Pod) {
        let listener = to.host.run(|| TcpListener::bind((to.address, 7002)));
        let listener = listener.expect("entered").expect("listens");
        let address = (to.address, 7002).into();
        let stream = from.host.run(|| TcpStream::connect_timeout(&address, SOON));
        stream.expect("entered").expect("connected");
        listener.accept().expect("accepted");
    }

    #[test]
    fn a_pod_that_goes_without_a_del_gives_its_address_back_within_a_minute() {
        let Some(cluster) = Cluster::new("leak", 1) else {
            return;
        };
        let node = cluster.node(0);
        node.await_others(0);
        let (lives, goes) = (node.add_pod("lives"), node.add_pod("goes"));
        let address = goes.address;
        let began = Instant::now();
        drop(goes);
        let log = cluster.directory.0.join("host-0/pods.log");
        wait::until_value(
            "the address is free",
            Duration::from_secs(60),
            || std::fs::read_to_string(&log).unwrap_or_default(),
            |log| log.contains(&format!(r#"{{"op":"free","address":"{address}","at":"#)),
        );
        eprintln!("released after {:?}", began.elapsed());
        assert!(
            node.cni("CHECK", &lives.id, &lives.host.path()).success,
            "the other stays"
        );
    }

    #[test]
    fn a_key_that_is_no_lease_is_told_until_it_is_gone() {
        let Some(cluster) = Cluster::new("odd", 1) else {
            return;
        };
        let node = cluster.node(0);
        node.await_others(0);
        let key = |subnet: &str| format!("/coreos.com/network/subnets/{subnet}");
        cluster.etcdctl(&["put", &key("10.244.88.0-24"), "nonsense"]);
        node.await_status("the key is told", |status| !status.problems.is_empty());
        let value = r#"{"PublicIP":"172.30.9.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
        cluster.etcdctl(&["put", &key("10.244.99.0-24"), value]);
        let status = node.await_status("another lease comes", |status| status.others == 1);
        assert_eq!(
            status.problems.len(),
            1,
            "the key is still no lease: {:?}",
            status.problems
        );
        cluster.etcdctl(&["del", &key("10.244.88.0-24")]);
        node.await_others(1);
    }

    #[test]
    fn the_bundled_store_serves_the_overlay_by_mutual_tls_and_may_restart() {
        let Some(cluster) = Cluster::bundled("store", 2) else {
            return;
        };
        let nodes = [cluster.node(0), cluster.node(1)];
        for node in &nodes {
            node.await_others(1);
        }
        let pods = [nodes[0].add_pod("a"), nodes[1].add_pod("b")];
        await_talk(&pods[0], &pods[1]);
        cluster.stop_etcd();
        nodes[0].await_status("trouble is told", |status| {
            status.ready && !status.problems.is_empty()
        });
        assert!(
            talk(&pods[1], &pods[0]).is_ok(),
            "traffic does not need the store"
        );
        cluster.start_store();
        for node in &nodes {
            node.await_others(1);
        }
    }

    #[test]
    fn a_node_that_gets_another_address_keeps_its_subnet_and_its_pods_talk_again() {
        let Some(cluster) = Cluster::new("address", 2) else {
            return;
        };
        let nodes = [cluster.node(0), cluster.node(1)];
        let before = nodes[1].await_others(1).lease.expect("a lease");
        nodes[0].await_others(1);
        let pods = [nodes[0].add_pod("a"), nodes[1].add_pod("b")];
        await_talk(&pods[0], &pods[1]);
        let output = nodes[1]
            .host
            .command("ip", &["addr", "del", "172.30.9.12/24", "dev", "eth0"])
            .expect("run ip");
        assert!(output.status.success(), "{output:?}");
        nodes[1]
            .host
            .add_address("eth0", "172.30.9.77/24".parse().expect("network"))
            .expect("add");
        let after = nodes[1].await_status("the lease has the new address", |status| {
            status
                .lease
                .as_ref()
                .is_some_and(|lease| lease.public_ips().v4 == "172.30.9.77".parse().ok())
        });
        assert_eq!(after.lease.expect("a lease").subnets(), before.subnets());
        await_talk(&pods[0], &pods[1]);
        await_talk(&pods[1], &pods[0]);
    }
}
