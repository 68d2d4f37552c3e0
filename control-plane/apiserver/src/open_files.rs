//! How many files this process may have open (setrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows as many as may be allowed: systemd and container runtimes set a soft limit of 1024, for programs that use
/// `select`, below a hard one that is meant to be used.
pub(crate) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?current, ?maximum, "the number of open files is not raised");
    }
}

/// How many of so many connections there may be: a quarter of the files is for the store, kubelets and files proper.
pub(crate) fn connections_within(most: usize) -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    most.min(usize::try_from(files - files / 4).unwrap_or(usize::MAX))
}
