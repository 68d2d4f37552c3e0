//! What can fail.

use kube::Resource;
use model::ObjectName;

/// A failed operation, with what it was to be done to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`crate::Config::disabled`] names a controller that does not exist.
    #[error("there is no controller {name:?}")]
    UnknownController {
        /// The name.
        name: String,
    },
    /// The API server refused, or could not be reached.
    #[error("cannot {operation} {kind} {object}: {}", told(source))]
    Api {
        /// What was tried, as in "cannot … Pod default/a".
        operation: &'static str,
        /// The kind of the object.
        kind: String,
        /// The object; its namespace is empty for a cluster-wide one.
        object: ObjectName,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not tell which resources it has.
    #[error("cannot discover resources: {}", told(.0))]
    Discovery(#[source] Box<kube::Error>),
    /// The API server says that it has no Pods, and so does not tell everything that it has.
    #[error("the API server lists no Pods among its resources")]
    NoPods,
    /// An object lacks what the API demands of it.
    #[error("{kind} {object} has no {field}")]
    Incomplete {
        /// The kind of the object.
        kind: &'static str,
        /// The object.
        object: ObjectName,
        /// The field that is missing.
        field: &'static str,
    },
    /// Some of several operations failed; the first failure stands for them.
    #[error("{failed} of {tried} operations failed, the first: {first}")]
    Some {
        /// How many failed.
        failed: usize,
        /// How many were tried.
        tried: usize,
        /// The first failure.
        #[source]
        first: Box<Error>,
    },
}

impl Error {
    pub(crate) fn api<K: Resource<DynamicType = ()>>(
        operation: &'static str,
        object: &ObjectName,
        source: kube::Error,
    ) -> Self {
        let kind = K::kind(&()).into_owned();
        Self::Api {
            operation,
            kind,
            object: object.clone(),
            source: Box::new(source),
        }
    }

    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Some { first, .. } => first.status(),
            _ => None,
        }
    }

    /// Somebody else was faster.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.is_conflict())
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.is_not_found())
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.is_already_exists())
    }

    /// The namespace is being deleted and takes nothing new: not worth a retry. Upstream names the cause
    /// `NamespaceTerminating`; a server that does not is known by upstream's words.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        let Some(status) = self.status().filter(|status| status.is_forbidden()) else {
            return false;
        };
        let causes = status
            .details
            .as_ref()
            .map(|details| details.causes.as_slice())
            .unwrap_or_default();
        causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
            || status.message.contains("because it is being terminated")
    }

    /// What the API server said, for events and conditions; without our own words around it.
    pub(crate) fn reason(&self) -> String {
        self.status()
            .map_or_else(|| self.to_string(), |status| status.message.clone())
    }
}

/// What the API server said, or why it could not be asked.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// One result for many: keeps count of the failures and the first of them.
pub(crate) fn all<T>(results: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    let tried = results.len();
    let mut done = Vec::with_capacity(tried);
    let mut failed = 0;
    let mut first = None;
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(error) => {
                failed += 1;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(done),
        Some(first) if tried == 1 => Err(first),
        Some(first) => Err(Error::Some {
            failed,
            tried,
            first: Box::new(first),
        }),
    }
}
