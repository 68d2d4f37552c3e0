//! Streams between clients and pods: `exec`, `attach` and `portForward` of the kubelet's API. API servers splice their
//! clients' connections to it, so that the protocols are spoken here alone.
//!
//! - [`upgrade`]: which protocol is spoken; [`websocket`] and [`spdy`] speak it; [`connection`] is what they share
//! - [`remote_command`]: a command's streams; [`attach`]: a container's own; [`port_forward`]: connections into a pod

mod attach;
mod connection;
mod port_forward;
mod remote_command;
mod spdy;
mod upgrade;
mod websocket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::exec::{Exec, ExecError};
use crate::runtime::Runtime;
use crate::sandbox::Sandbox;
use connection::{CHUNK, FAREWELL_LIMIT};
use remote_command::{Client, Wanted, carry};
use upgrade::{Refusal, accept};

/// How long a connection to a pod may take.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// What streams lead to.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// The kubelet's settings.
    pub config: Arc<Config>,
    /// The pods.
    pub board: Board,
    /// Their containers.
    pub runtime: Runtime,
    /// Ends all streams.
    pub shutdown: CancellationToken,
}

/// The paths below which streams begin.
pub fn router(streaming: Streaming) -> Router {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", get(exec).post(exec))
        .route("/attach/{namespace}/{pod}/{container}", get(attach).post(attach))
        .route(
            "/portForward/{namespace}/{pod}",
            get(port_forward).post(port_forward),
        )
        .route("/dial/{namespace}/{pod}/{port}", get(dial))
        .with_state(streaming)
}

/// Namespace, pod, container.
type Target = (String, String, String);

async fn exec(
    State(streaming): State<Streaming>,
    Path(target): Path<Target>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let options = Options::parse(request.uri().query().unwrap_or_default());
    if options.command.is_empty() {
        return Err(Refusal::bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    let wanted = options.wanted()?;
    let id = streaming.running(&target).await?;
    let accepted = accept(&mut request, &remote_command::PROTOCOLS)?;
    let exec = Exec {
        command: options.command,
        terminal: wanted.terminal,
        stdin: wanted.stdin,
    };
    let runtime = streaming.runtime.clone();
    streaming.serve(accepted.upgrade, move |connection| async move {
        let Some(mut client) = Client::open(accepted.meaning, connection, wanted).await else {
            return tracing::debug!("a client opened no streams for its command");
        };
        let outcome = match runtime.exec(&id, &exec).await {
            Ok(process) => carry(process, &mut client).await,
            Err(error) => Some(Err(error)),
        };
        if let Some(outcome) = outcome {
            client.finish(outcome.map_err(|error| exec_failure(&error))).await;
        }
    });
    Ok(accepted.response)
}

async fn attach(
    State(streaming): State<Streaming>,
    Path(target): Path<Target>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let options = Options::parse(request.uri().query().unwrap_or_default());
    let wanted = options.wanted()?;
    let id = streaming.running(&target).await?;
    let accepted = accept(&mut request, &remote_command::PROTOCOLS)?;
    let socket = streaming.runtime.container_dir(&id).attach();
    streaming.serve(accepted.upgrade, move |connection| async move {
        let Some(mut client) = Client::open(accepted.meaning, connection, wanted).await else {
            return tracing::debug!("a client opened no streams to attach");
        };
        if let Some(outcome) = attach::carry(&socket, &mut client).await {
            let outcome = outcome.map_err(|error| format!("error attaching to container: {error}"));
            client.finish(outcome.map(|()| 0)).await;
        }
    });
    Ok(accepted.response)
}

async fn port_forward(
    State(streaming): State<Streaming>,
    Path((namespace, pod)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let ports =
        port_forward::ports(request.uri().query().unwrap_or_default()).map_err(Refusal::bad_request)?;
    let target = streaming.network_of(&namespace, &pod)?;
    let accepted = accept(&mut request, &port_forward::PROTOCOLS)?;
    streaming.serve(accepted.upgrade, move |connection| {
        port_forward::serve(accepted.meaning, connection, target, ports)
    });
    Ok(accepted.response)
}

/// A connection from this node to a port of one of its pods, for an API server that stands outside the pod network:
/// `Upgrade: tcp`, then the connection's bytes.
async fn dial(
    State(streaming): State<Streaming>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let upgrade = request.headers().get(header::UPGRADE);
    if upgrade.is_none_or(|protocol| protocol != "tcp") {
        return Err(Refusal::bad_request("Upgrade request required"));
    }
    let entries = streaming.board.subscribe();
    let ip = Board::pod(&entries.borrow(), &namespace, &pod)
        .and_then(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse::<IpAddr>().ok());
    let ip = ip.ok_or_else(|| {
        Refusal::not_found(format!("pod \"{namespace}/{pod}\" has no address on this node"))
    })?;
    let address = SocketAddr::new(ip, port);
    let dialled = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(address)).await;
    let dialled = dialled.map_err(io::Error::from).flatten();
    let mut socket =
        dialled.map_err(|error| Refusal(StatusCode::BAD_GATEWAY, format!("dial tcp {address}: {error}")))?;
    streaming.serve(hyper::upgrade::on(&mut request), move |mut client| async move {
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut socket).await {
            tracing::debug!(%error, "connection into a pod ended");
        }
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// In the words of Kubernetes' own kubelet.
fn exec_failure(error: &ExecError) -> String {
    format!("error executing command in container: failed to exec in container: {error}")
}

impl Streaming {
    /// The runtime's id of a container that runs.
    async fn running(&self, (namespace, pod, container): &Target) -> Result<String, Refusal> {
        let logs = self.board.container(namespace, pod, container).await;
        let running = logs.filter(|logs| logs.running).and_then(|logs| logs.id);
        running.ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))
    }

    /// Where connections into a pod lead.
    fn network_of(&self, namespace: &str, pod: &str) -> Result<port_forward::Target, Refusal> {
        let absent = || Refusal::not_found(format!("pod \"{namespace}/{pod}\" has no network on this node"));
        let entries = self.board.subscribe();
        let uid = Board::pod(&entries.borrow(), namespace, pod).and_then(|pod| pod.metadata.uid.clone());
        let sandbox = Sandbox::load(&self.config, &uid.ok_or_else(absent)?)
            .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(port_forward::Target {
            netns: sandbox.ok_or_else(absent)?.netns_path(),
            name: format!("{namespace}/{pod}"),
        })
    }

    /// Serves a connection once it has switched protocols, until the shutdown. However the session ends, its client is
    /// told in order: what was sent and not yet read would be lost with the connection.
    fn serve<F>(&self, upgrade: OnUpgrade, session: impl FnOnce(DuplexStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            let mut client = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "a connection did not switch protocols"),
            };
            let (mut inner, outer) = tokio::io::duplex(CHUNK);
            let mut carried = pin!(tokio::io::copy_bidirectional(&mut client, &mut inner));
            let session = session(outer);
            tokio::select! {
                () = session => {
                    let _ = tokio::time::timeout(FAREWELL_LIMIT, carried).await;
                }
                outcome = &mut carried => if let Err(error) = outcome {
                    tracing::debug!(%error, "a client broke off");
                },
            }
        }));
    }
}

