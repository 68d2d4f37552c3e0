//! The threads that have the kernel compared with what it shall have: on news, on changes of pods, on kernel events that
//! may concern us, and every ten seconds regardless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::with_causes;
use netlink::nft::Monitor;
use netlink::{Event, Events};

use crate::error::Error;
use crate::pods::PodNetwork;
use crate::reconcile::Outcome;

/// Everything is compared at least this often.
const AUDIT: Duration = Duration::from_secs(10);

/// Sooner where something failed.
const RETRY: Duration = Duration::from_secs(1);

/// Events come in bursts: wait for the rest of one.
const BURST: Duration = Duration::from_millis(30);

/// How often the listeners look whether they shall end.
const LISTEN: Duration = Duration::from_millis(500);

/// What is done on every occasion.
pub(crate) trait Work: Send + 'static {
    /// What it is told from outside.
    type News: Send + 'static;

    /// Takes news into account from the next pass on. Whether there shall be one soon.
    fn take(&mut self, news: Self::News) -> bool;

    /// One comparison of everything, and its report. Whether all is well.
    fn pass(&mut self) -> bool;
}

/// What changes in the kernel are occasions.
pub(crate) struct Watched {
    pub(crate) events: Events,
    /// Whether an event may concern us. Our own writes come back as events too: the look that they cause finds nothing
    /// to do.
    pub(crate) concerns: fn(&Event) -> bool,
    pub(crate) tables: Monitor,
}

/// What the threads are called: the one that works, and those that listen to events and to nftables.
pub(crate) type Names = [&'static str; 3];

enum Order<N> {
    News(N),
    Look,
    End,
}

/// The handle; the threads end when it is dropped.
pub(crate) struct Drive<N> {
    orders: Sender<Order<N>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<N: Send + 'static> Drive<N> {
    /// Starts the threads.
    pub(crate) fn start(
        [worker, events, tables]: Names,
        work: impl Work<News = N>,
        watched: Watched,
        pods: &PodNetwork,
    ) -> Result<Self, Error> {
        let (orders, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let changed = orders.clone();
        pods.listen(move || drop(changed.send(Order::Look)));
        let mut drive = Self {
            orders: orders.clone(),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        drive.spawn(worker, move || run(work, &received))?;
        let listener = listener(
            watched.events,
            watched.concerns,
            orders.clone(),
            Arc::clone(&stop),
        );
        drive.spawn(events, listener)?;
        drive.spawn(tables, nft_listener(watched.tables, orders, stop))?;
        Ok(drive)
    }

    /// Tells what is new.
    pub(crate) fn tell(&self, news: N) -> Result<(), Error> {
        self.orders
            .send(Order::News(news))
            .map_err(|_| Error::EngineEnded)
    }

    /// The same for those who outlive it; their news are dropped once it has ended.
    pub(crate) fn teller(&self) -> impl Fn(N) + Send + Sync + 'static {
        let orders = self.orders.clone();
        move |news| drop(orders.send(Order::News(news)))
    }

    fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads
            .push(spawned.map_err(|source| Error::StartThread { name, source })?);
        Ok(())
    }
}

impl<N> Drop for Drive<N> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.orders.send(Order::End); // it ended already
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // its panic was told when it happened
        }
    }
}

fn run<W: Work>(mut work: W, orders: &Receiver<Order<W::News>>) {
    let mut next = Instant::now() + AUDIT;
    loop {
        match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(order) => {
                if !take(&mut work, order) {
                    continue;
                }
                if !take_burst(&mut work, orders) {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let good = work.pass();
        next = Instant::now() + if good { AUDIT } else { RETRY };
    }
}

/// Whether there shall be a pass.
fn take<W: Work>(work: &mut W, order: Order<W::News>) -> bool {
    match order {
        Order::News(news) => work.take(news),
        Order::Look | Order::End => true,
    }
}

/// Takes what else came; false at the end.
fn take_burst<W: Work>(work: &mut W, orders: &Receiver<Order<W::News>>) -> bool {
    let until = Instant::now() + BURST;
    loop {
        match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Order::End) => return false,
            Ok(order) => {
                let _is_coming = take(work, order);
            }
            Err(_) => return true,
        }
    }
}

/// Reads kernel events and asks for a look at each that may concern us.
fn listener<N>(
    mut events: Events,
    concerns: fn(&Event) -> bool,
    orders: Sender<Order<N>>,
    stop: Arc<AtomicBool>,
) -> impl FnOnce() {
    move || {
        while !stop.load(Ordering::Relaxed) {
            let concerns_us = match events.next(LISTEN) {
                Ok(Some(event)) => concerns(&event),
                Ok(None) => false,
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "kernel events cannot be read, audits go on"
                    );
                    thread::sleep(LISTEN);
                    true
                }
            };
            if concerns_us && orders.send(Order::Look).is_err() {
                return;
            }
        }
    }
}

fn nft_listener<N>(mut monitor: Monitor, orders: Sender<Order<N>>, stop: Arc<AtomicBool>) -> impl FnOnce() {
    move || {
        while !stop.load(Ordering::Relaxed) {
            match monitor.wait(LISTEN) {
                Ok(false) => {}
                Ok(true) => {
                    if orders.send(Order::Look).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "nftables events cannot be read, audits go on"
                    );
                    thread::sleep(LISTEN);
                }
            }
        }
    }
}

/// Logs what a pass did, and what is wrong since: not what the pass before had told.
pub(crate) fn log(outcome: &Outcome, before: &Outcome) {
    if outcome.writes > 0 {
        tracing::info!(writes = outcome.writes, "pod network written");
    }
    let told = |problem: &&String| before.problems.contains(problem) || before.notes.contains(problem);
    let problems = outcome.problems.iter().chain(&outcome.notes);
    for problem in problems.filter(|problem| !told(problem)) {
        tracing::warn!(%problem, "pod network has a problem");
    }
}
