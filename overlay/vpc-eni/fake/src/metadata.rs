//! IMDSv2: a session token first, then paths under `/latest` (EC2 user guide, "Instance metadata categories").

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, Method, StatusCode};
use jiff::{Span, Timestamp};
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::Eni;

use crate::cloud::Known;
use crate::imds::{self, Imds};
use crate::request::Interface;
use crate::xml::OWNER;

/// The header with a session's token.
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// The header with how long a session lasts, in seconds.
pub(crate) const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Where a session begins.
pub(crate) const TOKEN_PATH: &str = "/latest/api/token";
/// How long a session may last: six hours.
const LONGEST: u64 = 21_600;
/// The role of every instance.
const ROLE: &str = "fake-node-role";

/// The sessions of one instance's metadata service.
pub(crate) struct Sessions {
    imds: Imds,
    ends: BTreeMap<String, Instant>,
    opened: u64,
}

/// An answer: a status and a body.
pub(crate) type Answer = (StatusCode, String);

impl Sessions {
    pub(crate) fn new(imds: Imds) -> Self {
        Self {
            imds,
            ends: BTreeMap::new(),
            opened: 0,
        }
    }

    /// The answer to a request; `None`, where nobody answers.
    pub(crate) fn answer(&mut self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Answer> {
        let mood = self.imds.mood();
        if mood.is_down {
            return None;
        }
        let status = |status: StatusCode| Some((status, String::new()));
        if mood.is_disabled {
            return status(StatusCode::FORBIDDEN);
        }
        if path == TOKEN_PATH {
            return Some(self.open(method, headers));
        }
        if *method != Method::GET {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        if !self.is_open(headers) {
            return status(StatusCode::UNAUTHORIZED);
        }
        let leaves = leaves(&self.imds.known().ok()?);
        match look_up(&leaves, path) {
            Some(text) => Some((StatusCode::OK, text)),
            None => status(StatusCode::NOT_FOUND),
        }
    }

    fn open(&mut self, method: &Method, headers: &HeaderMap) -> Answer {
        if *method != Method::PUT {
            return (StatusCode::METHOD_NOT_ALLOWED, String::new());
        }
        // A call that a proxy passed on must not get at the instance's credentials.
        if headers.contains_key("x-forwarded-for") {
            return (StatusCode::FORBIDDEN, String::new());
        }
        let ttl = headers.get(TTL).and_then(|ttl| ttl.to_str().ok()?.parse().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=LONGEST).contains(ttl)) else {
            return (StatusCode::BAD_REQUEST, String::new());
        };
        let now = Instant::now();
        self.ends.retain(|_, end| now < *end);
        self.opened += 1;
        let token = format!("fake-session-{:08}==", self.opened);
        self.ends.insert(token.clone(), now + Duration::from_secs(ttl));
        (StatusCode::OK, token)
    }

    fn is_open(&self, headers: &HeaderMap) -> bool {
        let token = headers.get(TOKEN).and_then(|token| token.to_str().ok());
        let end = token.and_then(|token| self.ends.get(token));
        end.is_some_and(|end| Instant::now() < *end)
    }
}

/// What stands at a path: a leaf's text, or what is below, a line each.
fn look_up(leaves: &BTreeMap<String, String>, path: &str) -> Option<String> {
    let path = path.strip_prefix("/latest/")?;
    if let Some(text) = leaves.get(path) {
        return Some(text.clone());
    }
    let folder = path.trim_end_matches('/');
    let below = leaves.keys().filter_map(|leaf| match folder {
        "" => Some(leaf.as_str()),
        folder => leaf.strip_prefix(folder)?.strip_prefix('/'),
    });
    let names: BTreeSet<&str> = below.map(first_part).collect();
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| names.join("\n"))
}

/// `macs/` of `macs/02:…/mac`, `mac` of `mac`.
fn first_part(path: &str) -> &str {
    path.find('/').map_or(path, |slash| &path[..=slash])
}

