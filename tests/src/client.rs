//! Clients of Services: the test server's program in its other role. It runs in a pod, on a node or outside of the
//! cluster, as a process of the test; or in a container, by the Kubernetes API alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use netlink::Namespace;

use crate::api::Api;
use crate::process::{Place, command, run_in};
use crate::{cgroup, wait};

/// How long the cluster may take to follow a change.
pub const SOON: Duration = Duration::from_secs(20);
/// Long enough for an answer, short enough to wait for none.
const PATIENCE_MILLIS: &str = "400";
/// An answer that comes later than this is lost, however busy the machine is.
const LOST_MILLIS: &str = "3000";
/// So many random choices miss one of three endpoints once in 5000 times, and are then made again.
const SEVERAL: usize = 24;

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// HTTP, with a connection for each request.
    Tcp,
    /// By a connected socket.
    Udp,
    /// By `sendto`, with a socket for each request.
    UdpUnconnected,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A pod of that name answered. HTTP alone tells which address it saw.
    Served {
        /// Its name.
        pod: String,
        /// The client's address as it saw it.
        saw: Option<IpAddr>,
    },
    /// HTTP by somebody else than a pod, or with an error.
    Status(u16),
    /// Nobody listens, as the network says.
    Refused,
    /// Nothing came back.
    Silent,
    /// Another error.
    Failed(String),
}

/// Something that asks.
#[derive(Debug)]
pub struct Client {
    /// For messages.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    seat: Seat,
    deadline: Duration,
}

#[derive(Debug)]
enum Seat {
    /// A process of the test's own.
    Process { place: Place, program: PathBuf },
    /// A command in the first container of a pod.
    Container {
        api: Arc<Api>,
        namespace: String,
        pod: String,
    },
}

impl Client {
    /// One outside of the cluster.
    #[must_use]
    pub fn outside(address: IpAddr, program: &Path) -> Self {
        Self::process("outside", address, Place::default(), program)
    }

    /// One among a node's own processes.
    ///
    /// # Errors
    /// When there is no such node on this machine.
    pub fn on_node(name: &str, address: IpAddr, program: &Path) -> anyhow::Result<Self> {
        let cgroup = cgroup::mount_point()?.join(format!("causeway/{name}/system"));
        ensure!(cgroup.is_dir(), "{} is missing", cgroup.display());
        let place = Place {
            namespace: Some(Namespace::named(&format!("causeway-{name}"))?),
            cgroup: Some(cgroup),
        };
        Ok(Self::process(name, address, place, program))
    }

