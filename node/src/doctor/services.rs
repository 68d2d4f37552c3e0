//! What is programmed for Services against what their plans say, frontend by frontend.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use ebpf::SocketHook;
use model::ObjectName;
use proxy::plan::{FrontendKey, ServicePlan};
use proxy::programmed::{LayerKind, Programmed, Wanted};

use super::finding;
use crate::explain::Facts;
use crate::findings::Finding;

const REPAIR: &str = "causeway doctor --fix; by itself the agent looks at rules when they change, and at maps every five \
                      minutes";

/// The plans of all Services.
pub type Plans = BTreeMap<ObjectName, Arc<ServicePlan>>;

/// What is programmed; none where it is not read.
///
/// # Errors
/// When the kernel cannot be read.
pub fn read(facts: &Facts) -> Result<Option<Programmed>, proxy::Error> {
    let Some(context) = facts.context.as_ref().filter(|_| facts.unread_rules.is_none()) else {
        return Ok(None);
    };
    Programmed::read(facts.pin_dir.as_deref(), context.families.iter().copied()).map(Some)
}

/// Frontends that differ, one finding for each Service, and those that are nobody's; and layers that are not there at
/// all, once. Services of `failing` are told already. Services are divided among the processor's cores.
///
/// # Errors
/// When the kernel cannot be read.
pub fn look(
    facts: &Facts,
    plans: &Plans,
    programmed: &Programmed,
    failing: &dyn Fn(&ObjectName) -> bool,
) -> Result<Vec<Finding>, proxy::Error> {
    let missing = programmed.missing_tables();
    let mut findings: Vec<_> = missing.iter().map(|table| of_table(table)).collect();
    if let Some(pin_dir) = &facts.pin_dir {
        findings.extend(of_hook(pin_dir, programmed.has_hook())?);
    }
    let mut stray = programmed.frontends()?;
    let all: Vec<_> = plans.iter().collect();
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let share = all.len().div_ceil(threads).max(1);
    let differing = thread::scope(|scope| {
        let of_share = |share| scope.spawn(move || differing(share, programmed));
        let threads: Vec<_> = all.chunks(share).map(of_share).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    for (name, lines) in differing.into_iter().flatten() {
        if !failing(name) {
            findings.push(finding(
                "service-differs",
                format!("Service {name}"),
                told(&lines),
                REPAIR,
            ));
        }
    }
    for port in all.iter().flat_map(|(_, plan)| plan.ports.values()) {
        for key in port.frontends.keys() {
            stray.remove(key);
        }
    }
    findings.extend(stray.iter().map(of_stray));
    Ok(findings)
}

/// Services of which something differs, with a line for each thing.
type Differing<'a> = Vec<(&'a ObjectName, BTreeSet<String>)>;

fn differing<'a>(
    plans: &[(&'a ObjectName, &Arc<ServicePlan>)],
    programmed: &Programmed,
) -> Result<Differing<'a>, proxy::Error> {
    let has_tables = programmed.missing_tables().is_empty();
    let mut differing = Vec::new();
    for (name, plan) in plans {
        let mut lines = BTreeSet::new();
        for port in plan.ports.values() {
            for (key, frontend) in &port.frontends {
                let layers = programmed.layers(key, Wanted::Port(port, *frontend))?;
                let there = layers
                    .iter()
                    .filter(|layer| layer.kind != LayerKind::PacketRules || has_tables);
                for layer in there {
                    let differences = layer.differences().into_iter();
                    lines.extend(differences.map(|line| format!("{key}: {}: {line}", layer.kind.name())));
                }
            }
        }
        if !lines.is_empty() {
            differing.push((*name, lines));
        }
    }
    Ok(differing)
}

fn of_table(table: &str) -> Finding {
    finding(
        "service-table-gone",
        format!("table {table}"),
        "it is not there: no packet rules serve Services of that version of IP".to_owned(),
        "causeway doctor --fix; the agent makes it again when it sees the change: find who deletes it",
    )
}

/// What of the socket hook is not there: its maps, or programs at the cgroup.
fn of_hook(pin_dir: &Path, has_maps: bool) -> Result<Option<Finding>, ebpf::Error> {
    let evidence = match has_maps {
        false => format!(
            "nothing is pinned below {}: sockets are not translated",
            pin_dir.display()
        ),
        true => match SocketHook::detached(pin_dir)?.as_slice() {
            [] => return Ok(None),
            names => format!(
                "nothing attaches {} to the cgroup: {}/links has no link of it that leads there",
                names.join(", "),
                pin_dir.display()
            ),
        },
    };
    Ok(Some(finding(
        "hook-detached",
        "socket hook".to_owned(),
        evidence,
        "causeway doctor --fix; the agent attaches it again within ten seconds. Until then the packet rules serve",
    )))
}

/// The first of them are enough.
fn told(lines: &BTreeSet<String>) -> String {
    const TOLD: usize = 5;
    let mut told: Vec<String> = lines.iter().take(TOLD).cloned().collect();
    if lines.len() > TOLD {
        told.push(format!("and {} more", lines.len() - TOLD));
    }
    told.join("; ")
}

fn of_stray(key: &FrontendKey) -> Finding {
    finding(
        "frontend-stray",
        format!("frontend {key}"),
        "it is programmed, and no Service has it".to_owned(),
        REPAIR,
    )
}
