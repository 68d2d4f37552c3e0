//! flannel's fields, and those of the CNI plugins that it installs.

use super::*;

const NETWORK: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

#[track_caller]
fn check(config: &str, outcomes_expected: &str, keys_expected: &str) {
    let this = migrated(&[config], Some(Kind::Flannel));
    let (outcomes, keys) = (outcomes(&this), keys(&this));
    let frame = [
        "taken (leases)",
        "proxy.datapath=\"none\"",
        "network.leases=\"kubernetes\"",
    ]
    .map(str::to_owned);
    let found = (beyond(outcomes, &frame), beyond(keys, &frame));
    assert_eq!(
        found,
        (outcomes_expected.to_owned(), keys_expected.to_owned()),
        "for {config}"
    );
}

#[test]
fn the_network_is_taken_as_it_is_and_services_are_left_to_others() {
    let kept = |config: &str, outcomes: &str| {
        let read: Value = serde_json::from_str(config).expect("JSON");
        check(config, outcomes, &format!("network.config={read}"));
    };
    kept(NETWORK, "taken Backend.Type; taken Network");
    kept(
        r#"{"network": "10.244.0.0/16", "backend": {"type": "host-gw"}}"#,
        "taken backend.type; taken network",
    );
    kept(
        r#"{"EnableIPv6": true, "IPv6Network": "fd00::/56", "Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
        "taken Backend.Type; taken EnableIPv6; taken IPv6Network; taken Network",
    );
    kept(
        r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/56", "Backend": {"Type": "vxlan"}}"#,
        "taken Backend.Type; taken EnableIPv4; taken EnableIPv6; taken IPv6Network",
    );
    kept(
        r#"{"EnableNFTables": true, "Network": "10.244.0.0/16", "SubnetLen": 25, "SubnetMin": "10.244.1.0",
            "SubnetMax": "10.244.9.0", "Backend": {"Type": "host-gw"}}"#,
        "taken Backend.Type; not needed EnableNFTables; taken Network; not needed SubnetLen; not needed SubnetMax; \
         not needed SubnetMin",
    );
    kept(
        r#"{"Network": "10.244.0.0/16",
            "Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "MTU": 1400, "GBP": true, "DirectRouting": true}}"#,
        "taken Backend.DirectRouting; taken Backend.GBP; taken Backend.MTU; taken Backend.Port; taken Backend.Type; \
         taken Backend.VNI; taken Network",
    );
    kept(
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Learning": true, "MacPrefix": "0E-2A"}}"#,
        "differs Backend.Learning; differs Backend.MacPrefix; taken Backend.Type; taken Network",
    );
}

