//! Rows of environments, configurations and results.

use model::wiring::PodRoute;
use model::{MacAddr, Mtu};

use super::*;

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_bad_environment_is_code_4_and_names_what_is_wrong() {
    let full = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/n"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/p"),
    ];
    let with = |command: &str, change: (&str, &str)| {
        let mut variables = variables(&full);
        variables.insert("CNI_COMMAND".to_owned(), command.to_owned());
        variables.insert(change.0.to_owned(), change.1.to_owned());
        variables
    };
    let rows = [
        (
            with("ADD", ("CNI_IFNAME", "")),
            "required environment variables missing: CNI_IFNAME",
        ),
        (
            variables(&[("CNI_COMMAND", "ADD")]),
            "required environment variables missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH",
        ),
        (
            variables(&[("CNI_COMMAND", "DEL")]),
            "required environment variables missing: CNI_CONTAINERID, CNI_IFNAME, CNI_PATH",
        ),
        (
            variables(&[("CNI_COMMAND", "GC")]),
            "required environment variables missing: CNI_PATH",
        ),
        (with("RESIZE", ("X", "")), "unknown CNI_COMMAND: RESIZE"),
        (
            with("ADD", ("CNI_CONTAINERID", "-c")),
            "CNI_CONTAINERID: \"-c\" is not an identifier",
        ),
        (
            with("ADD", ("CNI_CONTAINERID", "a/b")),
            "CNI_CONTAINERID: \"a/b\" is not an identifier",
        ),
        (
            with("DEL", ("CNI_IFNAME", "sixteen-bytes-xx")),
            "CNI_IFNAME: \"sixteen-bytes-xx\" is not a device name",
        ),
        (
            with("ADD", ("CNI_IFNAME", "..")),
            "CNI_IFNAME: \"..\" is not a device name",
        ),
        (
            with("ADD", ("CNI_IFNAME", "a b")),
            "CNI_IFNAME: \"a b\" is not a device name",
        ),
        (
            with("ADD", ("CNI_IFNAME", "a:b")),
            "CNI_IFNAME: \"a:b\" is not a device name",
        ),
    ];
    for (variables, msg) in rows {
        assert_eq!(
            parse_environment(&variables),
            Err(fail(code::ENVIRONMENT, msg)),
            "{variables:?}"
        );
    }
    assert_eq!(parse_environment(&Variables::new()), Ok(None));
}

#[test]
fn a_good_environment_tells_the_interface_and_the_pod() {
    let variables = variables(&[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
        ),
    ]);
    let call = parse_environment(&variables).expect("valid").expect("a verb");
    assert_eq!(
        (call.verb, call.pod),
        (Verb::Add, Some(ObjectName::new("default", "web")))
    );
    assert_eq!(
        call.key,
        AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned()
        }
    );
}

