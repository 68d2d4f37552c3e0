//! ServiceAccount tokens: ES256 JWTs, as `serviceaccounts/token` gives them out and kubelets mount them into pods
//! (`pkg/serviceaccount/claims.go`).

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use crate::object::{self, Fields};

/// The signing key is missing or of the wrong kind.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read.
    #[error("read the ServiceAccount signing key {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not an EC P-256 key in PKCS #8.
    #[error("use {path} as ServiceAccount signing key (EC P-256, PKCS #8 PEM)")]
    Key {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    /// Signing failed.
    #[error("sign a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Signs and verifies.
pub struct Tokens {
    issuer: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    jwk: Jwk,
}

/// Who a good token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Namespace of the ServiceAccount.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid at the time of issue.
    pub uid: String,
    /// The object that the token is bound to.
    pub bound: Option<Bound>,
    /// For which of the audiences that were asked for it is meant.
    pub audiences: Vec<String>,
}

/// What a token can be bound to: it is good as long as that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundKind {
    /// In the namespace of the account.
    Pod,
    /// In the namespace of the account.
    Secret,
    /// Of the cluster.
    Node,
}

/// How long after it ought to be gone an object that a finalizer still holds vouches for tokens, as clocks differ
/// (`jwt.DefaultLeeway`).
const LEEWAY: SignedDuration = SignedDuration::from_mins(1);

/// Whether a token that was made for the object with this uid is good: not for another one of its name, nor for one
/// that is being deleted and ought to be gone.
pub(crate) fn vouches(object: &Value, uid: &str, now: Timestamp) -> bool {
    let deletion = object.text("metadata.deletionTimestamp").parse::<Timestamp>();
    object::uid(object) == uid && deletion.map_or(true, |at| now.duration_since(at) <= LEEWAY)
}

/// The object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// What it is.
    pub kind: BoundKind,
    /// Its name.
    pub name: String,
    /// Its uid: another object of the same name does not do.
    pub uid: String,
}

impl BoundKind {
    const ALL: [BoundKind; 3] = [BoundKind::Pod, BoundKind::Secret, BoundKind::Node];

    /// What `boundObjectRef` names: kinds of `v1`.
    pub fn named(api_version: &str, kind: &str) -> Option<Self> {
        let found = BoundKind::ALL.into_iter().find(|one| one.kind() == kind);
        found.filter(|_| api_version == "v1")
    }

    /// `Pod`.
    pub fn kind(self) -> &'static str {
        match self {
            BoundKind::Pod => "Pod",
            BoundKind::Secret => "Secret",
            BoundKind::Node => "Node",
        }
    }

    /// Whether it is in the account's namespace.
    pub fn is_namespaced(self) -> bool {
        self != BoundKind::Node
    }

    /// Its claim below `kubernetes.io`.
    fn claim(self) -> &'static str {
        match self {
            BoundKind::Pod => "pod",
            BoundKind::Secret => "secret",
            BoundKind::Node => "node",
        }
    }
}

impl Tokens {
    /// Reads the key.
    pub fn load(path: &Path, issuer: &str) -> Result<Self, TokenError> {
        let shown = || path.display().to_string();
        let pem = std::fs::read(path).map_err(|source| TokenError::Read {
            path: shown(),
            source,
        })?;
        let bad_key = |source| TokenError::Key {
            path: shown(),
            source,
        };
        let signing = EncodingKey::from_ec_pem(&pem).map_err(bad_key)?;
        let jwk = Jwk::from_encoding_key(&signing, Algorithm::ES256).map_err(bad_key)?;
        let verifying = DecodingKey::from_jwk(&jwk).map_err(bad_key)?;
        Ok(Tokens {
            issuer: issuer.to_owned(),
            signing,
            verifying,
            jwk,
        })
    }

    /// The public key, as `/openid/v1/jwks` serves it.
    pub fn key_set(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// `iss` of every token.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Answers a `TokenRequest` for `account`.
    pub fn issue(
        &self,
        account: &Value,
        request: &Value,
        bound_to: Option<&Bound>,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let seconds = request
            .int("spec.expirationSeconds")
            .unwrap_or(3600)
            .clamp(600, 1 << 32);
        let expires = now + SignedDuration::from_secs(seconds);
        let audiences = match request.list("spec.audiences") {
            [] => json!([self.issuer]),
            given => json!(given),
        };
        let (namespace, name) = (object::namespace(account), object::name(account));
        let mut bound = json!({
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": object::uid(account) },
        });
        if let Some(Bound { kind, name, uid }) = bound_to {
            bound[kind.claim()] = json!({ "name": name, "uid": uid });
        }
        let claims = json!({
            "aud": audiences, "exp": expires.as_second(), "iat": now.as_second(), "nbf": now.as_second(),
            "iss": self.issuer, "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": bound,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        let header = Header::new(Algorithm::ES256);
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(TokenError::Sign)?;
        let mut answer = request.clone();
        answer["spec"]["audiences"] = audiences;
        answer["spec"]["expirationSeconds"] = seconds.into();
        answer["status"] = json!({ "token": token, "expirationTimestamp": object::time(expires) });
        Ok(answer)
    }

    /// Signature, issuer, times, and that it is meant for one of the audiences, for this server where none is named;
    /// whether the account still exists is for the caller to see.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Bearer> {
        let own = [self.issuer.clone()];
        let audiences = if audiences.is_empty() { &own } else { audiences };
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(audiences);
        rules.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Value>(token, &self.verifying, &rules)
            .ok()?
            .claims;
        let bound = claims.get("kubernetes.io")?;
        let bound_to = BoundKind::ALL.into_iter().find_map(|kind| {
            let claim = bound.get(kind.claim())?;
            Some(Bound {
                kind,
                name: claim.text("name").to_owned(),
                uid: claim.text("uid").to_owned(),
            })
        });
        Some(Bearer {
            namespace: bound.text("namespace").to_owned(),
            name: bound.text("serviceaccount.name").to_owned(),
            uid: bound.text("serviceaccount.uid").to_owned(),
            bound: bound_to,
            audiences: audiences
                .iter()
                .filter(|audience| claims.list("aud").iter().any(|meant| meant == audience.as_str()))
                .cloned()
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ought_to_be_gone_vouches_for_no_token() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let object = |deletion: Value| json!({ "metadata": { "uid": "u", "deletionTimestamp": deletion } });
        for (deletion, uid, expected) in [
            (Value::Null, "u", true),
            (Value::Null, "other", false),
            (json!("2026-01-01T00:10:30Z"), "u", true),
            (json!("2026-01-01T00:09:00Z"), "u", true),
            (json!("2026-01-01T00:08:59Z"), "u", false),
        ] {
            assert_eq!(
                vouches(&object(deletion.clone()), uid, now),
                expected,
                "{deletion} {uid}"
            );
        }
    }
}
