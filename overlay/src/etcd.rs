//! flannel's key space in an etcd: the network's configuration and the leases.
//!
//! Only calls that every server of the protocol has: no LeaseTimeToLive, no KeepAlive. A lease is renewed by writing it
//! again, as flannel does.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Etcd;
use crate::error::Error;
use crate::flannel::Record;
use crate::lease::Held;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, PutOptions, TlsOptions,
    Txn, TxnOp, WatchOptions, WatchStream,
};

/// How long a lease lives without renewal; flannel's.
pub(crate) const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// UNAVAILABLE, gRPC's status of a connection that did not come about.
const UNAVAILABLE: i32 = 14;

/// gRPC's statuses of what a user may not do, and of nobody whom the server knows.
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

pub(crate) struct Store {
    client: Client,
    prefix: String,
    encrypted: bool,
    /// Our certificate.
    certificate: Option<PathBuf>,
}

/// All leases at one revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) held: Vec<Held>,
    /// Keys that hold no lease that we understand, and why not.
    pub(crate) problems: BTreeMap<String, String>,
}

/// A look at our own key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) present: bool,
}

impl Store {
    pub(crate) async fn connect(etcd: &Etcd) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ANSWER)
            .with_keep_alive(ANSWER, ANSWER)
            .with_keep_alive_while_idle(true);
        let tls = tls(etcd)?;
        let encrypted = tls.is_some();
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        let members = answering(&etcd.endpoints, &options).await;
        if let (Some(name), Some(file)) = (&etcd.username, &etcd.password_file) {
            let password = String::from_utf8(read(file)?).map_err(|error| Error::ReadFile {
                path: file.clone(),
                source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
            })?;
            // A token lasts five minutes without use (etcd's simple tokens), or as long as etcd was told.
            options = options
                .with_user(name, password.trim())
                .with_auto_token_refresh(true);
        }
        let client = answer("connect", Client::connect(&members, Some(options))).await?;
        Ok(Self {
            client,
            prefix: etcd.prefix.clone(),
            encrypted,
            certificate: etcd.cert.clone(),
        })
    }

    pub(crate) fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    fn lease_key(&self, record: &Record) -> String {
        self.subnets_prefix() + &record.key()
    }

    /// The last part of a lease's key.
    pub(crate) fn short_key<'a>(&self, key: &'a str) -> &'a str {
        key.strip_prefix(&self.subnets_prefix()).unwrap_or(key)
    }

    pub(crate) async fn read_config(&mut self) -> Result<Option<String>, Error> {
        let key = self.config_key();
        let got = answer("read the network configuration", self.client.get(key, None)).await;
        let got = got.map_err(|error| self.first_error(error))?;
        Ok(got
            .kvs()
            .first()
            .map(|kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    /// A server that does not take our certificate says so when we are connected already (TLS 1.3, RFC 8446 §4.4.2.4),
    /// and whether that is read before the connection's end is seen is chance.
    fn first_error(&self, error: Error) -> Error {
        match error {
            Error::Etcd {
                operation,
                source: etcd_client::Error::GRpcStatus(status),
            } if self.encrypted && status.source().is_some() && i32::from(status.code()) != UNAVAILABLE => {
                Error::EtcdHungUp {
                    operation,
                    certificate: self.certificate.clone(),
                    source: etcd_client::Error::GRpcStatus(status),
                }
            }
            error => error,
        }
    }

    /// Writes the network's configuration unless there is one.
    pub(crate) async fn create_config(&mut self, text: &str) -> Result<bool, Error> {
        let key = self.config_key();
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), text, None)]);
        Ok(answer("write the network configuration", self.client.txn(txn))
            .await?
            .succeeded())
    }

    pub(crate) async fn list(&mut self) -> Result<Listing, Error> {
        let options = GetOptions::new().with_prefix();
        let got = answer(
            "list leases",
            self.client.get(self.subnets_prefix(), Some(options)),
        )
        .await?;
        let (cluster_id, revision) = got
            .header()
            .map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        let mut listing = Listing {
            cluster_id,
            revision,
            held: Vec::new(),
            problems: BTreeMap::new(),
        };
        for kv in got.kvs() {
            match self.held(kv) {
                Ok(held) => listing.held.push(held),
                Err(problem) => drop(listing.problems.insert(key_of(kv), problem)),
            }
        }
        Ok(listing)
    }

    /// Reads a lease from its key and value.
    pub(crate) fn held(&self, kv: &etcd_client::KeyValue) -> Result<Held, String> {
        let key = key_of(kv);
        let value = String::from_utf8_lossy(kv.value());
        let record =
            Record::parse(self.short_key(&key), &value).map_err(|error| format!("lease {key}: {error}"))?;
        Ok(Held {
            record,
            mod_revision: kv.mod_revision(),
            reserved: kv.lease() == 0,
        })
    }

    /// Creates a lease and deletes the one that it stands in for; none when somebody else has the key, or changed the
    /// other one meanwhile.
    pub(crate) async fn create(
        &mut self,
        record: &Record,
        instead_of: Option<&Held>,
    ) -> Result<Option<i64>, Error> {
        let key = self.lease_key(record);
        let lease = self.grant().await?;
        let put = TxnOp::put(
            key.as_str(),
            record.to_json(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let mut conditions = vec![Compare::version(key.as_str(), CompareOp::Equal, 0)];
        let mut operations = vec![put];
        if let Some(old) = instead_of {
            let key = self.lease_key(&old.record);
            conditions.push(Compare::mod_revision(
                key.as_str(),
                CompareOp::Equal,
                old.mod_revision,
            ));
            operations.push(TxnOp::delete(key, None));
        }
        self.write("create a lease", Txn::new().when(conditions).and_then(operations))
            .await
    }

    /// Writes over a lease that nobody changed meanwhile, and renews it; false when somebody did. A reservation keeps
    /// living for ever.
    pub(crate) async fn update(&mut self, held: &Held, record: &Record) -> Result<Option<i64>, Error> {
        let key = self.lease_key(record);
        let options = match held.reserved {
            true => PutOptions::new(),
            false => PutOptions::new().with_lease(self.grant().await?),
        };
        let put = TxnOp::put(key.as_str(), record.to_json(), Some(options));
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, held.mod_revision);
        self.write("renew a lease", Txn::new().when([unchanged]).and_then([put]))
            .await
    }

    /// Deletes a lease that nobody changed meanwhile; false when somebody did.
    pub(crate) async fn delete(&mut self, held: &Held) -> Result<bool, Error> {
        let key = self.lease_key(&held.record);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, held.mod_revision);
        let delete = TxnOp::delete(key, None);
        let deleted = self.write("delete a lease", Txn::new().when([unchanged]).and_then([delete]));
        Ok(deleted.await?.is_some())
    }

    /// The revision of a transaction that was carried out.
    async fn write(&mut self, operation: &'static str, txn: Txn) -> Result<Option<i64>, Error> {
        let done = answer(operation, self.client.txn(txn)).await?;
        let revision = done.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(done.succeeded().then_some(revision))
    }

    async fn grant(&mut self) -> Result<i64, Error> {
        let seconds = i64::try_from(TIME_TO_LIVE.as_secs()).unwrap_or(i64::MAX);
        Ok(answer("grant a lease", self.client.lease_grant(seconds, None))
            .await?
            .id())
    }

    /// Looks whether our lease is there.
    pub(crate) async fn probe(&mut self, record: &Record) -> Result<Probe, Error> {
        let options = GetOptions::new().with_keys_only();
        let got = answer(
            "look at our lease",
            self.client.get(self.lease_key(record), Some(options)),
        )
        .await?;
        let (cluster_id, revision) = got
            .header()
            .map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        Ok(Probe {
            cluster_id,
            revision,
            present: !got.kvs().is_empty(),
        })
    }

    /// Watches all leases from a revision on.
    pub(crate) async fn watch(&mut self, revision: i64) -> Result<WatchStream, Error> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        answer(
            "watch leases",
            self.client.watch(self.subnets_prefix(), Some(options)),
        )
        .await
    }
}

