//! The indexes of an Indexed Job: which a pod has, and the text in which `status.completedIndexes` tells of many.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// The annotation, and label, of a pod's index.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A pod's index.
pub(crate) fn of(pod: &Pod) -> Option<u32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Reads `0-2,5`; what lies outside of `0..completions`, and what is no number, is left out.
pub(crate) fn parse(text: &str, completions: u32) -> BTreeSet<u32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            indexes.extend((first..=last).take_while(|index| *index < completions));
        }
    }
    indexes
}

/// Writes them; three and more in a row as the first and the last, two as both (`0,1,5-7`).
pub(crate) fn text(indexes: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let runs = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text_in: &str, completions: u32, text_out: &str) {
        assert_eq!(text(&parse(text_in, completions)), text_out);
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
    }
}
