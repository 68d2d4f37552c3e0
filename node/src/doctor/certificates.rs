//! How long the files are good by which this node's agent shows who it is: certificates, and tokens.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use x509_parser::pem::Pem;

use super::finding;
use crate::config::Config;
use crate::findings::{Finding, Severity};

/// What has less left is told: two weeks, or a fifth of its life where that is less.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
const SHARE: i32 = 5;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Something with an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    begins: Timestamp,
    ends: Timestamp,
}

/// What is over, or soon will be. Blocks.
#[must_use]
pub fn look(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut found = match &config.kubernetes.kubeconfig {
        Some(path) => of_kubeconfig(path, now),
        None => of_service_account(Path::new(SERVICE_ACCOUNT), now),
    };
    let etcd = config.network.as_ref().and_then(|network| network.etcd.as_ref());
    let files = etcd.iter().flat_map(|etcd| [&etcd.ca, &etcd.cert]).flatten();
    found.extend(files.flat_map(|path| of_file(path, now)));
    found
}

fn of_service_account(directory: &Path, now: Timestamp) -> Vec<Finding> {
    let path = directory.join("token");
    let token = fs::read_to_string(&path).unwrap_or_default();
    let token = of_token(&format!("token {}", path.display()), &token, now);
    let authority = of_file(&directory.join("ca.crt"), now);
    authority.into_iter().chain(token).collect()
}

/// Of the current context: nobody uses another. What cannot be read is told by whoever needs it.
fn of_kubeconfig(path: &Path, now: Timestamp) -> Vec<Finding> {
    let Ok(kubeconfig) = Kubeconfig::read_from(path) else {
        return Vec::new();
    };
    let shown = path.display();
    let mut found = Vec::new();
    let inline = |what: &str, data: Option<&str>| {
        let pem = data
            .and_then(|data| STANDARD.decode(data).ok())
            .unwrap_or_default();
        of_pem(&format!("{what} in {shown}"), &pem, now)
    };
    let (cluster, user) = in_use(&kubeconfig).unwrap_or_default();
    if let Some(cluster) = cluster {
        let data = cluster.certificate_authority_data.as_deref();
        found.extend(inline("certificate of the authority", data));
        let file = cluster.certificate_authority.as_deref().map(Path::new);
        found.extend(file.map(|file| of_file(file, now)).unwrap_or_default());
    }
    if let Some(user) = user {
        let data = user.client_certificate_data.as_deref();
        found.extend(inline("client certificate", data));
        let file = user.client_certificate.as_deref().map(Path::new);
        found.extend(file.map(|file| of_file(file, now)).unwrap_or_default());
        let token = user
            .token_file
            .as_ref()
            .and_then(|file| fs::read_to_string(file).ok());
        found.extend(token.and_then(|token| of_token(&format!("token of {shown}"), &token, now)));
    }
    found
}

/// The cluster and the user of the current context.
fn in_use(kubeconfig: &Kubeconfig) -> Option<(Option<&Cluster>, Option<&AuthInfo>)> {
    let current = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|named| named.name == *current)?.context.as_ref()?;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|named| named.name == context.cluster);
    let mut users = kubeconfig.auth_infos.iter();
    let user = users.find(|named| context.user.as_ref() == Some(&named.name));
    Some((
        cluster.and_then(|named| named.cluster.as_ref()),
        user.and_then(|named| named.auth_info.as_ref()),
    ))
}

fn of_file(path: &Path, now: Timestamp) -> Vec<Finding> {
    let pem = fs::read(path).unwrap_or_default();
    of_pem(&format!("certificate {}", path.display()), &pem, now)
}

/// Each certificate of a file. One that is no certificate is told by whoever needs it.
fn of_pem(object: &str, pem: &[u8], now: Timestamp) -> Vec<Finding> {
    let blocks = Pem::iter_from_buffer(pem).flatten();
    let lives = blocks
        .filter(|block| block.label == "CERTIFICATE")
        .filter_map(|block| {
            let validity = block.parse_x509().ok()?.validity().clone();
            Some(Life {
                begins: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
                ends: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            })
        });
    lives.filter_map(|life| judged(object, life, now)).collect()
}

