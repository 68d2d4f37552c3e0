//! What to type where this machine has nobody to be asked.

use trace::shell::quoted;

use super::errand::Errand;
use crate::ends::Subject;

/// The same command line as one for another node; none where it is not for others.
#[must_use]
pub fn elsewhere(words: &[String]) -> Option<String> {
    let errand = Errand::parse(words).ok()?;
    let is_placed = |end: &Subject| match end {
        Subject::Pod(_) | Subject::Node(_) => true,
        Subject::Service(_) => errand.trace.is_some(),
        _ => false,
    };
    let node = match errand.ends.iter().any(is_placed) {
        true => "",
        false => " NODE",
    };
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    Some(format!("causeway on{node} -- {}", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_command_is_typed_for_another_node() {
        let rows: [(&[&str], Option<&str>); 6] = [
            (
                &["trace", "any", "svc/b:80"],
                Some("causeway on -- trace any svc/b:80"),
            ),
            (&["doctor", "--fix"], Some("causeway on NODE -- doctor --fix")),
            (
                &["explain", "pod/a", "svc/b:80"],
                Some("causeway on -- explain pod/a svc/b:80"),
            ),
            (
                &["trace", "pod/a -> [fd00::1]:80"],
                Some("causeway on -- trace 'pod/a -> [fd00::1]:80'"),
            ),
            (
                &["explain", "any", "10.96.0.10:53/udp"],
                Some("causeway on NODE -- explain any 10.96.0.10:53/udp"),
            ),
            (&["node", "cleanup"], None),
        ];
        for (words, expected) in rows {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(elsewhere(&words).as_deref(), expected);
        }
    }
}
