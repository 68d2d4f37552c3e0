//! The section `vpcEni`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vpc_eni::settings::Settings;

use super::NetworkPolicies;

/// Pods with addresses of an AWS VPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VpcEni {
    /// amazon-vpc-cni-k8s's variables by name, as text (`WARM_IP_TARGET: "2"`). They come before those of the agent's
    /// own environment, which has the same names. Default: none, and that is one warm interface.
    pub variables: BTreeMap<String, String>,
    /// How many pods the kubelet takes (`--max-pods`): more addresses than that are not kept ready. Default: as many as
    /// the Node says (`status.allocatable.pods`).
    pub max_pods: Option<u32>,
    /// Whether packets are dropped that a pod sends from an address that is not its own. Default: true.
    #[serde(default = "yes")]
    pub anti_spoofing: bool,
    /// As in `network`. Default: `report`.
    pub network_policies: NetworkPolicies,
    /// Where `aws-node` (amazon-vpc-cni-k8s) has its socket and remembers whom it gave addresses: pods that it connected
    /// before are taken over, and nothing is given as long as it runs. Default: `/var/run/aws-node`.
    #[serde(default = "aws_node_dir")]
    pub aws_node_dir: PathBuf,
}

const fn yes() -> bool {
    true
}

fn aws_node_dir() -> PathBuf {
    "/var/run/aws-node".into()
}

impl VpcEni {
    /// The settings, and what of the variables is refused: what they cannot mean, and what is not here.
    #[must_use]
    pub fn settings(&self, environment: impl Iterator<Item = (String, String)>) -> (Settings, Vec<String>) {
        let mut variables: BTreeMap<String, String> = environment.collect();
        variables.extend(self.variables.clone());
        let (settings, refused) = Settings::from_variables(variables);
        let refused = refused.iter().map(ToString::to_string).collect();
        (settings, refused)
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let (_, refused) = self.settings(std::iter::empty());
        let of_section = |refused: &String| format!("vpcEni.variables: {refused}");
        refused.iter().map(of_section).collect()
    }
}
