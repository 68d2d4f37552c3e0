//! A whole run: one experiment after the other, into a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::lab;
use crate::load::Operation;
use crate::machine;
use crate::report;
use crate::results::{Experiment, FORM, Results};
use crate::run::run;

/// Names of the files.
pub const RESULTS: &str = "results.json";
/// See [`RESULTS`].
pub const REPORT: &str = "report.html";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Session {
    /// What is measured, in this order.
    pub operations: Vec<Operation>,
    /// How often.
    pub rounds: usize,
    /// When it begins, in RFC 3339.
    pub begun: String,
    /// How it was called.
    pub command: Vec<String>,
    /// A program with its first arguments that calls [`crate::load::work`] with the rest.
    pub worker: Vec<String>,
    /// Where the files go.
    pub directory: PathBuf,
}

impl Session {
    /// Makes the directory; one that has results is somebody's.
    ///
    /// # Errors
    /// When it has, or cannot be made.
    pub fn claim(&self) -> Result<()> {
        let there = self.directory.join(RESULTS);
        ensure!(
            !there.exists(),
            "{} is there: choose another --out",
            there.display()
        );
        let made = fs::create_dir_all(&self.directory);
        made.with_context(|| format!("make {}", self.directory.display()))
    }

    /// Measures. The results are written after each round, the page at the end. `tell` hears how far it is.
    ///
    /// # Errors
    /// When something cannot be built or written.
    pub fn run(&self, is_over: &dyn Fn() -> bool, mut tell: impl FnMut(&str)) -> Result<Results> {
        for left in lab::sweep()? {
            tell(&format!(
                "{left} was left by a run that was killed, and is removed"
            ));
        }
        let mut results = Results {
            form: FORM,
            begun: self.begun.clone(),
            finished: false,
            command: self.command.clone(),
            machine: machine::description(),
            experiments: Vec::new(),
        };
        for operation in &self.operations {
            if is_over() {
                break;
            }
            tell(&format!("{operation}: {} rounds", self.rounds));
            let before = results.clone();
            let measured = run(*operation, self.rounds, &self.worker, is_over, |so_far| {
                let mut partial = before.clone();
                partial.experiments.push(so_far.clone());
                Ok(partial.write(&self.directory.join(RESULTS))?)
            })?;
            results.experiments.push(measured);
        }
        // Told to end after the last round it is whole all the same.
        let is_whole = |experiment: &Experiment| experiment.rounds.len() == self.rounds;
        results.finished =
            results.experiments.len() == self.operations.len() && results.experiments.iter().all(is_whole);
        self.write(&results)?;
        Ok(results)
    }

    fn write(&self, results: &Results) -> Result<()> {
        results.write(&self.directory.join(RESULTS))?;
        write_report(results, &self.directory.join(REPORT))
    }
}

/// Writes the page of results.
///
/// # Errors
/// When it cannot be written.
pub fn write_report(results: &Results, path: &Path) -> Result<()> {
    let written: io::Result<()> = fs::write(path, report::page(results));
    written.with_context(|| format!("write {}", path.display()))
}
