//! What a Node and ENIConfigs say, as rows, and followed on a fake API server.

use ::tests::directory::Directory;
use ::tests::fake_api::FakeApi;
use serde_json::json;

use super::*;

const KEY: &str = "k8s.amazonaws.com/eniConfig";

fn node(metadata: Value, unschedulable: Value, pods: Value) -> Value {
    let mut metadata = metadata;
    metadata["name"] = json!("node-1");
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": metadata,
        "spec": {"unschedulable": unschedulable}, "status": {"allocatable": {"pods": pods}},
    })
}

fn eni_config(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": name},
        "spec": spec,
    })
}

fn object(value: &Value) -> DynamicObject {
    serde_json::from_value(value.clone()).expect("an object")
}

fn listed(objects: &[Value]) -> Objects {
    let mut list = Objects::default();
    list.take(Event::Init);
    for value in objects {
        list.take(Event::InitApply(object(value)));
    }
    list.take(Event::InitDone);
    list
}

fn asked(max_pods: Option<u32>, is_custom: bool) -> VpcFacts {
    VpcFacts {
        node: "node-1".into(),
        max_pods,
        custom_networking: is_custom.then(|| CustomNetworking {
            annotation: "example.org/annotation".to_owned(),
            label: KEY.to_owned(),
        }),
        facts: watch::Sender::new(Facts::unread(max_pods)),
    }
}

#[test]
fn a_node_says_whether_pods_come_and_how_many() {
    let rows = [
        (None, json!(null), json!("110"), (Some(110), true)),
        (None, json!(true), json!("2k"), (Some(2000), false)),
        (Some(29), json!(false), json!("110"), (Some(29), true)),
        (None, json!("true"), json!(17), (Some(17), true)),
        (None, json!(true), json!("-1"), (None, false)),
        (None, json!(null), json!("5000000k"), (None, true)),
    ];
    for (max_pods, unschedulable, pods, (most, is_schedulable)) in rows {
        let own = node(json!({}), unschedulable, pods);
        let other = json!({"metadata": {"name": "other"}, "spec": {"unschedulable": !is_schedulable}});
        let known = Known {
            nodes: listed(&[other, own.clone()]),
            ..Known::default()
        };
        let expected = Facts {
            max_pods: most,
            is_schedulable,
            eni_config: Err(NoEniConfig::Unread),
        };
        assert_eq!(asked(max_pods, false).facts(&known), expected, "{own}");
    }
    let unknown = Known::default();
    assert_eq!(
        asked(Some(5), false).facts(&unknown),
        Facts::unread(Some(5)),
        "nothing is kept ready by what nobody knows"
    );
}

#[test]
fn an_eniconfig_is_the_one_that_the_node_names_and_no_other() {
    let spec = |subnet: &str| json!({"subnet": subnet, "securityGroups": ["sg-1", "sg-2"]});
    let configs = [
        eni_config("a", spec("subnet-a")),
        eni_config("b", json!({"subnet": "subnet-b", "securityGroups": null})),
        eni_config("none", json!({"securityGroups": ["sg-1"]})),
        eni_config("number", json!({"subnet": 5})),
        eni_config("empty", json!({"subnet": ""})),
        json!({"apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": "bare"}}),
    ];
    let config = |name: &str, groups: &[&str]| {
        Ok(EniConfig {
            name: name.to_owned(),
            subnet: SubnetId(format!("subnet-{name}")),
            groups: groups
                .iter()
                .map(|group| SecurityGroupId((*group).to_owned()))
                .collect(),
        })
    };
    let unusable = |name: &str, why: &str| {
        let why = why.to_owned();
        Err(NoEniConfig::Unusable {
            name: name.to_owned(),
            why,
        })
    };
    let missing = |name: &str, named_by: NamedBy| {
        let name = name.to_owned();
        Err(NoEniConfig::Missing { name, named_by })
    };
    let label = |name: &str| json!({"labels": {KEY: name}});
    let rows = [
        (label("a"), config("a", &["sg-1", "sg-2"])),
        (label("b"), config("b", &[])),
        (
            json!({"labels": {KEY: "a"}, "annotations": {"example.org/annotation": "b"}}),
            config("b", &[]),
        ),
        (
            json!({"labels": {EXTERNAL: "a", KEY: "b"}, "annotations": {"example.org/annotation": "b"}}),
            config("a", &["sg-1", "sg-2"]),
        ),
        (
            json!({"annotations": {KEY: "a"}}),
            missing(DEFAULT, NamedBy::Nobody(KEY.to_owned())),
        ),
        (label("c"), missing("c", NamedBy::Label(KEY.to_owned()))),
        (
            json!({"annotations": {"example.org/annotation": ""}}),
            missing("", NamedBy::Annotation("example.org/annotation".to_owned())),
        ),
        (label("none"), unusable("none", "spec: missing field `subnet`")),
        (
            label("number"),
            unusable("number", "spec: invalid type: integer `5`, expected a string"),
        ),
        (
            label("empty"),
            unusable("empty", "spec.subnet: \"\" is no subnet's id"),
        ),
        (
            label("bare"),
            unusable("bare", "spec: invalid type: null, expected struct Spec"),
        ),
    ];
    for (metadata, expected) in rows {
        let row = metadata.to_string();
        let known = Known {
            nodes: listed(&[node(metadata, json!(null), json!("110"))]),
            eni_configs: listed(&configs),
        };
        assert_eq!(asked(None, true).facts(&known).eni_config, expected, "{row}");
    }
    let nowhere = Known {
        nodes: listed(&[]),
        eni_configs: listed(&configs),
    };
    assert_eq!(
        asked(None, true).facts(&nowhere).eni_config,
        Err(NoEniConfig::NoNode("node-1".to_owned()))
    );
}

