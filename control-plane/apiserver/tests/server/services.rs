//! Services and the addresses and ports that they hold.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, from, on_every_store, refused};

#[tokio::test]
async fn services_hold_their_addresses_and_ports_alone() -> anyhow::Result<()> {
    on_every_store("services", async |cluster| {
        let services: Api<Service> = cluster.api();
        let addresses: Api<IPAddress> = Api::all(cluster.client.clone());
        let node_port = |name: &str| {
            from::<Service>(json!({
                "metadata": { "name": name },
                "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30123 }] },
            }))
        };
        let parameters = PostParams::default();
        let (a, b) = (node_port("a")?, node_port("b")?);
        let (first, second) =
            tokio::join!(services.create(&parameters, &a), services.create(&parameters, &b));
        let (won, lost) = if first.is_ok() {
            (first?, second)
        } else {
            (second?, first)
        };
        let (code, _, told) = refused(lost)?;
        ensure!(
            code == 422 && told.contains("provided port is already allocated"),
            "{told}"
        );
        let ip = won
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.clone())
            .context("a ClusterIP")?;
        ensure!(addresses.get_opt(&ip).await?.is_some(), "the address is reserved");

        services.delete(&won.name_any(), &DeleteParams::default()).await?;
        ensure!(
            addresses.get_opt(&ip).await?.is_none(),
            "the address is free again"
        );
        services
            .create(&parameters, &node_port("c")?)
            .await
            .context("the port is free again")?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_services_never_share_a_port_of_the_nodes() -> anyhow::Result<()> {
    on_every_store("node-ports", async |cluster| {
        let services: Api<Service> = cluster.api();
        let parameters = PostParams::default();
        let make = async |name: &str, spec: Value| {
            let service = from(json!({ "metadata": { "name": name }, "spec": spec }))?;
            anyhow::Ok(services.create(&parameters, &service).await)
        };
        let balancer = |check: u16, traffic: u16| {
            json!({
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check,
                "ports": [{ "port": 80, "nodePort": traffic }],
            })
        };
        make("a", balancer(30200, 30201)).await??;
        let udp =
            json!({ "type": "NodePort", "ports": [{ "port": 53, "protocol": "UDP", "nodePort": 30201 }] });
        for (spec, field) in [
            (balancer(30200, 30203), "healthCheckNodePort"),
            (balancer(30201, 30203), "healthCheckNodePort"),
            (balancer(30202, 30200), "ports[0].nodePort"),
            (udp, "ports[0].nodePort"),
        ] {
            let (code, _, told) = refused(make("b", spec).await?)?;
            let at = format!("spec.{field}: Invalid value: 3020");
            ensure!(
                code == 422 && told.contains(&at) && told.contains("provided port is already allocated"),
                "{told}"
            );
        }
        let cluster_wide = Patch::Merge(json!({ "spec": { "externalTrafficPolicy": "Cluster" } }));
        let changed = services
            .patch("a", &PatchParams::default(), &cluster_wide)
            .await?;
        ensure!(
            changed
                .spec
                .and_then(|spec| spec.health_check_node_port)
                .is_none()
        );
        make("b", balancer(30200, 30203))
            .await?
            .context("the port of health checks is free again")?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_load_balancers_status_is_written_by_its_subresource_and_ends_with_its_type() -> anyhow::Result<()>
{
    on_every_store("balancer", async |cluster| {
        let services: Api<Service> = cluster.api();
        let spec = json!({ "type": "LoadBalancer", "ports": [{ "port": 80 }] });
        let status = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
        let service = from(json!({ "metadata": { "name": "web" }, "spec": spec, "status": status }))?;
        let ingress = |service: &Service| {
            let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            json!(balancer.and_then(|balancer| balancer.ingress.clone()))
        };
        let made = services.create(&PostParams::default(), &service).await?;
        ensure!(ingress(&made).is_null(), "a new Service has no load balancer yet");
        let parameters = PatchParams::default();
        let told = Patch::Merge(json!({ "status": status, "spec": { "type": "ClusterIP" } }));
        let told = services.patch_status("web", &parameters, &told).await?;
        ensure!(
            ingress(&told) == json!([{ "ip": "192.0.2.1", "ipMode": "VIP" }]),
            "{told:?}"
        );
        ensure!(told.spec == made.spec, "status cannot change the spec");
        let bad = json!([{ "hostname": "lb", "ipMode": "VIP" }]);
        let bad = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": bad } } }));
        let (code, _, said) = refused(services.patch_status("web", &parameters, &bad).await)?;
        let expected = "Service \"web\" is invalid: status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set";
        ensure!((code, said.as_str()) == (422, expected), "{said}");
        let other = Patch::Merge(json!({ "spec": { "type": "NodePort" } }));
        let other = services.patch("web", &parameters, &other).await?;
        ensure!(ingress(&other).is_null(), "{other:?}");
        let again = Patch::Merge(json!({ "status": status }));
        let (code, _, said) = refused(services.patch_status("web", &parameters, &again).await)?;
        ensure!(
            code == 422 && said.ends_with("may only be used when `spec.type` is LoadBalancer"),
            "{said}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_second_address_is_reserved_and_released_with_the_policy() -> anyhow::Result<()> {
    let cluster = Cluster::start_with("dual", false, |config| {
        config.service_cidrs = "10.96.0.0/12,fd00:10:96::/112".parse().expect("networks");
    })
    .await?;
    let services: Api<Service> = cluster.api();
    let reserved: Api<IPAddress> = Api::all(cluster.client.clone());
    let ranges: Api<ServiceCIDR> = Api::all(cluster.client.clone());
    let cidrs = ranges.get("kubernetes").await?.spec.and_then(|spec| spec.cidrs);
    ensure!(cidrs.unwrap_or_default() == ["10.96.0.0/12", "fd00:10:96::/112"]);
    let spec = json!({ "ports": [{ "port": 80 }], "ipFamilyPolicy": "PreferDualStack" });
    let service = from(json!({ "metadata": { "name": "web" }, "spec": spec }))?;
    let made = services.create(&PostParams::default(), &service).await?;
    let addresses = made.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    let [first, second] = addresses.as_slice() else {
        anyhow::bail!("expected two addresses: {addresses:?}")
    };
    let held = async || {
        let both = (reserved.get_opt(first).await?, reserved.get_opt(second).await?);
        anyhow::Ok((both.0.is_some(), both.1.is_some()))
    };
    ensure!(held().await? == (true, true));
    let policy = |policy: &str| Patch::Merge(json!({ "spec": { "ipFamilyPolicy": policy } }));
    let parameters = PatchParams::default();
    let single = services.patch("web", &parameters, &policy("SingleStack")).await?;
    let left = single.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    ensure!(left.as_slice() == std::slice::from_ref(first), "{left:?}");
    ensure!(held().await? == (true, false));
    let dual = services
        .patch("web", &parameters, &policy("RequireDualStack"))
        .await?;
    let again = dual.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    ensure!(again.len() == 2 && again.first() == Some(first), "{again:?}");
    services.delete("web", &DeleteParams::default()).await?;
    ensure!(reserved.list(&ListParams::default()).await?.items.is_empty());
    Ok(())
}
