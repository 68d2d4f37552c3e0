//! Our configuration while it is put together, and what has been told of it.

use serde_json::{Map, Value};

use super::told::{Told, Verdict};

/// The keys that were set, and what became of each setting.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    config: Map<String, Value>,
    told: Vec<Told>,
}

impl Draft {
    /// Tells what becomes of a setting and takes over its keys.
    pub fn add(&mut self, of: &'static str, path: impl Into<String>, value: &Value, verdict: &Verdict) {
        self.told.push(verdict.told(of, path, value));
        for (key, value) in &verdict.keys {
            self.set(key, value.clone());
        }
    }

    /// Sets a key of ours, with dots between sections.
    pub fn set(&mut self, key: &str, value: Value) {
        let mut sections: Vec<&str> = key.split('.').collect();
        let last = sections.pop().expect("invariant: split gives one part at least");
        let mut section = &mut self.config;
        for name in sections {
            let inner = section.entry(name).or_insert_with(|| Map::new().into());
            section = inner
                .as_object_mut()
                .expect("invariant: no rule sets a section to a value");
        }
        section.insert(last.to_owned(), value);
    }

    /// Takes a section of ours out again.
    pub fn unset(&mut self, section: &str) {
        self.config.remove(section);
    }

    /// A key that was set.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.config.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// The configuration, and what was told on the way.
    #[must_use]
    pub fn into_parts(self) -> (Map<String, Value>, Vec<Told>) {
        (self.config, self.told)
    }
}
