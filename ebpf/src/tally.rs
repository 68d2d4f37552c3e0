//! The programs that count packets. As those that follow them ([`crate::tracer`]) they are the process's that loaded them,
//! and gone when it ends, however it ends.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData, PerCpuArray};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::tally::{DropCount, DropKey, Total};

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
    totals: PerCpuArray<MapData, u64>,
}

impl Tally {
    /// Loads the program that counts drops and attaches it. Packets are counted from here on until this is dropped.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn of_drops(types: &KernelTypes) -> Result<Self, TracepointError> {
        let chosen = vec![at_drops(|tracepoint| types.arguments(tracepoint))?];
        let btf = types
            .for_loader()
            .map_err(|error| TracepointError::Btf(Box::new(error)))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets(types)?, true)
            .override_global("BY_FLOW", &0_u32, true)
            .load(TALLY_OBJECT)
            .map_err(|error| TracepointError::Load(Box::new(error)))?;
        let drops = take_lru(&mut programs, "DROPS")?;
        let totals = PerCpuArray::try_from(take(&mut programs, "TOTALS")?).map_err(map("open", "TOTALS"))?;
        load_all(&mut programs, &chosen, &btf)?;
        for chosen in &chosen {
            attach(&mut programs, *chosen)?;
        }
        Ok(Self {
            programs,
            chosen,
            drops,
            totals,
        })
    }

    /// What was dropped since the start, as far as it was not forgotten: a full map forgets what grew least recently.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropKey, DropCount)>, TracepointError> {
        sys::entries(self.drops.fd().as_fd()).map_err(TracepointError::Counters)
    }

    /// How many packets were counted since the start: [`Total::DROPS`]. Read before the entries it is never more than
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
