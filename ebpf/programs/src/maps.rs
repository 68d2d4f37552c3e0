//! The maps, by the names under which the host side pins them. `max_entries` is a default: the loader sets it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use ebpf_common::net::Ip;
use ebpf_common::service::{
    Affinity, AffinityKey, Endpoint, Flow, Frontend, FrontendKey, MemberKey, Membership, NetnsCookie,
    NodeAddress, Reply, SlotKey, SocketPeer, Translated,
};
use ebpf_common::stats::Counter;

#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static SLOTS: HashMap<SlotKey, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static MEMBERS: HashMap<MemberKey, Membership> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static NODES: HashMap<Ip, NodeAddress> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static NODE_NETNS: Array<NetnsCookie> = Array::pinned(1, 0);
// The kernel wants type information for storage in sockets, hence the other form of definition; the loader pins it.
#[btf_map]
pub static SOCKETS: SkStorage<Translated> = SkStorage::new();
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(1024, 0);
#[map]
pub static FLOWS: LruHashMap<SocketPeer, Flow> = LruHashMap::pinned(1024, 0);
#[map]
pub static REPLIES: LruHashMap<SocketPeer, Reply> = LruHashMap::pinned(1024, 0);
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::COUNT, 0);

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = STATS.get_ptr_mut(counter.0) {
        // SAFETY: the verifier has checked the bounds; the slot belongs to this CPU, and cgroup programs run with
        // migration disabled. A preempting program may lose one count, never memory safety.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}
