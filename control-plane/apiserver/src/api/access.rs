//! Whether somebody may do what they ask for, speak for somebody else, and give others what they want to give.

use http::HeaderMap;
use serde_json::Value;

use super::{Api, Call, SYNC_LIMIT};
use crate::authn::User;
use crate::authz::{self, ADMINISTRATORS};
use crate::object::{self, Fields};
use crate::rbac::{self, Policy, RoleName, Rule};
use crate::request::{RequestInfo, ResourcePath, Target};
use crate::status::{Failure, Result};

const AS_USER: &str = "impersonate-user";
const AS_GROUP: &str = "impersonate-group";
const AS_UID: &str = "impersonate-uid";

impl Api {
    /// Whether a user may do it: without a role, or by one.
    pub(super) async fn may(&self, user: &User, request: &RequestInfo) -> Result<bool> {
        Ok(authz::allowed(user, request) || self.policy().await?.allows(user, request))
    }

    /// What roles allow, once they have been read.
    pub(super) async fn policy(&self) -> Result<std::sync::Arc<Policy>> {
        match self.caches.wait_synced(SYNC_LIMIT).await {
            true => Ok(self.authorizer.policy(self.registry, &self.caches, &self.storage)),
            false => Err(Failure::unavailable("the roles have not been read yet")),
        }
    }

    /// Whom the request is from when it says that it is on somebody's behalf (`kubectl --as`), which its sender must be
    /// allowed to say.
    pub(super) async fn impersonated(&self, user: User, headers: &HeaderMap) -> Result<User> {
        let said = headers
            .keys()
            .any(|header| header.as_str().starts_with("impersonate-"));
        if !said {
            return Ok(user);
        }
        let values = |name: &str| -> Result<Vec<&str>> {
            let values = headers.get_all(name).iter();
            let texts = values.map(|value| value.to_str().ok().filter(|text| !text.is_empty()));
            let texts: Option<Vec<&str>> = texts.collect();
            texts.ok_or_else(|| Failure::bad_request(format!("header {name} is empty or no plain text")))
        };
        let name = values(AS_USER)?.first().copied().unwrap_or_default();
        let (groups, uid) = (values(AS_GROUP)?, values(AS_UID)?.first().copied());
        if name.is_empty() {
            return Err(Failure::bad_request(
                "requested to impersonate a group, uid or extra without impersonating a user",
            ));
        }
        let account = name
            .strip_prefix("system:serviceaccount:")
            .and_then(|account| account.split_once(':'));
        let whom = match account {
            Some((namespace, name)) => someone("", "serviceaccounts", Some(namespace), name),
            None => someone("", "users", None, name),
        };
        let groups_asked = groups.iter().map(|group| someone("", "groups", None, group));
        let uid_asked = uid.map(|uid| someone("authentication.k8s.io", "uids", None, uid));
        for asked in [whom].into_iter().chain(groups_asked).chain(uid_asked) {
            if !self.may(&user, &asked).await? {
                return Err(authz::refusal(&user, &asked));
            }
        }
        Ok(on_behalf_of(
            name,
            account.map(|(namespace, _)| namespace),
            &groups,
            uid,
        ))
    }

    /// Refuses to make or change a role or a binding by which somebody would get more than its author has
    /// (`rbac/validation.ConfirmNoEscalation`). Who may `escalate` or `bind` the role may nevertheless.
    pub(super) async fn check_grant(
        &self,
        call: &Call,
        before: Option<&Value>,
        object: &Value,
    ) -> Result<()> {
        if call.resource.group != rbac::GROUP || call.user.is_in(ADMINISTRATORS) {
            return Ok(());
        }
        let policy = self.policy().await?;
        let grant = Grant::of(call.resource.kind, object, call.namespace());
        if before.is_some_and(|before| Grant::of(call.resource.kind, before, call.namespace()) == grant) {
            return Ok(());
        }
        let (verb, role) = grant.permission(call.namespace(), object::name(object));
        let permission = RequestInfo {
            verb: verb.into(),
            target: Target::Resource(role),
        };
        if policy.allows(&call.user, &permission) {
            return Ok(());
        }
        let refuse = |why: String| {
            Err(Failure::forbidden_object(
                call.resource,
                object::name(object),
                why,
            ))
        };
        let wanted = match &grant {
            Grant::Rules { aggregation, .. } if aggregation.is_object() => vec![Rule::everything()],
            Grant::Rules { rules, .. } => rules.clone(),
            Grant::Role { role, .. } => match policy.role(role) {
                Some(rules) => rules.to_vec(),
                None => {
                    let kind = if role.namespace.is_empty() {
                        "ClusterRole"
                    } else {
                        "Role"
                    };
                    let resource = self.registry.kind(rbac::GROUP, kind);
                    return Err(Failure::not_found(resource, &role.name));
                }
            },
        };
        let held: Vec<&Rule> = policy
            .rules_of(&call.user, call.namespace().unwrap_or_default())
            .collect();
        let missing = rbac::missing(&held, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        if matches!(&grant, Grant::Rules { aggregation, .. } if aggregation.is_object()) {
            return refuse("must have cluster-admin privileges to use an aggregationRule".to_owned());
        }
        let missing: Vec<String> = missing.iter().map(Rule::to_string).collect();
        refuse(format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            call.user.name,
            call.user.groups,
            missing.join("\n")
        ))
    }
}