/// `PodExecOptions` and `PodAttachOptions` in a query; API servers of Kubernetes ask kubelets by other names than their
/// clients ask them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Options {
    fn parse(query: &str) -> Self {
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let on = matches!(&*value, "1" | "t" | "true" | "True" | "TRUE");
            match &*name {
                "command" => options.command.push(value.into_owned()),
                "stdin" | "input" => options.stdin = on,
                "stdout" | "output" => options.stdout = on,
                "stderr" | "error" => options.stderr = on,
                "tty" => options.tty = on,
                _ => {}
            }
        }
        options
    }

    fn wanted(&self) -> Result<Wanted, Refusal> {
        let wanted = Wanted {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr && !self.tty,
            terminal: self.tty,
        };
        match wanted.stdin || wanted.stdout || wanted.stderr {
            true => Ok(wanted),
            false => Err(Refusal::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, command: &[&str], wanted: Option<[bool; 4]>) {
        let options = Options::parse(query);
        assert_eq!(options.command, command, "{query}");
        let seen = options
            .wanted()
            .map(|w| [w.stdin, w.stdout, w.stderr, w.terminal]);
        assert_eq!(seen.ok(), wanted, "{query}");
    }

    #[test]
    fn queries_of_clients_and_of_api_servers_are_read() {
        check(
            "command=sh&command=-c&command=exit+3%26&stdout=true&stderr=true",
            &["sh", "-c", "exit 3&"],
            Some([false, true, true, false]),
        );
        check(
            "command=cat&input=1&output=1&error=1",
            &["cat"],
            Some([true, true, true, false]),
        );
        check(
            "stdin=true&stdout=true&stderr=true&tty=true",
            &[],
            Some([true, true, false, true]),
        );
        check("command=a&stderr=true&tty=1", &["a"], None);
        check("", &[], None);
    }
}
