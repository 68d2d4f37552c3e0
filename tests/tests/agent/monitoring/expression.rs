//! What metrics an expression of Prometheus reads, and what labels its result has.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::label::Labels;
use promql_parser::parser::{
    AggregateExpr, BinaryExpr, Call, Expr, LabelModifier, ParenExpr, SubqueryExpr, UnaryExpr, VectorSelector,
};

/// What Prometheus gives to every sample.
const OF_TARGETS: [&str; 2] = ["instance", "job"];

/// Functions of what only grows.
const OF_COUNTERS: [&str; 3] = ["rate", "irate", "increase"];

/// Metrics whose samples come with the first event of their kind, and which labels these have.
const ONLY_ON_EVENTS: [(&str, &[&str]); 2] = [
    ("causeway_cni_requests_total", &["verb", "result"]),
    ("causeway_sysctl_repairs_total", &["sysctl"]),
];

#[derive(Default)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    has_samples: bool,
}

/// The metrics of some processes.
pub struct Families(BTreeMap<String, Family>);

impl Families {
    /// Of a page in Prometheus' text form, or several. A histogram stands there under the names of its series.
    pub fn of(pages: &str) -> Self {
        let mut families = BTreeMap::<String, Family>::new();
        for line in pages.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' ')) {
                let suffixes: &[&str] = if kind == "histogram" {
                    &["_bucket", "_sum", "_count"]
                } else {
                    &[""]
                };
                for suffix in suffixes {
                    families.entry(format!("{name}{suffix}")).or_default().kind = kind.to_owned();
                }
            } else if !line.starts_with('#') {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                let Some(family) = families.get_mut(&line[..end]) else {
                    continue;
                };
                family.has_samples = true;
                family.labels.extend(label_names(&line[end..]));
            }
        }
        for (name, labels) in ONLY_ON_EVENTS {
            if let Some(family) = families.get_mut(name) {
                family.has_samples = true;
                family
                    .labels
                    .extend(labels.iter().map(|label| (*label).to_owned()));
            }
        }
        let up = Family {
            kind: "gauge".to_owned(),
            has_samples: true,
            ..Family::default()
        };
        families.insert("up".to_owned(), up);
        for family in families.values_mut() {
            family.labels.extend(OF_TARGETS.map(str::to_owned));
        }
        Self(families)
    }
}

/// `{a="b",c="d"} 1`: what stands before each `="`.
fn label_names(labels: &str) -> impl Iterator<Item = String> {
    let before = labels.split("=\"").map(|part| part.rsplit(['{', ',']).next());
    let count = labels.matches("=\"").count();
    before.take(count).flatten().map(str::to_owned)
}

/// The labels of the result; whatever does not fit these metrics is told to `faults`.
pub fn labels_of(expression: &Expr, families: &Families, faults: &mut Vec<String>) -> BTreeSet<String> {
    match expression {
        Expr::Aggregate(AggregateExpr { expr, modifier, .. }) => {
            let inner = labels_of(expr, families, faults);
            match modifier {
                None => BTreeSet::new(),
                Some(LabelModifier::Include(kept)) => {
                    demand(kept, &inner, faults);
                    names(kept).collect()
                }
                Some(LabelModifier::Exclude(dropped)) => {
                    demand(dropped, &inner, faults);
                    let dropped = names(dropped).collect();
                    inner.difference(&dropped).cloned().collect()
                }
            }
        }
        Expr::Binary(BinaryExpr {
            lhs, rhs, modifier, ..
        }) => {
            let (left, right) = (labels_of(lhs, families, faults), labels_of(rhs, families, faults));
            if let Some(matching) = modifier.as_ref().and_then(|modifier| modifier.matching.as_ref()) {
                demand(matching.labels(), &left.union(&right).cloned().collect(), faults);
            }
            if left.is_empty() { right } else { left }
        }
        Expr::Call(call) => labels_of_call(call, families, faults),
        Expr::VectorSelector(selector) => labels_of_selector(selector, families, faults),
        Expr::MatrixSelector(matrix) => labels_of_selector(&matrix.vs, families, faults),
        Expr::Paren(ParenExpr { expr })
        | Expr::Unary(UnaryExpr { expr })
        | Expr::Subquery(SubqueryExpr { expr, .. }) => labels_of(expr, families, faults),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => BTreeSet::new(),
    }
}

fn labels_of_call(call: &Call, families: &Families, faults: &mut Vec<String>) -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    for argument in &call.args.args {
        labels.extend(labels_of(argument, families, faults));
        let Expr::MatrixSelector(matrix) = &**argument else {
            continue;
        };
        let name = matrix.vs.name.as_deref().unwrap_or_default();
        let kind = families.0.get(name).map_or("", |family| &family.kind);
        if OF_COUNTERS.contains(&call.func.name) && kind == "gauge" {
            faults.push(format!("{} of {name}, a gauge", call.func.name));
        }
    }
    if call.func.name == "histogram_quantile" && !labels.remove("le") {
        faults.push("histogram_quantile without le".to_owned());
    }
    labels
}

fn labels_of_selector(
    selector: &VectorSelector,
    families: &Families,
    faults: &mut Vec<String>,
) -> BTreeSet<String> {
    let name = selector.name.as_deref().unwrap_or_default();
    let Some(family) = families.0.get(name) else {
        faults.push(format!("there is no metric {name}"));
        return BTreeSet::new();
    };
    if !family.has_samples {
        faults.push(format!("{name} has no samples"));
    }
    let matched = selector.matchers.matchers.iter().map(|matcher| &matcher.name);
    let missing = matched.filter(|label| !family.labels.contains(*label));
    faults.extend(missing.map(|label| format!("{name} has no label {label}")));
    family.labels.clone()
}

fn names(labels: &Labels) -> impl Iterator<Item = String> {
    labels.labels.iter().cloned()
}

fn demand(labels: &Labels, there: &BTreeSet<String>, faults: &mut Vec<String>) {
    let missing = names(labels).filter(|label| !there.contains(label));
    faults.extend(missing.map(|label| format!("there is no label {label}")));
}
