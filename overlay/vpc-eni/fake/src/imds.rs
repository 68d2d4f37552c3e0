//! The instance metadata service, as one instance sees it.

use ipnetwork::IpNetwork;
use model::MacAddr;
use vpc_eni::ec2::{Identity, InstanceId, Metadata, MetadataError};

use crate::Cloud;
use crate::cloud::Known;
use crate::request::Interface;
use crate::weather::MetadataMood;

/// The metadata service of an instance.
#[derive(Clone)]
pub struct Imds {
    cloud: Cloud,
    instance: InstanceId,
}

impl Imds {
    pub(crate) fn new(cloud: Cloud, instance: InstanceId) -> Self {
        Self { cloud, instance }
    }

    pub(crate) fn mood(&self) -> MetadataMood {
        self.cloud.weather().metadata
    }

    /// What the service knows, whether it tells that or not.
    pub(crate) fn known(&self) -> Result<Known, MetadataError> {
        let silence = || MetadataError::NoAnswer("nobody is there".to_owned());
        self.cloud.metadata(&self.instance).ok_or_else(silence)
    }

    fn told(&self) -> Result<Known, MetadataError> {
        if self.mood().is_disabled {
            return Err(MetadataError::Missing {
                path: "latest/api/token".to_owned(),
                why: "403 Forbidden".to_owned(),
            });
        }
        self.known()
    }
}

/// The region that a zone is of: its name without the letter.
pub(crate) fn region(zone: &str) -> &str {
    zone.trim_end_matches(|letter: char| letter.is_ascii_lowercase())
}

impl Metadata for Imds {
    async fn identity(&self) -> Result<Identity, MetadataError> {
        let known = self.told()?;
        let primary = primary(&known).ok_or_else(|| missing("mac"))?;
        Ok(Identity {
            instance: known.machine.id.clone(),
            region: region(&known.machine.zone).to_owned(),
            zone: known.machine.zone.clone(),
            instance_type: known.machine.instance_type.clone(),
            primary_mac: primary.eni.mac,
        })
    }

    async fn vpc_networks(&self, mac: MacAddr) -> Result<Vec<IpNetwork>, MetadataError> {
        let known = self.told()?;
        let has_mac = |interface: &&Interface| interface.eni.mac == mac;
        let path = format!("network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks");
        known
            .machine
            .interfaces
            .iter()
            .find(has_mac)
            .ok_or_else(|| missing(&path))?;
        Ok(known.vpc_networks.into_iter().map(IpNetwork::V4).collect())
    }
}

/// The interface that the instance was made with.
pub(crate) fn primary(known: &Known) -> Option<&Interface> {
    known.machine.interfaces.iter().find(|interface| {
        let attached = interface.eni.attachment.as_ref();
        attached.is_some_and(|attached| attached.device_index == 0 && attached.card_index == 0)
    })
}

fn missing(path: &str) -> MetadataError {
    MetadataError::Missing {
        path: path.to_owned(),
        why: "404 Not Found".to_owned(),
    }
}
