//! An append-only file of checksummed lines, durable before an answer is given.
//!
//! A line is `[8 hex: first four bytes of SHA-256 of the JSON] [JSON]\n`. A crash may tear the last line anywhere; such
//! a tail was never answered for, and is cut off at the next start. Concurrent appends share one `fdatasync`: whoever
//! comes first writes and syncs for all that wait (group commit).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// More than a record has.
const TRIED_BYTES: usize = 4096;

/// What was read at the start.
#[derive(Debug)]
pub(super) struct Recovered<R> {
    pub(super) records: Vec<R>,
    /// Bytes of a torn tail that were cut off.
    pub(super) torn_bytes: u64,
    /// Lines in the middle whose checksum is wrong: the disk lost them, not a crash.
    pub(super) damaged_lines: usize,
}

pub(super) struct Log {
    path: PathBuf,
    queue: Mutex<Queue>,
    progress: Condvar,
    file: Mutex<Tail>,
    /// Lines in the file and on their way into it.
    lines: AtomicUsize,
}

/// The open file and how many of its bytes are known to be good.
struct Tail {
    file: File,
    good_bytes: u64,
    /// Something may stand behind them that is to be cut off before the next record.
    is_dirty: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Tickets given out, written durably, and failed, counted from the start.
    last: u64,
    durable: u64,
    failed: Option<(u64, io::ErrorKind)>,
    /// Whether the latest write failed.
    is_broken: bool,
    writing: bool,
}

/// Stands for a record until it is durable.
#[derive(Clone, Copy, Debug)]
#[must_use = "a record is durable only after `Log::sync`"]
pub(super) struct Ticket(u64);

impl Log {
    /// Opens the log, or makes an empty one, and reads it.
    pub(super) fn open<R: DeserializeOwned>(path: &Path) -> io::Result<(Self, Recovered<R>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (recovered, good_bytes) = recover(&bytes);
        if recovered.torn_bytes > 0 {
            file.set_len(good_bytes)?;
            file.sync_data()?;
        }
        file.seek(SeekFrom::Start(good_bytes))?;
        let log = Self {
            path: path.to_owned(),
            queue: Mutex::default(),
            progress: Condvar::new(),
            file: Mutex::new(Tail {
                file,
                good_bytes,
                is_dirty: false,
            }),
            lines: AtomicUsize::new(recovered.records.len()),
        };
        Ok((log, recovered))
    }

    /// Queues a record. Order of tickets is order in the file.
    pub(super) fn append(&self, record: &impl Serialize) -> io::Result<Ticket> {
        let line = encode(record)?;
        let mut queue = self.lock_queue();
        queue.waiting.extend(line);
        queue.last += 1;
        self.lines.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket(queue.last))
    }

    /// Stands for everything that was appended until now.
    pub(super) fn all(&self) -> Ticket {
        Ticket(self.lock_queue().last)
    }

    /// How many lines there are.
    pub(super) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }

    /// Waits until a record is durable.
    pub(super) fn sync(&self, ticket: Ticket) -> io::Result<()> {
        let mut queue = self.lock_queue();
        loop {
            if let Some((last, kind)) = queue.failed
                && ticket.0 <= last
                && ticket.0 > queue.durable
            {
                return Err(kind.into());
            }
            if queue.durable >= ticket.0 {
                return Ok(());
            }
            if queue.writing {
                queue = self.progress.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.writing = true;
            let bytes = std::mem::take(&mut queue.waiting);
            let last = queue.last;
            drop(queue);
            let mut file = self.lock_file();
            let written = file.extend(&bytes);
            queue = self.lock_queue();
            queue.writing = false;
            queue.is_broken = written.is_err();
            drop(file);
            match written {
                Ok(()) => queue.durable = last,
                Err(error) => queue.failed = Some((last, error.kind())),
            }
            self.progress.notify_all();
        }
    }

    /// Whether a record could be written now: after a write that failed it is tried out.
    pub(super) fn check(&self) -> io::Result<()> {
        if !self.lock_queue().is_broken {
            return Ok(());
        }
        // The file is held until it is noted, so that nothing newer is overwritten.
        let mut file = self.lock_file();
        let tried = file.try_out();
        self.lock_queue().is_broken = tried.is_err();
        tried
    }

    /// Replaces the whole file by these records: written beside it, synced, renamed over it. Whoever calls it must keep
    /// others from appending meanwhile. What waits to be written is written after them, although they tell of it
    /// already: a record sets what is so, and may be read twice.
    pub(super) fn rewrite<R: Serialize>(&self, records: impl IntoIterator<Item = R>) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut bytes = Vec::new();
        let mut lines = 0;
        for record in records {
            bytes.extend(encode(&record)?);
            lines += 1;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        std::fs::rename(&fresh, &self.path)?;
        sync_directory(&self.path)?;
        *self.lock_file() = Tail {
            file,
            good_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            is_dirty: false,
        };
        self.lines.store(lines, Ordering::Relaxed);
        Ok(())
    }

    fn lock_file(&self) -> MutexGuard<'_, Tail> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tail {
    /// Appends and syncs; after a failure the file ends where it ended before.
    fn extend(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.write(bytes);
        match written {
            Ok(()) => {
                self.good_bytes += u64::try_from(bytes.len()).unwrap_or(0);
                self.is_dirty = false;
            }
            Err(_) => self.cut()?,
        }
        written
    }

    /// Appends and syncs what is no record, and takes it back. A crash in between leaves a torn end.
    fn try_out(&mut self) -> io::Result<()> {
        let written = self.write(&[b' '; TRIED_BYTES]);
        self.cut()?;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_dirty {
            self.cut()?;
        }
        self.is_dirty = true;
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.good_bytes)?;
        self.file.seek(SeekFrom::Start(self.good_bytes))?;
        self.is_dirty = false;
        Ok(())
    }
}

