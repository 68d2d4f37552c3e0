//! Asks this node's agent over its socket in the state directory, which is root's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::rights::{self, NotRoot};

/// The name of the agent's socket in its state directory.
pub const SOCKET: &str = "agent.sock";

/// What an agent that lives answers at once: the name of its node, as text.
pub const ALIVE: &str = "/alive";

/// Within this time an agent that lives has said something, whatever it is asked for.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// The agent reads the kernel, twice where something differs, and waits five seconds for repairs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks whether the agent is stopped.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// The largest answer. A finding of each of 100,000 Services is less.
const ANSWER_BYTES: usize = 64 << 20;

/// Of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// It is no larger.
    pub bytes: usize,
    /// It is there within this.
    pub time: Duration,
}

/// Of the answer to a question.
const USUAL: Bounds = Bounds {
    bytes: ANSWER_BYTES,
    time: ANSWERED_WITHIN,
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It is not for us.
    #[error(transparent)]
    NotRoot(NotRoot),
    /// Nobody listens.
    #[error("ask the agent at {path}: {source} (does `causeway node` run with this configuration?)")]
    Connect {
        /// The agent's socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It runs, and somebody stopped it.
    #[error("the agent, process {pid}, is stopped, by SIGSTOP or a debugger: kill -CONT {pid}")]
    Stopped {
        /// The process.
        pid: i32,
    },
    /// It took the connection, and says nothing.
    #[error(
        "ask the agent at {path}: {} took the connection and says nothing for {} s: it hangs, or is stopped",
        process(*.pid),
        HEARD_WITHIN.as_secs()
    )]
    Silent {
        /// The agent's socket.
        path: PathBuf,
        /// Its process, where that is one of this machine's that can be seen.
        pid: Option<i32>,
    },
    /// It did not answer as it should.
    #[error("ask the agent at {path}: {reason}")]
    Answer {
        /// The agent's socket.
        path: PathBuf,
        /// What came instead.
        reason: String,
    },
}

fn process(pid: Option<i32>) -> String {
    pid.map_or("it".to_owned(), |pid| format!("its process {pid}"))
}

/// Asks the agent whose state is in `state_dir`: posts `question` to what is at `at`.
///
/// # Errors
/// When it does not run, or does not answer in time.
pub async fn ask<A: DeserializeOwned>(
    state_dir: &Path,
    at: &str,
    question: impl Serialize,
) -> Result<A, AskError> {
    Agent::connect(state_dir).await?.ask(at, question).await
}

/// An agent that was heard.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    pid: Option<i32>,
    node: Option<String>,
    sender: SendRequest<Body>,
}

impl Agent {
    /// Connects to the agent whose state is in `state_dir`, and hears it.
    ///
    /// # Errors
    /// When nobody listens there, or nobody speaks.
    pub async fn connect(state_dir: &Path) -> Result<Self, AskError> {
        let path = state_dir.join(SOCKET);
        let stream = UnixStream::connect(&path).await;
        let stream = stream.map_err(|source| match rights::is_denied(&source) {
            true => AskError::NotRoot(NotRoot(format!(
                "the socket of the agent, {}, is root's",
                path.display()
            ))),
            false => AskError::Connect {
                path: path.clone(),
                source,
            },
        })?;
        let peer = stream.peer_cred().ok();
        let pid = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        if let Some(pid) = pid.filter(|pid| is_stopped(*pid)) {
            return Err(AskError::Stopped { pid });
        }
        let heard = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::get(ALIVE).header(http::header::HOST, "agent");
            let response = sender.send_request(request.body(Body::empty())?).await?;
            // The next question waits for the end of this answer, whatever it is.
            let said = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES).await?;
            anyhow::Ok((sender, String::from_utf8(said.into()).ok()))
        };
        match timeout(HEARD_WITHIN, heard).await {
            Ok(Ok((sender, node))) => Ok(Self {
                path,
                pid,
                node: node.filter(|node| !node.is_empty()),
                sender,
            }),
            Ok(Err(error)) => Err(AskError::Answer {
                path,
                reason: format!("{error:#}"),
            }),
            Err(_) => Err(AskError::Silent { path, pid }),
        }
    }

    /// Its process, where that is one of this machine's that can be seen.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The node that it says it is of; none where it says nothing, as one of an earlier version.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Posts `question` to what is at `at`.
    ///
    /// # Errors
    /// When it does not answer as it should, or not in time.
    pub async fn ask<A: DeserializeOwned>(
        &mut self,
        at: &str,
        question: impl Serialize,
    ) -> Result<A, AskError> {
        self.ask_within(at, question, USUAL).await
    }

    /// The same, where the answer can be larger or later than others.
    ///
    /// # Errors
    /// When it does not answer as it should, or not within these bounds.
    pub async fn ask_within<A: DeserializeOwned>(
        &mut self,
        at: &str,
        question: impl Serialize,
        bounds: Bounds,
    ) -> Result<A, AskError> {
        let answer = tokio::select! {
            answer = timeout(bounds.time, exchange(&mut self.sender, at, question, bounds.bytes)) => answer,
            pid = until_stopped(self.pid) => return Err(AskError::Stopped { pid }),
        };
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer in {} s", bounds.time.as_secs())),
        };
        answer.map_err(|reason| AskError::Answer {
            path: self.path.clone(),
            reason,
        })
    }
}

/// The process of the agent whose state is in `state_dir`; none where it does not run, or in another PID namespace.
#[must_use]
pub fn process_of(state_dir: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(state_dir.join(SOCKET)).ok()?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    Some(peer.pid()).filter(|pid| *pid > 0)
}

/// Ends when the process is stopped.
async fn until_stopped(process: Option<i32>) -> i32 {
    loop {
        match process {
            Some(pid) if is_stopped(pid) => return pid,
            _ => sleep(BETWEEN_LOOKS).await,
        }
    }
}

/// Whether a process is stopped, by a signal or a debugger (`proc_pid_stat(5)`).
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name may have blanks and brackets of its own.
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    matches!(state, Some("T" | "t"))
}

async fn exchange<A: DeserializeOwned>(
    sender: &mut SendRequest<Body>,
    at: &str,
    question: impl Serialize,
    most_bytes: usize,
) -> anyhow::Result<A> {
    let request = Request::post(at)
        .header(http::header::HOST, "agent")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Body::from(serde_json::to_vec(&question)?))?;
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    anyhow::ensure!(status == StatusCode::OK, "it answers {status}");
    let body = axum::body::to_bytes(Body::new(response.into_body()), most_bytes).await?;
    Ok(serde_json::from_slice(&body)?)
}
