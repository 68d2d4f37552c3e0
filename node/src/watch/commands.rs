//! Commands in containers, by the API server's `pods/exec`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, SimplexStream, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::objects::{Objects, ObjectsError};

/// What a command that is run to its end may say, on either stream: more is not kept.
const LONGEST_OUTPUT: usize = 1 << 20;

/// What one message of the server may have, and more: where there is less room, one stream waits for the other's reader.
const STREAM_BYTES: usize = 64 << 10;

/// Where a command runs.
#[derive(Clone, Copy, Debug)]
pub struct Container<'c> {
    /// The pod's namespace.
    pub namespace: &'c str,
    /// The pod.
    pub pod: &'c str,
    /// The container, where it is not the pod's first one.
    pub name: Option<&'c str>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A command that runs. Its connection goes with this; what runs there may go on.
pub struct Running {
    program: String,
    pod: String,
    process: AttachedProcess,
    /// Nothing is written to it.
    stdin: Option<WriteHalf<SimplexStream>>,
    /// The connection broke.
    gone: CancellationToken,
    end: Option<oneshot::Receiver<Option<Status>>>,
}

/// What a command says on a stream.
pub struct Said {
    stream: Option<ReadHalf<SimplexStream>>,
    /// Of a connection that broke, kube's streams have no end.
    gone: CancellationToken,
}

impl Said {
    /// What is there, as soon as there is something; `None` at its end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let stream = self.stream.as_mut()?;
        let mut bytes = Vec::with_capacity(STREAM_BYTES);
        tokio::select! {
            biased;
            read = stream.read_buf(&mut bytes) => matches!(read, Ok(1..)).then_some(bytes),
            () = self.gone.cancelled() => None,
        }
    }

    /// All of it, or the beginning. It is read to its end: the connection breaks where a stream has no reader.
    async fn whole(mut self) -> String {
        let mut bytes = Vec::new();
        while let Some(more) = self.next().await {
            let room = LONGEST_OUTPUT - bytes.len();
            bytes.extend_from_slice(more.get(..room).unwrap_or(&more));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Objects {
    /// Runs a command in the first container of a pod, to its end.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub async fn execute(
        &self,
        (namespace, pod): (&str, &str),
        words: &[String],
        within: Duration,
    ) -> Result<Ended, ObjectsError> {
        let container = Container {
            namespace,
            pod,
            name: None,
        };
        match timeout(within, self.run(container, words)).await {
            Ok(ended) => ended,
            Err(_) => Err(ObjectsError::Silent {
                what: format!("run {} in pod {pod}", program(words)),
                within,
            }),
        }
    }

    async fn run(&self, container: Container<'_>, words: &[String]) -> Result<Ended, ObjectsError> {
        let mut running = self.start(container, words, false).await?;
        let (stdout, stderr) = (running.stdout(), running.stderr());
        let end = running.end();
        let (stdout, stderr) = tokio::join!(stdout.whole(), stderr.whole());
        let code = end.await?;
        Ok(Ended { code, stdout, stderr })
    }

    /// Starts a command in a container, with a standard input that is open until [`Running::close_input`], or without one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(
        &self,
        container: Container<'_>,
        words: &[String],
        with_input: bool,
    ) -> Result<Running, ObjectsError> {
        let Container { namespace, pod, name } = container;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let streams = AttachParams {
            container: name.map(str::to_owned),
            stdin: with_input,
            max_stdout_buf_size: Some(STREAM_BYTES),
            max_stderr_buf_size: Some(STREAM_BYTES),
            ..AttachParams::default()
        };
        let streams = streams.stdout(true).stderr(true);
        let started = pods.exec(pod, words.to_vec(), &streams).await;
        let mut process = started.map_err(|source| ObjectsError::Execute {
            program: program(words),
            pod: pod.to_owned(),
            source,
        })?;
        let stdin = process.stdin();
        let gone = CancellationToken::new();
        let (sender, end) = oneshot::channel();
        if let Some(status) = process.take_status() {
            let gone = gone.clone();
            tokio::spawn(async move {
                let status = status.await;
                if status.is_none() {
                    gone.cancel();
                }
                let _ = sender.send(status); // nobody need ask
            });
        }
        Ok(Running {
            program: program(words),
            pod: pod.to_owned(),
            process,
            stdin,
            gone,
            end: Some(end),
        })
    }
}

impl Running {
    /// What it says on standard output. Both have to be read: the server waits with one while the other is full.
    pub fn stdout(&mut self) -> Said {
        Said {
            stream: self.process.stdout(),
            gone: self.gone.clone(),
        }
    }

    /// What it says on standard error.
    pub fn stderr(&mut self) -> Said {
        Said {
            stream: self.process.stderr(),
            gone: self.gone.clone(),
        }
    }

    /// Ends its standard input. Servers that know no other way (before Kubernetes 1.30) are told by the end of the
    /// connection, by which the rest of the output is lost.
    pub async fn close_input(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.shutdown().await; // who is gone reads nothing anyway
        }
    }

    /// Its exit code, once both of its streams have ended; an error when the server does not tell it. There is one end.
    pub fn end(&mut self) -> impl Future<Output = Result<i32, ObjectsError>> + Send + use<> {
        let end = self.end.take();
        let (program, pod) = (self.program.clone(), self.pod.clone());
        async move {
            let status = match end {
                Some(end) => end.await.ok().flatten(),
                None => None,
            };
            let told = status.map_or_else(
                || Err("the connection broke before its end was told".to_owned()),
                code,
            );
            told.map_err(|reason| ObjectsError::Ended { program, pod, reason })
        }
    }
}

fn code(status: Status) -> Result<i32, String> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status
        .details
        .and_then(|details| details.causes)
        .unwrap_or_default();
    let code = causes
        .iter()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse().ok());
    code.ok_or_else(|| status.message.unwrap_or_else(|| "it failed".to_owned()))
}

fn program(words: &[String]) -> String {
    words.first().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_long_is_read_to_its_end() {
        let (stream, mut writer) = tokio::io::simplex(STREAM_BYTES);
        let said = Said {
            stream: Some(stream),
            gone: CancellationToken::new(),
        };
        let long = vec![b'a'; LONGEST_OUTPUT + 3 * STREAM_BYTES];
        let write = async move {
            writer.write_all(&long).await?;
            writer.shutdown().await
        };
        let both = async { tokio::join!(said.whole(), write) };
        let (kept, written) = timeout(Duration::from_secs(10), both).await.expect("a reader");
        assert!(written.is_ok());
        assert!(kept == "a".repeat(LONGEST_OUTPUT), "{} bytes", kept.len());
    }
}
