//! Clients that take more than their share: what they get, and that others are served all the while.

use anyhow::{Context, ensure};
use apiserver::Limits;
use futures::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{
    Cluster, DEADLINE, anonymous_connection, client, client_of, config_map, on_every_store, raw,
    raw_connection_of, raw_response,
};

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// What this process, server and clients of a test alike, holds in memory.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn with_limits(name: &str, change: impl FnOnce(&mut Limits)) -> anyhow::Result<Cluster> {
    Cluster::start_with(name, false, |config| change(&mut config.limits)).await
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let held = async {
        while !holds().await? {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, held)
        .await
        .with_context(|| format!("never: {what}"))?
}

/// Somebody who was not there before is answered.
async fn check_served(cluster: &Cluster) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&cluster.files).await?);
    maps.list(&ListParams::default())
        .await
        .context("others are not served")?;
    Ok(())
}

/// A request by hand, as the node `n1`: it is no administrator.
async fn begin(cluster: &Cluster, request: &str) -> anyhow::Result<Tls> {
    let mut stream = raw_connection_of(cluster, "node").await?;
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    Ok(stream)
}

const EVENTS: &str = "/api/v1/namespaces/default/events";

/// A POST that is not complete.
async fn begin_post(cluster: &Cluster, length: usize) -> anyhow::Result<Tls> {
    let head = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{{"
    );
    begin(cluster, &head).await
}

/// A POST whose body has arrived but for its end.
async fn post_nearly(cluster: &Cluster, length: usize) -> anyhow::Result<Tls> {
    let mut stream = begin_post(cluster, length).await?;
    stream.write_all(&vec![b' '; length - 2]).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Code, head and body of the answer; the server closes.
async fn answer(stream: &mut Tls) -> anyhow::Result<(u16, String)> {
    let mut text = Vec::new();
    // A close without TLS's goodbye is a close.
    if let Err(error) = stream.read_to_end(&mut text).await {
        ensure!(error.kind() == std::io::ErrorKind::UnexpectedEof, "{error}");
    }
    let text = String::from_utf8(text)?;
    let code = text.get(9..12).context("no status line")?.parse()?;
    Ok((code, text))
}

#[tokio::test]
async fn one_connection_too_many_ends_the_one_that_was_longest_idle() -> anyhow::Result<()> {
    let cluster = with_limits("crowd", |limits| limits.connections = 40).await?;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(raw_connection_of(&cluster, "admin").await?);
    }
    let mut half_open = Vec::new();
    for _ in 0..100 {
        half_open.push(TcpStream::connect(("127.0.0.1", cluster.port)).await?);
    }
    for stream in &mut idle {
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await?;
        ensure!(matches!(read, Ok(0) | Err(_)), "an idle connection was left");
    }
    for stream in half_open.iter_mut().take(60) {
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await?;
        ensure!(matches!(read, Ok(0) | Err(_)), "a handshake was left");
    }
    check_served(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_and_half_handshakes_keep_nobody_out() -> anyhow::Result<()> {
    const EACH: usize = 1500;
    let cluster = with_limits("idle", |_| ()).await?;
    let before = resident_kib()?;
    let mut half_open = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..EACH {
        half_open.push(TcpStream::connect(("127.0.0.1", cluster.port)).await?);
        idle.push(raw_connection_of(&cluster, "admin").await?);
    }
    let after = resident_kib()?;
    // Other tests run in this process: told, not judged.
    let each = (after.saturating_sub(before) << 10) / (2 * EACH as u64);
    println!(
        "{} connections: {before} KiB before, {after} KiB after, {each} bytes each, both ends",
        2 * EACH
    );
    check_served(&cluster).await
}

#[tokio::test]
async fn requests_beyond_the_bound_are_told_to_come_later() -> anyhow::Result<()> {
    let cluster = with_limits("inflight", |limits| limits.writing = 2).await?;
    let mut slow = vec![
        begin_post(&cluster, 1000).await?,
        begin_post(&cluster, 1000).await?,
    ];
    let node = client_of(&cluster.files, "node").await?;
    let post = || -> anyhow::Result<_> {
        let body =
            json!({ "metadata": { "generateName": "e" }, "involvedObject": { "namespace": "default" } });
        Ok(http::Request::post(EVENTS).body(body.to_string().into_bytes().into())?)
    };
    let mut refused = None;
    eventually("a third write is refused", async || {
        let answer = node.send(post()?).await?;
        let is_refused = answer.status() == 429;
        refused = Some(answer);
        Ok(is_refused)
    })
    .await?;
    let refused = refused.context("an answer")?;
    ensure!(refused.headers()["retry-after"] == "1", "{:?}", refused.headers());
    // Reading has a bound of its own; administrators have none, nor have watches.
    for path in ["/api/v1/nodes", "/api/v1/nodes?watch=true&timeoutSeconds=1"] {
        let answer = node
            .send(http::Request::get(path).body(Vec::new().into())?)
            .await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.status());
    }
    let maps: Api<ConfigMap> = cluster.api();
    maps.create(&PostParams::default(), &config_map("a", json!({}), json!({}))?)
        .await?;
    slow.truncate(1);
    eventually("a place is given back", async || {
        Ok(node.send(post()?).await?.status() == 201)
    })
    .await
}

/// Sends `count` requests over one HTTP/2 connection whose client lets no answer in; without credentials where `user`
/// is `None`. The answers' heads are there when this returns.
async fn ask_and_read_nothing(
    cluster: &Cluster,
    user: Option<&str>,
    path: &str,
    count: usize,
) -> anyhow::Result<impl Sized + use<>> {
    let stream = match user {
        Some(user) => raw_connection_of(cluster, user).await?,
        None => anonymous_connection(cluster).await?,
    };
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake::<_, axum::body::Body>(TokioIo::new(stream))
        .await?;
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..count {
        let uri = format!("https://localhost{path}");
        let request = http::Request::get(uri).body(axum::body::Body::empty())?;
        answers.push(sender.send_request(request).await?);
    }
    Ok((sender, connection, answers))
}

#[tokio::test]
async fn answers_that_nobody_reads_keep_nobody_out() -> anyhow::Result<()> {
    let cluster = with_limits("unread", |limits| {
        limits.reading = 2;
        limits.connections = 8;
        limits.unread_timeout = std::time::Duration::from_millis(100);
    })
    .await?;
    let node = client_of(&cluster.files, "node").await?;
    let reads = async || -> anyhow::Result<bool> {
        let request = http::Request::get("/api/v1/nodes").body(Vec::new().into())?;
        Ok(node.send(request).await?.status() == 200)
    };
    let mut unread = Vec::new();
    for path in ["/version", "/api/v1/nodes?watch=true"] {
        for _ in 0..5 {
            unread.push(ask_and_read_nothing(&cluster, None, path, 4).await?);
        }
    }
    ensure!(reads().await?, "a place is held by an answer that nobody reads");
    check_served(&cluster).await?;
    // What is large is held, but not for ever.
    let _large = ask_and_read_nothing(&cluster, Some("node"), "/openapi/v2", 2).await?;
    eventually("places of large answers are given back", reads).await
}

#[tokio::test]
async fn one_user_leaves_places_to_others() -> anyhow::Result<()> {
    let cluster = with_limits("share", |limits| limits.reading = 4).await?;
    let node = client_of(&cluster.files, "node").await?;
    let version = |client: kube::Client, user: Option<&'static str>| async move {
        let mut request = http::Request::get("/version");
        if let Some(user) = user {
            request = request.header("impersonate-user", user);
        }
        let answer = client.send(request.body(Vec::new().into())?).await?;
        anyhow::Ok((
            answer.status().as_u16(),
            answer.headers().get("retry-after").cloned(),
        ))
    };
    let unread = ask_and_read_nothing(&cluster, Some("node"), "/openapi/v2", 3).await?;
    let (code, after) = version(node.clone(), None).await?;
    ensure!(
        (code, after.as_ref().map(|after| after.as_bytes())) == (429, Some(b"1".as_slice())),
        "{code} {after:?}"
    );
    let (code, _) = version(cluster.client.clone(), Some("alice")).await?;
    ensure!(code == 200, "another user: {code}");
    drop(unread);
    eventually("the node's places are given back", async || {
        Ok(version(node.clone(), None).await?.0 == 200)
    })
    .await
}

#[tokio::test]
async fn one_user_leaves_room_for_bodies_to_others() -> anyhow::Result<()> {
    let cluster = with_limits("room", |limits| limits.body_bytes = 64 << 10).await?;
    let node = client_of(&cluster.files, "node").await?;
    let review = |client: kube::Client, user: Option<&'static str>| async move {
        let mut request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        if let Some(user) = user {
            request = request.header("impersonate-user", user);
        }
        let review = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } });
        let body = format!("{}{review}", " ".repeat(10 << 10));
        let answer = client.send(request.body(body.into_bytes().into())?).await?;
        anyhow::Ok(answer.status().as_u16())
    };
    let mut announced = Vec::new();
    for _ in 0..22 {
        announced.push(begin_post(&cluster, 60 << 10).await?);
    }
    let code = review(node.clone(), None).await?;
    ensure!(code == 201, "what did not arrive takes room: {code}");
    let arrived = post_nearly(&cluster, 20 << 10).await?;
    eventually("the node has its share", async || {
        Ok(review(node.clone(), None).await? == 429)
    })
    .await?;
    let code = review(cluster.client.clone(), Some("alice")).await?;
    ensure!(code == 201, "another user: {code}");
    // There is no room for it at all.
    let maps: Api<ConfigMap> = cluster.api();
    let large = json!({ "text": "a".repeat(100 << 10) });
    maps.create(&PostParams::default(), &config_map("a", json!({}), large)?)
        .await
        .context("an administrator")?;
    drop((announced, arrived));
    eventually("the node's room is given back", async || {
        Ok(review(node.clone(), None).await? == 201)
    })
    .await
}

