//! Which settings are refused, and what follows from those that are not.

use super::*;

fn settings() -> Settings {
    Settings {
        nodes: 3,
        datapath: Datapath::Ebpf,
        network: Network::Vxlan,
        agent: Agent::BuiltIn,
        leases: Leases::Etcd,
        vpc: None,
        pod_cidr: "10.244.0.0/16".parse().expect("valid"),
        service_cidr: "10.96.0.0/12".parse().expect("valid"),
        allow_external_ips: false,
        underlay_cidr: "172.30.0.0/24".parse().expect("valid"),
        api_port: 6443,
        etcd_port: 2379,
        etcd: None,
        domain: "cluster.local".to_owned(),
        kubernetes_version: KubernetesVersion::default(),
        feature_gates: Gates::default(),
    }
}

fn etcd(endpoint: &str, ca: Option<&str>) -> ExternalEtcd {
    ExternalEtcd {
        endpoints: vec![endpoint.to_owned()],
        ca: ca.map(PathBuf::from),
        client: None,
        user: None,
    }
}

#[test]
fn well_known_addresses_are_kubernetes_own() {
    let settings = settings();
    assert_eq!(settings.kubernetes_service().to_string(), "10.96.0.1");
    assert_eq!(settings.cluster_dns().to_string(), "10.96.0.10");
    assert_eq!(settings.api_address().to_string(), "172.30.0.1:6443");
    assert_eq!(settings.node_address(2).to_string(), "172.30.0.13");
    assert_eq!(
        settings.node_names().collect::<Vec<_>>(),
        ["node-1", "node-2", "node-3"]
    );
}

#[test]
fn services_may_have_a_network_of_each_family() {
    let mut dual = settings();
    dual.service_cidr = "10.96.0.0/12,fd00:10:96::/112".parse().expect("valid");
    assert!(dual.validate().is_ok());
    assert_eq!(dual.cluster_dns().to_string(), "10.96.0.10");
    let kept = serde_json::to_value(&dual).expect("settings are JSON");
    assert_eq!(kept["service_cidr"], "10.96.0.0/12,fd00:10:96::/112");
    assert_eq!(serde_json::from_value::<Settings>(kept).ok(), Some(dual));
}

#[test]
fn nodes_may_have_an_address_of_each_family() {
    let mut dual = settings();
    assert_eq!(dual.node_address_v6(2), None);
    dual.underlay_cidr = "172.30.0.0/24,fd00:172:30::/64".parse().expect("valid");
    assert!(dual.validate().is_ok());
    assert_eq!(dual.node_address(2).to_string(), "172.30.0.13");
    let v6 = dual.node_address_v6(2).map(|address| address.to_string());
    assert_eq!(v6.as_deref(), Some("fd00:172:30::d"));
    let v6 = dual.control_plane_address_v6().map(|address| address.to_string());
    assert_eq!(v6.as_deref(), Some("fd00:172:30::1"));
}

#[test]
fn pods_may_have_a_network_of_each_family_where_nodes_have() {
    let mut dual = settings();
    dual.underlay_cidr = "172.30.0.0/24,fd00:172:30::/64".parse().expect("valid");
    dual.pod_cidr = "10.244.0.0/16,fd00:10:244::/48".parse().expect("valid");
    assert!(dual.validate().is_ok());
    let kept = serde_json::to_value(&dual).expect("settings are JSON");
    assert_eq!(kept["pod_cidr"], "10.244.0.0/16,fd00:10:244::/48");
    dual.pod_cidr = "10.244.0.0/16,fd00:172::/32".parse().expect("valid");
    let refused = dual.validate().expect_err("overlap");
    assert_eq!(
        refused.to_string(),
        "--pod-cidr fd00:172::/32 overlaps --underlay-cidr fd00:172:30::/64"
    );
}

