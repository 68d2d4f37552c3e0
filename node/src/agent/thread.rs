//! Parts that block: kernel work stays off the async workers, on a thread of its own.

use anyhow::Context;
use tokio::sync::oneshot;

/// Runs `work` on a thread of that name and waits for it. Dropping the future leaves the thread running: `work` ends
/// at shutdown by itself.
///
/// # Errors
/// What `work` returns, or when no thread can be started, or it panics.
pub async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (sender, result) = oneshot::channel();
    let run = move || {
        // Nobody waits any more where the part was dropped.
        let _ = sender.send(work());
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .context("start a thread")?;
    result.await.context("the thread panicked")?
}
