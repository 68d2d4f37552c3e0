//! Programs of the cluster that run and do nothing: they are stopped, or hang.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use model::with_causes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::layout::StateDir;
use crate::supervise::Processes;

/// Who lives says something within this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent's socket in its state directory, and what it answers at once while it lives.
const AGENT_SOCKET: &str = "agent.sock";
const ALIVE: &[u8] = b"GET /alive HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";

/// How an agent's process ends its name, behind that of its node.
const AGENT: &str = "-agent";

/// Which of the processes that run do nothing, and why, in words. Agents are asked, all at once; of others is known
/// whether they are stopped.
pub async fn of(state: &StateDir, processes: &Processes) -> BTreeMap<String, String> {
    let running = processes
        .iter()
        .filter_map(|(name, process)| Some((name, process.pid?)));
    let asked = running.map(async |(name, pid)| Some((name.clone(), why_silent(state, name, pid).await?)));
    join_all(asked).await.into_iter().flatten().collect()
}

async fn why_silent(state: &StateDir, name: &str, pid: u32) -> Option<String> {
    if is_stopped(pid) {
        return Some(format!("stopped, by SIGSTOP or a debugger: kill -CONT {pid}"));
    }
    let node = name.strip_suffix(AGENT)?;
    agent(&state.node(node).agent().join(AGENT_SOCKET)).await.err()
}

/// The answer, where it comes in time. An error is for people.
pub async fn in_time<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| with_causes(&error)),
        Err(_) => Err(nothing_said()),
    }
}

fn nothing_said() -> String {
    format!("it says nothing for {} s", PATIENCE.as_secs())
}

async fn agent(socket: &Path) -> Result<(), String> {
    let heard = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(ALIVE).await?;
        stream.read_u8().await
    };
    match timeout(PATIENCE, heard).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("does not answer at {}: {error}", socket.display())),
        Err(_) => Err(format!("hangs: {}", nothing_said())),
    }
}

/// By `proc_pid_stat(5)`; the program's name may have blanks and brackets of its own.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::supervise::Process;

    #[tokio::test]
    async fn who_takes_a_connection_and_says_nothing_hangs() {
        let path = std::env::temp_dir().join(format!("cwt-silence-{}.sock", std::process::id()));
        let absent = agent(&path).await.expect_err("nobody listens");
        assert!(absent.contains("does not answer"), "{absent}");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let silent = agent(&path).await;
        drop(listener);
        std::fs::remove_file(&path).expect("there");
        let silent = silent.expect_err("it says nothing");
        assert!(silent.starts_with("hangs"), "{silent}");
    }

    #[tokio::test]
    async fn agents_that_hang_are_waited_for_together() {
        let root = std::env::temp_dir().join(format!("cwt-silence-{}", std::process::id()));
        let state = StateDir::new(&root);
        let listen = |node: &str| {
            let directory = state.node(node).agent();
            std::fs::create_dir_all(&directory).expect("made");
            std::os::unix::net::UnixListener::bind(directory.join(AGENT_SOCKET)).expect("bound")
        };
        let _listeners = ["a", "b", "c"].map(listen);
        let running = Process {
            pid: Some(std::process::id()),
            ..Process::default()
        };
        let names = ["a-agent", "b-agent", "c-agent"];
        let processes = names.map(|name| (name.to_owned(), running.clone())).into();
        let began = Instant::now();
        let silent = of(&state, &processes).await;
        let took = began.elapsed();
        std::fs::remove_dir_all(&root).expect("there");
        assert_eq!(silent.keys().collect::<Vec<_>>(), names);
        assert!(took < 2 * PATIENCE, "{took:?}");
    }
}