#[test]
fn a_bad_configuration_is_refused_with_the_specifications_code() {
    let rows = [
        (Verb::Add, "nonsense", code::DECODE),
        (Verb::Add, r#"{"cniVersion":"1.0.0"}"#, code::CONFIG),
        (Verb::Add, r#"{"cniVersion":"1.0.0","name":"-x"}"#, code::CONFIG),
        (Verb::Add, r#"{"cniVersion":"9.9.9","name":"x"}"#, code::VERSION),
        (Verb::Check, r#"{"cniVersion":"0.3.1","name":"x"}"#, code::VERSION),
        (Verb::Gc, r#"{"cniVersion":"1.0.0","name":"x"}"#, code::VERSION),
        (Verb::Status, r#"{"name":"x"}"#, code::VERSION),
    ];
    for (verb, input, code) in rows {
        assert_eq!(
            parse_config(verb, input.as_bytes()).map_err(|failure| failure.code),
            Err(code),
            "{input}"
        );
    }
}

#[test]
fn a_configuration_tells_version_socket_and_what_is_in_use() {
    let conf = parse_config(
        Verb::Gc,
        br#"{"cniVersion":"1.1.0","name":"causeway","type":"causeway-cni","socket":"/s","hostLocal":"/h",
            "cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}],
            "prevResult":{"interfaces":[{"name":"cw1"},{"name":"eth0","sandbox":"/n"}]}}"#,
    );
    let wanted = NetConf {
        version: "1.1.0".to_owned(),
        socket: "/s".into(),
        host_local: "/h".into(),
        valid: Some(vec![AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        }]),
        previous_devices: vec!["cw1".to_owned()],
        wishes: Wishes::default(),
    };
    assert_eq!(conf, Ok(wanted));
    let least = parse_config(Verb::Add, br#"{"name":"x"}"#).expect("valid");
    assert_eq!(
        (least.version.as_str(), least.socket),
        ("0.1.0", DEFAULT_SOCKET.into())
    );
}

#[test]
fn results_have_the_form_of_their_version() {
    let plan = WiringPlan {
        host_ifname: "cw1".to_owned(),
        host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        pod_ifname: "eth0".to_owned(),
        pod_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        mtu: Mtu(1450),
        addresses: vec!["10.244.1.2/32".parse().expect("network")],
        gateways: vec!["169.254.1.1".parse().expect("address")],
        routes: vec![PodRoute {
            destination: "0.0.0.0/0".parse().expect("network"),
            gateway: Some("169.254.1.1".parse().expect("address")),
        }],
        bandwidth: Bandwidth::default(),
    };
    let new = |version: &str, mtu: &str, family: &str| {
        format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"cw1","mac":"02:00:00:00:00:01"{mtu}}},
            {{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/n"{mtu}}}],
            "ips":[{{"address":"10.244.1.2/32","gateway":"169.254.1.1","interface":1{family}}}],
            "routes":[{{"dst":"0.0.0.0/0","gw":"169.254.1.1"}}],"dns":{{}}}}"#
        )
    };
    let old = |version: &str| {
        format!(
            r#"{{"cniVersion":"{version}","ip4":{{"ip":"10.244.1.2/32","gateway":"169.254.1.1",
            "routes":[{{"dst":"0.0.0.0/0","gw":"169.254.1.1"}}]}},"dns":{{}}}}"#
        )
    };
    let family = r#","version":"4""#;
    let rows = [
        ("0.1.0", old("0.1.0")),
        ("0.2.0", old("0.2.0")),
        ("0.3.0", new("0.3.0", "", family)),
        ("0.3.1", new("0.3.1", "", family)),
        ("0.4.0", new("0.4.0", "", family)),
        ("1.0.0", new("1.0.0", "", "")),
        ("1.1.0", new("1.1.0", r#","mtu":1450"#, "")),
    ];
    assert_eq!(rows.each_ref().map(|row| row.0), VERSIONS);
    for (version, wanted) in rows {
        let wanted: Value = serde_json::from_str(&wanted).expect("JSON");
        assert_eq!(result(version, &plan, "/n"), wanted, "{version}");
    }
}

#[test]
fn errors_echo_the_inputs_version_and_leave_empty_details_out() {
    let failure = fail(code::TRY_AGAIN, "the agent is not there");
    let wanted = json!({"cniVersion": "1.0.0", "code": 11, "msg": "the agent is not there"});
    assert_eq!(
        error_result(&input_version(br#"{"cniVersion":"1.0.0"}"#), &failure),
        wanted
    );
    assert_eq!(input_version(b"nonsense"), "0.1.0");
}

#[test]
fn what_a_runtime_asks_for_is_read_as_runtimes_write_it() {
    let conf = parse_config(
        Verb::Add,
        br#"{"cniVersion":"1.0.0","name":"x","runtimeConfig":{
            "ips":["10.1.2.3/24","fd00::3"],"mac":"02:00:00:00:00:07","dns":{"servers":[]},
            "bandwidth":{"ingressRate":20000000,"ingressBurst":8000,"egressRate":0,"egressBurst":0},
            "portMappings":[
                {"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":"0.0.0.0"},
                {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"192.0.2.1"}]}}"#,
    );
    let port = |number| NonZeroU16::new(number).expect("a port");
    let mapping = |host_port, container_port, protocol, host_ip: Option<&str>| PortMapping {
        host_port: port(host_port),
        container_port: port(container_port),
        protocol,
        host_ip: host_ip.map(|text| text.parse().expect("an address")),
    };
    let wanted = Wishes {
        ips: ["10.1.2.3", "fd00::3"]
            .map(|text| text.parse().expect("an address"))
            .into(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 7])),
        port_mappings: vec![
            mapping(80, 8080, Protocol::Tcp, Some("0.0.0.0")),
            mapping(53, 53, Protocol::Udp, Some("192.0.2.1")),
        ],
        bandwidth: Bandwidth {
            ingress: Some(limit(20_000_000, 8_000)),
            egress: None,
        },
    };
    assert_eq!(conf.map(|conf| conf.wishes), Ok(wanted));
    let nothing =
        br#"{"cniVersion":"1.0.0","name":"x","runtimeConfig":{"ips":null,"mac":"","portMappings":[],"bandwidth":{}}}"#;
    let conf = parse_config(Verb::Add, nothing).expect("valid");
    assert_eq!(conf.wishes, Wishes::default());
}

