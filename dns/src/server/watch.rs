//! The `reload` plugin: whether the Corefile says something else than it did.

use std::path::Path;
use std::time::Duration;

use tracing::subscriber::{NoSubscriber, with_default};

use crate::corefile::{Corefile, Error, Reload};

/// Reads the Corefile and its imports again and again. What it means is compared and not its bytes: a comment changes
/// nothing, another address of an interface in `bind` or another name server in `/etc/resolv.conf` does.
#[derive(Default)]
pub(super) struct Watch {
    /// What cannot be read, so that it is met once.
    unreadable: Option<Error>,
    /// Why the last one was refused, so that it is told once.
    told: Option<String>,
    /// What a lenient reader has warned of plugins in, so that it warns once.
    warned: Option<Corefile>,
}

impl Watch {
    /// Returns as soon as the file says something new: another configuration than `current`, or nothing that can be
    /// read. A configuration that was refused comes back each time: the address that it wants may be free meanwhile.
    /// Waits for ever where the configuration has no file or no `reload`.
    pub(super) async fn changed(&mut self, current: &Corefile) -> Result<Corefile, Error> {
        let (Some(path), Some(reload)) = (current.path.clone(), reload_of(current)) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(reload.next_pause()).await;
            if let Some(news) = self.look(&path, current).await {
                return news;
            }
        }
    }

    /// Reads the file once, and gives what it says where that is new.
    async fn look(&mut self, path: &Path, current: &Corefile) -> Option<Result<Corefile, Error>> {
        let read = read_file(path, current.is_lenient, Manner::Silent).await?;
        let unreadable = std::mem::replace(&mut self.unreadable, read.as_ref().err().cloned());
        match &read {
            // What is taken becomes `current`, and is not met here again.
            Ok(read) if read == current => {
                self.told = None;
                None
            }
            Err(_) if unreadable == self.unreadable => None,
            Ok(read_silently) if current.is_lenient && self.warned.as_ref() != Some(read_silently) => {
                self.warned = Some(read_silently.clone());
                let aloud = read_file(path, true, Manner::Aloud).await;
                Some(aloud.unwrap_or(read))
            }
            _ => Some(read),
        }
    }

    /// Notes that a configuration was taken: the next refusal is news.
    pub(super) fn note_taken(&mut self) {
        self.told = None;
    }

    /// Whether it is news that a configuration is refused for this reason.
    pub(super) fn is_news(&mut self, reason: &str) -> bool {
        let told = self.told.replace(reason.to_owned());
        told.as_deref() != Some(reason)
    }
}

/// Whether a lenient reader warns of what it passes over.
#[derive(Clone, Copy)]
enum Manner {
    Aloud,
    /// For what is read again and again.
    Silent,
}

/// Reads the file. `None` = the reader panicked, which is told already.
async fn read_file(path: &Path, is_lenient: bool, manner: Manner) -> Option<Result<Corefile, Error>> {
    let path = path.to_owned();
    let read = move || Corefile::read_again(&path, is_lenient);
    // Files may be on a slow disk.
    let read = tokio::task::spawn_blocking(move || match manner {
        Manner::Aloud => read(),
        Manner::Silent => with_default(NoSubscriber::new(), read),
    });
    read.await.ok()
}

/// The most frequent of all blocks: there is one file.
fn reload_of(corefile: &Corefile) -> Option<Reload> {
    let reloads = corefile.blocks.iter().filter_map(|block| block.reload);
    reloads.min_by_key(|reload| reload.interval)
}

impl Reload {
    /// The interval, shorter or longer by the jitter at most, so that the servers of a cluster do not all read at once.
    fn next_pause(self) -> Duration {
        let jitter = self.jitter.min(self.interval);
        let least = self.interval - jitter;
        least + jitter.mul_f64(2.0 * rand::random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_the_jitter_and_differ() {
        let reload = Reload {
            interval: Duration::from_secs(30),
            jitter: Duration::from_secs(15),
        };
        let pauses: Vec<Duration> = (0..1000).map(|_| reload.next_pause()).collect();
        let (least, most) = (Duration::from_secs(15), Duration::from_secs(45));
        assert!(pauses.iter().all(|pause| (least..=most).contains(pause)));
        let spread = pauses
            .iter()
            .max()
            .zip(pauses.iter().min())
            .map(|(most, least)| *most - *least);
        assert!(spread > Some(Duration::from_secs(20)), "{spread:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_once_and_again_after_what_is_served_came_between() {
        const SERVED: &str = ".:53 {\n reload\n whoami\n}\n";
        const UNREADABLE: &str = ".:53 {\n nonsense\n}\n";
        const OTHERWISE: &str = ".:53 {\n no such thing\n}\n";
        // It can be read, and its address is somebody else's.
        const TAKEN: &str = ".:54 {\n reload\n whoami\n}\n";
        let path = std::env::temp_dir().join(format!("cwt-watch-{}", std::process::id()));
        std::fs::write(&path, SERVED).expect("written");
        let current = Corefile::read(&path).expect("it is right");
        let mut watch = Watch::default();
        for (step, (text, is_told)) in [
            (SERVED, false),
            (UNREADABLE, true),
            (UNREADABLE, false),
            (SERVED, false),
            (UNREADABLE, true),
            (OTHERWISE, true),
            (UNREADABLE, true),
            (TAKEN, true),
            (TAKEN, false),
            (SERVED, false),
            (TAKEN, true),
            (UNREADABLE, true),
        ]
        .into_iter()
        .enumerate()
        {
            std::fs::write(&path, text).expect("written");
            let refused = watch.look(&path, &current).await.map(|news| match news {
                Ok(_) => "it is taken".to_owned(),
                Err(error) => error.to_string(),
            });
            let told = refused.is_some_and(|reason| watch.is_news(&reason));
            assert_eq!(told, is_told, "step {step}: {text}");
        }
        std::fs::remove_file(path).expect("removed");
    }
}
