//! A registry and what it is asked: manifests, blobs, tokens.

use std::collections::BTreeMap;
use std::io;
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
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::layout::Layout;
use super::place::{Place, check_secure, host_of, joined, parse_url};
use super::{FetchError, Login};
use crate::images::archive::architecture;
use crate::images::documents::{Descriptor, Platform, sha256_hex};
use crate::images::layer::DEFAULT_LIMIT;

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
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(super) const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A manifest, or an index of manifests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A registry, as one pull asks it.
pub(super) struct Registry {
    basic: Option<String>,
    /// What it wants with each request, once it has said so.
    authorization: Option<String>,
    tls: TlsConnector,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            basic: None,
            authorization: None,
            tls: tls(),
        }
    }

    /// The manifest by the first login that opens it; where there is none, nobody's.
    pub(super) async fn manifest_by_any(
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
            let fits = |one: &&Descriptor| one.platform.as_ref().is_some_and(Platform::fits);
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

    pub(super) async fn blob(
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
            layout.write(&bytes).await?;
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
        match answer.status() {
            status if status.is_success() => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(FetchError::Denied(status));
            }
            status => return Err(FetchError::Token { url, status }),
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

fn digest_hex(digest: &str) -> Result<&str, FetchError> {
    sha256_hex(digest).ok_or_else(|| FetchError::Unexpected(format!("unsupported digest {digest:?}")))
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
}