/// Makes a rename durable.
pub(crate) fn sync_directory(of: &Path) -> io::Result<()> {
    of.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn encode(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{} {json}\n", checksum(json.as_bytes())).into_bytes())
}

fn checksum(json: &[u8]) -> String {
    Sha256::digest(json)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The records of a log that somebody else may be writing: what is not complete is left out.
pub(super) fn records<R: DeserializeOwned>(bytes: &[u8]) -> Vec<R> {
    recover(bytes).0.records
}

/// Reads complete lines; returns also how many bytes they take.
fn recover<R: DeserializeOwned>(bytes: &[u8]) -> (Recovered<R>, u64) {
    let mut recovered = Recovered {
        records: Vec::new(),
        torn_bytes: 0,
        damaged_lines: 0,
    };
    let mut good = 0;
    let mut damaged_since = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match decode(line) {
            Some(record) => {
                recovered.records.push(record);
                recovered.damaged_lines += std::mem::take(&mut damaged_since);
                good = offset_after(bytes, line);
            }
            None => damaged_since += 1,
        }
    }
    recovered.torn_bytes = u64::try_from(bytes.len() - good).unwrap_or(0);
    (recovered, u64::try_from(good).unwrap_or(0))
}

/// Where a line that is a part of `bytes` ends in it.
fn offset_after(bytes: &[u8], line: &[u8]) -> usize {
    line.as_ptr().addr() - bytes.as_ptr().addr() + line.len()
}

fn decode<R: DeserializeOwned>(line: &[u8]) -> Option<R> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = line.split_at_checked(8)?;
    let json = json.strip_prefix(b" ")?;
    (checksum(json).as_bytes() == sum).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(label: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cwt-log-{label}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn read(path: &Path) -> Recovered<String> {
        Log::open(path).expect("open").1
    }

    #[test]
    fn a_log_torn_at_any_byte_keeps_every_whole_record_and_goes_on() {
        let place = Place::new("torn");
        let (log, _) = Log::open::<String>(&place.0).expect("open");
        for record in ["one", "two", "three"] {
            let ticket = log.append(&record).expect("append");
            log.sync(ticket).expect("sync");
        }
        let bytes = std::fs::read(&place.0).expect("read");
        let ends: Vec<usize> = bytes
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'\n')
            .map(|(i, _)| i + 1)
            .collect();
        for length in 0..=bytes.len() {
            std::fs::write(&place.0, &bytes[..length]).expect("tear");
            let whole = ends.iter().filter(|end| **end <= length).count();
            let (log, recovered) = Log::open::<String>(&place.0).expect("open");
            assert_eq!(
                recovered.records,
                ["one", "two", "three"][..whole],
                "torn at {length}"
            );
            assert_eq!(recovered.damaged_lines, 0);
            let ticket = log.append(&"next").expect("append");
            log.sync(ticket).expect("sync");
            let again = read(&place.0);
            assert_eq!(
                (again.records.len(), again.torn_bytes),
                (whole + 1, 0),
                "torn at {length}"
            );
        }
    }

    #[test]
    fn a_line_that_the_disk_damaged_hides_no_other() {
        let place = Place::new("damaged");
        let (log, _) = Log::open::<String>(&place.0).expect("open");
        for record in ["one", "two", "three"] {
            let ticket = log.append(&record).expect("append");
            log.sync(ticket).expect("sync");
        }
        let mut bytes = std::fs::read(&place.0).expect("read");
        let position = bytes
            .windows(3)
            .position(|window| window == b"two")
            .expect("it is there");
        bytes[position] = b'x';
        std::fs::write(&place.0, &bytes).expect("damage");
        let recovered = read(&place.0);
        assert_eq!(recovered.records, ["one", "three"]);
        assert_eq!(recovered.damaged_lines, 1);
    }

    #[test]
    fn concurrent_appends_are_all_durable_and_a_rewrite_replaces_them() {
        let place = Place::new("group");
        let (log, _) = Log::open::<String>(&place.0).expect("open");
        std::thread::scope(|scope| {
            for number in 0..32 {
                let log = &log;
                scope.spawn(move || {
                    let ticket = log.append(&format!("record {number}")).expect("append");
                    log.sync(ticket).expect("sync");
                });
            }
        });
        let mut records = read(&place.0).records;
        records.sort();
        let mut wanted: Vec<String> = (0..32).map(|number| format!("record {number}")).collect();
        wanted.sort();
        assert_eq!(records, wanted);
        log.rewrite(["only"]).expect("rewrite");
        let ticket = log.append(&"then").expect("append");
        log.sync(ticket).expect("sync");
        assert_eq!(read(&place.0).records, ["only", "then"]);
    }
}
