//! The container's log in the CRI format: `TIME STREAM TAG TEXT`, where the tag is `F` for a whole line and `P` for a
//! part of one (KEP-1753 keeps the format; `kubectl logs` reads nothing else).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longest text in one log line, as in containerd and CRI-O: longer output is split.
const LONGEST_TEXT: usize = 16 << 10;
/// Size at which a log file is set aside as `<name>.1`, so that a talkative container cannot fill the disk.
const LARGEST_FILE_BYTES: u64 = 10 << 20;

/// One of the container's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts a stream's bytes into log lines.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    /// For one stream.
    pub fn of(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes bytes, returns what can be written.
    pub fn push(&mut self, bytes: &[u8], now: Timestamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(text) => {
                    self.pending.extend_from_slice(text);
                    self.cut_parts(&mut out, now);
                    self.finish(&mut out, now);
                }
                None => {
                    self.pending.extend_from_slice(piece);
                    self.cut_parts(&mut out, now);
                }
            }
        }
        out
    }

    /// The stream ended: what is left is the last line.
    pub fn end(&mut self, now: Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pending.is_empty() {
            self.finish(&mut out, now);
        }
        out
    }

    fn cut_parts(&mut self, out: &mut Vec<u8>, now: Timestamp) {
        while self.pending.len() > LONGEST_TEXT {
            let rest = self.pending.split_off(LONGEST_TEXT);
            write_line(out, now, self.stream, b'P', &self.pending);
            self.pending = rest;
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, now: Timestamp) {
        write_line(out, now, self.stream, b'F', &self.pending);
        self.pending.clear();
    }
}

fn write_line(out: &mut Vec<u8>, now: Timestamp, stream: Stream, tag: u8, text: &[u8]) {
    out.extend_from_slice(format!("{now:.9} {} ", stream.name()).as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// A log file that is set aside when it has grown large.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    /// Opens it for appending.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    /// Appends whole lines.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > LARGEST_FILE_BYTES {
            std::fs::rename(&self.path, self.path.with_added_extension("1"))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[&str], expected: &str) {
        let mut lines = Lines::of(Stream::Stdout);
        let mut out: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| lines.push(piece.as_bytes(), Timestamp::UNIX_EPOCH))
            .collect();
        out.extend(lines.end(Timestamp::UNIX_EPOCH));
        let expected = expected.replace('@', "1970-01-01T00:00:00.000000000Z stdout");
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn lines_are_whole_however_the_pieces_arrive() {
        check(&["one\ntwo\n"], "@ F one\n@ F two\n");
        check(&["o", "ne\nt", "wo", "\n"], "@ F one\n@ F two\n");
        check(&["\n\n"], "@ F \n@ F \n");
    }

    #[test]
    fn the_last_line_needs_no_end() {
        check(&["one\ntwo"], "@ F one\n@ F two\n");
        check(&[], "");
    }

    #[test]
    fn a_long_line_is_split_into_parts() {
        let long = "x".repeat(LONGEST_TEXT + 1);
        let first = "x".repeat(LONGEST_TEXT);
        check(&[&long, "\n"], &format!("@ P {first}\n@ F x\n"));
    }
}
