//! Files as people have them: ConfigMaps as kubectl prints them, lists, manifests, and configurations alone.

use super::super::SourceError;
use super::super::source::{Content, Source};
use super::*;
use crate::config;

/// As kubeadm 1.33 makes it and `kubectl get configmap kube-proxy -o yaml` prints it.
const KUBEADM: &str = include_str!("samples/kube-proxy.yaml");

/// As flannel's manifest makes it, with its other objects.
const KUBE_FLANNEL: &str = include_str!("samples/kube-flannel.yaml");

/// As kubeadm 1.33 makes it.
const COREDNS: &str = include_str!("samples/coredns.yaml");

#[track_caller]
fn kinds(text: &str, from: Option<Kind>) -> Vec<Kind> {
    let sources = recognized("file", text, from).expect("it is known");
    sources.iter().map(|source| source.content.kind()).collect()
}

#[test]
fn a_kind_is_seen_by_what_a_file_says() {
    let corefile = "# ours\n\n.:53 {\n    whoami\n}\n";
    let rows = [
        ("kind: KubeProxyConfiguration", None, vec![Kind::KubeProxy]),
        (r#"{"Network": "10.0.0.0/8"}"#, None, vec![Kind::Flannel]),
        (r#"{"IPv6Network": "fd00::/56"}"#, None, vec![Kind::Flannel]),
        (r#"{"cniVersion": "1.0.0", "plugins": []}"#, None, vec![Kind::Cni]),
        (corefile, None, vec![Kind::Coredns]),
        ("import other", Some(Kind::Coredns), vec![Kind::Coredns]),
        ("mode: ipvs", Some(Kind::KubeProxy), vec![Kind::KubeProxy]),
        (KUBEADM, None, vec![Kind::KubeProxy]),
        (KUBEADM, Some(Kind::KubeProxy), vec![Kind::KubeProxy]),
        (KUBE_FLANNEL, None, vec![Kind::Cni, Kind::Flannel]),
        (KUBE_FLANNEL, Some(Kind::Flannel), vec![Kind::Cni, Kind::Flannel]),
        (COREDNS, None, vec![Kind::Coredns]),
        ("import other", None, vec![]),
        ("kind: Service", None, vec![]),
        ("{}", None, vec![]),
        ("", None, vec![]),
    ];
    for (text, from, expected) in rows {
        assert_eq!(kinds(text, from), expected, "for {text}");
    }
}

fn config_map(data: Value) -> String {
    serde_json::json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}).to_string()
}

#[test]
fn a_kind_in_a_config_map_is_seen_however_it_is_written_and_said_where_it_is_not_seen() {
    let one = |text: &str| config_map(serde_json::json!({"config": text}));
    let two = config_map(serde_json::json!({"a": "mode: ipvs", "b": "c"}));
    let rows = [
        (
            one("kind: \"KubeProxyConfiguration\""),
            None,
            vec![Kind::KubeProxy],
        ),
        (
            one(r#"{"kind":"KubeProxyConfiguration"}"#),
            None,
            vec![Kind::KubeProxy],
        ),
        (one("about: 'kind: KubeProxyConfiguration'"), None, vec![]),
        (one("mode: ipvs"), None, vec![]),
        (one("mode: ipvs"), Some(Kind::KubeProxy), vec![Kind::KubeProxy]),
        (two, Some(Kind::KubeProxy), vec![]),
    ];
    for (text, from, expected) in rows {
        assert_eq!(kinds(&text, from), expected, "for {text}");
    }
}

#[test]
fn what_is_seen_to_be_something_else_than_was_said_is_refused() {
    let rows = [
        (
            KUBEADM,
            Kind::Flannel,
            "file: kube-proxy/config.conf: is a configuration of kube-proxy, not of flannel",
        ),
        (
            KUBE_FLANNEL,
            Kind::KubeProxy,
            "file: kube-flannel-cfg/cni-conf.json: is a configuration of CNI plugins, not",
        ),
        (
            r#"{"Network": "10.0.0.0/8"}"#,
            Kind::Cni,
            "file: is a configuration of flannel, not of CNI plugins",
        ),
        (
            ".:53 {\n  whoami\n}",
            Kind::KubeProxy,
            "file: is a configuration of CoreDNS, not of kube-proxy",
        ),
        (
            "kind: KubeProxyConfiguration",
            Kind::Coredns,
            "file: is a configuration of kube-proxy, not of CoreDNS",
        ),
    ];
    for (text, from, words) in rows {
        let error = recognized("file", text, Some(from)).expect_err(words).to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn objects_of_a_list_are_read_each() {
    let items = [KUBEADM, COREDNS].map(|text| serde_yaml_ng::from_str::<Value>(text).expect("YAML"));
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    assert_eq!(kinds(&list, None), [Kind::KubeProxy, Kind::Coredns]);
}

#[test]
fn what_is_not_what_a_key_says_is_refused_with_its_place() {
    let map = |key: &str, text: &str| config_map(serde_json::json!({key: text}));
    let rows = [
        (map("net-conf.json", "{"), "file: m/net-conf.json: "),
        (
            map("net-conf.json", "[]"),
            "file: m/net-conf.json: is not an object",
        ),
        (
            map("config.conf", "kind: KubeProxyConfiguration\n---\n{}"),
            "file: m/config.conf: has 2 documents",
        ),
        (
            map("config.conf", "kind: KubeProxyConfiguration\nmode: a\nmode: b"),
            "file: m/config.conf: duplicate entry",
        ),
    ];
    let alone = ("kind: KubeProxyConfiguration\nmode: [".to_owned(), "file: ");
    for (text, words) in rows.into_iter().chain([alone]) {
        let error = recognized("file", &text, None).expect_err(words).to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn two_of_one_kind_and_files_without_any_are_refused() {
    let directory = std::env::temp_dir().join(format!("cwt-migrate-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("writable");
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("writable");
        path
    };
    let [a, b, c] = [("a", KUBEADM), ("b", KUBEADM), ("c", "x: 1")].map(|(name, text)| file(name, text));
    let twice = super::super::check(&[a.clone(), b], None);
    assert!(
        matches!(
            twice,
            Err(SourceError::Twice {
                kind: Kind::KubeProxy,
                ..
            })
        ),
        "{twice:?}"
    );
    let nothing = super::super::check(&[a.clone(), c], None);
    assert!(matches!(nothing, Err(SourceError::Nothing { .. })), "{nothing:?}");
    let absent = super::super::check(&[a, directory.join("d")], None);
    assert!(matches!(absent, Err(SourceError::Read { .. })), "{absent:?}");
    std::fs::remove_dir_all(directory).expect("own directory");
}

#[test]
fn a_cluster_of_kubeadm_with_flannel_becomes_one_configuration_that_the_agent_takes() {
    let this = migrated(&[KUBEADM, KUBE_FLANNEL, COREDNS], None);
    assert!(!this.is_wrong(), "{}", this.lines());
    let expected = "\
kubernetes:
  serviceHost: control-plane.example
  servicePort: 6443
network:
  config:
    Backend:
      Type: vxlan
    EnableNFTables: false
    Network: 10.244.0.0/16
  leases: kubernetes
proxy:
  datapath: ebpf
  detectLocalMode: ClusterCIDR
  externalIPs: true
  podNetworks:
  - 10.244.0.0/16
";
    assert_eq!(this.config(), expected);
    let config = config::parse("printed".as_ref(), &this.config(), Some("node-1")).expect("it is taken");
    assert_eq!(
        config.pod_networks(),
        ["10.244.0.0/16".parse().expect("a network")]
    );
    let zone = words(&this, ".:53");
    assert_eq!(zone, "causeway dns --conf takes it as it is");
}

#[test]
fn a_kubeconfig_beside_it_names_the_server_where_it_goes_by_the_pods_account() {
    let with = |kubeconfig: Value| {
        let document = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"},
        });
        let sources = [Source {
            place: "file".to_owned(),
            content: Content::KubeProxy(document, Some(kubeconfig)),
        }];
        let kubernetes = keys(&migration(&sources))
            .into_iter()
            .filter(|key| key.starts_with("kubernetes."));
        kubernetes.collect::<Vec<_>>().join("; ")
    };
    let kubeconfig = |server: &str, user: Value| {
        serde_json::json!({
            "current-context": "default",
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
            "clusters": [{"name": "default", "cluster": {"server": server}}],
            "users": [{"name": "default", "user": user}],
        })
    };
    let account = serde_json::json!({"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"});
    let file = "kubernetes.kubeconfig=\"/var/lib/kube-proxy/kubeconfig.conf\"";
    let rows = [
        (
            "https://192.0.2.1:6443",
            account.clone(),
            "kubernetes.serviceHost=\"192.0.2.1\"; kubernetes.servicePort=6443",
        ),
        (
            "https://[fd00::1]",
            account.clone(),
            "kubernetes.serviceHost=\"fd00::1\"; kubernetes.servicePort=443",
        ),
        ("https://192.0.2.1/behind", account.clone(), file),
        ("http://192.0.2.1", account, file),
        (
            "https://192.0.2.1",
            serde_json::json!({"client-certificate": "/pki/p.crt"}),
            file,
        ),
    ];
    for (server, user, expected) in rows {
        assert_eq!(with(kubeconfig(server, user)), expected, "for {server}");
    }
    assert_eq!(with(serde_json::json!({})), file);
}

#[test]
fn pods_of_kube_proxy_that_are_not_flannels_are_told() {
    let other = KUBEADM.replace("10.244.0.0/16", "10.1.0.0/16");
    let this = migrated(&[&other, KUBE_FLANNEL], None);
    let told = this.told.last().expect("something is told");
    assert_eq!(
        (told.path.as_str(), told.words.as_str()),
        (
            "clusterCIDR",
            "flannel's networks are [\"10.244.0.0/16\"]: one of both is wrong"
        )
    );
}

#[test]
fn a_corefile_alone_makes_no_configuration_of_an_agent_and_is_told_block_by_block() {
    let this = migrated(
        &[".:53 {\n  errors\n  cache 30\n}\nexample.org {\n  magic\n  whoami\n}\n"],
        None,
    );
    assert_eq!(this.config(), "");
    assert_eq!(
        outcomes(&this),
        [
            "NOT SUPPORTED .:53",
            "NOT SUPPORTED example.org.:53",
            "NOT SUPPORTED Corefile:6"
        ]
    );
    assert!(this.is_wrong());
    let lines = this.lines();
    assert!(
        lines.starts_with("NOT SUPPORTED  coredns     .:53: errors cache  ("),
        "{lines}"
    );
}

#[test]
fn a_block_of_a_corefile_is_taken_where_the_server_takes_the_whole_file() {
    let whole = "causeway dns --conf refuses the whole file for the lines told below";
    let rows = [
        ("cache 30", "causeway dns --conf takes it as it is".to_owned()),
        (
            "magic",
            format!("{whole}; with --lenient it warns, and serves without them"),
        ),
        ("bufsize 511", whole.to_owned()),
        ("magic\n  bufsize 511", whole.to_owned()),
    ];
    for (line, expected) in rows {
        let corefile = format!(".:53 {{\n  errors\n}}\nexample.org {{\n  whoami\n  {line}\n}}\n");
        let this = migrated(&[&corefile], None);
        assert_eq!(words(&this, ".:53"), expected, "for {line}");
        assert_eq!(words(&this, "example.org.:53"), expected, "for {line}");
        assert_eq!(this.is_wrong(), line != "cache 30", "for {line}");
    }
}
