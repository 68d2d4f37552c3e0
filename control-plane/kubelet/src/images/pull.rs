//! Pulling images from registries (OCI distribution specification 1.1, "Pulling"; the tokens of docker's registries).
//!
//! What a registry sends is written as an OCI layout into a file without a name, each blob checked against its digest
//! and its announced size on the way, and then taken like any other [`Archive`]. Registries on loopback are asked in
//! plain HTTP, all others by TLS.

mod login;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use login::Login;

use super::archive::{Archive, architecture, sha256, unnamed_file};
use super::layer::DEFAULT_LIMIT;
use super::{Image, ImageError, ImageStore, normalized};

/// A registry that says nothing for so long is away (`imagePullProgressDeadline` was a minute, too).
const SILENCE: Duration = Duration::from_secs(60);
/// A connection that takes longer does not come.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Most bytes of a manifest (what registries take themselves), a token's answer, a configuration.
const DOCUMENT_LIMIT: usize = 4 << 20;
/// Most layers of an image: overlayfs and docker take 127.
const LAYERS_LIMIT: usize = 127;
/// Blobs are often elsewhere; further than this nobody is sent.
const REDIRECTS_LIMIT: usize = 5;
/// docker.io is a name; this is the registry.
const DOCKER_HUB: &str = "registry-1.docker.io";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Why an image was not pulled, in containerd's words, which people search for.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No manifest.
    #[error("failed to resolve reference \"{reference}\": {why}")]
    Resolve {
        /// The image.
        reference: String,
        /// Why not.
        why: FetchError,
    },
    /// A configuration or a layer.
    #[error("failed to pull \"{reference}\": {what}: {why}")]
    Blob {
        /// The image.
        reference: String,
        /// The digest.
        what: String,
        /// Why not.
        why: FetchError,
    },
    /// This machine did not keep what came.
    #[error("failed to pull \"{reference}\": write to disk: {source}")]
    Disk {
        /// The image.
        reference: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What came is no image that can be taken.
    #[error("failed to unpack \"{reference}\": {}", told(.source))]
    Unpack {
        /// The image.
        reference: String,
        /// Why not.
        #[source]
        source: ImageError,
    },
}

fn told(error: &ImageError) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer.
    #[error("failed to do request: GET \"{url}\": {why}")]
    Request {
        /// What was asked for.
        url: String,
        /// What failed.
        why: String,
    },
    /// It is not there.
    #[error("{0}: not found")]
    NotFound(String),
    /// Who asks may not have it.
    #[error(
        "pull access denied, repository does not exist or may require authorization: server answered {0}"
    )]
    Denied(StatusCode),
    /// Another answer.
    #[error("unexpected status from GET request to {url}: {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Other bytes than were announced.
    #[error("{0}")]
    Unexpected(String),
    /// The disk of this machine.
    #[error("write to disk: {0}")]
    Disk(#[from] io::Error),
}

/// An image's place: `registry/repository:tag@digest`.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    registry: &'a str,
    repository: &'a str,
    tag: &'a str,
    digest: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of(full: &'a str) -> Option<Self> {
        let (named, digest) = match full.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (full, None),
        };
        let (registry, rest) = named.split_once('/')?;
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, tag),
            None => (rest, ""),
        };
        Some(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// Tag or digest: a digest says more.
    fn version(&self) -> &'a str {
        self.digest.unwrap_or(self.tag)
    }

    /// The registry's own host.
    fn host(&self) -> &'a str {
        match self.registry {
            "docker.io" => DOCKER_HUB,
            registry => registry,
        }
    }

    /// On this machine, and asked in the clear.
    fn is_local(&self) -> bool {
        is_loopback(host_of(self.host()))
    }

    fn url(&self, kind: &str, version: &str) -> String {
        let scheme = if self.is_local() { "http" } else { "https" };
        format!(
            "{scheme}://{}/v2/{}/{kind}/{version}",
            self.host(),
            self.repository
        )
    }
}

