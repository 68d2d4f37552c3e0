//! Conditions, grouping and packing of slices, as rows.

use super::*;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn service(spec: Value) -> Service {
    let mut full = json!({
        "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"], "selector": { "app": "web" },
        "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
    });
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "s", "labels": { "team": "x" } }, "spec": full,
    }))
    .unwrap()
}

fn pod(number: usize, edit: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": format!("p{number}"), "namespace": "default", "uid": format!("p{number}"),
            "labels": { "app": "web" },
        },
        "spec": { "nodeName": "n1", "containers": [] },
        "status": {
            "phase": "Running", "podIPs": [{ "ip": format!("10.244.{}.{}", number / 250, number % 250 + 1) }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    edit(&mut pod);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Arc<Pod>> {
    numbers.into_iter().map(|number| pod(number, |_| {})).collect()
}

fn plan_for(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Plan {
    plan_at(service, pods, existing, None)
}

/// The nodes n1 and n2 are in the zones z1 and z2; n3 is in none.
fn plan_at(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    changed_at: Option<&str>,
) -> Plan {
    let zone = |node: &str| {
        node.strip_prefix('n')
            .map(|number| format!("z{number}"))
            .filter(|zone| zone != "z3")
    };
    let changed_at = changed_at.map(|time| time.parse().unwrap());
    let pods = ServicePods::observe(service, pods, &zone);
    plan(service, &pods, existing, changed_at)
}

/// What the API would hold after the plan.
fn apply(existing: &[Arc<EndpointSlice>], plan: Plan) -> Vec<Arc<EndpointSlice>> {
    let mut slices: BTreeMap<String, Arc<EndpointSlice>> = existing
        .iter()
        .map(|slice| (slice.metadata.name.clone().unwrap(), slice.clone()))
        .collect();
    for slice in plan.update {
        slices.insert(slice.metadata.name.clone().unwrap(), Arc::new(slice));
    }
    for slice in plan.delete {
        slices.remove(slice.metadata.name.as_ref().unwrap());
    }
    for mut slice in plan.create {
        let name = format!("web-{}", slices.len() + 1);
        slice.metadata.name = Some(name.clone());
        slices.insert(name, Arc::new(slice));
    }
    slices.into_values().collect()
}

#[track_caller]
fn conditions(publish: bool, ready: bool, deleting: bool, expected: (bool, bool, bool)) {
    let service = service(json!({ "publishNotReadyAddresses": publish }));
    let pod = pod(1, |pod| {
        pod["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
    });
    let plan = plan_for(&service, &[pod], &[]);
    let (ready, serving, terminating) = expected;
    let expected = EndpointConditions {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(terminating),
    };
    assert_eq!(plan.create[0].endpoints[0].conditions, Some(expected));
}

#[test]
fn conditions_follow_readiness_and_deletion() {
    conditions(false, true, false, (true, true, false));
    conditions(false, false, false, (false, false, false));
    conditions(false, true, true, (false, true, true));
    conditions(false, false, true, (false, false, true));
    conditions(true, false, false, (true, false, false));
    conditions(true, true, true, (true, true, true));
    conditions(true, false, true, (true, false, true));
}

#[test]
fn an_endpoint_tells_where_its_pod_is() {
    let service = service(json!({ "clusterIP": "None" }));
    let pod = pod(1, |pod| {
        pod["spec"]["hostname"] = json!("db-0");
        pod["spec"]["subdomain"] = json!("web");
    });
    let plan = plan_for(&service, &[pod], &[]);
    let slice = serde_json::to_value(&plan.create[0]).unwrap();
    let expected = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": "web-", "namespace": "default",
            "labels": {
                "team": "x", "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": "web", "uid": "s", "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": ["10.244.0.2"], "hostname": "db-0", "nodeName": "n1", "zone": "z1",
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "namespace": "default", "name": "p1", "uid": "p1" },
        }],
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    });
    assert_eq!(slice, expected);
}

#[track_caller]
fn is_no_endpoint(edit: impl FnOnce(&mut Value)) {
    let plan = plan_for(&service(json!({})), &[pod(1, edit)], &[]);
    assert_eq!(plan.create[0].endpoints, []);
}