/// Asks a fake API server as long as it lives; the outcomes that were told.
async fn asking(wanted: VpcFacts, api: &FakeApi, see: impl AsyncFnOnce(watch::Receiver<Option<String>>)) {
    let directory = Directory::new("vpc-facts");
    let kubeconfig = directory.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig).expect("writable");
    let source = ApiSource {
        credentials: Some(kubeconfig).into(),
        ..ApiSource::default()
    };
    let (outcome, told) = watch::channel(None);
    let keep = wanted.keep(&source, |result| {
        outcome.send_replace(
            result
                .err()
                .map(str::to_owned)
                .or_else(|| Some("works".to_owned())),
        );
    });
    tokio::select! {
        () = keep => panic!("it asks until it is cancelled"),
        () = see(told) => {}
    }
}

async fn until<T: Clone>(seen: &mut watch::Receiver<T>, is: impl Fn(&T) -> bool) -> T {
    let found = tokio::time::timeout(Duration::from_secs(30), seen.wait_for(is)).await;
    found.expect("within half a minute").expect("it goes on").clone()
}

#[tokio::test]
async fn what_the_cluster_says_is_followed_and_stays_known_while_it_says_nothing() {
    let api = FakeApi::start().expect("loopback is there");
    let own = |unschedulable| node(json!({"labels": {KEY: "a"}}), json!(unschedulable), json!("58"));
    api.put(own(false));
    let wanted = asked(None, true);
    let mut facts = wanted.facts.subscribe();
    asking(wanted, &api, async |mut told| {
        let missing = until(&mut facts, |facts| {
            facts.max_pods == Some(58) && facts.eni_config != Err(NoEniConfig::Unread)
        })
        .await;
        let named_by = NamedBy::Label(KEY.to_owned());
        let name = "a".to_owned();
        assert_eq!(missing.eni_config, Err(NoEniConfig::Missing { name, named_by }));
        api.put(eni_config("a", json!({"subnet": "subnet-a"})));
        until(&mut facts, |facts| facts.eni_config.is_ok()).await;
        api.put(own(true));
        let cordoned = until(&mut facts, |facts| !facts.is_schedulable).await;
        assert_eq!(cordoned.max_pods, Some(58));
        until(&mut told, |told| told.as_deref() == Some("works")).await;
        api.go_down();
        until(&mut told, |told| {
            told.as_deref().is_some_and(|told| told != "works")
        })
        .await;
        assert_eq!(*facts.borrow(), cordoned);
        api.come_up();
        api.put(own(false));
        until(&mut facts, |facts| facts.is_schedulable).await;
        until(&mut told, |told| told.as_deref() == Some("works")).await;
    })
    .await;
}

#[tokio::test]
async fn eniconfigs_are_asked_for_under_custom_networking_alone() {
    for (is_custom, trouble) in [(false, None), (true, Some("watch ENIConfigs"))] {
        let api = FakeApi::start().expect("loopback is there");
        api.put(node(json!({}), json!(true), json!("58")));
        api.behave(|behaviour| behaviour.absent = vec!["eniconfigs"]);
        let wanted = asked(None, is_custom);
        let mut facts = wanted.facts.subscribe();
        asking(wanted, &api, async |mut told| {
            // The Node is read, whatever becomes of the others.
            let facts = until(&mut facts, |facts| facts.max_pods == Some(58)).await;
            assert_eq!(facts.eni_config, Err(NoEniConfig::Unread));
            let is_told = |told: &Option<String>| match trouble {
                None => told.as_deref() == Some("works"),
                Some(trouble) => told.as_ref().is_some_and(|told| told.contains(trouble)),
            };
            until(&mut told, is_told).await;
        })
        .await;
        let asked = api
            .requests()
            .iter()
            .any(|request| request.contains("eniconfigs"));
        assert_eq!(asked, is_custom);
    }
}
