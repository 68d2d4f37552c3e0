//! Images from a registry that this test serves on loopback: good ones by every way of logging in, and bad ones.

mod scratch;

mod privileged {
    use std::collections::BTreeMap;
    use std::fs;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use axum::Router;
    use axum::extract::{Request, State};
    use axum::http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse as _, Response};
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use kubelet::images::Image;
    use kubelet::images::archive::{architecture, sha256};
    use kubelet::images::pull::{Login, pull};
    use serde_json::{Value, json};

    use crate::scratch::{Scratch, may_run};

    const CONTENTS: &[u8] = b"of the registry";

    /// How a registry wants to be asked.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Gate {
        Open,
        Basic,
        Token,
        /// Whoever gives tokens is ill.
        NoToken,
    }

    /// A registry of one image, `a/b:v1`.
    struct Registry {
        gate: Gate,
        /// Answers by what stands behind `/v2/a/b/`.
        contents: BTreeMap<String, Vec<u8>>,
        /// Blobs that are elsewhere.
        moved: bool,
    }

    impl Registry {
        fn new(gate: Gate) -> Self {
            let layer = layer();
            let config = json!({
                "architecture": architecture(), "os": "linux", "config": { "Cmd": ["/hello"] },
                "rootfs": { "type": "layers", "diff_ids": [sha256(&layer)] },
            })
            .to_string()
            .into_bytes();
            let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len() });
            let manifest = json!({
                "schemaVersion": 2,
                "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
            })
            .to_string()
            .into_bytes();
            let contents = BTreeMap::from([
                ("manifests/v1".to_owned(), manifest.clone()),
                (format!("manifests/{}", sha256(&manifest)), manifest),
                (format!("blobs/{}", sha256(&config)), config),
                (format!("blobs/{}", sha256(&layer)), layer),
            ]);
            Self {
                gate,
                contents,
                moved: false,
            }
        }

        fn manifest(&self) -> Value {
            serde_json::from_slice(&self.contents["manifests/v1"]).expect("a manifest")
        }

        fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Self {
            let mut manifest = self.manifest();
            edit(&mut manifest);
            self.contents
                .insert("manifests/v1".to_owned(), manifest.to_string().into_bytes());
            self
        }

        /// The tag names an index, in which this machine's manifest is the second.
        fn behind_an_index(mut self) -> Self {
            let manifest = self.contents["manifests/v1"].clone();
            let one = |architecture: &str, digest: String| {
                let platform = json!({ "os": "linux", "architecture": architecture });
                json!({ "digest": digest, "size": 1, "platform": platform })
            };
            let index = json!({ "schemaVersion": 2, "manifests": [
                one("other", sha256(b"other")),
                one(architecture(), sha256(&manifest)),
            ] });
            self.contents
                .insert("manifests/v1".to_owned(), index.to_string().into_bytes());
            self
        }

        /// The same manifest under one more digest, true or not.
        fn answering(mut self, digest: &str) -> Self {
            let manifest = self.contents["manifests/v1"].clone();
            self.contents.insert(format!("manifests/{digest}"), manifest);
            self
        }

        fn with_damaged_layer(mut self) -> Self {
            let digest = self.manifest()["layers"][0]["digest"]
                .as_str()
                .expect("a digest")
                .to_owned();
            let layer = self
                .contents
                .get_mut(&format!("blobs/{digest}"))
                .expect("a layer");
            if let Some(last) = layer.last_mut() {
                *last ^= 1;
            }
            self
        }

        async fn serve(self) -> SocketAddr {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            let address = listener.local_addr().expect("bound");
            let router = Router::new().fallback(answer).with_state(Arc::new(self));
            tokio::spawn(async move { axum::serve(listener, router).await });
            address
        }
    }

    fn layer() -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_size(CONTENTS.len() as u64);
        header.set_mode(0o755);
        let mut layer = tar::Builder::new(Vec::new());
        layer
            .append_data(&mut header, "hello", CONTENTS)
            .expect("appended");
        layer.into_inner().expect("finished")
    }

    async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
        let (path, headers) = (request.uri().path(), request.headers());
        let host = headers
            .get("host")
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        let said = headers.get(AUTHORIZATION).and_then(|said| said.to_str().ok());
        let basic = format!("Basic {}", BASE64_STANDARD.encode("me:secret"));
        if path == "/token" {
            if registry.gate == Gate::NoToken {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            let asks = request.uri().query() == Some("service=here&scope=repository%3Aa%2Fb%3Apull");
            return match said == Some(&basic) && asks {
                true => r#"{"token":"t"}"#.into_response(),
                false => StatusCode::UNAUTHORIZED.into_response(),
            };
        }
        // Storage that sends on to itself: the login that did not go there does not follow later.
        if let Some(blob) = path.strip_prefix("/further/") {
            let location = format!("http://{host}/elsewhere/{blob}");
            return (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]).into_response();
        }
        // What a registry's storage gets must not be the registry's login.
        if let Some(blob) = path.strip_prefix("/elsewhere/") {
            return match said {
                None => registry.contents[blob].clone().into_response(),
                Some(_) => StatusCode::BAD_REQUEST.into_response(),
            };
        }
        let (wanted, challenge) = match registry.gate {
            Gate::Open => (None, String::new()),
            Gate::Basic => (Some(basic), "Basic realm=\"here\"".to_owned()),
            Gate::Token | Gate::NoToken => (
                Some("Bearer t".to_owned()),
                format!("Bearer realm=\"http://{host}/token\",service=\"here\""),
            ),
        };
        if wanted.as_deref() != said {
            return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)]).into_response();
        }
        let Some(place) = path.strip_prefix("/v2/a/b/") else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if registry.moved && place.starts_with("blobs/") {
            let port = host.rsplit(':').next().unwrap_or_default();
            let mut elsewhere = HeaderMap::new();
            let location = format!("http://localhost:{port}/further/{place}");
            elsewhere.insert(LOCATION, location.parse().expect("a header"));
            return (StatusCode::TEMPORARY_REDIRECT, elsewhere).into_response();
        }
        match registry.contents.get(place) {
            Some(bytes) => bytes.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn login(registry: &str, password: &str) -> Vec<Login> {
        let config = json!({ "auths": { registry: { "username": "me", "password": password } } });
        let data = BTreeMap::from([(".dockerconfigjson".to_owned(), config.to_string().into_bytes())]);
        Login::of_secret(&data)
    }

    /// What came of a pull: the image's one file, or why not, without the port that the registry happens to have.
    async fn pulled(test: &str, registry: Registry, version: &str, password: &str) -> Result<Image, String> {
        let scratch = Scratch::new(test);
        let address = registry.serve().await;
        let reference = format!("{address}/a/b{version}");
        let store = scratch.store();
        let outcome = pull(&store, &reference, &login(&address.to_string(), password)).await;
        let left: Vec<_> = fs::read_dir(scratch.0.join("images"))
            .expect("there")
            .flatten()
            .collect();
        let left: Vec<String> = left
            .iter()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        match outcome {
            Ok(image) => {
                assert_eq!(
                    fs::read(image.rootfs.join("hello")).ok().as_deref(),
                    Some(CONTENTS)
                );
                assert_eq!(store.find(&reference).expect("readable"), Some(image.clone()));
                Ok(image)
            }
            Err(error) => {
                assert!(
                    left.iter().all(|name| name == ".lock"),
                    "a failed pull leaves {left:?}"
                );
                Err(error.to_string().replace(&address.to_string(), "here"))
            }
        }
    }

    #[tokio::test]
    async fn an_image_comes_by_every_way_that_registries_have() {
        if !may_run("an_image_comes_by_every_way_that_registries_have") {
            return;
        }
        let digest = sha256(&Registry::new(Gate::Open).contents["manifests/v1"]);
        let by_digest = format!("@{digest}");
        let elsewhere = Registry {
            moved: true,
            ..Registry::new(Gate::Token)
        };
        for (registry, version) in [
            (Registry::new(Gate::Open), ":v1"),
            (Registry::new(Gate::Open), &by_digest),
            (Registry::new(Gate::Open).behind_an_index(), ":v1"),
            (Registry::new(Gate::Basic), ":v1"),
            (Registry::new(Gate::Token), ":v1"),
            (elsewhere, ":v1"),
        ] {
            let image = pulled("good", registry, version, "secret").await.expect("pulled");
            assert_eq!(image.config.cmd, ["/hello"]);
        }
    }

    /// Several Secrets, and several places in one, may fit: the first that the registry takes is the one.
    #[tokio::test]
    async fn a_login_that_is_refused_gives_way_to_the_next() {
        if !may_run("a_login_that_is_refused_gives_way_to_the_next") {
            return;
        }
        for gate in [Gate::Basic, Gate::Token] {
            let scratch = Scratch::new("logins");
            let address = Registry::new(gate).serve().await.to_string();
            let closest = login(&format!("{address}/a/b"), "wrong");
            let logins = [login(&address, "secret"), closest].concat();
            let image = pull(&scratch.store(), &format!("{address}/a/b:v1"), &logins).await;
            assert_eq!(image.expect("pulled").config.cmd, ["/hello"]);
        }
    }

    #[tokio::test]
    async fn an_image_that_is_there_costs_its_manifest_alone() {
        if !may_run("an_image_that_is_there_costs_its_manifest_alone") {
            return;
        }
        let scratch = Scratch::new("twice");
        let store = scratch.store();
        let mut without_blobs = Registry::new(Gate::Open);
        without_blobs
            .contents
            .retain(|path, _| path.starts_with("manifests/"));
        let mut seen = Vec::new();
        for registry in [Registry::new(Gate::Open), without_blobs] {
            let reference = format!("{}/a/b:v1", registry.serve().await);
            let image = pull(&store, &reference, &[]).await.expect("pulled");
            assert_eq!(store.find(&reference).expect("readable"), Some(image.clone()));
            seen.push(image.id);
        }
        assert_eq!(seen.first(), seen.last());
    }

    #[tokio::test]
    async fn what_is_not_as_announced_is_not_taken() {
        if !may_run("what_is_not_as_announced_is_not_taken") {
            return;
        }
        let open = || Registry::new(Gate::Open);
        let layer_digest = open().manifest()["layers"][0]["digest"]
            .as_str()
            .expect("a digest")
            .to_owned();
        let resolve =
            |version: &str, why: &str| format!("failed to resolve reference \"here/a/b{version}\": {why}");
        let blob = |why: String| format!("failed to pull \"here/a/b:v1\": {layer_digest}: {why}");
        let denied = "pull access denied, repository does not exist or may require authorization: server answered 401 \
                      Unauthorized";
        let no_token = "failed to authorize: failed to fetch token: unexpected status from GET request to \
                        http://here/token?service=here&scope=repository%3Aa%2Fb%3Apull: 503 Service Unavailable";
        let size = |value: u64| move |manifest: &mut Value| manifest["layers"][0]["size"] = value.into();
        let length = layer().len() as u64;
        let other = format!("@{}", sha256(b"other"));
        let (sha512, false_digest) = (format!("sha512:{}", "0".repeat(128)), sha256(b"false"));
        for (registry, version, password, expected) in [
            (open(), ":v2", "secret", resolve(":v2", "here/a/b:v2: not found")),
            (
                open(),
                &other,
                "secret",
                resolve(
                    &other,
                    &format!("here/a/b:{}: not found", other.trim_start_matches('@')),
                ),
            ),
            (Registry::new(Gate::Basic), ":v1", "wrong", resolve(":v1", denied)),
            (Registry::new(Gate::Token), ":v1", "wrong", resolve(":v1", denied)),
            (
                Registry::new(Gate::NoToken),
                ":v1",
                "secret",
                resolve(":v1", no_token),
            ),
            (
                open().with_damaged_layer(),
                ":v1",
                "secret",
                blob(format!(
                    "contents of {layer_digest} are not what their digest says"
                )),
            ),
            (
                open().edit(size(length - 1)),
                ":v1",
                "secret",
                blob(format!("{} bytes were announced, and others came", length - 1)),
            ),
            (
                open().edit(size(length + 1)),
                ":v1",
                "secret",
                blob(format!("{} bytes were announced, and others came", length + 1)),
            ),
            (
                open().edit(size(1 << 50)),
                ":v1",
                "secret",
                resolve(":v1", "the image is larger than any that is taken"),
            ),
            (
                open().edit(|manifest| manifest["layers"][0]["digest"] = "sha256:../../etc".into()),
                ":v1",
                "secret",
                resolve(":v1", "unsupported digest \"sha256:../../etc\""),
            ),
            (
                open().answering(&sha512),
                &format!("@{sha512}"),
                "secret",
                resolve(&format!("@{sha512}"), &format!("unsupported digest \"{sha512}\"")),
            ),
            (
                open().answering(&false_digest),
                &format!("@{false_digest}"),
                "secret",
                resolve(
                    &format!("@{false_digest}"),
                    &format!("contents of {false_digest} are not what their digest says"),
                ),
            ),
        ] {
            let seen = pulled("bad", registry, version, password).await;
            assert_eq!(seen.expect_err("not taken"), expected);
        }
    }
}
