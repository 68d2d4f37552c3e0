//! What several nodes say of a trace: pieces of their streams in, the parts of one story out. Pure.

use trace::part::{Line, Part};

use super::telling::{Kept, Piece, Told, take_lines, too_much};

/// A node that is asked.
#[derive(Debug)]
struct Speaker {
    part: Part,
    /// Its end is the end.
    leads: bool,
    /// Lines that have no end yet.
    out: Kept,
    err: Kept,
    /// So many bytes of its lines have come: what they said is kept.
    read: usize,
    /// Its own words for why it failed.
    reason: Option<String>,
    /// What it said last beside them.
    last: Option<String>,
    has_ended: bool,
}

/// The parts of a story, as they come.
#[derive(Debug)]
pub struct Parts {
    speakers: Vec<Speaker>,
}

impl Parts {
    /// Of these nodes, each with whether its end is the end; they are known by their numbers from here on.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = (String, bool)>) -> Self {
        let speaker = |(node, leads)| Speaker {
            part: Part {
                node,
                ..Part::default()
            },
            leads,
            out: Kept::default(),
            err: Kept::default(),
            read: 0,
            reason: None,
            last: None,
            has_ended: false,
        };
        Self {
            speakers: nodes.into_iter().map(speaker).collect(),
        }
    }

    /// Takes a piece of what a node said; what is to be told now.
    pub fn take(&mut self, number: usize, piece: Piece) -> Vec<Told> {
        let Some(speaker) = self.speakers.get_mut(number) else {
            return Vec::new();
        };
        let mut told = Vec::new();
        match piece {
            Piece::Out(bytes) => {
                if speaker.out.cuts(&bytes, speaker.read) {
                    speaker.part.missing = Some(too_much());
                }
                speaker.read += bytes.len();
                speaker.lines(false);
            }
            Piece::Err(bytes) => {
                speaker.err.cuts(&bytes, 0);
                speaker.complaints(false, &mut told);
            }
            Piece::Ended(ended) => {
                speaker.lines(true);
                speaker.complaints(true, &mut told);
                speaker.end(ended);
            }
        }
        told
    }

    /// Whether all that do not lead follow packets, or have ended.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        let mut others = self.speakers.iter().filter(|speaker| !speaker.leads);
        others.all(Speaker::is_settled)
    }

    /// Whether all follow packets, or have ended.
    #[must_use]
    pub fn have_begun(&self) -> bool {
        self.speakers.iter().all(Speaker::is_settled)
    }

    /// Those that do not lead and are not ready yet are not waited for any more: what they miss says nothing.
    pub fn go_without(&mut self, why: &str) {
        let late = self
            .speakers
            .iter_mut()
            .filter(|speaker| !speaker.leads && speaker.part.attached.is_none() && !speaker.has_ended);
        late.for_each(|speaker| speaker.part.missing = Some(why.to_owned()));
    }

    /// Whether nothing more need come: one that leads has ended and saw something, or all that lead have ended.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        let leading = || self.speakers.iter().filter(|speaker| speaker.leads);
        let tells = |speaker: &Speaker| {
            let story = speaker.part.story.as_ref();
            story.is_some_and(|story| !story.packets.is_empty())
        };
        leading().all(|speaker| speaker.has_ended)
            || leading().any(|speaker| speaker.has_ended && tells(speaker))
    }

    /// What came of them.
    #[must_use]
    pub fn finish(self) -> Vec<Part> {
        self.speakers.into_iter().map(|speaker| speaker.part).collect()
    }
}

impl Speaker {
    /// It follows packets, or has ended.
    fn is_settled(&self) -> bool {
        self.part.attached.is_some() || self.has_ended
    }

    fn lines(&mut self, is_end: bool) {
        for line in take_lines(&mut self.out.bytes, is_end) {
            match serde_json::from_str(&line) {
                Ok(Line::Attached(attached)) => self.part.attached = Some(*attached),
                Ok(Line::Hop(hop)) => self.part.hops.push(*hop),
                Ok(Line::Story(story)) => self.part.story = Some(*story),
                Err(error) => {
                    let why = format!("it said something that is no part of a story: {error}");
                    self.part.missing.get_or_insert(why);
                }
            }
        }
    }

    /// Warnings are told; why it failed the story tells.
    fn complaints(&mut self, is_end: bool, told: &mut Vec<Told>) {
        for line in take_lines(&mut self.err.bytes, is_end) {
            match line.strip_prefix("error: ") {
                Some(reason) => self.reason = Some(reason.to_owned()),
                None => {
                    told.push(Told::Err(format!("{}: {line}", self.part.node)));
                    self.last = Some(line);
                }
            }
        }
    }

    fn end(&mut self, ended: Result<i32, String>) {
        self.has_ended = true;
        let why = match ended {
            Ok(_) if self.part.story.is_some() => None,
            Ok(code) => {
                let reason = self.reason.take();
                Some(reason.unwrap_or_else(|| match &self.last {
                    Some(last) => format!("it ended with exit code {code} after it had said: {last}"),
                    None => format!("it ended with exit code {code}"),
                }))
            }
            Err(why) => Some(why),
        };
        self.part.missing = self.part.missing.take().or(why);
    }
}

#[cfg(test)]
mod tests {
    use trace::part::{Attached, Seen};
    use trace::{Filter, Gaps, Hop, Names, Story};

