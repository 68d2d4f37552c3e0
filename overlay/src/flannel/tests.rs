//! Rows of configurations and leases, real flannel's values among them.

use super::*;

fn config(text: &str) -> Result<String, String> {
    let config = NetworkConfig::parse(text).map_err(|error| error.to_string())?;
    let NetworkConfig { pools, backend } = config;
    let pools = pools.values().map(|pool| {
        let Pool {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
        } = pool;
        format!("{network} /{subnet_len} {subnet_min}..{subnet_max} ")
    });
    Ok(format!("{}{backend:?}", pools.collect::<String>()))
}

#[test]
fn configurations_are_read_with_flannels_defaults_names_and_checks() {
    let vxlan = "Vxlan { vni: Vni(1), port: 8472, mtu: None, gbp: false, direct_routing: false }";
    let rows: [(&str, Result<String, &str>); 29] = [
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#, Ok(format!("10.244.0.0/16 /24 10.244.1.0..10.244.255.0 {vxlan}"))),
        (r#"{"network":"10.244.0.0/16","backend":{"type":"vxlan"}}"#, Ok(format!("10.244.0.0/16 /24 10.244.1.0..10.244.255.0 {vxlan}"))),
        (
            r#"{"Network":"10.244.0.0/16","enableipv6":true,"ipv6network":"fd05::/48","Backend":{"Type":"vxlan"}}"#,
            Ok(format!("10.244.0.0/16 /24 10.244.1.0..10.244.255.0 fd05::/48 /64 fd05:0:0:1::..fd05:0:0:ffff:: {vxlan}")),
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/64","IPv6SubnetLen":80,"IPv6SubnetMin":"fd05::9:0:0:0","Backend":{"Type":"vxlan"}}"#,
            Ok(format!("fd05::/64 /80 fd05::9:0:0:0..fd05::ffff:0:0:0 {vxlan}")),
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/63","Backend":{"Type":"vxlan"}}"#,
            Ok(format!("fd05::/63 /65 fd05::8000:0:0:0..fd05:0:0:1:8000:: {vxlan}")),
        ),
        (r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#, Err("IPv6Network: is missing")),
        (r#"{"Network":"fd05::/48","Backend":{"Type":"vxlan"}}"#, Err(r#"Network: "fd05::/48" is not a network"#)),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/64","Backend":{"Type":"vxlan"}}"#,
            Err("IPv6Network: fe80::/64 has link-local addresses"),
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48","IPv6SubnetLen":127,"Backend":{"Type":"vxlan"}}"#,
            Err("IPv6SubnetLen: 127 is not between 50 and 126"),
        ),
        (r#"{"EnableIPv4":false,"Backend":{"Type":"vxlan"}}"#, Err("EnableIPv4: is off, and EnableIPv6 too")),
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/125","Backend":{"Type":"vxlan"}}"#, Err("IPv6Network: fd05::/125 is smaller than a /124")),
        (r#"{"Network":"10.5.0.0/23","Backend":{"Type":"vxlan"}}"#, Ok(format!("10.5.0.0/23 /25 10.5.0.128..10.5.1.128 {vxlan}"))),
        (
            r#"{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.10.0","SubnetMax":"10.5.20.64","Backend":{"Type":"host-gw"}}"#,
            Ok("10.5.0.0/16 /26 10.5.10.0..10.5.20.64 HostGw".to_owned()),
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","vni":7,"port":4789,"MTU":9000,"GBP":true,"DirectRouting":true}}"#,
            Ok("10.5.0.0/16 /24 10.5.1.0..10.5.255.0 Vxlan { vni: Vni(7), port: 4789, mtu: Some(9000), gbp: true, direct_routing: true }".to_owned()),
        ),
        (r#"{"Network":"0.0.0.0/0","Backend":{"Type":"host-gw"}}"#, Ok("0.0.0.0/0 /24 0.0.1.0..255.255.255.0 HostGw".to_owned())),
        (r#"{"Network":"10.5.0.0/16"}"#, Err(r#"Backend.Type: "udp" is not supported, vxlan and host-gw are"#)),
        (r#"{"Backend":{"Type":"vxlan"}}"#, Err("Network: is missing")),
        (r#"{"Network":"10.5.0.0/29","Backend":{"Type":"vxlan"}}"#, Err("Network: 10.5.0.0/29 is smaller than a /28")),
        (r#"{"Network":"10.5.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan"}}"#, Err("SubnetLen: 31 is not between 18 and 30")),
        (r#"{"Network":"10.5.0.0/16","SubnetLen":17,"Backend":{"Type":"vxlan"}}"#, Err("SubnetLen: 17 is not between 18 and 30")),
        (r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0","Backend":{"Type":"vxlan"}}"#, Err("SubnetMin: 10.6.0.0 is not in 10.5.0.0/16")),
        (r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7","Backend":{"Type":"vxlan"}}"#, Err("SubnetMin: 10.5.1.7 is not where a subnet begins")),
        (r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0","Backend":{"Type":"vxlan"}}"#, Err("SubnetMin: 10.5.9.0 comes after SubnetMax 10.5.8.0")),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777215}}"#, Ok(format!("10.5.0.0/16 /24 10.5.1.0..10.5.255.0 {}", vxlan.replace("Vni(1)", "Vni(16777215)")))),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, Err("VNI: 16777216 is too large")),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#, Err("Port: 70000 is too large")),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":"yes"}}"#, Err(r#"DirectRouting: "yes" is neither true nor false"#)),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":null}}"#, Ok(format!("10.5.0.0/16 /24 10.5.1.0..10.5.255.0 {vxlan}"))),
        ("[]", Err("not a JSON object: []")),
    ];
    for (text, wanted) in rows {
        assert_eq!(config(text), wanted.map_err(str::to_owned), "{text}");
    }
}

#[test]
fn keys_name_subnets_of_one_family_or_both() {
    let rows = [
        ("10.5.44.0-24", Some(("10.5.44.0/24", None))),
        (
            "10.5.75.0-24&fd05:0:0:4a::-64",
            Some(("10.5.75.0/24", Some("fd05:0:0:4a::/64"))),
        ),
        ("fd05:0:0:4a::-64", None),
        ("10.5.44.0-24&10.5.45.0-24", None),
        ("10.5.44.0", None),
        ("10.5.44.0/24", None),
        ("10.5.44.0-33", None),
        ("10.5.44.0-24&x", None),
        ("config", None),
    ];
    for (text, wanted) in rows {
        let read = parse_key(text).ok().map(|both| {
            (
                both.v4.expect("IPv4").to_string(),
                both.v6.map(|v6| v6.to_string()),
            )
        });
        assert_eq!(
            read,
            wanted.map(|(v4, v6)| (v4.to_owned(), v6.map(str::to_owned))),
            "{text}"
        );
    }
    for text in ["10.5.75.0-24&fd05:0:0:4a::-64", "10.5.75.0-24"] {
        assert_eq!(parse_key(text).map(|subnets| key(&subnets)), Ok(text.to_owned()));
    }
}

#[track_caller]
fn same_json(a: &str, b: &str) {
    let [a, b]: [Value; 2] = [a, b].map(|text| serde_json::from_str(text).expect("JSON"));
    assert_eq!(a, b);
}

#[test]
fn leases_that_flannel_wrote_are_read_and_written_back_without_loss() {
    let rows = [
        (
            "10.5.44.0-24",
            r#"{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"d2:53:06:12:c8:e9"}}"#,
        ),
        (
            "10.5.75.0-24&fd05:0:0:4a::-64",
            r#"{"PublicIP":"192.168.77.12","PublicIPv6":"fd77::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"d2:53:06:12:c8:e9"},"BackendV6Data":{"VNI":1,"VtepMAC":"d2:53:06:12:c8:ea"}}"#,
        ),
        (
            "10.5.44.0-24",
            r#"{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"host-gw"}"#,
        ),
        (
            "10.5.44.0-24",
            r#"{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"host-gw","Rack":"r7"}"#,
        ),
        (
            "10.5.44.0-24",
            r#"{"PublicIP":"192.168.77.12","PublicIPv6":"fd77::12","BackendType":"host-gw"}"#,
        ),
    ];
    for (key, value) in rows {
        let record = Record::parse(key, value).expect(value);
        assert_eq!(record.node, None);
        same_json(&record.to_json(), value);
    }
}

#[test]
fn our_leases_carry_the_nodes_name_where_flannel_does_not_look() {
    let value = r#"{"publicip":"192.168.77.12","backendtype":"vxlan","backenddata":{"vni":7,"vtepmac":"d2:53:06:12:c8:e9","CausewayNode":"node-1"}}"#;
    let record = Record::parse("10.5.44.0-24", value).expect("read in any case");
    assert_eq!(record.node, Some(NodeName::from("node-1")));
    same_json(
        &record.to_json(),
        r#"{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"d2:53:06:12:c8:e9","CausewayNode":"node-1"}}"#,
    );
}

#[test]
fn what_is_not_a_lease_is_refused_with_its_reason() {
    let rows = [
        ("{}", "PublicIP: is missing"),
        (r#"{"PublicIP":"x"}"#, "PublicIP: \"x\" is not an address"),
        (
            r#"{"PublicIP":"1.2.3.4","BackendType":"udp"}"#,
            "Backend.Type: \"udp\" is not supported, vxlan and host-gw are",
        ),
        (
            r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan"}"#,
            "BackendData: is missing",
        ),
        (
            r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}"#,
            "VtepMAC: expected a MAC address like 0a:58:0a:f4:01:02, found \"zz\"",
        ),
        ("nonsense", "not a JSON object: expected ident at line 1 column 2"),
    ];
    for (value, wanted) in rows {
        assert_eq!(
            Record::parse("10.5.44.0-24", value).expect_err(value).to_string(),
            wanted
        );
    }
}
