//! nftables in memory, for tests of those who keep a table: what a transaction asks for must fit what is there, as in
//! the kernel, and a test may have the next ones refused. Rules are kept, and neither run nor looked into.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::object::{CHAIN_NAME, ELEMENTS_LIST, ELEMENTS_SET, SET_NAME, TABLE_NAME};
use super::rule::RULE_CHAIN;
use super::{Batch, Connection, Element, ElementData, Error, Failure, Nft, Operation, Verdict};
use crate::nfnetlink::{Message, attribute, attributes, text};

/// The tables. Clones, and connections, share them.
#[derive(Clone, Debug, Default)]
pub struct FakeTables {
    state: Arc<Mutex<State>>,
}

/// What a test looks at and changes.
#[derive(Debug, Default)]
pub struct State {
    /// How the next transactions fail, one each.
    pub failures: VecDeque<Error>,
    /// Transactions that were taken so far.
    pub taken: u64,
    /// Transactions that failed so far.
    pub refused: u64,
    tables: Tables,
}

impl FakeTables {
    /// Looks at the state, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection to them.
    #[must_use]
    pub fn connect(&self) -> Nft {
        Nft {
            connection: Box::new(self.clone()),
        }
    }
}

impl Connection for FakeTables {
    fn port(&self) -> u32 {
        0
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        self.with(|state| {
            let mut tables = state.tables.clone();
            let result = match state.failures.pop_front() {
                Some(error) => Err(error),
                None => tables.take(batch),
            };
            if result.is_ok() {
                state.tables = tables;
                state.taken += 1;
            } else {
                state.refused += 1;
            }
            result
        })
    }

    fn dump(&mut self, request: &Message, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let answers = self.with(|state| state.tables.list(request));
        let answers = answers.map_err(io::Error::from_raw_os_error)?;
        answers.iter().try_for_each(|answer| each(answer))
    }
}

/// By family and name.
#[derive(Clone, Debug, Default)]
struct Tables(BTreeMap<(u8, String), Contents>);

/// What is in a table; objects are the attributes by which they were made.
#[derive(Clone, Debug, Default)]
struct Contents {
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default)]
struct Set {
    made_by: Vec<u8>,
    elements: BTreeMap<(Vec<u8>, Option<Vec<u8>>), Element>,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    made_by: Vec<u8>,
    rules: Vec<Vec<u8>>,
}

/// Why a message is refused: a number of `errno`.
type Errno = i32;

fn name(attributes: &[u8], kind: u16) -> Result<String, Errno> {
    attribute(attributes, kind).map(text).ok_or(libc::EINVAL)
}