/// Without port, and an IPv6 address without its brackets.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// A manifest, or an index of manifests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Pulls an image for this machine's architecture, and names it as it was asked for.
pub async fn pull(store: &ImageStore, reference: &str, logins: &[Login]) -> Result<Image, PullError> {
    let full = normalized(reference);
    let resolve = |why| PullError::Resolve {
        reference: full.clone(),
        why,
    };
    let unpack = |source| PullError::Unpack {
        reference: full.clone(),
        source,
    };
    let place = Place::of(&full).ok_or_else(|| resolve(FetchError::NotFound(full.clone())))?;
    let mut registry = Registry {
        basic: None,
        authorization: None,
        tls: tls(),
    };
    let logins = login::fitting(logins, place.registry, place.repository);
    let (manifest, bytes) = registry.manifest_by_any(&place, &logins).await.map_err(resolve)?;
    let disk = |source: io::Error| PullError::Disk {
        reference: full.clone(),
        source,
    };
    // What is there costs no more than its manifest.
    let id = manifest.config.as_ref().map(|config| config.digest.clone());
    let (known, name) = (store.clone(), full.clone());
    let named = tokio::task::spawn_blocking(move || known.give_name(&id.unwrap_or_default(), &name));
    let named = named.await.map_err(|lost| disk(io::Error::other(lost)))?;
    if let Some(image) = named.map_err(|error| unpack(error.into()))? {
        return Ok(image);
    }
    let file = unnamed_file(&store.directory).map_err(unpack)?;
    let mut layout = Layout {
        file: File::from_std(file),
    };
    let mut written = BTreeSet::new();
    for blob in manifest.config.iter().chain(&manifest.layers) {
        if !written.insert(blob.digest.clone()) {
            continue;
        }
        let fetched = registry.blob(&place, blob, &mut layout).await;
        fetched.map_err(|why| PullError::Blob {
            reference: full.clone(),
            what: blob.digest.clone(),
            why,
        })?;
    }
    layout.finish(&bytes).await.map_err(disk)?;
    let file = layout.file.into_std().await;
    let (store, name) = (store.clone(), full.clone());
    let taken = tokio::task::spawn_blocking(move || {
        let archive = Archive::of(file)?;
        let images = archive.images()?;
        let image = images.first().ok_or_else(|| ImageError::Absent(name.clone()))?;
        store.import(&archive, image, Some(&name), DEFAULT_LIMIT)
    });
    match taken.await {
        Ok(taken) => taken.map_err(unpack),
        Err(lost) => Err(disk(io::Error::other(lost))),
    }
}

/// A registry, as one pull asks it.
struct Registry {
    basic: Option<String>,
    /// What it wants with each request, once it has said so.
    authorization: Option<String>,
    tls: TlsConnector,
}

impl Registry {
    /// The manifest by the first login that opens it; where there is none, nobody's.
    async fn manifest_by_any(
        &mut self,
        place: &Place<'_>,
        logins: &[&Login],
    ) -> Result<(Document, Bytes), FetchError> {
        let mut logins = logins.iter();
        loop {
            self.basic = logins.next().map(|login| login.basic().to_owned());
            self.authorization = None;
            match self.manifest(place).await {
                Err(FetchError::Denied(_)) if logins.len() > 0 => {}
                outcome => return outcome,
            }
        }
    }

    /// The manifest for this machine, and its bytes.
    async fn manifest(&mut self, place: &Place<'_>) -> Result<(Document, Bytes), FetchError> {
        let mut digest = place.digest.map(str::to_owned);
        // An index names manifests. One that names indexes is no image's.
        for _ in 0..2 {
            let announced = digest.as_deref().map(digest_hex).transpose()?;
            let url = place.url("manifests", digest.as_deref().unwrap_or(place.tag));
            let accept = [&INDEXES[..], &MANIFESTS[..]].concat().join(", ");
            let answer = self.get(place, &url, &accept).await?;
            let bytes = collect(answer, &url).await?;
            if announced.is_some_and(|hex| hex::encode(Sha256::digest(&bytes)) != hex) {
                let text = format!("contents of {} are not what their digest says", place.version());
                return Err(FetchError::Unexpected(text));
            }
            let document: Document = parse(&bytes)?;
            if document.config.is_some() {
                check_blobs(&document)?;
                return Ok((document, bytes));
            }
            let fits = |one: &&Descriptor| {
                let platform = one.platform.as_ref();
                platform.is_some_and(|is| is.os == "linux" && is.architecture == architecture())
            };
            let fitting = document.manifests.iter().find(fits).ok_or_else(|| {
                FetchError::Unexpected(format!(
                    "no match for platform in manifest: linux/{}",
                    architecture()
                ))
            })?;
            digest = Some(fitting.digest.clone());
        }
        Err(FetchError::Unexpected("its index names another index".to_owned()))
    }

