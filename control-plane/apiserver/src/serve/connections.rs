//! The connections that are open. There is a most of them; when one more comes, the one goes that has been without a
//! request for longest, be it idle, in its handshake, or a client that sends its request byte by byte.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// All of them.
pub(crate) struct Connections {
    most: usize,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// Counts what happens; orders connections by when they last had a request.
    clock: u64,
    by_id: HashMap<u64, Connection>,
    /// Those without requests: since when, and their ids.
    idle: BTreeMap<u64, u64>,
}

struct Connection {
    end: CancellationToken,
    requests: usize,
    idle_since: u64,
}

/// One connection's place; given up when dropped.
pub(crate) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    /// Cancelled when the connection has to go.
    pub(crate) end: CancellationToken,
    /// How many requests there are whose client may pause as long as it likes.
    pub(crate) streams: Arc<AtomicUsize>,
}

/// A request of a connection, until its answer was made and, when that is large, read.
/// An upgraded connection is one request to its end.
pub(crate) struct Busy {
    seat: Arc<Seat>,
    is_stream: bool,
}

impl Connections {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Connections {
            most,
            all: Mutex::default(),
        })
    }

    /// A place for a new connection; `None` when all places are taken by requests.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Seat> {
        let mut all = self.lock();
        if all.by_id.len() >= self.most {
            all.end_longest_idle()?;
        }
        let id = all.tick();
        let end = CancellationToken::new();
        let connection = Connection {
            end: end.clone(),
            requests: 0,
            idle_since: id,
        };
        all.by_id.insert(id, connection);
        all.idle.insert(id, id);
        Some(Seat {
            connections: self.clone(),
            id,
            end,
            streams: Arc::default(),
        })
    }

    /// Makes room where there is less of it than was thought.
    pub(crate) fn end_longest_idle(&self) {
        if self.lock().end_longest_idle().is_none() {
            tracing::debug!("all connections have requests");
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn end_longest_idle(&mut self) -> Option<()> {
        let (_, longest) = self.idle.pop_first()?;
        if let Some(gone) = self.by_id.remove(&longest) {
            gone.end.cancel();
        }
        Some(())
    }
}

impl Seat {
    /// Marks the connection as one that has a request.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        let mut all = self.connections.lock();
        let All { by_id, idle, .. } = &mut *all;
        if let Some(connection) = by_id.get_mut(&self.id) {
            connection.requests += 1;
            idle.remove(&connection.idle_since);
        }
        Busy {
            seat: self.clone(),
            is_stream: false,
        }
    }
}

impl Busy {
    /// For a request whose client may pause.
    pub(crate) fn with_stream(mut self) -> Self {
        if !std::mem::replace(&mut self.is_stream, true) {
            self.seat.streams.fetch_add(1, Ordering::AcqRel);
        }
        self
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.is_stream {
            self.seat.streams.fetch_sub(1, Ordering::AcqRel);
        }
        let mut all = self.seat.connections.lock();
        let now = all.tick();
        let All { by_id, idle, .. } = &mut *all;
        if let Some(connection) = by_id.get_mut(&self.seat.id) {
            connection.requests -= 1;
            if connection.requests == 0 {
                connection.idle_since = now;
                idle.insert(now, self.seat.id);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.connections.lock();
        if let Some(connection) = all.by_id.remove(&self.id) {
            all.idle.remove(&connection.idle_since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(connections: &Arc<Connections>, count: usize) -> Vec<Arc<Seat>> {
        let seat = |_| Arc::new(connections.admit().expect("a place"));
        (0..count).map(seat).collect()
    }

    fn ended(seats: &[Arc<Seat>]) -> Vec<bool> {
        seats.iter().map(|seat| seat.end.is_cancelled()).collect()
    }

    #[test]
    fn the_connection_goes_that_was_longest_without_a_request() {
        let connections = Connections::new(3);
        let all = seats(&connections, 3);
        let busy = all[0].busy();
        drop(all[1].busy());
        let newer = seats(&connections, 1);
        assert_eq!(ended(&all), [false, false, true]);
        drop(busy);
        let newest = seats(&connections, 1);
        assert_eq!(ended(&all), [false, true, true]);
        assert_eq!(ended(&[newer, newest].concat()), [false, false]);
    }

    #[test]
    fn who_has_a_request_stays_and_no_one_more_comes() {
        let connections = Connections::new(2);
        let all = seats(&connections, 2);
        let busy: Vec<Busy> = all.iter().map(Seat::busy).collect();
        assert!(connections.admit().is_none());
        drop(busy);
        assert!(connections.admit().is_some());
        assert_eq!(ended(&all), [true, false]);
    }

    #[test]
    fn streams_are_counted_and_who_has_one_stays_when_files_run_out() {
        let connections = Connections::new(8);
        let all = seats(&connections, 3);
        let streams = || all[0].streams.load(Ordering::Acquire);
        let stream = all[0].busy().with_stream();
        drop(all[0].busy().with_stream());
        assert_eq!(streams(), 1);
        for _ in 0..3 {
            connections.end_longest_idle();
        }
        assert_eq!(ended(&all), [false, true, true]);
        drop(stream);
        assert_eq!(streams(), 0);
        connections.end_longest_idle();
        assert_eq!(ended(&all), [true, true, true]);
    }

    #[test]
    fn a_place_that_is_given_up_ends_nobody() {
        let connections = Connections::new(2);
        let all = seats(&connections, 1);
        let second = connections.admit();
        drop(second);
        seats(&connections, 1);
        assert_eq!(ended(&all), [false]);
    }
}
