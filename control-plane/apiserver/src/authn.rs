//! Who asks: a client certificate (CN = user, O = groups) or a ServiceAccount token.

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tokens::Bearer;

/// Whoever sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` among them.
    pub groups: Vec<String>,
    /// Set for ServiceAccounts.
    pub uid: Option<String>,
}

impl User {
    /// No credential at all.
    pub fn anonymous() -> Self {
        User {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            uid: None,
        }
    }

    /// The subject of a client certificate that TLS has verified.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|one| one.as_str().ok().map(str::to_owned))
            .collect();
        groups.push("system:authenticated".to_owned());
        Some(User {
            name,
            groups,
            uid: None,
        })
    }

    /// The ServiceAccount that a token speaks for.
    pub fn from_bearer(bearer: &Bearer) -> Self {
        let Bearer {
            namespace, name, uid, ..
        } = bearer;
        User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: [
                &User::groups_of_accounts(namespace)[..],
                &["system:authenticated".to_owned()],
            ]
            .concat(),
            uid: Some(uid.clone()),
        }
    }

    /// The groups that all ServiceAccounts of a namespace are in.
    pub fn groups_of_accounts(namespace: &str) -> [String; 2] {
        [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ]
    }

    /// Membership.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// `authentication.k8s.io/v1 UserInfo`.
    pub fn info(&self) -> Value {
        let mut info = json!({ "username": self.name, "groups": self.groups });
        if let Some(uid) = &self.uid {
            info["uid"] = uid.as_str().into();
        }
        info
    }
}

/// The token of an `Authorization: Bearer` header.
pub fn bearer_token(headers: &http::HeaderMap) -> Option<&str> {
    headers
        .get(http::header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
        .map(str::trim)
}
