//! Which addresses are the VPC's: to those pods speak with their own address, whatever is done with it elsewhere.
//!
//! The metadata service says it, for which no call to EC2 is needed. What it adds is believed at once, since packets to
//! a block that came lately must keep their source. What it leaves out is believed when it does so twice: that service
//! forgets at times what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::Ipam;
use super::node::DOUBT;
use super::problem::{Kind, Problem, Subject};
use crate::ec2::{Ec2, Metadata};
use crate::home::Home;

/// How often they are asked for when nothing hints at a change.
const NETWORKS_EVERY: Duration = Duration::from_secs(5 * 60);

/// The VPC's networks, as far as is known.
#[derive(Clone, Debug)]
pub(super) struct Networks {
    known: Vec<IpNetwork>,
    /// Those that were left out, and when first.
    missed: BTreeMap<IpNetwork, Instant>,
    due: Instant,
}

impl Networks {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            known: Vec::new(),
            missed: BTreeMap::new(),
            due: now,
        }
    }

    pub(super) fn known(&self) -> &[IpNetwork] {
        &self.known
    }

    /// When they are asked for next.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// There may be others by now.
    pub(super) fn may_have_changed(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    /// Takes what is told. A VPC has one at least: a list without any says nothing.
    pub(super) fn take(&mut self, told: Vec<IpNetwork>, now: Instant) {
        let mut missed = BTreeMap::new();
        let mut known = told.clone();
        for network in self.known.drain(..).filter(|network| !told.contains(network)) {
            let first = self.missed.get(&network).copied().unwrap_or(now);
            if told.is_empty() || now < first + DOUBT {
                missed.insert(network, first);
                known.push(network);
            } else {
                tracing::warn!(%network, "a network is not the VPC's any more");
            }
        }
        self.due = now
            + match missed.is_empty() {
                true => NETWORKS_EVERY,
                false => DOUBT,
            };
        self.known = known;
        self.missed = missed;
    }
}

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// Asks for the VPC's networks, where that is due. What is known stays where nobody answers.
    pub(super) async fn learn_networks(&mut self, now: Instant) {
        let is_due = self.networks.due() <= now && self.pace.allows(&Subject::Networks, now);
        let Some(mac) = self
            .identity
            .as_ref()
            .map(|identity| identity.primary_mac)
            .filter(|_| is_due)
        else {
            return;
        };
        match self.metadata.vpc_networks(mac).await {
            Ok(told) => {
                self.worked(&Subject::Networks);
                self.networks.take(told, now);
            }
            Err(error) => {
                let problem = Problem {
                    kind: Kind::Metadata,
                    what: format!("whether the VPC has other networks is not known: {error}"),
                    advice: "the agent must reach 169.254.169.254 from the node's own network; what it knew of the VPC \
                             is taken as it was"
                        .to_owned(),
                };
                self.problems.note(&Subject::Networks, problem);
                self.pace.failed(Subject::Networks, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known, and in how many seconds it is asked again, after these lists at these seconds.
    #[track_caller]
    fn check(told: &[(u64, &[&str])], known: &[&str], again_after: u64) {
        let network = |text: &&str| -> IpNetwork { text.parse().expect("a network") };
        let began = Instant::now();
        let mut networks = Networks::new(began);
        let mut last = began;
        for (second, told) in told {
            last = began + Duration::from_secs(*second);
            networks.take(told.iter().map(network).collect(), last);
        }
        assert_eq!(networks.known(), known.iter().map(network).collect::<Vec<_>>());
        assert_eq!(networks.due() - last, Duration::from_secs(again_after));
    }

    #[test]
    fn a_network_comes_at_once_and_goes_when_it_was_left_out_for_half_a_minute() {
        const ONE: &str = "10.0.0.0/16";
        const TWO: &str = "100.64.0.0/16";
        const EVERY: u64 = 300;
        check(&[(0, &[ONE])], &[ONE], EVERY);
        check(&[(0, &[ONE]), (300, &[TWO, ONE])], &[TWO, ONE], EVERY);
        check(&[(0, &[TWO, ONE]), (300, &[ONE])], &[ONE, TWO], 30);
        check(&[(0, &[TWO, ONE]), (300, &[ONE]), (329, &[ONE])], &[ONE, TWO], 30);
        check(&[(0, &[TWO, ONE]), (300, &[ONE]), (330, &[ONE])], &[ONE], EVERY);
        check(
            &[(0, &[TWO, ONE]), (300, &[ONE]), (329, &[ONE, TWO]), (630, &[ONE])],
            &[ONE, TWO],
            30,
        );
        check(&[(0, &[ONE]), (300, &[]), (600, &[]), (900, &[])], &[ONE], 30);
    }
}
