//! Each makes network namespaces of its own.

mod devices;
mod lives;
mod others;
mod packets;
mod world;
