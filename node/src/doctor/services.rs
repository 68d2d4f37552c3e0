//! What is programmed for Services against what their plans say, frontend by frontend.

use std::collections::BTreeSet;

use model::ObjectName;
use proxy::plan::FrontendKey;
use proxy::plans_of;
use proxy::programmed::{Programmed, Wanted};

use super::finding;
use crate::explain::Facts;
use crate::findings::Finding;

const REPAIR: &str = "causeway doctor --fix; by itself the agent looks at rules when they change, and at maps every five \
                      minutes";

/// Frontends that differ, one finding for each Service, and those that are nobody's. Nothing before the proxy's first
/// sync, and where what is programmed is not read. Services of `failing` are told already.
///
/// # Errors
/// When the kernel cannot be read.
pub fn look(facts: &Facts, failing: &dyn Fn(&ObjectName) -> bool) -> Result<Vec<Finding>, proxy::Error> {
    let Some(context) = facts.context.as_ref().filter(|_| facts.unread_rules.is_none()) else {
        return Ok(Vec::new());
    };
    let programmed = Programmed::read(facts.pin_dir.as_deref(), context.families.iter().copied())?;
    let mut stray = programmed.frontends()?;
    let mut findings = Vec::new();
    for (name, plan) in plans_of(&facts.snapshot, context) {
        let mut lines = BTreeSet::new();
        for port in plan.ports.values() {
            for (key, frontend) in &port.frontends {
                stray.remove(key);
                for layer in programmed.layers(key, Wanted::Port(port, *frontend))? {
                    let differences = layer.differences().into_iter();
                    lines.extend(differences.map(|line| format!("{key}: {}: {line}", layer.kind.name())));
                }
            }
        }
        if !lines.is_empty() && !failing(&name) {
            findings.push(finding(
                "service-differs",
                format!("Service {name}"),
                told(&lines),
                REPAIR,
            ));
        }
    }
    findings.extend(stray.iter().map(of_stray));
    Ok(findings)
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
