//! The handlers: one request in, one response out. Everything is generic over the rows of the table.

mod access;
mod apply;
mod author;
mod bounds;
mod decode;
mod delete;
mod eviction;
mod metrics;
mod options;
mod page;
mod pods;
mod proxy;
mod read;
mod reviews;
mod scale;
mod watch;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authn::{User, bearer_token};
use crate::features::Features;
use crate::kubelet::{Client, Kubelets};
use crate::metrics::Figures;
use crate::negotiate::{self, Wanted};
use crate::openapi::Documents;
use crate::rbac::Authorizer;
use crate::request::{Query, RequestInfo, ResourcePath, Target};
use crate::resources::{Registry, Resource, Serves};
use crate::serve::Busy;
use crate::services::Ranges;
use crate::status::{Failure, Result};
use crate::storage::Storage;
use crate::tokens::{self, Bearer, Bound, Tokens};
use crate::watch_cache::Caches;
use crate::{authz, discovery, object};
pub use bounds::Bounds;
use bounds::{Held, Place};

const SYNC_LIMIT: Duration = Duration::from_secs(20);

/// Everything that handlers share.
pub struct Api {
    /// The table.
    pub registry: &'static Registry,
    /// etcd.
    pub storage: Storage,
    /// Newest state and recent events.
    pub caches: Caches,
    /// ServiceAccount tokens.
    pub tokens: Tokens,
    /// Pods' nodes.
    pub kubelets: Kubelets,
    /// What roles allow.
    pub authorizer: Authorizer,
    /// What nodes and pods use.
    pub figures: Figures,
    /// Addresses and ports of Services.
    pub ranges: Ranges,
    /// Room for requests.
    pub bounds: Bounds,
    /// What of the table and the protocol is there.
    pub features: Features,
    /// What says so.
    pub documents: Arc<Documents>,
    /// Whether what every cluster has was made: its namespaces, its range of addresses.
    pub founded: AtomicBool,
    /// Ends watches.
    pub shutdown: CancellationToken,
}

/// A request about a resource, authorized.
pub(crate) struct Call {
    user: User,
    resource: &'static Resource,
    path: ResourcePath,
    query: Query,
    headers: HeaderMap,
    method: Method,
    wanted: Wanted,
    body: Bytes,
}

impl Call {
    fn namespace(&self) -> Option<&str> {
        self.path.namespace.as_deref()
    }

    fn name(&self) -> &str {
        self.path.name.as_deref().unwrap_or_default()
    }

    fn dry_run(&self) -> bool {
        self.query.get("dryRun").is_some()
    }
}

impl Api {
    /// Answers one request; failures become a `Status`. `busy` is dropped when the connection may go.
    pub(crate) async fn answer(
        self: Arc<Self>,
        peer: Option<User>,
        request: Request<Incoming>,
        busy: Busy,
    ) -> Response<Body> {
        let query = Query::parse(request.uri().query());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let is_long = bounds::is_long(&info);
        let may_pause = is_long && info.verb != "watch";
        let busy = Arc::new(if may_pause { busy.with_stream() } else { busy });
        match self.clone().dispatch(peer, request, info, query, &busy).await {
            Ok((answer, _)) if is_long => answer.map(|body| Held::body(body, busy, None)),
            Ok((answer, place)) => self.bounds.hold(answer, (place, busy)),
            Err(failure) => {
                if failure.code >= 500 {
                    tracing::warn!(code = failure.code, error = %failure.message, "request failed");
                }
                self.bounds.hold(negotiate::refuse(&failure), busy)
            }
        }
    }

