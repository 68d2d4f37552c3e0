//! Programs of the cluster that run and do nothing: they are stopped, or hang.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

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

/// Which of the processes that run do nothing, and why, in words. Agents are asked; of others is known whether they are
/// stopped.
pub async fn of(state: &StateDir, processes: &Processes) -> BTreeMap<String, String> {
    let mut silent = BTreeMap::new();
    for (name, process) in processes {
        let Some(pid) = process.pid else { continue };
        if is_stopped(pid) {
            let why = format!("stopped, by SIGSTOP or a debugger: kill -CONT {pid}");
            silent.insert(name.clone(), why);
        } else if let Some(node) = name.strip_suffix(AGENT)
            && let Err(why) = agent(&state.node(node).agent().join(AGENT_SOCKET)).await
        {
            silent.insert(name.clone(), why);
        }
    }
    silent
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
    use super::*;

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
}
