//! The connection to etcd: as whom, to which of its members, and what is wrong where there is none.
//!
//! A client of several members gives each its share of the requests, one that does not answer too. So who does not
//! answer is taken out until it does ([`Members::follow`]).

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity, TlsOptions,
    Txn, TxnOp,
};
use futures::future::join_all;

use crate::config::EtcdConfig;

/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How often the members of an etcd that has several are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What is wrong with an etcd, or with what we were told of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate, key or password could not be read.
    #[error("read {path}")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The endpoints or the TLS material are not usable.
    #[error("set up the connection to etcd: {}", reason(.0))]
    Setup(#[source] etcd_client::Error),
    /// A member does not answer, or one of us does not accept the other's certificate.
    #[error("{endpoint}: no answer: {}", reason(.source))]
    Unreachable {
        /// Which.
        endpoint: String,
        /// Why.
        #[source]
        source: etcd_client::Error,
    },
    /// A member ended the connection after the handshake. One that does not accept our certificate does (RFC 8446
    /// §4.4.2.4), and whether its reason is read before the end is seen is chance.
    #[error("{endpoint}: no answer: {}; {}", reason(.source), question(.certificate.as_deref()))]
    HungUp {
        /// Which.
        endpoint: String,
        /// Ours.
        certificate: Option<PathBuf>,
        /// How the connection ended.
        #[source]
        source: etcd_client::Error,
    },
    /// A member does not answer in time.
    #[error("{endpoint}: no answer within {} s", ANSWER.as_secs())]
    Silent {
        /// Which.
        endpoint: String,
    },
    /// A member has no leader, so that it can neither read nor write.
    #[error("{endpoint}: the member has no leader: most of the others are away")]
    NoLeader {
        /// Which.
        endpoint: String,
    },
    /// Name and password are not those of a user, or etcd has no users.
    #[error("{endpoint}: the user {user} is not let in: {}", reason(.source))]
    User {
        /// Which.
        endpoint: String,
        /// Who.
        user: String,
        /// Why.
        #[source]
        source: etcd_client::Error,
    },
    /// We may not read and write what we have to.
    #[error("{endpoint}: below {prefix} reading and writing is not allowed: {}", reason(.source))]
    Rights {
        /// Which.
        endpoint: String,
        /// Where.
        prefix: String,
        /// Why.
        #[source]
        source: etcd_client::Error,
    },
}

/// What etcd or the transport says, with all causes.
fn reason(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return error.to_string();
    };
    let mut words = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // tonic's own words, which say nothing.
        if text != "transport error" && !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

fn question(certificate: Option<&Path>) -> String {
    certificate.map_or_else(
        || "does it ask for a client certificate?".to_owned(),
        |path| format!("does it accept the certificate in {}?", path.display()),
    )
}

/// Connects. etcd need not be there yet, unless it has to let a user in.
pub async fn connect(config: &EtcdConfig) -> Result<(Client, Members), Error> {
    let options = options(config)?;
    let mut members = Members::new(config, &options);
    let answers = members.look().await;
    let live = members.asked();
    let Some(user) = user(config)? else {
        let client = Client::connect(live, Some(options)).await.map_err(Error::Setup)?;
        return Ok((client, members));
    };
    if let Some(error) = answers.into_iter().flatten().next()
        && members.members.iter().all(|member| !member.answers)
    {
        return Err(error);
    }
    let endpoint = live.join(",");
    let client = let_in(&live, options, user, endpoint).await?;
    Ok((client, members))
}

/// Whether one member at least is there, lets us in, and lets us read and write below each of the prefixes; then tells
/// what is wrong with the others.
pub async fn check(config: &EtcdConfig, prefixes: &[&str]) -> Result<Vec<Error>, Vec<Error>> {
    let checks = config
        .endpoints
        .iter()
        .map(|endpoint| check_member(config, endpoint, prefixes));
    let errors: Vec<Error> = join_all(checks)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if errors.len() < config.endpoints.len() {
        Ok(errors)
    } else {
        Err(errors)
    }
}

