//! Answers in words that two servers can agree on: revisions counted from the row's beginning, leases by the names that
//! the row gave them, no identities.

use std::{collections::BTreeMap, fmt::Write};

use etcd_client::{
    Error,
    proto::{
        PbAlarmResponse, PbCampaignResponse, PbCompactionResponse, PbDeleteResponse, PbEvent,
        PbHashKvResponse, PbKeyValue, PbLeaderKey, PbLeaderResponse, PbLeaseGrantResponse,
        PbLeaseKeepAliveResponse, PbLeaseRevokeResponse, PbLeaseTimeToLiveResponse, PbLockResponse,
        PbMemberListResponse, PbProclaimResponse, PbPutResponse, PbRangeResponse, PbResignResponse,
        PbResponseHeader, PbStatusResponse, PbTxnOpResponse, PbTxnResponse, PbUnlockResponse,
        PbWatchResponse,
    },
};

/// The words so far.
pub struct Transcript {
    base: i64,
    lease_names: BTreeMap<i64, String>,
    lines: String,
}

impl Transcript {
    pub fn new(base: i64) -> Self {
        Self {
            base,
            lease_names: BTreeMap::new(),
            lines: String::new(),
        }
    }

    /// The revision that revisions are counted from.
    pub fn base(&self) -> i64 {
        self.base
    }

    pub fn finish(self) -> String {
        self.lines
    }

    fn line(&mut self, line: &str) {
        writeln!(self.lines, "{line}").expect("invariant: a string takes every write");
    }

    pub fn error(&mut self, error: &Error) {
        let line = match error {
            Error::GRpcStatus(status) => format!("error {:?}: {}", status.code(), status.message()),
            other => format!("error {other}"),
        };
        self.line(&line);
    }

    pub fn put(&mut self, response: &PbPutResponse) {
        let line = self.put_words(response);
        self.line(&line);
    }

    pub fn range(&mut self, response: &PbRangeResponse) {
        let line = self.range_words(response);
        self.line(&line);
    }

    pub fn delete(&mut self, response: &PbDeleteResponse) {
        let line = self.delete_words(response);
        self.line(&line);
    }

    pub fn txn(&mut self, response: &PbTxnResponse) {
        let line = format!(
            "{} {}",
            self.at(response.header.as_ref()),
            self.txn_words(response)
        );
        self.line(&line);
    }

    pub fn compacted(&mut self, response: &PbCompactionResponse) {
        let line = format!("compacted {}", self.at(response.header.as_ref()));
        self.line(&line);
    }

    pub fn granted(&mut self, name: &str, response: &PbLeaseGrantResponse) {
        self.lease_names.insert(response.id, name.to_owned());
        let line = format!(
            "granted {} {} s {}",
            self.at(response.header.as_ref()),
            response.ttl,
            response.error
        );
        self.line(&line);
    }

    pub fn revoked(&mut self, response: &PbLeaseRevokeResponse) {
        let line = format!("revoked {}", self.at(response.header.as_ref()));
        self.line(&line);
    }

