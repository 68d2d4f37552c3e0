//! Commands of bpf(2) that aya does not have: links that change their program, many entries at once, and entries whose
//! sizes are known at run time only. Layouts of their arguments: `union bpf_attr` (include/uapi/linux/bpf.h).

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use nix::libc;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;
/// `BPF_NOEXIST`.
const ONLY_IF_ABSENT: u64 = 1;

/// `[path:8][fd:4][flags:4] = 16 bytes`.
#[repr(C)]
struct ObjectArguments {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `[fd:4][length:4][info:8] = 16 bytes`.
#[repr(C)]
struct InfoArguments {
    fd: RawFd,
    length: u32,
    info: u64,
}

/// `[link:4][program:4][flags:4][old program:4] = 16 bytes`.
#[repr(C)]
struct LinkArguments {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old_program: u32,
}

/// `[map:4][pad:4][key:8][value or next key:8][flags:8] = 32 bytes`.
#[repr(C)]
struct ElementArguments {
    map: RawFd,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `[from:8][next:8][keys:8][values:8][count:4][map:4][element flags:8][flags:8] = 56 bytes`.
#[repr(C)]
struct BatchArguments {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<BatchArguments>() == 56);
const _: () = assert!(size_of::<ObjectArguments>() == 16);
const _: () = assert!(size_of::<InfoArguments>() == 16);
const _: () = assert!(size_of::<LinkArguments>() == 16);
const _: () = assert!(size_of::<ElementArguments>() == 32);

/// Makes a pinned link run another program of its kind: no packet and no call meets both, or neither.
///
/// # Errors
/// When there is no such link, or it leads to no cgroup any more (`cgroup_bpf_replace`, kernel/bpf/cgroup.c).
pub(crate) fn replace_program(link: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_pinned(link)?;
    let mut arguments = LinkArguments {
        link: link.as_raw_fd(),
        program: program.as_raw_fd(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: both descriptors are open, and no pointer is passed.
    unsafe { bpf(LINK_UPDATE, &raw mut arguments) }.map(drop)
}

/// Detaches a pinned link at once. The kernel does the same in its own time when the last pin is gone.
pub(crate) fn detach(link: &Path) -> io::Result<()> {
    let link = open_pinned(link)?;
    let mut arguments = LinkArguments {
        link: link.as_raw_fd(),
        program: 0,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the descriptor is open, and no pointer is passed.
    unsafe { bpf(LINK_DETACH, &raw mut arguments) }.map(drop)
}

/// How often a program was not entered because it ran on that CPU already; 0 where the kernel does not count it (before
/// Linux 5.12).
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    /// `struct bpf_prog_info` up to this field, the last but three; a longer or shorter one is the kernel's business.
    const WORDS: usize = 28;
    const MISSES: usize = 26;
    let mut info = [0_u64; WORDS];
    let mut arguments = InfoArguments {
        fd: program.as_raw_fd(),
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most as many bytes as it is told the buffer has.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &raw mut arguments) }?;
    Ok(info[MISSES])
}

/// All entries of a hash map that is not per CPU. Read bucket by bucket, so that each entry is there once, whatever is
/// written meanwhile: going from key to key begins anew where one is forgotten in between.
pub(crate) fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// As many at once; a bucket has a few.
    const AT_ONCE: usize = 4096;
    let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::zeroed(); AT_ONCE];
    let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::zeroed(); AT_ONCE];
    let (mut entries, mut from, mut next) = (Vec::new(), None::<u32>, 0_u32);
    loop {
        let mut arguments = BatchArguments {
            from: from.as_ref().map_or(0, |from| &raw const *from as u64),
            next: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE as u32,
            map: map.as_raw_fd(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both buffers have room for as many keys and values, whose sizes are the map's; the rest are words here.
        let read = found(unsafe { bpf(MAP_LOOKUP_BATCH, &raw mut arguments) })?;
        for (key, value) in keys.iter().zip(&values).take(arguments.count as usize) {
            // SAFETY: every bit pattern is a key and a value; the kernel has written that many.
            entries.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        if read.is_none() {
            return Ok(entries);
        }
        from = Some(next);
    }
}

fn open_pinned(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut arguments = ObjectArguments {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path outlives the call, which reads it.
    let fd = unsafe { bpf(OBJ_GET, &raw mut arguments) }?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes entries in this order until one fails. Returns how many are written, and why no more are
/// (`generic_map_update_batch`, kernel/bpf/syscall.c; since Linux 5.6).
pub(crate) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    entries: &[(K, V)],
) -> (usize, io::Result<()>) {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut arguments = BatchArguments {
        from: 0,
        next: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        map: map.as_raw_fd(),
        element_flags: 0,
        flags: 0,
    };
    let asked = arguments.count;
    // SAFETY: there are as many keys and values as is said, and each is as long as the map's.
    match unsafe { bpf(MAP_UPDATE_BATCH, &raw mut arguments) } {
        Ok(_) => (asked as usize, Ok(())),
        // Where it did not begin the kernel leaves the number as it was.
        Err(error) if arguments.count >= asked => (0, Err(error)),
        Err(error) => (arguments.count as usize, Err(error)),
    }
}

/// A hash map whose sizes are known at run time only.
pub(crate) struct RawMap<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
}

impl RawMap<'_> {
    /// The key behind another, in an order of the kernel's; the first one for none, and for one that is gone.
    pub(crate) fn key_after(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_bytes];
        let mut arguments = self.arguments(key.map_or(0, address), next.as_mut_ptr() as u64, 0);
        // SAFETY: both buffers are as long as a key, which is what the kernel reads and writes.
        match found(unsafe { bpf(MAP_GET_NEXT_KEY, &raw mut arguments) })? {
            Some(()) => Ok(Some(next)),
            None => Ok(None),
        }
    }

    /// The value of a key; `None` where there is none.
    pub(crate) fn value(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        let mut arguments = self.arguments(address(key), value.as_mut_ptr() as u64, 0);
        // SAFETY: the key and the buffer are as long as the map's keys and values.
        match found(unsafe { bpf(MAP_LOOKUP_ELEM, &raw mut arguments) })? {
            Some(()) => Ok(Some(value)),
            None => Ok(None),
        }
    }

    /// Writes an entry unless its key has one.
    pub(crate) fn add(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut arguments = self.arguments(address(key), address(value), ONLY_IF_ABSENT);
        // SAFETY: key and value are as long as the map's.
        match unsafe { bpf(MAP_UPDATE_ELEM, &raw mut arguments) } {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            added => added.map(drop),
        }
    }

    fn arguments(&self, key: u64, value: u64, flags: u64) -> ElementArguments {
        ElementArguments {
            map: self.fd.as_fd().as_raw_fd(),
            pad: 0,
            key,
            value,
            flags,
        }
    }
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn found(result: io::Result<RawFd>) -> io::Result<Option<()>> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        result => result.map(|_| Some(())),
    }
}

/// # Safety
/// What the arguments point to must be as long as the command reads and writes.
unsafe fn bpf<T>(command: libc::c_int, arguments: *mut T) -> io::Result<RawFd> {
    // SAFETY: the arguments are as long as is said; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, arguments, size_of::<T>()) };
    RawFd::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}