    async fn dispatch(
        self: Arc<Self>,
        peer: Option<User>,
        request: Request<Incoming>,
        info: RequestInfo,
        query: Query,
        busy: &Arc<Busy>,
    ) -> Result<(Response<Body>, Place)> {
        let (mut parts, body) = request.into_parts();
        let user = self.authenticate(peer, &parts.headers).await?;
        let user = self.impersonated(user, &parts.headers).await?;
        let place = self.bounds.enter(&info, &user)?;
        if !self.may(&user, &info).await? {
            return Err(match user.is_in("system:unauthenticated") {
                true => Failure::unauthorized(),
                false => authz::refusal(&user, &info),
            });
        }
        let path = match info.target {
            Target::Other(segments) => {
                let answer = self.other(&segments, &query, &parts.headers).await?;
                return Ok((answer, place));
            }
            Target::Resource(path) => path,
        };
        let resource = self
            .registry
            .find(&path.group, &path.version, &path.resource)
            .filter(|row| self.features.serves(row))
            .ok_or_else(Failure::no_such_path)?;
        // Rights are those in the namespace of the path: it has to mean something.
        if !resource.namespaced && path.namespace.is_some() {
            return Err(Failure::no_such_path());
        }
        if resource.namespaced && path.namespace.is_none() && !matches!(&*info.verb, "list" | "watch") {
            return Err(Failure::method_not_allowed());
        }
        if resource.serves != Serves::Reviews && !self.caches.wait_synced(SYNC_LIMIT).await {
            return Err(Failure::unavailable("the store has not been read yet"));
        }
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let client = upgrade.map(|upgrade| Client {
            upgrade,
            busy: busy.clone(),
        });
        if path.subresource.as_deref() == Some("proxy") {
            return Ok((self.proxy(resource, &path, parts, body, client).await?, place));
        }
        // A stream that upgrades has no body to wait for, and nobody reads that of who only asks.
        let is_upgrade = client.is_some() && parts.headers.contains_key("upgrade");
        let (body, _carried_out) = match is_upgrade || matches!(&*info.verb, "get" | "list" | "watch") {
            true => (Bytes::new(), None),
            false => {
                let (body, room) = self.bounds.body(body, &user).await?;
                (body, Some(room))
            }
        };
        let wanted = match path.subresource.as_deref() {
            Some("log" | "exec" | "attach" | "portforward") => Wanted {
                shape: negotiate::Shape::Object,
                yaml: false,
            },
            _ => Wanted::from_headers(&parts.headers)?,
        };
        let (headers, method) = (parts.headers, parts.method);
        let call = Call {
            user,
            resource,
            path,
            query,
            headers,
            method,
            wanted,
            body,
        };
        let packs = matches!(&*info.verb, "get" | "list")
            && negotiate::names(&call.headers, &ACCEPT_ENCODING, "gzip");
        let mut answer = self.resource_call(&info.verb, call, client).await?;
        if packs {
            answer = negotiate::packed(answer).await?;
        }
        Ok((answer, place))
    }

    async fn resource_call(
        self: Arc<Self>,
        verb: &str,
        call: Call,
        client: Option<Client>,
    ) -> Result<Response<Body>> {
        if call.resource.serves == Serves::Reviews {
            return self.review(verb, &call).await;
        }
        if call.resource.serves == Serves::Figures {
            return self.metrics(verb, &call).await;
        }
        if call.resource.serves == Serves::None && !call.resource.verbs().contains(&verb) {
            return Err(Failure::not_served(call.resource.plural));
        }
        options::check_write_options(verb, &call)?;
        if let Some(subresource) = call.path.subresource.clone() {
            return self.subresource_call(verb, &subresource, call, client).await;
        }
        match verb {
            "get" => self.get(&call).await,
            "list" => self.list(&call).await,
            "watch" => self.watch(call).await,
            "create" if call.path.name.is_none() => self.create(&call).await,
            "update" => self.update(&call, write::Part::Object).await,
            "patch" => self.patch(&call, write::Part::Object).await,
            "delete" => self.delete(&call).await,
            "deletecollection" => self.delete_collection(&call).await,
            _ => Err(Failure::method_not_allowed()),
        }
    }

    async fn subresource_call(
        self: Arc<Self>,
        verb: &str,
        subresource: &str,
        call: Call,
        client: Option<Client>,
    ) -> Result<Response<Body>> {
        let resource = call.resource;
        match (resource.kind, subresource, verb) {
            (_, "status", "get") if resource.has_status => self.get(&call).await,
            (_, "status", "update") if resource.has_status => self.update(&call, write::Part::Status).await,
            (_, "status", "patch") if resource.has_status => self.patch(&call, write::Part::Status).await,
            (_, "scale", _) if resource.has_scale => self.scale(verb, &call).await,
            ("Namespace", "finalize", "update") => self.update(&call, write::Part::Finalizers).await,
            ("Pod", "binding", "create") => self.bind(&call).await,
            ("Pod", "eviction", "create") => self.evict(&call).await,
            ("Pod", "log", "get") => self.log(&call).await,
            ("Pod", "exec" | "attach" | "portforward", "get" | "create") => {
                self.stream(&call, subresource, client).await
            }
            ("ServiceAccount", "token", "create") => self.issue_token(&call).await,
            _ => Err(Failure::no_such_path()),
        }
    }

