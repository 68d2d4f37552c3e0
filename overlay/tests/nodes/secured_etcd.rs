//! An etcd that asks for certificates, and one that has users and roles: Debian's.

mod privileged {
    use std::path::Path;

    use overlay::{Etcd, Leases, Status};
    use serde_json::json;
    use tests::wait;

    use crate::harness::{Cluster, Node, Pki, SOON, await_talk, talk};

    const PREFIX: &str = "/coreos.com/network/";

    /// Starts the overlay on a host, as a client of the etcd with these files.
    fn start(cluster: &Cluster, number: usize, etcd: Etcd) -> Node<'_> {
        let network = json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}});
        cluster.node_with(number, &format!("node-{number}"), network, Leases::Etcd(etcd))
    }

    /// Waits until the node says why it does not follow leases.
    #[track_caller]
    fn await_told(node: &Node<'_>, what: &str, why: &str) -> Status {
        node.await_status(
            &format!("{what}: it says {why:?}"),
            |status| matches!(status.problems.as_slice(), [problem] if problem.contains(why)),
        )
    }

    /// What of the etcd's log tells of clients that it did not let in.
    fn rejected(cluster: &Cluster) -> usize {
        cluster.etcd_output().matches("rejected connection").count()
    }

    /// Waits until a client that was not let in came again, and again.
    #[track_caller]
    fn await_retries(cluster: &Cluster) {
        let before = rejected(cluster);
        let retries = || rejected(cluster) - before;
        wait::until_value("it tries again, twice", SOON, retries, |retries| *retries >= 2);
    }

    fn copy(from: &Path, to: &Path) {
        std::fs::copy(from, to).expect("copied");
    }

    #[test]
    fn nodes_show_their_certificates_and_those_that_cannot_say_why_until_they_can() {
        let Some(cluster) = Cluster::secured("mutual", 3) else {
            return;
        };
        let pki = cluster.pki.as_ref().expect("it has one");
        let nodes = [cluster.node(0), cluster.node(1)];
        for node in &nodes {
            node.await_others(1);
        }
        let pods = [nodes[0].add_pod("a"), nodes[1].add_pod("b")];
        await_talk(&pods[0], &pods[1]);

        let stranger = Pki::new(&cluster.directory.0.join("stranger"));
        let own = cluster.directory.0.join("own");
        std::fs::create_dir_all(&own).expect("made");
        let files = |etcd: Etcd| Etcd {
            ca: Some(own.join("ca.crt")),
            cert: Some(own.join("client.crt")),
            key: Some(own.join("client.key")),
            ..etcd
        };
        let take = |pki: &Pki, names: &[&str]| {
            for name in names {
                copy(&pki.path(name), &own.join(name));
            }
        };
        let all = ["ca.crt", "client.crt", "client.key"];
        type Row<'a> = (&'a str, &'a [&'a str], &'a str);
        let refused = &format!(
            "does it accept our certificate {}?",
            own.join("client.crt").display()
        );
        let rows: [Row; 2] = [
            (
                "another authority's server",
                &all[..1],
                "invalid peer certificate: UnknownIssuer",
            ),
            ("another authority's client", &all[1..], refused),
        ];
        for (what, wrong, why) in rows {
            take(pki, &all);
            take(&stranger, wrong);
            let node = start(&cluster, 2, files(cluster.client("client")));
            assert!(!await_told(&node, what, why).ready);
            await_retries(&cluster);
            take(pki, wrong);
            node.await_others(2);
            node.stop();
            forget(&cluster, 2);
        }

        // A file that comes late.
        std::fs::remove_file(own.join("client.crt")).expect("removed");
        let node = start(&cluster, 2, files(cluster.client("client")));
        assert!(!await_told(&node, "no file", "client.crt: No such file").ready);
        take(pki, &all);
        node.await_others(2);
        node.stop();
        forget(&cluster, 2);

        // No certificate, until none is asked for.
        let without = Etcd {
            cert: None,
            key: None,
            ..cluster.client("client")
        };
        let node = start(&cluster, 2, without);
        assert!(!await_told(&node, "no certificate", "We have none to show").ready);
        await_retries(&cluster);
        cluster.stop_etcd();
        cluster.start_etcd("etcd");
        node.await_others(2);
        assert!(talk(&pods[1], &pods[0]).is_ok());
        for node in &nodes {
            node.await_others(2);
        }
    }

    /// A host's node is a new one.
    fn forget(cluster: &Cluster, number: usize) {
        let directory = cluster.directory.0.join(format!("host-{number}"));
        std::fs::remove_dir_all(directory).expect("removed");
    }

    /// What a user may do is told by the name in its certificate.
    fn add_users(cluster: &Cluster) {
        for line in [
            "user add root --no-password",
            "user grant-role root root",
            "role add network",
            &format!("role grant-permission network readwrite --prefix=true {PREFIX}"),
            "user add node --no-password",
            "user grant-role node network",
            "role add elsewhere",
            "role grant-permission elsewhere readwrite --prefix=true /elsewhere/",
            "user add stranger --no-password",
            "user grant-role stranger elsewhere",
            "role add reading",
            &format!("role grant-permission reading read --prefix=true {PREFIX}"),
            "user add reader --no-password",
            "user grant-role reader reading",
            "auth enable",
        ] {
            run(cluster, line);
        }
    }

    fn run(cluster: &Cluster, line: &str) {
        let arguments: Vec<&str> = line.split(' ').collect();
        cluster.etcdctl(&arguments);
    }

    #[test]
    fn a_role_for_the_networks_keys_is_enough_and_a_node_without_it_comes_up_once_it_is_granted() {
        let Some(cluster) = Cluster::secured("roles", 4) else {
            return;
        };
        let pki = cluster.pki.as_ref().expect("it has one");
        for user in ["stranger", "reader", "unknown"] {
            pki.issue(user, user);
        }
        add_users(&cluster);
        let first = cluster.node(0);
        first.await_others(0);
        type Row<'a> = (&'a str, &'a str, &'a [&'a str]);
        let rows: [Row; 3] = [
            (
                "stranger",
                "read the network configuration",
                &["user grant-role stranger network"],
            ),
            ("reader", "create a lease", &["user grant-role reader network"]),
            (
                "unknown",
                "read the network configuration",
                &[
                    "user add unknown --no-password",
                    "user grant-role unknown network",
                ],
            ),
        ];
        let mut nodes = Vec::new();
        for (number, (user, operation, granted)) in (1..).zip(rows) {
            let node = start(&cluster, number, cluster.client(user));
            for line in granted {
                let told = await_told(&node, user, "permission denied");
                let began = format!("etcd: {operation}: ");
                assert!(!told.ready && told.problems[0].starts_with(&began), "{told:?}");
                run(&cluster, line);
            }
            node.await_others(number);
            nodes.push(node);
        }
        first.await_others(3);
        let pods = [first.add_pod("a"), nodes[0].add_pod("b")];
        await_talk(&pods[0], &pods[1]);

        // A right that is taken away takes nothing else.
        let before = first.await_others(3).lease;
        run(&cluster, "user revoke-role node network");
        assert!(await_told(&first, "revoked", "permission denied").ready);
        assert!(talk(&pods[1], &pods[0]).is_ok());
        run(&cluster, "user grant-role node network");
        assert_eq!(first.await_others(3).lease, before);
        assert!(talk(&pods[1], &pods[0]).is_ok());
    }

    /// Without certificates: who somebody is, a password says. One of the members that they are told of is always away.
    #[test]
    fn a_user_and_its_password_are_enough_and_a_wrong_one_is_told_until_it_is_mended() {
        let Some(cluster) = Cluster::new("password", 2) else {
            return;
        };
        for line in [
            "user add root:secret",
            "user grant-role root root",
            "role add network",
            &format!("role grant-permission network readwrite --prefix=true {PREFIX}"),
            "user add node:first",
            "user grant-role node network",
            "auth enable",
        ] {
            run(&cluster, line);
        }
        let file = |name: &str| cluster.directory.0.join(name);
        let user = |password: &str| Etcd {
            endpoints: vec!["http://172.30.9.1:1".to_owned(), cluster.endpoint()],
            username: Some("node".to_owned()),
            password_file: Some(file(password)),
            ..cluster.client("client")
        };
        let write = |name: &str, password: &str| std::fs::write(file(name), password).expect("written");
        write("right", "first\n");
        let first = start(&cluster, 0, user("right"));
        first.await_others(0);

        let second = start(&cluster, 1, user("late"));
        assert!(!await_told(&second, "no file", "late: No such file").ready);
        std::fs::write(file("late"), b"\xff").expect("written");
        assert!(!await_told(&second, "no text", "late: invalid utf-8").ready);
        write("late", "wrong");
        let wrong = "etcd: connect: ";
        let told = await_told(&second, "a wrong password", "invalid user ID or password");
        assert!(!told.ready && told.problems[0].starts_with(wrong), "{told:?}");
        assert!(!told.problems[0].contains("wrong"), "{told:?}");
        write("late", "first");
        second.await_others(1);
        let pods = [first.add_pod("a"), second.add_pod("b")];
        await_talk(&pods[0], &pods[1]);

        // An etcd that starts again knows none of the tokens that it gave.
        cluster.stop_etcd();
        first.await_status("etcd is missed", |status| !status.problems.is_empty());
        cluster.start_etcd("etcd");
        first.await_status("etcd is back", |status| status.problems.is_empty());
        run(
            &cluster,
            &format!("--user=root:secret del {PREFIX}subnets/ --prefix"),
        );
        let held = || {
            let keys = cluster.etcdctl(&["--user=root:secret", "get", "--prefix", "--keys-only", PREFIX]);
            keys.matches("/subnets/").count()
        };
        wait::until_value("both put theirs back", SOON, held, |held| *held == 2);
        for node in [&first, &second] {
            node.await_others(1);
        }
        await_talk(&pods[1], &pods[0]);
    }
}
