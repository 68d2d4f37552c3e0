//! Why the kernel does not have what a plan says.

use netlink::{conntrack, nft};

/// A failed operation on one of the proxy's kernel interfaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket hook or its maps.
    #[error(transparent)]
    Hook(#[from] ebpf::Error),
    /// The nftables rules.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
    /// Connection tracking.
    #[error(transparent)]
    Conntrack(#[from] conntrack::Error),
    /// All ids of one kind are in use.
    #[error("no free {what} is left")]
    Exhausted {
        /// Which ids.
        what: &'static str,
    },
    /// A fake was told to fail.
    #[error("told to fail: {0}")]
    Injected(&'static str),
}

impl Error {
    /// The failed operation and its causes in one line, for people: the operation alone rarely tells what to do.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // Some libraries repeat a cause's text in their own.
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_operation() {
        let source = std::io::Error::from_raw_os_error(2);
        let error = Error::from(nft::Error::List {
            what: "tables",
            source,
        });
        assert_eq!(
            error.with_causes(),
            "list tables of nftables: No such file or directory (os error 2)"
        );
    }
}