#[test]
fn settings_kept_from_before_external_ips_could_be_allowed_do_not_allow_them() {
    let mut kept = serde_json::to_value(settings()).expect("settings are JSON");
    let fields = kept.as_object_mut().expect("an object");
    fields.remove("allow_external_ips").expect("a field");
    assert_eq!(serde_json::from_value::<Settings>(kept).ok(), Some(settings()));
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_flag_named() {
    type Spoil = fn(&mut Settings);
    let rows: [(&str, Spoil); 20] = [
        (
            "--pod-cidr 10.244.0.0/22: --nodes 4 need a /24 each, and 3 can be leased of it",
            |s| (s.nodes, s.pod_cidr) = (4, "10.244.0.0/22".parse().expect("valid")),
        ),
        ("--pod-cidr 10.244.0.0/23: a /22 or larger is needed", |s| {
            s.pod_cidr = "10.244.0.0/23".parse().expect("valid");
        }),
        ("--pod-cidr fd00:10:244::/64: a /56 or larger is needed", |s| {
            s.pod_cidr = "10.244.0.0/16,fd00:10:244::/64".parse().expect("valid");
        }),
        (
            "--pod-cidr fd00:10:244::/48: pods have IPv6 where nodes have it, as with --underlay-cidr \
            172.30.0.0/24,fd00:172:30::/64",
            |s| s.pod_cidr = "10.244.0.0/16,fd00:10:244::/48".parse().expect("valid"),
        ),
        (
            "--pod-cidr fd00:10:244::/48: the IPv4 network comes first, as in 10.244.0.0/16,fd00:10:244::/48",
            |s| s.pod_cidr = "fd00:10:244::/48".parse().expect("valid"),
        ),
        ("--api-port 0: a port from 1 to 65535 is needed", |s| {
            s.api_port = 0
        }),
        (
            "--etcd-port 6443: the API server has that port; choose another",
            |s| s.etcd_port = 6443,
        ),
        ("--nodes 0: from 1 to 64 nodes fit on one machine", |s| {
            s.nodes = 0
        }),
        ("--underlay-cidr 172.30.0.0/28: a /25 or larger is needed", |s| {
            s.underlay_cidr = "172.30.0.0/28".parse().expect("valid");
        }),
        ("--underlay-cidr fd00::/124: a /120 or larger is needed", |s| {
            s.underlay_cidr = "172.30.0.0/24,fd00::/124".parse().expect("valid");
        }),
        (
            "--underlay-cidr fd00::/64: the IPv4 network comes first, as in 172.30.0.0/24,fd00:172:30::/64",
            |s| s.underlay_cidr = "fd00::/64".parse().expect("valid"),
        ),
        (
            "--service-cidr fd00::/112 overlaps --underlay-cidr fd00::/64",
            |s| {
                s.service_cidr = "10.96.0.0/12,fd00::/112".parse().expect("valid");
                s.underlay_cidr = "172.30.0.0/24,fd00::/64".parse().expect("valid");
            },
        ),
        (
            "--pod-cidr 10.96.0.0/16 overlaps --service-cidr 10.96.0.0/12",
            |s| {
                s.pod_cidr = "10.96.0.0/16".parse().expect("valid");
            },
        ),
        (
            "--service-cidr 172.30.0.0/16 overlaps --underlay-cidr 172.30.0.0/24",
            |s| {
                s.service_cidr = "172.30.0.0/16".parse().expect("valid");
            },
        ),
        ("--service-cidr 10.96.0.0/25: a /24 or larger is needed", |s| {
            s.service_cidr = "10.96.0.0/25,fd00::/112".parse().expect("valid")
        }),
        ("--service-cidr fd00::/48: from /64 to /120 is possible", |s| {
            s.service_cidr = "10.96.0.0/12,fd00::/48".parse().expect("valid")
        }),
        (
            "--service-cidr fd00::/112,10.96.0.0/12: the IPv4 network comes first, as in \
            10.96.0.0/12,fd00:10:96::/112",
            |s| s.service_cidr = "fd00::/112,10.96.0.0/12".parse().expect("valid"),
        ),
        (
            "--etcd 127.0.0.1:2379: expected a URL like http://172.30.0.1:2379",
            |s| s.etcd = Some(etcd("127.0.0.1:2379", None)),
        ),
        (
            "--etcd https://a:2379: --etcd-ca must name the CA that its certificate is of",
            |s| s.etcd = Some(etcd("https://a:2379", None)),
        ),
        (
            "--etcd http://a:2379: with --etcd-ca a URL begins with https://",
            |s| s.etcd = Some(etcd("http://a:2379", Some("/ca.crt"))),
        ),
    ];
    assert!(settings().validate().is_ok());
    for (message, spoil) in rows {
        let mut settings = settings();
        spoil(&mut settings);
        assert_eq!(settings.validate().expect_err(message).to_string(), message);
    }
}

#[test]
fn a_kept_store_refuses_other_networks_and_takes_other_numbers() {
    type Change = fn(&mut Settings);
    let rows: [(Option<&str>, Change); 5] = [
        (None, |s| (s.nodes, s.datapath) = (5, Datapath::Nftables)),
        (
            Some("--nodes 2: the kept state is of a cluster with --nodes 3; causeway down removes it"),
            |s| s.nodes = 2,
        ),
        (
            Some(
                "--pod-cidr 10.99.0.0/16: the kept state is of a cluster with --pod-cidr 10.244.0.0/16; \
                causeway down removes it",
            ),
            |s| s.pod_cidr = "10.99.0.0/16".parse().expect("valid"),
        ),
        (
            Some(
                "--service-cidr 10.98.0.0/16: the kept state is of a cluster with --service-cidr 10.96.0.0/12; \
                causeway down removes it",
            ),
            |s| s.service_cidr = "10.98.0.0/16".parse().expect("valid"),
        ),
        (
            Some(
                "--network host-gw: the kept state is of a cluster with --network vxlan; causeway down removes it",
            ),
            |s| s.network = Network::HostGw,
        ),
    ];
    for (message, change) in rows {
        let mut asked = settings();
        change(&mut asked);
        let refused = asked.check_kept(&settings()).err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), message);
    }
}

fn in_a_vpc() -> Settings {
    let variables = [("WARM_IP_TARGET".to_owned(), "2".to_owned())];
    let network = default_underlay(Network::VpcEni);
    Settings {
        network: Network::VpcEni,
        vpc: Some(Vpc {
            instance_type: "m5.large".to_owned(),
            variables: variables.into(),
        }),
        pod_cidr: network,
        underlay_cidr: network,
        ..settings()
    }
}

