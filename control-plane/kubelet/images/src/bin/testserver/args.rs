//! The command line: `--name value`, `--flag` and positional words.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Options that take no value.
const FLAGS: [&str; 5] = ["body", "connected", "forever", "kept", "over-tcp"];

/// A parsed command line.
pub struct Args {
    positional: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Args {
    /// Parses the words after the command.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            positional: Vec::new(),
            options: BTreeMap::new(),
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else {
                args.positional.push(word);
                continue;
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None if FLAGS.contains(&name) => (name.to_owned(), String::new()),
                None => {
                    let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
                    (name.to_owned(), value)
                }
            };
            args.options.insert(name, value);
        }
        Ok(args)
    }

    /// The n-th word that is no option.
    pub fn positional(&self, index: usize) -> Option<&str> {
        self.positional.get(index).map(String::as_str)
    }

    /// All words that are no options.
    pub fn positionals(&self) -> &[String] {
        &self.positional
    }

    /// An option's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Whether an option is there.
    pub fn flag(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    /// An option's value, or a default.
    pub fn value<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.options.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name}: {text:?} is not valid")),
        }
    }
}
