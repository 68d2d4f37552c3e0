//! Conversions as rows, and the watch's behaviour against a fake API server.

mod behaviour;
mod conversions;