fn limit(rate: u64, burst: u64) -> RateLimit {
    let number = |number| NonZeroU64::new(number).expect("not zero");
    RateLimit {
        rate_bits: number(rate),
        burst_bits: number(burst),
    }
}

#[test]
fn a_bandwidth_is_bits_in_a_second_and_bits_at_once_or_refused_with_the_reason() {
    let parse = |bandwidth: &Value| {
        let conf = json!({"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"bandwidth": bandwidth}});
        parse_config(Verb::Add, conf.to_string().as_bytes())
    };
    // What containerd and CRI-O give for a pod's annotation: 2^32 - 1 bits, nearly 2^32 - 1 bytes.
    for burst in [1, 4_294_967_295, 8 * 4_294_967_295 - 1, 8 * 4_294_967_295 + 7] {
        let conf = parse(&json!({"egressRate": 1_000_000_000_000_000_u64, "egressBurst": burst}));
        let wanted = Bandwidth {
            ingress: None,
            egress: Some(limit(1_000_000_000_000_000, burst)),
        };
        assert_eq!(conf.expect("valid").wishes.bandwidth, wanted);
    }
    for nothing in [
        json!(null),
        json!({}),
        json!({"ingressRate": 0}),
        json!({"ingressRate": null, "ingressBurst": 0}),
    ] {
        let conf = parse(&nothing).expect("valid");
        assert!(conf.wishes.bandwidth.is_unlimited(), "{nothing}");
    }
    for (bandwidth, told) in [
        (
            json!({"ingressRate": 1000}),
            "runtimeConfig.bandwidth: ingressRate is 1000, without ingressBurst",
        ),
        (
            json!({"egressRate": 0, "egressBurst": 1000}),
            "runtimeConfig.bandwidth: egressBurst is 1000, without egressRate",
        ),
        (
            json!({"ingressRate": -1, "ingressBurst": 1}),
            "runtimeConfig.bandwidth.ingressRate: -1 is not a number of bits",
        ),
        (
            json!({"ingressRate": 1.5, "ingressBurst": 1}),
            "runtimeConfig.bandwidth.ingressRate: 1.5 is not a number of bits",
        ),
        (
            json!({"egressRate": 1000, "egressBurst": 1e30}),
            "runtimeConfig.bandwidth.egressBurst: 1e+30 is not a number of bits",
        ),
        (
            json!({"egressRate": 7, "egressBurst": 1}),
            "runtimeConfig.bandwidth.egressRate: 7 is not 8 bits in a second or more",
        ),
        (
            json!({"egressRate": 8, "egressBurst": 8_u64 << 32}),
            "runtimeConfig.bandwidth.egressBurst: 34359738368 is not less than 4 GiB, in bits",
        ),
    ] {
        let failure = parse(&bandwidth).expect_err("refused");
        assert_eq!(
            (failure.code, failure.msg.as_str()),
            (code::CONFIG, told),
            "{bandwidth}"
        );
    }
    for bandwidth in [json!("x"), json!({"ingressRate": "1M", "ingressBurst": 1})] {
        assert_eq!(
            parse(&bandwidth).expect_err("refused").code,
            code::DECODE,
            "{bandwidth}"
        );
    }
}
