//! What a person sees while the cluster comes up: a line per stage, with its time.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// Prints stages as they begin and end.
pub struct Progress {
    started: Instant,
    interactive: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            interactive: std::io::stdout().is_terminal(),
        }
    }

    /// Runs one stage. Its line is printed when it ends; on a terminal also while it runs.
    pub fn stage<T>(&self, what: &str, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        if self.interactive {
            print!("  … {what}\r");
            let _ = std::io::stdout().flush();
        }
        let began = Instant::now();
        let result = run();
        let mark = if result.is_ok() { "✓" } else { "✗" };
        println!("  {mark} {what:<52} {:>6.2} s", began.elapsed().as_secs_f64());
        result
    }

    /// Seconds since the start.
    pub fn total_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
