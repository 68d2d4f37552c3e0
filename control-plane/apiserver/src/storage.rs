//! Objects in etcd, by the v3 protocol only: one key per object, `resourceVersion` = `mod_revision`, and every
//! write an optimistic transaction that may span several keys (a Service with its address and ports).

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::config::EtcdConfig;
use crate::etcd::{self, Members};
use crate::object;
use crate::resources::Resource;
use crate::status::Failure;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Leases are shared by everything written within this time, as upstream's lease manager does.
const LEASE_REUSE: Duration = Duration::from_secs(60);
/// Lists of large clusters pass gRPC's default of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 512 << 20;

/// A failed exchange with etcd.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] etcd::Error),
    /// etcd answered with an error, or not at all.
    #[error("etcd: {0}")]
    Call(#[source] etcd_client::Error),
    /// etcd did not answer in time.
    #[error("etcd did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// A stored value is not JSON.
    #[error("decode the value of {key}")]
    Decode {
        /// The etcd key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Timeout => Failure::unavailable(error.to_string()),
            StorageError::Call(etcd_client::Error::GRpcStatus(ref status)) if is_outage(status) => {
                Failure::unavailable(error.to_string())
            }
            // An object longer than etcd takes: upstream passes its words on.
            StorageError::Call(etcd_client::Error::GRpcStatus(ref status))
                if status.message() == TOO_LARGE =>
            {
                Failure::by_store(TOO_LARGE)
            }
            other => Failure::internal(other),
        }
    }
}

/// etcd's `ErrRequestTooLarge`: more than 1.5 MiB.
const TOO_LARGE: &str = "etcdserver: request is too large";

fn is_outage(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::Unavailable
}

/// A handle on etcd; cheap to clone.
#[derive(Clone)]
pub struct Storage {
    client: Client,
    members: Arc<Mutex<Members>>,
    prefix: Arc<str>,
    lease: Arc<Mutex<Option<SharedLease>>>,
}

#[derive(Clone, Copy)]
struct SharedLease {
    id: i64,
    until: Instant,
}

/// One transaction: applied in whole when every expectation holds.
#[derive(Debug, Default)]
pub struct Commit {
    /// Key and the `mod_revision` it must have; 0 means that it must not exist.
    pub expect: Vec<(String, i64)>,
    /// Keys to write.
    pub puts: Vec<(String, Value)>,
    /// Keys to delete.
    pub deletes: Vec<String>,
    /// The written keys vanish after this time (Events).
    pub ttl: Option<Duration>,
}

/// What became of a [`Commit`].
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied at this revision.
    Written(i64),
    /// Refused: the keys whose expectation did not hold.
    Refused(Vec<String>),
}

impl Storage {
    /// Prepares the connection; etcd need not be there yet, unless it has to let a user in.
    pub async fn connect(config: &EtcdConfig) -> Result<Self, StorageError> {
        let (client, members) = etcd::connect(config).await?;
        let prefix = config.prefix.trim_end_matches('/').into();
        Ok(Storage {
            client,
            members: Arc::new(Mutex::new(members)),
            prefix,
            lease: Arc::default(),
        })
    }

    /// Keeps requests to the members of etcd that answer.
    pub async fn follow_members(&self) {
        self.members.lock().await.follow(&self.client).await;
    }

