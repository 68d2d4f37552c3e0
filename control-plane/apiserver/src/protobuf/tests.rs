use std::collections::HashSet;

use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use super::*;
use crate::object::Fields as _;
use crate::resources::{Registry, Resource, unknown_fields};

const LIMIT: usize = 10_000;

/// A field as protobuf writes it; ours are short.
fn delimited(number: u32, bytes: &[u8]) -> Vec<u8> {
    [
        varint(u64::from(number) << 3 | 2),
        varint(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

fn number(number: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(number) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f | 0x80).expect("one byte"));
        value >>= 7;
    }
    bytes.push(u8::try_from(value).expect("one byte"));
    bytes
}

/// A message with all its fields set, in the order of their numbers.
fn sample(message: usize) -> Vec<u8> {
    let fields = Messages::global().of(message).iter();
    fields.flat_map(sample_field).collect()
}

fn sample_field(field: &Field) -> Vec<u8> {
    if let Shape::Inline(inner) = field.shape {
        return delimited(field.number, &sample(inner));
    }
    if field.shape == Shape::Map {
        let entry = [delimited(1, b"k"), sample_value(2, field.kind)].concat();
        return delimited(field.number, &entry);
    }
    sample_value(field.number, field.kind)
}

fn sample_value(at: u32, kind: Kind) -> Vec<u8> {
    let text = |field: u32| delimited(at, &delimited(field, b"1"));
    match kind {
        Kind::Bool | Kind::Int => number(at, 1),
        Kind::String | Kind::Bytes => delimited(at, b"1"),
        Kind::Time | Kind::MicroTime => delimited(at, &number(1, 1_700_000_000)),
        Kind::Texts | Kind::Quantity | Kind::Raw => text(1),
        Kind::IntOrString => delimited(at, &[number(1, 1), delimited(3, b"1")].concat()),
        Kind::Message(inner) => delimited(at, &sample(inner)),
    }
}

/// What clients send objects of.
fn written() -> impl Iterator<Item = &'static Resource> {
    let rows = Registry::global().rows().iter();
    rows.filter(|row| row.verbs().contains(&"create"))
}

/// What is exchanged: every row of the table of resources, and what is sent below objects and to delete them.
fn kinds() -> Vec<(String, &'static str)> {
    let rows = written();
    let mut kinds: Vec<(String, &str)> = rows.map(|row| (row.api_version(), row.kind)).collect();
    kinds.extend(
        [
            ("v1", "Binding"),
            ("v1", "DeleteOptions"),
            ("meta.k8s.io/v1", "DeleteOptions"),
            ("policy/v1", "Eviction"),
            ("autoscaling/v1", "Scale"),
            ("authentication.k8s.io/v1", "TokenRequest"),
        ]
        .map(|(version, kind)| (version.to_owned(), kind)),
    );
    kinds
}

fn message_of(api_version: &str, kind: &str) -> usize {
    let found = Messages::global().of_kind(api_version, kind);
    found.unwrap_or_else(|| panic!("messages.txt has no {api_version} {kind}"))
}

fn meta(api_version: &str, kind: &str) -> TypeMeta {
    TypeMeta {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    }
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [
        delimited(1, api_version.as_bytes()),
        delimited(2, kind.as_bytes()),
    ]
    .concat();
    [MAGIC, &delimited(1, &meta), &delimited(2, raw)].concat()
}

fn read(body: &[u8]) -> Result<Value, ProtobufError> {
    let (meta, raw) = open(body)?;
    to_json(&meta, raw, LIMIT)
}

#[test]
fn every_field_of_every_kind_is_one_that_its_rust_type_knows() {
    for row in written() {
        let version = row.api_version();
        let raw = sample(message_of(&version, row.kind));
        let given = to_json(&meta(&version, row.kind), &raw, LIMIT).expect("a sample is well formed");
        let kept = (row.decode)(given.clone()).unwrap_or_else(|why| panic!("{version} {}: {why}", row.kind));
        assert_eq!(
            unknown_fields(&given, &kept),
            Vec::<String>::new(),
            "{version} {}",
            row.kind
        );
    }
}

