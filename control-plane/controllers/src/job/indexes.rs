//! The indexes of an Indexed Job: which a pod has, and the text in which `status.completedIndexes` tells of many.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

/// The annotation, and label, of a pod's index.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A pod's index.
pub(crate) fn of(pod: &Pod) -> Option<u32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Indexes in runs: as large as their text, however many they are.
#[derive(Debug, Default)]
pub(crate) struct Indexes {
    /// The last of a run by its first; no two runs touch.
    runs: BTreeMap<u32, u32>,
}

impl Indexes {
    /// Reads `0-2,5`; what lies outside of `0..completions`, and what is no number, is left out.
    pub(crate) fn parse(text: &str, completions: u32) -> Self {
        let mut indexes = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>())
                && first <= last
                && first < completions
            {
                indexes.insert_run(first, last.min(completions - 1));
            }
        }
        indexes
    }

    /// Writes them; three and more in a row as the first and the last, two as both (`0,1,5-7`).
    pub(crate) fn text(&self) -> String {
        let runs = self.runs.iter().map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
        runs.collect::<Vec<_>>().join(",")
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.runs
            .iter()
            .map(|(first, last)| (last - first) as usize + 1)
            .sum()
    }

    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, index: u32) -> bool {
        let before = self.runs.range(..=index).next_back();
        let is_new = before.is_none_or(|(_, last)| *last < index);
        if is_new {
            self.insert_run(index, index);
        }
        is_new
    }

    fn insert_run(&mut self, mut first: u32, mut last: u32) {
        let near = self.runs.range(..=last.saturating_add(1)).rev();
        let near = near.take_while(|(_, end)| end.saturating_add(1) >= first);
        let near: Vec<u32> = near.map(|(start, _)| *start).collect();
        for start in near {
            let end = self.runs.remove(&start);
            first = first.min(start);
            last = last.max(end.unwrap_or(start));
        }
        self.runs.insert(first, last);
    }

    /// Those of `0..completions` that are not here, in order.
    pub(crate) fn missing(&self, completions: u32) -> impl Iterator<Item = u32> {
        let runs = self.runs.iter().map(|(first, last)| (*first, *last));
        let mut next = 0;
        let gaps = runs
            .chain([(completions, completions)])
            .map(move |(first, last)| {
                let gap = next..first.min(completions);
                next = last.saturating_add(1);
                gap
            });
        gaps.flatten()
    }
}

impl Extend<u32> for Indexes {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, more: I) {
        for index in more {
            self.insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text_in: &str, completions: u32, text_out: &str) {
        assert_eq!(Indexes::parse(text_in, completions).text(), text_out);
    }

    #[test]
    fn indexes_are_told_in_upstreams_short_form() {
        check("", 5, "");
        check("0", 5, "0");
        check("0,1", 5, "0,1");
        check("2,0,1", 5, "0-2");
        check("0-2,4", 5, "0-2,4");
        check("0,1,3,4,6-9", 20, "0,1,3,4,6-9");
        check("0-9", 4, "0-3");
        check("7", 4, "");
        check("x,1-y,2", 4, "2");
        check("3-1,0", 4, "0");
        check("2-4,0,5-6,1", 9, "0-6");
        check("4-8,1-9,0-2", 20, "0-9");
        check("5", 0, "");
    }

    #[test]
    fn a_text_of_many_indexes_costs_no_more_than_its_length() {
        let mut indexes = Indexes::parse("0-2147483640,2147483643", i32::MAX as u32);
        assert_eq!(indexes.count(), 2_147_483_642);
        assert_eq!(indexes.runs.len(), 2);
        let missing: Vec<u32> = indexes.missing(i32::MAX as u32).collect();
        assert_eq!(
            missing,
            [
                2_147_483_641,
                2_147_483_642,
                2_147_483_644,
                2_147_483_645,
                2_147_483_646
            ]
        );
        assert_eq!(
            [7, 2_147_483_641, 2_147_483_641].map(|index| indexes.insert(index)),
            [false, true, false]
        );
    }

    #[test]
    fn what_is_missing_lies_below_the_completions() {
        for (text, more, completions, expected) in [
            ("", None, 3, &[0, 1, 2][..]),
            ("1", None, 3, &[0, 2]),
            ("0-2", None, 3, &[]),
            ("0", Some(7), 3, &[1, 2]),
            ("0", Some(u32::MAX), 2, &[1]),
            ("", None, 0, &[]),
        ] {
            let mut indexes = Indexes::parse(text, completions);
            indexes.extend(more);
            assert_eq!(
                indexes.missing(completions).collect::<Vec<_>>(),
                expected,
                "{text} of {completions}"
            );
        }
    }
}
