//! What a run leaves: `results.json`. It is written after each round, so that a run that was interrupted leaves what it
//! had; `finished` says whether it was not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The form of the file. A reader refuses a newer one.
pub const FORM: u32 = 1;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// [`FORM`] of its writer.
    pub form: u32,
    /// When it began, in RFC 3339.
    pub begun: String,
    /// Whether it ended by itself.
    pub finished: bool,
    /// How it was called.
    pub command: Vec<String>,
    /// Where, as names and words: kernel, processors, settings that matter.
    pub machine: BTreeMap<String, String>,
    /// What was measured.
    pub experiments: Vec<Experiment>,
}

/// Arms that do the same thing, measured in one go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Experiment {
    /// Its name on the command line: `tcp-rr`.
    pub name: String,
    /// What an operation is, in a sentence.
    pub about: String,
    /// The first is what others are compared with.
    pub arms: Vec<Arm>,
    /// What it was like while it was measured.
    pub rounds: Vec<Round>,
    /// What was left out, and why.
    pub absent: Vec<Absent>,
}

/// A way that packets or requests take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arm {
    /// Its name in tables: `routed`.
    pub name: String,
    /// What it is, in a sentence.
    pub about: String,
    /// The arm that this one is once more: what they differ by is chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<String>,
    /// Whether it is this project's work.
    #[serde(default)]
    pub ours: bool,
    /// Whether it is the work of another project that does the same.
    #[serde(default)]
    pub peer: bool,
    /// By metric, one value for each round.
    pub samples: BTreeMap<Metric, Vec<f64>>,
}

/// What is measured of an operation. Less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// Microseconds of which one of a hundred operations takes no more.
    P01,
    /// Microseconds of which half the operations take no more.
    P50,
    /// Microseconds of which one of a hundred operations takes more.
    P99,
    /// Microseconds of processor time, of all who take part.
    Cpu,
}

impl Metric {
    /// All of them, headlines first.
    pub const ALL: [Self; 4] = [Self::P50, Self::P01, Self::Cpu, Self::P99];

    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P01 => "p01",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Cpu => "CPU",
        }
    }

    /// Whether differences are claimed by it: on a machine that others use p99 tells of them.
    #[must_use]
    pub const fn is_headline(self) -> bool {
        !matches!(self, Self::P99)
    }
}

/// A round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// The share of its time in which somebody waited for a processor (`some` of `/proc/pressure/cpu`).
    pub pressure: f64,
    /// The share that the hypervisor took (`steal` of `/proc/stat`).
    pub steal: f64,
}

/// Something that is not on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Absent {
    /// The arm that there would be.
    pub arm: String,
    /// Why there is none.
    pub why: String,
}

/// Why results cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file.
    #[error("{verb} {}", path.display())]
    File {
        /// What was to be done.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it could not be.
        #[source]
        source: io::Error,
    },
    /// What is in it.
    #[error("{} is no results.json", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A later program wrote it.
    #[error("{} has form {form}, and {FORM} is the newest that is known here", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its form.
        form: u32,
    },
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// When there is none, or none of this form.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        /// Of any form.
        #[derive(Deserialize)]
        struct Stamp {
            form: u32,
        }
        let bytes = fs::read(path).map_err(|source| ResultsError::File {
            verb: "read",
            path: path.to_owned(),
            source,
        })?;
        let malformed = |source| ResultsError::Malformed {
            path: path.to_owned(),
            source,
        };
        let Stamp { form } = serde_json::from_slice(&bytes).map_err(malformed)?;
        if form > FORM {
            return Err(ResultsError::Newer {
                path: path.to_owned(),
                form,
            });
        }
        serde_json::from_slice(&bytes).map_err(malformed)
    }

    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        let write = || -> io::Result<()> {
            let fresh = path.with_extension("json.new");
            let mut file = fs::File::create(&fresh)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            fs::rename(&fresh, path)
        };
        write().map_err(|source| ResultsError::File {
            verb: "write",
            path: path.to_owned(),
            source,
        })
    }
}

impl Experiment {
    /// The arm of that name.
    #[must_use]
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// Rounds in which the machine had more to do than in most: twice as much waiting, and a tenth of the time at
    /// least, or a hundredth that the hypervisor took. They are shown, and counted like the others.
    #[must_use]
    pub fn noisy(&self) -> Vec<usize> {
        let pressures: Vec<f64> = self.rounds.iter().map(|round| round.pressure).collect();
        let usual = crate::stats::median(&pressures).unwrap_or_default();
        let is_noisy = |round: &Round| round.pressure > (2.0 * usual).max(0.1) || round.steal > 0.01;
        let numbered = self.rounds.iter().enumerate();
        numbered
            .filter(|(_, round)| is_noisy(round))
            .map(|(number, _)| number)
            .collect()
    }
}
