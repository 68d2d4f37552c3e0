use super::file::save;
use super::trim::slim;
use super::*;
use crate::samples;
use model::{Endpoint, EndpointSlice, Extras, Namespace};

fn namespace(name: &str) -> Message {
    Message::Change(Change::Namespace(Namespace { name: name.into() }))
}

#[test]
fn what_was_known_stays_until_the_next_snapshot_is_complete() {
    let begin = || Message::Begin {
        version: VERSION,
        hears: false,
    };
    let mut intake = Intake::new(slim);
    let mut names = Vec::new();
    for message in [
        begin(),
        namespace("a"),
        Message::End,
        begin(),
        namespace("b"),
        Message::End,
        namespace("c"),
    ] {
        intake.take(message).expect("message");
        let known: Vec<&str> = intake
            .current
            .namespaces
            .iter()
            .map(|(name, _)| name.as_ref())
            .collect();
        names.push(known.join(","));
    }
    assert_eq!(&names[..6], ["", "", "a", "a", "a", "b"]);
    assert_eq!(intake.current.namespaces.len(), 2);
}

#[test]
fn a_feed_that_breaks_the_protocol_is_refused() {
    let mut intake = Intake::new(slim);
    let newer = intake.take(Message::Begin {
        version: VERSION + 1,
        hears: false,
    });
    assert!(matches!(newer, Err(FeedError::Version { .. })), "{newer:?}");
    for message in [Message::End, namespace("a")] {
        let refused = Intake::new(slim).take(message);
        assert!(matches!(refused, Err(FeedError::NoBegin)), "{refused:?}");
    }
    assert!(matches!(
        message("{\"nonsense\": 1}", 3),
        Err(FeedError::Malformed { line: 3, .. })
    ));
}

#[test]
fn what_is_never_read_is_taken_off_and_pods_keep_their_names_where_endpoints_are_called_by_these() {
    let listed = [
        ("10.1.0.3", None, Some("c")),
        ("!10.1.0.4", None, Some("d")),
        ("10.1.0.1", Some("a"), None),
    ];
    let slice = |endpoints: &[_]| samples::slice("a", "s-1", "s", &[("http", 80)], endpoints);
    let bare = slice(&listed);
    let endpoints = bare.endpoints.iter().map(|endpoint| {
        let extras = Extras {
            hostname: endpoint.hostname().map(Box::from),
            hinted_zones: vec!["zone-1".into()],
            hinted_nodes: Vec::new(),
        };
        Endpoint {
            node: Some("node-1".into()),
            zone: Some("zone-1".into()),
            extras: extras.some(),
            ..endpoint.into()
        }
    });
    let full = EndpointSlice {
        endpoints: endpoints.collect(),
        ..bare.clone()
    };
    let agent = || Objects::Agent("/none".into());
    let first = ("10.1.0.1", Some("a"), None);
    for (objects, expected) in [
        (agent(), [first, ("10.1.0.3", None, None)]),
        (agent().with_pod_names(), [first, ("10.1.0.3", None, Some("c"))]),
    ] {
        let mut change = Change::EndpointSlice(full.clone());
        trim_of(&objects)(&mut change);
        assert_eq!(change, Change::EndpointSlice(slice(&expected)), "{objects:?}");
    }
}

#[test]
fn a_saved_snapshot_is_read_back_and_a_cut_one_is_not() {
    let folder = std::env::temp_dir().join(format!("cwt-dns-feed-{}", std::process::id()));
    let path = folder.join("dns.snapshot");
    let mut snapshot = Snapshot::default();
    for mut change in samples::changes() {
        slim(&mut change);
        snapshot.apply(change);
    }
    assert!(matches!(load(&path, slim), Ok(None)));
    save(&path, &snapshot).expect("saved");
    let (loaded, _) = load(&path, slim).expect("loaded").expect("there");
    assert_eq!(loaded, snapshot);
    assert!(loaded.is_synced(Kind::Service));

    let text = std::fs::read_to_string(&path).expect("read");
    let cut = text.strip_suffix("\"end\"\n").expect("ends with the end");
    std::fs::write(&path, cut).expect("written");
    assert!(matches!(load(&path, slim), Err(FeedError::Incomplete)));

    for name in ["dns.snapshot.new", "snapshot", "notes.txt"] {
        std::fs::write(folder.join(name), "").expect("written");
    }
    assert_eq!(forget(&folder).expect("readable"), 2);
    let left = std::fs::read_dir(&folder).expect("readable").flatten();
    let left: BTreeSet<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, BTreeSet::from(["snapshot".into(), "notes.txt".into()]));
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_eq!(forget(&folder).expect("nothing"), 0);
}

