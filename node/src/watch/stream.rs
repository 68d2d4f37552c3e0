//! One kind of object: from the API's list and watch to [`Observed`].

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use model::{Kind, ObjectName};
use tokio::sync::mpsc;

use super::faults::Rejected;
use super::object::{Converted, Watchable, Watched};
use super::status::Status;
use crate::backoff::Backoff;

/// A server that takes a streaming list but sends nothing for this long does not know streaming lists: before
/// Kubernetes 1.27 the parameter is ignored, and the mark of the list's end never comes.
const STREAMING_SILENCE: Duration = Duration::from_secs(10);

/// Two lists that begin within this time are a server in trouble, even where it reports no error.
const HASTY_LIST: Duration = Duration::from_secs(1);

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

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
    observed: mpsc::Sender<Observed>,
    status: Status,
    credentials_changed: impl Fn() -> bool,
) -> Ended
where
    Watched<K>: kube::Resource<DynamicType = ()>,
{
    let mut strategy = Strategy::Streaming;
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    loop {
        let api = Api::<Watched<K>>::all(client.clone());
        match follow(
            api,
            strategy,
            &observed,
            &status,
            &mut backoff,
            &credentials_changed,
        )
        .await
        {
            Follow::Ended(ended) => return ended,
            Follow::NoStreaming => {
                tracing::info!(kind = ?K::KIND, "server has no streaming lists, listing by pages");
                strategy = Strategy::Paged;
            }
        }
    }
}

/// Why one strategy was left.
enum Follow {
    NoStreaming,
    Ended(Ended),
}

async fn follow<K: Watchable + Clone + Debug>(
    api: Api<Watched<K>>,
    strategy: Strategy,
    observed: &mpsc::Sender<Observed>,
    status: &Status,
    backoff: &mut Backoff,
    credentials_changed: &impl Fn() -> bool,
) -> Follow {
    let config = match strategy {
        Strategy::Streaming => watcher::Config::default().streaming_lists(),
        Strategy::Paged => watcher::Config::default(),
    };
    let mut events = pin!(watcher(api, config));
    let mut listing = true;
    let mut last_list: Option<Instant> = None;
    let mut last_error: Option<Instant> = None;
    loop {
        let next = if listing && strategy == Strategy::Streaming {
            match tokio::time::timeout(STREAMING_SILENCE, events.next()).await {
                Ok(next) => next,
                Err(_silent) => return Follow::NoStreaming,
            }
        } else {
            events.next().await
        };
        match next {
            None => return Follow::Ended(Ended::Closed),
            Some(Ok(event)) => {
                if matches!(event, Event::Init) {
                    listing = true;
                    status.list_began(K::KIND);
                    if last_list.is_some_and(|last| last.elapsed() < HASTY_LIST) {
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                    last_list = Some(Instant::now());
                } else if !matches!(event, Event::InitApply(_)) {
                    listing = false;
                    backoff.reset();
                }
                status.heard(K::KIND);
                if observed.send(observation(event)).await.is_err() {
                    return Follow::Ended(Ended::Closed);
                }
            }
            Some(Err(error)) => {
                status.failed(K::KIND, &error);
                // A watch that goes on again after an error may say nothing for long.
                if last_error.is_some_and(|last| last.elapsed() > 2 * LONGEST_DELAY) {
                    backoff.reset();
                }
                last_error = Some(Instant::now());
                match Verdict::of(&error) {
                    Verdict::NoStreaming if listing && strategy == Strategy::Streaming => {
                        return Follow::NoStreaming;
                    }
                    Verdict::BadCredentials => return Follow::Ended(Ended::Credentials),
                    _ if credentials_changed() => return Follow::Ended(Ended::Credentials),
                    Verdict::TryAgain { not_before } => {
                        tokio::time::sleep(backoff.next_delay().max(not_before)).await;
                    }
                    // Nothing to wait for: the watcher lists again at once.
                    Verdict::ListAgain => {}
                    Verdict::NoStreaming => tokio::time::sleep(backoff.next_delay()).await,
                }
            }
        }
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

/// What an error asks for.
enum Verdict {
    /// Wait, at least as long as the server asks for (`Retry-After`), and go on.
    TryAgain { not_before: Duration },
    /// The history that we stood in is compacted away (410 Gone).
    ListAgain,
    /// The server refuses the request itself: before the first complete list that means streaming lists.
    NoStreaming,
    /// 401.
    BadCredentials,
}

impl Verdict {
    fn of(error: &watcher::Error) -> Self {
        let status = match error {
            watcher::Error::WatchError(status) => status,
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status)) => status,
            _ => {
                return Self::TryAgain {
                    not_before: Duration::ZERO,
                };
            }
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
                Self::TryAgain {
                    not_before: Duration::from_secs(u64::from(seconds)),
                }
            }
        }
    }
}
