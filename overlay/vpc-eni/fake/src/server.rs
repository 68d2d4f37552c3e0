//! The cloud over HTTP: EC2's endpoint, and a metadata service for each instance.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use vpc_eni::ec2::{InstanceId, Why};

use crate::metadata::{Sessions, TOKEN_PATH, TTL};
use crate::request::Refusal;
use crate::{Cloud, query, xml};

/// How much a request may say, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// EC2's endpoint and the instances' metadata services. All of them end when this is dropped.
pub struct Server {
    cloud: Cloud,
    ec2: SocketAddr,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// Nobody answers: the connection ends.
#[derive(Debug, thiserror::Error)]
#[error("nobody answers")]
struct Silence;

impl Server {
    /// EC2's endpoint at an address (port 0: any that is free).
    ///
    /// # Errors
    /// Those of binding it.
    pub fn start(cloud: &Cloud, at: SocketAddr) -> io::Result<Self> {
        Self::start_on(cloud, TcpListener::bind(at)?)
    }

    /// EC2's endpoint at a listener, which may be of another network namespace.
    ///
    /// # Errors
    /// Those of looking at it.
    pub fn start_on(cloud: &Cloud, listener: TcpListener) -> io::Result<Self> {
        let ec2 = listener.local_addr()?;
        let stop = CancellationToken::new();
        let endpoint = Arc::new(Endpoint {
            cloud: cloud.clone(),
            last_request: AtomicU64::new(0),
        });
        let handle = move |request| {
            let endpoint = Arc::clone(&endpoint);
            async move { endpoint.handle(request).await }
        };
        tokio::spawn(accept(into_tokio(listener)?, stop.clone(), handle));
        Ok(Self {
            cloud: cloud.clone(),
            ec2,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Where EC2's endpoint is.
    #[must_use]
    pub const fn ec2(&self) -> SocketAddr {
        self.ec2
    }

    /// The metadata service of an instance at an address (port 0: any that is free); where it is.
    ///
    /// # Errors
    /// Those of binding it.
    pub fn serve_metadata(&self, instance: &InstanceId, at: SocketAddr) -> io::Result<SocketAddr> {
        self.serve_metadata_on(instance, TcpListener::bind(at)?)
    }

    /// The metadata service of an instance at a listener, which may be of another network namespace; where it is.
    ///
    /// # Errors
    /// Those of looking at it.
    pub fn serve_metadata_on(&self, instance: &InstanceId, listener: TcpListener) -> io::Result<SocketAddr> {
        let at = listener.local_addr()?;
        let sessions = Arc::new(Mutex::new(Sessions::new(self.cloud.imds(instance))));
        let handle = move |request: Request<Incoming>| {
            let answer = sessions.lock().unwrap_or_else(PoisonError::into_inner).answer(
                request.method(),
                request.uri().path(),
                request.headers(),
            );
            // A session's token comes with how long it lasts; AWS's SDKs take none without.
            let lasts = request.headers().get(TTL).cloned();
            let lasts = lasts.filter(|_| request.uri().path() == TOKEN_PATH);
            async move {
                let (status, body) = answer.ok_or(Silence)?;
                let mut response = response(status, "text/plain", body);
                if let Some(lasts) = lasts.filter(|_| status.is_success()) {
                    response.headers_mut().insert(TTL, lasts);
                }
                Ok(response)
            }
        };
        tokio::spawn(accept(into_tokio(listener)?, self.stop.clone(), handle));
        Ok(at)
    }
}

fn into_tokio(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Serves connections until it is stopped; then they end, whatever they are at.
async fn accept<H, F>(listener: tokio::net::TcpListener, stop: CancellationToken, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Silence>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // The caller went away before it was served.
                Err(_) => continue,
            },
        };
        let service = service_fn(handle.clone());
        connections.spawn(async move {
            // It ends with an error where the client goes, and where nobody is to answer.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// EC2's endpoint.
struct Endpoint {
    cloud: Cloud,
    last_request: AtomicU64,
}

impl Endpoint {
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Silence> {
        let number = self.last_request.fetch_add(1, Ordering::Relaxed) + 1;
        let request_id = format!("00000000-0000-4000-8000-{number:012x}");
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
            return Err(Silence);
        };
        let form = if head.method == Method::GET {
            Bytes::from(head.uri.query().unwrap_or_default().to_owned())
        } else {
            body.to_bytes()
        };
        let (status, body) = match self.answer(&head.headers, &form, &request_id).await {
            Ok(body) => (StatusCode::OK, body),
            Err(Refused::Silently) => return Err(Silence),
            Err(Refused::With(refusal)) => {
                let status = StatusCode::from_u16(xml::status(&refusal.code));
                let status = status.unwrap_or(StatusCode::BAD_REQUEST);
                (status, xml::refusal(&refusal, &request_id))
            }
        };
        Ok(response(status, "text/xml;charset=UTF-8", body))
    }

    async fn answer(&self, headers: &HeaderMap, form: &[u8], request_id: &str) -> Result<String, Refused> {
        if self.cloud.weather().outage {
            return Err(Refused::Silently);
        }
        check_signature(headers)?;
        let request = query::read(form)?;
        let action = request.action();
        match self.cloud.call(request).await {
            Ok(reply) => Ok(xml::reply(action, &reply, request_id, self.cloud.calendar())),
            Err(error) => match error.why {
                Why::Refused { code, message } => Err(Refused::With(Refusal { code, message })),
                Why::NoCredentials(_) | Why::NoAnswer(_) => Err(Refused::Silently),
            },
        }
    }
}

/// Why a request gets no reply of its own.
enum Refused {
    With(Refusal),
    Silently,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::With(refusal)
    }
}

/// Whether the request is signed at all; with what, is no matter here.
fn check_signature(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(signature) = headers.get(header::AUTHORIZATION) else {
        return Err(Refusal::new(
            "MissingAuthenticationToken",
            "The request must contain either a valid (registered) AWS access key ID or X.509 certificate",
        ));
    };
    let is_signed = signature.to_str().is_ok_and(|text| {
        text.starts_with("AWS4-HMAC-SHA256 ") && text.contains("Credential=") && text.contains("Signature=")
    });
    if !is_signed {
        let message = "AWS was not able to validate the provided access credentials";
        return Err(Refusal::new("AuthFailure", message));
    }
    Ok(())
}
