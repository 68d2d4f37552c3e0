//! The section `vpcEni`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vpc_eni::settings::{Refused, Settings};

/// Pods with addresses of an AWS VPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VpcEni {
    /// amazon-vpc-cni-k8s's variables by name, as text (`WARM_IP_TARGET: "2"`). They come before those of the agent's
    /// own environment, which has the same names. Default: none, and that is one warm interface.
    pub variables: BTreeMap<String, String>,
    /// How many pods the kubelet takes (`--max-pods`): more addresses than that are not kept ready. Default: as many as
    /// the instance can have.
    pub max_pods: Option<u32>,
    /// Whether packets are dropped that a pod sends from an address that is not its own. Default: true.
    #[serde(default = "yes")]
    pub anti_spoofing: bool,
}

const fn yes() -> bool {
    true
}

impl VpcEni {
    /// The settings, and what of the variables is refused.
    #[must_use]
    pub fn settings(&self, environment: impl Iterator<Item = (String, String)>) -> (Settings, Vec<Refused>) {
        let mut variables: BTreeMap<String, String> = environment.collect();
        variables.extend(self.variables.clone());
        Settings::from_variables(variables)
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let (settings, refused) = self.settings(std::iter::empty());
        let mut problems: Vec<String> = refused
            .iter()
            .map(|refused| format!("vpcEni.variables: {refused}"))
            .collect();
        if settings.custom_networking.is_some() {
            problems.push(
                "vpcEni.variables: AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG: the agent does not read ENIConfigs yet".to_owned(),
            );
        }
        if settings.veth_prefix != Settings::default().veth_prefix {
            problems.push(
                "vpcEni.variables: AWS_VPC_K8S_CNI_VETHPREFIX: pods' devices are called eni… here".to_owned(),
            );
        }
        problems
    }
}
