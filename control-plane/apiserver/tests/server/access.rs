//! Roles and bindings as their subjects meet them: what they may do, whom they may speak for, and what they may give.

use anyhow::{Context as _, ensure};
use http::{Method, Request, StatusCode};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::{Etcd, Files, free_port};
use crate::{Directory, eventually};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";

struct Server {
    admin: Client,
    _running: DropGuard,
    _etcd: Etcd,
    _directory: Directory,
}

/// The status code, and the object or the message of the refusal.
type Answer = (u16, Value);

impl Server {
    async fn start(name: &str) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("cwt-access-{}-{name}", std::process::id()));
        let port = free_port()?;
        let files = Files::create(&directory, port)?;
        let etcd = Etcd::bundled(&directory).await?;
        let server = apiserver::Server::bind(files.config(port, etcd.endpoint())).await?;
        let shutdown = CancellationToken::new();
        let running = shutdown.clone().drop_guard();
        tokio::spawn(async move { server.run(shutdown).await });
        let kubeconfig = Kubeconfig::read_from(files.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let server = Server {
            admin: Client::try_from(config)?,
            _running: running,
            _etcd: etcd,
            _directory: Directory(directory),
        };
        eventually("ready", async || {
            of_code(server.ask(&[], Method::GET, "/readyz", None).await?, 200)
        })
        .await?;
        Ok(server)
    }

    /// Asks as the administrator, or as whom the headers name.
    async fn ask(
        &self,
        headers: &[(&str, &str)],
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        let has_type = headers.iter().any(|(name, _)| *name == "content-type");
        let json = [("content-type", "application/json")];
        for (name, value) in headers.iter().chain(json.iter().filter(|_| !has_type)) {
            request = request.header(*name, *value);
        }
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let response = self
            .admin
            .send(request.body(kube::client::Body::from(bytes))?)
            .await?;
        let code = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await?
            .to_bytes();
        let answer: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        let told = match code {
            code if code.is_success() => answer,
            _ => answer["message"].clone(),
        };
        Ok((code.as_u16(), told))
    }

    async fn as_user(
        &self,
        user: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.ask(&[("impersonate-user", user)], method, path, body).await
    }

    async fn patch_as(&self, user: &str, path: &str, patch: &Value) -> anyhow::Result<Answer> {
        let headers = [
            ("impersonate-user", user),
            ("content-type", "application/merge-patch+json"),
        ];
        self.ask(&headers, Method::PATCH, path, Some(patch)).await
    }

    async fn make(&self, path: &str, object: Value) -> anyhow::Result<()> {
        let (code, told) = self.ask(&[], Method::POST, path, Some(&object)).await?;
        ensure!(code == StatusCode::CREATED.as_u16(), "{path}: {code} {told}");
        Ok(())
    }

    async fn make_role(&self, name: &str, rules: Value) -> anyhow::Result<()> {
        self.make(
            &format!("{ROLES}/clusterroles"),
            json!({ "metadata": { "name": name }, "rules": rules }),
        )
        .await
    }

    /// Binds a ClusterRole to a user, in a namespace or everywhere.
    async fn bind(&self, namespace: Option<&str>, role: &str, user: &str) -> anyhow::Result<()> {
        let name = format!("{role}-{user}");
        self.make(&bindings(namespace), binding(&name, "ClusterRole", role, user))
            .await
    }

    /// Waits until a user is answered so, then says what.
    async fn until_code(&self, user: &str, path: &str, code: u16) -> anyhow::Result<Value> {
        eventually(&format!("{user} {path} {code}"), async || {
            of_code(self.as_user(user, Method::GET, path, None).await?, code)
        })
        .await
    }
}

/// What was answered with this code.
fn of_code((seen, told): Answer, code: u16) -> anyhow::Result<Value> {
    ensure!(seen == code, "{seen}: {told}");
    Ok(told)
}

fn bindings(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{ROLES}/namespaces/{namespace}/rolebindings"),
        None => format!("{ROLES}/clusterrolebindings"),
    }
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({ "metadata": { "name": name }, "roleRef": { "kind": kind, "name": role },
        "subjects": [{ "kind": "User", "name": user }] })
}

