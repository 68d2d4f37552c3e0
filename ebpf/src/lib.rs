//! The host side of the BPF programs: load, attach, pin, and typed access to their maps.
//!
//! Tour:
//! - [`SocketHook`] holds the programs at `connect()` and its relatives, and their maps: [`SocketHook::open`] reuses
//!   what an earlier process pinned, so that the death of its owner changes nothing for traffic.
//! - [`FastPath`] holds the programs between pods, of one node and of several, and their maps.
//! - [`tracer::Tracer`] holds the programs that follow packets, for as long as it lives, and [`tally::Tally`] those that
//!   count them; [`connected::Connected`] tells whom the hook sent a socket to; [`kernel_types`] tells them where the kernel has what they read.
//! - [`ServiceMaps`] and [`FastPathMaps`] look single entries up in what is pinned, and do nothing else.
//! - [`ruling`] runs the attached program between pods on a packet that nobody sends.
//! - [`packet_socket`] is no eBPF: packets of one device, with a filter of classic BPF.
//! - [`TypedMap`] reads, writes and counts writes.
//! - [`probe`] says in plain words what a machine lacks.
//! - [`ebpf_common`] (re-exported as [`abi`]) has the layouts that programs and host agree on.
//!
//! ```no_run
//! use ebpf::{Capacity, HookConfig, SocketHook};
//! let hook = SocketHook::open(&HookConfig {
//!     cgroup: "/sys/fs/cgroup/causeway/node-1".into(),
//!     pin_dir: "/sys/fs/bpf/causeway".into(),
//!     capacity: Capacity::default(),
//!     loopback: true,
//! })?;
//! for (name, count) in hook.counters()? {
//!     println!("{name} {count}");
//! }
//! # Ok::<(), ebpf::Error>(())
//! ```

pub mod connected;
pub mod error;
pub mod fast_path;
pub mod fast_path_maps;
pub mod kernel_types;
pub mod map;
pub mod packet_socket;
mod pinned;
pub mod probe;
pub mod ruling;
pub mod service_maps;
pub mod socket_hook;
mod sys;
mod takeover;
pub mod tally;
pub mod tracepoints;
pub mod tracer;

pub use ebpf_common as abi;
pub use error::Error;
pub use fast_path::FastPath;
pub use fast_path_maps::FastPathMaps;
pub use map::TypedMap;
pub use service_maps::ServiceMaps;
pub use socket_hook::{Attachment, Capacity, HookConfig, SocketHook};

/// The compiled programs at `connect()` and its relatives.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CAUSEWAY_BPF_OBJECTS"), "/ebpf-programs"));

/// The compiled programs that follow packets.
pub static TRACE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CAUSEWAY_BPF_OBJECTS"), "/trace"));

/// The compiled programs that count packets.
pub static TALLY_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CAUSEWAY_BPF_OBJECTS"), "/tally"));

/// The compiled program that tells to which Services sockets were connected.
pub static SERVICES_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CAUSEWAY_BPF_OBJECTS"), "/services"));

/// The compiled programs between pods.
pub static FAST_PATH_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CAUSEWAY_BPF_OBJECTS"), "/fast-path"));

#[cfg(test)]
mod tests {
    fn check(object: &[u8], programs: &[&str], maps: &[&str]) {
        let object = aya_obj::Object::parse(object).expect("a BPF object");
        assert!(
            object.btf.is_some(),
            ".BTF is missing: the flags of the nested build got lost"
        );
        let mut found: Vec<_> = object.programs.keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, programs);
        let mut found: Vec<_> = object.maps.keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, maps);
    }

    #[test]
    fn each_object_carries_type_information_and_every_program_and_map() {
        let programs = [
            "connect4",
            "connect6",
            "getpeername4",
            "getpeername6",
            "recvmsg4",
            "recvmsg6",
            "sendmsg4",
            "sendmsg6",
        ];
        let maps = [
            "AFFINITY",
            "ENDPOINTS",
            "FLOWS",
            "FRONTENDS",
            "MEMBERS",
            "NODES",
            "NODE_NETNS",
            "REPLIES",
            "SLOTS",
            "SOCKETS",
            "STATS",
        ];
        check(super::OBJECT, &programs, &maps);
        check(
            super::FAST_PATH_OBJECT,
            &["from_pod", "from_tunnel", "from_underlay"],
            &[
                "PODS",
                "POD_FLOWS",
                "POD_LEASE",
                "POD_STATS",
                "REMOTES",
                "TUNNELS",
            ],
        );
        check(
            super::TRACE_OBJECT,
            &[
                "consume_skb",
                "consume_skb_bare",
                "kfree_skb",
                "net_dev_start_xmit",
                "netif_receive_skb",
            ],
            &[
                ".rodata", "BUSY", "DRAFTS", "EVENTS", "LEARNED", "LOST", "MISSED", "PRESENT", "SOURCES",
                "TARGETS", "TRACKED",
            ],
        );
        check(
            super::TALLY_OBJECT,
            &[
                "kfree_skb",
                "kfree_skb_bare",
                "net_dev_start_xmit",
                "netif_receive_skb",
            ],
            &[".rodata", "DROPS", "FLOWS", "LOCAL", "NATS", "TOTALS"],
        );
        check(
            super::SERVICES_OBJECT,
            &["inet_sock_set_state"],
            &["SERVICES", "SOCKETS"],
        );
    }
}
