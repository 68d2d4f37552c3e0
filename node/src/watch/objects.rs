//! Objects by their paths, as JSON: for programs that ask once, and do not watch.

use std::time::Duration;

use http::Request;
use kube::Client;
use kube::client::UpgradeConnectionError;
use serde_json::Value;
use tokio::time::timeout;

use super::client::{ApiSource, ConnectError, Credentials};

/// No object takes a server so long.
const ANSWER: Duration = Duration::from_secs(15);

/// A connection to an API server.
#[derive(Clone)]
pub struct Objects {
    pub(super) client: Client,
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
    /// The server's own words, where it refused with some.
    #[must_use]
    pub fn words(&self) -> Option<&str> {
        match self {
            Self::Request { source, .. } | Self::Execute { source, .. } => match source {
                kube::Error::Api(status) => Some(status.message.as_str()).filter(|words| !words.is_empty()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The HTTP status code by which the server refused.
    #[must_use]
    pub fn refusal(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } | Self::Execute { source, .. } => match source {
                kube::Error::Api(status) => Some(status.code),
                kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
                    Some(code.as_u16())
                }
                _ => None,
            },
            _ => None,
        }
    }
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
}
