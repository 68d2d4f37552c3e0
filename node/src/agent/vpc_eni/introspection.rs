//! What amazon-vpc-cni-k8s tells at `127.0.0.1:61679` and its `aws-cni-support.sh` collects, by its paths and names.

use anyhow::Context as _;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use model::wiring::ENI_IFNAME_PREFIX;
use overlay::pods::{Assigned, PodNetwork};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vpc_eni::home::Interface;
use vpc_eni::ipam::Status;
use vpc_eni::settings::Settings;
use vpc_eni::warm::Target;

use crate::agent::pod_network::Pods;
use crate::agent::supervisor::Part;

#[derive(Clone)]
struct Told {
    status: watch::Receiver<Status>,
    settings: Settings,
    pods: PodNetwork,
}

/// Serves until shutdown; nothing, where `DISABLE_INTROSPECTION` says so.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(
    settings: Settings,
    status: watch::Receiver<Status>,
    pods: Pods,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if !settings.serves_introspection {
        part.works();
        shutdown.cancelled().await;
        return Ok(());
    }
    let at = settings.introspection;
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("listen at {at}"))?;
    let told = Told {
        status,
        settings,
        pods: pods.open().await?,
    };
    let router = Router::new()
        .route("/v1/enis", get(enis))
        .route("/v1/eni-configs", get(async || Json(json!({}))))
        .route("/v1/ipamd-env-settings", get(addresses_page))
        .route("/v1/networkutils-env-settings", get(network_page))
        .with_state(told);
    part.works();
    let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    served.await.context("serve the introspection endpoint")
}

/// The peer's `GetConfigForDebug` of pkg/ipamd: what is kept ready, and of which interfaces.
async fn addresses_page(State(told): State<Told>) -> Json<Value> {
    let Settings {
        target,
        max_interfaces,
        custom_networking,
        ..
    } = told.settings;
    let mut page = json!({
        "MAX_ENI": max_interfaces.map_or(-1, i64::from),
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": custom_networking.is_some(),
    });
    match target {
        Target::Interfaces(count) => page["WARM_ENI_TARGET"] = count.into(),
        Target::Prefixes(count) => page["WARM_PREFIX_TARGET"] = count.into(),
        Target::Addresses { warm, minimum } => {
            page["WARM_IP_TARGET"] = warm.into();
            page["MINIMUM_IP_TARGET"] = minimum.into();
        }
    }
    Json(page)
}

/// Likewise of pkg/networkutils: how packets go.
async fn network_page(State(told): State<Told>) -> Json<Value> {
    let Settings {
        external_snat,
        snat_excluded,
        randomize,
        node_ports,
        mtu,
        ..
    } = told.settings;
    Json(json!({
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": external_snat,
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": snat_excluded,
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": randomize,
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": node_ports,
        "AWS_VPC_ENI_MTU": mtu,
        "AWS_VPC_K8S_CNI_VETHPREFIX": ENI_IFNAME_PREFIX,
    }))
}

async fn enis(State(told): State<Told>) -> Json<Value> {
    let status = told.status.borrow().clone();
    Json(page(&status, &told.pods.list()))
}

/// The peer's `ENIInfos` (pkg/ipamd/datastore there).
fn page(status: &Status, pods: &[Assigned]) -> Value {
    let interfaces = status.interfaces.iter().flatten();
    let enis: Map<String, Value> = interfaces
        .map(|interface| (interface.id.0.clone(), eni(interface, pods)))
        .collect();
    json!({"TotalIPs": status.total, "AssignedIPs": status.assigned, "ENIs": enis})
}

fn eni(interface: &Interface, pods: &[Assigned]) -> Value {
    let cidrs: Map<String, Value> = interface
        .blocks
        .iter()
        .map(|block| {
            let holders = pods.iter().flat_map(|pod| {
                let addresses = pod.addresses();
                let within: Vec<_> = addresses
                    .values()
                    .filter(|address| block.contains(**address))
                    .copied()
                    .collect();
                within.into_iter().map(move |address| (address, pod))
            });
            let addresses: Map<String, Value> = holders
                .map(|(address, pod)| {
                    let key = json!({"containerID": pod.key.container_id, "ifName": pod.key.ifname});
                    let pod = pod.pod.as_ref().map(ToString::to_string);
                    (
                        address.to_string(),
                        json!({"Address": address, "IPAMKey": key, "Pod": pod}),
                    )
                })
                .collect();
            let is_prefix = block.prefix() != if block.is_ipv4() { 32 } else { 128 };
            (
                block.to_string(),
                json!({"Cidr": block, "IPAddresses": addresses, "IsPrefix": is_prefix}),
            )
        })
        .collect();
    json!({
        "ID": interface.id,
        "MAC": interface.mac.to_string(),
        "DeviceNumber": interface.device_index,
        "IsPrimary": interface.device_index == 0,
        "AvailableIPv4Cidrs": cidrs,
    })
}
