//! `causeway connectivity`: who reaches whom in a cluster, tried with real pods and packets.
//!
//! - [`cells`]: what is tried.
//! - [`objects`], [`stage`], [`held`]: what is put up for it, and taken down again; by whom.
//! - [`attempt`]: the attempts.
//! - [`follow`]: where the packets of a failure are dropped, as far as this machine sees.
//! - [`render`]: the matrix.
//!
//! Everything goes over the Kubernetes API, so that it works on any cluster whose nodes have the image.

mod attempt;
mod cells;
mod follow;
mod held;
mod objects;
mod render;
mod stage;

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{bail, ensure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::ConnectivityArgs;
use crate::logs::tell;
use crate::watch::Objects;
use attempt::{Asker, Tried};
use cells::{Family, Place, Target, Transport};
use follow::Follower;
use held::LONGEST_WAIT;
use stage::{Node, Stage};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The namespace that was put up for it.
    pub namespace: String,
    /// The pods' image.
    pub image: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// What was tried.
    pub cells: Vec<Told>,
    /// What could not be tried, and why.
    pub notes: Vec<String>,
    /// How many were tried.
    pub tried: usize,
    /// How many failed.
    pub failed: usize,
    /// How long all of it took, but for the end of the namespace.
    pub millis: u64,
}

/// What was found of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Who asks, and by what way.
    pub path: cells::Path,
    /// Where the server is.
    pub place: Place,
    /// The version of IP.
    pub family: Family,
    /// By what.
    pub transport: Transport,
    /// The node that asks.
    pub from: String,
    /// The node where the server is, where the cluster has a say in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who is asked.
    pub target: String,
    /// Whether the right answer came.
    pub ok: bool,
    /// How often it was tried: what is new may be served a little later.
    pub attempts: u32,
    /// How long the answer took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros: Option<u64>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What `causeway trace` tells of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
}

impl Report {
    /// In the form that was asked for.
    #[must_use]
    pub fn render(&self, output: crate::cli::Output) -> String {
        match output {
            crate::cli::Output::Text => render::text(self),
            crate::cli::Output::Json => format!("{:#}\n", serde_json::json!(self)),
        }
    }

    /// Whether something does not reach something.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.failed > 0
    }
}

