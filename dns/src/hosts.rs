//! The `hosts` plugin: names of a file like `/etc/hosts` (hosts(5)) and of lines in the Corefile.
//!
//! ```text
//! question ─► within the zones? ─► exact name, else `*` in place of its first label ─► addresses
//!          └► PTR ─► the address it spells ─► names
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::answer::{Owner, Section, Writer};
use crate::kubernetes::Shape;
use crate::name::Name;
use crate::question::{Query, rcode, rtype};
use crate::zone::grammar::reversed_address;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file. Default `/etc/hosts`; one that was never read is one without lines.
    pub file: PathBuf,
    /// The zones that are answered. Default: those of the server block.
    pub zones: Vec<Name>,
    /// Lines of the Corefile, in its order.
    pub inline: Vec<Entry>,
    /// TTL of every record, in seconds, 1 to 65535. Default 3600.
    pub ttl: u32,
    /// Whether addresses lead back to names. Default: they do.
    pub reverse: bool,
    /// How often the file is looked at; zero = never again. Default 5 s.
    pub reload: Duration,
    /// For which names the next plugin is asked where this one knows nothing.
    pub fallthrough: Vec<Name>,
}

/// One line: an address and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub address: IpAddr,
    /// Its names; the first label may be `*`.
    pub names: Vec<Name>,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is written.
    Answered,
    /// The next plugin is to be asked.
    NotOurs,
}

/// The addresses of one name, in the order of the lines.
#[derive(Debug, Default)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

/// Names and addresses.
#[derive(Debug, Default)]
struct Table {
    names: HashMap<Name, Addresses>,
    addresses: HashMap<IpAddr, Vec<Name>>,
}

/// The plugin of one server block.
#[derive(Debug)]
pub struct Hosts {
    options: Options,
    table: ArcSwap<Table>,
    /// When the file was read, in seconds since 1970.
    loaded_at: AtomicU64,
    /// What the file was the last time that it was to be read, or why it could not be.
    seen: Mutex<Result<Stamp, String>>,
    /// Times that the file could not be read.
    pub failed: AtomicU64,
}

/// By what one sees that a file changed.
type Stamp = (SystemTime, u64);

