//! Objects by their paths, as JSON, and commands in containers: for programs that ask once, and do not watch.

use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, AttachParams};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::client::{ApiSource, ConnectError, Credentials};

/// No object takes a server so long.
const ANSWER: Duration = Duration::from_secs(15);

/// What a command may say, on either stream: more is not read.
const LONGEST_OUTPUT: u64 = 1 << 20;

/// A connection to an API server.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// There is no server to ask.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server could not be asked, or refused.
    #[error("{method} {path}")]
    Request {
        /// Of HTTP.
        method: &'static str,
        /// The object's or collection's.
        path: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// The request is none.
    #[error("{method} {path}: no request can be made of it")]
    Malformed {
        /// Of HTTP.
        method: &'static str,
        /// The object's or collection's.
        path: String,
    },
    /// The server took too long.
    #[error("{what}: no answer in {} s", .within.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// A command could not be run.
    #[error("run {program} in pod {pod}")]
    Execute {
        /// The program.
        program: String,
        /// The pod.
        pod: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// A command's end is not known.
    #[error("run {program} in pod {pod}: {reason}")]
    Ended {
        /// The program.
        program: String,
        /// The pod.
        pod: String,
        /// What was heard.
        reason: String,
    },
}

impl ObjectsError {
    /// The HTTP status code by which the server refused.
    #[must_use]
    pub fn refusal(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } | Self::Execute { source, .. } => match source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
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

impl Objects {
    /// Of a server. It is not asked anything yet.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub async fn of(credentials: Credentials) -> Result<Self, ObjectsError> {
        let source = ApiSource {
            credentials,
            ..ApiSource::default()
        };
        let client = Client::try_from(source.credentials().await?).map_err(ConnectError::Tls)?;
        Ok(Self { client })
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn read(&self, path: &str) -> Result<Value, ObjectsError> {
        self.request("GET", path, None).await
    }

    /// Creates an object in a collection, and returns it.
    ///
    /// # Errors
    /// As [`Objects::read`].
    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value, ObjectsError> {
        self.request("POST", collection, Some(object)).await
    }

    /// Deletes an object or a collection, with these `DeleteOptions`.
    ///
    /// # Errors
    /// As [`Objects::read`].
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, ObjectsError> {
        self.request("DELETE", path, Some(options)).await
    }

    async fn request(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ObjectsError> {
        let body = body.map(|body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.unwrap_or_default());
        let request = request.map_err(|_| ObjectsError::Malformed {
            method,
            path: path.to_owned(),
        })?;
        match timeout(ANSWER, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|source| ObjectsError::Request {
                method,
                path: path.to_owned(),
                source,
            }),
            Err(_) => Err(ObjectsError::Silent {
                what: format!("{method} {path}"),
                within: ANSWER,
            }),
        }
    }

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
        let program = words.first().cloned().unwrap_or_default();
        match timeout(within, self.run(namespace, pod, &program, words)).await {
            Ok(ended) => ended,
            Err(_) => Err(ObjectsError::Silent {
                what: format!("run {program} in pod {pod}"),
                within,
            }),
        }
    }

    async fn run(
        &self,
        namespace: &str,
        pod: &str,
        program: &str,
        words: &[String],
    ) -> Result<Ended, ObjectsError> {
        let ended = |reason: String| ObjectsError::Ended {
            program: program.to_owned(),
            pod: pod.to_owned(),
            reason,
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let streams = AttachParams::default().stdout(true).stderr(true);
        let started = pods.exec(pod, words.to_vec(), &streams).await;
        let mut process = started.map_err(|source| ObjectsError::Execute {
            program: program.to_owned(),
            pod: pod.to_owned(),
            source,
        })?;
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status();
        let read = tokio::try_join!(whole(stdout), whole(stderr));
        let (stdout, stderr) = read.map_err(|error| ended(error.to_string()))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let status = status.ok_or_else(|| ended("its end was not told".to_owned()))?;
        if status.status.as_deref() == Some("Success") {
            return Ok(Ended {
                code: 0,
                stdout,
                stderr,
            });
        }
        let causes = status
            .details
            .and_then(|details| details.causes)
            .unwrap_or_default();
        let code = causes
            .iter()
            .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
            .and_then(|cause| cause.message.as_deref()?.parse().ok());
        match code {
            Some(code) => Ok(Ended { code, stdout, stderr }),
            None => Err(ended(status.message.unwrap_or_else(|| "it failed".to_owned()))),
        }
    }
}

async fn whole(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(LONGEST_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
