//! Asks this node's agent over its socket in the state directory, which is root's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// The name of the agent's socket in its state directory.
pub const SOCKET: &str = "agent.sock";

/// The agent reads the kernel, twice where something differs, and waits five seconds for repairs.
const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks whether the agent is stopped.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// The largest answer. A finding of each of 100,000 Services is less.
const ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens, or not for us.
    #[error(
        "ask the agent at {path}: {source} (does `causeway node` run with this configuration? The socket is root's)"
    )]
    Connect {
        /// The agent's socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It runs, and somebody stopped it.
    #[error(
        "the agent, process {pid}, is stopped: kill -CONT {pid} (SIGCONT), or whoever holds it, lets it go on"
    )]
    Stopped {
        /// The process.
        pid: i32,
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

/// Asks the agent whose state is in `state_dir`: gets what is at `at`, or posts `question` there.
///
/// # Errors
/// When it does not run, or does not answer in time.
pub async fn ask<A: DeserializeOwned>(
    state_dir: &Path,
    at: &str,
    question: Option<&impl Serialize>,
) -> Result<A, AskError> {
    let path = state_dir.join(SOCKET);
    let stream = UnixStream::connect(&path).await;
    let stream = stream.map_err(|source| AskError::Connect {
        path: path.clone(),
        source,
    })?;
    let agent = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let answer = tokio::select! {
        answer = timeout(DEADLINE, exchange(stream, at, question)) => answer,
        pid = until_stopped(agent) => return Err(AskError::Stopped { pid }),
    };
    let answer = match answer {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer in {} s", DEADLINE.as_secs())),
    };
    answer.map_err(|reason| AskError::Answer { path, reason })
}

/// Ends when the process is stopped, by a signal or a debugger.
async fn until_stopped(process: Option<i32>) -> i32 {
    loop {
        match process {
            Some(pid) if is_stopped(pid) => return pid,
            _ => sleep(BETWEEN_LOOKS).await,
        }
    }
}

/// By `proc_pid_stat(5)`. The program's name may have blanks and brackets of its own.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    matches!(state, Some("T" | "t"))
}

async fn exchange<A: DeserializeOwned>(
    stream: UnixStream,
    at: &str,
    question: Option<&impl Serialize>,
) -> anyhow::Result<A> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().uri(at).header(http::header::HOST, "agent");
    let request = match question {
        None => request.body(Body::empty())?,
        Some(question) => request
            .method(Method::POST)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(serde_json::to_vec(question)?))?,
    };
    let response = sender.send_request(request).await?;
    let status = response.status();
    anyhow::ensure!(status == StatusCode::OK, "it answers {status}");
    let body = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES).await?;
    Ok(serde_json::from_slice(&body)?)
}