#[test]
fn who_takes_over_begins_with_what_the_other_knows_and_keeps_none_of_it_that_is_gone() {
    let state = std::env::temp_dir().join(format!("cwt-dns-taken-{}", std::process::id()));
    let follower = || Follower::new(&Objects::Agent("/none".into()), state.clone(), None).expect("an agent");
    let (mut running, mut next) = (follower(), follower());
    next.take_over(&running.source());
    assert!(!next.source().is_synced(), "there is nothing to take over yet");
    let mut snapshot = samples::snapshot();
    running.publish_fresh(&snapshot);
    next.take_over(&running.source());
    let known = next.source().table.load_full();
    assert!(known.synced && known.service(b"testns", b"svc1").is_some());
    snapshot.apply(Change::DeleteService(model::ObjectName::new("testns", "svc1")));
    next.publish_fresh(&snapshot);
    let table = next.source().table.load_full();
    assert!(table.synced && table.service(b"testns", b"svc1").is_none());
    assert_eq!(table.service_count() + 1, known.service_count());
}

#[test]
fn changes_of_headless_services_are_measured_from_what_the_feed_tells_and_from_the_beginning_on() {
    let at = |time: Duration, mut slice: model::EndpointSlice| {
        slice.last_change = Some(UnixTime(time));
        let told = serde_json::to_string(&Change::EndpointSlice(slice)).expect("told");
        serde_json::from_str::<Change>(&told).expect("read")
    };
    let since_epoch = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let (long_ago, soon) = (
        Duration::from_millis(5250),
        since_epoch() + Duration::from_secs(60),
    );
    let slice = |name, service, address| samples::slice("a", name, service, &[], &[(address, None, None)]);
    let older = [
        Change::Service(samples::headless("a", "h", &[])),
        Change::Service(samples::cluster_ip("a", "c", &["10.0.0.1"], &[])),
    ];
    let newer = [
        at(long_ago, slice("h-1", "h", "10.1.0.1")),
        at(soon, slice("h-2", "h", "10.1.0.2")),
        at(soon, slice("c-1", "c", "10.1.0.3")),
        Change::EndpointSlice(slice("h-3", "h", "10.1.0.4")),
    ];
    let mut snapshot = Snapshot::default();
    for change in older {
        snapshot.apply(change);
    }
    let before = snapshot.clone();
    for change in newer {
        snapshot.apply(change);
    }
    let changes = headless_changes(&before, &snapshot);
    let millis = |time: Duration| UnixTime(Duration::from_millis(time.as_millis() as u64));
    assert_eq!(changes, [millis(long_ago), millis(soon)]);
    assert_eq!(headless_changes(&snapshot, &snapshot), []);

    let state = std::env::temp_dir().join(format!("cwt-dns-none-{}", std::process::id()));
    let follower = Follower::new(&Objects::Agent("/none".into()), state, None).expect("no API server");
    follower.note_programmed(&changes);
    let mut text = crate::metrics::Exposition::default();
    text.histograms("took", "", [&follower.source.programming].into_iter());
    let first = text.text.lines().next();
    assert_eq!(first, Some("took_bucket{le=\"0.001\"} 1"), "{}", text.text);
    assert!(text.text.ends_with("took_count 1\n"), "{}", text.text);
}
