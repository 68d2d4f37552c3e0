//! Regular expressions of the Corefile: RE2's syntax, as Go's, matched in linear time.

use std::fmt;

use regex::Regex;

/// The longest pattern that is taken.
const MAX_PATTERN: usize = 10_000;

/// A regular expression; two are equal when they are written the same.
#[derive(Clone)]
pub struct Pattern(Regex);

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It would take too much memory.
    #[error("is longer than {MAX_PATTERN} bytes")]
    TooLong,
    /// It breaks the syntax.
    #[error("is no regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        // The library's message draws the place of the mistake over several lines; the last one says what it is.
        let syntax = |error: regex::Error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            PatternError::Syntax(last.trim_start_matches("error: ").to_owned())
        };
        Regex::new(text).map(Self).map_err(syntax)
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it matches somewhere in `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The groups of the first match.
    #[must_use]
    pub fn groups<'t>(&self, text: &'t str) -> Option<regex::Captures<'t>> {
        self.0.captures(text)
    }

    /// Whether there is a group of this name or number.
    #[must_use]
    pub fn has_group(&self, name: &str) -> bool {
        let mut names = self.0.capture_names().enumerate();
        names.any(|(index, own)| own == Some(name) || index.to_string() == name)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_equal_as_written_and_mistakes_are_told_in_one_line() {
        let pattern = |text: &str| Pattern::parse(text).expect("a pattern");
        assert_eq!(pattern("^a(?P<x>b)$"), pattern("^a(?P<x>b)$"));
        assert_ne!(pattern("a"), pattern("(a)"));
        let groups = pattern("^a(?P<x>b)$");
        let known = ["0", "1", "x", "2", "y"].map(|name| groups.has_group(name));
        assert_eq!(known, [true, true, true, false, false]);
        let error = |text: &str| Pattern::parse(text).expect_err("no pattern").to_string();
        assert_eq!(error("a("), "is no regular expression: unclosed group");
        assert_eq!(error(&"a".repeat(10_001)), "is longer than 10000 bytes");
    }
}