    /// How much remains depends on when it is asked: only whether it does.
    pub fn time_to_live(&mut self, response: &PbLeaseTimeToLiveResponse) {
        let PbLeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl,
            keys,
        } = response;
        let remains = if (0..=*granted_ttl).contains(ttl) {
            "some".to_owned()
        } else {
            ttl.to_string()
        };
        let mut keys: Vec<_> = keys.iter().map(|key| text(key)).collect();
        keys.sort();
        let (at, name) = (self.at(header.as_ref()), self.lease_name(*id));
        self.line(&format!(
            "lease {name} {at} of {granted_ttl} s {remains} keys {keys:?}"
        ));
    }

    pub fn renewed(&mut self, response: &PbLeaseKeepAliveResponse) {
        let line = format!("renewed {} {} s", self.lease_name(response.id), response.ttl);
        self.line(&line);
    }

    pub fn leases(&mut self, ids: impl Iterator<Item = i64>) {
        let mut names: Vec<_> = ids.map(|id| self.lease_name(id)).collect();
        names.sort();
        self.line(&format!("leases {names:?}"));
    }

    pub fn say(&mut self, words: &str) {
        self.line(words);
    }

    /// No sizes, versions and numbers of Raft.
    pub fn status(&mut self, response: &PbStatusResponse) {
        let member = response.header.as_ref().map(|header| header.member_id);
        let errors: Vec<_> = response
            .errors
            .iter()
            .map(|error| error.replace(&member.unwrap_or_default().to_string(), "M"))
            .collect();
        let line = format!(
            "status {} leads {} learns {} {errors:?} data {}",
            self.at(response.header.as_ref()),
            member == Some(response.leader),
            response.is_learner,
            response.db_size > 0,
        );
        self.line(&line);
    }

    pub fn members(&mut self, response: &PbMemberListResponse) {
        for member in &response.members {
            let has_urls = !member.client_ur_ls.is_empty();
            self.line(&format!(
                "member learns {} for clients {has_urls}",
                member.is_learner
            ));
        }
    }

    /// `etcdctl snapshot` takes what has a sum of 32 bytes behind whole sectors.
    pub fn snapshot(&mut self, bytes: usize) {
        self.line(&format!("snapshot with a sum {}", bytes % 512 == 32));
    }

    /// Not the number, which is each server's own.
    pub fn hash(&mut self, response: &PbHashKvResponse, again: &PbHashKvResponse) {
        let line = format!(
            "hash {} compacted {} steady {}",
            self.at(response.header.as_ref()),
            self.revision(response.compact_revision),
            response.hash == again.hash,
        );
        self.line(&line);
    }

    pub fn alarms(&mut self, response: &PbAlarmResponse, member: u64) {
        let told = response.alarms.iter();
        let told: Vec<_> = told
            .map(|alarm| (alarm.member_id == member, alarm.alarm))
            .collect();
        self.line(&format!("alarms {told:?}"));
    }

    /// Sorted by watch, since servers may serve the watches of a stream in any order.
    pub fn events(&mut self, mut events: Vec<(i64, PbEvent)>) {
        events.sort_by_key(|(watch, _)| *watch);
        for (watch, event) in &events {
            let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
            let kv = self.optional(event.kv.as_ref());
            let line = format!(
                "watch {watch}: {kind} {kv} before {}",
                self.optional(event.prev_kv.as_ref())
            );
            self.line(&line);
        }
    }

    /// A response without events.
    pub fn watch_response(&mut self, response: &PbWatchResponse) {
        let PbWatchResponse {
            header,
            watch_id,
            created,
            canceled,
            compact_revision,
            cancel_reason,
            fragment: _,
            events,
        } = response;
        assert!(events.is_empty(), "events where none were expected: {events:?}");
        let mut line = format!("watch {watch_id} {}", self.at(header.as_ref()));
        for (set, word) in [(*created, " created"), (*canceled, " cancelled")] {
            line.push_str(if set { word } else { "" });
        }
        let compacted = self.revision(*compact_revision);
        self.line(&format!("{line} {cancel_reason:?} compacted {compacted}"));
    }

    /// A key of a lease that the row did not grant is each server's own.
    pub fn locked(&mut self, response: &PbLockResponse) {
        let line = format!(
            "locked {} {}",
            self.at(response.header.as_ref()),
            self.queue_key(&response.key)
        );
        self.line(&line);
    }

    pub fn unlocked(&mut self, response: &PbUnlockResponse) {
        let line = format!("unlocked {}", self.at(response.header.as_ref()));
        self.line(&line);
    }

    pub fn elected(&mut self, response: &PbCampaignResponse) {
        let PbCampaignResponse { header, leader } = response;
        let leader = leader.as_ref().map(|leader| {
            let PbLeaderKey {
                name,
                key,
                rev,
                lease,
            } = leader;
            let (name, key, lease) = (text(name), self.queue_key(key), self.lease_name(*lease));
            format!("{name}: {key} {} on {lease}", self.revision(*rev))
        });
        let line = format!("elected {} {leader:?}", self.at(header.as_ref()));
        self.line(&line);
    }

    pub fn proclaimed(&mut self, response: &PbProclaimResponse) {
        let line = format!("proclaimed {}", self.at(response.header.as_ref()));
        self.line(&line);
    }

    pub fn resigned(&mut self, response: &PbResignResponse) {
        let line = format!("resigned {}", self.at(response.header.as_ref()));
        self.line(&line);
    }

    pub fn leader(&mut self, response: &PbLeaderResponse) {
        let line = format!(
            "leader {} {}",
            self.at(response.header.as_ref()),
            self.optional(response.kv.as_ref())
        );
        self.line(&line);
    }

    fn queue_key(&self, key: &[u8]) -> String {
        let key = text(key);
        let (name, lease) = key.rsplit_once('/').expect("a name and a lease");
        let is_granted =
            i64::from_str_radix(lease, 16).is_ok_and(|lease| self.lease_names.contains_key(&lease));
        let lease = if is_granted { lease } else { "another" };
        format!("{name}/{lease}")
    }

    fn put_words(&self, response: &PbPutResponse) -> String {
        format!(
            "put {} before {}",
            self.at(response.header.as_ref()),
            self.optional(response.prev_kv.as_ref())
        )
    }

    fn range_words(&self, response: &PbRangeResponse) -> String {
        let PbRangeResponse {
            header,
            kvs,
            more,
            count,
        } = response;
        let more = if *more { " and more" } else { "" };
        format!(
            "range {} count {count} {}{more}",
            self.at(header.as_ref()),
            self.list(kvs)
        )
    }

    fn delete_words(&self, response: &PbDeleteResponse) -> String {
        let PbDeleteResponse {
            header,
            deleted,
            prev_kvs,
        } = response;
        format!(
            "deleted {} {deleted} {}",
            self.at(header.as_ref()),
            self.list(prev_kvs)
        )
    }

    fn txn_words(&self, response: &PbTxnResponse) -> String {
        let branch = if response.succeeded { "then" } else { "else" };
        let answers = response.responses.iter().map(|answer| match &answer.response {
            Some(PbTxnOpResponse::ResponseRange(response)) => self.range_words(response),
            Some(PbTxnOpResponse::ResponsePut(response)) => self.put_words(response),
            Some(PbTxnOpResponse::ResponseDeleteRange(response)) => self.delete_words(response),
            Some(PbTxnOpResponse::ResponseTxn(response)) => self.txn_words(response),
            None => "nothing".into(),
        });
        format!("txn {branch} [{}]", answers.collect::<Vec<_>>().join("; "))
    }

    fn list(&self, kvs: &[PbKeyValue]) -> String {
        format!(
            "[{}]",
            kvs.iter()
                .map(|kv| self.key_value(kv))
                .collect::<Vec<_>>()
                .join(", ")
        )
    }

    fn optional(&self, kv: Option<&PbKeyValue>) -> String {
        kv.map_or_else(|| "nothing".into(), |kv| self.key_value(kv))
    }

    fn key_value(&self, kv: &PbKeyValue) -> String {
        let PbKeyValue {
            key,
            create_revision,
            mod_revision,
            version,
            value,
            lease,
        } = kv;
        let [created, modified] = [create_revision, mod_revision].map(|revision| self.revision(*revision));
        let mut words = format!("{}={} {created}/{modified} v{version}", text(key), text(value));
        if *lease != 0 {
            write!(words, " on {}", self.lease_name(*lease)).expect("invariant: a string takes every write");
        }
        words
    }

    fn at(&self, header: Option<&PbResponseHeader>) -> String {
        header.map_or_else(
            || "no header".into(),
            |header| format!("@{}", self.revision(header.revision)),
        )
    }

    fn revision(&self, revision: i64) -> String {
        if revision == 0 {
            "0".into()
        } else {
            format!("{:+}", revision - self.base)
        }
    }

    fn lease_name(&self, id: i64) -> String {
        self.lease_names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() > 40 {
        format!("<{} bytes>", bytes.len())
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    }
}
