//! The little language of the rows, and its execution. One operation a line; words in brackets may be left out:
//!
//! ```text
//! put KEY VALUE [prev] [keep-value] [keep-lease] [lease=NAME]
//! get KEY [RANGE] [rev=R] [limit=N] [keys] [count] [sort=FIELD:asc|desc|none] [minmod=R] [maxmod=R] [mincreate=R] [maxcreate=R]
//! del KEY [RANGE] [prev]
//! txn { COMPARE ; … } { OP ; … } { OP ; … }         COMPARE = FIELD KEY [RANGE] =|!=|>|< GIVEN
//! compact R [physical]
//! grant NAME SECONDS [id=N]      revoke NAME      ttl NAME [keys]      keepalive NAME      leases
//! watch NAME KEY [RANGE] [rev=R] [prev] [noput] [nodelete] [fragment] [id=N] [on=NAME]
//! status      members      snapshot      defragment      hash R      alarm [raise|clear]      users
//! lock NAME [lease=L]      locked NAME      give-up NAME      unlock KEY
//! campaign NAME VALUE [lease=L]      elected NAME      proclaim KEY VALUE      resign KEY      leader NAME
//! observe NAME      next-leader NAME
//! events NAME COUNT      until NAME KEY      response NAME      progress NAME      cancel NAME ID
//! ```
//! RANGE = `prefix`, `from`, or `end=KEY`. R = `+N`, counted from the revision at which the row began, or a number.
//! `lock` and `campaign` wait in the background for their turn. KEY or VALUE `-` is empty, VALUE `@N` has N bytes. A
//! lease that was not granted is given by its number.

mod queue;

use std::{collections::HashMap, iter::Peekable, str::SplitWhitespace, time::Duration};

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, Compare, CompareOp, DeleteOptions,
    Error, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, WatchFilterType, WatchOptions, WatchStream,
    proto::{PbEvent, PbWatchResponse},
};

use crate::transcript::Transcript;
use queue::Queues;

/// What is expected to come comes within this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

type Words<'a> = Peekable<SplitWhitespace<'a>>;

/// One row on one server, from an empty key space.
pub struct Session<'a> {
    client: &'a mut Client,
    leases: HashMap<String, i64>,
    watches: HashMap<String, WatchStream>,
    queues: Queues,
    transcript: Transcript,
}

enum Operation {
    Put(Vec<u8>, Vec<u8>, PutOptions),
    Get(Vec<u8>, GetOptions),
    Delete(Vec<u8>, DeleteOptions),
    Txn(Txn),
}

impl<'a> Session<'a> {
    /// Clears the server.
    pub async fn start(client: &'a mut Client) -> Self {
        for lease in client.leases().await.expect("list the leases").leases() {
            client.lease_revoke(lease.id()).await.expect("revoke a lease");
        }
        let everything = DeleteOptions::new().with_all_keys();
        let cleared = client
            .delete("", Some(everything))
            .await
            .expect("delete all keys");
        let base = cleared.header().expect("a header").revision();
        Self {
            client,
            leases: HashMap::new(),
            watches: HashMap::new(),
            queues: Queues::default(),
            transcript: Transcript::new(base),
        }
    }

