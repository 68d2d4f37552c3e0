//! Where EC2 answers, with what calls are signed and how long one may take.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use http::Uri;

/// The variable that says where EC2 answers, as amazon-vpc-cni-k8s reads it.
pub const ENDPOINT_VARIABLE: &str = "AWS_EC2_ENDPOINT";

/// How a [`Client`](crate::Client) is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The region that is asked and that calls are signed for: `eu-central-1`. The metadata service tells it
    /// ([`Identity::region`](vpc_eni::ec2::Identity::region)).
    pub region: String,
    /// Where EC2 answers, as `http://` or `https://` and a host. `None` leaves it to the SDK: its own variables
    /// (`AWS_ENDPOINT_URL_EC2`), or the region's public endpoint.
    pub endpoint: Option<String>,
    /// What calls are signed with.
    pub credentials: CredentialSource,
    /// How long one may take.
    pub timeouts: Timeouts,
}

impl Settings {
    /// Those of a region: EC2 where [`ENDPOINT_VARIABLE`] says (empty counts as not set), credentials by the chain,
    /// the default timeouts.
    #[must_use]
    pub fn from_env(region: impl Into<String>) -> Self {
        Self {
            region: region.into(),
            endpoint: std::env::var(ENDPOINT_VARIABLE)
                .ok()
                .filter(|endpoint| !endpoint.is_empty()),
            credentials: CredentialSource::Chain,
            timeouts: Timeouts::default(),
        }
    }

    /// Says what of them cannot be used.
    pub(crate) fn validate(&self) -> Result<(), SettingsError> {
        let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.region.is_empty() || !self.region.chars().all(is_label) {
            return Err(SettingsError::Region(self.region.clone()));
        }
        self.endpoint.as_deref().map_or(Ok(()), validate_endpoint)
    }
}

/// The SDK would take any text, and fail each call with it.
pub(crate) fn validate_endpoint(endpoint: &str) -> Result<(), SettingsError> {
    let is_url = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    };
    match endpoint.parse::<Uri>() {
        Ok(uri) if is_url(&uri) => Ok(()),
        _ => Err(SettingsError::Endpoint(endpoint.to_owned())),
    }
}

/// Settings that no call could be made with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not the name of a region.
    #[error("{0:?} is not the name of a region")]
    Region(String),
    /// Not where something answers.
    #[error("{0:?} is not http:// or https:// and a host")]
    Endpoint(String),
}

/// What calls are signed with.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    /// The SDK's chain: environment, profile, web identity (IRSA), the endpoint of a container (ECS, EKS Pod
    /// Identity), the instance's role by IMDSv2. The first that is there is used, and asked again before its
    /// credentials expire.
    Chain,
    /// What is given.
    Given(SharedCredentialsProvider),
}

impl CredentialSource {
    /// An access key that does not expire.
    #[must_use]
    pub fn fixed(access_key_id: &str, secret_access_key: &str) -> Self {
        let credentials = Credentials::new(access_key_id, secret_access_key, None, None, "fixed");
        Self::Given(SharedCredentialsProvider::new(credentials))
    }
}

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until EC2 accepts the connection: 2 s.
    pub connect: Duration,
    /// From the request until EC2 begins to reply: 10 s, as amazon-vpc-cni-k8s.
    pub read: Duration,
    /// Until there are credentials, where none are at hand: 10 s, in which the metadata service can be asked again.
    pub credentials: Duration,
    /// The whole call: 25 s. What comes last, the reply's body, has what the others leave.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            read: Duration::from_secs(10),
            credentials: Duration::from_secs(10),
            call: Duration::from_secs(25),
        }
    }
}

/// A provider that is waited for so long and no longer. The SDK's own limit fails with an error that looks like any
/// other; this one's is of credentials.
#[derive(Debug)]
pub(crate) struct Limited {
    pub(crate) provider: SharedCredentialsProvider,
    pub(crate) limit: Duration,
}

impl ProvideCredentials for Limited {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            match tokio::time::timeout(self.limit, self.provider.provide_credentials()).await {
                Ok(result) => result,
                Err(_) => self
                    .provider
                    .fallback_on_interrupt()
                    .ok_or_else(|| CredentialsError::provider_timed_out(self.limit)),
            }
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.provider.fallback_on_interrupt()
    }
}
