//! Credentials that are replaced while the watch runs on. The kubeconfig names files and stays as it is.

use std::path::Path;

use serde_json::json;
use tests::directory::Directory;
use tests::fake_api::{Authority, FakeApi, Identity};
use tokio::time::Instant;

use super::bench::{Bench, feed, service, wait_for};
use crate::watch::KINDS;

const SERVER: &str = "kube-apiserver";

/// A kubeconfig that names `ca.crt`, `client.crt`, `client.key` and `token` beside it, as far as they are there.
fn write_kubeconfig(api: &FakeApi, path: &Path) {
    let beside = |name: &str| path.with_file_name(name);
    let named = |name: &str| beside(name).exists().then(|| beside(name));
    let scheme = if beside("ca.crt").exists() {
        "https"
    } else {
        "http"
    };
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "files",
        "clusters": [{"name": "files", "cluster": {
            "server": format!("{scheme}://{}", api.address()), "certificate-authority": named("ca.crt"),
        }}],
        "contexts": [{"name": "files", "context": {"cluster": "files", "user": "files"}}],
        "users": [{"name": "files", "user": {
            "client-certificate": named("client.crt"), "client-key": named("client.key"), "tokenFile": named("token"),
        }}],
    });
    std::fs::write(path, config.to_string()).expect("temporary directory is writable");
}

/// Replaces a file as kubelet and ConfigMap volumes do, by a name that then means another file.
fn replace(directory: &Directory, name: &str, text: &str) {
    let fresh = directory.write(&format!("{name}.new"), text);
    std::fs::rename(fresh, directory.path().join(name)).expect("temporary directory is writable");
}

fn write_client(directory: &Directory, client: &Identity) {
    replace(directory, "client.crt", &client.certificate);
    replace(directory, "client.key", &client.key);
}

fn failing(bench: &Bench) -> usize {
    let kinds = bench.status.kinds();
    kinds.values().filter(|kind| kind.failing.is_some()).count()
}

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_is_used_without_a_restart() {
    let directory = Directory::new("token");
    replace(&directory, "token", "first");
    let bench = Bench::start_in(directory, |api, kubeconfig| {
        feed(api);
        api.behave(|behaviour| behaviour.token = Some("first".to_owned()));
        write_kubeconfig(api, kubeconfig);
    });
    bench.until_services(&["a", "b"]).await;

    // It expires before its successor is there: what is known stays.
    bench
        .api
        .behave(|behaviour| behaviour.token = Some("second".to_owned()));
    bench.api.cut();
    bench.api.put(service("c", 80));
    wait_for("the old token is refused", || failing(&bench) > 0).await;
    assert_eq!(bench.snapshots.borrow().services.len(), 2);
    replace(&bench.directory, "token", "second");
    bench.until_services(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn an_authority_that_is_replaced_in_its_file_is_believed_without_a_restart() {
    let [first, second] = ["first", "second"].map(|name| Authority::new(name).expect("a key"));
    let directory = Directory::new("authority");
    replace(&directory, "ca.crt", &first.pem());
    let bench = Bench::start_in(directory, |api, kubeconfig| {
        feed(api);
        let server = first.issue(SERVER, &[]).expect("a certificate");
        api.speak_tls(&server, None).expect("a server");
        write_kubeconfig(api, kubeconfig);
    });
    bench.until_services(&["a", "b"]).await;

    let server = second.issue(SERVER, &[]).expect("a certificate");
    bench.api.speak_tls(&server, None).expect("a server");
    bench.api.put(service("c", 80));
    wait_for("nobody believes a stranger", || failing(&bench) == KINDS.len()).await;
    assert_eq!(bench.snapshots.borrow().services.len(), 2);
    replace(&bench.directory, "ca.crt", &second.pem());
    bench.until_services(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_client_certificate_that_is_replaced_in_its_file_is_shown_without_a_restart() {
    let [old, new] = ["old", "new"].map(|name| Authority::new(name).expect("a key"));
    let directory = Directory::new("client");
    replace(&directory, "ca.crt", &old.pem());
    write_client(&directory, &old.issue("agent", &[]).expect("a certificate"));
    let server = old.issue(SERVER, &[]).expect("a certificate");
    let bench = Bench::start_in(directory, |api, kubeconfig| {
        feed(api);
        api.speak_tls(&server, Some(&old)).expect("a server");
        write_kubeconfig(api, kubeconfig);
    });
    bench.until_services(&["a", "b"]).await;

    // The server takes certificates of the new authority only, and breaks off the handshake of others.
    bench.api.speak_tls(&server, Some(&new)).expect("a server");
    bench.api.put(service("c", 80));
    wait_for("the old certificate is refused", || {
        failing(&bench) == KINDS.len()
    })
    .await;
    write_client(&bench.directory, &new.issue("agent", &[]).expect("a certificate"));
    bench.until_services(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_server_that_refuses_by_a_line_of_text_is_asked_again_when_its_header_says() {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|behaviour| {
            behaviour.fail_next = vec![429; KINDS.len()];
            behaviour.retry_after = 3;
            behaviour.refuses_by_text = true;
        });
    });
    // The back-off after a first failure is half a second at most.
    let start = Instant::now();
    bench.until_services(&["a", "b"]).await;
    assert!(
        start.elapsed().as_secs() >= 3,
        "asked again after {:?}",
        start.elapsed()
    );
    assert_eq!(bench.api.requests().len(), 2 * KINDS.len());
}