impl Tables {
    fn take(&mut self, batch: &Batch) -> Result<(), Error> {
        let mut failures = Vec::new();
        for (index, (message, what)) in batch.messages.iter().enumerate() {
            if let Err(errno) = self.change(message) {
                failures.push(Failure {
                    index,
                    message: what.clone(),
                    error: io::Error::from_raw_os_error(errno),
                });
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(Error::Refused(failures))
        }
    }

    fn change(&mut self, message: &Message) -> Result<(), Errno> {
        // Every kind of object names its table in the attribute of the same number.
        let key = (message.family(), name(message.body(), TABLE_NAME)?);
        match Operation::of(message.kind()) {
            Some(Operation::NewTable) => {
                self.0.entry(key).or_default();
                Ok(())
            }
            Some(Operation::DeleteTable) => self.0.remove(&key).map(drop).ok_or(libc::ENOENT),
            Some(operation) => {
                let contents = self.0.get_mut(&key).ok_or(libc::ENOENT)?;
                contents.change(operation, message.body())
            }
            None => Err(libc::EINVAL),
        }
    }

    fn list(&self, request: &Message) -> Result<Vec<Vec<u8>>, Errno> {
        let of_family = self
            .0
            .iter()
            .filter(|((family, _), _)| *family == request.family());
        let mut of_family = of_family.map(|((_, name), contents)| (name, contents));
        let answer = || Message::new(0, 0, 0, 0);
        Ok(match Operation::of(request.kind()) {
            Some(Operation::GetTable) => of_family
                .map(|(table, _)| answer().text(TABLE_NAME, table).body().to_vec())
                .collect(),
            Some(Operation::GetChain) => of_family
                .flat_map(|(_, contents)| contents.chains.values().map(|chain| chain.made_by.clone()))
                .collect(),
            Some(Operation::GetRule) => of_family
                .flat_map(|(_, contents)| contents.chains.values().flat_map(|chain| chain.rules.clone()))
                .collect(),
            Some(Operation::GetSet) => of_family
                .flat_map(|(_, contents)| contents.sets.values().map(|set| set.made_by.clone()))
                .collect(),
            Some(Operation::GetElement) => {
                let table = name(request.body(), TABLE_NAME)?;
                let set = name(request.body(), ELEMENTS_SET)?;
                let (_, contents) = of_family.find(|(name, _)| **name == table).ok_or(libc::ENOENT)?;
                let elements = contents.sets.get(&set).ok_or(libc::ENOENT)?.elements.values();
                let list = |element: &Element| {
                    let mut message = answer();
                    message.nested(ELEMENTS_LIST, |list| element.encode(list));
                    message.body().to_vec()
                };
                elements.map(list).collect()
            }
            _ => return Err(libc::EINVAL),
        })
    }
}

impl Contents {
    fn change(&mut self, operation: Operation, object: &[u8]) -> Result<(), Errno> {
        match operation {
            Operation::NewChain => {
                let chain = self.chains.entry(name(object, CHAIN_NAME)?).or_default();
                if chain.made_by.is_empty() {
                    chain.made_by = object.to_vec();
                }
            }
            Operation::DeleteChain => {
                let chain = name(object, CHAIN_NAME)?;
                self.chain(&chain)?;
                if self.is_led_to(&chain) {
                    return Err(libc::EBUSY);
                }
                self.chains.remove(&chain);
            }
            Operation::NewRule => {
                let chain = self.chain(&name(object, RULE_CHAIN)?)?;
                chain.rules.push(object.to_vec());
            }
            Operation::DeleteRule => self.chain(&name(object, RULE_CHAIN)?)?.rules.clear(),
            Operation::NewSet => {
                let set = self.sets.entry(name(object, SET_NAME)?).or_default();
                if set.made_by.is_empty() {
                    set.made_by = object.to_vec();
                }
            }
            Operation::NewElement | Operation::DeleteElement => {
                let set = name(object, ELEMENTS_SET)?;
                let list = attribute(object, ELEMENTS_LIST).unwrap_or_default();
                for (_, element) in attributes(list) {
                    let element = Element::decode(element).ok_or(libc::EINVAL)?;
                    self.change_element(operation, &set, element)?;
                }
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(())
    }

    fn chain(&mut self, name: &str) -> Result<&mut Chain, Errno> {
        self.chains.get_mut(name).ok_or(libc::ENOENT)
    }

    fn is_led_to(&self, chain: &str) -> bool {
        let mut elements = self.sets.values().flat_map(|set| set.elements.values());
        elements.any(|element| led_to(element) == Some(chain))
    }

    fn change_element(&mut self, operation: Operation, set: &str, element: Element) -> Result<(), Errno> {
        if operation == Operation::NewElement
            && led_to(&element).is_some_and(|to| !self.chains.contains_key(to))
        {
            return Err(libc::ENOENT);
        }
        let elements = &mut self.sets.get_mut(set).ok_or(libc::ENOENT)?.elements;
        let key = (element.key.clone(), element.end.clone());
        if operation == Operation::DeleteElement {
            return elements.remove(&key).map(drop).ok_or(libc::ENOENT);
        }
        match elements.get(&key) {
            Some(there) if there.data != element.data => Err(libc::EEXIST),
            _ => {
                elements.insert(key, element);
                Ok(())
            }
        }
    }
}

/// The chain of this table that an element's verdict leads to.
fn led_to(element: &Element) -> Option<&str> {
    match &element.data {
        ElementData::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain),
        _ => None,
    }
}
