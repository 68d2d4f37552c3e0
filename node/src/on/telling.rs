//! What nodes say as one result: pieces of their streams in, what is told out. Pure.
//!
//! ```text
//! one node          as it comes
//! several: text     ==> node-1 <==   on standard error, then all that it said; in the order of the nodes
//!          lines    node-1 | …       as they come
//!          JSON     {"nodes": [{"node", "exitCode", "output"}, {"node", "error"}]}
//!          lines of JSON             {"node": …, and what was there}
//!          packets                   one capture ([`merged`](super::merged))
//! ```

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::errand::Form;
use super::merged::Merger;
use crate::logs::{is_unsafe, printable};

/// What is kept of a node's output until it is told: 64 MiB, as an agent's answer may have (`ask`).
const MOST_BYTES: usize = 64 << 20;

/// Exit code where a node could not be asked.
pub const COULD_NOT_ASK: u8 = 2;

/// Something that a node said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// On standard output.
    Out(Vec<u8>),
    /// On standard error.
    Err(Vec<u8>),
    /// Its exit code, or why there is none. The last one of a node.
    Ended(Result<i32, String>),
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// On standard output.
    Out(Vec<u8>),
    /// On standard error, as a line.
    Err(String),
}

/// How output becomes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is, byte by byte.
    AsItIs,
    /// As it is, but for what would drive a terminal.
    ForTerminal,
    /// Each line behind its node's name.
    Prefixed,
    /// Node by node.
    Blocks,
    /// One document.
    Document,
    /// Each line a document with its node's name.
    Documents,
    /// One capture.
    Capture,
}

impl Way {
    /// How output of this form is told. `is_one`: of one node that was named.
    #[must_use]
    pub fn of(form: &Form, is_one: bool, prefix: bool, to_terminal: bool) -> Self {
        match form {
            Form::Packets(_) if is_one => Self::AsItIs,
            Form::Packets(_) => Self::Capture,
            Form::Text | Form::Lines if prefix => Self::Prefixed,
            _ if is_one && to_terminal => Self::ForTerminal,
            _ if is_one => Self::AsItIs,
            Form::Text => Self::Blocks,
            Form::Lines => Self::Prefixed,
            Form::Json => Self::Document,
            Form::JsonLines => Self::Documents,
        }
    }
}

/// A node that says something.
#[derive(Debug)]
struct Speaker {
    node: String,
    /// A line that has no end yet; where all is told at the end, all of it.
    out: Kept,
    err: Kept,
    /// Why it failed, in its own words, line by line: they belong to its result.
    errors: String,
    /// What it said last on standard error, where that may be all there is.
    reason: String,
    ended: Option<Result<i32, String>>,
}

/// What a node said on a stream, until it is told.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What is kept.
    pub(super) bytes: Vec<u8>,
    /// What comes now is not taken: it was too much, or cannot be told.
    is_cut: bool,
}

/// Makes one result of what nodes say.
#[derive(Debug)]
pub struct Teller {
    way: Way,
    is_one: bool,
    /// Of the longest name.
    width: usize,
    speakers: Vec<Speaker>,
    /// So many have been told as a whole.
    told: usize,
    merger: Merger,
}

impl Teller {
    /// Of these nodes, which are known by their numbers from here on. `is_one`: one that was named.
    #[must_use]
    pub fn new(way: Way, is_one: bool, nodes: impl IntoIterator<Item = String>) -> Self {
        let speaker = |node| Speaker {
            node,
            out: Kept::default(),
            err: Kept::default(),
            errors: String::new(),
            reason: String::new(),
            ended: None,
        };
        let speakers: Vec<Speaker> = nodes.into_iter().map(speaker).collect();
        Self {
            way,
            is_one,
            width: speakers
                .iter()
                .map(|speaker| speaker.node.len())
                .max()
                .unwrap_or(0),
            merger: Merger::new(speakers.iter().map(|speaker| speaker.node.clone())),
            speakers,
            told: 0,
        }
    }

    /// Takes a piece of what a node said; what is to be told now.
    pub fn take(&mut self, number: usize, piece: Piece, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        match piece {
            Piece::Out(bytes) if self.way == Way::Capture => self.packets(number, &bytes, now, &mut told),
            Piece::Out(bytes) => self.out(number, bytes, &mut told),
            Piece::Err(bytes) => {
                let speaker = &mut self.speakers[number];
                if speaker.err.cuts(&bytes, speaker.errors.len()) {
                    self.cut(number, &mut told);
                }
                self.complaints(number, false, &mut told);
            }
            Piece::Ended(ended) => {
                self.complaints(number, true, &mut told);
                self.end(number, ended, &mut told);
            }
        }
        told
    }

