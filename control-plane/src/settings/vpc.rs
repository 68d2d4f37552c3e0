//! The part of the settings that is about an AWS VPC.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use apiserver::Cidrs;
use serde::{Deserialize, Serialize};
use vpc_eni::ec2::Limits;
use vpc_eni::settings::PodFamily;
use vpc_eni::warm::Unit;

use super::{Network, Settings};

/// The type of the nodes' instances unless told otherwise: four interfaces, fifteen addresses each.
const INSTANCE_TYPE: &str = "m5.xlarge";

/// How many pods a node takes at most where their number does not follow from its addresses: EKS's limit for instances
/// of less than 30 vCPUs.
const MOST_PODS: u32 = 110;

/// How large a VPC's network may be (VPC user guide, "VPC CIDR blocks").
const LARGEST_NETWORK_BITS: u8 = 16;

/// What nodes are in a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vpc {
    /// The type of their instances, which says how many interfaces and addresses they can have.
    pub instance_type: String,
    /// amazon-vpc-cni-k8s's variables for their agents.
    pub variables: BTreeMap<String, String>,
}

impl Vpc {
    /// What instances of the type can have; `None` for a type that the fake EC2 does not know.
    pub fn limits(&self) -> Option<Limits> {
        fake_vpc::instance_type(&self.instance_type)
    }

    /// How many pods a node takes, as EKS tells its kubelets: an address each besides the interfaces' own, and two that
    /// have the node's (amazon-vpc-cni-k8s, `misc/eni-max-pods.txt`).
    pub fn max_pods(&self) -> u32 {
        let (settings, _) = vpc_eni::settings::Settings::from_variables(self.variables.clone());
        if settings.unit == Unit::Prefix || settings.family == PodFamily::V6 {
            return MOST_PODS;
        }
        self.limits().map_or(MOST_PODS, |limits| {
            let each = limits.addresses_per_interface.saturating_sub(1);
            (limits.interfaces * each + 2).min(MOST_PODS)
        })
    }

    pub(super) fn validate(&self, settings: &Settings) -> anyhow::Result<()> {
        ensure!(
            self.limits().is_some(),
            "--instance-type {}: the fake EC2 has {}",
            self.instance_type,
            fake_vpc::instance_types().collect::<Vec<_>>().join(", ")
        );
        if let Some(name) = vpc_eni::settings::Settings::unknown_names(&self.variables).first() {
            bail!("--vpc-eni {name}: amazon-vpc-cni-k8s has no variable of that name");
        }
        let (variables, refused) = vpc_eni::settings::Settings::from_variables(self.variables.clone());
        if let Some(refused) = refused.first() {
            bail!("--vpc-eni {refused}");
        }
        ensure!(
            variables.family == PodFamily::V4,
            "--vpc-eni ENABLE_IPv6=true: the cluster's VPC has no IPv6 yet"
        );
        ensure!(
            variables.custom_networking.is_none(),
            "--vpc-eni AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true: the cluster's API server has no ENIConfigs yet"
        );
        ensure!(
            settings.underlay_cidr.secondary().is_none(),
            "--underlay-cidr {}: the cluster's VPC has no IPv6 yet",
            settings.underlay_cidr
        );
        let network = settings.underlay_network();
        ensure!(
            network.prefix() >= LARGEST_NETWORK_BITS,
            "--underlay-cidr {network}: a VPC's network is a /16 at the largest"
        );
        Ok(())
    }
}

/// The flags about a VPC, and those that mean something else in one.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct VpcArgs {
    /// With --network vpc-eni: the type of the nodes' EC2 instances, which says how many network interfaces and addresses
    /// they can have [default: m5.xlarge]
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,
    /// With --network vpc-eni: variables of amazon-vpc-cni-k8s, for example WARM_IP_TARGET=2; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    vpc_eni: Vec<(String, String)>,
}

impl VpcArgs {
    /// What they mean with this network.
    pub fn vpc(&self, network: Network) -> anyhow::Result<Option<Vpc>> {
        if network != Network::VpcEni {
            ensure!(
                self.instance_type.is_none() && self.vpc_eni.is_empty(),
                "--instance-type and --vpc-eni go with --network vpc-eni"
            );
            return Ok(None);
        }
        Ok(Some(Vpc {
            instance_type: self
                .instance_type
                .clone()
                .unwrap_or_else(|| INSTANCE_TYPE.to_owned()),
            variables: self.vpc_eni.iter().cloned().collect(),
        }))
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("expected NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The network between the nodes where none is asked for: in a VPC pods have addresses of it, too.
pub fn default_underlay(network: Network) -> Cidrs {
    let text = match network {
        Network::VpcEni => "172.30.0.0/16",
        Network::Vxlan | Network::HostGw => "172.30.0.0/24",
    };
    text.parse().expect("invariant: a network in a constant")
}
