//! What the feed says, as snapshots.

use model::feed::{Message, VERSION};
use model::{Change, Pools, Snapshot};

use super::FeedError;
use super::trim::Trim;

/// Messages to snapshots: what was known before a `Begin` stays until its `End`.
#[derive(Debug)]
pub(super) struct Intake {
    trim: Trim,
    /// What the objects say alike.
    pools: Pools,
    pub(super) current: Snapshot,
    arriving: Option<Snapshot>,
    /// Whether this connection has delivered a whole snapshot.
    pub(super) complete: bool,
}

impl Intake {
    pub(super) fn new(trim: Trim) -> Self {
        Self {
            trim,
            pools: Pools::default(),
            current: Snapshot::default(),
            arriving: None,
            complete: false,
        }
    }

    /// Takes one message, and returns whether `current` changed.
    pub(super) fn take(&mut self, message: Message) -> Result<bool, FeedError> {
        match message {
            Message::Begin { version, .. } if version > VERSION => Err(FeedError::Version { found: version }),
            Message::Begin { .. } => {
                self.arriving = Some(Snapshot::default());
                Ok(false)
            }
            Message::End => {
                self.current = self.arriving.take().ok_or(FeedError::NoBegin)?;
                self.complete = true;
                Ok(true)
            }
            // DNS does not speak of nodes; not keeping them is memory saved.
            Message::Change(Change::Node(_) | Change::DeleteNode(_)) => Ok(false),
            Message::Change(mut change) => {
                (self.trim)(&mut change);
                change.pack(&mut self.pools);
                match &mut self.arriving {
                    Some(arriving) => {
                        arriving.apply(change);
                        Ok(false)
                    }
                    None if self.complete => Ok(self.current.apply(change)),
                    None => Err(FeedError::NoBegin),
                }
            }
        }
    }
}

/// Reads a line of the feed, or of the file. `number` counts lines from 1.
pub(super) fn message(line: &str, number: u64) -> Result<Message, FeedError> {
    serde_json::from_str(line).map_err(|source| FeedError::Malformed { line: number, source })
}
