//! Benchmarks that can be believed on a machine that is not quiet.
//!
//! ```text
//! lab ─ namespaces and cables ─► ways ─ client, server, and what is between them
//!                                 │
//! rounds ─ which arm when ─► run ─┴─ load: a block of operations ─► results ─► judge ─► table, report, compare
//! ```
//! - [`lab`] makes hosts, [`ways`] what is measured between two of them, [`services`] the objects that a proxy serves.
//! - [`load`] is the clients and servers; [`machine`] what they run on, and who else wants it.
//! - [`stats`] is what samples say and how sure that is: medians of paired ratios, with intervals.
//! - [`rounds`] is the order: every arm forwards and backwards, so that a drift takes all alike.
//! - [`session`] is a whole run, which writes its results after each round; [`results`] is what is in them, also after one that was
//!   interrupted.
//! - [`judge`] makes words of it: an arm takes less or more where chance and the pair of equal arms do not explain it.
//! - [`table`] shows it on a terminal, [`report`] on a page; [`compare`] says what changed between two runs.
//!
//! Headlines are the p50 and p01 of a block and the CPU time of an operation: on two cores with others beside, they vary by
//! a few per cent where throughput and p99 vary by half.

pub mod compare;
pub mod judge;
pub mod lab;
pub mod load;
pub mod machine;
pub mod report;
pub mod results;
pub mod rounds;
pub mod run;
pub mod services;
pub mod session;
pub mod stats;
pub mod table;
pub mod ways;