    /// What has waited until now.
    pub fn due(&mut self, now: Instant) -> Vec<Told> {
        Vec::from_iter(not_empty(self.merger.due(now)))
    }

    /// The worst of all exit codes.
    #[must_use]
    pub fn code(&self) -> u8 {
        let code = |speaker: &Speaker| match speaker.ended {
            _ if speaker.is_cut() => COULD_NOT_ASK,
            Some(Ok(code)) => u8::try_from(code).unwrap_or(u8::MAX),
            Some(Err(_)) | None => COULD_NOT_ASK,
        };
        self.speakers.iter().map(code).max().unwrap_or(COULD_NOT_ASK)
    }

    fn packets(&mut self, number: usize, bytes: &[u8], now: Instant, told: &mut Vec<Told>) {
        let speaker = &mut self.speakers[number];
        if speaker.out.is_cut {
            return;
        }
        let (bytes, taken) = self.merger.take(number, bytes, now);
        told.extend(not_empty(bytes));
        if let Err(broken) = taken {
            speaker.out.is_cut = true;
            told.push(Told::Err(format!("error: {}: {broken}", speaker.node)));
        }
    }

    fn out(&mut self, number: usize, bytes: Vec<u8>, told: &mut Vec<Told>) {
        let way = self.way;
        if way == Way::AsItIs {
            told.push(Told::Out(bytes));
            return;
        }
        if self.speakers[number].out.cuts(&bytes, 0) {
            self.cut(number, told);
        }
        if !matches!(way, Way::Blocks | Way::Document) {
            self.lines(number, false, told);
        }
    }

    /// Tells that the rest of what it says is missing: in a block with its other errors.
    fn cut(&mut self, number: usize, told: &mut Vec<Told>) {
        let speaker = &mut self.speakers[number];
        let error = format!("error: {}: {}", speaker.node, too_much());
        match self.way {
            Way::Blocks => speaker.errors += &(error + "\n"),
            _ => told.push(Told::Err(error)),
        }
    }

    /// Tells whole lines, and at the end what has no end of a line.
    fn lines(&mut self, number: usize, is_end: bool, told: &mut Vec<Told>) {
        let (way, width) = (self.way, self.width);
        let speaker = &mut self.speakers[number];
        let mut text = String::new();
        for line in take_lines(&mut speaker.out.bytes, is_end) {
            text.push_str(&match way {
                Way::Prefixed => format!("{:<width$} | {}", speaker.node, printable(&line)),
                Way::Documents => with_node(&speaker.node, &line),
                _ => printable(&line),
            });
            text.push('\n');
        }
        if !text.is_empty() {
            told.push(Told::Out(text.into_bytes()));
        }
    }

    fn complaints(&mut self, number: usize, is_end: bool, told: &mut Vec<Told>) {
        let (way, is_one) = (self.way, self.is_one);
        let speaker = &mut self.speakers[number];
        for line in take_lines(&mut speaker.err.bytes, is_end) {
            if way == Way::Blocks && line.starts_with("error: ") {
                speaker.errors += &(line + "\n");
                continue;
            }
            told.push(Told::Err(match is_one {
                true => line.clone(),
                false => format!("{}: {line}", speaker.node),
            }));
            speaker.reason = line;
        }
    }

    fn end(&mut self, number: usize, ended: Result<i32, String>, told: &mut Vec<Told>) {
        self.speakers[number].ended = Some(ended);
        match self.way {
            Way::Blocks => self.blocks(told),
            Way::Document => self.document(told),
            Way::Capture => {
                told.extend(self.speakers[number].failure());
                if self.speakers.iter().all(|speaker| speaker.ended.is_some()) {
                    told.extend(not_empty(self.merger.finish()));
                }
            }
            _ => {
                self.lines(number, true, told);
                told.extend(self.speakers[number].failure());
            }
        }
    }

