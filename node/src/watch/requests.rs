//! What kube-rs does not tell or limit of the requests by which watches begin.
//!
//! A watch that was begun again says nothing until something changes, which may take minutes: that the server
//! answers is seen here. And kube-rs begins a watch that ended without an error again at once. A load balancer without
//! a server behind it, or a server that is shutting down, may answer each with 200 and an end: then it would be asked
//! thousands of times a second.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use kube::client::Body;
use tower::Service;

/// Between the beginnings of two watches of one kind. The first after a longer one begins at once.
const BETWEEN: Duration = Duration::from_secs(1);

/// Told the path of each watch that the server accepts.
pub(super) type Accepted = Arc<dyn Fn(&str) + Send + Sync>;

/// Delays watches that follow each other too fast, and tells which are accepted.
#[derive(Clone)]
pub(super) struct WatchRequests<S> {
    inner: S,
    accepted: Accepted,
    /// When the latest watch of a path began, or will.
    begun: Arc<Mutex<HashMap<String, Instant>>>,
}

impl<S> WatchRequests<S> {
    pub(super) fn new(inner: S, accepted: Accepted) -> Self {
        Self {
            inner,
            accepted,
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let delay = self.delay(request.uri(), Instant::now());
        let watched = is_watch(request.uri()).then(|| request.uri().path().to_owned());
        let accepted = self.accepted.clone();
        // The one that was polled ready is the one to call; the clone takes its place.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            let response = ready.call(request).await?;
            if let Some(path) = watched.filter(|_| response.status().is_success()) {
                accepted(&path);
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
        let pace = WatchRequests::new((), Arc::new(|_: &str| {}));
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
}
