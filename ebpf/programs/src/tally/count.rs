//! Counters that every CPU may be at.

use core::arch::asm;

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use ebpf_common::tally::Total;

#[map]
static TOTALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Total::COUNT, 0);

/// `BPF_NOEXIST`: unless somebody was faster.
const ONLY_IF_ABSENT: u64 = 1;

/// A packet more of that kind. Counted after the entry that it is in, so that there are never more here than there.
#[inline(always)]
pub fn count(kind: u32) {
    if let Some(total) = TOTALS.get_ptr_mut(kind) {
        add(total, 1);
    }
}

/// The value of a key, which is made where there is none.
#[inline(always)]
pub fn entry<K, V>(map: &LruHashMap<K, V>, key: &K, new: impl FnOnce() -> V) -> Option<*mut V> {
    if let Some(value) = map.get_ptr_mut(key) {
        return Some(value);
    }
    // Whoever made it: it is there now. If it is not, the total tells that a packet was not counted.
    let _ = map.insert(key, new(), ONLY_IF_ABSENT);
    map.get_ptr_mut(key)
}

/// Adds to a word of a map's value: in one step, whoever else does. `core` has no such step for this target.
#[inline(always)]
pub fn add(word: *mut u64, more: u64) {
    // SAFETY: the word is one of a map's value, aligned, and there as long as this program runs.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {more}", word = in(reg) word, more = in(reg) more) };
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_boot_ns() }
}
