//! The Kubernetes API of any cluster, for tests that are not async: objects as JSON by their paths, logs, and commands in
//! containers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// No command that tests run takes so long.
const COMMAND: Duration = Duration::from_secs(60);

/// A connection to an API server, for several threads at once.
pub struct Api {
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

/// How a command in a container ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Api {
    /// The one that a kubeconfig's current context names.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(kubeconfig: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let client = runtime.block_on(async {
            let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// Those of the API server, as `kube::Error`: see [`refusal`].
    pub fn read(&self, path: &str) -> anyhow::Result<Value> {
        self.request("GET", path, "application/json", &Value::Null)
    }

    /// Creates an object in a collection.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn create(&self, collection: &str, object: &Value) -> anyhow::Result<Value> {
        self.request("POST", collection, "application/json", object)
    }

    /// Changes an object by a merge patch.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn merge_patch(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        self.request("PATCH", path, "application/merge-patch+json", patch)
    }

    /// Changes an object by a strategic merge patch: lists are merged by their elements' keys.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn strategic_patch(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        self.request("PATCH", path, "application/strategic-merge-patch+json", patch)
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn replace(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        self.request("PUT", path, "application/json", object)
    }

    /// Deletes an object, or a collection whose path may have selectors. `None` leaves it to the object how much time
    /// pods get to end.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn delete(&self, path: &str, grace_seconds: Option<u32>) -> anyhow::Result<Value> {
        let options = match grace_seconds {
            Some(seconds) => json!({ "gracePeriodSeconds": seconds }),
            None => json!({}),
        };
        self.request("DELETE", path, "application/json", &options)
    }

    fn request(&self, method: &str, path: &str, content_type: &str, body: &Value) -> anyhow::Result<Value> {
        let body = match body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body)?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(body)?;
        let answer = self.runtime.block_on(self.client.request(request));
        answer.with_context(|| format!("{method} {path}"))
    }

    /// Reads what is no JSON: a log, or what a proxied server answers.
    ///
    /// # Errors
    /// As [`Api::read`].
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let request = Request::get(path).body(Vec::new())?;
        let answer = self.runtime.block_on(self.client.request_text(request));
        answer.with_context(|| format!("GET {path}"))
    }

    /// Runs a command in the first container of a pod, to its end.
    ///
    /// # Errors
    /// When it cannot be started, or takes longer than a minute.
    pub fn execute(&self, namespace: &str, pod: &str, words: &[&str]) -> anyhow::Result<Ended> {
        let running = async {
            let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), namespace);
            let parameters = AttachParams::default().stdout(true).stderr(true);
            let mut process = pods.exec(pod, words.iter().copied(), &parameters).await?;
            let (stdout, stderr) = (process.stdout(), process.stderr());
            let status = process.take_status().context("no status")?;
            let (stdout, stderr) = tokio::try_join!(whole(stdout), whole(stderr))?;
            let status = status.await.context("it ended without a status")?;
            let causes = status
                .details
                .as_ref()
                .and_then(|details| details.causes.as_ref());
            let code = causes
                .into_iter()
                .flatten()
                .find(|cause| cause.reason.as_deref() == Some("ExitCode"));
            let code = match (status.status.as_deref(), code) {
                (Some("Success"), _) => 0,
                (_, Some(cause)) => cause.message.as_deref().unwrap_or_default().parse()?,
                (_, None) => anyhow::bail!("{status:?}"),
            };
            anyhow::Ok(Ended { code, stdout, stderr })
        };
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(COMMAND, running).await });
        let what = || format!("{words:?} in {namespace}/{pod}");
        ended.with_context(what)?.with_context(what)
    }
}

async fn whole(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    stream.context("no output")?.read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Api").finish_non_exhaustive()
    }
}

/// The HTTP status code with which the API server refused.
#[must_use]
pub fn refusal(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// That it was refused with this HTTP status code.
///
/// # Errors
/// When it was not.
pub fn is_refused(answer: anyhow::Result<Value>, code: u16) -> anyhow::Result<()> {
    match answer {
        Ok(answer) => anyhow::bail!("not refused, but {answer}"),
        Err(error) => {
            ensure!(
                refusal(&error) == Some(code),
                "not refused by {code}, but {error:#}"
            );
            Ok(())
        }
    }
}
