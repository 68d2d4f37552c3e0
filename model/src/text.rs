//! Texts that copies share.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text whose copies share one place in memory. In a cluster the same names stand everywhere: a hundred thousand
/// endpoints are on a few nodes, in fewer zones, and a Service's name is the key of much that is kept of it.
///
/// The length is beside the text, not in each copy: there are many more copies than texts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(Arc<Box<str>>);

const _: () = assert!(size_of::<Option<Text>>() == 8);

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::from("")
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Arc::new(text.into()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Arc::new(text.into()))
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<&Self> for Text {
    fn from(text: &Self) -> Self {
        text.clone()
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        (*text).into()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

/// Texts that are in use, to give equal ones one place in memory.
#[derive(Debug, Default)]
pub struct Texts {
    known: BTreeSet<Text>,
    /// How many there may be before those are looked for that nobody uses any more.
    limit: usize,
}

impl Texts {
    /// Makes a text share its place with the equal one that was seen before.
    pub fn share(&mut self, text: &mut Text) {
        if let Some(known) = self.known.get(text) {
            *text = known.clone();
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(&known.0) > 1);
            self.limit = 64.max(2 * self.known.len());
        }
        self.known.insert(text.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_place_once_they_were_seen() {
        let mut texts = Texts::default();
        let mut seen = ["node-1", "node-2", "node-1"].map(Text::from);
        for text in &mut seen {
            texts.share(text);
        }
        let [first, other, again] = &seen;
        assert!(Arc::ptr_eq(&first.0, &again.0) && !Arc::ptr_eq(&first.0, &other.0));
        assert_eq!(seen, ["node-1", "node-2", "node-1"].map(Text::from));
    }

    #[test]
    fn texts_that_nobody_uses_any_more_are_forgotten() {
        let mut texts = Texts::default();
        let mut used = Text::from("used");
        texts.share(&mut used);
        for number in 0..10_000 {
            texts.share(&mut Text::from(format!("node-{number}")));
        }
        assert!(texts.known.len() <= 64 && texts.known.contains(&used));
    }
}
