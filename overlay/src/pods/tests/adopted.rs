//! Pods that another plugin connected.

use super::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);
const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 6]);

fn adopted(container: &str, address: &str, host_ifname: &str) -> Adopted {
    Adopted {
        key: key(container),
        pod: Some(ObjectName::new("default", container)),
        address: address.parse().expect("an address"),
        host_ifname: host_ifname.to_owned(),
        host_mac: Some(HOST_MAC),
        pod_mac: Some(MAC),
    }
}

#[test]
fn a_pod_of_another_plugin_is_as_it_was_made_over_restarts_until_its_del() {
    let place = Place::new("adopted");
    let pods = place.open();
    assert!(
        pods.adopt(&adopted("web-0", "10.244.1.2", "eni0d7763386da"))
            .expect("written")
    );
    let look = |pods: &PodNetwork| {
        let plan = pods.check(&key("web-0")).expect("it is known");
        (plan.host_ifname, plan.host_mac, plan.pod_mac, plan.addresses)
    };
    let network: IpNetwork = "10.244.1.2/32".parse().expect("a network");
    let expected = ("eni0d7763386da".to_owned(), HOST_MAC, MAC, vec![network]);
    assert_eq!(look(&pods), expected);
    drop(pods);
    let pods = place.open();
    assert_eq!(look(&pods), expected);
    let others: Vec<IpAddr> = (0..4)
        .flat_map(|number| {
            pods.add(&attachment(&format!("c{number}")))
                .expect("an address")
                .addresses
        })
        .map(|network| network.ip())
        .collect();
    assert!(!others.contains(&network.ip()), "{others:?}");
    assert!(pods.remove(&key("web-0")).expect("written").is_some());
    let again = pods.add(&attachment("again")).expect("the one that came back");
    assert_eq!(again.addresses, [network]);
}

#[test]
fn who_is_in_the_book_is_not_taken_a_second_time() {
    let place = Place::new("adopted-twice");
    let pods = place.open();
    assert!(
        pods.adopt(&adopted("web-0", "10.244.1.2", "eni0d7763386da"))
            .expect("written")
    );
    let before = pods.list();
    for (what, other) in [
        ("the same", adopted("web-0", "10.244.1.2", "eni0d7763386da")),
        ("its interface", adopted("web-0", "10.244.1.3", "eni00000000001")),
        ("its address", adopted("web-1", "10.244.1.2", "eni00000000001")),
        ("its device", adopted("web-1", "10.244.1.3", "eni0d7763386da")),
    ] {
        assert!(!pods.adopt(&other).expect("nothing to write"), "{what}");
        assert_eq!(pods.list(), before, "{what}");
    }
    assert!(
        pods.adopt(&adopted("web-1", "10.244.1.3", "eni00000000001"))
            .expect("written")
    );
}