async fn check_member(config: &EtcdConfig, endpoint: &str, prefixes: &[&str]) -> Result<(), Error> {
    let options = options(config)?;
    let mut member = Member::new(endpoint);
    member
        .look(&options)
        .await
        .map_err(|error| suspect(error, config))?;
    let mut client = match user(config)? {
        Some(user) => let_in(&[endpoint.to_owned()], options, user, endpoint.to_owned()).await?,
        None => Client::connect([endpoint], Some(options))
            .await
            .map_err(Error::Setup)?,
    };
    for prefix in prefixes {
        let allowed = within(endpoint, client.txn(nothing_below(prefix))).await?;
        allowed.map_err(|source| Error::Rights {
            endpoint: endpoint.to_owned(),
            prefix: (*prefix).to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn suspect(error: Error, config: &EtcdConfig) -> Error {
    match error {
        Error::Unreachable {
            endpoint,
            source: etcd_client::Error::GRpcStatus(status),
        } if config.ca.is_some()
            && status.source().is_some()
            && status.code() != tonic::Code::Unavailable =>
        {
            Error::HungUp {
                endpoint,
                certificate: config.cert.clone(),
                source: etcd_client::Error::GRpcStatus(status),
            }
        }
        error => error,
    }
}

/// A transaction that needs every right below the prefix, and never does anything: no version is negative.
fn nothing_below(prefix: &str) -> Txn {
    let never = Compare::version(prefix, CompareOp::Less, 0);
    let put = TxnOp::put(format!("{prefix}causeway"), "", None);
    let delete = TxnOp::delete(
        format!("{prefix}causeway/"),
        Some(DeleteOptions::new().with_prefix()),
    );
    let read = GetOptions::new().with_prefix().with_count_only();
    Txn::new()
        .when([never])
        .and_then([put, delete, TxnOp::get(prefix, Some(read))])
}

async fn let_in(
    endpoints: &[String],
    options: ConnectOptions,
    (name, password): (String, String),
    endpoint: String,
) -> Result<Client, Error> {
    // A token lasts five minutes without use (etcd's simple tokens), or as long as etcd was told.
    let options = options
        .with_user(name.clone(), password)
        .with_auto_token_refresh(true);
    let connected = within(&endpoint, Client::connect(endpoints, Some(options))).await?;
    connected.map_err(|source| Error::User {
        endpoint,
        user: name,
        source,
    })
}

async fn within<T>(
    endpoint: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<Result<T, etcd_client::Error>, Error> {
    tokio::time::timeout(ANSWER, call)
        .await
        .map_err(|_| Error::Silent {
            endpoint: endpoint.to_owned(),
        })
}

/// The members of an etcd, and who of them answers.
#[derive(Debug)]
pub struct Members {
    options: ConnectOptions,
    members: Vec<Member>,
}

/// One member. Whether it answers is asked without a user, whom etcd would have to let in with much work.
struct Member {
    endpoint: String,
    client: Option<Client>,
    answers: bool,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            endpoint,
            client: _,
            answers,
        } = self;
        f.debug_struct("Member")
            .field("endpoint", endpoint)
            .field("answers", answers)
            .finish_non_exhaustive()
    }
}

impl Members {
    fn new(config: &EtcdConfig, options: &ConnectOptions) -> Self {
        Self {
            options: options.clone(),
            members: config
                .endpoints
                .iter()
                .map(|endpoint| Member::new(endpoint))
                .collect(),
        }
    }

    /// Looks at every member, and says what is wrong with each.
    async fn look(&mut self) -> Vec<Option<Error>> {
        let options = &self.options;
        let looks = self.members.iter_mut().map(|member| member.look(options));
        join_all(looks).await.into_iter().map(Result::err).collect()
    }

    /// Those that answer, or all where none does.
    fn asked(&self) -> Vec<String> {
        let none = self.members.iter().all(|member| !member.answers);
        let asked = self.members.iter().filter(|member| member.answers || none);
        asked.map(|member| member.endpoint.clone()).collect()
    }

    /// Keeps the client's requests to the members that answer; does not end where there are several.
    pub async fn follow(&mut self, client: &Client) {
        if self.members.len() < 2 {
            return;
        }
        let mut asked = self.asked();
        loop {
            tokio::time::sleep(LOOK).await;
            let errors = self.look().await;
            let answering = self.asked();
            for (member, error) in self.members.iter().zip(errors) {
                let endpoint = &member.endpoint;
                let changed = match (asked.contains(endpoint), answering.contains(endpoint)) {
                    (true, false) => {
                        let error = error.map(|error| error.to_string()).unwrap_or_default();
                        tracing::warn!(%endpoint, %error, "a member of etcd is not asked any more");
                        client.remove_endpoint(endpoint).await
                    }
                    (false, true) => {
                        tracing::info!(%endpoint, "a member of etcd is asked again");
                        client.add_endpoint(endpoint).await
                    }
                    (true, true) | (false, false) => Ok(()),
                };
                if let Err(error) = changed {
                    tracing::warn!(%endpoint, error = %reason(&error), "the members that are asked cannot be changed");
                }
            }
            asked = answering;
        }
    }
}

impl Member {
    fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            client: None,
            answers: false,
        }
    }

    async fn look(&mut self, options: &ConnectOptions) -> Result<(), Error> {
        let answer = self.ask(options).await;
        self.answers = answer.is_ok();
        answer
    }

    async fn ask(&mut self, options: &ConnectOptions) -> Result<(), Error> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let connected = Client::connect([&self.endpoint], Some(options.clone())).await;
                self.client.insert(connected.map_err(Error::Setup)?)
            }
        };
        match within(&self.endpoint, client.status()).await? {
            Ok(status) if status.leader() == 0 => Err(Error::NoLeader {
                endpoint: self.endpoint.clone(),
            }),
            Ok(_) => Ok(()),
            Err(etcd_client::Error::GRpcStatus(status)) if is_refusal(&status) => Ok(()),
            Err(source) => Err(Error::Unreachable {
                endpoint: self.endpoint.clone(),
                source,
            }),
        }
    }
}

/// A refusal is an answer.
fn is_refusal(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated
    )
}

/// Everything but the user. Files are read each time.
fn options(config: &EtcdConfig) -> Result<ConnectOptions, Error> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(ANSWER)
        .with_keep_alive(Duration::from_secs(10), ANSWER)
        .with_keep_alive_while_idle(true);
    if let Some(ca) = &config.ca {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

/// Name and password.
fn user(config: &EtcdConfig) -> Result<Option<(String, String)>, Error> {
    let Some(user) = &config.user else { return Ok(None) };
    let password = String::from_utf8(read(&user.password_file)?).map_err(|error| Error::ReadFile {
        path: user.password_file.clone(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error()),
    })?;
    Ok(Some((user.name.clone(), password.trim().to_owned())))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })
}
