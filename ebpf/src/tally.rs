//! The programs that count packets. As those that follow them ([`crate::tracer`]) they are the process's that loaded them,
//! and gone when it ends, however it ends.

use std::os::fd::AsFd;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::Port;
use ebpf_common::tally::{DropCount, DropKey, FlowCount, Local, Total};
use ebpf_common::trace::Flow;

use crate::TALLY_OBJECT;
use crate::kernel_types::{KernelTypes, TypesError};
use crate::sys;
use crate::tracepoints::{Chosen, TracepointError, attach, detach, left_out, load_all, map, offsets, take};

/// The program at `kfree_skb` in a kernel whose tracepoints give so many arguments: it tells the reason since Linux 5.17,
/// and the receiver's socket since 6.11.
fn at_drops(arguments: impl Fn(&str) -> Result<usize, TypesError>) -> Result<Chosen, TracepointError> {
    let tracepoint = "kfree_skb";
    let program = match arguments(tracepoint)? {
        0..3 => return Err(TracepointError::NoReason),
        3 => "kfree_skb_bare",
        _ => "kfree_skb",
    };
    Ok(Chosen { tracepoint, program })
}

/// The attached programs, and what they count.
pub struct Tally {
    programs: Ebpf,
    chosen: Vec<Chosen>,
    drops: MapData,
    flows: MapData,
    nats: MapData,
    local: HashMap<MapData, Local, u32>,
    totals: PerCpuArray<MapData, u64>,
}

