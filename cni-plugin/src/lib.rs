//! The CNI plugin's library.
pub mod protocol;
pub mod tombstone;
