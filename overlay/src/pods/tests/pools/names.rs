//! Names of pods' devices on the node.

use super::*;

/// Names of devices, by container.
fn names(pods: &PodNetwork) -> BTreeMap<String, String> {
    let named = |assigned: Assigned| (assigned.key.container_id.clone(), wiring::host_ifname(&assigned));
    pods.list().into_iter().map(named).collect()
}

#[test]
fn a_pod_keeps_the_name_that_it_was_made_with_and_no_two_have_the_same() {
    let node = Node::new("names");
    let of_pod = |container: &str, ifname: &str| Attachment {
        key: AttachmentKey {
            ifname: ifname.to_owned(),
            ..key(container)
        },
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment(container)
    };
    let pods = node.open();
    pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450));
    pods.add(&of_pod("overlay", "eth0")).expect("an address");
    pods.serve_pool(pool(&[("10.0.0.0/28", 0)]));
    let web_0 = "eni0d7763386da".to_owned();
    let first = pods.add(&of_pod("first", "eth0")).expect("an address");
    assert_eq!(first.host_ifname, web_0);
    pods.add(&of_pod("remade", "eth0")).expect("an address");
    pods.add(&of_pod("second interface", "net1")).expect("an address");
    pods.add(&attachment("unnamed")).expect("an address");
    let by_key = |container: &str, ifname: &str| wiring::eni_ifname_by_key(&of_pod(container, ifname).key);
    let expected: BTreeMap<String, String> = [
        ("overlay", wiring::ifname_by_key(&key("overlay"))),
        ("first", web_0.clone()),
        ("remade", by_key("remade", "eth0")),
        ("second interface", by_key("second interface", "net1")),
        ("unnamed", by_key("unnamed", "eth0")),
    ]
    .map(|(container, name)| (container.to_owned(), name))
    .into();
    assert_eq!(names(&pods), expected);
    assert_eq!(expected.values().collect::<BTreeSet<_>>().len(), 5);
    assert!(
        expected.values().all(|name| model::wiring::is_host_ifname(name)),
        "{expected:?}"
    );
    // Over a change of mode, a restart, and an ADD that is repeated with other wishes.
    drop(pods);
    let pods = node.open();
    pods.serve(subnets(&["10.244.1.0/29"]), Mtu(1450));
    assert_eq!(names(&pods), expected);
    assert_eq!(pods.check(&key("first")).expect("known").host_ifname, web_0);
    assert_eq!(
        pods.add(&of_pod("first", "eth0"))
            .expect("in the subnet")
            .host_ifname,
        web_0
    );
    // What went leaves its name to the next.
    pods.serve_pool(pool(&[("10.0.0.0/28", 0)]));
    removed(&pods, "first");
    assert_eq!(
        pods.add(&of_pod("remade again", "eth0"))
            .expect("an address")
            .host_ifname,
        web_0
    );
}

#[test]
fn a_device_that_is_there_and_not_this_interfaces_leaves_it_another_name() {
    let node = Node::new("strange");
    let pods = node.serving(&[("10.0.0.0/28", 0)]);
    let named = Attachment {
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment("a")
    };
    let rows = [
        ("nothing there", None, "eni0d7763386da".to_owned()),
        (
            "its own, of an ADD that broke off",
            Some(Some(wiring::host_mac(&key("a")))),
            "eni0d7763386da".to_owned(),
        ),
        (
            "another plugin's",
            Some(Some(model::MacAddr([2, 0, 0, 0, 0, 9]))),
            wiring::eni_ifname_by_key(&key("a")),
        ),
        (
            "one without an address",
            Some(None),
            wiring::eni_ifname_by_key(&key("a")),
        ),
    ];
    for (what, device, expected) in rows {
        assert_eq!(pods.lock().host_ifname(&named, device), Some(expected), "{what}");
    }
}
