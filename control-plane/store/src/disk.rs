//! The store on disk: one redb file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `events` | (revision, place in the transaction) | `mvccpb.Event` without `prev_kv`; a deletion has only key and revision |
//! | `leases` | lease number | seconds that it was given |
//! | `limited_leases` | lease number | nothing: a client with limited rights asked for it |
//! | `meta` | `cluster`, `member` | the two identities |
//! | | `compacted` | the revision of the last compaction |
//! | | `commits` | how many there were |
//! | | `no_space` | 1 while the alarm is on |
//!
//! One commit is one redb transaction with an fsync; what is committed survives the machine, what is not never happened.
//! Memory holds everything too (see `mvcc`): the file is read only when the store starts.
//!
//! A disk that is full costs nothing that was committed: redb never writes over what a commit needs. It does not go on
//! after an error, so that the file is closed, and opened again for the next try.

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
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableHandle,
};

use crate::mvcc::{Entry, Event, EventId, Grant, Holder, LeaseId, Revision};

const EVENTS: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("events");
const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
const LIMITED_LEASES: TableDefinition<i64, ()> = TableDefinition::new("limited_leases");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// The file's name in the data directory.
const FILE: &str = "store.redb";

/// What a copy's name begins with.
const COPY: &str = "snapshot.redb.";

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
    /// There is no space for what should be written; the file holds what it held before.
    #[error("the disk is full")]
    Full(#[source] io::Error),
    /// The disk refused a commit and has it all the same: what clients were told is not true.
    #[error("a commit that the disk refused is on it")]
    Unclear,
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

/// The file.
#[derive(Debug)]
pub struct Disk {
    /// Closed when the disk was full.
    database: Option<Database>,
    directory: PathBuf,
    path: PathBuf,
    commits: i64,
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
    /// Whether the alarm is on: only what makes no new keys is taken.
    pub no_space: bool,
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
    /// The alarm was raised, or cleared.
    pub no_space: Option<bool>,
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
            no_space,
            compacted,
            stale,
        } = self;
        let nothing_written = events.is_empty() && leases.is_empty() && stale.is_empty();
        nothing_written && no_space.is_none() && compacted.is_none()
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
        remove_copies(directory);
        let mut disk = Self {
            database: None,
            directory: directory.to_owned(),
            path: directory.join(FILE),
            commits: 0,
        };
        let database = disk.open_file()?;
        if !is_prepared(&database).map_err(accessing("read"))? {
            prepare(&database).map_err(accessing("prepare"))?;
        }
        disk.commits = read_commits(&database).map_err(accessing("read"))?;
        let contents = contents(&database)?;
        disk.database = Some(database);
        Ok((disk, contents))
    }

    fn open_file(&self) -> Result<Database, Error> {
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&self.path)
            .map_err(|source| match source {
                DatabaseError::DatabaseAlreadyOpen => Error::InUse {
                    path: self.directory.clone(),
                },
                DatabaseError::Storage(StorageError::Io(source)) if is_full(&source) => Error::Full(source),
                source => Error::Open {
                    path: self.path.clone(),
                    source,
                },
            })
    }

    /// Whether the file is open; it is not after the disk was full.
    pub fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Opens the file again after the disk was full, and makes sure that it holds the last commit that succeeded.
    pub fn reopen(&mut self) -> Result<(), Error> {
        let database = self.open_file()?;
        let commits = read_commits(&database).map_err(accessing("read"))?;
        if commits != self.commits {
            return Err(Error::Unclear);
        }
        self.database = Some(database);
        Ok(())
    }

    /// Makes the changes durable, all or none.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), Error> {
        let number = self.commits + 1;
        self.access("write", |database| write(database, changes, number))?;
        self.commits = number;
        Ok(())
    }

    /// Gives free pages back to the file system.
    pub fn defragment(&mut self) -> Result<(), Error> {
        self.access("defragment", |database| Ok(database.compact().map(drop)?))
    }

    fn access(
        &mut self,
        operation: &'static str,
        access: impl FnOnce(&mut Database) -> Result<(), redb::Error>,
    ) -> Result<(), Error> {
        let Some(database) = &mut self.database else {
            return Err(Error::Full(io::ErrorKind::StorageFull.into()));
        };
        let done = access(database).map_err(accessing(operation));
        if done.is_err() {
            self.database = None;
        }
        done
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes that the file takes.
    pub fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

/// A copy's name: beside the file, with a number.
pub fn copy_name(number: u64) -> String {
    format!("{COPY}{number}")
}

/// Copies that a crash left behind. They are in nobody's way but for their size.
fn remove_copies(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(COPY)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove the copy of a snapshot");
        }
    }
}

/// Makes a file of its own that a store can start from.
pub fn write_copy(path: &Path, contents: &Contents) -> Result<(), Error> {
    let copy = Database::builder().create(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })?;
    let changes = Changes {
        events: contents.events.clone(),
        leases: contents
            .leases
            .iter()
            .map(|(id, grant)| (*id, Some(*grant)))
            .collect(),
        compacted: contents.compacted,
        ..Changes::default()
    };
    let write_all = || {
        prepare(&copy)?;
        write(&copy, &changes, 1)?;
        let write = copy.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert("cluster", contents.cluster_id.cast_signed())?;
            meta.insert("member", contents.member_id.cast_signed())?;
        }
        Ok(write.commit()?)
    };
    write_all().map_err(accessing("copy"))
}

fn is_prepared(database: &Database) -> Result<bool, redb::Error> {
    let read = database.begin_read()?;
    let found: Vec<String> = read.list_tables()?.map(|table| table.name().to_owned()).collect();
    let wanted = [EVENTS.name(), LEASES.name(), LIMITED_LEASES.name(), META.name()];
    Ok(wanted.iter().all(|name| found.iter().any(|found| found == name)))
}

/// Makes the tables and the identities.
fn prepare(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
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

fn read_commits(database: &Database) -> Result<i64, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get("commits")?.map_or(0, |commits| commits.value()))
}

fn contents(database: &Database) -> Result<Contents, Error> {
    let (events, contents) = read(database).map_err(accessing("read"))?;
    let events = events.into_iter().collect::<Result<_, _>>()?;
    Ok(Contents { events, ..contents })
}

/// The events apart from the rest, since each can be damaged.
fn read(database: &Database) -> Result<(DecodedEvents, Contents), redb::Error> {
    let read = database.begin_read()?;
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
        no_space: number("no_space")? == Some(1),
        events: Vec::new(),
        leases,
    };
    Ok((events, contents))
}

fn write(database: &Database, changes: &Changes, number: i64) -> Result<(), redb::Error> {
    let Changes {
        events,
        leases,
        no_space,
        compacted,
        stale,
    } = changes;
    let write = database.begin_write()?;
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
        let mut meta = write.open_table(META)?;
        meta.insert("commits", number)?;
        if let Some(revision) = compacted {
            meta.insert("compacted", revision)?;
        }
        if let Some(alarm) = no_space {
            meta.insert("no_space", i64::from(*alarm))?;
        }
    }
    write.commit()?;
    Ok(())
}

fn accessing(operation: &'static str) -> impl FnOnce(redb::Error) -> Error {
    move |source| match source {
        redb::Error::Io(source) if is_full(&source) => Error::Full(source),
        source => Error::Access { operation, source },
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
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
