//! What requests may take of the server together: how many are answered at once (upstream's `--max-requests-inflight`
//! and `--max-mutating-requests-inflight`), and how much memory their bodies take. No user has all the places, nor all
//! the room for bodies: who asks too much is told to come later, and others are served (what upstream's priority and
//! fairness is for).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::authn::User;
use crate::config::Limits;
use crate::negotiate::MAX_VALUES;
use crate::object;
use crate::request::{RequestInfo, Target};
use crate::status::{Failure, Result};

/// Upstream's limit for request bodies.
const MAX_BODY_BYTES: usize = 3 << 20;
/// What a value of a body takes when it is read, in bytes, as an upper bound; see `MAX_VALUES`.
const VALUE_BYTES: usize = 512;
/// What an object of a list takes, as an upper bound of nearly all: our estimate for a pod of some 30 values of
/// `VALUE_BYTES`.
const OBJECT_BYTES: usize = 16 << 10;
/// An answer of no more than this is worth no place in memory while a client does not read it.
const SMALL_BYTES: u64 = 4 << 10;
/// An answer leaves in pieces, so that what a slow client has not read is known to wait.
const PIECE_BYTES: usize = 64 << 10;

/// Room for requests.
pub struct Bounds {
    reading: Arc<Places>,
    writing: Arc<Places>,
    /// Requests of nobody in particular: they take no place of others.
    anonymous: Arc<Places>,
    /// KiB of bodies that arrive.
    bodies: Arc<Places>,
    /// KiB of values that they are made of.
    values: Arc<Semaphore>,
    /// KiB of objects that lists are made of; apart from `values`, so that no write waits behind lists.
    objects: Arc<Semaphore>,
    /// Of each of these two.
    all_kib: u32,
    body_timeout: Duration,
    unread_timeout: Duration,
}

/// Requests that are answered at once, or KiB of their bodies.
#[derive(Debug)]
struct Places {
    all: usize,
    /// How many one user may have.
    of_one: usize,
    /// How many each user has, where that is any.
    taken: Mutex<HashMap<String, usize>>,
}

/// A request's place among those that are answered at once.
#[derive(Debug)]
pub(super) struct Place {
    _taken: Option<Taken>,
}

/// What a request's body takes as long as it is carried out.
#[derive(Debug)]
pub(super) struct Room {
    _arrived: Vec<Taken>,
    _values: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Taken {
    places: Arc<Places>,
    user: String,
    count: usize,
}

impl Places {
    fn new(all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Places {
            all,
            of_one,
            taken: Mutex::default(),
        })
    }

    /// `None` where administrators take more than there is: they may have to end what takes it all.
    fn take(self: &Arc<Self>, user: &User, count: usize) -> Result<Option<Taken>> {
        match self.try_take(&user.name, count) {
            None if !user.is_in("system:masters") => Err(Failure::too_many_requests()),
            taken => Ok(taken),
        }
    }

