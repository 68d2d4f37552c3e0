//! The manager on a fake VPC, on a clock of its own: hours pass in milliseconds.

mod dead_ends;
mod failures;
mod histories;
mod ipv6;
mod pool;
mod problems;
mod timing;
mod truth;
mod upkeep;
mod world;