    /// Runs the script and returns what came of it, in words that do not depend on the server.
    pub async fn run(mut self, script: &str) -> String {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace().peekable();
            let verb = words.next().expect("a verb");
            if let Err(error) = self.step(verb, &mut words).await {
                self.transcript.error(&error);
            }
            assert_eq!(words.next(), None, "a word too many in {line:?}");
        }
        self.transcript.finish()
    }

    async fn step(&mut self, verb: &str, words: &mut Words<'_>) -> Result<(), Error> {
        match verb {
            "put" | "get" | "del" | "txn" => {
                let operation = self.operation(verb, words);
                self.execute(operation).await
            }
            "compact" => {
                let revision = self.revision(words.next().expect("a revision"));
                let options = CompactionOptions::new();
                let options = if flag(words, "physical") {
                    options.with_physical()
                } else {
                    options
                };
                let response = self.client.compact(revision, Some(options)).await?;
                self.transcript.compacted(&response.0);
                Ok(())
            }
            "grant" | "revoke" | "ttl" | "keepalive" | "leases" => self.lease_step(verb, words).await,
            "status" | "members" | "snapshot" | "defragment" | "hash" | "alarm" | "users" => {
                self.maintenance_step(verb, words).await
            }
            "watch" | "events" | "until" | "response" | "progress" | "cancel" => {
                self.watch_step(verb, words).await
            }
            _ => self.queue_step(verb, words).await,
        }
    }

    async fn execute(&mut self, operation: Operation) -> Result<(), Error> {
        match operation {
            Operation::Put(key, value, options) => {
                let response = self.client.put(key, value, Some(options)).await?;
                self.transcript.put(&response.0);
            }
            Operation::Get(key, options) => {
                let response = self.client.get(key, Some(options)).await?;
                self.transcript.range(&response.0);
            }
            Operation::Delete(key, options) => {
                let response = self.client.delete(key, Some(options)).await?;
                self.transcript.delete(&response.0);
            }
            Operation::Txn(txn) => {
                let response = self.client.txn(txn).await?;
                self.transcript.txn(&response.0);
            }
        }
        Ok(())
    }

    async fn lease_step(&mut self, verb: &str, words: &mut Words<'_>) -> Result<(), Error> {
        if verb == "leases" {
            let found = self.client.leases().await?;
            self.transcript
                .leases(found.leases().iter().map(|lease| lease.id()));
            return Ok(());
        }
        let name = words.next().expect("a lease's name").to_owned();
        match verb {
            "grant" => {
                let seconds = words.next().and_then(|word| word.parse().ok()).expect("seconds");
                let options = argument(words, "id").map(|id| LeaseGrantOptions::new().with_id(number(id)));
                let granted = self.client.lease_grant(seconds, options).await?;
                self.leases.insert(name.clone(), granted.id());
                self.transcript.granted(&name, &granted.0);
            }
            "revoke" => {
                let revoked = self.client.lease_revoke(self.lease(&name)).await?;
                self.transcript.revoked(&revoked.0);
            }
            "ttl" => {
                let options = flag(words, "keys").then(|| LeaseTimeToLiveOptions::new().with_keys());
                let found = self.client.lease_time_to_live(self.lease(&name), options).await?;
                self.transcript.time_to_live(&found.0);
            }
            _ => {
                let id = self.lease(&name);
                let (mut keeper, mut stream) = self.client.lease_keep_alive(id).await?;
                keeper.keep_alive().await?;
                let renewed = stream.message().await?.expect("an answer");
                self.transcript.renewed(&renewed.0);
            }
        }
        Ok(())
    }

    async fn maintenance_step(&mut self, verb: &str, words: &mut Words<'_>) -> Result<(), Error> {
        match verb {
            "status" => {
                let status = self.client.status().await?;
                self.transcript.status(&status.0);
            }
            "members" => {
                let members = self.client.member_list().await?;
                self.transcript.members(&members.0);
            }
            "snapshot" => {
                let mut stream = self.client.snapshot().await?;
                let mut bytes = 0;
                while let Some(part) = stream.message().await? {
                    bytes += part.blob().len();
                }
                self.transcript.snapshot(bytes);
            }
            "defragment" => {
                self.client.defragment().await?;
                self.transcript.say("defragmented");
            }
            "hash" => {
                let revision = self.revision(words.next().expect("a revision"));
                let hash = self.client.hash_kv(revision).await?;
                let again = self.client.hash_kv(revision).await?;
                self.transcript.hash(&hash.0, &again.0);
            }
            "alarm" => {
                let member = self.client.member_list().await?.members()[0].id();
                let mut options = AlarmOptions::new();
                options.with_member(member);
                let (action, kind) = match words.next() {
                    Some("raise") => (AlarmAction::Activate, AlarmType::Nospace),
                    Some("clear") => (AlarmAction::Deactivate, AlarmType::Nospace),
                    _ => (AlarmAction::Get, AlarmType::None),
                };
                let told = self.client.alarm(action, kind, Some(options)).await?;
                self.transcript.alarms(&told.0, member);
            }
            _ => {
                self.client.user_list().await?;
                self.transcript.say("users");
            }
        }
        Ok(())
    }

    async fn watch_step(&mut self, verb: &str, words: &mut Words<'_>) -> Result<(), Error> {
        let name = words.next().expect("a watch's name").to_owned();
        match verb {
            "watch" => return self.watch(name, words).await,
            "events" => {
                let count = words.next().and_then(|word| word.parse().ok()).expect("a count");
                let mut events = Vec::new();
                while events.len() < count {
                    let response = self.next_response(&name).await?;
                    assert!(!response.canceled, "cancelled: {response:?}");
                    events.extend(
                        response
                            .events
                            .into_iter()
                            .map(|event| (response.watch_id, event)),
                    );
                }
                self.transcript.events(events);
            }
            "until" => {
                let key = bytes(words.next().expect("a key"));
                let is_it = |event: &PbEvent| event.kv.as_ref().is_some_and(|kv| kv.key == key);
                let mut events: Vec<(i64, PbEvent)> = Vec::new();
                while !events.last().is_some_and(|(_, event)| is_it(event)) {
                    let response = self.next_response(&name).await?;
                    events.extend(
                        response
                            .events
                            .into_iter()
                            .map(|event| (response.watch_id, event)),
                    );
                }
                self.transcript.events(events);
            }
            "response" => {
                let response = self.next_response(&name).await?;
                self.transcript.watch_response(&response);
            }
            "progress" => {
                self.stream(&name).request_progress().await?;
                let response = self.next_response(&name).await?;
                self.transcript.watch_response(&response);
            }
            _ => {
                let id = number(words.next().expect("a watch's number"));
                self.stream(&name).cancel(id).await?;
            }
        }
        Ok(())
    }

    async fn watch(&mut self, name: String, words: &mut Words<'_>) -> Result<(), Error> {
        let key = bytes(words.next().expect("a key"));
        let mut options = WatchOptions::new();
        let mut stream = name.clone();
        for word in words.by_ref() {
            options = match word.split_once('=').unwrap_or((word, "")) {
                ("prefix", _) => options.with_prefix(),
                ("from", _) => options.with_from_key(),
                ("end", end) => options.with_range(bytes(end)),
                ("rev", revision) => options.with_start_revision(self.revision(revision)),
                ("prev", _) => options.with_prev_key(),
                ("noput", _) => options.with_filters([WatchFilterType::NoPut]),
                ("nodelete", _) => options.with_filters([WatchFilterType::NoDelete]),
                ("fragment", _) => options.with_fragment(),
                ("id", id) => options.with_watch_id(number(id)),
                ("on", other) => {
                    other.clone_into(&mut stream);
                    options
                }
                other => panic!("no such word: {other:?}"),
            };
        }
        match self.watches.get_mut(&stream) {
            Some(stream) => stream.watch(key, Some(options)).await?,
            None => {
                let opened = self.client.watch(key, Some(options)).await?;
                self.watches.insert(stream.clone(), opened);
            }
        }
        let response = self.next_response(&stream).await?;
        self.transcript.watch_response(&response);
        Ok(())
    }

    async fn next_response(&mut self, name: &str) -> Result<PbWatchResponse, Error> {
        let silence = |_| Error::WatchError(format!("nothing came to {name} in time"));
        let message = tokio::time::timeout(ANSWER_LIMIT, self.stream(name).message())
            .await
            .map_err(silence)?;
        Ok(message?.expect("an open stream").0)
    }

    fn stream(&mut self, name: &str) -> &mut WatchStream {
        self.watches.get_mut(name).expect("a watch that was opened")
    }

    fn operation(&self, verb: &str, words: &mut Words<'_>) -> Operation {
        match verb {
            "put" => self.put(words),
            "get" => self.get(words),
            "del" => {
                let key = bytes(words.next().expect("a key"));
                let mut options = DeleteOptions::new();
                while let Some((name, value)) = option(words) {
                    options = match name {
                        "prefix" => options.with_prefix(),
                        "from" => options.with_from_key(),
                        "end" => options.with_range(bytes(value)),
                        "prev" => options.with_prev_key(),
                        other => panic!("no such word: {other}"),
                    };
                }
                Operation::Delete(key, options)
            }
            "txn" => Operation::Txn(self.txn(words)),
            other => panic!("no such operation: {other}"),
        }
    }

    fn put(&self, words: &mut Words<'_>) -> Operation {
        let key = bytes(words.next().expect("a key"));
        let value = bytes(words.next().expect("a value"));
        let mut options = PutOptions::new();
        while let Some((name, value)) = option(words) {
            options = match name {
                "prev" => options.with_prev_key(),
                "keep-value" => options.with_ignore_value(),
                "keep-lease" => options.with_ignore_lease(),
                "lease" => options.with_lease(self.lease(value)),
                other => panic!("no such word: {other}"),
            };
        }
        Operation::Put(key, value, options)
    }

    fn get(&self, words: &mut Words<'_>) -> Operation {
        let key = bytes(words.next().expect("a key"));
        let mut options = GetOptions::new();
        while let Some((name, value)) = option(words) {
            options = match name {
                "prefix" => options.with_prefix(),
                "from" => options.with_from_key(),
                "end" => options.with_range(bytes(value)),
                "rev" => options.with_revision(self.revision(value)),
                "limit" => options.with_limit(number(value)),
                "keys" => options.with_keys_only(),
                "count" => options.with_count_only(),
                "minmod" => options.with_min_mod_revision(self.revision(value)),
                "maxmod" => options.with_max_mod_revision(self.revision(value)),
                "mincreate" => options.with_min_create_revision(self.revision(value)),
                "maxcreate" => options.with_max_create_revision(self.revision(value)),
                "sort" => sorted(options, value),
                other => panic!("no such word: {other}"),
            };
        }
        Operation::Get(key, options)
    }

    fn txn(&self, words: &mut Words<'_>) -> Txn {
        let mut compares = Vec::new();
        in_braces(words, |words| compares.push(self.compare(words)));
        let [mut success, mut failure] = [Vec::new(), Vec::new()];
        in_braces(words, |words| success.push(self.txn_op(words)));
        in_braces(words, |words| failure.push(self.txn_op(words)));
        Txn::new().when(compares).and_then(success).or_else(failure)
    }

    fn txn_op(&self, words: &mut Words<'_>) -> TxnOp {
        let verb = words.next().expect("an operation");
        match self.operation(verb, words) {
            Operation::Put(key, value, options) => TxnOp::put(key, value, Some(options)),
            Operation::Get(key, options) => TxnOp::get(key, Some(options)),
            Operation::Delete(key, options) => TxnOp::delete(key, Some(options)),
            Operation::Txn(txn) => TxnOp::txn(txn),
        }
    }

    fn compare(&self, words: &mut Words<'_>) -> Compare {
        let field = words.next().expect("a field");
        let key = bytes(words.next().expect("a key"));
        let range = words.next_if(|word| *word == "prefix" || word.starts_with("end="));
        let relation = match words.next() {
            Some("=") => CompareOp::Equal,
            Some("!=") => CompareOp::NotEqual,
            Some(">") => CompareOp::Greater,
            Some("<") => CompareOp::Less,
            other => panic!("no such relation: {other:?}"),
        };
        let given = words.next().expect("a given value");
        let compare = match field {
            "version" => Compare::version(key, relation, number(given)),
            "create" => Compare::create_revision(key, relation, self.revision(given)),
            "mod" => Compare::mod_revision(key, relation, self.revision(given)),
            "value" => Compare::value(key, relation, bytes(given)),
            "lease" => Compare::lease(key, relation, self.lease(given)),
            other => panic!("no such field: {other}"),
        };
        match range.map(|word| word.trim_start_matches("end=")) {
            None => compare,
            Some("prefix") => compare.with_prefix(),
            Some(end) => compare.with_range(bytes(end)),
        }
    }

    fn revision(&self, word: &str) -> i64 {
        word.strip_prefix('+')
            .map_or_else(|| number(word), |offset| self.transcript.base() + number(offset))
    }

    fn lease(&self, name: &str) -> i64 {
        self.leases.get(name).copied().unwrap_or_else(|| number(name))
    }
}