fn on_pods(verbs: &[&str]) -> Value {
    json!([{ "verbs": verbs, "apiGroups": [""], "resources": ["pods"] }])
}

#[tokio::test]
async fn a_binding_allows_what_its_role_says_where_it_is_and_no_longer_than_it_is_there() -> anyhow::Result<()>
{
    let server = Server::start("binding").await?;
    let pods = |namespace: &str| format!("/api/v1/namespaces/{namespace}/pods");
    let (code, told) = server.as_user("u", Method::GET, &pods("default"), None).await?;
    let expected = "pods is forbidden: User \"u\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    ensure!((code, told.as_str()) == (403, Some(expected)), "{told}");
    server.make_role("pod-reader", on_pods(&["get", "list"])).await?;
    server.bind(Some("default"), "pod-reader", "u").await?;
    server.until_code("u", &pods("default"), 200).await?;
    for (method, path, code) in [
        (Method::GET, pods("kube-system"), 403),
        (Method::GET, "/api/v1/pods".to_owned(), 403),
        (Method::GET, format!("{}/absent", pods("default")), 404),
        (Method::GET, format!("{}/absent/log", pods("default")), 403),
        (Method::DELETE, format!("{}/absent", pods("default")), 403),
    ] {
        let (seen, told) = server.as_user("u", method.clone(), &path, None).await?;
        ensure!(seen == code, "{method} {path}: {seen} {told}");
    }
    // What is the cluster's is in no namespace, whatever its roles allow.
    server.bind(Some("default"), "cluster-admin", "w").await?;
    server.until_code("w", &pods("default"), 200).await?;
    for path in ["nodes/n/proxy/exec/kube-system/p/c", "nodes/n", "nodes"] {
        let path = format!("/api/v1/namespaces/default/{path}");
        let (seen, told) = server.as_user("w", Method::GET, &path, None).await?;
        ensure!(seen == 404, "{path}: {seen} {told}");
    }
    // One of its group is as good, and a subject of another name is not.
    let group = [("impersonate-user", "v"), ("impersonate-group", "readers")];
    let of_group = json!({ "metadata": { "name": "readers" }, "roleRef": { "kind": "ClusterRole", "name": "pod-reader" },
        "subjects": [{ "kind": "Group", "name": "readers" }] });
    server.make(&bindings(None), of_group).await?;
    eventually("the group", async || {
        of_code(server.ask(&group, Method::GET, "/api/v1/pods", None).await?, 200)
    })
    .await?;
    ensure!(server.as_user("v", Method::GET, "/api/v1/pods", None).await?.0 == 403);
    let gone = format!("{}/pod-reader-u", bindings(Some("default")));
    ensure!(server.ask(&[], Method::DELETE, &gone, None).await?.0 == 200);
    server.until_code("u", &pods("default"), 403).await?;
    Ok(())
}

