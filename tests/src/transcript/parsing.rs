//! A transcript's text, and the steps that it tells.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, bail};

/// A parsed transcript.
#[derive(Debug, Default)]
pub struct Transcript {
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) struct Step {
    /// Counted from one.
    pub(super) line: usize,
    pub(super) versions: Versions,
    pub(super) act: Act,
    pub(super) text: String,
    pub(super) input: String,
    pub(super) output: Vec<(Versions, String)>,
    pub(super) errors: Vec<(Versions, String)>,
    pub(super) codes: Vec<(Versions, i32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    File,
    Run,
    Await,
    Begin,
    End,
    Alone,
    Together,
}

/// Minor versions of kubectl: any of these ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Versions(Vec<RangeInclusive<u32>>);

impl Versions {
    fn all() -> Self {
        Self(vec![0..=u32::MAX])
    }

    fn parse(word: &str) -> anyhow::Result<Self> {
        let number = |text: &str| {
            text.parse::<u32>()
                .with_context(|| format!("{word} is no version"))
        };
        let range = |part: &str| {
            Ok(if let Some(from) = part.strip_suffix('+') {
                number(from)?..=u32::MAX
            } else if let Some(to) = part.strip_suffix('-') {
                0..=number(to)?
            } else {
                number(part)?..=number(part)?
            })
        };
        word.split(',')
            .map(range)
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }

    pub(super) fn holds(&self, minor: u32) -> bool {
        self.0.iter().any(|range| range.contains(&minor))
    }
}

impl Transcript {
    /// The one of the repository, `tests/cluster/transcript.txt`.
    ///
    /// # Errors
    /// As [`Transcript::parse`], or when it is not there.
    pub fn read() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/transcript.txt");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a text.
    ///
    /// # Errors
    /// With the number of the first line that means nothing.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut transcript = Self::default();
        for (at, line) in text.lines().enumerate() {
            if !line.trim().is_empty() && !line.starts_with('#') {
                transcript
                    .take(at + 1, line)
                    .with_context(|| format!("line {}: {line}", at + 1))?;
            }
        }
        Ok(transcript)
    }

    fn take(&mut self, number: usize, line: &str) -> anyhow::Result<()> {
        let rest = line.trim_start();
        let (versions, rest) = match rest.starts_with(|first: char| first.is_ascii_digit()) {
            true => {
                let (word, rest) = rest.split_once(' ').context("a version without a mark")?;
                (Versions::parse(word)?, rest.trim_start())
            }
            false => (Versions::all(), rest),
        };
        let mut characters = rest.chars();
        let mark = characters.next().context("no mark")?;
        let text = characters.as_str();
        let text = text.strip_prefix(' ').unwrap_or(text).to_owned();
        let act = match mark {
            '>' => Act::File,
            '$' => Act::Run,
            '~' => Act::Await,
            '&' => Act::Begin,
            '.' => Act::End,
            '(' => Act::Alone,
            ')' => Act::Together,
            _ => return self.add(mark, versions, text),
        };
        self.steps.push(Step {
            line: number,
            versions,
            act,
            text,
            input: String::new(),
            output: Vec::new(),
            errors: Vec::new(),
            codes: Vec::new(),
        });
        Ok(())
    }

    fn add(&mut self, mark: char, versions: Versions, text: String) -> anyhow::Result<()> {
        let step = self.steps.last_mut().context("it belongs to nothing")?;
        match mark {
            '<' => step.input.extend([text.as_str(), "\n"]),
            '|' => step.output.push((versions, text)),
            '!' => step.errors.push((versions, text)),
            '=' => step.codes.push((versions, text.trim().parse()?)),
            _ => bail!("{mark:?} is no mark"),
        }
        Ok(())
    }

    /// How many commands it has for a minor version.
    #[must_use]
    pub fn commands(&self, minor: u32) -> usize {
        let is_command = |step: &&Step| {
            matches!(step.act, Act::Run | Act::Await | Act::Begin) && step.versions.holds(minor)
        };
        self.steps.iter().filter(is_command).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_hold_from_to_and_among() {
        let rows = [
            ("24+", [false, false, true, true]),
            ("24-", [true, true, false, false]),
            ("20,27", [true, false, true, false]),
            ("23", [false, true, false, false]),
            ("20,27+", [true, false, true, true]),
        ];
        for (word, expected) in rows {
            let versions = Versions::parse(word).expect(word);
            assert_eq!(
                [20, 23, 27, 33].map(|minor| versions.holds(minor)),
                expected,
                "{word}"
            );
        }
        for word in ["x", "1x", "24,", "+"] {
            assert!(Versions::parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_told_by_its_number() {
        for (text, told) in [
            ("# prose\n\n? x", "line 3: ? x"),
            ("| printed by nothing", "line 1"),
            ("$ x\n= many", "line 2"),
            ("24+", "line 1"),
        ] {
            let error = Transcript::parse(text).expect_err(text);
            assert!(error.to_string().starts_with(told), "{error:#}");
        }
    }

    #[test]
    fn a_command_has_what_follows_it() {
        let text = "  > a.yaml\n < x: 1\n24+ $ kubectl get\n | out\n 30- | old\n ! err\n = 1\n ~ later";
        let transcript = Transcript::parse(text).expect("it parses");
        let [file, get, later] = transcript.steps.as_slice() else {
            panic!("{transcript:?}")
        };
        assert_eq!((file.act, file.input.as_str()), (Act::File, "x: 1\n"));
        assert_eq!((get.line, &get.versions), (3, &Versions(vec![24..=u32::MAX])));
        assert_eq!(
            get.output,
            [
                (Versions::all(), "out".to_owned()),
                (Versions(vec![0..=30]), "old".to_owned())
            ]
        );
        assert_eq!(get.codes, [(Versions::all(), 1)]);
        assert_eq!(later.act, Act::Await);
        assert_eq!(transcript.commands(20), 1);
        assert_eq!(transcript.commands(24), 2);
    }
}