impl Tally {
    /// Loads the program that counts drops and attaches it. Packets are counted from here on until this is dropped. Of what
    /// is sent to ports of UDP that are `tunnels`, what it carries is told.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn of_drops(types: &KernelTypes, tunnels: [Port; 2]) -> Result<Self, TracepointError> {
        let chosen = vec![at_drops(|tracepoint| types.arguments(tracepoint))?];
        // Maps of flows are there, with next to no room.
        let start = |loader: &mut EbpfLoader<'_>| {
            for name in FLOW_MAPS {
                loader.map_max_entries(name, 1);
            }
        };
        Self::load(types, chosen, tunnels, false, start)?.attached()
    }

    /// Loads the programs that count flows, and drops by flow, and attaches them. What is sent to ports of UDP that are
    /// `tunnels` is not counted: what it carries is. `local` is where packets are received.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn of_flows(
        types: &KernelTypes,
        tunnels: [Port; 2],
        local: impl IntoIterator<Item = Local>,
    ) -> Result<Self, TracepointError> {
        let same = |tracepoint| Chosen {
            tracepoint,
            program: tracepoint,
        };
        let chosen = vec![
            at_drops(|tracepoint| types.arguments(tracepoint))?,
            same("netif_receive_skb"),
            same("net_dev_start_xmit"),
        ];
        let sizes = |loader: &mut EbpfLoader<'_>| {
            loader.map_max_entries("DROPS", FLOWS);
        };
        let mut tally = Self::load(types, chosen, tunnels, true, sizes)?;
        tally.set_local(local, [])?;
        tally.attached()
    }

    fn load(
        types: &KernelTypes,
        chosen: Vec<Chosen>,
        tunnels: [Port; 2],
        by_flow: bool,
        sizes: impl Fn(&mut EbpfLoader<'_>),
    ) -> Result<Self, TracepointError> {
        let btf = types
            .for_loader()
            .map_err(|error| TracepointError::Btf(Box::new(error)))?;
        let (offsets, by_flow) = (offsets(types)?, u32::from(by_flow));
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets, true)
            .override_global("BY_FLOW", &by_flow, true)
            .override_global("TUNNELS", &tunnels, true);
        sizes(&mut loader);
        let mut programs = loader
            .load(TALLY_OBJECT)
            .map_err(|error| TracepointError::Load(Box::new(error)))?;
        let local = HashMap::try_from(take(&mut programs, "LOCAL")?).map_err(map("open", "LOCAL"))?;
        let [flows, nats] = ["FLOWS", "NATS"].map(|name| take_lru(&mut programs, name));
        let drops = take_lru(&mut programs, "DROPS")?;
        let totals = PerCpuArray::try_from(take(&mut programs, "TOTALS")?).map_err(map("open", "TOTALS"))?;
        load_all(&mut programs, &chosen, &btf)?;
        Ok(Self {
            programs,
            chosen,
            drops,
            flows: flows?,
            nats: nats?,
            local,
            totals,
        })
    }

    fn attached(mut self) -> Result<Self, TracepointError> {
        for chosen in &self.chosen {
            attach(&mut self.programs, *chosen)?;
        }
        Ok(self)
    }

    /// What was dropped since the start, as far as it was not forgotten: a full map forgets what grew least recently.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropKey, DropCount)>, TracepointError> {
        sys::entries(self.drops.fd().as_fd()).map_err(TracepointError::Counters)
    }

    /// Who sent to whom since the start, as far as it was not forgotten.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn flows(&self) -> Result<Vec<(Flow, FlowCount)>, TracepointError> {
        sys::entries(self.flows.fd().as_fd()).map_err(TracepointError::Counters)
    }

    /// Connections that are translated, as they began and as they go on.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn nats(&self) -> Result<Vec<(Flow, Flow)>, TracepointError> {
        sys::entries(self.nats.fd().as_fd()).map_err(TracepointError::Counters)
    }

    /// Changes what addresses network namespaces have, at which packets are received.
    ///
    /// # Errors
    /// When the map takes no more.
    pub fn set_local(
        &mut self,
        more: impl IntoIterator<Item = Local>,
        less: impl IntoIterator<Item = Local>,
    ) -> Result<(), TracepointError> {
        for gone in less {
            match self.local.remove(&gone) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map("write to", "LOCAL")(error)),
            }
        }
        for local in more {
            self.local.insert(local, 1, 0).map_err(map("write to", "LOCAL"))?;
        }
        Ok(())
    }

    /// How many packets were counted since the start: [`Total::DROPS`] or [`Total::FLOWS`]. Read before the entries it is never more than
    /// they and those that were forgotten tell together.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn total(&self, kind: u32) -> Result<u64, TracepointError> {
        debug_assert!(kind < Total::COUNT);
        let of_cpus = self.totals.get(&kind, 0).map_err(map("read", "TOTALS"))?;
        Ok(of_cpus.iter().sum())
    }

    /// How often a packet was not counted since the start, since the program was running on that CPU already.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn left_out(&self) -> Result<u64, TracepointError> {
        left_out(&self.programs, &self.chosen)
    }

    /// Counts no more; what was counted stays until this is dropped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(&mut self) -> Result<(), TracepointError> {
        let stopped = self
            .chosen
            .iter()
            .map(|chosen| detach(&mut self.programs, *chosen));
        stopped.collect()
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").finish_non_exhaustive()
    }
}

/// As many flows as the programs remember may each lose packets.
const FLOWS: u32 = 65536;

/// Maps that drops alone need not.
const FLOW_MAPS: [&str; 3] = ["FLOWS", "NATS", "LOCAL"];

fn take_lru(programs: &mut Ebpf, name: &'static str) -> Result<MapData, TracepointError> {
    match take(programs, name)? {
        Map::LruHashMap(map) => Ok(map),
        _ => Err(TracepointError::Missing(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_at_drops_is_the_one_that_fits_the_kernel() {
        let rows = [
            (2, None),                   // before Linux 5.17
            (3, Some("kfree_skb_bare")), // to 6.10
            (4, Some("kfree_skb")),
        ];
        for (arguments, program) in rows {
            let found = at_drops(|_| Ok(arguments)).map(|chosen| chosen.program);
            assert_eq!(found.as_ref().ok(), program.as_ref(), "{found:?}");
        }
    }
}