#[tokio::test]
async fn a_body_that_nobody_reads_takes_no_room() -> anyhow::Result<()> {
    let cluster = with_limits("unwanted", |limits| limits.body_bytes = 64 << 10).await?;
    let body = " ".repeat(40 << 10);
    let head = format!("host: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let request = format!("GET /api/v1/nodes?watch=true HTTP/1.1\r\n{head}{body}");
    let mut watch = begin(&cluster, &request).await?;
    let mut start = [0; 12];
    tokio::time::timeout(DEADLINE, watch.read_exact(&mut start)).await??;
    ensure!(&start == b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&start));
    let node = client_of(&cluster.files, "node").await?;
    let request = http::Request::post(EVENTS).body(vec![b' '; 10 << 10].into())?;
    let code = node.send(request).await?.status();
    ensure!(code == 400, "{code}");
    Ok(())
}

#[tokio::test]
async fn bodies_have_a_time_and_a_room_together() -> anyhow::Result<()> {
    let cluster = with_limits("bodies", |limits| limits.body_bytes = 64 << 10).await?;
    let (code, text) = answer(&mut begin_post(&cluster, (3 << 20) + 1).await?).await?;
    ensure!(
        code == 413 && text.contains("Request entity too large: limit is 3145728"),
        "{text}"
    );
    let first = post_nearly(&cluster, 40 << 10).await?;
    let node = client_of(&cluster.files, "node").await?;
    eventually("a second large body is refused", async || {
        let request = http::Request::post(EVENTS).body(vec![b' '; 10 << 10].into())?;
        Ok(node.send(request).await?.status() == 429)
    })
    .await?;
    check_served(&cluster).await?;
    drop(first);
    let hurried = with_limits("hurry", |limits| {
        limits.body_timeout = std::time::Duration::from_millis(50)
    })
    .await?;
    let (code, text) = answer(&mut begin_post(&hurried, 10).await?).await?;
    ensure!(
        code == 504 && text.contains("did not complete within the allotted timeout"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_ended_and_others_see_everything() -> anyhow::Result<()> {
    const WRITES: usize = 60;
    const BYTES: usize = 900 << 10;
    let cluster = with_limits("slow", |_| ()).await?;
    let maps: Api<ConfigMap> = cluster.api();
    let made = maps
        .create(&PostParams::default(), &config_map("big", json!({}), json!({}))?)
        .await?;
    let since = made.metadata.resource_version.context("a version")?;
    let path = format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={since}");
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(64 << 10)?;
    let socket = socket.connect(([127, 0, 0, 1], cluster.port).into()).await?;
    let mut slow = super::raw_connection_over(&cluster, "admin", socket).await?;
    slow.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    slow.flush().await?;
    let before = resident_kib()?;
    let other = tokio::spawn({
        let maps = maps.clone();
        async move {
            let mut events = maps
                .watch(&WatchParams::default().timeout(120), &since)
                .await?
                .boxed();
            let mut seen = 0;
            while seen < WRITES {
                match events.next().await.context("the watch ended")?? {
                    WatchEvent::Modified(_) => seen += 1,
                    other => anyhow::bail!("{other:?}"),
                }
            }
            anyhow::Ok(())
        }
    });
    for write in 0..WRITES {
        let text = char::from(b'a' + u8::try_from(write % 26)?)
            .to_string()
            .repeat(BYTES);
        let patch = Patch::Merge(json!({ "data": { "text": text, "write": write.to_string() } }));
        maps.patch("big", &PatchParams::default(), &patch).await?;
    }
    tokio::time::timeout(DEADLINE, other)
        .await
        .context("the other watcher")???;
    println!(
        "slow watcher: {before} KiB before, {} KiB after {WRITES} writes of {BYTES} bytes",
        resident_kib()?
    );
    let mut read = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, slow.read_to_end(&mut read)).await;
    ended.context("the slow watcher was not ended")?.ok();
    let events = String::from_utf8_lossy(&read)
        .matches("\"type\":\"MODIFIED\"")
        .count();
    println!("it was sent {events} events, {} bytes", read.len());
    ensure!(
        events < WRITES / 2,
        "{events} events waited for a client that does not read"
    );
    check_served(&cluster).await
}

#[tokio::test]
async fn large_answers_are_packed_for_who_takes_them() -> anyhow::Result<()> {
    let cluster = with_limits("gzip", |_| ()).await?;
    let maps: Api<ConfigMap> = cluster.api();
    let text = "abcdefgh".repeat(20 << 10);
    maps.create(
        &PostParams::default(),
        &config_map("big", json!({}), json!({ "text": text }))?,
    )
    .await?;
    for (path, packed) in [
        ("/api/v1/namespaces/default/configmaps", true),
        ("/api/v1/namespaces/default/configmaps/big", true),
        ("/api/v1/namespaces/default/secrets", false),
    ] {
        let request = http::Request::get(path)
            .header("accept-encoding", "gzip")
            .body(Vec::new().into())?;
        let answer = cluster.client.send(request).await?;
        let encoding = answer
            .headers()
            .get("content-encoding")
            .is_some_and(|value| value == "gzip");
        ensure!(encoding == packed, "{path}: {:?}", answer.headers());
        let (head, plain) = raw_response(&cluster, "GET", path, None, Vec::new()).await?;
        ensure!(
            !head.headers.contains_key("content-encoding"),
            "{path}: {:?}",
            head.headers
        );
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await?
            .to_bytes();
        if packed {
            ensure!(body.len() < 100 << 10, "{path}: {} bytes", body.len());
            let unpacked: Value = serde_json::from_reader(flate2::read::GzDecoder::new(&body[..]))?;
            ensure!(unpacked == plain, "{path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn huge_objects_are_refused_in_the_words_of_kubernetes() -> anyhow::Result<()> {
    on_every_store("huge", async |cluster| {
        let before = resident_kib()?;
        let mebibyte = "a".repeat(1 << 20);
        // More than etcd takes, and less than its gRPC does.
        let container = json!({ "name": "a", "image": "a:1", "env": [{ "name": "A", "value": "a".repeat(1_700_000) }] });
        let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [container] } });
        let secret = json!({ "metadata": { "name": "a" }, "stringData": { "a": format!("{mebibyte}a") } });
        for (path, object, code, text) in [
            (
                "/api/v1/namespaces/default/configmaps",
                json!({ "metadata": { "name": "a" }, "data": { "a": mebibyte } }),
                422,
                "ConfigMap \"a\" is invalid: []: Too long: may not be more than 1048576 bytes",
            ),
            (
                "/api/v1/namespaces/default/secrets",
                secret,
                422,
                "Secret \"a\" is invalid: data: Too long: may not be more than 1048576 bytes",
            ),
            (
                "/api/v1/namespaces/default/configmaps",
                json!({ "metadata": { "name": "a", "annotations": { "a": "a".repeat(256 << 10) } } }),
                422,
                "ConfigMap \"a\" is invalid: metadata.annotations: Too long: may not be more than 262144 bytes",
            ),
            (
                "/api/v1/namespaces/default/configmaps",
                json!({ "metadata": { "name": "a" }, "data": { "a": mebibyte.repeat(3) } }),
                413,
                "Request entity too large: limit is 3145728",
            ),
            (
                "/apis/apps/v1/namespaces/default/deployments",
                json!({
                    "metadata": { "name": "a" },
                    "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": template },
                }),
                500,
                "etcdserver: request is too large",
            ),
        ] {
            let (found, status) = raw(&cluster, "POST", path, None, object.to_string()).await?;
            ensure!(found == code && status["message"] == text, "{path}: {found} {status}");
        }
        let nearly = json!({ "a": "a".repeat((1 << 20) - 1) });
        cluster.api::<ConfigMap>().create(&PostParams::default(), &config_map("a", json!({}), nearly)?).await?;
        println!("huge objects: {before} KiB before, {} KiB after", resident_kib()?);
        check_served(&cluster).await
    })
    .await
}

/// Events are kept for an hour, whoever writes them; leases are shared for a minute.
#[tokio::test]
async fn events_of_both_kinds_vanish_after_an_hour() -> anyhow::Result<()> {
    on_every_store("hour", async |cluster| {
        let moment = "2024-01-01T00:00:00.000000Z";
        let newer = json!({
            "metadata": { "name": "newer" }, "regarding": { "namespace": "default" }, "type": "Normal",
            "reason": "r", "action": "a", "reportingController": "c", "reportingInstance": "i", "eventTime": moment,
        });
        let older = json!({ "metadata": { "name": "older" }, "involvedObject": { "namespace": "default" } });
        let mut store = etcd_client::Client::connect([cluster.store()], None).await?;
        for (path, name, event) in [
            ("/apis/events.k8s.io/v1/namespaces/default/events", "newer", newer),
            (EVENTS, "older", older),
        ] {
            let (code, made) = raw(&cluster, "POST", path, None, event.to_string()).await?;
            ensure!(code == 201, "{made}");
            let kept = store.get(format!("/registry/core/events/default/{name}"), None).await?;
            let lease = kept.kvs().first().context("a key")?.lease();
            let granted = store.lease_time_to_live(lease, None).await?.granted_ttl();
            ensure!(granted == 3660, "{granted} s");
        }
        Ok(())
    })
    .await
}
