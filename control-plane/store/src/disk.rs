//! The store on disk: one redb file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `events` | (revision, place in the transaction) | `mvccpb.Event` without `prev_kv`; a deletion has only key and revision |
//! | `leases` | lease number | seconds that it was given |
//! | `limited_leases` | lease number | nothing: a client with limited rights asked for it |
//! | `meta` | `cluster`, `member`, `compacted` | the two identities, the revision of the last compaction |
//!
//! One commit is one redb transaction with an fsync; what is committed survives the machine, what is not never happened.
//! Memory holds everything too (see `mvcc`): the file is read only when the store starts.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use etcd_client::{
    EventType,
    proto::{PbEvent, PbKeyValue},
};
use prost::Message;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::mvcc::{Entry, Event, EventId, Grant, Holder, LeaseId, Revision};

const EVENTS: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("events");
const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
const LIMITED_LEASES: TableDefinition<i64, ()> = TableDefinition::new("limited_leases");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// The file is read once, from front to back, and written at its end: a large page cache would only copy what the
/// key space holds in memory.
const CACHE_BYTES: usize = 64 << 20;

/// Events as they were read.
type DecodedEvents = Vec<Result<Event, Error>>;

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made.
    #[error("cannot make the data directory {path}")]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process (or another store in this one) has the directory open.
    #[error("the data directory {path} is in use by another store")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// Reading, writing or syncing failed.
    #[error("cannot {operation} the store's file")]
    Access {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: redb::Error,
    },
    /// A row cannot be understood.
    #[error("the event {revision}/{sub} on disk is damaged")]
    DamagedEvent {
        /// Its revision.
        revision: Revision,
        /// Its place in it.
        sub: u32,
        /// How.
        #[source]
        source: prost::DecodeError,
    },
}

/// The open file.
#[derive(Debug)]
pub struct Disk {
    database: Database,
    path: PathBuf,
}

/// What the file held when it was opened.
#[derive(Debug)]
pub struct Contents {
    /// The number of the cluster, drawn when the store was made.
    pub cluster_id: u64,
    /// The number of its one member, drawn when the store was made.
    pub member_id: u64,
    /// The revision of the last compaction.
    pub compacted: Option<Revision>,
    /// All events, in order.
    pub events: Vec<Event>,
    /// All leases, with what each was given.
    pub leases: Vec<(LeaseId, Grant)>,
}

/// What one commit changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Events to add.
    pub events: Vec<Event>,
    /// Leases granted, and leases that ended, in order.
    pub leases: Vec<(LeaseId, Option<Grant>)>,
    /// A compaction.
    pub compacted: Option<Revision>,
    /// Events that a compaction made superfluous.
    pub stale: Vec<EventId>,
}

impl Changes {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        let Self {
            events,
            leases,
            compacted,
            stale,
        } = self;
        events.is_empty() && leases.is_empty() && compacted.is_none() && stale.is_empty()
    }
}

