//! A store in this process, with a directory that outlives it.

use std::{
    fmt::Debug,
    future::Future,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, Error};
use store::{Clock, Config, Server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What is awaited comes within this time.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A directory of one test's own, removed when dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cwt-store-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// On a free loopback port, without TLS.
pub fn config(directory: &Directory) -> Config {
    Config::new(directory.file("store"), vec![([127, 0, 0, 1], 0).into()])
}

/// A store that runs.
pub struct Store {
    pub endpoint: String,
    stop: CancellationToken,
    running: JoinHandle<Result<(), store::Error>>,
}

impl Store {
    pub async fn start(config: Config) -> Self {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let server = Server::bind(config).await.unwrap();
        let endpoint = format!("{scheme}://{}", server.local_addrs()[0]);
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self {
            endpoint,
            stop,
            running,
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect([&self.endpoint], None).await.unwrap()
    }

    /// Ends it as it ends in service: cancelled, and everything closed.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// Time that only the test moves on.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    passed: Mutex<Duration>,
}

impl ManualClock {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            passed: Mutex::new(Duration::ZERO),
        }
    }

    pub fn pass(&self, seconds: u64) {
        *self.passed.lock().unwrap() += Duration::from_secs(seconds);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + *self.passed.lock().unwrap()
    }
}

/// Asks until the answer is the expected one.
#[track_caller]
pub fn eventually<T, F>(expected: T, mut observe: impl FnMut() -> F) -> impl Future<Output = ()>
where
    T: PartialEq + Debug,
    F: Future<Output = T>,
{
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = observe().await;
            if seen == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{caller}: saw {seen:?}, not {expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Code and text of an error, as clients match them.
pub fn refusal<T: Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        other => panic!("not refused: {other:?}"),
    }
}

/// The value of a key.
pub async fn value(client: &mut Client, key: &str) -> Option<String> {
    let found = client.get(key, None).await.unwrap();
    found.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
}
