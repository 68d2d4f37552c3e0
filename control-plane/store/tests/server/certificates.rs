//! Who comes in, and what a node's certificate opens.

use std::path::PathBuf;

use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions,
    GetOptions, Identity, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, date_time_ymd,
};
use store::{Config, TlsFiles};

use crate::fixture::{Directory, Store, config, refusal, value};

const DENIED: &str = "PermissionDenied: etcdserver: permission denied";

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key, as PEM.
    fn issue(&self, name: &str, organization: &str) -> (String, String) {
        self.issue_with(name, organization, |_| {})
    }

    /// The same, with something unusual in it.
    fn issue_with(
        &self,
        name: &str,
        organization: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    pub fn config(&self, directory: &Directory) -> Config {
        let (cert, key) = self.issue("store", "causeway");
        let write = |name: &str, pem: &str| -> PathBuf {
            let path = directory.file(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let tls = TlsFiles {
            cert: write("store.crt", &cert),
            key: write("store.key", &key),
            client_ca: write("ca.crt", &self.pem),
        };
        Config {
            tls: Some(tls),
            ..config(directory)
        }
    }

    fn trust(&self) -> TlsOptions {
        TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name("localhost")
    }

    pub fn identify(&self, name: &str, organization: &str) -> TlsOptions {
        let (cert, key) = self.issue(name, organization);
        self.trust().identity(Identity::from_pem(cert, key))
    }
}

pub async fn connect(store: &Store, tls: TlsOptions) -> Client {
    Client::connect([&store.endpoint], Some(ConnectOptions::new().with_tls(tls)))
        .await
        .unwrap()
}

#[tokio::test]
async fn only_clients_of_the_client_ca_come_in() {
    let directory = Directory::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let store = Store::start(authority.config(&directory)).await;
    let mut admin = connect(&store, authority.identify("admin", "system:masters")).await;
    admin.put("a", "1", None).await.unwrap();
    let identity = |(cert, key)| authority.trust().identity(Identity::from_pem(cert, key));
    let masters = |change: fn(&mut CertificateParams)| {
        identity(authority.issue_with("admin", "system:masters", change))
    };
    let rejected = [
        ("no certificate", authority.trust()),
        (
            "a stranger's certificate",
            identity(stranger.issue("admin", "system:masters")),
        ),
        (
            "an expired certificate",
            masters(|params| params.not_after = date_time_ymd(2020, 1, 1)),
        ),
        (
            "a certificate that is not valid yet",
            masters(|params| params.not_before = date_time_ymd(3020, 1, 1)),
        ),
        (
            "a server's certificate",
            masters(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        (
            "organizations in one name",
            identity(authority.issue("admin", "system:masters,system:nodes")),
        ),
        (
            "a certificate of the CA for somebody unknown here",
            authority.identify("admin", "developers"),
        ),
    ];
    for (who, tls) in rejected {
        let options = ConnectOptions::new()
            .with_tls(tls)
            .with_timeout(std::time::Duration::from_secs(5));
        if let Ok(mut client) = Client::connect([&store.endpoint], Some(options)).await {
            assert!(client.get("a", None).await.is_err(), "{who} was let in");
        }
    }
    assert_eq!(value(&mut admin, "a").await, Some("1".into()));
    store.stop().await;
}

#[tokio::test]
async fn a_node_touches_only_the_network_prefix() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut admin = connect(&store, authority.identify("admin", "system:masters")).await;
    let mut node = connect(&store, authority.identify("system:node:node-1", "system:nodes")).await;
    let agent = authority.identify("system:causeway-agent:node-1", "system:causeway-agents");
    let mut agent = connect(&store, agent).await;
    let own = "/coreos.com/network/subnets/10.244.1.0-24";
    let foreign = "/registry/secrets/default/a";
    admin.put(foreign, "secret", None).await.unwrap();

    node.put(own, "1", None).await.unwrap();
    let prefix = GetOptions::new().with_prefix();
    assert_eq!(
        node.get("/coreos.com/network/", Some(prefix))
            .await
            .unwrap()
            .count(),
        1
    );
    let create = Txn::new()
        .when([Compare::version(own, CompareOp::Equal, 0)])
        .and_then([TxnOp::put(own, "2", None)])
        .or_else([TxnOp::get(own, None)]);
    assert!(!node.txn(create).await.unwrap().succeeded());

    let all = || Some(GetOptions::new().with_all_keys());
    let compare = Txn::new().when([Compare::value(foreign, CompareOp::Equal, "secret")]);
    let hidden = Txn::new().or_else([TxnOp::txn(Txn::new().and_then([TxnOp::get(foreign, None)]))]);
    let refusals = [
        ("get", refusal(node.get(foreign, None).await)),
        ("get by an agent", refusal(agent.get(foreign, None).await)),
        ("get all", refusal(node.get("", all()).await)),
        (
            "get a wider prefix",
            refusal(
                node.get("/coreos.com/", Some(GetOptions::new().with_prefix()))
                    .await,
            ),
        ),
        ("put", refusal(node.put(foreign, "x", None).await)),
        (
            "delete",
            refusal(node.delete("", Some(DeleteOptions::new().with_all_keys())).await),
        ),
        ("compare", refusal(node.txn(compare).await)),
        ("a nested read", refusal(node.txn(hidden).await)),
        ("compact", refusal(node.compact(1, None).await)),
        ("defragment", refusal(node.defragment().await)),
        ("hash", refusal(node.hash().await)),
    ];
    for (what, refused) in refusals {
        assert_eq!(refused, DENIED, "{what}");
    }
    assert_eq!(value(&mut admin, foreign).await, Some("secret".into()));
    store.stop().await;
}

/// Keys that begin in a node's prefix and end outside of it, or the other way round, whatever the call.
#[tokio::test]
async fn no_range_reaches_over_the_edge_of_the_network_prefix() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut admin = connect(&store, authority.identify("admin", "system:masters")).await;
    let mut node = connect(&store, authority.identify("system:node:node-1", "system:nodes")).await;
    let kept = ["/a", "/coreos.com/network", "/coreos.com/network0", "/registry/a"];
    for key in kept {
        admin.put(key, "1", None).await.unwrap();
    }
    let rows: [(&[u8], &[u8]); 9] = [
        (b"/coreos.com/network/", b"\0"),
        (b"/coreos.com/network/", b"/coreos.com/network00"),
        (b"/coreos.com/network/", b"/coreos.com/network1"),
        (b"/coreos.com/network/\xff", b"\xff"),
        (b"/coreos.com/network", b"/coreos.com/network/z"),
        (b"/coreos.com/network.", b"/coreos.com/network0"),
        (b"\0", b"/coreos.com/network0"),
        (b"\0", b"\0"),
        (b"/coreos.com/network/../../registry/", b"/registry0"),
    ];
    for (key, end) in rows {
        let get = GetOptions::new().with_range(end);
        let delete = || DeleteOptions::new().with_range(end);
        let compare = Compare::version(key, CompareOp::Greater, 0).with_range(end);
        let nest = |txn: Txn| Txn::new().or_else([TxnOp::txn(Txn::new().and_then([TxnOp::txn(txn)]))]);
        let refusals = [
            ("get", refusal(node.get(key, Some(get.clone())).await)),
            (
                "count",
                refusal(node.get(key, Some(get.clone().with_count_only())).await),
            ),
            ("delete", refusal(node.delete(key, Some(delete())).await)),
            (
                "compare",
                refusal(node.txn(Txn::new().when([compare.clone()])).await),
            ),
            (
                "nested compare",
                refusal(node.txn(nest(Txn::new().when([compare]))).await),
            ),
            (
                "nested get",
                refusal(
                    node.txn(nest(Txn::new().and_then([TxnOp::get(key, Some(get))])))
                        .await,
                ),
            ),
            (
                "nested delete",
                refusal(
                    node.txn(nest(Txn::new().or_else([TxnOp::delete(key, Some(delete()))])))
                        .await,
                ),
            ),
        ];
        for (what, refused) in refusals {
            assert_eq!(refused, DENIED, "{what} of {key:?} to {end:?}");
        }
        let options = WatchOptions::new().with_range(end);
        let mut watch = node.watch(key, Some(options)).await.unwrap();
        let refused = watch.message().await.unwrap().unwrap();
        assert_eq!(
            (refused.created(), refused.canceled()),
            (true, true),
            "a watch of {key:?} to {end:?}"
        );
    }
    // A key is bytes, not a path: this one is the network's, and nothing but itself.
    let climbing = "/coreos.com/network/../../registry/a";
    node.put(climbing, "2", None).await.unwrap();
    node.delete("/coreos.com/network/", Some(DeleteOptions::new().with_prefix()))
        .await
        .unwrap();
    for key in kept {
        assert_eq!(value(&mut admin, key).await, Some("1".into()), "{key}");
    }
    store.stop().await;
}

#[tokio::test]
async fn a_node_administers_nothing() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut node = connect(&store, authority.identify("system:node:node-1", "system:nodes")).await;
    let raise = AlarmAction::Activate;
    let refusals = [
        ("compact", refusal(node.compact(1, None).await)),
        ("defragment", refusal(node.defragment().await)),
        ("hash", refusal(node.hash().await)),
        ("hash of keys", refusal(node.hash_kv(0).await)),
        (
            "alarm",
            refusal(node.alarm(raise, AlarmType::Nospace, None).await),
        ),
        (
            "member add",
            refusal(node.member_add(&["http://a:1".to_owned()], None).await),
        ),
        ("member remove", refusal(node.member_remove(1).await)),
        (
            "member update",
            refusal(node.member_update(1, &["http://a:1".to_owned()]).await),
        ),
        ("move leader", refusal(node.move_leader(1).await)),
    ];
    for (what, refused) in refusals {
        assert_eq!(refused, DENIED, "{what}");
    }
    let Err(refused) = node.snapshot().await.map(drop) else {
        panic!("a node took a snapshot");
    };
    assert_eq!(refusal::<()>(Err(refused)), DENIED, "snapshot");
    // What a client needs to find the store, and to know it again.
    assert_eq!(node.member_list().await.unwrap().members().len(), 1);
    assert!(node.status().await.unwrap().leader() > 0);
    store.stop().await;
}

#[tokio::test]
async fn a_node_watches_only_the_network_prefix() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut node = connect(&store, authority.identify("system:node:node-1", "system:nodes")).await;
    let mut watch = node
        .watch("/registry/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    let refused = watch.message().await.unwrap().unwrap();
    assert_eq!((refused.created(), refused.canceled()), (true, true));
    assert_eq!(
        refused.cancel_reason(),
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    );
    watch
        .watch("/coreos.com/network/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    node.put("/coreos.com/network/config", "1", None).await.unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().events().len(), 1);
    store.stop().await;
}

#[tokio::test]
async fn a_node_may_not_end_a_lease_with_keys_that_it_may_not_touch() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut admin = connect(&store, authority.identify("admin", "system:masters")).await;
    let mut node = connect(&store, authority.identify("system:node:node-1", "system:nodes")).await;
    let on = |lease| Some(PutOptions::new().with_lease(lease));
    let foreign = admin.lease_grant(60, None).await.unwrap().id();
    admin.put("/registry/events/a", "1", on(foreign)).await.unwrap();
    let own = node.lease_grant(60, None).await.unwrap().id();
    node.put("/coreos.com/network/subnets/a", "1", on(own))
        .await
        .unwrap();
    assert_eq!(refusal(node.lease_revoke(foreign).await), DENIED);
    assert_eq!(refusal(node.lease_time_to_live(foreign, None).await), DENIED);
    assert_eq!(
        node.lease_time_to_live(own, None).await.unwrap().granted_ttl(),
        60
    );
    node.lease_keep_alive(own).await.unwrap();
    node.lease_revoke(own).await.unwrap();
    assert_eq!(value(&mut admin, "/registry/events/a").await, Some("1".into()));
    store.stop().await;
}

#[tokio::test]
async fn a_node_uses_only_leases_that_nodes_asked_for() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut admin = connect(&store, authority.identify("admin", "system:masters")).await;
    let node_identity = || authority.identify("system:node:node-1", "system:nodes");
    let mut node = connect(&store, node_identity()).await;
    let on = |lease| Some(PutOptions::new().with_lease(lease));
    let own_key = "/coreos.com/network/subnets/a";
    // Without keys, with keys of the network, and with others.
    let empty = admin.lease_grant(60, None).await.unwrap().id();
    let network = admin.lease_grant(60, None).await.unwrap().id();
    admin
        .put("/coreos.com/network/config", "1", on(network))
        .await
        .unwrap();
    let own = node.lease_grant(60, None).await.unwrap().id();
    let taken = node.lease_grant(60, None).await.unwrap().id();
    admin.put("/registry/events/a", "1", on(taken)).await.unwrap();
    let hidden = |lease| {
        let put = TxnOp::put(own_key, "1", on(lease));
        let inner = TxnOp::txn(Txn::new().or_else([put]));
        Txn::new().or_else([inner])
    };
    for (which, lease) in [("empty", empty), ("network", network), ("taken", taken)] {
        let renewed = node.lease_keep_alive(lease).await.map(drop);
        let refusals = [
            ("keep alive", refusal(renewed)),
            ("revoke", refusal(node.lease_revoke(lease).await)),
            (
                "time to live",
                refusal(node.lease_time_to_live(lease, None).await),
            ),
            ("put", refusal(node.put(own_key, "1", on(lease)).await)),
            ("nested put", refusal(node.txn(hidden(lease)).await)),
        ];
        for (what, refused) in refusals {
            assert_eq!(refused, DENIED, "{what} of {which}");
        }
    }
    node.put(own_key, "1", on(own)).await.unwrap();
    let leases = node.leases().await.unwrap();
    let seen: Vec<i64> = leases.leases().iter().map(|lease| lease.id()).collect();
    assert_eq!(seen, [own]);
    store.stop().await;

    // Whose they are is known after a restart too.
    let store = Store::start(authority.config(&directory)).await;
    let mut node = connect(&store, node_identity()).await;
    assert_eq!(refusal(node.lease_revoke(empty).await), DENIED);
    node.lease_revoke(own).await.unwrap();
    assert_eq!(value(&mut node, own_key).await, None);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_speaks_to_it_with_a_certificate() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let (cert, key) = authority.issue("admin", "system:masters");
    let [cert_file, key_file, ca_file] =
        ["admin.crt", "admin.key", "ca.crt"].map(|name| directory.file(name));
    std::fs::write(&cert_file, cert).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let etcdctl = |words: &[&str]| {
        let mut command = std::process::Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(&store.endpoint);
        command
            .arg("--cacert")
            .arg(&ca_file)
            .arg("--cert")
            .arg(&cert_file)
            .arg("--key")
            .arg(&key_file);
        command.args(words).output()
    };
    let saved = directory.file("saved").display().to_string();
    let rows: [(&[&str], &str); 9] = [
        (&["put", "a", "1"], "OK\n"),
        (&["get", "a"], "a\n1\n"),
        (&["get", "--prefix", "", "--keys-only"], "a\n"),
        (&["del", "a"], "1\n"),
        (&["member", "list"], &store.endpoint),
        (&["lock", "a", "echo", "held"], "held\n"),
        (&["snapshot", "save", &saved], "Snapshot saved at"),
        (&["defrag"], "Finished defragmenting"),
        (&["alarm", "disarm"], ""),
    ];
    for (words, expected) in rows {
        let Ok(output) = etcdctl(words) else {
            eprintln!("\n==== SKIPPED: etcdctl is not on PATH (Debian: etcd-client) ====\n");
            break;
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let good = output.status.success() && printed.contains(expected);
        assert!(good, "{words:?}: {output:?}");
    }
    store.stop().await;
}