/// What a role or a binding gives.
#[derive(Debug, PartialEq)]
enum Grant {
    /// A role: its rules, or those of the roles that it will collect.
    Rules {
        plural: &'static str,
        rules: Vec<Rule>,
        /// Which roles it will collect; null for none.
        aggregation: Value,
        /// By them other roles collect its rules.
        labels: Value,
    },
    /// A binding: another's.
    Role { role: RoleName, subjects: Value },
}

impl Grant {
    fn of(kind: &str, object: &Value, namespace: Option<&str>) -> Self {
        match kind {
            "Role" | "ClusterRole" => Grant::Rules {
                plural: if kind == "Role" { "roles" } else { "clusterroles" },
                rules: Rule::read_all(object),
                aggregation: object.at("aggregationRule").clone(),
                labels: object.at("metadata.labels").clone(),
            },
            _ => Grant::Role {
                role: RoleName::of_binding(object, namespace.unwrap_or_default()),
                subjects: object.at("subjects").clone(),
            },
        }
    }

    /// The verb, and the role on which it allows to give this whatever one has.
    fn permission(&self, namespace: Option<&str>, name: &str) -> (&'static str, ResourcePath) {
        let on = |plural: &str, name: &str| ResourcePath {
            group: rbac::GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: plural.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ResourcePath::default()
        };
        match self {
            Grant::Rules { plural, .. } => ("escalate", on(plural, name)),
            Grant::Role { role, .. } => {
                let plural = if role.namespace.is_empty() {
                    "clusterroles"
                } else {
                    "roles"
                };
                ("bind", on(plural, &role.name))
            }
        }
    }
}

/// The right to speak for somebody.
fn someone(group: &str, resource: &str, namespace: Option<&str>, name: &str) -> RequestInfo {
    RequestInfo {
        verb: "impersonate".into(),
        target: Target::Resource(ResourcePath {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ResourcePath::default()
        }),
    }
}

/// A ServiceAccount is in its groups where none are named; and everybody is authenticated but the anonymous.
fn on_behalf_of(name: &str, account_of: Option<&str>, groups: &[&str], uid: Option<&str>) -> User {
    const AUTHENTICATED: &str = "system:authenticated";
    let anonymous = User::anonymous();
    let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    if let Some(namespace) = account_of.filter(|_| groups.is_empty()) {
        groups = User::groups_of_accounts(namespace).to_vec();
    }
    if name == anonymous.name {
        if groups.is_empty() {
            groups = anonymous.groups;
        }
    } else if !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    User {
        name: name.to_owned(),
        groups,
        uid: uid.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_spoken_for_is_in_the_groups_that_they_would_be_in() {
        for (name, account_of, groups, expected) in [
            ("u", None, &[][..], &["system:authenticated"][..]),
            ("u", None, &["a"], &["a", "system:authenticated"]),
            (
                "system:serviceaccount:n:s",
                Some("n"),
                &[],
                &[
                    "system:serviceaccounts",
                    "system:serviceaccounts:n",
                    "system:authenticated",
                ],
            ),
            (
                "system:serviceaccount:n:s",
                Some("n"),
                &["a"],
                &["a", "system:authenticated"],
            ),
            ("system:anonymous", None, &[], &["system:unauthenticated"]),
        ] {
            let user = on_behalf_of(name, account_of, groups, None);
            assert_eq!(user.groups, expected, "{name} {groups:?}");
        }
    }
}