#[tokio::test]
async fn nobody_gives_others_more_than_they_have() -> anyhow::Result<()> {
    let server = Server::start("escalation").await?;
    let roles = format!("{ROLES}/clusterroles");
    let everything_about = |resources: &[&str]| {
        json!([{ "verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": resources },
            { "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"] }])
    };
    let makes = everything_about(&["clusterroles", "roles", "rolebindings", "clusterrolebindings"]);
    let makes = json!([{ "verbs": ["create", "update", "patch", "get"],
        "apiGroups": ["rbac.authorization.k8s.io"], "resources": makes[0]["resources"] }, makes[1]]);
    server.make_role("makes-roles", makes).await?;
    server.bind(None, "makes-roles", "u").await?;
    server
        .until_code("u", &format!("{roles}/makes-roles"), 200)
        .await?;

    let role = |name: &str, rules: Value| json!({ "metadata": { "name": name }, "rules": rules });
    let few = role("few", on_pods(&["get"]));
    ensure!(server.as_user("u", Method::POST, &roles, Some(&few)).await?.0 == 201);
    let more = role("more", on_pods(&["get", "delete"]));
    let (code, told) = server.as_user("u", Method::POST, &roles, Some(&more)).await?;
    let expected = "clusterroles.rbac.authorization.k8s.io \"more\" is forbidden: user \"u\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}";
    ensure!((code, told.as_str()) == (403, Some(expected)), "{told}");
    // A label, by which another role would collect what it allows, gives as much as a rule.
    let labelled =
        json!({ "metadata": { "labels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" } } });
    let (code, told) = server
        .patch_as("u", &format!("{roles}/cluster-admin"), &labelled)
        .await?;
    ensure!(
        code == 403
            && told
                .as_str()
                .is_some_and(|told| told.contains("permissions not currently held")),
        "{told}"
    );
    // By a change, by a role that collects others, by a binding of one that has more: refused alike.
    let few = format!("{roles}/few");
    let changed = role("few", on_pods(&["get", "delete"]));
    let (code, told) = server.as_user("u", Method::PUT, &few, Some(&changed)).await?;
    ensure!(code == 403, "{told}");
    let labelled =
        json!({ "metadata": { "name": "few", "labels": { "a": "b" } }, "rules": on_pods(&["get"]) });
    let (code, told) = server.as_user("u", Method::PUT, &few, Some(&labelled)).await?;
    ensure!(code == 200, "who changes no rule gives nothing: {told}");
    let collects = json!({ "metadata": { "name": "collects" },
        "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] } });
    let (code, told) = server.as_user("u", Method::POST, &roles, Some(&collects)).await?;
    let expected = "clusterroles.rbac.authorization.k8s.io \"collects\" is forbidden: must have cluster-admin privileges to use an aggregationRule";
    ensure!((code, told.as_str()) == (403, Some(expected)), "{told}");
    let bind = async |role: &str| {
        let object = binding(role, "ClusterRole", role, "v");
        server
            .as_user("u", Method::POST, &bindings(Some("default")), Some(&object))
            .await
    };
    ensure!(bind("few").await?.0 == 201);
    let (code, told) = bind("cluster-admin").await?;
    ensure!(
        code == 403
            && told
                .as_str()
                .is_some_and(|told| told.contains("{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}")),
        "{told}"
    );
    let (code, told) = bind("absent").await?;
    let expected = "clusterroles.rbac.authorization.k8s.io \"absent\" not found";
    ensure!((code, told.as_str()) == (404, Some(expected)), "{told}");
    // Whoever may bind a role, or escalate, is asked for nothing else.
    let may = json!([{ "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles"], "resourceNames": ["cluster-admin"] },
        { "verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
        "resourceNames": ["more"] }]);
    server.make_role("may-give", may).await?;
    server.bind(None, "may-give", "u").await?;
    eventually("the right to bind", async || {
        of_code(bind("cluster-admin").await?, 201)
    })
    .await?;
    ensure!(server.as_user("u", Method::POST, &roles, Some(&more)).await?.0 == 201);
    Ok(())
}