impl Disk {
    /// Opens the file in `directory`, makes both if they are not there, and reads everything.
    pub fn open(directory: &Path) -> Result<(Self, Contents), Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| Error::MakeDirectory {
                path: directory.to_owned(),
                source,
            })?;
        let path = directory.join("store.redb");
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|source| match source {
                DatabaseError::DatabaseAlreadyOpen => Error::InUse {
                    path: directory.to_owned(),
                },
                source => Error::Open {
                    path: path.clone(),
                    source,
                },
            })?;
        let disk = Self { database, path };
        disk.prepare().map_err(accessing("prepare"))?;
        let contents = disk.contents()?;
        Ok((disk, contents))
    }

    /// Makes the tables and the identities.
    fn prepare(&self) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            write.open_table(EVENTS)?;
            write.open_table(LEASES)?;
            write.open_table(LIMITED_LEASES)?;
            let mut meta = write.open_table(META)?;
            for identity in ["cluster", "member"] {
                if meta.get(identity)?.is_none() {
                    meta.insert(identity, rand::random_range(1..i64::MAX))?;
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    fn contents(&self) -> Result<Contents, Error> {
        let (events, contents) = self.read().map_err(accessing("read"))?;
        let events = events.into_iter().collect::<Result<_, _>>()?;
        Ok(Contents { events, ..contents })
    }

    /// The events apart from the rest, since each can be damaged.
    fn read(&self) -> Result<(DecodedEvents, Contents), redb::Error> {
        let read = self.database.begin_read()?;
        let mut events = Vec::new();
        for row in read.open_table(EVENTS)?.iter()? {
            let (id, bytes) = row?;
            let (revision, sub) = id.value();
            events.push(decode(EventId { revision, sub }, bytes.value()));
        }
        let mut leases = Vec::new();
        let limited = read.open_table(LIMITED_LEASES)?;
        for row in read.open_table(LEASES)?.iter()? {
            let (id, seconds) = row?;
            let holder = match limited.get(id.value())? {
                Some(_) => Holder::Limited,
                None => Holder::Administrator,
            };
            let grant = Grant {
                seconds: seconds.value(),
                holder,
            };
            leases.extend(LeaseId::from_protocol(id.value()).map(|id| (id, grant)));
        }
        let meta = read.open_table(META)?;
        let number = |name| meta.get(name).map(|found| found.map(|guard| guard.value()));
        let identity = |name| number(name).map(|found| found.map_or(1, i64::cast_unsigned));
        let contents = Contents {
            cluster_id: identity("cluster")?,
            member_id: identity("member")?,
            compacted: number("compacted")?,
            events: Vec::new(),
            leases,
        };
        Ok((events, contents))
    }

    /// Makes the changes durable, all or none.
    pub fn commit(&self, changes: &Changes) -> Result<(), Error> {
        self.write(changes).map_err(accessing("write"))
    }

    fn write(&self, changes: &Changes) -> Result<(), redb::Error> {
        let Changes {
            events,
            leases,
            compacted,
            stale,
        } = changes;
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(EVENTS)?;
            for event in events {
                table.insert((event.id.revision, event.id.sub), encode(event).as_slice())?;
            }
            for id in stale {
                table.remove((id.revision, id.sub))?;
            }
            let mut table = write.open_table(LEASES)?;
            let mut limited = write.open_table(LIMITED_LEASES)?;
            for (id, granted) in leases {
                match granted {
                    Some(grant) => {
                        table.insert(id.get(), grant.seconds)?;
                        if grant.holder == Holder::Limited {
                            limited.insert(id.get(), ())?;
                        }
                    }
                    None => {
                        table.remove(id.get())?;
                        limited.remove(id.get())?;
                    }
                }
            }
            if let Some(revision) = compacted {
                write.open_table(META)?.insert("compacted", revision)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Gives free pages back to the file system.
    pub fn defragment(&mut self) -> Result<(), Error> {
        self.database
            .compact()
            .map(drop)
            .map_err(|source| accessing("defragment")(source.into()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn accessing(operation: &'static str) -> impl FnOnce(redb::Error) -> Error {
    move |source| Error::Access { operation, source }
}

fn encode(event: &Event) -> Vec<u8> {
    let (kind, kv) = match &event.entry {
        Some(entry) => (EventType::Put, key_value(entry)),
        None => (EventType::Delete, tombstone(event)),
    };
    PbEvent {
        r#type: kind as i32,
        kv: Some(kv),
        prev_kv: None,
    }
    .encode_to_vec()
}

fn decode(id: EventId, bytes: &[u8]) -> Result<Event, Error> {
    let event = PbEvent::decode(bytes).map_err(|source| Error::DamagedEvent {
        revision: id.revision,
        sub: id.sub,
        source,
    })?;
    let PbEvent {
        r#type,
        kv,
        prev_kv: _,
    } = event;
    let PbKeyValue {
        key,
        create_revision,
        mod_revision,
        version,
        value,
        lease,
    } = kv.unwrap_or_default();
    let (key, lease) = (bytes::Bytes::from(key), LeaseId::from_protocol(lease));
    let entry = (r#type == EventType::Put as i32).then(|| {
        let (key, value) = (key.clone(), value.into());
        Arc::new(Entry {
            key,
            value,
            create_revision,
            mod_revision,
            version,
            lease,
        })
    });
    Ok(Event { id, key, entry })
}

/// An entry as the protocol writes it.
pub fn key_value(entry: &Entry) -> PbKeyValue {
    let Entry {
        key,
        value,
        create_revision,
        mod_revision,
        version,
        lease,
    } = entry;
    PbKeyValue {
        key: key.to_vec(),
        value: value.to_vec(),
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        version: *version,
        lease: lease.map_or(0, LeaseId::get),
    }
}

/// A deletion as the protocol writes it: the key, and the revision that deleted it.
pub fn tombstone(event: &Event) -> PbKeyValue {
    PbKeyValue {
        key: event.key.to_vec(),
        mod_revision: event.id.revision,
        ..PbKeyValue::default()
    }
}
