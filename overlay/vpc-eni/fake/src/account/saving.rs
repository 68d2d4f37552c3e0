//! The account as a file has it, and whether what a file has makes sense.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use tokio::time::Instant;
use vpc_eni::ec2::{Eni, EniId};

use super::making::{holds, is_block};
use super::{Account, Land};
use crate::request::{Interface, Progress};

impl Account {
    /// As it will be once all that is under way is over.
    pub(crate) fn at_rest(&self) -> Self {
        let mut account = self.clone();
        for interface in account.interfaces.values_mut() {
            if interface
                .progress
                .is_some_and(|progress| progress.gone_at.is_some())
            {
                interface.eni.attachment = None;
                interface.progress = None;
            }
        }
        account
    }

    /// When each attachment was asked for.
    pub(crate) fn attached_since(&self) -> BTreeMap<EniId, Instant> {
        let since = |interface: &Interface| Some((interface.eni.id.clone(), interface.progress?.since));
        self.interfaces.values().filter_map(since).collect()
    }

    /// All attachments are made, each since that time.
    pub(crate) fn attach_all(&mut self, since: impl Fn(&EniId) -> Instant) {
        for interface in self.interfaces.values_mut() {
            let since = since(&interface.eni.id);
            interface.progress = interface.eni.attachment.as_ref().map(|_| Progress {
                since,
                attached_at: since,
                device_at: since,
                gone_at: None,
            });
        }
    }

    /// Whether everything that is named is there, and nothing would be given twice.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_names()?;
        for (id, vpc) in &self.vpcs {
            if vpc.networks.is_empty() || !vpc.networks.iter().copied().all(is_block) {
                return Err(format!("{id} has blocks that no VPC has"));
            }
            self.group(&vpc.default_group)
                .map_err(|refusal| refusal.message)?;
        }
        for (_, vpc) in self.groups.values() {
            self.vpc(vpc).map_err(|refusal| refusal.message)?;
        }
        self.lands.values().try_for_each(|land| self.check_land(land))?;
        for (id, machine) in &self.machines {
            if !self.types.contains_key(&machine.instance_type) {
                return Err(format!("{id} is of no type that is there"));
            }
            self.land(&machine.subnet).map_err(|refusal| refusal.message)?;
        }
        let all = self.interfaces.values();
        all.map(|interface| &interface.eni)
            .try_for_each(|eni| self.check_interface(eni))
    }

    /// Each object is kept by its own name, and no name is yet to be given.
    fn check_names(&self) -> Result<(), String> {
        let lands = self.lands.iter().map(|(id, land)| (&id.0, &land.subnet.id.0));
        let groups = self.groups.iter().map(|(id, (group, _))| (&id.0, &group.id.0));
        let machines = self.machines.iter().map(|(id, machine)| (&id.0, &machine.id.0));
        let interfaces = self.interfaces.iter().map(|(id, one)| (&id.0, &one.eni.id.0));
        let attachments = self.interfaces.values().filter_map(|interface| {
            let attached = interface.eni.attachment.as_ref()?;
            Some((&attached.id.0, &attached.id.0))
        });
        let made = self.tokens.values();
        let made = made.map(|(_, made)| (&made.eni.id.0, &made.eni.id.0));
        let vpcs = self.vpcs.keys().map(|id| (&id.0, &id.0));
        let all = vpcs.chain(lands).chain(groups).chain(machines);
        for (id, own) in all.chain(interfaces).chain(attachments).chain(made) {
            let number = id
                .rsplit_once('-')
                .map(|(_, digits)| u64::from_str_radix(digits, 16));
            if id != own || !matches!(number, Some(Ok(number)) if number <= self.last_number) {
                return Err(format!("{id} is no name that was given"));
            }
        }
        Ok(())
    }

    fn check_land(&self, land: &Land) -> Result<(), String> {
        let subnet = &land.subnet;
        let vpc = self.vpc(&subnet.vpc).map_err(|refusal| refusal.message)?;
        let of_vpc = vpc.networks.iter().any(|block| holds(*block, subnet.network));
        let is_whole = is_block(subnet.network) && of_vpc;
        let is_whole_v6 = land.network_v6.is_none_or(|network| network.prefix() == 64);
        let holds_all = land
            .occupied
            .iter()
            .all(|address| subnet.network.contains(*address));
        if !is_whole || !is_whole_v6 || !holds_all {
            return Err(format!("{} is no subnet of its VPC", subnet.id));
        }
        self.check_addresses(land)
    }

    fn check_interface(&self, eni: &Eni) -> Result<(), String> {
        self.land(&eni.subnet).map_err(|refusal| refusal.message)?;
        for group in &eni.groups {
            self.group(group).map_err(|refusal| refusal.message)?;
        }
        let machine = eni
            .attachment
            .as_ref()
            .map(|attached| self.machine(&attached.instance));
        machine.transpose().map_err(|refusal| refusal.message)?;
        Ok(())
    }

    /// All that the interfaces of a subnet have is of it, and nobody has what another one has.
    fn check_addresses(&self, land: &Land) -> Result<(), String> {
        let mut taken: BTreeSet<Ipv4Addr> = land.occupied.clone();
        let mut taken_v6 = BTreeSet::new();
        let of_subnet = |interface: &&Interface| interface.eni.subnet == land.subnet.id;
        for Interface { eni, .. } in self.interfaces.values().filter(of_subnet) {
            let prefixes = eni.prefixes.iter().flat_map(|prefix| prefix.iter());
            let own = std::iter::once(eni.primary).chain(eni.secondary.iter().copied());
            let are_free = own
                .chain(prefixes)
                .all(|address| land.subnet.network.contains(address) && taken.insert(address));
            let are_free_v6 = eni.prefixes_v6.iter().all(|block| {
                let is_of_subnet = land
                    .network_v6
                    .is_some_and(|network| network.contains(block.ip()));
                is_of_subnet && taken_v6.insert(*block)
            });
            if !are_free || !are_free_v6 {
                return Err(format!("{} has addresses that are not its own", eni.id));
            }
        }
        Ok(())
    }
}