    /// One in a pod, next to its container's first process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn in_pod(name: &str, address: IpAddr, pid: u32, program: &Path) -> anyhow::Result<Self> {
        Ok(Self::process(name, address, Place::beside(pid)?, program))
    }

    fn process(name: &str, address: IpAddr, place: Place, program: &Path) -> Self {
        Self {
            name: name.to_owned(),
            address,
            seat: Seat::Process {
                place,
                program: program.to_path_buf(),
            },
            deadline: SOON,
        }
    }

    /// One in a pod of any cluster. It is called by `name`, and waits for `deadline` where it awaits something.
    #[must_use]
    pub fn by_api(
        api: &Arc<Api>,
        (namespace, pod): (&str, &str),
        (name, address): (&str, IpAddr),
        deadline: Duration,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address,
            seat: Seat::Container {
                api: Arc::clone(api),
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
            },
            deadline,
        }
    }

    /// The same with another deadline for what it awaits.
    #[must_use]
    pub fn patient(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the program, and returns what it printed. A request that failed is no error.
    ///
    /// # Errors
    /// When it cannot be started, or not as it was asked.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (code, stdout, stderr) = match &self.seat {
            Seat::Process { place, program } => {
                let output = run_in(place, command(place, program).args(arguments), b"")?;
                (output.status.code(), output.stdout, output.stderr)
            }
            Seat::Container { api, namespace, pod } => {
                let words = [&["/testserver"], arguments].concat();
                let ended = api.execute(namespace, pod, &words)?;
                (Some(ended.code), ended.stdout, ended.stderr)
            }
        };
        // A request that failed is 1.
        ensure!(
            matches!(code, Some(0 | 1)),
            "{} {arguments:?}: {code:?} {stdout}{stderr}",
            self.name
        );
        Ok(stdout)
    }

    /// Asks so many times, and tells what came of each.
    ///
    /// # Errors
    /// When it cannot ask, or says something else than outcomes.
    pub fn ask(&self, how: How, server: SocketAddr, count: usize) -> anyhow::Result<Vec<Outcome>> {
        self.ask_for(PATIENCE_MILLIS, how, server, count)
    }

    fn ask_for(
        &self,
        patience_millis: &str,
        how: How,
        server: SocketAddr,
        count: usize,
    ) -> anyhow::Result<Vec<Outcome>> {
        let (url, server, count) = (format!("http://{server}/"), server.to_string(), count.to_string());
        let options = ["--count", &count, "--timeout-ms", patience_millis];
        let words: &[&str] = match how {
            How::Tcp => &["fetch", &url],
            How::Udp => &["udp-ping", &server, "--connected"],
            How::UdpUnconnected => &["udp-ping", &server],
        };
        let printed = self.run(&[words, &options].concat())?;
        let lines = printed.lines().filter(|line| !line.starts_with("summary:"));
        lines
            .map(|line| outcome(line).with_context(|| format!("not an outcome: {line:?}")))
            .collect()
    }

    /// The addresses that a name has, as this server says.
    ///
    /// # Errors
    /// When it cannot ask.
    pub fn resolve(&self, name: &str, server: IpAddr) -> anyhow::Result<BTreeSet<String>> {
        let printed = self.run(&["resolve", name, "--resolver", &server.to_string()])?;
        let words = printed.lines().filter_map(|line| line.split(' ').nth(3));
        Ok(words.map(str::to_owned).collect())
    }

    /// Waits until each of these pods answers and nothing else comes of any request.
    ///
    /// # Panics
    /// When that does not come to be; tells what came last.
    #[track_caller]
    pub fn await_pods(&self, how: How, server: SocketAddr, pods: &[&str]) {
        let pods: BTreeSet<&str> = pods.iter().copied().collect();
        self.await_that(how, server, &format!("answers from {pods:?}"), |outcomes| {
            let seen: Option<BTreeSet<&str>> = outcomes.iter().map(served_by).collect();
            seen.as_ref() == Some(&pods)
        });
    }

    /// Waits until one pod answers all requests, and tells which.
    ///
    /// # Panics
    /// When that does not come to be; tells what came last.
    #[track_caller]
    pub fn await_one_pod(&self, how: How, server: SocketAddr) -> String {
        let one = |outcomes: &[Outcome]| {
            let seen: Option<BTreeSet<&str>> = outcomes.iter().map(served_by).collect();
            seen.is_some_and(|pods| pods.len() == 1)
        };
        let outcomes = self.await_that(how, server, "answers from one pod alone", one);
        outcomes
            .first()
            .and_then(served_by)
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until requests are answered, and the pods see these clients alone.
    ///
    /// # Panics
    /// When that does not come to be; tells what came last.
    #[track_caller]
    pub fn await_seen_as(&self, server: SocketAddr, right: impl Fn(IpAddr) -> bool) {
        let good =
            |outcome: &Outcome| matches!(outcome, Outcome::Served { saw: Some(saw), .. } if right(*saw));
        self.await_that(
            How::Tcp,
            server,
            "answers that tell the right client",
            |outcomes| outcomes.iter().all(good),
        );
    }

    /// Waits until this comes of a request.
    ///
    /// # Panics
    /// When that does not come to be; tells what came last.
    #[track_caller]
    pub fn await_outcome(&self, how: How, server: SocketAddr, wanted: &Outcome) {
        let what = format!("{}: {wanted:?} by {how:?} from {server}", self.name);
        wait::until_value(
            &what,
            self.deadline,
            || self.ask(how, server, 1).unwrap_or_default(),
            |outcomes| outcomes.first() == Some(wanted),
        );
    }

    /// Waits until no pod answers.
    ///
    /// # Panics
    /// When that does not come to be; tells what came last.
    #[track_caller]
    pub fn await_unserved(&self, how: How, server: SocketAddr) {
        let what = format!("{}: no answer by {how:?} from {server}", self.name);
        wait::until_value(
            &what,
            self.deadline,
            || self.ask(how, server, 1).unwrap_or_default(),
            |outcomes| {
                outcomes
                    .first()
                    .is_some_and(|outcome| served_by(outcome).is_none())
            },
        );
    }

    /// Asks again and again while something is done, and tells what no pod answered.
    ///
    /// # Errors
    /// When it cannot ask, and those of what is done.
    pub fn lost_while(
        &self,
        how: How,
        server: SocketAddr,
        work: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Outcome>> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut lost = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let outcomes = self.ask_for(LOST_MILLIS, how, server, SEVERAL)?;
                    lost.extend(
                        outcomes
                            .into_iter()
                            .filter(|outcome| served_by(outcome).is_none()),
                    );
                }
                anyhow::Ok(lost)
            });
            let worked = catch_unwind(AssertUnwindSafe(work));
            done.store(true, Ordering::Relaxed);
            let lost = asking.join().unwrap_or_else(|panic| resume_unwind(panic));
            worked.unwrap_or_else(|panic| resume_unwind(panic))?;
            lost
        })
    }

    #[track_caller]
    fn await_that(
        &self,
        how: How,
        server: SocketAddr,
        what: &str,
        good: impl Fn(&[Outcome]) -> bool,
    ) -> Vec<Outcome> {
        // One request tells whether it is worth to make more: each of them would wait for nothing.
        let observe = || {
            let first = self.ask(how, server, 1)?;
            match first.first() {
                Some(Outcome::Served { .. }) => self.ask(how, server, SEVERAL),
                _ => Ok(first),
            }
        };
        let what = format!("{}: {what} by {how:?} at {server}", self.name);
        let seen = wait::until_value(
            &what,
            self.deadline,
            || observe().map_err(|error: anyhow::Error| format!("{error:#}")),
            |seen| seen.as_ref().is_ok_and(|outcomes| good(outcomes)),
        );
        seen.unwrap_or_default()
    }
}

