//! From spans of `tracing` to finished ones.

use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The field that says why what a span tells of did not succeed.
const ERROR: &str = "error";

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// Whether something is so.
    Switch(bool),
    /// Anything else.
    Text(String),
}

/// A span that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What all spans of one trace have in common.
    pub trace: u128,
    /// Its own.
    pub id: u64,
    /// The span that it is a part of.
    pub parent: Option<u64>,
    /// What it tells of.
    pub name: &'static str,
    /// Nanoseconds since 1970.
    pub start: u128,
    /// The same, at its end.
    pub end: u128,
    /// Fields but `error`.
    pub fields: Vec<(&'static str, Value)>,
    /// The field `error`.
    pub error: Option<String>,
}

/// Gathers spans; those that nobody takes away in time are dropped and counted.
#[derive(Debug)]
pub struct Recorder {
    ended: mpsc::Sender<Span>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    pub(super) fn new(ended: mpsc::Sender<Span>) -> Self {
        Self {
            ended,
            dropped: Arc::default(),
        }
    }

    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }
}

fn now() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_nanos()
}

/// An id that is not 0, which stands for none (W3C Trace Context §3.2.2).
fn random_id() -> u64 {
    rand::random::<u64>().max(1)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let parent = span.parent().and_then(|parent| {
            let extensions = parent.extensions();
            extensions.get::<Span>().map(|parent| (parent.trace, parent.id))
        });
        let mut new = Span {
            trace: parent.map_or_else(|| rand::random::<u128>().max(1), |(trace, _)| trace),
            id: random_id(),
            parent: parent.map(|(_, id)| id),
            name: attributes.metadata().name(),
            start: now(),
            end: 0,
            fields: Vec::new(),
            error: None,
        };
        attributes.record(&mut new);
        span.extensions_mut().insert(new);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Span>() {
            values.record(open);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(mut ended) = span.extensions_mut().remove::<Span>() else {
            return;
        };
        ended.end = now();
        if self.ended.try_send(ended).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Span {
    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            (ERROR, Value::Text(error)) => self.error = Some(error),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Span {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Switch(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}"); // a String takes everything
        self.set(field, Value::Text(text));
    }
}