#[tokio::test]
async fn roles_and_bindings_are_checked_and_bindings_keep_their_role() -> anyhow::Result<()> {
    let server = Server::start("rules").await?;
    let wrong = json!({ "metadata": { "name": "r" }, "rules": [{ "verbs": ["get"] }] });
    let (code, told) = server
        .ask(&[], Method::POST, &format!("{ROLES}/clusterroles"), Some(&wrong))
        .await?;
    ensure!(code == 422, "{told}");
    server.bind(None, "view", "u").await?;
    let path = format!("{}/view-u", bindings(None));
    let changed = binding("view-u", "ClusterRole", "edit", "u");
    let (code, told) = server.ask(&[], Method::PUT, &path, Some(&changed)).await?;
    ensure!(
        code == 422
            && told
                .as_str()
                .is_some_and(|told| told.ends_with("cannot change roleRef")),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn who_speaks_for_others_must_be_allowed_to() -> anyhow::Result<()> {
    let server = Server::start("impersonation").await?;
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({});
    let account = "system:serviceaccount:default:robot";
    let (code, told) = server
        .as_user(account, Method::POST, reviews, Some(&body))
        .await?;
    let expected = json!({ "username": account, "groups": [
        "system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated" ] });
    ensure!(code == 201 && told["status"]["userInfo"] == expected, "{told}");
    let of_nobody = [("impersonate-group", "g")];
    ensure!(server.ask(&of_nobody, Method::GET, "/version", None).await?.0 == 400);
    // Whoever cannot be read is not the one who asks.
    for name in ["", "j\u{fc}rgen"] {
        let (code, told) = server.as_user(name, Method::POST, reviews, Some(&body)).await?;
        ensure!(code == 400, "{name:?}: {code} {told}");
    }
    // The client of this test is the administrator; one who is not is made by a token.
    server
        .make(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({ "metadata": { "name": "robot" } }),
        )
        .await?;
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let (code, made) = server
        .ask(&[], Method::POST, path, Some(&json!({ "spec": {} })))
        .await?;
    ensure!(code == 201, "{made}");
    let token = format!("Bearer {}", made["status"]["token"].as_str().context("a token")?);
    let speak = async |user: &str| {
        let headers = [("authorization", token.as_str()), ("impersonate-user", user)];
        server.ask(&headers, Method::POST, reviews, Some(&body)).await
    };
    let (code, told) = speak("bob").await?;
    let expected = "users \"bob\" is forbidden: User \"system:serviceaccount:default:robot\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope";
    ensure!((code, told.as_str()) == (403, Some(expected)), "{told}");
    let may = json!([{ "verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"] }]);
    server.make_role("speaks-for-bob", may).await?;
    let subject = json!({ "metadata": { "name": "speaks" }, "roleRef": { "kind": "ClusterRole", "name": "speaks-for-bob" },
        "subjects": [{ "kind": "ServiceAccount", "name": "robot", "namespace": "default" }] });
    server.make(&bindings(None), subject).await?;
    eventually("the right to speak for bob", async || {
        of_code(speak("bob").await?, 201)
    })
    .await?;
    ensure!(speak("eve").await?.0 == 403);
    Ok(())
}

#[tokio::test]
async fn a_token_is_good_for_the_audiences_that_it_was_made_for() -> anyhow::Result<()> {
    let server = Server::start("audiences").await?;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server
        .make(accounts, json!({ "metadata": { "name": "robot" } }))
        .await?;
    let token = async |audiences: Value| {
        let path = format!("{accounts}/robot/token");
        let body = json!({ "spec": { "audiences": audiences } });
        let (code, made) = server.ask(&[], Method::POST, &path, Some(&body)).await?;
        ensure!(code == 201, "{made}");
        anyhow::Ok(made["status"]["token"].clone())
    };
    let (plain, vault) = (token(json!([])).await?, token(json!(["vault", "x"])).await?);
    for (token, audiences, expected) in [
        (&plain, json!([]), true),
        (&plain, json!(["vault"]), false),
        (&vault, json!(["vault", "y"]), true),
        (&vault, json!([]), false),
    ] {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let body = json!({ "spec": { "token": token, "audiences": audiences } });
        let (_, review) = server.ask(&[], Method::POST, path, Some(&body)).await?;
        ensure!(
            review["status"]["authenticated"] == expected,
            "{audiences}: {review}"
        );
        ensure!(
            audiences != json!(["vault", "y"]) || review["status"]["audiences"] == json!(["vault"]),
            "{review}"
        );
    }
    let bearer = format!("Bearer {}", vault.as_str().context("a token")?);
    let headers = [("authorization", bearer.as_str())];
    ensure!(server.ask(&headers, Method::GET, "/apis", None).await?.0 == 401);
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_bound_to_an_object_is_good_as_long_as_that() -> anyhow::Result<()> {
    let server = Server::start("bound").await?;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server
        .make(accounts, json!({ "metadata": { "name": "robot" } }))
        .await?;
    let ask = async |kind: &str, name: &str, uid: &Value| {
        let reference = json!({ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid });
        let body = json!({ "spec": { "boundObjectRef": reference } });
        let path = format!("{accounts}/robot/token");
        server.ask(&[], Method::POST, &path, Some(&body)).await
    };
    let authenticated = async |token: &Value| {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let body = json!({ "spec": { "token": token } });
        let (_, review) = server.ask(&[], Method::POST, path, Some(&body)).await?;
        anyhow::Ok(review["status"]["authenticated"] == true)
    };
    for (kind, path, plural) in [
        ("Secret", "/api/v1/namespaces/default/secrets", "secrets"),
        ("Node", "/api/v1/nodes", "nodes"),
    ] {
        let (code, told) = ask(kind, "b", &Value::Null).await?;
        let absent = format!("{plural} \"b\" not found");
        ensure!((code, &told) == (404, &json!(absent)), "{told}");
        let object = json!({ "metadata": { "name": "b" } });
        server.make(path, object.clone()).await?;
        let (code, told) = ask(kind, "b", &json!("other")).await?;
        ensure!(code == 409, "{told}");
        let (code, made) = ask(kind, "b", &Value::Null).await?;
        ensure!(code == 201, "{made}");
        let token = &made["status"]["token"];
        ensure!(authenticated(token).await?, "{made}");
        let (code, told) = server
            .ask(&[], Method::DELETE, &format!("{path}/b"), None)
            .await?;
        ensure!(code == 200, "{told}");
        // Another of the same name is not what it was bound to.
        server.make(path, object).await?;
        eventually("the token ends with what it was bound to", async || {
            ensure!(!authenticated(token).await?, "the token is good");
            Ok(())
        })
        .await?;
    }
    server
        .make(accounts, json!({ "metadata": { "name": "other" } }))
        .await?;
    let pod = json!({ "metadata": { "name": "p" }, "spec": {
        "serviceAccountName": "other", "containers": [{ "name": "a", "image": "x" }] } });
    server.make("/api/v1/namespaces/default/pods", pod).await?;
    let (code, told) = ask("Pod", "p", &Value::Null).await?;
    let expected =
        "cannot bind token for serviceaccount \"robot\" to pod running with different serviceaccount name.";
    ensure!((code, &told) == (400, &json!(expected)), "{told}");
    let (code, told) = ask("ConfigMap", "b", &Value::Null).await?;
    let expected = "cannot bind token for object of type v1, Kind=ConfigMap";
    ensure!((code, &told) == (400, &json!(expected)), "{told}");
    Ok(())
}

#[tokio::test]
async fn reviews_tell_what_somebody_may_do() -> anyhow::Result<()> {
    let server = Server::start("reviews").await?;
    server
        .make_role(
            "scales",
            json!([{ "verbs": ["patch"], "apiGroups": ["apps"], "resources": ["*/scale"] }]),
        )
        .await?;
    server.bind(Some("default"), "scales", "u").await?;
    let may = async |verb: &str, namespace: &str, resource: &str, subresource: &str| {
        let spec = json!({ "user": "u", "groups": ["g"], "resourceAttributes": {
            "verb": verb, "group": "apps", "namespace": namespace, "resource": resource, "subresource": subresource } });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let (code, told) = server
            .ask(&[], Method::POST, path, Some(&json!({ "spec": spec })))
            .await?;
        ensure!(code == 201, "{told}");
        anyhow::Ok(told["status"]["allowed"] == true)
    };
    eventually("the role", async || {
        ensure!(
            may("patch", "default", "deployments", "scale").await?,
            "not allowed"
        );
        Ok(())
    })
    .await?;
    for (verb, namespace, subresource) in [
        ("patch", "default", ""),
        ("update", "default", "scale"),
        ("*", "default", "scale"),
        ("patch", "kube-system", "scale"),
        ("patch", "", "scale"),
    ] {
        let allowed = may(verb, namespace, "deployments", subresource).await?;
        ensure!(!allowed, "{verb} {namespace} {subresource}");
    }
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let elsewhere = json!({ "spec": { "user": "u", "resourceAttributes": { "namespace": "kube-system" } } });
    ensure!(server.ask(&[], Method::POST, local, Some(&elsewhere)).await?.0 == 422);
    Ok(())
}
