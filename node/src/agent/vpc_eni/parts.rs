//! The parts of an agent whose pods have addresses of an AWS VPC.

use anyhow::Context;
use tokio::sync::watch;
use vpc_eni::home::Facts;
use vpc_eni::settings::Settings;

use super::{Former, Manager, PART, Told, keep_ways, serve_introspection};
use crate::agent::report::Sources;
use crate::agent::supervisor::Supervisor;
use crate::agent::{api_source, start_cni};
use crate::config::{Config, VpcEni};
use crate::watch::VpcFacts;

/// Starts them: who has EC2 asked for addresses, and who has the kernel lead to them.
pub fn start(
    supervisor: &mut Supervisor,
    config: &Config,
    ready: watch::Sender<bool>,
    told: Told,
    sources: &Sources,
) {
    let (Some(section), Some(pods)) = (&config.vpc_eni, sources.pods.clone()) else {
        return;
    };
    for name in Settings::unknown_names(&section.variables) {
        tracing::warn!(
            name,
            "vpcEni.variables has a name that is none of amazon-vpc-cni-k8s's variables"
        );
    }
    let (settings, refused) = section.settings(std::env::vars());
    let former = Former::of(config, section, &settings);
    let manager = Manager {
        settings: settings.clone(),
        refused,
        former: former.clone(),
        state_dir: config.state_dir.clone(),
        pods: pods.clone(),
        facts: start_facts(supervisor, config, section, &settings, sources),
        told: told.clone(),
    };
    supervisor.start(PART, move |part, shutdown| manager.clone().run(part, shutdown));
    let (leaving, is_ready, ways) = (former.clone(), ready.subscribe(), told.ways.subscribe());
    supervisor.start("aws-node", move |part, shutdown| {
        leaving
            .clone()
            .remove(is_ready.clone(), ways.clone(), part, shutdown)
    });
    let (anti_spoofing, network_pods) = (section.anti_spoofing, pods.clone());
    supervisor.start("vpc-ways", move |part, shutdown| {
        keep_ways(
            anti_spoofing,
            network_pods.clone(),
            told.clone(),
            ready.clone(),
            part,
            shutdown,
        )
    });
    let (told_pods, status) = (pods.clone(), sources.vpc_eni.clone());
    supervisor.start("vpc-introspection", move |part, shutdown| {
        let (settings, pods, status) = (settings.clone(), told_pods.clone(), status.clone());
        let former = former.clone();
        async move {
            if shutdown
                .run_until_cancelled(former.is_taken_over())
                .await
                .is_none()
            {
                return Ok(());
            }
            let status = status.context("invariant: it is there where the section is")?;
            serve_introspection(settings, status.status, pods, part, shutdown).await
        }
    });
    start_cni(supervisor, config, pods, sources);
}

/// What the cluster says of the node.
fn start_facts(
    supervisor: &mut Supervisor,
    config: &Config,
    section: &VpcEni,
    settings: &Settings,
    sources: &Sources,
) -> watch::Sender<Facts> {
    let wanted = VpcFacts {
        node: config.node_name.clone(),
        max_pods: section.max_pods,
        custom_networking: settings.custom_networking.clone(),
        facts: watch::Sender::new(Facts::unread(section.max_pods)),
    };
    let (facts, api) = (wanted.facts.clone(), api_source(config, sources));
    supervisor.start("vpc-facts", move |part, shutdown| {
        let (wanted, api) = (wanted.clone(), api.clone());
        async move {
            let keep = wanted.keep(&api, |outcome| part.tell(outcome));
            shutdown.run_until_cancelled(keep).await;
            Ok(())
        }
    });
    facts
}
