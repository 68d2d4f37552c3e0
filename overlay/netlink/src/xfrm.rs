//! IPsec: whether anybody wants packets transformed. Source: `net/xfrm/xfrm_user.c` (`CONFIG_XFRM_USER`).

use std::io;

use rustix::net::netlink;

use crate::nfnetlink::{Message, Socket, flag};

const XFRM_MSG_GETPOLICY: u16 = 0x15;

/// `xfrm_userpolicy_id`: a dump names none.
const POLICY_ID_BYTES: usize = 64;

/// Whether the calling thread's network namespace has IPsec policies, of whatever direction; those of single sockets
/// are not looked at. A kernel that has no IPsec has none.
///
/// # Errors
/// As the kernel says; `EPERM` without `CAP_NET_ADMIN` in the namespace.
pub fn has_policies() -> io::Result<bool> {
    let mut socket = match Socket::of(netlink::XFRM, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        opened => opened?,
    };
    let request = Message::with_header(XFRM_MSG_GETPOLICY, flag::DUMP, &[0; POLICY_ID_BYTES]);
    let mut found = false;
    socket.dump(&request, |_, _| {
        found = true;
        Ok(())
    })?;
    Ok(found)
}
