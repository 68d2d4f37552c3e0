//! Requests to the API server, counted and timed under the names that client-go's have (`k8s.io/component-base`,
//! `metrics/prometheus/restclient/metrics.go`), by which dashboards of kube-proxy show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Uri};

use crate::metrics::{Counters, Durations, Page, labels};

/// What `code` says where no answer came.
const NO_ANSWER: &str = "<error>";

/// The requests of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    answers: Counters,
    /// Until the head of an answer came, by verb and host.
    durations: Mutex<BTreeMap<(String, String), Arc<Durations>>>,
}

impl Calls {
    /// Takes a request that was answered with `code`, or not at all, after this time.
    pub(super) fn add(&self, method: &Method, server: &Uri, code: Option<u16>, took: Duration) {
        let host = server.authority().map(ToString::to_string).unwrap_or_default();
        let code = code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        let method = method.as_str();
        let pairs = [("code", code.as_str()), ("host", &host), ("method", method)];
        self.0.answers.add(labels(&pairs));
        let mut durations = self.0.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let of_server = durations.entry((method.to_owned(), host));
        of_server
            .or_insert_with(|| Arc::new(Durations::of_requests()))
            .observe(took);
    }

    /// Writes both families.
    pub fn write(&self, page: &mut Page) {
        page.counted(
            "rest_client_requests_total",
            "Requests to the API server by code, method and host; code <error>: no answer came.",
            &self.0.answers,
        );
        let durations = self.0.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = durations.clone();
        page.durations(
            "rest_client_request_duration_seconds",
            "How long the API server took to begin its answer, by verb and host.",
            durations.iter().map(|((verb, host), durations)| {
                (
                    vec![("host", host.as_str()), ("verb", verb.as_str())],
                    &**durations,
                )
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_became_of_them_and_timed_by_server() {
        let calls = Calls::default();
        let server = |uri: &str| uri.parse::<Uri>().expect("valid");
        let first = server("https://10.96.0.1:443/api/v1/nodes?watch=true");
        calls.add(&Method::GET, &first, Some(200), Duration::from_millis(7));
        calls.add(&Method::GET, &first, Some(200), Duration::from_millis(300));
        calls.add(&Method::GET, &first, None, Duration::from_secs(31));
        let second = server("http://[fd00::1]:6443/api/v1/namespaces/a/events");
        calls.add(&Method::POST, &second, Some(429), Duration::from_millis(5));
        let mut page = Page::default();
        calls.write(&mut page);
        let page = page.into_text();
        for line in [
            r#"rest_client_requests_total{code="200",host="10.96.0.1:443",method="GET"} 2"#,
            r#"rest_client_requests_total{code="<error>",host="10.96.0.1:443",method="GET"} 1"#,
            r#"rest_client_requests_total{code="429",host="[fd00::1]:6443",method="POST"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.96.0.1:443",verb="GET",le="0.025"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.96.0.1:443",verb="GET",le="0.5"} 2"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.96.0.1:443",verb="GET",le="30"} 2"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.96.0.1:443",verb="GET",le="60"} 3"#,
            r#"rest_client_request_duration_seconds_bucket{host="[fd00::1]:6443",verb="POST",le="0.005"} 1"#,
            r#"rest_client_request_duration_seconds_count{host="[fd00::1]:6443",verb="POST"} 1"#,
        ] {
            assert!(page.lines().any(|written| written == line), "no {line} in {page}");
        }
    }
}