#[test]
fn pods_that_ended_or_have_no_address_or_other_labels_are_no_endpoints() {
    is_no_endpoint(|pod| pod["status"]["phase"] = json!("Succeeded"));
    is_no_endpoint(|pod| pod["status"]["phase"] = json!("Failed"));
    is_no_endpoint(|pod| pod["status"]["podIPs"] = json!([]));
    is_no_endpoint(|pod| pod["metadata"]["labels"] = json!({ "app": "other" }));
    is_no_endpoint(|pod| pod["status"]["podIPs"] = json!([{ "ip": "fd00::1" }]));
}

#[test]
fn each_family_has_slices_of_its_own() {
    let service = service(json!({ "ipFamilies": ["IPv6", "IPv4"] }));
    let pod = pod(1, |pod| {
        pod["status"]["podIPs"] = json!([{ "ip": "10.244.0.1" }, { "ip": "fd00::1" }])
    });
    let plan = plan_for(&service, &[pod], &[]);
    let slices: Vec<_> = plan
        .create
        .iter()
        .map(|s| (s.address_type.as_str(), s.endpoints[0].addresses[0].as_str()))
        .collect();
    assert_eq!(slices, [("IPv6", "fd00::1"), ("IPv4", "10.244.0.1")]);
}

#[test]
fn pods_whose_named_port_differs_are_in_slices_of_their_own() {
    let service = service(json!({ "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] }));
    let with_port = |number, port: i32| {
        pod(number, |pod| {
            let ports = json!([{ "name": "web", "containerPort": port }]);
            pod["spec"]["containers"] = json!([{ "name": "c", "ports": ports }]);
        })
    };
    let plan = plan_for(
        &service,
        &[with_port(1, 8080), with_port(2, 9090), with_port(3, 8080)],
        &[],
    );
    let slices: Vec<_> = plan
        .create
        .iter()
        .map(|s| (s.ports.as_ref().unwrap()[0].port, s.endpoints.len()))
        .collect();
    assert_eq!(slices, [(Some(8080), 2), (Some(9090), 1)]);
}

#[test]
fn a_service_without_pods_has_one_empty_slice_which_is_used_when_pods_come() {
    let service = service(json!({}));
    let empty = apply(&[], plan_for(&service, &[], &[]));
    assert_eq!(
        empty
            .iter()
            .map(|slice| slice.endpoints.len())
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(plan_for(&service, &[], &empty), Plan::default());
    let filled = plan_for(&service, &pods([1]), &empty);
    assert_eq!(
        (filled.create.len(), filled.update.len(), filled.delete.len()),
        (0, 1, 0)
    );
    let filled = apply(&empty, filled);
    let emptied = plan_for(&service, &[], &filled);
    assert_eq!(
        (emptied.create.len(), emptied.update.len(), emptied.delete.len()),
        (0, 1, 0)
    );
}

#[test]
fn slices_hold_at_most_a_hundred_and_one_change_touches_one_slice() {
    let service = service(json!({}));
    let slices = apply(&[], plan_for(&service, &pods(0..250), &[]));
    let sizes = |slices: &[Arc<EndpointSlice>]| slices.iter().map(|s| s.endpoints.len()).collect::<Vec<_>>();
    assert_eq!(sizes(&slices), [100, 100, 50]);

    let one_less = plan_for(&service, &pods((0..250).filter(|n| *n != 7)), &slices);
    assert_eq!(
        (
            one_less.create.len(),
            one_less.update.len(),
            one_less.delete.len()
        ),
        (0, 1, 0)
    );
    let slices = apply(&slices, one_less);
    assert_eq!(sizes(&slices), [99, 100, 50]);

    // The fullest with room takes the new one.
    let one_more = plan_for(&service, &pods((0..251).filter(|n| *n != 7)), &slices);
    assert_eq!(
        (
            one_more.create.len(),
            one_more.update.len(),
            one_more.delete.len()
        ),
        (0, 1, 0)
    );
    assert_eq!(sizes(&apply(&slices, one_more)), [100, 100, 50]);

    let few = plan_for(&service, &pods(0..3), &slices);
    assert_eq!((few.create.len(), few.update.len(), few.delete.len()), (0, 1, 2));
}

#[test]
fn slices_of_a_family_that_the_service_gave_up_are_deleted() {
    let dual = service(json!({ "ipFamilies": ["IPv4", "IPv6"] }));
    let slices = apply(&[], plan_for(&dual, &pods([1]), &[]));
    let single = plan_for(&service(json!({})), &pods([1]), &slices);
    let deleted: Vec<_> = single
        .delete
        .iter()
        .map(|slice| slice.address_type.as_str())
        .collect();
    assert_eq!(deleted, ["IPv6"]);
}

#[test]
fn the_same_pods_in_any_order_change_nothing() {
    let service = service(json!({}));
    let slices = apply(&[], plan_for(&service, &pods(0..120), &[]));
    assert_eq!(
        plan_for(&service, &pods((0..120).rev()), &slices),
        Plan::default()
    );
}

fn on_node(number: usize, node: &str) -> Arc<Pod> {
    pod(number, |pod| pod["spec"]["nodeName"] = json!(node))
}

/// The hints of a ready pod on n1, an unready one on n2, a ready one on n2, and one on n3, which is in no zone.
#[track_caller]
fn hints_are(distribution: Option<&str>, expected: Value) {
    let service = service(json!({ "trafficDistribution": distribution }));
    let unready = pod(2, |pod| {
        pod["spec"]["nodeName"] = json!("n2");
        pod["status"]["conditions"][0]["status"] = json!("False");
    });
    let pods = [on_node(1, "n1"), unready, on_node(3, "n2"), on_node(4, "n3")];
    let plan = plan_for(&service, &pods, &[]);
    let told: Vec<_> = plan.create[0]
        .endpoints
        .iter()
        .map(|endpoint| serde_json::to_value(&endpoint.hints).unwrap())
        .collect();
    assert_eq!(json!(told), expected, "{distribution:?}");
}

#[test]
fn ready_endpoints_are_for_the_clients_that_the_distribution_prefers() {
    let zone = |name: &str| json!({ "forZones": [{ "name": name }] });
    let both =
        |node: &str, zone: &str| json!({ "forNodes": [{ "name": node }], "forZones": [{ "name": zone }] });
    let same_zone = json!([zone("z1"), null, zone("z2"), null]);
    hints_are(None, json!([null, null, null, null]));
    hints_are(Some("PreferClose"), same_zone.clone());
    hints_are(Some("PreferSameZone"), same_zone);
    hints_are(
        Some("PreferSameNode"),
        json!([both("n1", "z1"), null, both("n2", "z2"), { "forNodes": [{ "name": "n3" }] }]),
    );
    hints_are(Some("PreferSomethingElse"), json!([null, null, null, null]));
}

#[test]
fn unready_endpoints_that_are_published_have_hints_as_well() {
    let service = service(json!({ "trafficDistribution": "PreferClose", "publishNotReadyAddresses": true }));
    let unready = pod(1, |pod| pod["status"]["conditions"][0]["status"] = json!("False"));
    let plan = plan_for(&service, &[unready], &[]);
    let hints = plan.create[0].endpoints[0].hints.as_ref().unwrap();
    assert_eq!(
        hints.for_zones,
        Some(vec![ForZone {
            name: "z1".to_owned()
        }])
    );
}

#[test]
fn an_annotation_that_asks_for_hints_outdoes_the_distribution() {
    for (key, mode, has_hints) in [
        ("service.kubernetes.io/topology-mode", "Auto", false),
        ("service.kubernetes.io/topology-aware-hints", "auto", false),
        ("service.kubernetes.io/topology-mode", "Disabled", true),
    ] {
        let mut service = service(json!({ "trafficDistribution": "PreferClose" }));
        service.metadata.annotations = Some([(key.to_owned(), mode.to_owned())].into());
        let plan = plan_for(&service, &pods([1]), &[]);
        assert_eq!(
            plan.create[0].endpoints[0].hints.is_some(),
            has_hints,
            "{key} {mode}"
        );
    }
}

#[test]
fn a_change_of_the_distribution_or_of_a_zone_is_written() {
    let plain = service(json!({}));
    let close = service(json!({ "trafficDistribution": "PreferClose" }));
    let slices = apply(&[], plan_for(&plain, &pods([1]), &[]));
    let hinted = apply(&slices, plan_for(&close, &pods([1]), &slices));
    assert!(hinted[0].endpoints[0].hints.is_some());
    assert_eq!(plan_for(&close, &pods([1]), &hinted), Plan::default());
    let bare = apply(&hinted, plan_for(&plain, &pods([1]), &hinted));
    assert_eq!(bare[0].endpoints, slices[0].endpoints);
    let moved = ServicePods::observe(&close, &pods([1]), &|_| Some("z9".to_owned()));
    let moved = plan(&close, &moved, &hinted, None);
    let zone = serde_json::to_value(&moved.update[0].endpoints[0]).unwrap();
    assert_eq!(
        (&zone["zone"], &zone["hints"]["forZones"][0]["name"]),
        (&json!("z9"), &json!("z9"))
    );
}

#[test]
fn a_slice_tells_when_what_it_says_came_about() {
    let time = |slice: &EndpointSlice| {
        let annotations = slice.metadata.annotations.clone().unwrap_or_default();
        annotations
            .get("endpoints.kubernetes.io/last-change-trigger-time")
            .cloned()
    };
    let service = service(json!({}));
    let slices = apply(
        &[],
        plan_at(&service, &pods([1]), &[], Some("2026-01-01T00:00:00Z")),
    );
    assert_eq!(time(&slices[0]).as_deref(), Some("2026-01-01T00:00:00Z"));
    let later = Some("2026-01-01T00:00:07.5Z");
    assert_eq!(plan_at(&service, &pods([1]), &slices, later), Plan::default());
    let slices = apply(&slices, plan_at(&service, &pods([1, 2]), &slices, later));
    assert_eq!(time(&slices[0]).as_deref(), later);
    let slices = apply(&slices, plan_at(&service, &pods([2]), &slices, None));
    assert_eq!(slices[0].metadata.annotations, None);
}

#[test]
fn a_pod_tells_when_it_became_ready_and_when_it_was_told_to_go() {
    let ready_at = |pod: &mut Value| {
        pod["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-01-01T00:00:10Z");
    };
    for (grace, end, expected) in [
        (None, None, "2026-01-01T00:00:10Z"),
        (Some(30), Some("2026-01-01T00:01:30Z"), "2026-01-01T00:01:00Z"),
        (Some(0), Some("2026-01-01T00:01:30Z"), "2026-01-01T00:01:30Z"),
        // It became unready after it had been told.
        (Some(30), Some("2026-01-01T00:00:35Z"), "2026-01-01T00:00:10Z"),
    ] {
        let pod = pod(1, |pod| {
            ready_at(pod);
            pod["metadata"]["deletionTimestamp"] = json!(end);
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        });
        assert_eq!(crate::pods::changed_at(&pod), expected.parse().ok(), "{end:?}");
    }
    assert_eq!(crate::pods::changed_at(&pod(1, |_| {})), None);
}

#[test]
fn a_named_port_is_found_by_its_protocol_as_well() {
    let protocols = ["TCP", "UDP", "SCTP"];
    let ports = |number: &dyn Fn(usize, &str) -> Value| -> Value {
        protocols
            .iter()
            .enumerate()
            .map(|(index, protocol)| number(index, protocol))
            .collect()
    };
    let service = service(json!({ "ports": ports(&|_, protocol| json!({
        "name": protocol.to_lowercase(), "protocol": protocol, "port": 53, "targetPort": "dns",
    })) }));
    let pod = pod(1, |pod| {
        let ports = ports(&|index, protocol| {
            json!({
                "name": "dns", "protocol": protocol, "containerPort": 5300 + index,
            })
        });
        pod["spec"]["containers"] = json!([{ "name": "c", "ports": ports }]);
    });
    let plan = plan_for(&service, &[pod], &[]);
    let told: Vec<_> = plan.create[0]
        .ports
        .iter()
        .flatten()
        .map(|port| (port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    assert_eq!(
        told,
        [
            (Some("sctp"), Some("SCTP"), Some(5302)),
            (Some("tcp"), Some("TCP"), Some(5300)),
            (Some("udp"), Some("UDP"), Some(5301)),
        ]
    );
}