/// Numbers and wire types, by an encoder that was made from Kubernetes' .proto files: what it does not know it drops.
#[test]
fn every_message_is_the_one_of_kubernetes_proto_files() {
    use k8s_pb::api::{
        apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
        autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling, batch::v1 as batch,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling,
        storage::v1 as storage,
    };
    use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;

    let mut seen = HashSet::new();
    macro_rules! check {
        ($($version:literal: $($message:ident)::+;)*) => {$(
            let kind = [$(stringify!($message)),+][1];
            let bytes = sample(message_of($version, kind));
            let decoded = <$($message)::+>::decode(bytes.as_slice()).expect("it decodes");
            assert_eq!(decoded.encode_to_vec(), bytes, "{} {kind}", $version);
            seen.insert(($version.to_owned(), kind));
        )*};
    }
    check! {
        "apps/v1": apps::ControllerRevision;
        "apps/v1": apps::DaemonSet;
        "apps/v1": apps::Deployment;
        "apps/v1": apps::ReplicaSet;
        "apps/v1": apps::StatefulSet;
        "authentication.k8s.io/v1": authentication::SelfSubjectReview;
        "authentication.k8s.io/v1": authentication::TokenRequest;
        "authentication.k8s.io/v1": authentication::TokenReview;
        "authorization.k8s.io/v1": authorization::LocalSubjectAccessReview;
        "authorization.k8s.io/v1": authorization::SelfSubjectAccessReview;
        "authorization.k8s.io/v1": authorization::SelfSubjectRulesReview;
        "authorization.k8s.io/v1": authorization::SubjectAccessReview;
        "autoscaling/v1": autoscaling_v1::HorizontalPodAutoscaler;
        "autoscaling/v1": autoscaling_v1::Scale;
        "autoscaling/v2": autoscaling::HorizontalPodAutoscaler;
        "batch/v1": batch::CronJob;
        "batch/v1": batch::Job;
        "batch/v1beta1": batch::CronJob;
        "coordination.k8s.io/v1": coordination::Lease;
        "discovery.k8s.io/v1": discovery::EndpointSlice;
        "events.k8s.io/v1": events::Event;
        "networking.k8s.io/v1": networking::IPAddress;
        "networking.k8s.io/v1": networking::Ingress;
        "networking.k8s.io/v1": networking::IngressClass;
        "networking.k8s.io/v1": networking::NetworkPolicy;
        "networking.k8s.io/v1": networking::ServiceCIDR;
        "policy/v1": policy::Eviction;
        "policy/v1": policy::PodDisruptionBudget;
        "policy/v1beta1": policy::PodDisruptionBudget;
        "rbac.authorization.k8s.io/v1": rbac::ClusterRole;
        "rbac.authorization.k8s.io/v1": rbac::ClusterRoleBinding;
        "rbac.authorization.k8s.io/v1": rbac::Role;
        "rbac.authorization.k8s.io/v1": rbac::RoleBinding;
        "scheduling.k8s.io/v1": scheduling::PriorityClass;
        "storage.k8s.io/v1": storage::StorageClass;
        "v1": core::Binding;
        "v1": core::ConfigMap;
        "v1": core::Endpoints;
        "v1": core::Event;
        "v1": core::LimitRange;
        "v1": core::Namespace;
        "v1": core::Node;
        "v1": core::PersistentVolume;
        "v1": core::PersistentVolumeClaim;
        "v1": core::Pod;
        "v1": core::PodTemplate;
        "v1": core::ReplicationController;
        "v1": core::ResourceQuota;
        "v1": core::Secret;
        "v1": core::Service;
        "v1": core::ServiceAccount;
        "v1": meta::DeleteOptions;
        "meta.k8s.io/v1": meta::DeleteOptions;
    }
    let missing: Vec<_> = kinds().into_iter().filter(|kind| !seen.contains(kind)).collect();
    assert_eq!(missing, []);
}

/// So that the depth of what is read has a bound that no body can pass.
#[test]
fn no_message_contains_itself() {
    fn visit(message: usize, above: &mut Vec<usize>) {
        assert!(!above.contains(&message), "a message contains itself: {above:?}");
        above.push(message);
        for field in Messages::global().of(message) {
            match (field.shape, field.kind) {
                (Shape::Inline(inner), _) | (_, Kind::Message(inner)) => visit(inner, above),
                _ => {}
            }
        }
        above.pop();
    }
    for (version, kind) in kinds() {
        visit(message_of(&version, kind), &mut Vec::new());
    }
}

