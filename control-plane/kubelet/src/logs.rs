//! Container logs for `kubectl logs`: CRI lines back to what the container wrote, by the options of the API.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// The options of a request (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<usize>,
    /// Only what is younger.
    pub since_seconds: Option<u64>,
    /// Only what is younger than this time.
    pub since_time: Option<Timestamp>,
    /// With the time before each line.
    pub timestamps: bool,
    /// Only so many bytes.
    pub limit_bytes: Option<usize>,
    /// Of the container before this one.
    pub previous: bool,
}

/// Reads one container's log.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    since: Option<Timestamp>,
    timestamps: bool,
    left_bytes: Option<usize>,
    /// The line that the file ends in the middle of.
    unfinished: Vec<u8>,
    /// The next line goes on with a partial one, so it gets no time of its own.
    within_line: bool,
}

impl LogReader {
    /// Opens a log at the place that the options name.
    pub fn open(path: &Path, options: &LogOptions, now: Timestamp) -> io::Result<Self> {
        let seconds = options.since_seconds.map(std::time::Duration::from_secs);
        let since = options
            .since_time
            .or_else(|| seconds.and_then(|seconds| now.checked_sub(seconds).ok()));
        let mut file = File::open(path)?;
        if let Some(lines) = options.tail_lines {
            let start = start_of_tail(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            since,
            timestamps: options.timestamps,
            left_bytes: options.limit_bytes,
            unfinished: Vec::new(),
            within_line: false,
        })
    }

    /// All that is there now. Empty when there is nothing new.
    pub fn read_available(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            while !self.is_full() && self.file.read_until(b'\n', &mut self.unfinished)? > 0 {
                if self.unfinished.last() != Some(&b'\n') {
                    break;
                }
                let line = std::mem::take(&mut self.unfinished);
                self.render(&line, &mut out);
            }
            if !self.was_rotated()? {
                break;
            }
            self.file = BufReader::new(File::open(&self.path)?);
        }
        if let Some(left) = &mut self.left_bytes {
            out.truncate(*left);
            *left -= out.len();
        }
        Ok(out)
    }

    /// Whether as much was read as was asked for.
    pub fn is_full(&self) -> bool {
        self.left_bytes == Some(0)
    }

    fn was_rotated(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt as _;
        let open = self.file.get_ref().metadata()?.ino();
        Ok(fs::metadata(&self.path).is_ok_and(|named| named.ino() != open))
    }

    fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(parsed) = CriLine::parse(line) else {
            return;
        };
        let too_old = |since: Timestamp| parsed.time().is_some_and(|time| time < since);
        if self.since.is_some_and(too_old) {
            return;
        }
        if self.timestamps && !self.within_line {
            out.extend_from_slice(parsed.time_text.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(parsed.text);
        self.within_line = parsed.is_partial;
        if !parsed.is_partial {
            out.push(b'\n');
        }
    }
}

struct CriLine<'a> {
    time_text: &'a str,
    is_partial: bool,
    text: &'a [u8],
}

impl<'a> CriLine<'a> {
    /// `TIME STREAM TAG TEXT\n`; the tag may carry more, separated by colons.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time_text = std::str::from_utf8(fields.next()?).ok()?;
        let (_stream, tag) = (fields.next()?, fields.next()?);
        let is_partial = tag.split(|byte| *byte == b':').next() == Some(b"P");
        Some(Self {
            time_text,
            is_partial,
            text: fields.next().unwrap_or_default(),
        })
    }

    fn time(&self) -> Option<Timestamp> {
        self.time_text.parse().ok()
    }
}

/// Where the last `lines` whole lines begin, read backwards in blocks. Parts of a long line (tag `P`) are not lines.
fn start_of_tail(file: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let length = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(length);
    }
    let mut tail: Vec<u8> = Vec::new();
    let mut start = length;
    while start > 0 {
        let size = start.min(BLOCK);
        start -= size;
        let mut block = vec![0; usize::try_from(size).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.append(&mut tail);
        tail = block;
        if let Some(offset) = offset_of_tail(&tail, lines, start == 0) {
            return Ok(start + offset as u64);
        }
    }
    Ok(0)
}

