//! What commands have in common that count for a time.

use tokio::time::{Instant, sleep_until};

use crate::logs::printable;

/// Until then; for ever where there is no such time.
pub async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// A pod that may name its devices, or a file of `ip netns`, must not drive the terminal.
#[must_use]
pub fn safe(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}
