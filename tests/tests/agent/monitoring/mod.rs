//! What `node/deploy/monitoring` asks Prometheus: every expression, and what it stands for.

mod expression;
mod privileged_pages;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use expression::{Families, labels_of};

const DASHBOARDS: [&str; 2] = ["node-dashboard.json", "dns-dashboard.json"];
const ALERTS: &str = "alerts.yaml";

/// How wide a dashboard is.
const COLUMNS: u64 = 24;

/// An expression, and who asks it.
struct Query {
    /// The file, and the panel or alert.
    place: String,
    expression: String,
    /// The labels that the texts beside it name.
    named: BTreeSet<String>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../node/deploy/monitoring")
        .join(name)
}

fn dashboard(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).expect("it is there");
    serde_json::from_str(&text).expect("JSON")
}

fn alerts() -> Vec<Value> {
    let text = std::fs::read_to_string(file(ALERTS)).expect("it is there");
    let rules: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups").iter();
    groups
        .flat_map(|group| group["rules"].as_array().expect("rules").clone())
        .collect()
}

fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {object}"))
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The words between `before` and the next character that is none of a label's.
fn labels_after(before: &str, text: &str) -> BTreeSet<String> {
    let label = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    text.split(before).skip(1).map(label).collect()
}

fn queries_of(name: &str) -> Vec<Query> {
    let dashboard = dashboard(name);
    let of_panels = elements(&dashboard["panels"]).flat_map(|panel| {
        elements(&panel["targets"]).map(move |target| Query {
            place: format!("{name}: {}", text(panel, "title")),
            // What Grafana puts there.
            expression: text(target, "expr").replace("$__rate_interval", "5m"),
            named: labels_after("{{", text(target, "legendFormat")),
        })
    });
    let variables = elements(&dashboard["templating"]["list"]);
    let of_variables = variables
        .filter(|variable| variable["type"] == "query")
        .map(|variable| {
            let query = text(variable, "query").strip_prefix("label_values(");
            let (metric, label) = query
                .and_then(|rest| rest.strip_suffix(')')?.split_once(", "))
                .expect("label_values");
            Query {
                place: format!("{name}: variable {}", text(variable, "name")),
                expression: metric.to_owned(),
                named: [label.to_owned()].into(),
            }
        });
    of_panels.chain(of_variables).collect()
}

/// All that is asked.
fn queries() -> Vec<Query> {
    let of_alerts = alerts().into_iter().map(|alert| Query {
        place: format!("{ALERTS}: {}", text(&alert, "alert")),
        expression: text(&alert, "expr").to_owned(),
        named: labels_after("$labels.", &alert["annotations"].to_string()),
    });
    let of_dashboards = DASHBOARDS.into_iter().flat_map(queries_of);
    of_dashboards.chain(of_alerts).collect()
}

/// What is wrong with all that is asked, where these metrics are there.
fn faults(families: &Families) -> Vec<String> {
    let mut faults = Vec::new();
    for query in queries() {
        let mut found = Vec::new();
        let labels = match promql_parser::parser::parse(&query.expression) {
            Ok(expression) => labels_of(&expression, families, &mut found),
            Err(error) => {
                found.push(error);
                continue;
            }
        };
        let missing = query.named.difference(&labels);
        found.extend(missing.map(|label| format!("the result has no label {label}")));
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", query.place)));
    }
    faults
}

#[test]
fn every_panel_has_a_place_of_its_own_and_says_what_it_shows() {
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let mut taken = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for panel in elements(&dashboard["panels"]) {
            let title = text(panel, "title");
            assert!(
                ids.insert(panel["id"].as_u64().expect("a number")),
                "{name}: {title}"
            );
            let [x, y, width, height] =
                ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
            assert!(x + width <= COLUMNS, "{name}: {title} does not fit");
            for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{name}: {title} overlaps at {cell:?}");
            }
            if panel["type"] != "row" {
                assert!(!text(panel, "description").is_empty(), "{name}: {title}");
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
                assert!(elements(&panel["targets"]).count() > 0, "{name}: {title}");
            }
        }
    }
}

#[test]
fn every_alert_says_what_it_means_and_what_to_do() {
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(names.len(), alerts.len(), "two alerts have one name");
    for alert in &alerts {
        let name = text(alert, "alert");
        assert!(name.starts_with("Causeway"), "{name}");
        let severity = text(&alert["labels"], "severity");
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        for annotation in ["summary", "description", "action"] {
            assert!(
                text(&alert["annotations"], annotation).len() > 20,
                "{name}: {annotation}"
            );
        }
    }
}

/// Of what the live test relies on.
#[test]
fn wrong_names_labels_and_kinds_are_found() {
    let families = Families::of(
        "# TYPE c_total counter\nc_total{code=\"200\"} 2\n# TYPE g gauge\ng 1\n# TYPE e_total counter\n\
         # TYPE d_seconds histogram\nd_seconds_bucket{of=\"a\",le=\"1\"} 1\nd_seconds_count{of=\"a\"} 1\n",
    );
    let rows = [
        ("sum by (code, instance) (rate(c_total[5m])) > 1", ""),
        (
            "histogram_quantile(0.9, sum by (le) (rate(d_seconds_bucket{of=~\"a|b\"}[5m])))",
            "",
        ),
        ("g and on (instance) c_total", ""),
        ("rate(d_seconds_count[5m]) - ignoring (of) g or vector(0)", ""),
        ("up{job=\"x\"} == 0", ""),
        ("c", "there is no metric c"),
        ("d_seconds", "there is no metric d_seconds"),
        ("c_total{verb=\"x\"}", "c_total has no label verb"),
        ("sum by (verb) (c_total)", "there is no label verb"),
        ("g - on (verb) c_total", "there is no label verb"),
        ("rate(g[5m])", "rate of g, a gauge"),
        (
            "histogram_quantile(0.9, sum by (of) (rate(d_seconds_bucket[5m])))",
            "histogram_quantile without le",
        ),
        ("e_total", "e_total has no samples"),
    ];
    for (text, expected) in rows {
        let expression = promql_parser::parser::parse(text).expect("PromQL");
        let mut faults = Vec::new();
        labels_of(&expression, &families, &mut faults);
        assert_eq!(faults.join(", "), expected, "{text}");
    }
}