/// Offset of the last `lines` lines in `bytes`; `None` when more of the file is needed to know.
fn offset_of_tail(bytes: &[u8], lines: usize, from_start: bool) -> Option<usize> {
    let begins = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1);
    let first = from_start.then_some(0);
    let starts: Vec<usize> = first
        .into_iter()
        .chain(begins)
        .filter(|at| *at < bytes.len())
        .collect();
    // A line begins where the one before it was whole.
    let is_whole = |at: usize| {
        let line = bytes.get(at..)?.split(|byte| *byte == b'\n').next()?;
        CriLine::parse(line).map(|line| !line.is_partial)
    };
    let mut found = 0;
    for (index, start) in starts.iter().enumerate().rev() {
        let previous = index.checked_sub(1).and_then(|index| starts.get(index));
        let begins_line = match previous {
            Some(previous) => is_whole(*previous).unwrap_or(true),
            None => from_start,
        };
        if begins_line {
            found += 1;
            if found == lines {
                return Some(*start);
            }
        }
    }
    from_start.then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const LOG: &str = "2026-01-01T00:00:00.000000000Z stdout F one\n\
                       2026-01-01T00:00:01.000000000Z stderr P tw\n\
                       2026-01-01T00:00:01.500000000Z stderr F o\n\
                       2026-01-01T00:00:02.000000000Z stdout F \n\
                       2026-01-01T00:00:03.000000000Z stdout F four\n";

    fn log_file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cwt-log-{name}-{}", std::process::id()));
        fs::write(&path, text).expect("writable");
        path
    }

    #[track_caller]
    fn check(options: LogOptions, expected: &str) {
        let line = std::panic::Location::caller().line();
        let path = log_file(&line.to_string(), LOG);
        let now = "2026-01-01T00:00:04Z".parse().expect("a time");
        let mut reader = LogReader::open(&path, &options, now).expect("opens");
        let text = reader.read_available().expect("readable");
        assert_eq!(String::from_utf8_lossy(&text), expected, "{options:?}");
        fs::remove_file(path).expect("removable");
    }

    #[test]
    fn options_select_lines() {
        let tail = |lines| LogOptions {
            tail_lines: Some(lines),
            ..LogOptions::default()
        };
        check(LogOptions::default(), "one\ntwo\n\nfour\n");
        check(tail(1), "four\n");
        check(tail(3), "two\n\nfour\n");
        check(tail(9), "one\ntwo\n\nfour\n");
        check(tail(0), "");
        check(
            LogOptions {
                limit_bytes: Some(5),
                ..LogOptions::default()
            },
            "one\nt",
        );
        check(
            LogOptions {
                since_seconds: Some(2),
                ..LogOptions::default()
            },
            "\nfour\n",
        );
        check(
            LogOptions {
                timestamps: true,
                tail_lines: Some(1),
                ..LogOptions::default()
            },
            "2026-01-01T00:00:03.000000000Z four\n",
        );
    }

    #[test]
    fn following_reads_what_comes_across_a_rotation() {
        let path = log_file("follow", LOG);
        let options = LogOptions {
            tail_lines: Some(0),
            ..LogOptions::default()
        };
        let mut reader = LogReader::open(&path, &options, Timestamp::UNIX_EPOCH).expect("opens");
        let append = |text: &str| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .expect("opens");
            file.write_all(text.as_bytes()).expect("writable");
        };
        let mut read = || String::from_utf8(reader.read_available().expect("readable")).expect("text");
        assert_eq!(read(), "");
        append("2026-01-01T00:00:05Z stdout F fi");
        assert_eq!(read(), "");
        append("ve\n");
        assert_eq!(read(), "five\n");
        append("2026-01-01T00:00:06Z stdout F six\n");
        fs::rename(&path, path.with_added_extension("1")).expect("renamed");
        append("2026-01-01T00:00:07Z stdout F seven\n");
        assert_eq!(read(), "six\nseven\n");
        fs::remove_file(path.with_added_extension("1")).expect("removable");
        fs::remove_file(&path).expect("removable");
    }
}
