//! What many objects say alike, once in memory.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::Text;
use crate::endpoint::Attributes;

/// What is in use of what many objects say alike. In a cluster the same names stand everywhere: a hundred thousand
/// endpoints are on a few nodes, in fewer zones, and most of them are ready.
#[derive(Debug, Default)]
pub struct Pools {
    texts: Pool<Box<str>>,
    attributes: Pool<Attributes>,
}

impl Pools {
    /// Makes a text share its place with the equal one that was seen before.
    pub fn share(&mut self, text: &mut Text) {
        match self.texts.known.get(&text.0) {
            Some(known) => text.0 = known.clone(),
            None => self.texts.add(text.0.clone()),
        }
    }

    /// The same for what is said of an endpoint.
    pub(crate) fn share_attributes(&mut self, attributes: &mut Arc<Attributes>) {
        if let Some(known) = self.attributes.known.get(attributes) {
            *attributes = known.clone();
            return;
        }
        Arc::make_mut(attributes).share(self);
        self.attributes.add(attributes.clone());
    }
}

/// Values that are in use.
#[derive(Debug)]
struct Pool<T> {
    known: HashSet<Arc<T>>,
    /// How many there may be before those are looked for that nobody uses any more.
    limit: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            limit: 0,
        }
    }
}

impl<T: Eq + Hash> Pool<T> {
    fn add(&mut self, value: Arc<T>) {
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = 64.max(2 * self.known.len());
        }
        self.known.insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_place_once_they_were_seen() {
        let mut pools = Pools::default();
        let mut seen = ["node-1", "node-2", "node-1"].map(Text::from);
        for text in &mut seen {
            pools.share(text);
        }
        let [first, other, again] = &seen;
        assert!(Arc::ptr_eq(&first.0, &again.0) && !Arc::ptr_eq(&first.0, &other.0));
        assert_eq!(seen, ["node-1", "node-2", "node-1"].map(Text::from));
    }

    #[test]
    fn texts_that_nobody_uses_any_more_are_forgotten() {
        let mut pools = Pools::default();
        let mut used = Text::from("used");
        pools.share(&mut used);
        for number in 0..10_000 {
            pools.share(&mut Text::from(format!("node-{number}")));
        }
        assert!(pools.texts.known.len() <= 64 && pools.texts.known.contains(&used.0));
    }
}
