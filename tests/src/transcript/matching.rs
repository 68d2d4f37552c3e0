//! What a command shall print, and whether it did.

use std::process::Output;

/// What a command printed and how it ended.
#[derive(Debug)]
pub(super) struct Seen {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Seen {
    pub(super) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// What one kubectl shall see of a step.
pub(super) struct Wanted {
    pub(super) code: i32,
    pub(super) output: Vec<String>,
    pub(super) errors: Vec<String>,
}

impl Wanted {
    pub(super) fn is_met_by(&self, seen: &Seen) -> bool {
        let said: Vec<String> = seen.errors.lines().map(squeezed).collect();
        seen.code == Some(self.code)
            && lines_match(&self.output, &lines(&seen.output))
            && self
                .errors
                .iter()
                .all(|wanted| said.iter().any(|line| line_matches(wanted, line)))
    }
}

pub(super) fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Without empty lines at the end.
fn lines(text: &str) -> Vec<String> {
    text.trim_end().lines().map(squeezed).collect()
}

/// `...` stands for any lines.
pub(super) fn lines_match(wanted: &[String], seen: &[String]) -> bool {
    match wanted.split_first() {
        None => seen.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=seen.len()).any(|skipped| lines_match(rest, &seen[skipped..]))
        }
        Some((first, rest)) => seen
            .split_first()
            .is_some_and(|(line, more)| line_matches(first, line) && lines_match(rest, more)),
    }
}

/// `*` stands for any text.
fn line_matches(wanted: &str, seen: &str) -> bool {
    let Some((head, tail)) = wanted.split_once('*') else {
        return wanted == seen;
    };
    let Some(rest) = seen.strip_prefix(head) else {
        return false;
    };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| line_matches(tail, &rest[at..]))
}

pub(super) fn report(wanted: &Wanted, seen: &Seen) -> String {
    let marked = |mark: &str, lines: &[String]| -> String {
        lines.iter().map(|line| format!("{mark} {line}\n")).collect()
    };
    let said: Vec<String> = seen.errors.lines().map(str::to_owned).collect();
    format!(
        "expected: exit code {}\n{}{}got: exit code {:?}\n{}{}",
        wanted.code,
        marked("|", &wanted.output),
        marked("!", &wanted.errors),
        seen.code,
        marked("|", &lines(&seen.output)),
        marked("!", &said),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_by_wild_cards_and_blanks() {
        let rows = [
            ("a\nb", "a\nb\n", true),
            ("a", "a\nb", false),
            ("a\nb", "a", false),
            ("", "", true),
            ("", "a", false),
            ("...", "", true),
            ("...\nb\n...", "a\nb\nc", true),
            ("...\nb\n...", "a\nc", false),
            ("...\nb", "b\nb", true),
            ("NAME *\nx 1/1 *", "NAME    READY\nx   1/1   Running\n", true),
            ("x*y", "xy", true),
            ("x*y*", "xaybz", true),
            ("x*y", "xya", false),
            ("*é", "aé", true),
        ];
        for (wanted, seen, expected) in rows {
            let wanted: Vec<String> = wanted.lines().map(squeezed).collect();
            assert_eq!(
                lines_match(&wanted, &lines(seen)),
                expected,
                "{wanted:?} {seen:?}"
            );
        }
    }
}
