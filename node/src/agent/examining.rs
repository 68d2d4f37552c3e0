//! The agent looks at everything, for `causeway doctor`: what it knows to be wrong, and where the kernel is not what its
//! plans say.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use model::{ObjectName, with_causes};
use netlink::Netlink;
use overlay::audit::{mend_pod_devices, set_mtu_in_pod};
use overlay::pods::Assigned;
use overlay::vpc::audit::take_up_pod_devices;
use proxy::plans_of;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::api_source;
use super::report::Sources;
use super::sysctls::Sysctls;
use super::vpc_eni::Heard;
use crate::config::VpcEni;
use crate::doctor::ways::Peer;
use crate::doctor::{
    api, certificates, dns, finding, flows, network, pods, services, settings, surroundings, vpc, ways,
};
use crate::explain::Facts;
use crate::findings::{Finding, Order, Report};

/// A change that is on its way to the kernel differs for a moment: a difference counts only if two looks see it, with
/// this time between.
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

/// How long repairs are waited for.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// Looks, and repairs where it shall.
///
/// # Errors
/// When the thread that looks ends without an answer.
pub async fn examine(
    State(sources): State<Sources>,
    Json(order): Json<Order>,
) -> Result<Json<Report>, StatusCode> {
    let (differences, dns, api) = tokio::join!(sources.lasting_differences(), sources.dns(), sources.api());
    let mut differences = differences?;
    let mut repaired = Vec::new();
    if order.fix && !differences.is_empty() {
        sources.repair().await?;
        let left = sources.await_repairs().await?;
        repaired = differences;
        repaired.retain(|finding| !is_among(finding, &left));
        differences = left;
    }
    let mut findings = sources.findings();
    findings.extend(differences);
    findings.extend(dns);
    findings.extend(api?);
    let config = sources.config.borrow().clone();
    let files = move || {
        let mut found = certificates::look(&config, Timestamp::now());
        found.extend(surroundings::look(&config.state_dir));
        found
    };
    findings.extend(blocking(files).await?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(Json(Report {
        node: sources.node.to_string(),
        findings,
        repaired,
    }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StatusCode> {
    spawn_blocking(work)
        .await
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn unread(what: &str, error: &dyn std::error::Error) -> Vec<Finding> {
    let evidence = format!("{what} cannot be compared: {}", with_causes(error));
    let repair = "see that the agent may read the kernel's tables: CAP_NET_ADMIN and CAP_BPF";
    vec![finding("kernel-unread", "this node".to_owned(), evidence, repair)]
}

/// What is wrong around pods with addresses of a VPC.
fn look_at_vpc(heard: &Heard, section: &VpcEni, pods: &[Assigned]) -> Vec<Finding> {
    let (status, plan) = (heard.status.borrow().clone(), heard.plan.borrow().clone());
    let mut findings: Vec<Finding> = vpc::waiting(&status).into_iter().collect();
    findings.extend(vpc::leaked(&status));
    if let Some(plan) = plan {
        let differs = vpc::differences(&plan, pods);
        findings.extend(differs.unwrap_or_else(|error| unread("the ways of the VPC", &error)));
    }
    let peer = vpc::peer(&section.aws_node_dir);
    findings.extend(peer.unwrap_or_else(|error| unread("rules of others", &error)));
    findings
}

/// Whether the same is told of the same object; the evidence may have changed meanwhile.
fn is_among(finding: &Finding, others: &[Finding]) -> bool {
    let is_same = |other: &Finding| (&other.id, &other.object) == (&finding.id, &finding.object);
    others.iter().any(is_same)
}

impl Sources {
    /// Where the kernel is not what plans say, seen twice.
    async fn lasting_differences(&self) -> Result<Vec<Finding>, StatusCode> {
        let first = self.differences().await?;
        if first.is_empty() {
            return Ok(first);
        }
        sleep(BETWEEN_LOOKS).await;
        let mut second = self.differences().await?;
        second.retain(|finding| is_among(finding, &first));
        Ok(second)
    }

    async fn differences(&self) -> Result<Vec<Finding>, StatusCode> {
        let sources = self.clone();
        blocking(move || sources.look()).await
    }

    /// What is wrong with who answers at the cluster's DNS address, where this node has it.
    async fn dns(&self) -> Option<Finding> {
        let own_answers = *self.dns_answers.as_ref()?.borrow();
        let address = self.config.borrow().dns.address?;
        let snapshot = self.snapshots.borrow().clone();
        dns::look(address, own_answers, &snapshot).await
    }

    /// What is wrong with the API server, and with the ways to it and to other nodes.
    async fn api(&self) -> Result<Vec<Finding>, StatusCode> {
        let config = self.config.borrow().clone();
        let source = api_source(&config, self);
        let snapshot = self.snapshots.borrow().clone();
        let kinds = self.watches.kinds();
        let ways = async {
            let mut peers = ways::peers(&snapshot, &self.node);
            let host = source.server_host().await;
            // A name that is not resolved is told by the watches.
            let address = host.as_ref().and_then(|host| host.parse().ok());
            if let Some(address) = address
                && !peers.iter().any(|peer| peer.address == address)
            {
                let name = "API server".to_owned();
                peers.push(Peer { name, address });
            }
            let proven = Arc::clone(&self.proven_ways);
            blocking(move || ways::vanishing(&peers, &proven)).await
        };
        let vpc = self.vpc_eni.as_ref().map(|heard| heard.status.borrow().clone());
        let api = api::look(&source, &self.node, &kinds, &snapshot, vpc.as_ref());
        let (mut findings, vanishing) = tokio::join!(api, ways);
        findings.extend(vanishing?.unwrap_or_else(|error| unread("ways to other nodes", &error)));
        Ok(findings)
    }

    /// Blocks; in the network namespace of the calling thread.
    fn look(&self) -> Vec<Finding> {
        let facts = self.facts();
        thread::scope(|scope| {
            let around = scope.spawn(|| self.look_at_network(&facts));
            let mut findings = self.look_at_services(&facts);
            let around = around.join();
            findings.extend(around.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            findings
        })
    }

    fn look_at_services(&self, facts: &Facts) -> Vec<Finding> {
        let Some(context) = &facts.context else {
            return Vec::new();
        };
        let (plans, programmed) = thread::scope(|scope| {
            let read = scope.spawn(|| services::read(facts));
            let plans = plans_of(&facts.snapshot, context);
            let read = read.join();
            (
                plans,
                read.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        let failing = |service: &ObjectName| {
            let proxy = self.proxy.as_ref();
            proxy.is_some_and(|proxy| proxy.state().failing.contains(service))
        };
        let of_services = programmed.and_then(|programmed| match programmed {
            Some(programmed) => services::look(facts, &plans, &programmed, &failing),
            None => Ok(Vec::new()),
        });
        let mut findings = of_services.unwrap_or_else(|error| unread("Services", &error));
        let flows = flows::look(&plans);
        findings.extend(flows.unwrap_or_else(|error| unread("tracked flows", &error)));
        findings
    }

    fn look_at_network(&self, facts: &Facts) -> Vec<Finding> {
        let differences = self.sysctls.as_ref().map(Sysctls::differences);
        let mut findings = settings::look(differences.unwrap_or_default());
        let outside = ways::outside(&self.led_outside);
        findings.extend(outside.unwrap_or_else(|error| unread("the default route", &error)));
        let rules = settings::rules(&facts.pods);
        findings.extend(rules.unwrap_or_else(|error| unread("rules of policy routing", &error)));
        let pods = self.pods.as_ref().and_then(|pods| pods.opened());
        let section = self.config.borrow().vpc_eni.clone();
        if let (Some(heard), Some(section), Some(pods)) = (&self.vpc_eni, section, pods) {
            findings.extend(look_at_vpc(heard, &section, &pods.list()));
        }
        let (Some(plan), Some(pods)) = (&facts.network, pods) else {
            return findings;
        };
        let pods = pods.list();
        let of_network = network::look(&facts.snapshot, plan, &pods);
        findings.extend(of_network.unwrap_or_else(|error| unread("the pod network", &error)));
        let config = self.config.borrow().clone();
        let anti_spoofing = config
            .network
            .as_ref()
            .is_some_and(|network| network.anti_spoofing);
        let tables = network::tables(plan, &pods, anti_spoofing);
        findings.extend(tables.unwrap_or_else(|error| unread("the pod network's rules", &error)));
        findings.extend(pods::look(plan.pod_mtu, &pods));
        let tunnels = plan.halves.values().filter_map(|half| half.device.as_ref());
        let tunnels = tunnels.map(|device| device.name.as_str());
        let devices = facts.pods.iter().map(|pod| pod.device.as_str());
        findings.extend(settings::devices(tunnels.chain(devices)));
        findings
    }

    /// Starts all that repairs.
    async fn repair(&self) -> Result<(), StatusCode> {
        self.proxy_audits.notify_one();
        let pods = self.pods.as_ref().and_then(|pods| pods.opened()).cloned();
        let plan = self.network.borrow().clone();
        let Some(pods) = pods else {
            return Ok(());
        };
        let is_of_vpc = self.vpc_eni.is_some();
        let mended = blocking(move || {
            let list = pods.list();
            let mut kernel = Netlink::open()?;
            let mended = match plan {
                Some(plan) => {
                    let mended = mend_pod_devices(&mut kernel, &plan, &list, set_mtu_in_pod);
                    mended.map(|mut devices| {
                        devices.extend(pods::mend(plan.pod_mtu, &list));
                        devices
                    })
                }
                None if is_of_vpc => take_up_pod_devices(&mut kernel, &list),
                None => return Ok(Vec::new()),
            };
            pods.look_again();
            mended
        });
        match mended.await? {
            Ok(devices) if devices.is_empty() => {}
            Ok(devices) => tracing::info!(
                ?devices,
                "pods' devices are as they shall be again, as somebody asked"
            ),
            Err(error) => tracing::warn!(error = with_causes(&error), "pods' devices cannot be mended"),
        }
        Ok(())
    }

    /// What is left once repairs had their time.
    async fn await_repairs(&self) -> Result<Vec<Finding>, StatusCode> {
        let deadline = Instant::now() + REPAIRED_WITHIN;
        loop {
            let left = self.differences().await?;
            if left.is_empty() {
                return Ok(left);
            }
            if Instant::now() >= deadline {
                return self.lasting_differences().await;
            }
            sleep(BETWEEN_LOOKS / 4).await;
        }
    }
}