    /// Those whose turn it is.
    fn blocks(&mut self, told: &mut Vec<Told>) {
        while let Some(speaker) = self.speakers.get_mut(self.told)
            && speaker.ended.is_some()
        {
            told.push(Told::Err(format!("==> {} <==", speaker.node)));
            let lines = take_lines(&mut speaker.out.bytes, true);
            let text: String = lines.iter().map(|line| printable(line) + "\n").collect();
            if !text.is_empty() {
                told.push(Told::Out(text.into_bytes()));
            }
            let errors = std::mem::take(&mut speaker.errors);
            told.extend(errors.lines().map(|line| Told::Err(line.to_owned())));
            told.extend(speaker.failure());
            self.told += 1;
        }
    }

    /// Once all have ended.
    fn document(&mut self, told: &mut Vec<Told>) {
        if self.speakers.iter().all(|speaker| speaker.ended.is_some()) {
            let nodes: Vec<Value> = self.speakers.iter().map(Speaker::value).collect();
            told.extend(self.speakers.iter().filter_map(Speaker::failure));
            let document = format!("{:#}\n", json!({ "nodes": nodes }));
            told.push(Told::Out(escaped(&document).into_bytes()));
        }
    }
}

impl Kept {
    /// Takes a piece, as long as there is room for it beside `others`. Returns whether this is the first that has none:
    /// after it nothing is taken, so that there is no hole.
    pub(super) fn cuts(&mut self, piece: &[u8], others: usize) -> bool {
        if self.is_cut {
            return false;
        }
        self.is_cut = self.bytes.len() + others + piece.len() > MOST_BYTES;
        if !self.is_cut {
            self.bytes.extend_from_slice(piece);
        }
        self.is_cut
    }
}

impl Speaker {
    /// Something that it said is missing.
    fn is_cut(&self) -> bool {
        self.out.is_cut || self.err.is_cut
    }

    /// Why it could not be asked.
    fn failure(&self) -> Option<Told> {
        match &self.ended {
            Some(Err(reason)) => Some(Told::Err(format!("error: {}: {reason}", self.node))),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        let node = &self.node;
        match &self.ended {
            Some(Ok(code)) if self.out.is_cut => {
                json!({ "node": node, "exitCode": code, "error": too_much() })
            }
            Some(Ok(code)) => match serde_json::from_slice::<Value>(&self.out.bytes) {
                Ok(output) => json!({ "node": node, "exitCode": code, "output": output }),
                Err(_) => json!({ "node": node, "exitCode": code, "error": self.reason }),
            },
            Some(Err(reason)) => json!({ "node": node, "error": reason }),
            None => json!({ "node": node, "error": "its end was not seen" }),
        }
    }
}

fn not_empty(bytes: Vec<u8>) -> Option<Told> {
    (!bytes.is_empty()).then_some(Told::Out(bytes))
}

/// Takes whole lines off the beginning, without their ends; at the end also what has none.
pub(super) fn take_lines(bytes: &mut Vec<u8>, is_end: bool) -> Vec<String> {
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let taken: Vec<u8> = bytes.drain(..if is_end { bytes.len() } else { whole }).collect();
    let text = String::from_utf8_lossy(&taken);
    text.lines().map(str::to_owned).collect()
}

/// A document on a line, with the node's name as its first member.
fn with_node(node: &str, line: &str) -> String {
    let name = json!(node);
    let document = match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(mut members) => {
            let text = match members.remove("node") {
                Some(_) => Value::Object(members.clone()).to_string(),
                // In the order in which they are there. Strings have no tabs as such.
                None => line.trim().replace(['\t', '\r'], " "),
            };
            match text.strip_prefix('{') {
                Some(text) if !members.is_empty() => format!("{{\"node\":{name},{text}"),
                _ => format!("{{\"node\":{name}}}"),
            }
        }
        Err(_) => json!({ "node": node, "line": line }).to_string(),
    };
    escaped(&document)
}

/// Why the rest is not there.
pub(super) fn too_much() -> String {
    format!("it said more than {} MiB, the rest is missing", MOST_BYTES >> 20)
}