/// All that can be asked for, by the path after `/latest/`.
fn leaves(known: &Known) -> BTreeMap<String, String> {
    let machine = &known.machine;
    let region = imds::region(&machine.zone);
    let mut leaves = BTreeMap::new();
    let mut leaf = |path: &str, text: String| {
        leaves.insert(format!("meta-data/{path}"), text);
    };
    leaf("instance-id", machine.id.to_string());
    leaf("instance-type", machine.instance_type.clone());
    leaf("placement/region", region.to_owned());
    leaf("placement/availability-zone", machine.zone.clone());
    leaf(&format!("iam/security-credentials/{ROLE}"), credentials());
    let primary = imds::primary(known);
    if let Some(primary) = primary {
        leaf("mac", primary.eni.mac.to_string());
        leaf("local-ipv4", primary.eni.primary.to_string());
    }
    for interface in &machine.interfaces {
        for (name, text) in of_interface(known, interface) {
            leaf(
                &format!("network/interfaces/macs/{}/{name}", interface.eni.mac),
                text,
            );
        }
    }
    let document = format!(
        "{{\n  \"accountId\" : \"{OWNER}\",\n  \"availabilityZone\" : \"{}\",\n  \"instanceId\" : \"{}\",\n  \
         \"instanceType\" : \"{}\",\n  \"privateIp\" : \"{}\",\n  \"region\" : \"{region}\",\n  \
         \"version\" : \"2017-09-30\"\n}}",
        machine.zone,
        machine.id,
        machine.instance_type,
        primary
            .map(|primary| primary.eni.primary.to_string())
            .unwrap_or_default(),
    );
    leaves.insert("dynamic/instance-identity/document".to_owned(), document);
    leaves
}

fn of_interface(known: &Known, interface: &Interface) -> Vec<(&'static str, String)> {
    let eni = &interface.eni;
    let index = eni
        .attachment
        .as_ref()
        .map(|attached| attached.device_index)
        .unwrap_or_default();
    let own = std::iter::once(eni.primary).chain(eni.secondary.iter().copied());
    let mut leaves = vec![
        ("device-number", index.to_string()),
        ("interface-id", eni.id.to_string()),
        ("local-ipv4s", lines(own)),
        ("mac", eni.mac.to_string()),
        ("owner-id", OWNER.to_owned()),
        ("security-group-ids", lines(&eni.groups)),
        ("subnet-id", eni.subnet.to_string()),
        ("vpc-id", interface.vpc.to_string()),
        ("vpc-ipv4-cidr-blocks", lines(&known.vpc_networks)),
    ];
    if let Some(network) = known.vpc_networks.first() {
        leaves.push(("vpc-ipv4-cidr-block", network.to_string()));
    }
    if let Some(network) = known.subnets.get(&eni.subnet) {
        leaves.push(("subnet-ipv4-cidr-block", network.to_string()));
    }
    leaves.extend(prefixes(eni));
    leaves
}

/// What is there only where there is something.
fn prefixes(eni: &Eni) -> impl Iterator<Item = (&'static str, String)> {
    let all = [
        ("ipv4-prefix", lines(&eni.prefixes)),
        ("ipv6-prefix", lines(&eni.prefixes_v6)),
    ];
    all.into_iter().filter(|(_, text)| !text.is_empty())
}

fn lines(all: impl IntoIterator<Item = impl ToString>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.join("\n")
}

/// Keys that open nothing, for six hours of the true time, by which clients go.
fn credentials() -> String {
    let now = Timestamp::now();
    let end = now.checked_add(Span::new().hours(6)).unwrap_or(now);
    let date = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    format!(
        "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"{}\",\n  \"Type\" : \"AWS-HMAC\",\n  \
         \"AccessKeyId\" : \"ASIAFAKEFAKEFAKEFAKE\",\n  \"SecretAccessKey\" : \"opens-nothing\",\n  \
         \"Token\" : \"opens-nothing\",\n  \"Expiration\" : \"{}\"\n}}",
        date(now),
        date(end),
    )
}

#[cfg(test)]
mod tests {
    use vpc_eni::ec2::Tags;

    use super::*;
    use crate::Cloud;

    #[tokio::test(start_paused = true)]
    async fn a_session_lasts_as_long_as_was_asked_for() {
        let cloud = Cloud::new(0);
        let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
        let network = "10.0.0.0/24".parse().unwrap();
        let subnet = cloud
            .make_subnet(&vpc, network, "eu-west-1a", Tags::new())
            .unwrap();
        let instance = cloud.make_instance("m5.large", &subnet, &[]).unwrap();
        let mut sessions = Sessions::new(cloud.imds(&instance));

        let ttl = HeaderMap::from_iter([(http::HeaderName::from_static(TTL), "60".parse().unwrap())]);
        let (status, token) = sessions.answer(&Method::PUT, "/latest/api/token", &ttl).unwrap();
        assert_eq!(status, StatusCode::OK);
        let session = HeaderMap::from_iter([(http::HeaderName::from_static(TOKEN), token.parse().unwrap())]);
        let mut ask = || {
            sessions
                .answer(&Method::GET, "/latest/meta-data/instance-id", &session)
                .unwrap()
        };
        tokio::time::advance(Duration::from_millis(59_999)).await;
        assert_eq!(ask(), (StatusCode::OK, instance.0));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask(), (StatusCode::UNAUTHORIZED, String::new()));
    }
}