#[test]
fn a_zero_is_kept_only_where_go_tells_it_from_nothing() {
    use k8s_pb::api::{apps::v1 as apps, apps::v1::DeploymentSpec, core::v1 as core};
    let container = core::Container {
        name: Some("a".to_owned()),
        image: Some(String::new()),
        stdin: Some(false),
        ports: vec![core::ContainerPort {
            container_port: Some(80),
            host_port: Some(0),
            ..core::ContainerPort::default()
        }],
        resources: Some(core::ResourceRequirements::default()),
        security_context: Some(core::SecurityContext {
            run_as_user: Some(0),
            privileged: Some(false),
            ..core::SecurityContext::default()
        }),
        ..core::Container::default()
    };
    let volume = core::Volume {
        name: Some("v".to_owned()),
        volume_source: Some(core::VolumeSource {
            empty_dir: Some(core::EmptyDirVolumeSource::default()),
            ..core::VolumeSource::default()
        }),
    };
    let pod = core::PodSpec {
        containers: vec![container],
        volumes: vec![volume],
        host_network: Some(false),
        termination_grace_period_seconds: Some(0),
        ..core::PodSpec::default()
    };
    let template = core::PodTemplateSpec {
        spec: Some(pod),
        ..core::PodTemplateSpec::default()
    };
    let deployment = apps::Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(0),
            min_ready_seconds: Some(0),
            paused: Some(false),
            strategy: Some(apps::DeploymentStrategy::default()),
            template: Some(template),
            ..DeploymentSpec::default()
        }),
        status: Some(apps::DeploymentStatus::default()),
        ..apps::Deployment::default()
    };
    let found = read(&body("apps/v1", "Deployment", &deployment.encode_to_vec()));
    let container = json!({
        "name": "a", "ports": [{ "containerPort": 80 }], "resources": {},
        "securityContext": { "runAsUser": 0, "privileged": false },
    });
    let pod = json!({
        "terminationGracePeriodSeconds": 0, "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [container],
    });
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "status": {},
        "spec": { "replicas": 0, "strategy": {}, "template": { "spec": pod } },
    });
    assert_eq!(found, Ok(expected));
}

#[test]
fn values_of_their_own_form_are_written_as_json_writes_them() {
    let time =
        |at: u32, seconds: u64, nanos: u64| delimited(at, &[number(1, seconds), number(2, nanos)].concat());
    let lease = delimited(2, &[time(3, 1_700_000_000, 123_456_789), number(2, 40)].concat());
    let metadata = delimited(1, &[delimited(1, b"a"), time(8, 1_700_000_000, 999)].concat());
    let found = read(&body(
        "coordination.k8s.io/v1",
        "Lease",
        &[metadata, lease].concat(),
    ));
    assert_eq!(
        found,
        Ok(json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "a", "creationTimestamp": "2023-11-14T22:13:20Z" },
            "spec": { "leaseDurationSeconds": 40, "acquireTime": "2023-11-14T22:13:20.123456Z" },
        }))
    );

    let entry = |key: &[u8], value: &[u8]| delimited(2, &[delimited(1, key), delimited(2, value)].concat());
    let secret = [
        entry(b"a", b"\x00\xff"),
        entry(b"empty", b""),
        delimited(2, &delimited(1, b"absent")),
    ]
    .concat();
    let found = read(&body("v1", "Secret", &secret));
    assert_eq!(
        found,
        Ok(json!({ "apiVersion": "v1", "kind": "Secret",
            "data": { "a": "AP8=", "empty": "", "absent": "" },
        }))
    );

    // A negative number, a list of numbers packed and one by one, a field that comes twice, and two that are unknown.
    let groups = [delimited(4, &[1, 2]), number(4, 3)].concat();
    let context = delimited(14, &[groups, number(2, u64::MAX)].concat());
    let again = delimited(14, &number(2, 7));
    let unknown = [vec![0xa3, 0x7f, 0x08, 0x01, 0xa4, 0x7f], delimited(2000, b"x")].concat();
    let pod = delimited(2, &[context, again, unknown].concat());
    let found = read(&body("v1", "Pod", &pod));
    assert_eq!(
        found,
        Ok(json!({ "apiVersion": "v1", "kind": "Pod",
            "spec": { "securityContext": { "supplementalGroups": [1, 2, 3], "runAsUser": 7 } },
        }))
    );
}