    /// Everything of ours lies below this, with a trailing slash.
    pub fn root(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// `<prefix>/<group or core>/<plural>/`, below which all objects of a resource lie.
    pub fn resource_prefix(&self, resource: &Resource) -> String {
        let (group, plural) = resource.stored_as();
        let group = if group.is_empty() { "core" } else { group };
        format!("{}/{group}/{plural}/", self.prefix)
    }

    /// The prefix of a resource's objects in one namespace (or of all, without one).
    pub fn scope_prefix(&self, resource: &Resource, namespace: Option<&str>) -> String {
        let prefix = self.resource_prefix(resource);
        namespace.map_or(prefix.clone(), |namespace| format!("{prefix}{namespace}/"))
    }

    /// The key of one object.
    pub fn key(&self, resource: &Resource, namespace: Option<&str>, name: &str) -> String {
        format!("{}{name}", self.scope_prefix(resource, namespace))
    }

    /// The object at `key` as of now (linearizable), its `resourceVersion` set.
    pub async fn get(&self, key: &str) -> Result<Option<Value>, StorageError> {
        let mut kv = self
            .client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let response = within(kv.get(key, None)).await?;
        response.kvs().first().map(decode).transpose()
    }

    /// All objects below `prefix` and the revision at which they were read.
    pub async fn list(&self, prefix: &str) -> Result<(Vec<Value>, i64), StorageError> {
        let (pairs, revision) = self.list_pairs(prefix, None).await?;
        Ok((pairs.into_iter().map(|(_, object)| object).collect(), revision))
    }

    /// As [`Storage::list`], at a past revision when one is given, with keys.
    pub async fn list_pairs(
        &self,
        prefix: &str,
        at: Option<i64>,
    ) -> Result<(Vec<(String, Value)>, i64), StorageError> {
        let mut kv = self
            .client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut options = GetOptions::new().with_prefix();
        if let Some(revision) = at {
            options = options.with_revision(revision);
        }
        let mut response = within(kv.get(prefix, Some(options))).await?;
        let revision = at
            .or_else(|| response.header().map(|header| header.revision()))
            .unwrap_or_default();
        let pairs = response
            .take_kvs()
            .iter()
            .map(|kv| Ok::<_, StorageError>((key_of(kv), decode(kv)?)))
            .collect::<Result<_, _>>()?;
        Ok((pairs, revision))
    }

    /// Up to `limit` objects from the key `from` on and below `prefix`, at a past revision when one is given.
    pub async fn page(
        &self,
        prefix: &str,
        from: &str,
        limit: i64,
        at: Option<i64>,
    ) -> Result<Page, StorageError> {
        let mut kv = self
            .client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut options = GetOptions::new().with_range(range_end(prefix)).with_limit(limit);
        if let Some(revision) = at {
            options = options.with_revision(revision);
        }
        let mut response = within(kv.get(from, Some(options))).await?;
        let header = response.header().map(|header| header.revision());
        let pairs: Vec<(String, Value)> = response
            .take_kvs()
            .iter()
            .map(|kv| Ok::<_, StorageError>((key_of(kv), decode(kv)?)))
            .collect::<Result<_, StorageError>>()?;
        let read = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
        Ok(Page {
            pairs,
            revision: at.or(header).unwrap_or_default(),
            after: (response.count() - read).max(0),
        })
    }

    /// The newest revision, by a read that goes through consensus: proves that etcd is there.
    pub async fn current_revision(&self) -> Result<i64, StorageError> {
        let mut kv = self.client.kv_client();
        let response = within(kv.get(self.root(), Some(GetOptions::new().with_keys_only()))).await?;
        Ok(response
            .header()
            .map(|header| header.revision())
            .unwrap_or_default())
    }

    /// Applies `commit` in one etcd transaction.
    pub async fn commit(&self, commit: Commit) -> Result<Outcome, StorageError> {
        let put_options = match commit.ttl {
            Some(ttl) => Some(PutOptions::new().with_lease(self.shared_lease(ttl).await?)),
            None => None,
        };
        let compares: Vec<Compare> = commit
            .expect
            .iter()
            .map(|(key, revision)| Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision))
            .collect();
        let puts = commit
            .puts
            .into_iter()
            .map(|(key, object)| TxnOp::put(key, encode(object), put_options.clone()));
        let deletes = commit.deletes.into_iter().map(|key| TxnOp::delete(key, None));
        let writes: Vec<TxnOp> = puts.chain(deletes).collect();
        let keys_only = || Some(GetOptions::new().with_keys_only());
        let looks: Vec<TxnOp> = commit
            .expect
            .iter()
            .map(|(key, _)| TxnOp::get(key.as_str(), keys_only()))
            .collect();
        let mut kv = self
            .client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let response = within(kv.txn(Txn::new().when(compares).and_then(writes).or_else(looks))).await?;
        if response.succeeded() {
            return Ok(Outcome::Written(
                response
                    .header()
                    .map(|header| header.revision())
                    .unwrap_or_default(),
            ));
        }
        let found = response.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(got) => got.kvs().first().map_or(0, KeyValue::mod_revision),
            _ => 0,
        });
        let refused = commit
            .expect
            .into_iter()
            .zip(found)
            .filter(|((_, wanted), found)| wanted != found);
        Ok(Outcome::Refused(refused.map(|((key, _), _)| key).collect()))
    }

    /// Forgets history before `revision`.
    pub async fn compact(&self, revision: i64) -> Result<(), StorageError> {
        let mut kv = self.client.kv_client();
        within(kv.compact(revision, None)).await.map(drop)
    }

    /// The raw client, for the watch that feeds the caches.
    pub fn watch_client(&self) -> etcd_client::WatchClient {
        self.client
            .watch_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn shared_lease(&self, ttl: Duration) -> Result<i64, StorageError> {
        let mut slot = self.lease.lock().await;
        if let Some(lease) = *slot
            && Instant::now() < lease.until
        {
            return Ok(lease.id);
        }
        let seconds = i64::try_from((ttl + LEASE_REUSE).as_secs()).unwrap_or(i64::MAX);
        let mut leases = self.client.lease_client();
        let id = within(leases.grant(seconds, None)).await?.id();
        *slot = Some(SharedLease {
            id,
            until: Instant::now() + LEASE_REUSE,
        });
        Ok(id)
    }
}

/// A part of a list.
#[derive(Debug)]
pub struct Page {
    /// Keys and objects, in the order of the keys.
    pub pairs: Vec<(String, Value)>,
    /// The revision at which it was read.
    pub revision: i64,
    /// How many objects come after it.
    pub after: i64,
}

/// The first key that does not begin with `prefix`, which ends in a slash.
fn range_end(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

/// The key as text; ours are always UTF-8.
pub fn key_of(kv: &KeyValue) -> String {
    String::from_utf8_lossy(kv.key()).into_owned()
}

/// The object in a key-value pair, its `resourceVersion` set.
pub fn decode(kv: &KeyValue) -> Result<Value, StorageError> {
    let mut object: Value = serde_json::from_slice(kv.value()).map_err(|source| StorageError::Decode {
        key: key_of(kv),
        source,
    })?;
    object::set_revision(&mut object, kv.mod_revision());
    Ok(object)
}

/// The revision is etcd's to say, so it is not stored.
fn encode(mut object: Value) -> Vec<u8> {
    object::metadata(&mut object).remove("resourceVersion");
    object.to_string().into_bytes()
}

async fn within<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, StorageError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(StorageError::Call),
        Err(_) => Err(StorageError::Timeout),
    }
}
