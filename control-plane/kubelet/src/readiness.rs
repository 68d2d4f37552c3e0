//! Waiting for a descriptor to become ready.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that is read.
pub fn readable<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    registered(descriptor, Interest::READABLE)
}

/// Registers a descriptor with the runtime's poller.
#[expect(
    deprecated,
    reason = "the replacement is unsafe: the caller promises that the descriptor stays open, which holds for every \
              type used here, since each owns its descriptor and gives no mutable access to it"
)]
pub fn registered<T: AsRawFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}