/// The same JSON, as `serde_json` writes it, without characters that drive a terminal or turn what stands beside them:
/// these are in strings alone, but for ends of lines.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match is_unsafe(character) && character != '\n' {
            true => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is told, standard error between brackets.
    fn told(way: Way, is_one: bool, nodes: &[&str], pieces: &[(usize, Piece)]) -> (String, u8) {
        let mut teller = Teller::new(way, is_one, nodes.iter().map(|node| (*node).to_owned()));
        let mut text = String::new();
        for (number, piece) in pieces {
            for told in teller.take(*number, piece.clone(), Instant::now()) {
                match told {
                    Told::Out(bytes) => text.push_str(std::str::from_utf8(&bytes).expect("text")),
                    Told::Err(line) => text.push_str(&format!("[{line}]\n")),
                }
            }
        }
        (text, teller.code())
    }

    fn out(text: &str) -> Piece {
        Piece::Out(text.as_bytes().to_vec())
    }

    fn err(text: &str) -> Piece {
        Piece::Err(text.as_bytes().to_vec())
    }

    fn code(code: i32) -> Piece {
        Piece::Ended(Ok(code))
    }

    fn failed(reason: &str) -> Piece {
        Piece::Ended(Err(reason.to_owned()))
    }

    #[test]
    fn the_way_follows_from_what_is_said_and_by_how_many() {
        let rows = [
            (Form::Text, true, Way::AsItIs),
            (Form::Lines, true, Way::AsItIs),
            (Form::Json, true, Way::AsItIs),
            (Form::Text, false, Way::Blocks),
            (Form::Lines, false, Way::Prefixed),
            (Form::Json, false, Way::Document),
            (Form::JsonLines, false, Way::Documents),
            (Form::Packets(None), true, Way::AsItIs),
            (Form::Packets(None), false, Way::Capture),
        ];
        for (form, is_one, expected) in rows {
            assert_eq!(
                Way::of(&form, is_one, false, false),
                expected,
                "{form:?} {is_one}"
            );
        }
        assert_eq!(Way::of(&Form::Text, true, false, true), Way::ForTerminal);
        assert_eq!(Way::of(&Form::Text, true, true, true), Way::Prefixed);
        assert_eq!(Way::of(&Form::Json, false, true, true), Way::Document);
    }

    #[test]
    fn one_node_is_passed_on_as_it_comes() {
        let pieces = [
            (0, out("a\u{1b}[")),
            (0, err("warn")),
            (0, out("2J")),
            (0, err("ing\n")),
            (0, code(1)),
        ];
        assert_eq!(
            told(Way::AsItIs, true, &["n"], &pieces),
            ("a\u{1b}[2J[warning]\n".to_owned(), 1)
        );
        assert_eq!(
            told(Way::ForTerminal, true, &["n"], &pieces),
            ("[warning]\na\u{fffd}[2J\n".to_owned(), 1)
        );
    }

    #[test]
    fn text_stands_under_its_node_in_the_order_of_the_nodes() {
        let pieces = [
            (1, out("second\n")),
            (1, err("error: it is ")),
            (1, err("broken\nnote\n")),
            (1, code(1)),
            (2, failed("its agent's pod is gone")),
            (0, out("first")),
            (0, out(" line\nand last")),
            (0, code(0)),
        ];
        let expected = "\
[b: note]
[==> a <==]
first line
and last
[==> b <==]
second
[error: it is broken]
[==> c <==]
[error: c: its agent's pod is gone]
";
        assert_eq!(
            told(Way::Blocks, false, &["a", "b", "c"], &pieces),
            (expected.to_owned(), 2)
        );
    }

    #[test]
    fn lines_that_go_on_stand_behind_their_node_as_they_come() {
        let pieces = [
            (0, out("on")),
            (1, out("two\nthr")),
            (0, out("e\n")),
            (1, out("ee\u{1b}")),
            (1, code(0)),
            (0, code(0)),
        ];
        let expected = "\
node-10 | two
node-9  | one
node-10 | three\u{fffd}
";
        assert_eq!(
            told(Way::Prefixed, false, &["node-9", "node-10"], &pieces),
            (expected.to_owned(), 0)
        );
    }

    #[test]
    fn json_of_several_nodes_is_one_document() {
        let pieces = [
            (1, err("error: ask the agent at /x: nobody\n")),
            (1, code(2)),
            (0, out("{\"findings\":")),
            (2, failed("no agent is on it")),
            (0, out("[]}\n")),
            (0, code(1)),
        ];
        let (text, code) = told(Way::Document, false, &["a", "b", "c"], &pieces);
        let (complaints, document) = text.split_once("{\n").expect("a document");
        assert_eq!(
            complaints,
            "[b: error: ask the agent at /x: nobody]\n[error: c: no agent is on it]\n"
        );
        let document: Value = serde_json::from_str(&format!("{{{document}")).expect("JSON");
        let expected = json!({ "nodes": [
            { "node": "a", "exitCode": 1, "output": { "findings": [] } },
            { "node": "b", "exitCode": 2, "error": "error: ask the agent at /x: nobody" },
            { "node": "c", "error": "no agent is on it" },
        ] });
        assert_eq!((document, code), (expected, 2));
    }

    #[test]
    fn a_document_drives_no_terminal() {
        let pieces = [(0, out("\"a\\n\u{9b}2J\u{7f}\"")), (0, code(0))];
        let (text, _) = told(Way::Document, false, &["a"], &pieces);
        assert!(text.contains(r#""output": "a\n\u009b2J\u007f""#), "{text}");
    }

    #[test]
    fn what_is_too_much_is_told_and_has_no_hole() {
        let much = |piece: fn(Vec<u8>) -> Piece| piece(vec![b'a'; MOST_BYTES]);
        let error = "[error: n: it said more than 64 MiB, the rest is missing]\n";
        for way in [
            Way::ForTerminal,
            Way::Prefixed,
            Way::Blocks,
            Way::Document,
            Way::Documents,
        ] {
            for piece in [Piece::Out as fn(Vec<u8>) -> Piece, Piece::Err] {
                let pieces = [
                    (0, piece(b"begin ".to_vec())),
                    (0, much(piece)),
                    (0, piece(b"end\n".to_vec())),
                    (0, err("note\n")),
                    (0, code(0)),
                ];
                let (text, code) = told(way, false, &["n"], &pieces);
                assert_eq!(code, COULD_NOT_ASK, "{way:?}");
                assert_eq!(text.matches(error).count(), 1, "{way:?}: {text}");
                assert!(!text.contains("end"), "{way:?}: {text}");
            }
        }
        let pieces = [
            (0, much(Piece::Out)),
            (0, out("a")),
            (0, err("note\n")),
            (0, code(0)),
        ];
        let (text, _) = told(Way::Document, false, &["n"], &pieces);
        assert!(
            text.contains(r#""error": "it said more than 64 MiB, the rest is missing""#),
            "{text}"
        );
    }

    #[test]
    fn lines_of_json_get_their_nodes_name() {
        let pieces = [
            (0, out("{\"a\":1}\n{}\n{\"b\"")),
            (1, out("3\n")),
            (0, out(":2}\n")),
            // Nothing that drives a terminal, and one name.
            (1, out("{\u{1b}]0;a\u{7}}\n")),
            (1, out("{\"a\":\"\u{9b}2J\u{7f}\u{202e}\",\"node\":\"x\"}\n")),
            (0, code(0)),
            (1, code(0)),
        ];
        let expected = "\
{\"node\":\"x\",\"a\":1}
{\"node\":\"x\"}
{\"line\":\"3\",\"node\":\"y\"}
{\"node\":\"x\",\"b\":2}
{\"line\":\"{\\u001b]0;a\\u0007}\",\"node\":\"y\"}
{\"node\":\"y\",\"a\":\"\\u009b2J\\u007f\\u202e\"}
";
        assert_eq!(
            told(Way::Documents, false, &["x", "y"], &pieces),
            (expected.to_owned(), 0)
        );
    }

    #[test]
    fn what_is_no_capture_is_told_once_and_counts() {
        let pieces = [
            (0, out("something else")),
            (1, out("")),
            (0, out("and more")),
            (0, code(0)),
            (1, failed("no agent is on it")),
        ];
        let expected = "\
[error: a: what it wrote is no capture that can be read: a block has a length that none can have]
[error: b: no agent is on it]
";
        assert_eq!(
            told(Way::Capture, false, &["a", "b"], &pieces),
            (expected.to_owned(), 2)
        );
        assert_eq!(
            told(Way::Capture, false, &["a"], &[pieces[0].clone(), (0, code(0))]).1,
            2
        );
    }

    #[test]
    fn an_exit_code_that_is_no_byte_is_the_worst() {
        assert_eq!(told(Way::AsItIs, true, &["n"], &[(0, code(-1))]).1, 255);
        assert_eq!(told(Way::AsItIs, true, &["n"], &[(0, code(137))]).1, 137);
        assert_eq!(told(Way::Blocks, false, &["a", "b"], &[(0, code(1))]).1, 2);
    }
}
