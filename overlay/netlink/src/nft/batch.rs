//! One transaction: everything in a batch happens, or nothing.

use std::io;

use super::object::{
    CHAIN_NAME, CHAIN_TABLE, ELEMENTS_LIST, ELEMENTS_SET, ELEMENTS_TABLE, SET_TABLE, TABLE_NAME,
};
use super::read::RULE_HANDLE;
use super::rule::{RULE_CHAIN, RULE_TABLE};
use super::{Chain, Connection, Element, Error, Failure, Nft, Operation, Rule, SUBSYSTEM, Set, Table};
use crate::nfnetlink::{Message, Socket, acknowledgements, body, flag};

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Attributes have 16-bit lengths, so that long element lists are split.
const ELEMENT_LIST_BYTES: usize = 32 << 10;

/// Changes to one table, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    table: Table,
    /// What each message asks for, and the same in words.
    pub(super) messages: Vec<(Message, String)>,
    elements: usize,
}

impl Batch {
    /// An empty batch for a table.
    #[must_use]
    pub fn new(table: &Table) -> Self {
        Self {
            table: table.clone(),
            messages: Vec::new(),
            elements: 0,
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes that the batch takes on the wire.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.messages.iter().map(|(message, _)| message.len()).sum()
    }

    /// How many changes it makes; each element of a set counts.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.elements
            + self
                .messages
                .iter()
                .filter(|(_, what)| !what.contains("elements"))
                .count()
    }

    /// Adds the table, unless it is there.
    pub fn add_table(&mut self) -> &mut Self {
        let name = self.table.name.clone();
        let message = self.push(Operation::NewTable, flag::CREATE, format!("add table {name}"));
        message.text(TABLE_NAME, &name);
        self
    }

    /// Removes the table and all that is in it.
    pub fn delete_table(&mut self) -> &mut Self {
        let name = self.table.name.clone();
        let message = self.push(Operation::DeleteTable, 0, format!("delete table {name}"));
        message.text(TABLE_NAME, &name);
        self
    }

    /// Adds a chain, unless it is there.
    pub fn add_chain(&mut self, chain: &Chain) -> &mut Self {
        let what = format!("add chain {}", chain.name);
        let message = self.push_in(Operation::NewChain, flag::CREATE, CHAIN_TABLE, what);
        chain.encode(message);
        self
    }

    /// Removes a chain, which must be empty and unreferenced by then.
    pub fn delete_chain(&mut self, chain: &str) -> &mut Self {
        let message = self.push_in(
            Operation::DeleteChain,
            0,
            CHAIN_TABLE,
            format!("delete chain {chain}"),
        );
        message.text(CHAIN_NAME, chain);
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, chain: &str) -> &mut Self {
        let message = self.push_in(
            Operation::DeleteRule,
            0,
            RULE_TABLE,
            format!("flush chain {chain}"),
        );
        message.text(RULE_CHAIN, chain);
        self
    }

