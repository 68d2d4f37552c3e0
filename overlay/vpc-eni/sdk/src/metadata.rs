//! The instance's metadata service (IMDSv2) by the SDK.

use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use aws_config::BehaviorVersion;
use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use ipnetwork::IpNetwork;
use model::MacAddr;
use vpc_eni::ec2::{Identity, InstanceId, Metadata, MetadataError};

use crate::connector::http_client;
use crate::failure::words;
use crate::settings::{SettingsError, validate_endpoint};

/// What is said to a session that is not known.
const REFUSED: u16 = 401;

/// The instance's metadata service, by sessions (IMDSv2) alone. A connection has a second, and so has a reply; what
/// the service cannot answer now (5xx) is asked up to four times.
#[derive(Clone, Debug)]
pub struct ImdsMetadata {
    builder: imds::client::Builder,
    /// With the session that it has begun.
    imds: Arc<RwLock<imds::Client>>,
}

impl ImdsMetadata {
    /// The service at `endpoint`, as `http://` and a host. `None` leaves it to the SDK:
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`, `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` (`IPv6`), the profile, or
    /// `http://169.254.169.254`.
    ///
    /// # Errors
    /// When the endpoint is none.
    pub fn new(endpoint: Option<&str>) -> Result<Self, SettingsError> {
        let config = ProviderConfig::without_region()
            .with_behavior_version(Some(BehaviorVersion::v2026_01_12()))
            .with_http_client(http_client());
        let mut builder = imds::Client::builder().configure(&config);
        if let Some(endpoint) = endpoint {
            validate_endpoint(endpoint)?;
            builder = builder
                .endpoint(endpoint)
                .map_err(|_| SettingsError::Endpoint(endpoint.to_owned()))?;
        }
        Ok(Self {
            imds: Arc::new(RwLock::new(builder.clone().build())),
            builder,
        })
    }

    /// Asks within the session that there is, and once more in a new one where that is not known any more: services
    /// forget theirs when they start again, and the SDK keeps one for hours.
    async fn ask(&self, path: &str) -> Result<imds::client::SensitiveString, ImdsError> {
        let path = format!("/latest/meta-data/{path}");
        let client = self.imds.read().unwrap_or_else(PoisonError::into_inner).clone();
        match client.get(&path).await {
            Err(ImdsError::ErrorResponse(reply)) if reply.response().status().as_u16() == REFUSED => {}
            other => return other,
        }
        let fresh = self.builder.clone().build();
        *self.imds.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh.get(&path).await
    }

    /// What a path says; `None` where there is no such path.
    async fn find(&self, path: &str) -> Result<Option<String>, MetadataError> {
        match self.ask(path).await {
            Ok(text) => Ok(Some(text.as_ref().trim().to_owned())),
            Err(ImdsError::ErrorResponse(reply)) => match reply.response().status().as_u16() {
                404 => Ok(None),
                // "Configure the instance metadata service", EC2's User Guide: what a service that is turned off says.
                403 => Err(MetadataError::NoAnswer("HTTP 403: it is disabled".to_owned())),
                REFUSED => Err(missing(path, "it refuses the session that it gave (HTTP 401)")),
                status @ 500.. => Err(MetadataError::NoAnswer(format!("HTTP {status}"))),
                status => Err(missing(path, format!("HTTP {status}"))),
            },
            Err(error) => Err(MetadataError::NoAnswer(words(&error))),
        }
    }

    /// What a path says that every instance has.
    async fn get(&self, path: &str) -> Result<String, MetadataError> {
        let text = self.find(path).await?;
        text.filter(|text| !text.is_empty())
            .ok_or_else(|| missing(path, "there is nothing"))
    }
}

fn missing(path: &str, why: impl Into<String>) -> MetadataError {
    MetadataError::Missing {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn parsed<T: FromStr>(path: &str, text: &str) -> Result<T, MetadataError> {
    text.parse().map_err(|_| missing(path, format!("{text:?}")))
}

impl Metadata for ImdsMetadata {
    async fn identity(&self) -> Result<Identity, MetadataError> {
        Ok(Identity {
            instance: InstanceId(self.get("instance-id").await?),
            region: self.get("placement/region").await?,
            zone: self.get("placement/availability-zone").await?,
            instance_type: self.get("instance-type").await?,
            primary_mac: parsed("mac", &self.get("mac").await?)?,
        })
    }

    async fn vpc_networks(&self, primary: MacAddr) -> Result<Vec<IpNetwork>, MetadataError> {
        let of_primary = format!("network/interfaces/macs/{primary}");
        let v4 = format!("{of_primary}/vpc-ipv4-cidr-blocks");
        // A VPC has an IPv4 network always, an IPv6 network perhaps.
        let v4_blocks = self.get(&v4).await?;
        let v6 = format!("{of_primary}/vpc-ipv6-cidr-blocks");
        let v6_blocks = self.find(&v6).await?.unwrap_or_default();
        let of_v4 = v4_blocks.split_whitespace().map(|block| parsed(&v4, block));
        let of_v6 = v6_blocks.split_whitespace().map(|block| parsed(&v6, block));
        of_v4.chain(of_v6).collect()
    }
}
