//! Errors as clients know them. Clients compare the texts, so that both text and code are etcd's
//! (`api/v3rpc/rpctypes/error.go`).

use tonic::{Code, Status};

use crate::{engine, mvcc};

/// A key is missing.
pub fn empty_key() -> Status {
    Status::invalid_argument("etcdserver: key is not provided")
}

/// A put that keeps the value brings one.
pub fn value_provided() -> Status {
    Status::invalid_argument("etcdserver: value is provided")
}

/// A put that keeps the lease brings one.
pub fn lease_provided() -> Status {
    Status::invalid_argument("etcdserver: lease is provided")
}

/// A range asks for an order that does not exist.
pub fn invalid_sort_option() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

/// A field of the request has a value that does not exist.
pub fn invalid_field(name: &str) -> Status {
    Status::invalid_argument(format!("etcdserver: the request's {name} is not valid"))
}

/// The request has more bytes than one may have.
pub fn request_too_large() -> Status {
    Status::invalid_argument("etcdserver: request is too large")
}

/// The client's certificate does not open these keys.
pub fn permission_denied() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

/// No member has this number.
pub fn member_not_found() -> Status {
    Status::not_found("etcdserver: member not found")
}

/// Who waited for a lock lost its key meanwhile (Go's `concurrency.ErrSessionExpired`).
pub fn lock_lost() -> Status {
    Status::unknown("mutex: session is expired")
}

/// A request about a leader names none (`v3election.ErrMissingLeaderKey`).
pub fn no_leader_given() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

/// The election has nobody (`concurrency.ErrElectionNoLeader`).
pub fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

/// Who speaks as a leader is none any more (`concurrency.ErrElectionNotLeader`).
pub fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

/// The call is not part of this server.
pub fn unsupported(what: &str) -> Status {
    Status::unimplemented(format!(
        "etcdserver: {what} is not supported by this single-node store"
    ))
}

impl From<mvcc::Error> for Status {
    fn from(error: mvcc::Error) -> Self {
        use mvcc::Error::*;
        let (code, text) = match error {
            LeaseDenied => return permission_denied(),
            NoSpace => (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            Compacted => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            FutureRevision => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            DuplicateKey => (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            ),
            TooManyOps => (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
            ),
        };
        Status::new(code, text)
    }
}

impl From<engine::Error> for Status {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::Refused(error) => error.into(),
            engine::Error::TakenBack => mvcc::Error::NoSpace.into(),
            engine::Error::Stopped => Status::unavailable("etcdserver: server stopped"),
        }
    }
}
