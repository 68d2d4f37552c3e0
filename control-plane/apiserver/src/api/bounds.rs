//! What requests may take of the server together: how many are answered at once (upstream's `--max-requests-inflight`
//! and `--max-mutating-requests-inflight`), and how much memory their bodies take.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::negotiate::MAX_VALUES;
use crate::object;
use crate::request::{RequestInfo, Target};
use crate::status::{Failure, Result};

/// Upstream's limit for request bodies.
const MAX_BODY_BYTES: usize = 3 << 20;
/// What a value of a body takes when it is read, in bytes, as an upper bound.
const VALUE_BYTES: usize = 512;
/// What an object of a list takes, as an upper bound of nearly all; a pod takes about that.
const OBJECT_BYTES: usize = 16 << 10;
/// An answer leaves in pieces, so that what a slow client has not read is known to wait.
const PIECE_BYTES: usize = 64 << 10;

/// Room for requests.
pub struct Bounds {
    reading: Arc<Semaphore>,
    writing: Arc<Semaphore>,
    /// KiB of bodies that arrive.
    bodies: Arc<Semaphore>,
    /// KiB of values that they, and lists, are made of.
    values: Arc<Semaphore>,
    all_values_kib: u32,
    body_timeout: Duration,
}

/// A request's room, given back when its answer was read.
#[derive(Debug)]
pub(super) struct Room(Vec<OwnedSemaphorePermit>);

impl Bounds {
    /// All of it free.
    pub fn new(limits: &Limits) -> Self {
        let kib_of = |bytes: usize| Arc::new(Semaphore::new(kib(bytes) as usize));
        Bounds {
            reading: Arc::new(Semaphore::new(limits.reading)),
            writing: Arc::new(Semaphore::new(limits.writing)),
            bodies: kib_of(limits.body_bytes),
            values: kib_of(limits.value_bytes),
            all_values_kib: kib(limits.value_bytes),
            body_timeout: limits.body_timeout,
        }
    }

    /// A place for a request; watches and streams need none (`WithMaxInFlightLimit`).
    ///
    /// # Errors
    /// 429 when there is none, but for administrators, who may have to end what takes them all.
    pub(super) fn enter(&self, info: &RequestInfo, is_administrator: bool) -> Result<Room> {
        if is_long(info) {
            return Ok(Room(Vec::new()));
        }
        let places = match &*info.verb {
            "create" | "update" | "patch" | "delete" | "deletecollection" | "post" => &self.writing,
            _ => &self.reading,
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => Ok(Room(vec![place])),
            Err(_) if is_administrator => Ok(Room(Vec::new())),
            Err(_) => Err(Failure::too_many_requests()),
        }
    }

    /// Room for the objects of a list as long as it is made; where there is none, others make theirs first.
    pub(super) async fn objects(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = kib(count.saturating_mul(OBJECT_BYTES)).min(self.all_values_kib);
        self.values.clone().acquire_many_owned(wanted).await.ok()
    }

    /// A request's whole body; its room is in `room` then.
    ///
    /// # Errors
    /// 413 for a longer one than upstream takes, 429 when others take all room, 504 when it does not arrive in time.
    pub(super) async fn body(&self, body: Incoming, room: &mut Room) -> Result<Bytes> {
        let read = tokio::time::timeout(self.body_timeout, self.read(body, room));
        let body = read.await.unwrap_or_else(|_| Err(Failure::timed_out()))?;
        let wanted = kib(VALUE_BYTES * values_at_most(&body)).min(self.all_values_kib);
        let values = self.values.clone().acquire_many_owned(wanted);
        room.0.extend(values.await);
        Ok(body)
    }

    async fn read(&self, mut body: Incoming, room: &mut Room) -> Result<Bytes> {
        let too_large = || Failure::too_large(MAX_BODY_BYTES);
        let mut whole = BytesMut::new();
        let mut taken = 0;
        let announced = body.size_hint().lower();
        let mut take = |bytes: u64| {
            let wanted = usize::try_from(bytes)
                .ok()
                .filter(|bytes| *bytes <= MAX_BODY_BYTES);
            let more = kib(wanted.ok_or_else(too_large)?).saturating_sub(taken);
            let permit = self.bodies.clone().try_acquire_many_owned(more);
            room.0.push(permit.map_err(|_| Failure::too_many_requests())?);
            taken += more;
            Ok::<(), Failure>(())
        };
        take(announced)?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::bad_request(format!("read the body: {error}")))?;
            if let Ok(data) = frame.into_data() {
                take((whole.len() + data.len()) as u64)?;
                whole.extend_from_slice(&data);
            }
        }
        Ok(whole.freeze())
    }
}

/// Upstream's `--min-request-timeout` list: watches, and what passes through to a node.
fn is_long(info: &RequestInfo) -> bool {
    let Target::Resource(path) = &info.target else {
        return false;
    };
    let streams = ["attach", "exec", "log", "portforward", "proxy"];
    info.verb == "watch"
        || path
            .subresource
            .as_deref()
            .is_some_and(|sub| streams.contains(&sub))
}

/// No body is read that has more of them; other encodings than JSON need two bytes for each.
fn values_at_most(body: &[u8]) -> usize {
    match body.first() {
        Some(b'{' | b'[') => object::json_values_at_least(body),
        _ => body.len() / 2,
    }
    .min(MAX_VALUES)
}

/// Rounded up.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

/// A body that holds on to something until it was read, and leaves in pieces.
pub(crate) struct Held<T> {
    body: Body,
    rest: Bytes,
    _held: T,
}

impl<T: Send + Unpin + 'static> Held<T> {
    /// `held` is dropped with the body.
    pub(crate) fn body(body: Body, held: T) -> Body {
        Body::new(Held {
            body,
            rest: Bytes::new(),
            _held: held,
        })
    }
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}
