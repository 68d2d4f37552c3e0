//! What kube-rs does not tell, count or limit of requests, most of all of those by which watches begin.
//!
//! A watch that was begun again says nothing until something changes, which may take minutes: that the server
//! answers is seen here. And so is `Retry-After` (RFC 9110 §10.2.3): of a refusal kube-rs reads the body alone, which
//! is a line of text where an API server has too many requests in flight.
//!
//! Streaming lists are asked for as of any time, so that one server of several that is behind could take back what
//! another told already: here they are made to be of the newest state, as pages are.
//!
//! And kube-rs begins a watch that ended without an error again at once. A load balancer without a server behind it, or
//! a server that is shutting down, may answer each with 200 and an end: then it would be asked thousands of times a
//! second.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode, Uri};
use kube::client::Body;
use tower::Service;

use super::calls::Calls;

const ANY_TIME: &str = "resourceVersion=0";

/// What a server is believed that wants to be left alone, at most.
pub(super) const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Between the beginnings of two watches of one kind. The first after a longer one begins at once.
const BETWEEN: Duration = Duration::from_secs(1);

/// What the server says to a request, beside the answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It accepts a watch.
    Accepted,
    /// It wants to be asked again after this time only.
    ComeBack(Duration),
}

/// Told the path of each request that is answered so.
pub(super) type Heard = Arc<dyn Fn(&str, Answer) + Send + Sync>;

/// When a server that refused a request wants to be asked again, whatever the request was.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<Mutex<Option<Instant>>>);

impl Asked {
    /// Hears it of a client's requests.
    pub(super) fn heard(&self) -> Heard {
        let asked = self.0.clone();
        Arc::new(move |_: &str, answer| {
            if let Answer::ComeBack(after) = answer {
                let not_before = Instant::now() + after.min(LONGEST_ASKED);
                *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(not_before);
            }
        })
    }

    /// How long it still wants to be left alone.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let not_before = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.map_or(Duration::ZERO, |not_before| {
            not_before.saturating_duration_since(now)
        })
    }
}

/// Delays watches that follow each other too fast, and tells what the server says.
#[derive(Clone)]
pub(super) struct WatchRequests<S> {
    inner: S,
    heard: Heard,
    calls: Calls,
    /// When the latest watch of a path began, or will.
    begun: Arc<Mutex<HashMap<String, Instant>>>,
}

impl<S> WatchRequests<S> {
    pub(super) fn new(inner: S, heard: Heard, calls: Calls) -> Self {
        Self {
            inner,
            heard,
            calls,
            begun: Arc::default(),
        }
    }

