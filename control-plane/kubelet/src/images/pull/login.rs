//! Logins of Secrets, and which of them are for an image (`pkg/credentialprovider/keyring.go` of Kubernetes).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::iter;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::place::DOCKER_HUB;

/// Name and password for a registry, or for what is below a path of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Host, port and path: `*.example:5000/team`. In a label of the host `*` stands for any characters, `?` for one.
    place: String,
    /// `name:password` in base64 (RFC 7617).
    basic: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerLogin>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerLogin {
    auth: String,
    username: String,
    password: String,
}

impl Login {
    /// Those of a Secret's data: types `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`. What
    /// cannot be read is no login.
    pub fn of_secret(data: &BTreeMap<String, Vec<u8>>) -> Vec<Self> {
        let of_config = data
            .get(".dockerconfigjson")
            .and_then(|text| serde_json::from_slice(text).ok());
        let of_config = of_config.map(|config: DockerConfig| config.auths);
        let of_old = || {
            data.get(".dockercfg")
                .and_then(|text| serde_json::from_slice(text).ok())
        };
        let logins = of_config.or_else(of_old).unwrap_or_default().into_iter();
        logins
            .map(|(key, login)| Self {
                place: place_of(&key),
                basic: match login.auth.is_empty() {
                    true => BASE64_STANDARD.encode(format!("{}:{}", login.username, login.password)),
                    false => login.auth,
                },
            })
            .collect()
    }

    /// `name:password` in base64.
    pub(super) fn basic(&self) -> &str {
        &self.basic
    }

    fn is_for(&self, registry: &str, repository: &str) -> bool {
        let (host, path) = self.place.split_once('/').unwrap_or((&self.place, ""));
        is_host(host, registry) && repository.starts_with(path)
    }
}

/// The logins for an image: those of longer paths first, patterns last.
pub(super) fn fitting<'a>(logins: &'a [Login], registry: &str, repository: &str) -> Vec<&'a Login> {
    let fitting = logins.iter().filter(|login| login.is_for(registry, repository));
    let mut fitting: Vec<&Login> = fitting.collect();
    fitting.sort_by_key(|login| Reverse(login.place.as_str()));
    fitting
}

/// What a key of docker's configuration means: `https://index.docker.io/v1/` is docker.io.
fn place_of(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path.split_once('/') {
        Some(("v1" | "v2", path)) => path,
        _ => path,
    };
    let host = match host {
        "index.docker.io" | DOCKER_HUB => "docker.io",
        host => host,
    };
    match path {
        "" | "v1" | "v2" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// Label by label: a pattern stands for no dot.
fn is_host(pattern: &str, registry: &str) -> bool {
    let labels = |host: &str| host.split('.').count();
    labels(pattern) == labels(registry)
        && pattern
            .split('.')
            .zip(registry.split('.'))
            .all(|(pattern, label)| is_like(pattern.as_bytes(), label.as_bytes()))
}

fn is_like(pattern: &[u8], label: &[u8]) -> bool {
    // Which beginnings of the label are like what was read of the pattern.
    let mut alike: Vec<bool> = (0..=label.len()).map(|length| length == 0).collect();
    for wanted in pattern {
        if *wanted == b'*' {
            let mut any = false;
            for one in &mut alike {
                any |= *one;
                *one = any;
            }
        } else {
            let longer = alike.iter().zip(label);
            let longer = longer.map(|(before, is)| *before && (*wanted == b'?' || wanted == is));
            alike = iter::once(false).chain(longer).collect();
        }
    }
    alike.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_those_of_both_types_of_secrets() {
        let secret = |key: &str, text: &str| BTreeMap::from([(key.to_owned(), text.as_bytes().to_vec())]);
        let basic = BASE64_STANDARD.encode("u:p");
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
        let old = format!(r#"{{"reg.example:5000":{{"auth":"{basic}"}}}}"#);
        for (data, expected) in [
            (secret(".dockerconfigjson", config), vec!["docker.io"]),
            (secret(".dockercfg", &old), vec!["reg.example:5000"]),
            (secret(".dockerconfigjson", "{"), vec![]),
            (secret("other", config), vec![]),
        ] {
            let logins = Login::of_secret(&data);
            let places: Vec<&str> = logins.iter().map(|login| login.place.as_str()).collect();
            assert_eq!(places, expected, "{data:?}");
            assert!(logins.iter().all(|login| login.basic == basic), "{data:?}");
        }
    }

    #[test]
    fn an_image_is_opened_by_what_names_it_most_closely() {
        let keys = [
            "https://reg.example/v2/",
            "reg.example/team/",
            "reg.example/team/app",
            "reg.example:5000",
            "*.example",
            "*.azurecr.io",
            "r?g.other",
            "index.docker.io/v1/",
            "docker.io/team",
        ];
        let login = |key: &&str| Login {
            place: place_of(key),
            basic: String::new(),
        };
        let logins: Vec<Login> = keys.iter().map(login).collect();
        for (registry, repository, expected) in [
            (
                "reg.example",
                "team/app",
                vec![
                    "reg.example/team/app",
                    "reg.example/team/",
                    "reg.example",
                    "*.example",
                ],
            ),
            ("reg.example", "else/app", vec!["reg.example", "*.example"]),
            ("reg.example:5000", "team/app", vec!["reg.example:5000"]),
            ("mine.azurecr.io", "a", vec!["*.azurecr.io"]),
            ("a.mine.azurecr.io", "a", vec![]),
            ("azurecr.io", "a", vec![]),
            ("rag.other", "a", vec!["r?g.other"]),
            ("rg.other", "a", vec![]),
            ("raag.other", "a", vec![]),
            ("docker.io", "library/a", vec!["docker.io"]),
            ("docker.io", "team/a", vec!["docker.io/team", "docker.io"]),
        ] {
            let seen = fitting(&logins, registry, repository);
            let seen: Vec<&str> = seen.iter().map(|login| login.place.as_str()).collect();
            assert_eq!(seen, expected, "{registry}/{repository}");
        }
    }
}