#[test]
fn what_is_wrong_or_not_known_is_told_with_its_path() {
    let kept = |config: &str, outcomes: &str| {
        let read: Value = serde_json::from_str(config).expect("JSON");
        check(config, outcomes, &format!("network.config={read}"));
    };
    kept(
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Colour": "red"}, "Shape": 7}"#,
        "NOT SUPPORTED Backend.Colour; taken Backend.Type; taken Network; NOT SUPPORTED Shape",
    );
    let whole = "NOT SUPPORTED (as a whole); NOT SUPPORTED (as a whole)";
    for (field, value) in [
        ("VNI", "16777216"),
        ("VNI", "\"one\""),
        ("Port", "70000"),
        ("Port", "-1"),
        ("MTU", "1.5"),
        ("DirectRouting", "\"yes\""),
        ("GBP", "0"),
    ] {
        kept(
            &format!(r#"{{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan", "{field}": {value}}}}}"#),
            &match field {
                "DirectRouting" | "GBP" | "MTU" | "Port" => {
                    format!("NOT SUPPORTED Backend.{field}; taken Backend.Type; taken Network; {whole}")
                }
                _ => format!("taken Backend.Type; NOT SUPPORTED Backend.{field}; taken Network; {whole}"),
            },
        );
    }
    kept(
        r#"{"Network": "10.244.0.0", "Backend": {"Type": "vxlan"}}"#,
        "taken Backend.Type; taken Network; NOT SUPPORTED (as a whole); NOT SUPPORTED (as a whole)",
    );
}

#[test]
fn of_a_backend_that_is_not_spoken_one_line_is_told_and_the_rest_of_the_network_taken() {
    let others = [
        "udp",
        "wireguard",
        "ipsec",
        "ipip",
        "alloc",
        "extension",
        "aws-vpc",
        "gce",
        "ali-vpc",
        "tencent-vpc",
    ];
    for backend in others {
        check(
            &format!(
                r#"{{"Network": "10.244.0.0/16", "Backend": {{"Type": "{backend}", "PSK": "x", "Port": 9}}}}"#
            ),
            "NOT SUPPORTED Backend.Type; taken Network",
            r#"network.config={"Backend":{"Type":"vxlan"},"Network":"10.244.0.0/16"}"#,
        );
    }
    let unsaid = r#"{"Network": "10.244.0.0/16"}"#;
    check(
        unsaid,
        "taken Network; NOT SUPPORTED Backend.Type",
        r#"network.config={"Backend":{"Type":"vxlan"},"Network":"10.244.0.0/16"}"#,
    );
    let words = words(&migrated(&[unsaid], None), "Backend.Type");
    assert!(words.starts_with("udp is not spoken"), "{words}");
}

#[test]
fn a_chain_of_plugins_is_told_plugin_by_plugin() {
    let chain = |plugins: &str| {
        let chain = format!(r#"{{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{plugins}]}}"#);
        let this = migrated(&[NETWORK, &chain], None);
        let alone = migrated(&[NETWORK], None);
        let frame = ["not needed name", "not needed cniVersion"].map(str::to_owned);
        let known: Vec<String> = outcomes(&alone).into_iter().chain(frame).collect();
        (
            beyond(outcomes(&this), &known),
            beyond(keys(&this), &keys(&alone)),
        )
    };
    let rows = [
        (r#"{"type": "flannel"}"#, "taken plugins[0].type", ""),
        (
            r#"{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}"#,
            "not needed plugins[0].delegate.hairpinMode; not needed plugins[0].delegate.isDefaultGateway; \
             taken plugins[0].type",
            "",
        ),
        (
            r#"{"type": "flannel", "delegate": {"type": "macvlan", "mtu": 1300}}"#,
            "differs plugins[0].delegate.mtu; NOT SUPPORTED plugins[0].delegate.type; taken plugins[0].type",
            "",
        ),
        (
            r#"{"type": "flannel", "subnetFile": "/run/other.env", "dataDir": "/d", "delegate": {"vlan": 7}}"#,
            "not needed plugins[0].dataDir; NOT SUPPORTED plugins[0].delegate.vlan; \
             taken plugins[0].subnetFile; taken plugins[0].type",
            "network.subnetEnv=\"/run/other.env\"",
        ),
        (
            r#"{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "markMasqBit": 13}"#,
            "not needed plugins[0].capabilities; differs plugins[0].markMasqBit; not needed plugins[0].snat; \
             taken plugins[0].type",
            "",
        ),
        (
            r#"{"type": "portmap", "conditionsV4": ["-s", "192.0.2.0/24"]}"#,
            "NOT SUPPORTED plugins[0].conditionsV4; taken plugins[0].type",
            "",
        ),
        (
            r#"{"type": "bandwidth", "capabilities": {"bandwidth": true}}, {"type": "bandwidth", "ingressRate": 5}"#,
            "not needed plugins[0].capabilities; taken plugins[0].type; NOT SUPPORTED plugins[1].ingressRate; \
             taken plugins[1].type",
            "",
        ),
        (
            r#"{"type": "tuning"}, {}"#,
            "NOT SUPPORTED plugins[0].type; NOT SUPPORTED plugins[1].type",
            "",
        ),
    ];
    for (plugins, outcomes, keys) in rows {
        assert_eq!(
            chain(plugins),
            (outcomes.to_owned(), keys.to_owned()),
            "for {plugins}"
        );
    }
}

#[test]
fn flannels_command_line_is_told_option_by_option() {
    let with = |arguments: &[&str]| {
        let daemon_set = serde_json::json!({
            "kind": "DaemonSet",
            "spec": {"template": {"spec": {"containers": [
                {"command": ["/bin/other"]},
                {"command": ["/opt/bin/flanneld"], "args": arguments},
            ]}}},
        });
        let map = serde_json::json!({"kind": "ConfigMap", "data": {"net-conf.json": NETWORK}});
        let this = migrated(
            &[&serde_json::json!({"items": [daemon_set, map]}).to_string()],
            None,
        );
        let known = ["taken Backend.Type", "taken Network", "proxy.datapath=\"none\""].map(str::to_owned);
        let network = |key: &String| !key.starts_with("network.config");
        let keys = keys(&this).into_iter().filter(network).collect();
        (beyond(outcomes(&this), &known), beyond(keys, &known))
    };
    let usual = "taken --ip-masq; taken --kube-subnet-mgr";
    let kubernetes = "network.leases=\"kubernetes\"";
    let rows = [
        (&["--ip-masq", "--kube-subnet-mgr"][..], usual.to_owned(), kubernetes.to_owned()),
        (
            &["-ip-masq=true", "-kube-subnet-mgr", "-v=4"],
            format!("{usual}; differs --v"),
            kubernetes.to_owned(),
        ),
        (
            &["--kube-subnet-mgr"],
            "taken --kube-subnet-mgr; differs --ip-masq".to_owned(),
            kubernetes.to_owned(),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr", "--iface", "eth1", "--public-ip=192.0.2.7"],
            format!("{usual}; taken --iface; taken --public-ip"),
            format!("network.interface=\"eth1\"; {kubernetes}; network.publicIp=\"192.0.2.7\""),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr", "--iface=192.0.2.7"],
            format!("{usual}; taken --iface"),
            format!("{kubernetes}; network.publicIp=\"192.0.2.7\""),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr", "--iface=eth0", "--iface=eth1"],
            format!("{usual}; NOT SUPPORTED --iface; NOT SUPPORTED --iface"),
            kubernetes.to_owned(),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr", "--iface-regex=eth.*", "--colour=red", "--healthz-port=9"],
            format!("{usual}; NOT SUPPORTED --iface-regex; NOT SUPPORTED --colour; differs --healthz-port"),
            kubernetes.to_owned(),
        ),
        (
            &[
                "--ip-masq", "--etcd-endpoints=https://192.0.2.1:2379,https://192.0.2.2:2379", "--etcd-cafile=/ca",
                "--etcd-certfile=/cert", "--etcd-keyfile=/key", "--etcd-prefix=/net", "--subnet-file=/run/s.env",
            ],
            "taken --ip-masq; taken --etcd-endpoints; taken --etcd-cafile; taken --etcd-certfile; taken --etcd-keyfile; \
             taken --etcd-prefix; taken --subnet-file"
                .to_owned(),
            "network.etcd.ca=\"/ca\"; network.etcd.cert=\"/cert\"; \
             network.etcd.endpoints=[\"https://192.0.2.1:2379\",\"https://192.0.2.2:2379\"]; \
             network.etcd.key=\"/key\"; network.etcd.prefix=\"/net\"; network.subnetEnv=\"/run/s.env\""
                .to_owned(),
        ),
        (
            &["--ip-masq"],
            "taken --ip-masq; NOT SUPPORTED (as a whole)".to_owned(),
            String::new(),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr=false"],
            format!("{usual}; NOT SUPPORTED (as a whole)"),
            String::new(),
        ),
        (
            &["--ip-masq", "--kube-subnet-mgr", "--public-ip=node-1", "--public-ipv6=192.0.2.7"],
            format!("{usual}; NOT SUPPORTED --public-ip; NOT SUPPORTED --public-ipv6"),
            kubernetes.to_owned(),
        ),
        (
            &[
                "--ip-masq", "--kube-subnet-mgr", "--set-node-network-unavailable", "--iptables-forward-rules",
                "--ip-blackhole-route", "--net-config-path=/etc/net-conf.json",
            ],
            format!(
                "{usual}; taken --set-node-network-unavailable; differs --iptables-forward-rules; \
                 differs --ip-blackhole-route; not needed --net-config-path"
            ),
            kubernetes.to_owned(),
        ),
        (
            &[
                "--ip-masq", "--kube-subnet-mgr", "--set-node-network-unavailable=false",
                "--iptables-forward-rules=false", "--ip-blackhole-route=false",
            ],
            format!(
                "{usual}; differs --set-node-network-unavailable; taken --iptables-forward-rules; \
                 taken --ip-blackhole-route"
            ),
            kubernetes.to_owned(),
        ),
    ];
    const WHOLE: &str = "; NOT SUPPORTED (as a whole)";
    for (arguments, mut outcomes, keys) in rows {
        // A default of flannel's that is told where nothing is said of it.
        if !arguments
            .iter()
            .any(|argument| argument.starts_with("--iptables-forward-rules"))
        {
            let at = outcomes.strip_suffix(WHOLE).unwrap_or(&outcomes).len();
            outcomes.insert_str(at, "; differs --iptables-forward-rules");
        }
        assert_eq!(with(arguments), (outcomes, keys), "for {arguments:?}");
    }
}

#[test]
fn subnets_are_taken_where_each_node_takes_a_free_one() {
    let map = |arguments: &str| {
        format!(
            "{{kind: List, items: [{{kind: ConfigMap, data: {{net-conf.json: '{{Network: 10.1.0.0/16, SubnetLen: 25, Backend: \
             {{Type: vxlan}}}}'}}}}, {{kind: DaemonSet, spec: {{template: {{spec: {{containers: [{{command: [flanneld, \
             {arguments}]}}]}}}}}}}}]}}"
        )
    };
    let outcome = |arguments: &str| {
        let this = migrated(&[&map(arguments)], None);
        let told = this.told.iter().find(|told| told.path == "SubnetLen");
        told.map(|told| told.outcome.to_string())
    };
    assert_eq!(outcome("--kube-subnet-mgr").as_deref(), Some("not needed"));
    assert_eq!(outcome("'--etcd-endpoints=http://a:1'").as_deref(), Some("taken"));
}
