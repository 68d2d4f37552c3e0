//! Lines of the log on their way to standard error, which may be slow, or stand still: the threads that answer do not
//! wait for it. A thread of its own writes; lines for which there is no room are dropped, counted, and told of.
//!
//! ```text
//! threads ─ push, never waits ─► at most LINES ─► writing thread ─► standard error
//!                └► dropped: a number, told as soon as there is room
//! ```

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines that may wait. As many again may be about to be written.
const LINES: usize = 8192;

static STDERR: OnceLock<Arc<Queue>> = OnceLock::new();

/// Lines that wait to be written. Each write to it is one line.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// There are lines, or all of them are written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    is_writing: bool,
    /// All that were dropped, and those of them that were told of.
    dropped: u64,
    told: u64,
}

/// The queue to standard error, and the thread that writes it.
///
/// # Errors
/// When the thread cannot be started.
pub fn to_stderr() -> io::Result<Arc<Queue>> {
    if let Some(queue) = STDERR.get() {
        return Ok(Arc::clone(queue));
    }
    let queue = Queue::start(io::stderr())?;
    Ok(Arc::clone(STDERR.get_or_init(|| queue)))
}

/// Lines that were dropped on their way to standard error.
#[must_use]
pub fn dropped() -> u64 {
    STDERR.get().map_or(0, |queue| queue.lock().dropped)
}

impl Queue {
    fn start(out: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self::default());
        let writing = Arc::clone(&queue);
        thread::Builder::new()
            .name("dns-log".to_owned())
            .spawn(move || writing.write_to(out))?;
        Ok(queue)
    }

    /// Waits until every line is written, but no longer than this.
    pub fn drain(&self, limit: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // Whether it is done or the time is over makes no difference to the caller, who ends.
        let _ = self.changed.wait_timeout_while(self.lock(), limit, is_busy);
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() >= LINES {
            state.dropped += 1;
            return;
        }
        state.lines.push_back(line.to_vec());
        self.changed.notify_all();
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let lines = self.take();
            for line in &lines {
                // There is nobody to tell that nobody can be told.
                let _ = out.write_all(line);
            }
            let dropped = self.note_written();
            if dropped > 0 {
                tracing::warn!(
                    lines = dropped,
                    "standard error was too slow for the log; lines were dropped"
                );
            }
        }
    }

    /// Waits for lines.
    fn take(&self) -> VecDeque<Vec<u8>> {
        let is_empty = |state: &mut State| state.lines.is_empty();
        let waited = self.changed.wait_while(self.lock(), is_empty);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_writing = true;
        std::mem::take(&mut state.lines)
    }

    /// Returns how many lines were dropped meanwhile.
    fn note_written(&self) -> u64 {
        let mut state = self.lock();
        state.is_writing = false;
        let dropped = state.dropped - state.told;
        state.told = state.dropped;
        self.changed.notify_all();
        dropped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Shows a line, and has it written only when it is told to.
    struct Gate {
        open: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
            self.written.send(line.to_vec()).map_err(|_| closed())?;
            self.open.recv().map_err(|_| closed())?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_slow_reader_and_what_has_no_room_is_counted() {
        let (opener, open) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let queue = Queue::start(Gate { open, written }).expect("a thread");
        let write = |line: usize| (&*queue).write_all(line.to_string().as_bytes()).expect("taken");
        let next = || String::from_utf8(lines.recv().expect("written")).expect("digits");
        write(0);
        // The first one is being written: what follows has all of the room.
        assert_eq!(next(), "0");
        (1..=LINES + 3).for_each(write);
        assert_eq!(queue.lock().dropped, 3);
        queue.drain(Duration::ZERO);
        (0..=LINES).for_each(|_| opener.send(()).expect("the writer waits"));
        for line in 1..=LINES {
            assert_eq!(next(), line.to_string());
        }
        queue.drain(Duration::from_secs(60));
        let state = queue.lock();
        assert_eq!((state.lines.len(), state.is_writing, state.told), (0, false, 3));
    }
}