    /// How long a request has to wait, which is taken to begin then.
    fn delay(&self, uri: &Uri, now: Instant) -> Duration {
        if !is_watch(uri) {
            return Duration::ZERO;
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = begun.get(uri.path()).map_or(now, |last| *last + BETWEEN);
        let begins = earliest.max(now);
        begun.insert(uri.path().to_owned(), begins);
        begins - now
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query()
        .is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}

/// A streaming list without a version is a consistent read (KEP-3157); with 0, which kube-rs gives, it is of any time.
fn of_newest_state(uri: &Uri) -> Option<Uri> {
    let query: Vec<&str> = uri.query()?.split('&').collect();
    if !query.contains(&"sendInitialEvents=true") || !query.contains(&ANY_TIME) {
        return None;
    }
    let rest: Vec<&str> = query.into_iter().filter(|pair| *pair != ANY_TIME).collect();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{}?{}", uri.path(), rest.join("&")).parse().ok();
    Uri::from_parts(parts).ok()
}

/// How long a server that refuses a request wants to be left alone. Dates, the other form, are not read: API servers
/// write seconds.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let refuses = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    let wanted = response.headers().get(RETRY_AFTER).filter(|_| refuses)?;
    wanted.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

impl<S, B> Service<Request<Body>> for WatchRequests<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(newest) = of_newest_state(request.uri()) {
            *request.uri_mut() = newest;
        }
        let delay = self.delay(request.uri(), Instant::now());
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let watches = is_watch(request.uri());
        let (heard, calls) = (self.heard.clone(), self.calls.clone());
        // The one that was polled ready is the one to call; the clone takes its place.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            let asked = Instant::now();
            let response = ready.call(request).await;
            let code = response.as_ref().ok().map(|response| response.status().as_u16());
            calls.add(&method, &uri, code, asked.elapsed());
            let response = response?;
            if watches && response.status().is_success() {
                heard(uri.path(), Answer::Accepted);
            }
            if let Some(wanted) = retry_after(&response) {
                heard(uri.path(), Answer::ComeBack(wanted));
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_of_one_path_are_a_second_apart_and_nothing_else_waits() {
        let pace = WatchRequests::new((), Asked::default().heard(), Calls::default());
        let start = Instant::now();
        let rows = [
            ("/api/v1/services?watch=true&a=b", 0, 0),
            ("/api/v1/services?watch=true", 0, 1000),
            ("/api/v1/services?&watch=true", 500, 1500),
            ("/api/v1/nodes?watch=true", 500, 0),
            ("/api/v1/services?limit=500", 500, 0),
            ("/api/v1/services?watch=true", 290_000, 0),
        ];
        for (uri, at, expected) in rows {
            let now = start + Duration::from_millis(at);
            let delay = pace.delay(&uri.parse().expect("valid"), now);
            assert_eq!(delay, Duration::from_millis(expected), "{uri} at {at} ms");
        }
    }

    #[test]
    fn streaming_lists_are_of_the_newest_state_and_all_else_is_as_it_was() {
        let rows = [
            (
                "https://api:6443/api/v1/nodes?&watch=true&resourceVersion=0&sendInitialEvents=true&a=b",
                Some("https://api:6443/api/v1/nodes?&watch=true&sendInitialEvents=true&a=b"),
            ),
            (
                "https://api:6443/api/v1/nodes?watch=true&resourceVersion=7&sendInitialEvents=true",
                None,
            ),
            ("https://api:6443/api/v1/nodes?watch=true&resourceVersion=0", None),
            ("https://api:6443/api/v1/nodes", None),
        ];
        for (uri, expected) in rows {
            let newest = of_newest_state(&uri.parse().expect("valid"));
            assert_eq!(newest.map(|uri| uri.to_string()).as_deref(), expected);
        }
    }

    #[test]
    fn what_the_server_asks_last_is_believed_for_a_minute_at_most() {
        let (asked, start) = (Asked::default(), Instant::now());
        assert_eq!(asked.left(start), Duration::ZERO);
        let heard = asked.heard();
        for (answer, expected) in [
            (Answer::ComeBack(Duration::from_secs(30)), 30),
            (Answer::Accepted, 30),
            (Answer::ComeBack(Duration::from_secs(7)), 7),
            (Answer::ComeBack(Duration::from_secs(86_400)), 60),
        ] {
            heard("/api/v1/nodes", answer);
            let (least, most) = (asked.left(Instant::now()), asked.left(start));
            let expected = Duration::from_secs(expected);
            assert!(
                least <= expected && expected <= most,
                "{answer:?}: {least:?} to {most:?}"
            );
        }
        assert_eq!(asked.left(Instant::now() + 2 * LONGEST_ASKED), Duration::ZERO);
    }

    #[test]
    fn a_server_that_refuses_says_in_seconds_when_to_come_back() {
        let rows = [
            (429, Some("1"), Some(1)),
            (503, Some("30"), Some(30)),
            (503, None, None),
            (429, Some("Fri, 31 Dec 2027 23:59:59 GMT"), None),
            (429, Some("-1"), None),
            (200, Some("1"), None),
            (301, Some("1"), None),
        ];
        for (code, header, expected) in rows {
            let mut response = Response::builder().status(code);
            if let Some(header) = header {
                response = response.header(RETRY_AFTER, header);
            }
            let wanted = retry_after(&response.body(()).expect("valid"));
            assert_eq!(wanted, expected.map(Duration::from_secs), "{code} {header:?}");
        }
    }
}