/// `{ item ; item }`, which may be empty.
fn in_braces<'a>(words: &mut Words<'a>, mut item: impl FnMut(&mut Words<'a>)) {
    assert_eq!(words.next(), Some("{"), "an opening brace");
    while words.next_if(|word| *word == "}").is_none() {
        item(words);
        words.next_if(|word| *word == ";");
    }
}

/// The next word as name and value, if the operation goes on.
fn option<'a>(words: &mut Words<'a>) -> Option<(&'a str, &'a str)> {
    let word = words.next_if(|word| !matches!(*word, ";" | "}"))?;
    Some(word.split_once('=').unwrap_or((word, "")))
}

fn flag(words: &mut Words<'_>, name: &str) -> bool {
    words.next_if(|word| *word == name).is_some()
}

fn argument<'a>(words: &mut Words<'a>, name: &str) -> Option<&'a str> {
    let is_it = |word: &&str| word.split_once('=').is_some_and(|(found, _)| found == name);
    words.next_if(is_it)?.split_once('=').map(|(_, value)| value)
}

fn sorted(options: GetOptions, words: &str) -> GetOptions {
    let (field, order) = words.split_once(':').expect("FIELD:ORDER");
    let target = match field {
        "key" => SortTarget::Key,
        "version" => SortTarget::Version,
        "create" => SortTarget::Create,
        "mod" => SortTarget::Mod,
        "value" => SortTarget::Value,
        other => panic!("no such field: {other}"),
    };
    let order = match order {
        "asc" => SortOrder::Ascend,
        "desc" => SortOrder::Descend,
        "none" => SortOrder::None,
        other => panic!("no such order: {other}"),
    };
    options.with_sort(target, order)
}

fn number(word: &str) -> i64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

fn bytes(word: &str) -> Vec<u8> {
    match word.strip_prefix('@') {
        Some(length) => vec![b'x'; usize::try_from(number(length)).expect("a length")],
        None if word == "-" => Vec::new(),
        None => word.into(),
    }
}
