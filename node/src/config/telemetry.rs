//! The section `telemetry`.

use std::path::PathBuf;

use http::Uri;
use serde::{Deserialize, Serialize};

/// Who is told how long things took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Telemetry {
    /// A collector of OpenTelemetry that takes OTLP over HTTP, for example `http://127.0.0.1:4318`: traces of changes,
    /// from a watch's event to the kernel, and of the CNI plugin's requests are sent to its `/v1/traces`, in JSON. By
    /// `https` where they leave the node. Default: absent, and nothing is traced.
    pub endpoint: Option<String>,
    /// Certificates of the authorities, in PEM, of which one signed that of a collector by `https`. Default: the
    /// system's, of which the image has none.
    pub ca_file: Option<PathBuf>,
}

impl Telemetry {
    /// Where traces are sent to, if anywhere.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn traces(&self) -> Result<Option<Uri>, String> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(None);
        };
        let base: Uri = endpoint.parse().map_err(|error| format!("{error}"))?;
        if !matches!(base.scheme_str(), Some("http" | "https")) || base.query().is_some() {
            return Err("is not a URL like http://127.0.0.1:4318".to_owned());
        }
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        url.parse().map(Some).map_err(|error| format!("{error}"))
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let wrong = self.traces().err();
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        wrong
            .map(|reason| format!("telemetry.endpoint: {endpoint:?} {reason}"))
            .into_iter()
            .collect()
    }
}
