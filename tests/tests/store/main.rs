//! The store speaks etcd: one table of rows (operations and what comes of them) is run against our store and against a
//! real etcd, and every answer has to be the same, down to the texts of errors. Only an endpoint is needed.

mod figures;
mod histories;
mod random;
mod rows;
mod script;
mod transcript;

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use etcd_client::Client;
use rows::{Differs, ROWS, Row};
use script::Session;
use tests::{
    directory::Directory,
    is_full_run, ports,
    process::{Place, Process},
    skipped,
};
use tokio_util::sync::CancellationToken;

const START_LIMIT: Duration = Duration::from_secs(30);

/// Scripts of random operations.
const SEEDS: u64 = 60;
/// `make test-full`: too long for every change.
const SEEDS_FULL: u64 = 1000;
const OPERATIONS: usize = 40;

#[tokio::test]
async fn our_store_answers_like_etcd() {
    let Some(mut pair) = Pair::start("our_store_answers_like_etcd").await else {
        return;
    };
    let mut failures = Vec::new();
    for row in ROWS {
        let ours = pair.ours(row.script).await;
        let expected = match &row.differs {
            None => pair.theirs(row.script).await,
            Some(Differs { why: _, ours }) => (*ours).to_owned(),
        };
        failures.extend(judge(row, &ours, &expected));
    }
    assert!(
        failures.is_empty(),
        "{} of {} rows:\n{}",
        failures.len(),
        ROWS.len(),
        failures.join("\n")
    );
    println!("{} rows agree", ROWS.len());
}

#[tokio::test]
async fn our_store_answers_random_operations_like_etcd() {
    let Some(mut pair) = Pair::start("our_store_answers_random_operations_like_etcd").await else {
        return;
    };
    for seed in 0..seeds() {
        let script = random::script(seed, OPERATIONS);
        let (ours, theirs) = (pair.ours(&script).await, pair.theirs(&script).await);
        let answers = ours.lines().zip(theirs.lines());
        let first_other = answers.enumerate().find(|(_, (ours, theirs))| ours != theirs);
        assert_eq!(first_other, None, "seed {seed}:\n{script}");
        assert_eq!(ours, theirs, "seed {seed}:\n{script}");
    }
}

fn judge(row: &Row, ours: &str, expected: &str) -> Option<String> {
    (ours.trim() != expected.trim()).then(|| {
        let Row { claim, script, .. } = row;
        format!("--- {claim}\n{script}\nours:\n{ours}\nexpected:\n{expected}\n")
    })
}

/// Our store and a real etcd, each with a client.
struct Pair {
    ours: Client,
    theirs: Client,
    _our_store: OurStore,
    _etcd: Etcd,
}

impl Pair {
    /// Says loudly when there is no etcd.
    async fn start(test: &str) -> Option<Self> {
        let Some(program) = tests::etcd::program() else {
            skipped(test, "no etcd on PATH or in target/tools (run ./setup.sh test)");
            return None;
        };
        let etcd = Etcd::start(&program);
        let our_store = OurStore::start().await;
        let ours = connect(&our_store.endpoint()).await;
        let theirs = connect(&etcd.endpoint()).await;
        Some(Self {
            ours,
            theirs,
            _our_store: our_store,
            _etcd: etcd,
        })
    }

    async fn ours(&mut self, script: &str) -> String {
        Session::start(&mut self.ours).await.run(script).await
    }

    async fn theirs(&mut self, script: &str) -> String {
        Session::start(&mut self.theirs).await.run(script).await
    }
}

async fn connect(endpoint: &str) -> Client {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let tried = match Client::connect([endpoint], None).await {
            Ok(mut client) => client.status().await.map(|_| client),
            Err(error) => Err(error),
        };
        match tried {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{endpoint} does not answer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Etcd {
    client_addr: SocketAddr,
    _process: Process,
    _directory: Directory,
}

impl Etcd {
    fn start(program: &Path) -> Self {
        let directory = Directory::new("etcd");
        let [client_addr, peer_addr] = free_addrs();
        let data = directory.path().join("data");
        let mut command = etcd_command(program, &data, [client_addr, peer_addr]);
        let process = Process::spawn(&Place::default(), &mut command).expect("start etcd");
        Self {
            client_addr,
            _process: process,
            _directory: directory,
        }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.client_addr)
    }
}

/// etcd with its data in a directory, for clients at the first address.
fn etcd_command(program: &Path, data: &Path, addrs: [SocketAddr; 2]) -> Command {
    let [client, peer] = addrs.map(|addr| format!("http://{addr}"));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(data);
    command.args([
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ]);
    command.args([
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
    ]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    command
}

/// Two addresses that are free now; etcd cannot be told to choose, and to say what it chose.
fn free_addrs() -> [SocketAddr; 2] {
    [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], ports::free())))
}

struct OurStore {
    addr: SocketAddr,
    stop: CancellationToken,
    _directory: Directory,
}

impl OurStore {
    async fn start() -> Self {
        let directory = Directory::new("ours");
        let config = store::Config::new(directory.path().join("data"), vec![([127, 0, 0, 1], 0).into()]);
        let server = store::Server::bind(config).await.expect("bind the store");
        let addr = server.local_addrs()[0];
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self {
            addr,
            stop,
            _directory: directory,
        }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for OurStore {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn seeds() -> u64 {
    if is_full_run() { SEEDS_FULL } else { SEEDS }
}