    fn try_take(self: &Arc<Self>, user: &str, count: usize) -> Option<Taken> {
        let mut taken = lock(&self.taken);
        let has = taken.get(user).copied().unwrap_or_default() + count;
        if has > self.of_one || taken.values().sum::<usize>() + count > self.all {
            return None;
        }
        taken.insert(user.to_owned(), has);
        Some(Taken {
            places: self.clone(),
            user: user.to_owned(),
            count,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(has) = taken.get_mut(&self.user) {
            *has -= self.count;
            if *has == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

impl Bounds {
    /// All of it free.
    pub fn new(limits: &Limits) -> Self {
        let kib_of = |bytes: usize| Arc::new(Semaphore::new(kib(bytes) as usize));
        let half = limits.value_bytes / 2;
        let shared = |all: usize| Places::new(all, (all * 3).div_ceil(4));
        let anonymous = limits.reading.div_ceil(4);
        Bounds {
            reading: shared(limits.reading),
            writing: shared(limits.writing),
            anonymous: Places::new(anonymous, anonymous),
            bodies: shared(kib(limits.body_bytes) as usize),
            values: kib_of(half),
            objects: kib_of(half),
            all_kib: kib(half),
            body_timeout: limits.body_timeout,
            unread_timeout: limits.unread_timeout,
        }
    }

    /// A place for a request; watches and streams need none (`WithMaxInFlightLimit`).
    ///
    /// # Errors
    /// 429 when there is none, or none for this user, but for administrators, who may have to end what takes them all.
    pub(super) fn enter(&self, info: &RequestInfo, user: &User) -> Result<Place> {
        if is_long(info) {
            return Ok(Place { _taken: None });
        }
        let places = match &*info.verb {
            _ if user.is_in("system:unauthenticated") => &self.anonymous,
            "create" | "update" | "patch" | "delete" | "deletecollection" | "post" => &self.writing,
            _ => &self.reading,
        };
        Ok(Place {
            _taken: places.take(user, 1)?,
        })
    }

    /// Room for the objects of a list as long as it is made; where there is none, others make theirs first. No list
    /// takes more than half of it.
    ///
    /// # Errors
    /// 429 when there is none for long.
    pub(super) async fn objects(&self, count: usize) -> Result<OwnedSemaphorePermit> {
        let wanted = kib(count.saturating_mul(OBJECT_BYTES)).min(self.all_kib / 2);
        self.wait_for(&self.objects, wanted).await
    }

    /// A request's whole body, and its room, for as long as the request is carried out.
    ///
    /// # Errors
    /// 413 for a longer one than upstream takes, 429 when there is no room, or none for this user, but for
    /// administrators; 504 when it does not arrive in time.
    pub(super) async fn body(&self, body: Incoming, user: &User) -> Result<(Bytes, Room)> {
        let read = tokio::time::timeout(self.body_timeout, self.read(body, user));
        let (body, arrived) = read.await.unwrap_or_else(|_| Err(Failure::timed_out()))?;
        let wanted = kib(VALUE_BYTES * values_at_most(&body)).min(self.all_kib);
        let room = Room {
            _arrived: arrived,
            _values: self.wait_for(&self.values, wanted).await?,
        };
        Ok((body, room))
    }

    /// Waits no longer than upstream lets a request wait in a queue: a quarter of its time
    /// (`BuildPriorityAndFairness`).
    async fn wait_for(&self, room: &Arc<Semaphore>, kib: u32) -> Result<OwnedSemaphorePermit> {
        let taken = room.clone().acquire_many_owned(kib);
        let taken = tokio::time::timeout(self.body_timeout / 4, taken).await;
        taken
            .ok()
            .and_then(std::result::Result::ok)
            .ok_or_else(Failure::too_many_requests)
    }

    /// What `answer` holds until it was read: nothing when it is small; otherwise no longer than the client reads on.
    pub(super) fn hold<T>(&self, answer: Response<Body>, held: T) -> Response<Body>
    where
        T: Send + Unpin + 'static,
    {
        let small = answer
            .body()
            .size_hint()
            .upper()
            .is_some_and(|most| most <= SMALL_BYTES);
        match small {
            true => answer,
            false => answer.map(|body| Held::body(body, held, Some(self.unread_timeout))),
        }
    }

    /// Room is taken for what arrives, not for what is announced: that costs a client nothing.
    async fn read(&self, mut body: Incoming, user: &User) -> Result<(Bytes, Vec<Taken>)> {
        let too_large = || Failure::too_large(MAX_BODY_BYTES);
        if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(too_large());
        }
        let mut whole = BytesMut::new();
        let mut room = Vec::new();
        let mut taken = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::bad_request(format!("read the body: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let bytes = whole.len() + data.len();
            if bytes > MAX_BODY_BYTES {
                return Err(too_large());
            }
            let wanted = kib(bytes) as usize;
            if wanted > taken {
                room.extend(self.bodies.take(user, wanted - taken)?);
                taken = wanted;
            }
            whole.extend_from_slice(&data);
        }
        Ok((whole.freeze(), room))
    }
}

/// Watches, and what passes through to a node (upstream's `BasicLongRunningRequestCheck`).
pub(super) fn is_long(info: &RequestInfo) -> bool {
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
pub(super) struct Held<T> {
    content: Arc<Mutex<Content<T>>>,
    /// Gives up what nobody reads. It is a task because a body is not asked for anything while the client leaves its
    /// HTTP/2 window closed.
    giving_up: Option<AbortHandle>,
}

struct Content<T> {
    /// `None`: given up.
    left: Option<(Body, T)>,
    rest: Bytes,
    last_read: Instant,
}

impl<T: Send + Unpin + 'static> Held<T> {
    /// `held` is dropped with the body, and both when nothing of it was read for `unread_timeout`.
    pub(super) fn body(body: Body, held: T, unread_timeout: Option<Duration>) -> Body {
        let content = Arc::new(Mutex::new(Content {
            left: Some((body, held)),
            rest: Bytes::new(),
            last_read: Instant::now(),
        }));
        let giving_up = unread_timeout
            .map(|timeout| tokio::spawn(give_up_unread(content.clone(), timeout)).abort_handle());
        Body::new(Held { content, giving_up })
    }
}

async fn give_up_unread<T>(content: Arc<Mutex<Content<T>>>, timeout: Duration) {
    loop {
        let end = lock(&content).last_read + timeout;
        if end <= Instant::now() {
            let mut content = lock(&content);
            content.rest = Bytes::new();
            content.left = None;
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.giving_up {
            task.abort();
        }
    }
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let mut content = lock(&self.content);
        let Content {
            left,
            rest,
            last_read,
        } = &mut *content;
        let Some((body, _)) = left else {
            return Poll::Ready(Some(Err(axum::Error::new("the client did not read on in time"))));
        };
        *last_read = Instant::now();
        if rest.is_empty() {
            match std::task::ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let content = lock(&self.content);
        let ended = |(body, _): &(Body, T)| content.rest.is_empty() && body.is_end_stream();
        content.left.as_ref().is_some_and(ended)
    }

    fn size_hint(&self) -> SizeHint {
        let content = lock(&self.content);
        let Some((body, _)) = &content.left else {
            return SizeHint::default();
        };
        let (rest, mut hint) = (content.rest.len() as u64, body.size_hint());
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_and_what_is_given_back_is_free() {
        let places = Places::new(4, 3);
        let mut hers = Vec::from([1, 2].map(|count| places.try_take("alice", count).expect("her part")));
        assert!(places.try_take("alice", 1).is_none(), "one of four is for others");
        assert!(places.try_take("bob", 2).is_none(), "one is left");
        let his = places.try_take("bob", 1).expect("the last place");
        assert!(places.try_take("carol", 1).is_none(), "all are taken");
        hers.pop();
        let next = places.try_take("carol", 2).expect("places that were given back");
        drop((hers, his, next));
        assert_eq!(*lock(&places.taken), HashMap::new());
    }

    #[tokio::test]
    async fn lists_wait_for_lists_for_some_time_and_hold_up_no_body() {
        let bounds = Bounds::new(&Limits {
            body_timeout: Duration::from_millis(4),
            ..Limits::default()
        });
        let large = async || {
            let room = bounds.objects(1 << 20).await;
            room.map_err(|failure| failure.code)
        };
        let mut lists = vec![large().await.expect("room"), large().await.expect("room")];
        assert_eq!(large().await.err(), Some(429));
        let body = bounds.wait_for(&bounds.values, bounds.all_kib).await;
        assert!(body.is_ok());
        lists.pop();
        assert!(large().await.is_ok());
    }
}