/// Puts up what is needed, tries everything, and takes it down again, also when `shutdown` comes first.
///
/// # Errors
/// When nothing can be tried.
pub async fn run(args: &ConnectivityArgs, shutdown: &CancellationToken) -> anyhow::Result<Report> {
    let external: Vec<Target> = args
        .external
        .iter()
        .map(|text| target(text))
        .collect::<Result<_, _>>()?;
    ensure!(
        args.timeout <= LONGEST_WAIT,
        "--timeout: pods are waited for {} minutes at the most",
        LONGEST_WAIT.as_secs() / 60
    );
    let objects = Objects::of(args.server.credentials()?).await?;
    remove_leftovers(&objects).await?;
    let nodes = stage::nodes(&objects, &args.nodes).await?;
    // Not given up in its middle: what was made has to be known.
    let stage = Stage::put_up(&objects, &args.namespace_prefix, &args.image).await?;
    let tried = tokio::select! {
        tried = try_all(args, &objects, &stage, &nodes, &external) => tried,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let namespace = &stage.namespace;
    match stage.take_down().await {
        Ok(true) => {}
        Ok(false) => tell(format_args!(
            "namespace {namespace} is still being removed by the cluster"
        )),
        Err(error) => tell(format_args!(
            "left behind: namespace {namespace}: {error:#} (kubectl delete namespace {namespace})"
        )),
    }
    // A request of one that was killed may have been under way at the first look.
    if let Err(error) = remove_leftovers(&objects).await {
        tell(format_args!("warning: what other runs left: {error:#}"));
    }
    tried
}

/// Removes what runs that were killed have left, and tells it.
async fn remove_leftovers(objects: &Objects) -> anyhow::Result<()> {
    for name in stage::remove_leftovers(objects).await? {
        tell(format_args!(
            "removed namespace {name}, which an earlier run left"
        ));
    }
    Ok(())
}

async fn try_all(
    args: &ConnectivityArgs,
    objects: &Objects,
    stage: &Stage<'_>,
    nodes: &[Node],
    external: &[Target],
) -> anyhow::Result<Report> {
    let began = Instant::now();
    let api_server = stage::api_server(objects).await?;
    let sites = stage.fill(nodes, args.timeout).await?;
    let cells = cells::cells(&sites, &api_server, external);
    let asker = Asker::of(objects, stage, &args.image);
    let tried = asker.settle(&cells).await?;
    let mut follower = match tried.iter().any(|tried| tried.outcome.is_err()) {
        true => Follower::new(&sites),
        false => None,
    };
    let mut told = Vec::with_capacity(cells.len());
    for (cell, Tried { attempts, outcome }) in cells.iter().zip(tried) {
        let site = &sites[cell.from];
        let trace = match (&mut follower, &outcome) {
            (Some(follower), Err(_)) => follower.follow(cell, site, &asker).await?,
            _ => Vec::new(),
        };
        told.push(Told {
            path: cell.path,
            place: cell.place,
            family: cell.family,
            transport: cell.transport,
            from: site.node.clone(),
            to: cell.to.map(|to| sites[to].node.clone()),
            target: cell.target.clone(),
            ok: outcome.is_ok(),
            attempts,
            micros: outcome.as_ref().ok().copied(),
            reason: outcome.err(),
            trace,
        });
    }
    Ok(Report {
        namespace: stage.namespace.clone(),
        image: args.image.clone(),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        notes: notes(&sites),
        tried: told.len(),
        failed: told.iter().filter(|told| !told.ok).count(),
        cells: told,
        millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// What is not in the matrix, and why.
fn notes(sites: &[cells::Site]) -> Vec<String> {
    let mut notes = Vec::new();
    if let [only] = sites {
        notes.push(format!(
            "{} alone takes pods: nothing was tried between nodes",
            only.node
        ));
    }
    for family in Family::ALL {
        let has_pods = sites
            .iter()
            .any(|site| cells::of_family(&site.client, family).is_some());
        let has_services = sites.iter().any(|site| site.services.contains_key(&family));
        match (has_pods, has_services) {
            (true, true) => {}
            (true, false) => notes.push(format!("the cluster has no Services of {family}")),
            (false, true) => notes.push(format!(
                "pods have no addresses of {family}, though Services have"
            )),
            (false, false) => notes.push(format!("the cluster has no {family}")),
        }
    }
    notes
}

/// Who is named by `--external`.
fn target(text: &str) -> anyhow::Result<Target> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Target::Address(address));
    }
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains([':', '/']) && port.parse::<u16>().is_ok() =>
        {
            Ok(Target::Name(text.to_owned()))
        }
        _ => bail!("--external {text}: HOST:PORT or [ADDRESS]:PORT is what a connection can be opened to"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_outside_is_an_address_or_a_name_with_a_port() {
        let address = |text: &str| Target::Address(text.parse().expect("an address"));
        let rows = [
            ("198.51.100.7:443", Some(address("198.51.100.7:443"))),
            ("[fd00::1]:80", Some(address("[fd00::1]:80"))),
            (
                "example.test:80",
                Some(Target::Name("example.test:80".to_owned())),
            ),
            ("example.test", None),
            ("fd00::1:80", None),
            ("http://example.test:80", None),
            (":80", None),
            ("example.test:http", None),
        ];
        for (text, expected) in rows {
            assert_eq!(target(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_tried_is_noted() {
        let site = cells::tests::site;
        assert_eq!(notes(&[site(1, true), site(2, true)]), Vec::<String>::new());
        assert_eq!(
            notes(&[site(1, false)]),
            [
                "node-1 alone takes pods: nothing was tried between nodes",
                "the cluster has no IPv6"
            ]
        );
        let mut without_services = site(1, true);
        without_services.services.remove(&Family::V6);
        assert_eq!(
            notes(&[without_services, site(2, false)]),
            ["the cluster has no Services of IPv6"]
        );
    }
}
