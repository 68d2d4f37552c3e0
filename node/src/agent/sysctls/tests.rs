use std::collections::BTreeMap;

use super::wanted::Value;
use super::*;

/// Settings in memory; some cannot be written.
struct Fake {
    values: BTreeMap<&'static str, String>,
    read_only: Vec<&'static str>,
    written: Vec<String>,
}

impl Fake {
    fn new(values: &[(&'static str, &str)], read_only: &[&'static str]) -> Self {
        let values = values.iter().map(|(path, value)| (*path, (*value).to_owned()));
        Self {
            values: values.collect(),
            read_only: read_only.to_vec(),
            written: Vec::new(),
        }
    }
}

impl Settings for Fake {
    fn read(&self, path: &str) -> Result<Option<String>, String> {
        Ok(self.values.get(path).cloned())
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), String> {
        if self.read_only.contains(&path) {
            return Err("Read-only file system".to_owned());
        }
        self.written.push(format!("{path} = {value}"));
        let held = self.values.get_mut(path).ok_or("no such file")?;
        value.clone_into(held);
        Ok(())
    }
}

const FORWARD: &str = "net/ipv4/ip_forward";
const TUNNEL: &str = "net/ipv4/conf/flannel.1/rp_filter";
const FLOWS: &str = "net/netfilter/nf_conntrack_max";

fn all() -> Vec<Wanted> {
    [
        (FORWARD, Value::Exactly(1)),
        (TUNNEL, Value::IfPresent(2)),
        (FLOWS, Value::AtLeast(1000)),
    ]
    .map(|(path, value)| Wanted {
        path: path.to_owned(),
        value,
    })
    .into()
}

fn looked(repaired: &[&str], failures: &[&str]) -> Looked {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Looked {
        repaired: owned(repaired),
        failures: owned(failures),
    }
}

#[test]
fn what_is_set_at_start_is_no_repair_and_what_changes_later_is() {
    let mut held = Held::default();
    let mut kernel = Fake::new(&[(FORWARD, "0"), (TUNNEL, "1"), (FLOWS, "4000")], &[]);
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));
    let expected = ["net/ipv4/ip_forward = 1", "net/ipv4/conf/flannel.1/rp_filter = 2"];
    assert_eq!(kernel.written, expected);
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));
    assert_eq!(kernel.written, expected, "nothing more is written");

    kernel
        .values
        .extend([(FORWARD, "0".to_owned()), (TUNNEL, "1".to_owned())]);
    let repaired = ["net.ipv4.ip_forward", "net.ipv4.conf.flannel/1.rp_filter"];
    assert_eq!(held.look(&all(), &mut kernel), looked(&repaired, &[]));
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));

    let more = Wanted {
        path: FLOWS.to_owned(),
        value: Value::AtLeast(5000),
    };
    assert_eq!(
        held.look(&[more], &mut kernel),
        looked(&[], &[]),
        "another value is wanted now"
    );
    assert_eq!(
        kernel.written.last().map(String::as_str),
        Some("net/netfilter/nf_conntrack_max = 5000")
    );
}

#[test]
fn a_setting_that_cannot_be_read_or_written_stops_no_other() {
    let mut held = Held::default();
    let mut kernel = Fake::new(&[(FORWARD, "0"), (TUNNEL, "many")], &[FORWARD]);
    let failures = [
        "net.ipv4.ip_forward is 0 and shall be 1: Read-only file system",
        "net.ipv4.conf.flannel/1.rp_filter is \"many\", which is no number",
        "net.netfilter.nf_conntrack_max does not exist",
    ];
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &failures));

    // It was never right, so that nobody changed it.
    kernel.read_only.clear();
    kernel
        .values
        .extend([(TUNNEL, "2".to_owned()), (FLOWS, "9".to_owned())]);
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));
    assert_eq!(
        kernel.written,
        ["net/ipv4/ip_forward = 1", "net/netfilter/nf_conntrack_max = 1000"]
    );
}

#[test]
fn what_is_right_and_read_only_is_no_failure() {
    let mut kernel = Fake::new(&[(FORWARD, "1"), (FLOWS, "4000")], &[FORWARD, FLOWS]);
    assert_eq!(Held::default().look(&all(), &mut kernel), looked(&[], &[]));
}

#[test]
fn a_device_that_was_made_anew_is_set_up_and_not_repaired() {
    let mut held = Held::default();
    let mut kernel = Fake::new(&[(FORWARD, "1"), (TUNNEL, "2"), (FLOWS, "4000")], &[]);
    held.look(&all(), &mut kernel);
    kernel.values.remove(TUNNEL);
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));
    kernel.values.insert(TUNNEL, "0".to_owned());
    assert_eq!(held.look(&all(), &mut kernel), looked(&[], &[]));
    assert_eq!(kernel.written, ["net/ipv4/conf/flannel.1/rp_filter = 2"]);
}

#[test]
fn what_an_agent_may_have_set_is_told_with_its_value() {
    let paths = Paths {
        families: [IpFamily::V4, IpFamily::V6].into(),
        tunnel: Some("flannel.1".to_owned()),
        advertised: ["eth0", "eth1", "lo"].map(str::to_owned).into(),
    };
    let kernel = Fake::new(
        &[
            (FORWARD, "1"),
            (TUNNEL, "2"),
            ("net/ipv6/conf/eth0/accept_ra", "2\n"),
            ("net/ipv6/conf/eth1/accept_ra", "1"),
            ("net/ipv6/conf/all/forwarding", "0"),
        ],
        &[],
    );
    let expected = ["net.ipv4.ip_forward = 1", "net.ipv6.conf.eth0.accept_ra = 2"];
    assert_eq!(as_written(&forwarding(&paths), &kernel), expected);
}