/// Makes a check for several clients at once.
pub fn each<'a>(clients: impl IntoIterator<Item = &'a Client>, check: impl Fn(&Client) + Sync) {
    thread::scope(|scope| {
        let checks: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let check = &check;
                scope.spawn(move || check(client))
            })
            .collect();
        for check in checks {
            // The trial fails with the check's own message.
            check.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

/// The pod that answered.
#[must_use]
pub fn served_by(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Served { pod, .. } => Some(pod),
        _ => None,
    }
}

/// Reads a line of `testserver fetch` or `testserver udp-ping`.
fn outcome(line: &str) -> Option<Outcome> {
    let (_, rest) = line.split_once(' ')?;
    if let Some(error) = rest.strip_prefix("error=") {
        let error = error.to_lowercase().replace(' ', "-");
        return Some(if error.starts_with("connection-refused") {
            Outcome::Refused
        } else if error.starts_with("timed-out") || error.starts_with("resource-temporarily-unavailable") {
            Outcome::Silent
        } else {
            Outcome::Failed(error)
        });
    }
    let words: Vec<&str> = rest.split(' ').collect();
    let client = words.get(3).and_then(|text| text.parse::<SocketAddr>().ok());
    Some(match words.as_slice() {
        ["ok" | "200", pod, ..] if *pod != "-" => Outcome::Served {
            pod: (*pod).to_owned(),
            saw: client.map(|client| client.ip()),
        },
        [status, ..] => Outcome::Status(status.parse().ok()?),
        [] => return None,
    })
}
