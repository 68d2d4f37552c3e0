//! One kind of object: from the API's list and watch to [`Observed`].

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use model::{Kind, ObjectName, with_causes};
use tokio::sync::mpsc;

use super::faults::Rejected;
use super::object::{Converted, Watchable, Watched};
use super::requests::LONGEST_ASKED;
use super::status::Status;
use crate::backoff::Backoff;

/// A server that accepts a streaming list and then says nothing for this long does not know streaming lists: before
/// Kubernetes 1.27 the parameter is ignored, and the mark of the list's end never comes.
const STREAMING_SILENCE: Duration = Duration::from_secs(10);

/// Two lists that begin within this time are a server in trouble, even where it reports no error.
const HASTY_LIST: Duration = Duration::from_secs(1);

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The same for a kind that the server does not have, or not yet.
const LONGEST_WITHOUT: Duration = Duration::from_secs(300);

/// What the API says of one kind, in order.
#[derive(Debug)]
pub(super) enum Observed {
    /// A complete list follows.
    ListBegins(Kind),
    /// An object, listed or changed.
    Object {
        kind: Kind,
        name: ObjectName,
        converted: Converted,
        rejected: Vec<Rejected>,
    },
    /// The list that began is complete: of this kind there is nothing else.
    ListEnds(Kind),
    /// An object was deleted.
    Gone(Kind, ObjectName),
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The server does not accept the credentials (any more), or they were replaced.
    Credentials,
    /// Nobody listens.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// The list comes as the first part of the watch (KEP-3157).
    Streaming,
    /// Pages of a list, then a watch.
    Paged,
}

/// Watches one kind until the credentials fail or nobody listens.
pub(super) async fn watch_kind<K: Watchable + Clone + Debug>(
    client: Client,
    labels: Option<String>,
    observed: mpsc::Sender<Observed>,
    status: Status,
    credentials_changed: impl Fn() -> bool,
) -> Ended {
    let mut follower = Follower {
        labels,
        observed,
        status,
        credentials_changed,
        strategy: Strategy::Streaming,
        listing: true,
        backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
        without: None,
        last_list: None,
        last_error: None,
        asked: Instant::now(),
    };
    loop {
        let api = Api::<Watched<K>>::all(client.clone());
        match follower.follow(api).await {
            Left::Ended(ended) => return ended,
            Left::NoStreaming => {
                tracing::info!(kind = ?K::KIND, "server has no streaming lists, listing by pages");
                follower.strategy = Strategy::Paged;
            }
        }
    }
}

/// Why a stream of events was left.
enum Left {
    NoStreaming,
    Ended(Ended),
}

/// Where the watch of one kind stands.
struct Follower<F> {
    /// Label selector. None = all objects.
    labels: Option<String>,
    observed: mpsc::Sender<Observed>,
    status: Status,
    credentials_changed: F,
    strategy: Strategy,
    /// The list that began is not complete.
    listing: bool,
    backoff: Backoff,
    /// While the server denies an optional kind.
    without: Option<Backoff>,
    last_list: Option<Instant>,
    last_error: Option<Instant>,
    /// When the latest request was made, at the earliest.
    asked: Instant,
}

impl<F: Fn() -> bool> Follower<F> {
    /// Passes events on until the stream is to be left.
    async fn follow<K: Watchable + Clone + Debug>(&mut self, api: Api<Watched<K>>) -> Left {
        let config = watcher::Config {
            label_selector: self.labels.clone(),
            field_selector: K::FIELDS.map(str::to_owned),
            ..watcher::Config::default()
        };
        let config = match self.strategy {
            Strategy::Streaming => config.streaming_lists(),
            Strategy::Paged => config,
        };
        let mut events = pin!(watcher(api, config));
        self.listing = true;
        self.asked = Instant::now();
        loop {
            let next = if self.listing && self.strategy == Strategy::Streaming {
                let silence = self.silence_of(K::KIND).unwrap_or_default();
                match tokio::time::timeout(STREAMING_SILENCE.saturating_sub(silence), events.next()).await {
                    Ok(next) => next,
                    Err(_silent) if self.silence_of(K::KIND) >= Some(STREAMING_SILENCE) => {
                        return Left::NoStreaming;
                    }
                    Err(_silent) => continue,
                }
            } else {
                events.next().await
            };
            let left = match next {
                None => Some(Left::Ended(Ended::Closed)),
                Some(Ok(event)) => self.pass_on(event).await,
                Some(Err(error)) if K::OPTIONAL && is_denied(&error) => {
                    self.do_without(K::KIND, &error).await;
                    None
                }
                Some(Err(error)) => {
                    let left = self.recover(K::KIND, &error).await;
                    self.asked = Instant::now();
                    left
                }
            };
            if let Some(left) = left {
                return left;
            }
        }
    }