    async fn blob(
        &mut self,
        place: &Place<'_>,
        blob: &Descriptor,
        layout: &mut Layout,
    ) -> Result<(), FetchError> {
        let hex = digest_hex(&blob.digest)?;
        let url = place.url("blobs", &blob.digest);
        let mut body = self.get(place, &url, "*/*").await?.into_body();
        layout.begin(&format!("blobs/sha256/{hex}"), blob.size).await?;
        let (mut digest, mut length) = (Sha256::new(), 0);
        while let Some(bytes) = next_bytes(&mut body, &url).await? {
            length += bytes.len() as u64;
            if length > blob.size {
                break;
            }
            digest.update(&bytes);
            layout.file.write_all(&bytes).await?;
        }
        if length != blob.size {
            let text = format!("{} bytes were announced, and others came", blob.size);
            return Err(FetchError::Unexpected(text));
        }
        if hex::encode(digest.finalize()) != hex {
            let text = format!("contents of {} are not what their digest says", blob.digest);
            return Err(FetchError::Unexpected(text));
        }
        Ok(layout.end(blob.size).await?)
    }

    /// GET, with a login where the registry wants one, and to where it sends us.
    async fn get(
        &mut self,
        place: &Place<'_>,
        url: &str,
        accept: &str,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut answer = self.ask(url, accept, self.authorization.clone()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorization = self.log_in(place, &answer).await?;
            answer = self.ask(url, accept, self.authorization.clone()).await?;
        }
        let (first, mut at) = (parse_url(url)?, url.to_owned());
        let mut has_left = false;
        for _ in 0..REDIRECTS_LIMIT {
            if !answer.status().is_redirection() {
                break;
            }
            let before = parse_url(&at)?;
            let location = answer
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok());
            at = joined(&before, location.unwrap_or_default());
            let next = parse_url(&at)?;
            check_secure(&next, place)?;
            // A login is for the registry alone: who sends us back to it may not choose what it is asked with the login.
            has_left |= next.authority() != first.authority() || next.scheme() != first.scheme();
            let authorization = self.authorization.clone().filter(|_| !has_left);
            answer = self.ask(&at, accept, authorization).await?;
        }
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => Err(FetchError::NotFound(format!(
                "{}/{}:{}",
                place.registry,
                place.repository,
                place.version()
            ))),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(FetchError::Denied(status)),
            status => Err(FetchError::Status { url: at, status }),
        }
    }

    /// What the registry wants to see, from what it challenges with (RFC 9110 §11.6.1).
    async fn log_in(
        &self,
        place: &Place<'_>,
        answer: &Response<Incoming>,
    ) -> Result<Option<String>, FetchError> {
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts: Vec<&str> = challenges
            .filter_map(|challenge| challenge.to_str().ok())
            .collect();
        let basic = self.basic.as_ref().map(|basic| format!("Basic {basic}"));
        let Some(challenge) = texts.iter().find_map(|text| Challenge::bearer(text)) else {
            return Ok(basic);
        };
        let scope = format!("repository:{}:pull", place.repository);
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("service", &challenge.service)
            .append_pair("scope", challenge.scope.as_deref().unwrap_or(&scope))
            .finish();
        let url = format!("{}?{query}", challenge.realm);
        check_secure(&parse_url(&url)?, place)?;
        let answer = self.ask(&url, "application/json", basic).await?;
        if !answer.status().is_success() {
            return Err(FetchError::Denied(answer.status()));
        }
        let token: Token = parse(&collect(answer, &url).await?)?;
        Ok(token
            .token
            .or(token.access_token)
            .map(|token| format!("Bearer {token}")))
    }

    async fn ask(
        &self,
        url: &str,
        accept: &str,
        authorization: Option<String>,
    ) -> Result<Response<Incoming>, FetchError> {
        let failed = |why: &dyn std::fmt::Display| FetchError::Request {
            url: url.to_owned(),
            why: why.to_string(),
        };
        let at = parse_url(url)?;
        let authority = at.authority().ok_or_else(|| failed(&"no host"))?.clone();
        let mut request = Request::new(Empty::<Bytes>::new());
        let path = at.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error))?;
        let headers = [
            (HOST, Some(authority.as_str().to_owned())),
            (ACCEPT, Some(accept.to_owned())),
            (AUTHORIZATION, authorization),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                let value = HeaderValue::from_str(&value).map_err(|error| failed(&error))?;
                request.headers_mut().insert(name, value);
            }
        }
        let sent = async {
            let stream = self.connect(&at).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to a registry ended");
                }
            });
            sender.send_request(request).await.map_err(io::Error::other)
        };
        match tokio::time::timeout(SILENCE, sent).await {
            Ok(answer) => answer.map_err(|error| failed(&error)),
            Err(_) => Err(failed(&format!("no answer within {} s", SILENCE.as_secs()))),
        }
    }

    async fn connect(&self, at: &Uri) -> io::Result<Box<dyn Stream>> {
        let host = host_of(at.authority().map_or("", |authority| authority.as_str()));
        let plain = at.scheme_str() == Some("http");
        let port = at.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect((host, port)))
            .await
            .map_err(io::Error::from)??;
        if plain {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// `Bearer realm="…",service="…",scope="…"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
    scope: Option<String>,
}