fn judged(object: &str, life: Life, now: Timestamp) -> Option<Finding> {
    let Life { begins, ends } = life;
    let repair = "renew it; files that are replaced are read again by themselves";
    let left = ends.duration_since(now);
    if now < begins {
        let evidence = format!("it is good from {begins} on, and here it is {now}: is the clock right?");
        return Some(finding(
            "certificate-not-yet",
            object.to_owned(),
            evidence,
            repair,
        ));
    }
    if left <= SignedDuration::ZERO {
        let evidence = format!("it ended at {ends}: nobody takes it any more");
        return Some(finding(
            "certificate-expired",
            object.to_owned(),
            evidence,
            repair,
        ));
    }
    let soon = SOON.min(ends.duration_since(begins) / SHARE);
    (left < soon).then(|| Finding {
        severity: Severity::Note,
        ..finding(
            "certificate-expires",
            object.to_owned(),
            format!("it ends at {ends}, in {} hours", left.as_hours()),
            repair,
        )
    })
}

/// Tokens are renewed when they have a fifth of their life left, as kubelet does it: only one that is over is told.
fn of_token(object: &str, token: &str, now: Timestamp) -> Option<Finding> {
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let ends = Timestamp::from_second(claims.get("exp")?.as_i64()?).ok()?;
    (ends <= now).then(|| {
        finding(
            "token-expired",
            object.to_owned(),
            format!("it ended at {ends}: the API server takes it no more"),
            "see who writes it anew: kubelet, for a pod's",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).expect("a time")
    }

    #[test]
    fn what_is_over_or_soon_will_be_is_told() {
        let judge = |begins, ends, now| {
            let life = Life {
                begins: at(begins),
                ends: at(ends),
            };
            judged("certificate c", life, at(now)).map(|finding| finding.id)
        };
        let rows = [
            ((0, 365, 100), None),
            ((0, 365, 350), None),
            ((0, 365, 352), Some("certificate-expires")),
            ((0, 365, 365), Some("certificate-expired")),
            ((10, 365, 9), Some("certificate-not-yet")),
            // One that is renewed each week is not told of all the time.
            ((0, 7, 5), None),
            ((0, 7, 6), Some("certificate-expires")),
        ];
        for ((begins, ends, now), expected) in rows {
            assert_eq!(
                judge(begins, ends, now).as_deref(),
                expected,
                "{begins} {ends} {now}"
            );
        }
    }

    /// It ends on day ten.
    fn token() -> String {
        format!("e30.{}.sig\n", URL_SAFE_NO_PAD.encode(r#"{"exp":864000}"#))
    }

    #[test]
    fn a_token_that_is_over_is_told() {
        let token = token();
        assert_eq!(of_token("t", &token, at(9)), None);
        assert_eq!(
            of_token("t", &token, at(10)).map(|finding| finding.id).as_deref(),
            Some("token-expired")
        );
        assert_eq!(of_token("t", "no token", at(10)), None);
    }

    #[test]
    fn what_nobody_uses_is_not_judged_and_the_service_account_is() {
        let directory = std::env::temp_dir().join(format!("cwt-certificates-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("token"), token()).expect("written");
        let kubeconfig = directory.join("kubeconfig");
        let told = |current: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: {current}\n\
                 clusters: [{{name: c, cluster: {{server: 'https://c'}}}}]\n\
                 contexts: [{{name: new, context: {{cluster: c, user: new}}}}, \
                 {{name: old, context: {{cluster: c, user: old}}}}]\n\
                 users: [{{name: new, user: {{}}}}, {{name: old, user: {{tokenFile: {}/token}}}}]\n",
                directory.display()
            );
            fs::write(&kubeconfig, text).expect("written");
            of_kubeconfig(&kubeconfig, at(10))
                .into_iter()
                .map(|found| found.id)
                .collect::<Vec<_>>()
        };
        let (new, old) = (told("new"), told("old"));
        let mut account = of_service_account(&directory, at(10));
        fs::remove_dir_all(&directory).expect("there");
        assert!(new.is_empty(), "{new:?}");
        assert_eq!(old, ["token-expired"]);
        let account = account.pop().map(|found| (found.id, found.object));
        let object = format!("token {}/token", directory.display());
        assert_eq!(account, Some(("token-expired".to_owned(), object)));
    }
}