impl Hosts {
    /// Reads the file.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let hosts = Self {
            options,
            table: ArcSwap::default(),
            loaded_at: AtomicU64::new(0),
            seen: Mutex::new(Err(String::new())),
            failed: AtomicU64::new(0),
        };
        hosts.fill("");
        if let Err(reason) = hosts.load() {
            hosts.note_failure(&reason);
        }
        hosts
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How many addresses of names there are.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        let table = self.table.load();
        let counts = table.names.values().map(|found| found.v4.len() + found.v6.len());
        counts.sum()
    }

    /// When the file was last read, in seconds since 1970.
    #[must_use]
    pub fn loaded_at(&self) -> u64 {
        self.loaded_at.load(Ordering::Relaxed)
    }

    /// Answers a query, or leaves it to the next plugin. A name that is not there is a SERVFAIL without
    /// `fallthrough`, as from CoreDNS: no zone's SOA stands behind a denial.
    pub fn answer(&self, query: &Query<'_>, shape: Shape, out: &mut Vec<u8>) -> Verdict {
        let table = self.table.load();
        if query.qtype == rtype::PTR
            && let Some(address) = reversed_address(query)
        {
            return self.answer_reverse(table.addresses.get(&address), query, shape, out);
        }
        if !query.is_within(&self.options.zones) {
            return Verdict::NotOurs;
        }
        let Some(found) = table.find(query) else {
            return self.deny(query, out);
        };
        let mut writer = Writer::start(out, query, shape.limit);
        let add = |writer: &mut Writer<'_, '_>, address| {
            writer.address(Section::Answer, Owner::QUESTION, address, self.options.ttl)
        };
        match query.qtype {
            rtype::A => found.v4.iter().all(|v4| add(&mut writer, (*v4).into())),
            rtype::AAAA => found.v6.iter().all(|v6| add(&mut writer, (*v6).into())),
            _ => true,
        };
        writer.finish(rcode::NOERROR, true);
        Verdict::Answered
    }

    /// An address without names is for the next plugin in any case: the reverse zones are not this plugin's own.
    fn answer_reverse(
        &self,
        names: Option<&Vec<Name>>,
        query: &Query<'_>,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let Some(names) = names else {
            return Verdict::NotOurs;
        };
        let mut writer = Writer::start(out, query, shape.limit);
        for name in names {
            writer.name(
                Section::Answer,
                Owner::QUESTION,
                rtype::PTR,
                self.options.ttl,
                name.wire(),
            );
        }
        writer.finish(rcode::NOERROR, true);
        Verdict::Answered
    }

    fn deny(&self, query: &Query<'_>, out: &mut Vec<u8>) -> Verdict {
        if query.is_within(&self.options.fallthrough) {
            return Verdict::NotOurs;
        }
        crate::answer::code_only(out, query, rcode::SERVFAIL);
        Verdict::Answered
    }

    /// Looks at the file every `reload` and reads it where it changed.
    pub async fn follow(self: Arc<Self>) {
        if self.options.reload.is_zero() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(self.options.reload).await;
            let known = self.seen().clone();
            if known.is_ok() && self.stamp().ok() == known.clone().ok() {
                continue;
            }
            let file = self.options.file.display();
            match self.load() {
                Ok(()) => tracing::info!(%file, entries = self.entry_count(), "hosts file read"),
                // That it cannot be read for this reason was told.
                Err(reason) if known.as_ref() == Err(&reason) => {
                    _ = self.failed.fetch_add(1, Ordering::Relaxed)
                }
                Err(reason) => self.note_failure(&reason),
            }
        }
    }

    fn note_failure(&self, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let file = self.options.file.display();
        tracing::warn!(%file, reason, "hosts file not read; what was read of it before stays");
    }

    fn seen(&self) -> MutexGuard<'_, Result<Stamp, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let metadata = std::fs::metadata(&self.options.file)?;
        Ok((metadata.modified()?, metadata.len()))
    }

    /// Reads the file; where that fails, everything stays as it is, and why is returned.
    fn load(&self) -> Result<(), String> {
        // The stamp first: what changes meanwhile is seen the next time.
        let read = self
            .stamp()
            .and_then(|stamp| Ok((stamp, std::fs::read(&self.options.file)?)));
        let (stamp, text) = match read {
            Ok(read) => read,
            Err(error) => {
                let reason = error.to_string();
                *self.seen() = Err(reason.clone());
                return Err(reason);
            }
        };
        self.fill(&String::from_utf8_lossy(&text));
        *self.seen() = Ok(stamp);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.loaded_at.store(now.as_secs(), Ordering::Relaxed);
        Ok(())
    }

    /// Answers from these lines and those of the Corefile.
    fn fill(&self, text: &str) {
        let mut table = Table::default();
        for entry in parse(text).chain(self.options.inline.iter().cloned()) {
            table.add(entry, self.options.reverse);
        }
        self.table.store(Arc::new(table));
    }
}

impl Table {
    fn add(&mut self, entry: Entry, reverse: bool) {
        for name in &entry.names {
            let found = self.names.entry(name.clone()).or_default();
            match entry.address {
                IpAddr::V4(v4) if !found.v4.contains(&v4) => found.v4.push(v4),
                IpAddr::V6(v6) if !found.v6.contains(&v6) => found.v6.push(v6),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
        if reverse {
            let names = self.addresses.entry(entry.address).or_default();
            let own = entry.names.into_iter().filter(|name| !is_wildcard(name));
            names.extend(own);
            names.dedup();
            if names.is_empty() {
                self.addresses.remove(&entry.address);
            }
        }
    }

    fn find(&self, query: &Query<'_>) -> Option<&Addresses> {
        let exact = self.names.get(query.name());
        if exact.is_some() || query.label_count() < 2 {
            return exact;
        }
        let mut buffer = [0; crate::name::MAX_NAME];
        let rest = query.suffix(1);
        let wildcard = buffer.get_mut(..rest.len() + 2)?;
        wildcard[..2].copy_from_slice(b"\x01*");
        wildcard[2..].copy_from_slice(rest);
        self.names.get(&*wildcard)
    }
}

fn is_wildcard(name: &Name) -> bool {
    name.wire().starts_with(b"\x01*")
}

/// Reads lines; what is no address, and names that are none, are passed over, as by the C library.
fn parse(text: &str) -> impl Iterator<Item = Entry> {
    text.lines().filter_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let address = words.next()?.split('%').next()?.parse().ok()?;
        let names: Vec<Name> = words.filter_map(|word| Name::parse(word).ok()).collect();
        (!names.is_empty()).then_some(Entry { address, names })
    })
}

#[cfg(test)]
mod tests;
