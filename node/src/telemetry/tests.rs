//! Spans, from where they are made to a collector.

use std::time::Duration;

use serde_json::{Value, json};
use tests::collector::Collector;
use tests::directory::Directory;
use tests::fake_api::Authority;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::info_span;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, registry};

use super::{Export, TARGET, Traces, Way, channel, only_traces};

/// Makes spans where `make` makes them.
fn traced(make: impl FnOnce()) -> Traces {
    let (recorder, traces) = channel();
    let subscriber = registry().with(recorder.with_filter(only_traces()));
    tracing::subscriber::with_default(subscriber, make);
    traces
}

fn two_changes() {
    let way = Way::begin();
    let change = way.published(3);
    {
        let program = info_span!(target: TARGET, parent: &change, "program", services = 2_u64, error = Empty);
        program.in_scope(|| drop(info_span!(target: TARGET, "plan")));
        info_span!("of somebody else's").in_scope(|| drop(info_span!(target: TARGET, "alone")));
        program.record("error", "the kernel refused");
    }
    drop(change);
    drop(Way::begin());
}

fn export_to(collector: &Collector) -> Export {
    Export {
        url: format!("{}/v1/traces", collector.url()).parse().expect("a URL"),
        ca_file: None,
        node: "node-1".to_owned(),
    }
}

/// Exports all spans and ends.
async fn export(traces: &Traces, collector: &Collector) -> Vec<String> {
    export_by(traces, collector, export_to(collector)).await
}

async fn export_by(traces: &Traces, collector: &Collector, export: Export) -> Vec<String> {
    let told = std::sync::Mutex::new(Vec::new());
    let shutdown = CancellationToken::new();
    let export = traces.export(
        export,
        |outcome| {
            let outcome = outcome.map_or_else(str::to_owned, |()| "works".to_owned());
            told.lock().expect("nobody panics").push(outcome);
        },
        shutdown.clone(),
    );
    let seen = async {
        collector.until("the spans", |spans| spans.len() == 7).await;
        shutdown.cancel();
    };
    let (ended, ()) = tokio::join!(export, seen);
    ended.expect("it began");
    told.into_inner().expect("nobody panics")
}

