//! Documents that change with the program only: clients keep them, and ask whether they still have the newest.

use anyhow::{Context as _, ensure};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION,
};
use http::{HeaderMap, HeaderName};
use serde_json::Value;

use super::Cluster;

/// Code, head and body.
pub(super) async fn get(
    cluster: &Cluster,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> anyhow::Result<(u16, HeaderMap, Vec<u8>)> {
    let mut request = http::Request::get(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let answer = cluster.client.send(request.body(Vec::new().into())?).await?;
    let (head, body) = answer.into_parts();
    let body = http_body_util::BodyExt::collect(body).await?.to_bytes();
    Ok((head.status.as_u16(), head.headers, body.to_vec()))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn documents_have_tags_and_those_of_version_3_an_address_of_their_own() -> anyhow::Result<()> {
    let cluster = Cluster::start("documents", false).await?;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
    for (path, accept, content_type) in [
        ("/openapi/v2", "application/json", "application/json"),
        (
            "/openapi/v2",
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        ),
        ("/openapi/v3", "*/*", "application/json"),
        ("/openapi/v3/apis/apps/v1", "*/*", "application/json"),
        ("/apis", aggregated, aggregated),
        ("/api", aggregated, aggregated),
    ] {
        let accept = (ACCEPT, accept);
        let (code, head, plain) = get(&cluster, path, std::slice::from_ref(&accept)).await?;
        ensure!(
            (code, text(&head, &CONTENT_TYPE)) == (200, content_type),
            "{path}: {code} {head:?}"
        );
        let tag = text(&head, &ETAG);
        ensure!(!tag.is_empty(), "{path}: {head:?}");
        let (code, _, body) = get(&cluster, path, &[accept.clone(), (IF_NONE_MATCH, tag)]).await?;
        ensure!((code, body.len()) == (304, 0), "{path}: {code}");
        let (code, _, _) = get(&cluster, path, &[accept.clone(), (IF_NONE_MATCH, "\"other\"")]).await?;
        ensure!(code == 200, "{path}: {code}");
        if path.starts_with("/openapi") {
            let (_, head, packed) = get(&cluster, path, &[accept, (ACCEPT_ENCODING, "gzip")]).await?;
            ensure!(text(&head, &CONTENT_ENCODING) == "gzip", "{path}: {head:?}");
            let mut unpacked = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked)?;
            ensure!(unpacked == plain, "{path}");
        }
    }
    let (_, _, index) = get(&cluster, "/openapi/v3", &[]).await?;
    let index: Value = serde_json::from_slice(&index)?;
    for (path, entry) in index["paths"].as_object().context("paths")? {
        let address = entry["serverRelativeURL"].as_str().context("an address")?;
        let (code, head, _) = get(&cluster, address, &[]).await?;
        ensure!(
            (code, text(&head, &CACHE_CONTROL)) == (200, "public, immutable"),
            "{path}: {code} {head:?}"
        );
        let (code, head, _) = get(&cluster, &format!("/openapi/v3/{path}?hash=old"), &[]).await?;
        ensure!(
            (code, text(&head, &LOCATION)) == (301, address),
            "{path}: {code} {head:?}"
        );
    }
    let (code, _, _) = get(&cluster, "/openapi/v3/apis/apps/v2", &[]).await?;
    ensure!(code == 404);
    Ok(())
}