    /// How long the server says nothing since it answered the latest request. None = it has not answered: it may be
    /// away.
    fn silence_of(&self, kind: Kind) -> Option<Duration> {
        let heard = self.status.kinds().get(&kind)?.heard?;
        (heard >= self.asked).then(|| heard.elapsed())
    }

    async fn pass_on<K: Watchable>(&mut self, event: Event<Watched<K>>) -> Option<Left> {
        match event {
            Event::Init => {
                self.listing = true;
                self.status.list_began(K::KIND);
                if self.last_list.is_some_and(|last| last.elapsed() < HASTY_LIST) {
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
                self.last_list = Some(Instant::now());
            }
            Event::InitApply(_) => {}
            Event::InitDone | Event::Apply(_) | Event::Delete(_) => {
                self.listing = false;
                self.backoff.reset();
                self.without = None;
            }
        }
        // Before pages of a list the watcher says by itself that it begins: nobody was heard yet.
        if !matches!(event, Event::Init) {
            self.status.heard(K::KIND);
        }
        let sent = self.observed.send(observation(event)).await;
        sent.is_err().then_some(Left::Ended(Ended::Closed))
    }

    /// The server has no such kind, or its role does not allow it. It may be upgraded.
    async fn do_without(&mut self, kind: Kind, error: &watcher::Error) {
        self.status.denied(kind);
        let backoff = self.without.get_or_insert_with(|| {
            tracing::info!(
                ?kind,
                error = with_causes(error),
                "server denies this kind, doing without it"
            );
            Backoff::new(FIRST_DELAY, LONGEST_WITHOUT)
        });
        tokio::time::sleep(backoff.next_delay()).await;
    }

    /// Does what an error asks for: waits, or leaves the stream.
    async fn recover(&mut self, kind: Kind, error: &watcher::Error) -> Option<Left> {
        self.status.failed(kind, error);
        // A watch that goes on again after an error may say nothing for long.
        if self
            .last_error
            .is_some_and(|last| last.elapsed() > 2 * LONGEST_DELAY)
        {
            self.backoff.reset();
        }
        self.last_error = Some(Instant::now());
        let not_before = match Verdict::of(error) {
            // Also where it had them before: 1.33 has them off that 1.32 has on.
            Verdict::NoStreaming if self.strategy == Strategy::Streaming => {
                return Some(Left::NoStreaming);
            }
            Verdict::BadCredentials => return Some(Left::Ended(Ended::Credentials)),
            _ if (self.credentials_changed)() => return Some(Left::Ended(Ended::Credentials)),
            // Nothing to wait for: the watcher lists again at once.
            Verdict::ListAgain => return None,
            Verdict::TryAgain { not_before } => not_before,
            Verdict::NoStreaming => Duration::ZERO,
        };
        let not_before = not_before.max(self.status.asked_to_wait(kind));
        tokio::time::sleep(self.backoff.next_delay().max(not_before)).await;
        None
    }
}

fn observation<K: Watchable>(event: Event<Watched<K>>) -> Observed {
    match event {
        Event::Init => Observed::ListBegins(K::KIND),
        Event::InitDone => Observed::ListEnds(K::KIND),
        Event::Delete(object) => Observed::Gone(K::KIND, object.name()),
        Event::InitApply(object) | Event::Apply(object) => Observed::Object {
            kind: K::KIND,
            name: object.name(),
            converted: object.converted,
            rejected: object.rejected,
        },
    }
}

/// Whether the server says that there is nothing to list here (404), or nothing for us (403).
pub(super) fn is_denied(error: &watcher::Error) -> bool {
    status_of(error).is_some_and(|status| matches!(status.code, 403 | 404))
}

fn status_of(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// What an error asks for.
enum Verdict {
    /// Wait, at least as long as the server asks for in its answer, and go on.
    TryAgain { not_before: Duration },
    /// The history that we stood in is compacted away (410 Gone).
    ListAgain,
    /// The server refuses the request itself: where streaming lists are asked for it means those.
    NoStreaming,
    /// 401.
    BadCredentials,
}

impl Verdict {
    fn of(error: &watcher::Error) -> Self {
        let Some(status) = status_of(error) else {
            return Self::TryAgain {
                not_before: Duration::ZERO,
            };
        };
        match status.code {
            401 => Self::BadCredentials,
            410 => Self::ListAgain,
            400 | 405 | 406 | 422 => Self::NoStreaming,
            _ => {
                let seconds = status
                    .details
                    .as_ref()
                    .map_or(0, |details| details.retry_after_seconds);
                let wanted = Duration::from_secs(u64::from(seconds));
                Self::TryAgain {
                    not_before: wanted.min(LONGEST_ASKED),
                }
            }
        }
    }
}
