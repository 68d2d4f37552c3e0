//! Words of commands for a shell.

/// A word as a POSIX shell must read it: quoted where it would be read as something else. A part of a word may be quoted
/// alone.
#[must_use]
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_word_that_was_meant() {
        let rows = [
            ("eth0.100@if7", "eth0.100@if7"),
            ("/etc/causeway/node.yaml", "/etc/causeway/node.yaml"),
            ("a;id", "'a;id'"),
            ("$(id)", "'$(id)'"),
            ("my node", "'my node'"),
            ("it's", r"'it'\''s'"),
            ("~", "'~'"),
            ("[fd00::1]:80", "'[fd00::1]:80'"),
            ("", "''"),
        ];
        for (word, expected) in rows {
            assert_eq!(quoted(word), expected);
            let said = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {expected}"))
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&said.stdout), word);
        }
    }
}