    use super::*;

    fn parts(nodes: &[(&str, bool)]) -> Parts {
        Parts::new(nodes.iter().map(|(node, leads)| ((*node).to_owned(), *leads)))
    }

    fn out(line: &Line) -> Piece {
        Piece::Out(line.text().into_bytes())
    }

    fn attached() -> Line {
        Line::Attached(Box::default())
    }

    fn hop() -> Hop {
        let text = r#"{"atNs": 1, "packet": 1, "node": "x", "netns": 1, "device": "eth0", "kind": "sent",
            "header": {"source": "10.0.0.1:1", "destination": "10.0.0.2:2", "protocol": "tcp", "what": "SYN",
            "ipId": 1, "sequence": 1, "acknowledgement": 0, "length": 60, "ttl": 64}}"#;
        serde_json::from_str(text).expect("a hop")
    }

    fn story(hops: &[Hop]) -> Story {
        Story::new(&Filter::default(), hops, &Names::default(), Gaps::default())
    }

    fn told(hops: &[Hop]) -> Piece {
        out(&Line::Story(Box::new(story(hops))))
    }

    #[test]
    fn lines_become_a_part_however_they_are_cut() {
        let seen = Seen {
            at: "host".to_owned(),
            entering: None,
            hop: hop(),
        };
        let lines = [
            attached(),
            Line::Hop(Box::new(seen.clone())),
            Line::Story(Box::new(story(&[hop()]))),
        ];
        let text: String = lines.iter().map(Line::text).collect();
        for size in [1, 100, text.len()] {
            let mut parts = parts(&[("a", true)]);
            for piece in text.as_bytes().chunks(size) {
                assert_eq!(parts.take(0, Piece::Out(piece.to_vec())), []);
            }
            parts.take(0, Piece::Ended(Ok(0)));
            let expected = Part {
                node: "a".to_owned(),
                attached: Some(Attached::default()),
                hops: vec![seen.clone()],
                story: Some(story(&[hop()])),
                missing: None,
            };
            assert_eq!(parts.finish(), [expected], "{size}");
        }
    }

    #[test]
    fn the_one_that_leads_begins_when_others_are_ready_and_its_end_is_enough() {
        let mut parts = parts(&[("a", true), ("b", false), ("c", false)]);
        parts.take(1, out(&attached()));
        assert!(!parts.are_ready());
        parts.take(2, Piece::Ended(Err("no agent is on it".to_owned())));
        assert!(parts.are_ready() && !parts.have_begun() && !parts.is_enough());
        // What another one tells before is no end.
        parts.take(1, told(&[hop()]));
        parts.take(1, Piece::Ended(Ok(0)));
        assert!(!parts.is_enough());
        parts.take(0, out(&attached()));
        assert!(parts.have_begun() && !parts.is_enough());
        parts.take(0, Piece::Ended(Ok(2)));
        assert!(parts.is_enough());
    }

    #[test]
    fn where_all_lead_the_first_that_saw_something_is_enough() {
        let mut parts = parts(&[("a", true), ("b", true)]);
        assert!(parts.are_ready());
        parts.take(0, told(&[]));
        parts.take(0, Piece::Ended(Ok(2)));
        assert!(!parts.is_enough());
        parts.take(1, told(&[hop()]));
        assert!(!parts.is_enough());
        parts.take(1, Piece::Ended(Ok(0)));
        assert!(parts.is_enough());
    }

    #[test]
    fn why_a_part_is_missing_is_told_by_name_and_warnings_as_they_come() {
        let err = |text: &str| Piece::Err(text.as_bytes().to_vec());
        let rows: [(&[Piece], &str, &[&str]); 6] = [
            (
                &[err("warning: a\nerror: must run as root\n"), Piece::Ended(Ok(2))],
                "must run as root",
                &["n: warning: a"],
            ),
            (&[err("error: no"), Piece::Ended(Ok(2))], "no", &[]),
            (
                &[err("it panicked:\nno such thing\n"), Piece::Ended(Ok(101))],
                "it ended with exit code 101 after it had said: no such thing",
                &["n: it panicked:", "n: no such thing"],
            ),
            (&[Piece::Ended(Ok(137))], "it ended with exit code 137", &[]),
            (
                &[
                    out(&attached()),
                    Piece::Ended(Err("the connection broke".to_owned())),
                ],
                "the connection broke",
                &[],
            ),
            (
                &[Piece::Out(vec![b'a'; 65 << 20]), told(&[]), Piece::Ended(Ok(0))],
                "it said more than 64 MiB, the rest is missing",
                &[],
            ),
        ];
        for (pieces, why, lines) in rows {
            let mut parts = parts(&[("n", true)]);
            let told: Vec<Told> = pieces
                .iter()
                .flat_map(|piece| parts.take(0, piece.clone()))
                .collect();
            let lines: Vec<Told> = lines.iter().map(|line| Told::Err((*line).to_owned())).collect();
            assert_eq!(told, lines);
            assert_eq!(parts.finish()[0].missing.as_deref(), Some(why));
        }
        let mut late = parts(&[("a", true), ("b", false)]);
        late.go_without("it came late");
        let missing: Vec<_> = late.finish().into_iter().map(|part| part.missing).collect();
        assert_eq!(missing, [None, Some("it came late".to_owned())]);
    }
}
