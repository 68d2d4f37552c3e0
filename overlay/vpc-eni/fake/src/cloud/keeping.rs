//! The cloud in a file, so that a process that is killed and started again has the same one.
//!
//! What is kept is the account: all that is there, what was made with which client token, and the last name that was
//! given. What is under way is over in a cloud that is restored: what was being attached is, what was being detached
//! is not. Weather, faults and the ledger are not kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::EniId;

use super::{Cloud, Inner};
use crate::account::Account;
use crate::request::Refusal;

/// Of the text's form. It counts up when an older program would not understand it.
const VERSION: u64 = 1;

/// A text that no cloud can be made of.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is of another form.
    #[error("not the account of a fake VPC")]
    Text(#[source] serde_json::Error),
    /// A later program wrote it.
    #[error("written by another version: of form {found}, and this program reads form {VERSION}")]
    Version {
        /// The form that it says it has.
        found: u64,
    },
    /// It names what is not there, or would give something twice.
    #[error("the account contradicts itself: {0}")]
    Contradiction(String),
}

/// Why there is no cloud of a file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is a file that cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it says is no account. It is left as it is.
    #[error("restore the account of {}", path.display())]
    Restore {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RestoreError,
    },
    /// It cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What of the text is read first, whatever else it says.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u64,
    /// What the cloud's clock says, in milliseconds since its beginning.
    clock_ms: u64,
    /// When each attachment was asked for, by that clock.
    attached_ms: BTreeMap<EniId, u64>,
    account: Account,
}

impl Saved {
    fn new(account: &Account, began: Instant, now: Instant) -> Self {
        let account = account.at_rest();
        let ms = |at: Instant| {
            let passed = at.saturating_duration_since(began).as_millis();
            u64::try_from(passed).unwrap_or(u64::MAX)
        };
        let attached = account.attached_since().into_iter();
        Self {
            version: VERSION,
            clock_ms: ms(now),
            attached_ms: attached.map(|(eni, since)| (eni, ms(since))).collect(),
            account,
        }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("invariant: strings, numbers and maps by strings are JSON")
    }

    fn read(text: &str) -> Result<Self, RestoreError> {
        let header: Header = serde_json::from_str(text).map_err(RestoreError::Text)?;
        if header.version != VERSION {
            return Err(RestoreError::Version {
                found: header.version,
            });
        }
        let saved: Self = serde_json::from_str(text).map_err(RestoreError::Text)?;
        saved.account.check().map_err(RestoreError::Contradiction)?;
        Ok(saved)
    }
}

impl Cloud {
    /// The account as JSON, all of one moment: see [`Self::restore`].
    #[must_use]
    pub fn save(&self) -> String {
        let inner = self.now();
        Saved::new(&inner.account, inner.began, Instant::now()).text()
    }

    /// The cloud that [`Self::save`] told of, on a fine day. Its clock goes on from there.
    ///
    /// # Errors
    /// What is no such text, is of a later form, or contradicts itself.
    pub fn restore(text: &str, seed: u64) -> Result<Self, RestoreError> {
        let saved = Saved::read(text)?;
        let now = Instant::now();
        let began = now
            .checked_sub(Duration::from_millis(saved.clock_ms))
            .unwrap_or(now);
        let mut account = saved.account;
        account.attach_all(|eni| {
            let since = saved.attached_ms.get(eni).copied().unwrap_or(saved.clock_ms);
            let since = began.checked_add(Duration::from_millis(since)).unwrap_or(now);
            since.min(now)
        });
        Ok(Self::with(account, began, seed))
    }

    /// The cloud of a file, which is restored, or a new one where there is none. From then on each change is in the file
    /// before anybody hears that it happened; where it cannot be written, the change is refused (`InternalError`).
    ///
    /// The file is replaced whole, by a rename: it outlives the process, whenever that is killed. It is not made to
    /// outlive the machine, as the network that it speaks of does not.
    ///
    /// # Errors
    /// A file that cannot be read or written, or that [`Self::restore`] does not take; such a one is left as it is.
    pub fn open(path: &Path, seed: u64) -> Result<Self, OpenError> {
        let path = path.to_owned();
        let cloud = match fs::read_to_string(&path) {
            Ok(text) => match Self::restore(&text, seed) {
                Ok(cloud) => cloud,
                Err(source) => return Err(OpenError::Restore { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new(seed),
            Err(source) => return Err(OpenError::Read { path, source }),
        };
        match write(&path, &cloud.save()) {
            Ok(()) => {
                cloud.lock().kept_at = Some(path);
                Ok(cloud)
            }
            Err(source) => Err(OpenError::Write { path, source }),
        }
    }
}

impl Inner {
    /// Writes down the account as it is about to be, where it is kept.
    pub(super) fn keep(&self, account: &Account, now: Instant) -> Result<(), Refusal> {
        let Some(path) = &self.kept_at else {
            return Ok(());
        };
        let text = Saved::new(account, self.began, now).text();
        write(path, &text).map_err(|error| {
            tracing::error!(%error, path = %path.display(), "the account cannot be kept");
            Refusal::new("InternalError", "An internal error has occurred")
        })
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}
