//! The tracepoint, and what the hook wrote into the socket.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_common::net::Ip;
use ebpf_common::service::Translated;

/// The hook's own: the loader takes the one that is pinned.
#[btf_map]
static SOCKETS: SkStorage<Translated> = SkStorage::new();
#[map]
static SERVICES: LruHashMap<u64, Translated> = LruHashMap::with_max_entries(65536, 0);

/// A socket's state changes: `(socket, before, after)`.
#[btf_tracepoint]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) {
    let socket: *const c_void = ctx.arg(0);
    // SAFETY: the kernel gives the tracepoint a socket. Map and value are the ones that belong together.
    let written = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            socket.cast_mut(),
            ptr::null_mut(),
            0,
        )
    };
    let written = written.cast::<Translated>();
    if written.is_null() {
        return;
    }
    // SAFETY: the verifier has checked the bounds; who writes at the same time is the same socket's `connect()`.
    let translated = unsafe { ptr::read(written) };
    let Ip([a, b, c, d]) = translated.service_addr;
    if a | b | c | d == 0 {
        return;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast_mut()) };
    // A full map forgets the oldest.
    let _ = SERVICES.insert(cookie, translated, 0);
}
