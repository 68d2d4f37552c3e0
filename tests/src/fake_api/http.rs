//! Connections, objects, lists, and what clients write.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::watching::watch_response;
use super::{Behaviour, Object, Shared, Store};

/// Accepts connections, and ends them all whenever a cut is asked for. While the server is down each new one is
/// closed at once: the listener itself stays, since it may belong to another network namespace than this thread.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("invariant: the listener is a socket");
    let mut changed = shared.changed.subscribe();
    let router = Router::new()
        .fallback(answer_at_its_pace)
        .with_state(shared.clone());
    let mut connections = JoinSet::new();
    let mut cuts = 0;
    loop {
        let (stopped, cuts_now) = {
            let store = shared.store();
            (store.stopped, store.cuts)
        };
        if stopped {
            return;
        }
        if cuts_now != cuts {
            cuts = cuts_now;
            connections.shutdown().await;
        }
        tokio::select! {
            _ = changed.changed() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let tls = {
                    let store = shared.store();
                    if store.down {
                        continue;
                    }
                    store.tls.clone()
                };
                let router = router.clone();
                connections.spawn(async move {
                    match tls {
                        None => serve_connection(stream, router).await,
                        Some(config) => {
                            // A client that went away, or does not like us, is no matter of the server.
                            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                                serve_connection(stream, router).await;
                            }
                        }
                    }
                });
            }
        }
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    // As above.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// Of what a client writes, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// A request, as far as it matters.
pub(super) struct Query {
    pub(super) collection: String,
    namespace: Option<String>,
    name: Option<String>,
    parameters: HashMap<String, String>,
}

impl Query {
    /// Splits `/api/v1/namespaces/NS/services/NAME` and its like. `namespaces` itself is a collection too.
    fn parse(uri: &Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
            ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural, rest @ ..] => (Some(*namespace), *plural, rest.first()),
            [plural, rest @ ..] => (None, *plural, rest.first()),
            [] => return None,
        };
        let pairs = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        Some(Self {
            collection: format!("{version}/{plural}"),
            namespace: namespace.map(str::to_owned),
            name: name.map(|name| (*name).to_owned()),
            parameters: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    pub(super) fn is(&self, parameter: &str) -> bool {
        self.parameters
            .get(parameter)
            .is_some_and(|value| value == "true" || value == "1")
    }

    pub(super) fn number(&self, parameter: &str) -> Option<u64> {
        self.parameters.get(parameter)?.parse().ok()
    }

    pub(super) fn includes(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }

    /// Whether the labels of an object are those that are asked for: `key=value`, several with commas between.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let Some(selector) = self.parameters.get("labelSelector") else {
            return true;
        };
        // As it stands in a URL.
        let selector = selector
            .replace("%3D", "=")
            .replace("%2C", ",")
            .replace("%2F", "/");
        let mut requirements = selector.split(',').filter_map(|part| part.split_once('='));
        requirements.all(|(key, value)| object["metadata"]["labels"][key] == value)
    }

    /// Whether a pod's first address is the one that is asked for; no other selector of fields is heeded.
    fn has_address(&self, object: &Value) -> bool {
        let wanted = self.parameters.get("fieldSelector");
        let wanted = wanted.and_then(|wanted| wanted.strip_prefix("status.podIP%3D"));
        wanted.is_none_or(|wanted| object["status"]["podIP"] == wanted)
    }

    pub(super) fn objects(&self, store: &Store) -> Vec<Arc<Object>> {
        let Some(objects) = store.collections.get(&self.collection) else {
            return Vec::new();
        };
        let included = objects.iter().filter(|((namespace, _), object)| {
            self.includes(namespace) && self.selects(&object.value) && self.has_address(&object.value)
        });
        included.map(|(_, object)| object.clone()).collect()
    }
}

/// Not even the rest of a millisecond, to which tokio's timers round, where there is no delay.
pub(super) async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Parts of a second's bytes that a slow answer comes in.
const PARTS_PER_SECOND: u32 = 20;