impl Challenge {
    fn bearer(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut values = BTreeMap::new();
        let mut rest = rest.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after
                    .split_once(',')
                    .map_or((after, ""), |(value, after)| (value, after)),
            };
            values.insert(name.trim().to_ascii_lowercase(), value.to_owned());
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self {
            realm: values.remove("realm")?,
            service: values.remove("service").unwrap_or_default(),
            scope: values.remove("scope"),
        })
    }
}

/// An OCI layout in a tar archive, as it grows.
struct Layout {
    file: File,
}

impl Layout {
    async fn begin(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_size(size_bytes);
        header.set_mode(0o644);
        header.set_cksum();
        self.file.write_all(header.as_bytes()).await
    }

    /// Members end at a multiple of 512 bytes.
    async fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        let missing = usize::try_from(size_bytes.wrapping_neg() % 512).unwrap_or(0);
        self.file.write_all(&vec![0; missing]).await
    }

    async fn member(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(path, bytes.len() as u64).await?;
        self.file.write_all(bytes).await?;
        self.end(bytes.len() as u64).await
    }

    /// The manifest, and what names it.
    async fn finish(&mut self, manifest: &[u8]) -> io::Result<()> {
        let digest = sha256(manifest);
        let descriptor = json!({ "mediaType": MANIFESTS[0], "digest": digest, "size": manifest.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
        let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        self.member(&path, manifest).await?;
        self.member("index.json", index.as_bytes()).await?;
        self.file.write_all(&[0; 1024]).await?;
        self.file.flush().await
    }
}

fn check_blobs(manifest: &Document) -> Result<(), FetchError> {
    let blobs = || manifest.config.iter().chain(&manifest.layers);
    blobs().try_for_each(|blob| digest_hex(&blob.digest).map(drop))?;
    let total = blobs().try_fold(0_u64, |sum, blob| sum.checked_add(blob.size));
    let config = manifest.config.as_ref().map_or(0, |config| config.size);
    let sound = total.is_some_and(|total| total <= DEFAULT_LIMIT.bytes)
        && config <= DOCUMENT_LIMIT as u64
        && manifest.layers.len() <= LAYERS_LIMIT;
    let has_foreign = blobs()
        .any(|blob| blob.media_type.contains("foreign") || blob.media_type.contains("nondistributable"));
    match (sound, has_foreign) {
        (false, _) => Err(FetchError::Unexpected(
            "the image is larger than any that is taken".to_owned(),
        )),
        (_, true) => Err(FetchError::Unexpected(
            "a layer is not in the registry".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The digest without its algorithm, which is the one that OCI's image specification requires.
fn digest_hex(digest: &str) -> Result<&str, FetchError> {
    let hex = digest.strip_prefix("sha256:");
    let hex = hex.filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex.ok_or_else(|| FetchError::Unexpected(format!("unsupported digest {digest:?}")))
}

fn parse_url(url: &str) -> Result<Uri, FetchError> {
    url.parse()
        .map_err(|error: http::uri::InvalidUri| FetchError::Request {
            url: url.to_owned(),
            why: error.to_string(),
        })
}

/// Nobody is asked in the clear but on this machine, and there only by a registry that is itself on it: another would
/// have the kubelet ask what listens for the node alone.
fn check_secure(at: &Uri, place: &Place<'_>) -> Result<(), FetchError> {
    let host = host_of(at.authority().map_or("", |authority| authority.as_str()));
    match at.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if place.is_local() && is_loopback(host) => Ok(()),
        _ => Err(FetchError::Unexpected(format!("{at} is not reached by TLS"))),
    }
}

/// Where a redirection leads: to another place, or to another path of the same.
fn joined(before: &Uri, location: &str) -> String {
    let scheme = before.scheme_str().unwrap_or("https");
    let authority = before.authority().map_or("", |authority| authority.as_str());
    match location.starts_with('/') {
        true if location.starts_with("//") => format!("{scheme}:{location}"),
        true => format!("{scheme}://{authority}{location}"),
        false => location.to_owned(),
    }
}

async fn next_bytes(body: &mut Incoming, url: &str) -> Result<Option<Bytes>, FetchError> {
    let failed = |why: String| FetchError::Request {
        url: url.to_owned(),
        why,
    };
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await;
        let frame = frame.map_err(|_| failed(format!("nothing more came within {} s", SILENCE.as_secs())))?;
        let Some(frame) = frame.transpose().map_err(|error| failed(error.to_string()))? else {
            return Ok(None);
        };
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

async fn collect(answer: Response<Incoming>, url: &str) -> Result<Bytes, FetchError> {
    let mut body = answer.into_body();
    let mut all = Vec::new();
    while let Some(bytes) = next_bytes(&mut body, url).await? {
        if all.len() + bytes.len() > DOCUMENT_LIMIT {
            return Err(FetchError::Unexpected(format!(
                "{url} answers with more than any document has"
            )));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FetchError> {
    serde_json::from_slice(bytes)
        .map_err(|error| FetchError::Unexpected(format!("it answers with no document of its kind: {error}")))
}

/// Trusts whom the machine trusts.
fn tls() -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider has the versions of TLS that are safe by default")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_asked_by_tls_but_on_this_machine() {
        for (full, kind, url) in [
            (
                "docker.io/library/a:1",
                "manifests",
                "https://registry-1.docker.io/v2/library/a/manifests/1",
            ),
            (
                "reg.example:5000/a/b:1",
                "blobs",
                "https://reg.example:5000/v2/a/b/blobs/1",
            ),
            (
                "localhost:5000/a:1",
                "manifests",
                "http://localhost:5000/v2/a/manifests/1",
            ),
            (
                "127.0.0.1:5000/a:1",
                "manifests",
                "http://127.0.0.1:5000/v2/a/manifests/1",
            ),
            (
                "[::1]:5000/a:1",
                "manifests",
                "http://[::1]:5000/v2/a/manifests/1",
            ),
            (
                "reg.example/a:1@sha256:00",
                "manifests",
                "https://reg.example/v2/a/manifests/sha256:00",
            ),
        ] {
            let place = Place::of(full).expect("a place");
            assert_eq!(place.url(kind, place.version()), url, "{full}");
        }
    }

    #[test]
    fn challenges_name_who_gives_tokens() {
        let some = |realm: &str, service: &str, scope: Option<&str>| {
            Some(Challenge {
                realm: realm.to_owned(),
                service: service.to_owned(),
                scope: scope.map(str::to_owned),
            })
        };
        for (text, expected) in [
            (
                "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a/b:pull,push\"",
                some("https://a/t", "s", Some("repository:a/b:pull,push")),
            ),
            ("bearer realm=x, service=y", some("x", "y", None)),
            ("Basic realm=\"x\"", None),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"unended", None),
            ("Bearer", None),
        ] {
            assert_eq!(Challenge::bearer(text), expected, "{text}");
        }
    }

    #[test]
    fn redirections_lead_nowhere_in_the_clear() {
        let before: Uri = "https://a.example/x".parse().expect("a place");
        let secure = |at: &str, registry: &str| {
            let place = Place {
                registry,
                repository: "a",
                tag: "1",
                digest: None,
            };
            check_secure(&parse_url(at).expect("a place"), &place).is_ok()
        };
        for (location, at, from_afar, from_here) in [
            ("/y?z", "https://a.example/y?z", true, true),
            ("//b.example/y", "https://b.example/y", true, true),
            ("https://b.example/y", "https://b.example/y", true, true),
            ("http://b.example/y", "http://b.example/y", false, false),
            ("http://127.0.0.1/y", "http://127.0.0.1/y", false, true),
            ("http://localhost:1/y", "http://localhost:1/y", false, true),
        ] {
            let seen = joined(&before, location);
            assert_eq!(seen, at, "{location}");
            assert_eq!(
                (secure(&seen, "a.example"), secure(&seen, "127.0.0.1:5000")),
                (from_afar, from_here),
                "{location}"
            );
        }
    }
}