fn attribute(span: &Value, key: &str) -> Value {
    let attributes = span["attributes"].as_array().into_iter().flatten();
    let mut values = attributes.filter(|attribute| attribute["key"] == key);
    values
        .next()
        .map(|attribute| attribute["value"].clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn spans_reach_the_collector_with_their_parents_and_fields() {
    let collector = Collector::start().expect("loopback is there");
    let traces = traced(two_changes);
    assert_eq!(export(&traces, &collector).await, ["works", "works"]);
    let spans = collector.spans();
    let of = |name: &str| spans.iter().find(|span| span["name"] == name).expect("sent");
    let [change, watch, program, plan, alone] = ["change", "watch", "program", "plan", "alone"].map(of);
    for (child, parent) in [(watch, change), (program, change), (plan, program)] {
        assert_eq!(child["parentSpanId"], parent["spanId"], "{child}");
        assert_eq!(child["traceId"], parent["traceId"], "{child}");
        let time = |span: &Value, key: &str| span[key].as_str().and_then(|time| time.parse::<u128>().ok());
        let start = "startTimeUnixNano";
        assert!(time(parent, start) <= time(child, start), "{child}");
        assert!(time(child, start) <= time(child, "endTimeUnixNano"), "{child}");
    }
    for root in [change, alone] {
        assert_eq!(root["parentSpanId"], "", "{root}");
    }
    assert_eq!(
        attribute(watch, "observations"),
        serde_json::json!({"intValue": "3"})
    );
    assert_eq!(
        attribute(program, "services"),
        serde_json::json!({"intValue": "2"})
    );
    assert_eq!(
        program["status"],
        serde_json::json!({"code": 2, "message": "the kernel refused"})
    );
    let resource = &collector.requests()[0]["resourceSpans"][0]["resource"];
    assert_eq!(
        attribute(resource, "k8s.node.name"),
        serde_json::json!({"stringValue": "node-1"})
    );
    let changes = spans.iter().filter(|span| span["name"] == "change");
    let mut traces: Vec<_> = changes.map(|span| span["traceId"].to_string()).collect();
    traces.dedup();
    assert_eq!(traces.len(), 2, "each change is a trace of its own");
}

#[tokio::test]
async fn a_collector_that_is_overloaded_is_asked_again_and_nothing_is_lost() {
    let collector = Collector::start().expect("loopback is there");
    collector.fail_next(&[503, 429]);
    let traces = traced(two_changes);
    let told = export(&traces, &collector).await;
    let (answers, failures): (Vec<_>, Vec<_>) = told.into_iter().partition(|outcome| outcome == "works");
    assert_eq!((answers.len(), failures.len()), (2, 2), "{failures:?}");
    assert!(
        failures[0].contains("503") && failures[1].contains("429"),
        "{failures:?}"
    );
    assert_eq!(collector.spans().len(), 7);
    assert_eq!(traces.dropped(), 0);
}

#[tokio::test]
async fn spans_that_the_collector_leaves_out_are_counted_and_not_sent_again() {
    let message = "no room for more of this kind";
    let partial =
        |rejected: Value| json!({"partialSuccess": {"rejectedSpans": rejected, "errorMessage": message}});
    let rows = [
        (json!({}), 0),
        (json!({"partialSuccess": {}}), 0),
        (partial(json!("2")), 2),
        (partial(json!(3)), 3),
        // A warning alone.
        (partial(json!(0)), 0),
        (partial(json!("many")), 0),
        // No more than there were.
        (partial(json!("900")), 7),
    ];
    for (answer, dropped) in rows {
        let collector = Collector::start().expect("loopback is there");
        collector.answer(answer.clone());
        let traces = traced(two_changes);
        let told = export(&traces, &collector).await;
        assert_eq!(
            (collector.requests().len(), traces.dropped()),
            (1, dropped),
            "{answer}"
        );
        assert_eq!(told[1] == "works", dropped == 0, "{told:?} for {answer}");
        assert_eq!(told[1].contains(message), dropped > 0, "{told:?} for {answer}");
    }
}

#[tokio::test]
async fn spans_leave_the_node_by_tls_for_a_collector_of_a_known_authority_alone() {
    let directory = Directory::new("telemetry");
    let authority = Authority::new("collectors").expect("a key");
    let server = authority.issue("collector", &[]).expect("a certificate");
    let collector = Collector::start_with_tls(&server).expect("loopback is there");
    let by = |authority: &str| Export {
        ca_file: Some(directory.write("ca.crt", authority)),
        ..export_to(&collector)
    };
    let traces = traced(two_changes);
    let other = Authority::new("others").expect("a key");
    let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let told = |outcome: Result<(), &str>| {
        if let Err(error) = outcome {
            told.send(error.to_owned()).expect("somebody waits");
        }
    };
    let distrusting = traces.export(by(&other.pem()), told, shutdown.clone());
    let seen = async {
        let error = outcomes.recv().await.expect("it goes on");
        assert!(error.contains("invalid peer certificate"), "{error}");
        shutdown.cancel();
    };
    tokio::join!(distrusting, seen).0.expect("it began");
    assert_eq!(collector.requests().len(), 0);

    let traces = traced(two_changes);
    assert_eq!(
        export_by(&traces, &collector, by(&authority.pem())).await,
        ["works", "works"]
    );

    let nothing = traces.export(by("nonsense"), |_| {}, CancellationToken::new());
    let error = nothing.await.expect_err("no certificate is in it");
    assert!(format!("{error:#}").contains("telemetry.caFile"), "{error:#}");
}

#[tokio::test]
async fn what_the_collector_refuses_for_good_is_dropped_and_counted() {
    let collector = Collector::start().expect("loopback is there");
    collector.fail_next(&[400]);
    let traces = traced(two_changes);
    let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let export = traces.export(
        export_to(&collector),
        |outcome| {
            told.send(outcome.map_err(str::to_owned))
                .expect("it is looked at")
        },
        shutdown.clone(),
    );
    let seen = async {
        assert_eq!(outcomes.recv().await, Some(Ok(())));
        let refused = outcomes.recv().await.expect("told").expect_err("refused");
        assert!(refused.contains("400"), "{refused}");
        shutdown.cancel();
    };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(export, seen) })
        .await
        .expect("it ends");
    ended.expect("it began");
    assert_eq!((collector.spans().len(), traces.dropped()), (0, 7));
}

#[test]
fn spans_that_nobody_takes_are_dropped_and_counted() {
    let traces = traced(|| {
        for _ in 0..super::WAITING + 5 {
            drop(info_span!(target: TARGET, "one"));
        }
    });
    assert_eq!(traces.dropped(), 5);
}