    /// A bearer token comes before the connection's certificate, as a caller that sends one means it.
    async fn authenticate(&self, peer: Option<User>, headers: &HeaderMap) -> Result<User> {
        let Some(token) = bearer_token(headers) else {
            return Ok(peer.unwrap_or_else(User::anonymous));
        };
        let bearer = self.bearer(token, &[]).await?;
        let bearer = bearer.ok_or_else(Failure::unauthorized)?;
        Ok(User::from_bearer(&bearer))
    }

    /// Whom a token speaks for that is valid for one of the audiences and whose account, and what it is bound to, still
    /// exist.
    pub(crate) async fn bearer(&self, token: &str, audiences: &[String]) -> Result<Option<Bearer>> {
        let Some(bearer) = self.tokens.verify(token, audiences) else {
            return Ok(None);
        };
        let now = now();
        let accounts = self.registry.kind("", "ServiceAccount");
        let account = self
            .look_up(accounts, Some(&bearer.namespace), &bearer.name)
            .await?;
        if account.is_none_or(|account| !tokens::vouches(&account, &bearer.uid, now)) {
            return Ok(None);
        }
        if let Some(Bound { kind, name, uid }) = &bearer.bound {
            let resource = self.registry.kind("", kind.kind());
            let namespace = kind.is_namespaced().then_some(bearer.namespace.as_str());
            let found = self.look_up(resource, namespace, name).await?;
            if found.is_none_or(|found| !tokens::vouches(&found, uid, now)) {
                return Ok(None);
            }
        }
        Ok(Some(bearer))
    }

    /// An object from memory, or from etcd when memory does not have it (yet).
    pub(crate) async fn look_up(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>> {
        let key = self.storage.key(resource, namespace, name);
        match self.caches.of(&self.storage, resource).get(&key) {
            Some(item) => Ok(Some(item.object.clone())),
            None => Ok(self.storage.get(&key).await?),
        }
    }

    async fn other(&self, segments: &[String], query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let json = |value: Value| Ok(negotiate::respond(200, &value, false));
        match words.as_slice() {
            ["version"] => json(crate::version(self.features.version)),
            ["healthz" | "livez", ..] => Ok(negotiate::bytes(200, "text/plain; charset=utf-8", "ok")),
            ["readyz", ..] => self.ready(query).await,
            ["openapi", ..] => {
                self.documents
                    .clone()
                    .answer(&segments[1..], query, headers)
                    .await
            }
            ["openid", "v1", "jwks"] => json(self.tokens.key_set()),
            [".well-known", "openid-configuration"] => json(json!({
                "issuer": self.tokens.issuer(), "jwks_uri": format!("{}/openid/v1/jwks", self.tokens.issuer()),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            })),
            [] => json(
                json!({ "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] }),
            ),
            ["api" | "apis", ..] => {
                discovery::answer(&self.features, self.documents.registry(), segments, headers)
            }
            _ => Err(Failure::no_such_path()),
        }
    }

    /// Ready means that etcd answers, that the caches have been loaded, and that the first objects are there.
    async fn ready(&self, query: &Query) -> Result<Response<Body>> {
        let etcd = self.storage.current_revision().await.is_ok();
        let informed = self.caches.wait_synced(Duration::from_millis(1)).await;
        let founded = self.founded.load(Ordering::Acquire);
        let line = |good: bool, name: &str| {
            format!(
                "[{}]{name} {}\n",
                if good { '+' } else { '-' },
                if good { "ok" } else { "failed" }
            )
        };
        let good = etcd && informed && founded;
        let code = if good { 200 } else { 500 };
        if good && !query.flag("verbose") {
            return Ok(negotiate::bytes(code, "text/plain; charset=utf-8", "ok"));
        }
        let verdict = if good {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        };
        let text = [
            line(etcd, "etcd"),
            line(informed, "caches"),
            line(founded, "first-objects"),
            verdict.to_owned(),
        ]
        .concat();
        Ok(negotiate::bytes(code, "text/plain; charset=utf-8", text))
    }

    /// Addresses and ports that Services hold, as far as memory knows.
    fn taken(&self) -> crate::services::Taken {
        let addresses = self
            .caches
            .of(
                &self.storage,
                self.registry.kind("networking.k8s.io", "IPAddress"),
            )
            .items();
        let addresses = addresses
            .iter()
            .filter_map(|item| object::name(&item.object).parse().ok())
            .collect();
        let services = self
            .caches
            .of(&self.storage, self.registry.kind("", "Service"))
            .items();
        let ports: HashSet<i64> = services
            .iter()
            .flat_map(|item| crate::services::node_ports(&item.object))
            .collect();
        crate::services::Taken { addresses, ports }
    }
}

/// Now, for timestamps and ages.
fn now() -> Timestamp {
    Timestamp::now()
}