    /// Removes one rule of a chain, by the kernel's number for it.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) -> &mut Self {
        let what = format!("delete rule {handle} of chain {chain}");
        let message = self.push_in(Operation::DeleteRule, 0, RULE_TABLE, what);
        message.text(RULE_CHAIN, chain).be64(RULE_HANDLE, handle);
        self
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) -> &mut Self {
        let flags = flag::CREATE | flag::APPEND;
        let message = self.push_in(
            Operation::NewRule,
            flags,
            RULE_TABLE,
            format!("add rule to chain {chain}"),
        );
        message.text(RULE_CHAIN, chain);
        rule.encode(message);
        self
    }

    /// Adds a set or map, unless it is there.
    pub fn add_set(&mut self, set: &Set) -> &mut Self {
        // An id names a set within the transaction; positions are unique.
        let id = u32::try_from(self.messages.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let what = format!("add set {}", set.name);
        let message = self.push_in(Operation::NewSet, flag::CREATE, SET_TABLE, what);
        set.encode(message, id);
        self
    }

    /// Adds elements to a set or map. A key that is there with other data is refused: delete it first.
    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        self.elements(Operation::NewElement, flag::CREATE, set, elements)
    }

    /// Removes elements, which must be there.
    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        self.elements(Operation::DeleteElement, 0, set, elements)
    }

    fn elements<'a>(
        &mut self,
        operation: Operation,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        let verb = if operation == Operation::NewElement {
            "add elements to"
        } else {
            "delete elements of"
        };
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut count = 0;
            let message = self.push_in(operation, flags, ELEMENTS_TABLE, format!("{verb} {set}"));
            message.text(ELEMENTS_SET, set);
            message.nested(ELEMENTS_LIST, |list| {
                let start = list.len();
                while list.len() - start < ELEMENT_LIST_BYTES {
                    let Some(element) = elements.next() else { break };
                    element.encode(list);
                    count += 1;
                }
            });
            self.elements += count;
        }
        self
    }

    fn push_in(&mut self, operation: Operation, flags: u16, table_kind: u16, what: String) -> &mut Message {
        let table = self.table.name.clone();
        let message = self.push(operation, flags, what);
        message.text(table_kind, &table);
        message
    }

    fn push(&mut self, operation: Operation, flags: u16, what: String) -> &mut Message {
        let message = Message::new(operation.kind(), flags, self.table.family as u8, 0);
        self.messages.push((message, what));
        let (message, _) = self.messages.last_mut().expect("invariant: pushed just now");
        message
    }
}

impl Nft {
    /// Applies a batch: all of it, or nothing and an error that names every message the kernel refused.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.connection.commit(batch)
    }
}

impl Connection for Socket {
    fn port(&self) -> u32 {
        self.port()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        // begin, the messages, end
        let count = u32::try_from(batch.messages.len()).unwrap_or(u32::MAX);
        let first = self.take_sequence(count.saturating_add(2));
        let datagram = encode(batch, first);
        self.send(&datagram).map_err(|source| Error::Send {
            bytes: datagram.len(),
            source,
        })?;
        collect_answers(self, batch, first)
    }

    fn dump(&mut self, request: &Message, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.dump(request, |_, payload| each(body(payload)))
    }
}

/// The kernel works a batch off within `sendmsg`, so that every answer is waiting by now (`nfnetlink_rcv_batch`): errors
/// of single messages, the acknowledgement of the last one, or an error of the batch as a whole under the number of its
/// first message.
fn collect_answers(socket: &mut Socket, batch: &Batch, first: u32) -> Result<(), Error> {
    let last = first.wrapping_add(u32::try_from(batch.messages.len()).unwrap_or(u32::MAX));
    let mut failures = Vec::new();
    let mut acknowledged = false;
    while let Some(datagram) = socket.receive_ready().map_err(Error::Receive)? {
        for (sequence, error) in acknowledgements(datagram) {
            let position = sequence.wrapping_sub(first) as usize;
            acknowledged |= sequence == last;
            let Some(error) = error else { continue };
            let index = position.saturating_sub(1);
            let message = match (position, batch.messages.get(index)) {
                (1.., Some((_, what))) => what.clone(),
                _ => "commit".to_owned(),
            };
            if position <= batch.messages.len() {
                failures.push(Failure {
                    index,
                    message,
                    error,
                });
            }
        }
    }
    match (failures.is_empty(), acknowledged) {
        (false, _) => Err(Error::Refused(failures)),
        (true, true) => Ok(()),
        (true, false) => Err(Error::NoAnswer),
    }
}

fn encode(batch: &Batch, first: u32) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(batch.len_bytes() + 64);
    Message::new(BATCH_BEGIN, 0, 0, SUBSYSTEM).append_to(&mut datagram, first);
    let mut sequence = first;
    for (position, (message, _)) in batch.messages.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        if position + 1 == batch.messages.len() {
            let mut last = message.clone();
            last.add_flags(flag::ACK);
            last.append_to(&mut datagram, sequence);
        } else {
            message.append_to(&mut datagram, sequence);
        }
    }
    Message::new(BATCH_END, 0, 0, SUBSYSTEM).append_to(&mut datagram, sequence.wrapping_add(1));
    datagram
}
