//! The log: each event is one line, as text or as JSON.
//!
//! Events hold what others wrote: names of objects, answers of servers. None of it may begin a line of its own, or
//! speak to the terminal that shows the log: control characters are escaped.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, registry, reload};

use crate::config::{LogFormat, LogLevel, Logging};
use crate::telemetry::{self, Recorder};

/// Sets the level more finely than the configuration does.
const VARIABLE: &str = "CAUSEWAY_LOG";

/// From which level on a running process logs.
#[derive(Clone)]
pub struct Level(Arc<dyn Fn(LogLevel) + Send + Sync>);

impl Level {
    /// Changes it, unless `CAUSEWAY_LOG` says something.
    pub fn set(&self, level: LogLevel) {
        (self.0)(level);
    }

    /// Nobody's.
    #[cfg(test)]
    #[must_use]
    pub fn fixed() -> Self {
        Self(Arc::new(|_| {}))
    }
}

/// Logs of this process go to standard error from here on.
pub fn start(logging: Logging) -> Level {
    start_to(logging, io::stderr)
}

/// The same, and spans of traces go to `traces`, if there is one.
pub fn start_with_traces(logging: Logging, traces: Option<Recorder>) -> Level {
    start_all(logging, io::stderr, traces)
}

/// The same for what tells only what is wrong.
pub fn start_with_warnings() {
    start(Logging {
        level: LogLevel::Warn,
        ..Logging::default()
    });
}

/// Panics of this process are events of its log from here on: what they say may be what others wrote.
pub fn take_panics() {
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
}

/// Logs of this process go to `writer`, each line by one write.
pub fn start_to(logging: Logging, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) -> Level {
    start_all(logging, writer, None)
}

fn start_all(
    logging: Logging,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
    traces: Option<Recorder>,
) -> Level {
    let (filter, handle) = reload::Layer::new(filter(logging.level));
    let traces = traces.map(|traces| traces.with_filter(telemetry::only_traces()));
    let registry = registry().with(traces);
    match logging.format {
        LogFormat::Text => registry.with(text(writer).with_filter(filter)).init(),
        LogFormat::Json => registry.with(json(writer).with_filter(filter)).init(),
    }
    Level(Arc::new(move |level| {
        if let Err(error) = handle.reload(self::filter(level)) {
            tracing::warn!(%error, "the log level cannot be changed");
        }
    }))
}

fn filter(level: LogLevel) -> EnvFilter {
    // Errors of watches are logged where they are handled, once, and not at each attempt.
    let filter = || EnvFilter::new(format!("{},kube_runtime=error", level.name()));
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| filter());
    // Spans of traces are no part of the log.
    let no_traces = format!("{}=off", telemetry::TARGET).parse();
    filter.add_directive(no_traces.expect("invariant: a directive"))
}

fn text<S: Subscriber + for<'a> LookupSpan<'a>>(
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> impl Layer<S> {
    tracing_subscriber::fmt::layer()
        .with_writer(OneLine(writer))
        .with_ansi(false)
}

fn json<S: Subscriber + for<'a> LookupSpan<'a>>(
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> impl Layer<S> {
    tracing_subscriber::fmt::layer()
        .with_writer(OneLine(writer))
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
}

/// Writers to which each event is one line without control characters.
struct OneLine<M>(M);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for OneLine<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        LineWriter(self.0.make_writer())
    }

    fn make_writer_for(&'w self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        LineWriter(self.0.make_writer_for(meta))
    }
}

/// Each write to it is one event, as those of `tracing_subscriber::fmt` are.
struct LineWriter<W>(W);

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        self.0.write_all(one_line(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The event with all control characters but the newline at its end escaped as in JSON: `\u000a`. In a string of JSON
/// that is the character itself; those that JSON does not escape are controls of terminals, too.
fn one_line(event: &str) -> Cow<'_, str> {
    let line = event.strip_suffix('\n').unwrap_or(event);
    if !line.contains(is_unsafe) {
        return event.into();
    }
    let mut escaped = String::with_capacity(event.len() + 16);
    for c in line.chars() {
        if is_unsafe(c) {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c)); // a String takes everything
        } else {
            escaped.push(c);
        }
    }
    escaped.push_str(&event[line.len()..]);
    escaped.into()
}

/// Control characters, and what else may break a line or turn its direction (Unicode's Bidi_Control).
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    let is_bidi_control =
        matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_bidi_control || matches!(c, '\u{2028}' | '\u{2029}')
}

/// What others wrote, so that nothing in it drives a terminal or turns what stands beside it.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |character| {
        if is_unsafe(character) {
            char::REPLACEMENT_CHARACTER
        } else {
            character
        }
    };
    text.chars().map(shown).collect()
}

/// Says something beside a command's result, on standard error, line by line. Nobody need listen.
pub fn tell(text: impl std::fmt::Display) {
    let text: String = text
        .to_string()
        .lines()
        .map(|line| printable(line) + "\n")
        .collect();
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    /// What was written, write by write.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<String>>>);

    impl Write for &Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
            self.0.lock().expect("no panic").push(text);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Written {
        type Writer = &'w Self;

        fn make_writer(&'w self) -> Self::Writer {
            self
        }
    }

    /// A name that would make a line of its own, clear the screen and turn the rest of the line.
    const EVIL: &str = "web\n2026-01-01T00:00:00Z ERROR causeway: all is lost\r\u{1b}[2J\u{9b}31m\u{202e}\u{61c}\u{2028}\u{7f}\"\\";

    fn written(format: LogFormat, log: impl FnOnce()) -> Vec<String> {
        let lines = Written::default();
        let events = registry().with(EnvFilter::new("info"));
        match format {
            LogFormat::Text => tracing::subscriber::with_default(events.with(text(lines.clone())), log),
            LogFormat::Json => tracing::subscriber::with_default(events.with(json(lines.clone())), log),
        }
        lines.0.lock().expect("no panic").clone()
    }

    fn log_evil() {
        let error = io::Error::other(EVIL);
        tracing::info!(service = %EVIL, quoted = EVIL, debug = ?EVIL, %error, "a Service of {EVIL}");
        tracing::debug!("nobody asked for it");
        tracing::warn!(nodes = 3, "next");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = written(format, log_evil);
            assert_eq!(lines.len(), 2, "{format:?}: {lines:#?}");
            for line in &lines {
                let rest = line.strip_suffix('\n').expect("a whole line");
                assert!(!rest.contains(is_unsafe), "{format:?}: {rest:?}");
            }
        }
    }

    #[test]
    fn text_is_escaped_and_stays_readable() {
        let lines = written(LogFormat::Text, || tracing::info!(name = %"a\nb\u{9b}cä", "told"));
        let [line] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        assert!(line.ends_with(" told name=a\\u000ab\\u009bcä\n"), "{line}");
    }

    #[test]
    fn json_has_each_field_as_it_was_given() {
        let lines = written(LogFormat::Json, log_evil);
        let event: Value = serde_json::from_str(&lines[0]).expect("JSON");
        let timestamp = event["timestamp"].as_str().expect("there");
        assert!(timestamp.parse::<jiff::Timestamp>().is_ok(), "{timestamp}");
        let next: Value = serde_json::from_str(&lines[1]).expect("JSON");
        assert_eq!(event["quoted"], EVIL, "{event}");
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["target"], module_path!());
        assert_eq!((&next["nodes"], &next["message"]), (&json!(3), &json!("next")));
    }
}
