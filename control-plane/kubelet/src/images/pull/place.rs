//! Where an image is, and whom else its registry may send us to.

use std::net::IpAddr;

use http::Uri;

use super::FetchError;

/// docker.io is a name; this is the registry.
pub(super) const DOCKER_HUB: &str = "registry-1.docker.io";

/// An image's place: `registry/repository:tag@digest`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) tag: &'a str,
    pub(super) digest: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn of(full: &'a str) -> Option<Self> {
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
    pub(super) fn version(&self) -> &'a str {
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

    pub(super) fn url(&self, kind: &str, version: &str) -> String {
        let scheme = if self.is_local() { "http" } else { "https" };
        format!(
            "{scheme}://{}/v2/{}/{kind}/{version}",
            self.host(),
            self.repository
        )
    }
}

/// Without port, and an IPv6 address without its brackets.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn parse_url(url: &str) -> Result<Uri, FetchError> {
    url.parse()
        .map_err(|error: http::uri::InvalidUri| FetchError::Request {
            url: url.to_owned(),
            why: error.to_string(),
        })
}

/// Nobody is asked in the clear but on this machine, and there only by a registry that is itself on it: another would
/// have the kubelet ask what listens for the node alone.
pub(super) fn check_secure(at: &Uri, place: &Place<'_>) -> Result<(), FetchError> {
    let host = host_of(at.authority().map_or("", |authority| authority.as_str()));
    match at.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if place.is_local() && is_loopback(host) => Ok(()),
        _ => Err(FetchError::Unexpected(format!("{at} is not reached by TLS"))),
    }
}

/// Where a redirection leads: to another place, or to another path of the same.
pub(super) fn joined(before: &Uri, location: &str) -> String {
    let scheme = before.scheme_str().unwrap_or("https");
    let authority = before.authority().map_or("", |authority| authority.as_str());
    match location.starts_with('/') {
        true if location.starts_with("//") => format!("{scheme}:{location}"),
        true => format!("{scheme}://{authority}{location}"),
        false => location.to_owned(),
    }
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