#[track_caller]
fn check_refused(body: &[u8], expected: &str) {
    assert_eq!(
        read(body).map_err(|error| error.to_string()),
        Err(expected.to_owned())
    );
}

#[test]
fn what_is_malformed_is_refused_in_the_words_of_go() {
    let pod = |raw: &[u8]| body("v1", "Pod", raw);
    check_refused(
        b"{}",
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
    );
    check_refused(b"k8s\0", "Object 'Kind' is missing in the envelope");
    check_refused(b"k8s\0\x0a\x05\x0a", "unexpected EOF");
    check_refused(
        &body("v1", "Nothing", b""),
        "no kind \"Nothing\" is registered for version \"v1\" in scheme",
    );
    check_refused(&pod(&[0x0a, 0x7f]), "unexpected EOF");
    check_refused(&pod(&[0x0a, 0x80]), "unexpected EOF");
    check_refused(&pod(&[0xff; 10]), "proto: integer overflow");
    let negative = [&[0x0a][..], &varint(u64::MAX)].concat();
    check_refused(
        &pod(&negative),
        "proto: negative length found during unmarshaling",
    );
    check_refused(&pod(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f]), "unexpected EOF");
    check_refused(&pod(&[0x00]), "proto: illegal tag 0");
    check_refused(&pod(&[0x0f]), "proto: illegal wireType 7");
    check_refused(&pod(&[0x0c]), "proto: unexpected end of group");
    check_refused(&pod(&[0x9b, 0x7f].repeat(100_000)), "unexpected EOF");
    check_refused(
        &pod(&number(1, 5)),
        "proto: wrong wireType = 0 for field metadata",
    );
    check_refused(
        &pod(&[0x0d, 0, 0, 0, 0]),
        "proto: wrong wireType = 5 for field metadata",
    );
    let late = delimited(1, &delimited(8, &number(1, 1 << 60)));
    check_refused(
        &pod(&late),
        "proto: field creationTimestamp: year outside of range [0,9999]",
    );
    let containers = delimited(2, &delimited(2, b"").repeat(LIMIT + 1));
    check_refused(&pod(&containers), "proto: too many values");
}

/// Bodies cut, overwritten and stretched at random places: an object of bounded size or an error, never a panic.
#[test]
fn noise_makes_bounded_objects_or_errors() {
    fn values(value: &Value) -> usize {
        match value {
            Value::Array(items) => items.iter().map(values).sum::<usize>() + 1,
            Value::Object(fields) => fields.values().map(values).sum::<usize>() + 1,
            _ => 1,
        }
    }
    let mut noise = StdRng::seed_from_u64(6);
    let limit = 2_000;
    let (mut good, mut bad) = (0, 0);
    for (version, kind) in kinds() {
        let whole = body(&version, kind, &sample(message_of(&version, kind)));
        for _ in 0..400 {
            let mut hostile = whole.clone();
            for _ in 0..noise.random_range(1..4) {
                let at = noise.random_range(0..hostile.len());
                match noise.random_range(0..4) {
                    0 => hostile.truncate(at.max(1)),
                    1 => hostile[at] = noise.random(),
                    2 => hostile[at] ^= 1 << noise.random_range(0..8),
                    _ => {
                        let copy = hostile[at..].to_vec();
                        hostile.extend(copy);
                    }
                }
            }
            let read = open(&hostile).and_then(|(meta, raw)| to_json(&meta, raw, limit));
            match read {
                Ok(object) => {
                    // Lists, maps and what stands at the top are not counted against the limit.
                    assert!(values(&object) <= 2 * limit, "{version} {kind}");
                    assert!(!object.text("kind").is_empty());
                    good += 1;
                }
                Err(_) => bad += 1,
            }
        }
    }
    assert!(
        good > 1_000 && bad > 1_000,
        "{good} read, {bad} refused: the noise tries one side only"
    );
}