#[test]
fn a_vpc_that_cannot_be_is_refused_with_the_flag_named() {
    type Spoil = fn(&mut Settings);
    fn vpc(settings: &mut Settings) -> &mut Vpc {
        settings.vpc.as_mut().expect("in a VPC")
    }
    let rows: [(&str, Spoil); 9] = [
        ("the settings have a VPC for the network vxlan", |s| {
            s.network = Network::Vxlan;
        }),
        (
            "--vpc-eni WARM_IP_TARGETS: amazon-vpc-cni-k8s has no variable of that name",
            |s| {
                vpc(s)
                    .variables
                    .insert("WARM_IP_TARGETS".to_owned(), "2".to_owned());
            },
        ),
        (
            "--vpc-eni AWS_VPC_K8S_CNI_VETHPREFIX=veth: pods' devices are called eni… here",
            |s| {
                let name = "AWS_VPC_K8S_CNI_VETHPREFIX".to_owned();
                vpc(s).variables.insert(name, "veth".to_owned());
            },
        ),
        (
            "--vpc-eni AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true: the cluster's API server has no ENIConfigs yet",
            |s| {
                let name = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG".to_owned();
                vpc(s).variables.insert(name, "true".to_owned());
            },
        ),
        (
            "--instance-type m5.huge: the fake EC2 has t3.micro, t3.small, t3.medium, t3.large, m5.large, m5.xlarge, \
             m5.4xlarge, c5.large, t2.micro, m4.large",
            |s| vpc(s).instance_type = "m5.huge".to_owned(),
        ),
        (
            "--vpc-eni ENABLE_IPv6=true: the cluster's VPC has no IPv6 yet",
            |s| {
                let family = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
                let family = family.map(|(name, value)| (name.to_owned(), value.to_owned()));
                vpc(s).variables.extend(family);
            },
        ),
        (
            "--underlay-cidr 172.30.0.0/16,fd00:172:30::/64: the cluster's VPC has no IPv6 yet",
            |s| s.underlay_cidr = "172.30.0.0/16,fd00:172:30::/64".parse().expect("valid"),
        ),
        (
            "--underlay-cidr 172.16.0.0/12: a VPC's network is a /16 at the largest",
            |s| s.underlay_cidr = "172.16.0.0/12".parse().expect("valid"),
        ),
        (
            "--service-cidr 172.30.128.0/17 overlaps --underlay-cidr 172.30.0.0/16",
            |s| s.service_cidr = "172.30.128.0/17".parse().expect("valid"),
        ),
    ];
    in_a_vpc().validate().expect("valid");
    for (message, spoil) in rows {
        let mut settings = in_a_vpc();
        spoil(&mut settings);
        assert_eq!(settings.validate().expect_err(message).to_string(), message);
    }
    let mut refused = in_a_vpc();
    vpc(&mut refused)
        .variables
        .insert("WARM_IP_TARGET".to_owned(), "many".to_owned());
    let refused = refused.validate().expect_err("no number").to_string();
    assert!(
        refused.starts_with("--vpc-eni WARM_IP_TARGET=many: "),
        "{refused}"
    );
}

#[test]
fn a_kept_vpc_refuses_other_addresses_and_instances() {
    let mut asked = in_a_vpc();
    asked.vpc.as_mut().expect("in a VPC").variables.clear();
    assert!(asked.check_kept(&in_a_vpc()).is_ok());
    asked.vpc.as_mut().expect("in a VPC").instance_type = "t3.small".to_owned();
    let refused = asked
        .check_kept(&in_a_vpc())
        .expect_err("instances stay what they are");
    assert_eq!(
        refused.to_string(),
        "--instance-type t3.small: the kept state is of a cluster with --instance-type m5.large; causeway down removes it"
    );
    let asked = Settings {
        underlay_cidr: "172.30.0.0/17".parse().expect("valid"),
        pod_cidr: in_a_vpc().pod_cidr,
        ..in_a_vpc()
    };
    let refused = asked
        .check_kept(&in_a_vpc())
        .expect_err("addresses stay what they are");
    assert_eq!(
        refused.to_string(),
        "--underlay-cidr 172.30.0.0/17: the kept state is of a cluster with --underlay-cidr 172.30.0.0/16; causeway down \
         removes it"
    );
}

#[test]
fn a_node_takes_as_many_pods_as_eks_tells_its_kubelets() {
    let rows = [
        ("t3.small", &[][..], 11),
        ("m5.large", &[], 29),
        ("m5.xlarge", &[], 58),
        ("m5.4xlarge", &[], 110), // 234 have addresses; EKS allows no more with less than 30 vCPUs
        ("m5.large", &[("ENABLE_PREFIX_DELEGATION", "true")], 110),
    ];
    for (instance_type, variables, most) in rows {
        let variables = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let vpc = Vpc {
            instance_type: instance_type.to_owned(),
            variables: variables.collect(),
        };
        assert_eq!(vpc.max_pods(), most, "{instance_type}");
    }
}
