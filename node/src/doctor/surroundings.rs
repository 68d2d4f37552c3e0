//! What surrounds the agent's own objects: rules of others, connection tracking's table, the disk.

use std::path::Path;

use model::with_causes;
use netlink::conntrack::Usage;
use netlink::nft::Nft;
use overlay::fast_path::foreign_filters;

use super::finding;
use crate::findings::{Finding, Severity};

/// Beyond these shares, in hundredths, something will soon be full.
const TRACKED_PERCENT: u64 = 90;
const DISK_PERCENT: u64 = 95;

/// What is worth knowing around the agent.
#[must_use]
pub fn look(state_dir: &Path) -> Vec<Finding> {
    let mut findings = foreign_rules();
    findings.extend(Usage::read().and_then(conntrack));
    findings.extend(disk(state_dir));
    findings
}

fn foreign_rules() -> Vec<Finding> {
    let foreign = match Nft::open().and_then(|mut nft| foreign_filters(&mut nft)) {
        Ok(foreign) => foreign,
        Err(error) => {
            return vec![finding(
                "rules-unread",
                "this node".to_owned(),
                format!("rules of others cannot be listed: {}", with_causes(&error)),
                "see that the agent has CAP_NET_ADMIN",
            )];
        }
    };
    foreign
        .iter()
        .map(|filter| Finding {
            severity: Severity::Note,
            ..finding(
                "foreign-rules",
                format!("chain {} {} {}", filter.family, filter.table, filter.chain),
                "somebody else's rules meet packets of this node's pods or of the node: they may drop or change them"
                    .to_owned(),
                "none is needed where they are meant; see nft list chain",
            )
        })
        .collect()
}

fn conntrack(usage: Usage) -> Option<Finding> {
    let Usage { tracked, most } = usage;
    let what = if usage.is_full() {
        "packets of new ones are dropped"
    } else {
        "new ones are dropped at the end"
    };
    usage.has_reached(TRACKED_PERCENT).then(|| {
        finding(
            "conntrack-full",
            "this node".to_owned(),
            format!("{tracked} of {most} connections are tracked: {what}"),
            "raise net.netfilter.nf_conntrack_max (proxy.conntrack in the configuration); conntrack -L tells who has them",
        )
    })
}

fn disk(state_dir: &Path) -> Option<Finding> {
    let stat = nix::sys::statvfs::statvfs(state_dir).ok()?;
    let (blocks, free) = (stat.blocks(), stat.blocks_available());
    full_disk(blocks, free, state_dir)
}

fn full_disk(blocks: u64, free: u64, state_dir: &Path) -> Option<Finding> {
    let used = blocks.saturating_sub(free);
    (blocks > 0 && used * 100 >= blocks * DISK_PERCENT).then(|| {
        finding(
            "disk-full",
            format!("file system of {}", state_dir.display()),
            format!(
                "{} % of it is used: no pod gets an address when its record cannot be written",
                used * 100 / blocks
            ),
            "make room there",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_almost_full_is_told_before_it_is() {
        let told = |tracked| {
            let finding = conntrack(Usage { tracked, most: 100 })?;
            Some(format!("{}: {}", finding.id, finding.evidence))
        };
        assert_eq!(told(89), None);
        assert_eq!(
            told(90).as_deref(),
            Some("conntrack-full: 90 of 100 connections are tracked: new ones are dropped at the end")
        );
        assert_eq!(
            told(100).as_deref(),
            Some("conntrack-full: 100 of 100 connections are tracked: packets of new ones are dropped")
        );
        let state = Path::new("/var/lib/causeway");
        assert_eq!(full_disk(100, 6, state), None);
        assert_eq!(full_disk(0, 0, state), None);
        let full = full_disk(100, 5, state).expect("told");
        assert_eq!(
            (full.id.as_str(), full.object.as_str()),
            ("disk-full", "file system of /var/lib/causeway")
        );
    }
}
