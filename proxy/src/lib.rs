//! Services to packets: what a node does with traffic to the addresses of Services and to node ports.
//!
//! ```text
//! Snapshot ─► plan (pure) ─► claims ─► diff against what was asked ─► Datapath ─┬─► sockets: BPF maps      ┐ ebpf
//!                                                                               ├─► packets: nftables sets ┘ nftables
//!                                                                               └─► iptables: chains
//! ```
//! Tour:
//! - [`plan`]: [`plan::plan_service`] decides everything there is to decide about one Service: which endpoints may take
//!   traffic, what each frontend does, who is masqueraded. Total and deterministic.
//! - [`claims`]: two Services may want one address for a moment; who has it is decided by name, not by arrival.
//! - [`datapath`]: the trait that renders plans, with the kernel's renderers ([`datapath::sockets`] over
//!   [`datapath::packets`], or [`datapath::iptables`]) and a [`datapath::fake`].
//! - [`stale`]: flows that conntrack still sends where they are not answered.
//! - [`report`]: what a sync and an audit did, and what they could not do.
//! - [`verdict`]: what the plans of all Services make of one packet, without a kernel.
//! - [`programmed`]: what the kernel has for one frontend, beside what the plan wants there.
//! - [`settings`]: what a proxy is told.
//! - [`Proxy`]: keeps what was applied, takes snapshots, retries what failed, repairs drift.
//!
//! ```no_run
//! use proxy::{Config, DatapathKind, Proxy, Settings};
//! let pods = "10.244.0.0/16".parse().expect("a network");
//! let mut proxy = Proxy::open(&Config {
//!     settings: Settings::new("node-1".into(), [pods]),
//!     datapath: DatapathKind::Nftables,
//! })?;
//! let report = proxy.sync(&model::Snapshot::default());
//! assert!(!report.waiting_for.is_empty(), "nothing is done before the lists are complete");
//! # Ok::<(), proxy::Error>(())
//! ```

pub mod claims;
pub mod datapath;
pub mod error;
pub mod plan;
mod plans;
pub mod programmed;
mod proxy;
pub mod report;
pub mod settings;
pub mod stale;
pub mod verdict;

/// Target of the spans that tell what a sync is made of; for whoever records traces.
pub const TRACE_TARGET: &str = "causeway_trace";

pub use crate::proxy::{Chains, DriftWatch, Proxy};
pub use crate::report::{AuditReport, Durations, IptablesRules, SyncReport, TableRules};
pub use claims::Claims;
pub use datapath::iptables::Variant as IptablesVariant;
pub use error::Error;
pub use plan::{NodeContext, NodePortAddresses, Rejected, ServicePlan, ServiceView, plan_service};
pub use plans::plans_of;
pub use settings::{Config, DatapathKind, DetectLocal, Settings};
