//! The bundled cluster's store: an etcd v3 server for one node, in one process with the rest of the control plane or
//! in one of its own.
//!
//! Clients are etcd's (`etcd-client`, `etcdctl`, flannel, a Kubernetes API server) and notice no difference, down to the
//! texts of errors. What is acknowledged is durable. There is no second member and no Raft: for that, use a real etcd.
//!
//! - `mvcc` is the key space: revisions, transactions, leases, watches as cursors; pure.
//! - `disk` keeps it in one redb file; `engine` joins both: one writer that commits in groups, any number of readers.
//! - `grpc` translates the protocol; `listen` and `scope` say who comes in and what a certificate opens.
//!
//! History is held in memory until it is compacted: by clients (the Kubernetes API server compacts every five minutes),
//! or by [`AutoCompaction`]. A response may be of any size, a request of 1.5 MiB, a transaction of 128 operations (512
//! with all that is nested in it). A file beyond `Config::quota_bytes` raises etcd's alarm NOSPACE. A disk that is full
//! refuses writes and loses none; they are taken again when it has space. A snapshot's bytes are a store's file: as
//! `store.redb` in an empty data directory they are the store that it was taken of.
//! Not there: Auth, changes of membership; each says so.
//!
//! ```no_run
//! # async fn example() -> Result<(), store::Error> {
//! let config = store::Config::new("/var/lib/causeway/store", vec![([127, 0, 0, 1], 2379).into()]);
//! store::serve(config, tokio_util::sync::CancellationToken::new()).await
//! # }
//! ```

mod config;
mod disk;
mod engine;
mod grpc;
mod listen;
mod mvcc;
mod retention;
mod scope;
mod server;

pub use config::{AutoCompaction, Clock, Config, MonotonicClock, TlsFiles};
pub use disk::Error as DiskError;
pub use listen::Error as ListenError;
pub use server::{Error, Server, serve};