/// The answer, in small parts where the server is slow.
async fn answer_at_its_pace(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let response = answer(State(shared.clone()), request).await;
    let bytes_per_second = shared.store().behaviour.bytes_per_second;
    if bytes_per_second == 0 {
        return response;
    }
    let part = (bytes_per_second / PARTS_PER_SECOND as usize).max(1);
    let (head, body) = response.into_parts();
    let parts = body.into_data_stream().flat_map(move |bytes| {
        let parts: Vec<_> = match bytes {
            Ok(bytes) => bytes
                .chunks(part)
                .map(|part| Ok(Bytes::copy_from_slice(part)))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(parts)
    });
    let parts = parts.then(|part| async {
        pause(Duration::from_secs(1) / PARTS_PER_SECOND).await;
        part
    });
    Response::from_parts(head, Body::from_stream(parts))
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let (delay, failure) = {
        let mut store = shared.store();
        store.requests.push(uri.to_string());
        if !store.behaviour.knows(request.headers()) {
            return status(401, "Unauthorized", 0);
        }
        let Behaviour {
            retry_after,
            refuses_by_text,
            ..
        } = store.behaviour;
        let failures = &mut store.behaviour.fail_next;
        let failure = if failures.is_empty() {
            None
        } else {
            Some(failures.remove(0))
        };
        let failure = failure.map(|code| match refuses_by_text {
            true => refusal_by_text(code, retry_after),
            false => status(code, "failed on demand", retry_after),
        });
        (store.behaviour.delay, failure)
    };
    pause(delay).await;
    if let Some(failure) = failure {
        return failure;
    }
    if uri.path() == "/version" {
        return axum::Json(json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0-fake"}))
            .into_response();
    }
    let Some(query) = Query::parse(&uri) else {
        return status(404, "no such path", 0);
    };
    let is_among = |kinds: &[&str]| kinds.iter().any(|kind| query.collection.ends_with(kind));
    let (absent, forbidden) = {
        let behaviour = &shared.store().behaviour;
        (is_among(&behaviour.absent), is_among(&behaviour.forbidden))
    };
    if absent || forbidden {
        let (code, reason) = if absent {
            (404, "no such kind")
        } else {
            (403, "not allowed")
        };
        return status(code, reason, 0);
    }
    if query.is("watch") {
        return watch_response(shared, query);
    }
    match &query.name {
        _ if method != Method::GET => write(&shared, &method, &query, request).await,
        Some(name) => get_object(&shared.store(), &query, name),
        None => list(&mut shared.store(), &query),
    }
}

/// Creates an object, or lays a JSON merge patch over one.
async fn write(shared: &Shared, method: &Method, query: &Query, request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), LARGEST_BODY).await;
    let Some(body) = body
        .ok()
        .and_then(|body| serde_json::from_slice::<Value>(&body).ok())
    else {
        return status(400, "not JSON", 0);
    };
    let name = query.name.as_deref().or(body["metadata"]["name"].as_str());
    let key = (
        query.namespace.clone().unwrap_or_default(),
        name.unwrap_or_default().to_owned(),
    );
    let mut store = shared.store();
    let known = store
        .collections
        .get(&query.collection)
        .and_then(|objects| objects.get(&key));
    let object = match (method, known.map(|object| object.value.clone())) {
        (&Method::POST, None) => body,
        (&Method::POST, Some(_)) => return status(409, "there is one already", 0),
        (&Method::PATCH, Some(object)) if is_of_another_version(&body, &object) => {
            return status(409, "somebody changed the object", 0);
        }
        (&Method::PATCH, Some(mut object)) => {
            merge(&mut object, body);
            object
        }
        (&Method::PATCH, None) => return status(404, "no such object", 0),
        _ => return status(405, "not served", 0),
    };
    let object = store.insert(query.collection.clone(), key, object);
    drop(store);
    shared.changed.send_modify(|count| *count += 1);
    axum::Json(&object.value).into_response()
}

/// Whether a patch names a resource version that is not the object's.
fn is_of_another_version(patch: &Value, object: &Value) -> bool {
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    version(patch).is_some_and(|named| Some(named) != version(object))
}

/// RFC 7396.
fn merge(object: &mut Value, patch: Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(&key);
                } else {
                    merge(object.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (object, patch) => *object = patch,
    }
}

fn get_object(store: &Store, query: &Query, name: &str) -> Response {
    let key = (query.namespace.clone().unwrap_or_default(), name.to_owned());
    let object = store
        .collections
        .get(&query.collection)
        .and_then(|objects| objects.get(&key));
    match object {
        Some(object) => axum::Json(&object.value).into_response(),
        None => status(404, "no such object", 0),
    }
}

fn list(store: &mut Store, query: &Query) -> Response {
    let (revision, mut objects) = match query.parameters.get("continue") {
        None => (store.revision, query.objects(store)),
        Some(token) => match store.pages.remove(token) {
            Some(rest) => rest,
            None => return status(410, "the continue token is too old", 0),
        },
    };
    let asked = query
        .number("limit")
        .filter(|_| !store.behaviour.no_pages)
        .and_then(|limit| usize::try_from(limit).ok());
    let limit = [asked, store.behaviour.largest_page]
        .into_iter()
        .flatten()
        .filter(|limit| *limit > 0)
        .min();
    let rest = objects.split_off(limit.unwrap_or(usize::MAX).min(objects.len()));
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if !rest.is_empty() {
        let token = format!("{revision}-{}-{}", query.collection.replace('/', "."), rest.len());
        metadata["continue"] = token.clone().into();
        store.pages.insert(token, (revision, rest));
    }
    let mut items: Vec<Value> = objects.iter().map(|object| object.value.clone()).collect();
    // As the real one does: the list says the kind, its items do not.
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
        .into_response()
}

impl Behaviour {
    fn knows(&self, headers: &HeaderMap) -> bool {
        let bearer = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let wanted = self.token.as_ref().map(|token| format!("Bearer {token}"));
        wanted.is_none() || bearer.map(str::to_owned) == wanted
    }
}

/// As `tooManyRequests` of upstream's filter for requests in flight.
fn refusal_by_text(code: u16, retry_after: u32) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let head = [(header::RETRY_AFTER, retry_after.to_string())];
    (code, head, "Too many requests, please try again later.\n").into_response()
}

pub(super) fn status(code: u16, message: &str, retry_after: u32) -> Response {
    let body = axum::Json(status_object(code, message, retry_after));
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, body).into_response()
}

pub(super) fn status_object(code: u16, message: &str, retry_after: u32) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "AlreadyExists",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code, "details": {"retryAfterSeconds": retry_after},
    })
}
