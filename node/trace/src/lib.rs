//! Follows packets through one machine: through its network namespaces, NAT and VXLAN, to a socket or to the place where
//! they are dropped.
//!
//! Tour:
//! - [`Filter`] says whose packets, in both directions.
//! - [`Session`] attaches programs to the kernel's tracepoints, and turns what they tell into [`Hop`]s. It takes them away
//!   when it is dropped; the kernel does when the process ends, however it ends.
//! - [`Story`] is what the hops of one connection mean: packets, NAT, the reply, a [`Verdict`]. Pure.
//! - [`part`] is what a machine tells of packets to whoever asks several, and [`Story::joined`] one story of that.
//! - [`Service`] is an end that stands for many.
//! - [`cause`] says what a drop means, and what to look at.
//! - [`namespaces`] finds where on this machine an address is.
//! - [`render`] writes a story for people.
//! - [`drops`] counts what is dropped, whoever's it is; [`flows`] counts who sends to whom.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use trace::{Filter, Names, Session, Story};
//! let filter = Filter {
//!     sources: vec!["10.244.1.2".parse()?],
//!     targets: vec![("10.244.2.3".parse()?, Some(8080))],
//!     ..Filter::default()
//! };
//! let mut session = Session::start(&filter, "node-1")?;
//! let deadline = Instant::now() + Duration::from_secs(2);
//! let mut hops = Vec::new();
//! while let Some(hop) = session.next_hop(deadline)? {
//!     hops.push(hop);
//! }
//! let story = Story::new(&filter, &hops, &Names::of_this_machine(), session.gaps()?);
//! print!("{}", trace::render::text(&story));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cause;
pub mod drops;
pub mod flows;
pub mod hop;
mod ledger;
pub mod namespaces;
pub mod part;
pub mod places;
pub mod render;
pub mod service;
pub mod session;
pub mod shell;
pub mod story;

pub use hop::{Hop, HopKind};
pub use part::Part;
pub use places::Names;
pub use service::Service;
pub use session::{Filter, Session, TraceError};
pub use story::{Gaps, Story, Verdict};