/// A key as text.
pub(crate) fn key_of(kv: &etcd_client::KeyValue) -> String {
    String::from_utf8_lossy(kv.key()).into_owned()
}

async fn answer<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(result) => result.map_err(|source| Error::Etcd { operation, source }),
        Err(_) => Err(Error::EtcdSilent { operation }),
    }
}

/// The members that answer, where there are several: the client would send each its share of the requests, one that is
/// away too. All, where none does: then the client says why.
async fn answering(endpoints: &[String], options: &ConnectOptions) -> Vec<String> {
    if endpoints.len() < 2 {
        return endpoints.to_vec();
    }
    let looks = endpoints.iter().map(|endpoint| async move {
        let mut member = Client::connect([endpoint], Some(options.clone())).await?;
        member.status().await.map(|status| status.leader() != 0)
    });
    let looks = looks.map(|look| answer("look at a member", look));
    let answers = futures::future::join_all(looks).await;
    let members = endpoints.iter().zip(answers);
    let there: Vec<String> = members
        .filter(|(_, answer)| match answer {
            Ok(has_leader) => *has_leader,
            Err(error) => is_refusal(error),
        })
        .map(|(endpoint, _)| endpoint.clone())
        .collect();
    if there.is_empty() {
        endpoints.to_vec()
    } else {
        there
    }
}

/// What a member does not tell us says that it is there: with users, etcd keeps its status for root.
fn is_refusal(error: &Error) -> bool {
    let Error::Etcd {
        source: etcd_client::Error::GRpcStatus(status),
        ..
    } = error
    else {
        return false;
    };
    matches!(i32::from(status.code()), PERMISSION_DENIED | UNAUTHENTICATED)
}

/// Files are read at every connection, so that renewed certificates are taken up.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })
}

fn tls(etcd: &Etcd) -> Result<Option<TlsOptions>, Error> {
    let Some(ca) = &etcd.ca else { return Ok(None) };
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&etcd.cert, &etcd.key) {
        options = options.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(Some(options))
}
