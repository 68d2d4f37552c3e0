//! Scripts that nobody would think of: random operations on a few keys, the same for the same seed.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

const KEYS: [&str; 5] = ["a", "a/1", "a/2", "b", "c"];
const VALUES: [&str; 4] = ["x", "y", "z", "-"];

/// Put last, and never before.
const LAST: &str = "last";

/// A script of so many operations, and then a watch of all that they did.
pub fn script(seed: u64, operations: usize) -> String {
    let mut random = Random(StdRng::seed_from_u64(seed));
    let lines: String = (0..operations).map(|_| random.line() + "\n").collect();
    format!("{lines}put {LAST} x\nwatch w a from rev=+1 prev\nuntil w {LAST}")
}

struct Random(StdRng);

impl Random {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).expect("not empty")
    }

    fn maybe(&mut self, words: impl Into<String>) -> String {
        if self.0.random_bool(0.3) {
            format!(" {}", words.into())
        } else {
            String::new()
        }
    }

    fn revision(&mut self) -> String {
        format!("+{}", self.0.random_range(1..40))
    }

    fn line(&mut self) -> String {
        match self.0.random_range(0..10) {
            0..4 => self.put(),
            4..6 => self.get(),
            6 => self.delete(),
            _ => self.txn(2),
        }
    }

    fn put(&mut self) -> String {
        let (key, value) = (self.one(&KEYS), self.one(&VALUES));
        let words = [self.maybe("prev"), self.maybe("keep-lease")].concat();
        if self.0.random_bool(0.1) {
            format!("put {key} - keep-value")
        } else {
            format!("put {key} {value}{words}")
        }
    }

    fn range(&mut self) -> String {
        let end = self.one(&KEYS);
        match self.0.random_range(0..4) {
            0 => " prefix".into(),
            1 => format!(" end={end}"),
            _ => String::new(),
        }
    }

    fn get(&mut self) -> String {
        let key = self.one(&KEYS);
        let (field, order) = (
            self.one(&["key", "version", "create", "mod", "value"]),
            self.one(&["asc", "desc", "none"]),
        );
        let [rev, min_mod, max_mod, min_create, max_create] = [(); 5].map(|()| self.revision());
        let range = if self.0.random_bool(0.3) {
            " from".into()
        } else {
            self.range()
        };
        let limit = self.0.random_range(0..4);
        let words = [
            self.maybe(format!("rev={rev}")),
            self.maybe(format!("limit={limit}")),
            self.maybe("keys"),
            self.maybe("count"),
            self.maybe(format!("sort={field}:{order}")),
            self.maybe(format!("minmod={min_mod}")),
            self.maybe(format!("maxmod={max_mod}")),
            self.maybe(format!("mincreate={min_create}")),
            self.maybe(format!("maxcreate={max_create}")),
        ];
        format!("get {key}{range}{}", words.concat())
    }

    /// Never without an end: there etcd errs, see the rows.
    fn delete(&mut self) -> String {
        format!("del {}{}{}", self.one(&KEYS), self.range(), self.maybe("prev"))
    }

    fn txn(&mut self, depth: usize) -> String {
        let compares = self.list(|random| random.compare());
        let [success, failure] = [(); 2].map(|()| {
            self.list(|random| match random.0.random_range(0..5) {
                0 if depth > 0 => random.txn(depth - 1),
                0 | 1 => random.get(),
                2 => random.delete(),
                _ => random.put(),
            })
        });
        format!("txn {{ {compares} }} {{ {success} }} {{ {failure} }}")
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> String) -> String {
        let count = self.0.random_range(0..4);
        (0..count).map(|_| item(self)).collect::<Vec<_>>().join(" ; ")
    }

    fn compare(&mut self) -> String {
        let (key, range, relation) = (self.one(&KEYS), self.range(), self.one(&["=", "!=", "<", ">"]));
        let (field, given) = match self.0.random_range(0..4) {
            0 => ("version", self.0.random_range(0..4).to_string()),
            1 => ("create", self.revision()),
            2 => ("mod", self.revision()),
            _ => ("value", self.one(&VALUES).to_owned()),
        };
        format!("{field} {key}{range} {relation} {given}")
    }
}
