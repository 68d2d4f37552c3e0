//! Lists in parts (`limit`, `continue`).

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, config_map, on_every_store, raw};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make_maps(cluster: &Cluster) -> anyhow::Result<Api<ConfigMap>> {
    let maps: Api<ConfigMap> = cluster.api();
    for name in ["m0", "m1", "m2", "m3", "m4", "m5", "m6"] {
        let odd = if name.ends_with(['1', '3', '5']) {
            "yes"
        } else {
            "no"
        };
        let map = config_map(name, json!({ "odd": odd }), json!({}))?;
        maps.create(&PostParams::default(), &map).await?;
    }
    Ok(maps)
}

async fn list(cluster: &Cluster, query: &str) -> anyhow::Result<Value> {
    let (code, list) = raw(cluster, "GET", &format!("{MAPS}?{query}"), None, "").await?;
    ensure!(code == 200, "{query}: {list}");
    Ok(list)
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap_or_default())
        .collect()
}

fn token(list: &Value) -> anyhow::Result<String> {
    let token = list["metadata"]["continue"].as_str();
    Ok(token.with_context(|| format!("no token in {list}"))?.to_owned())
}

#[tokio::test]
async fn the_parts_of_a_list_are_of_one_revision() -> anyhow::Result<()> {
    on_every_store("parts", async |cluster| {
        let maps = make_maps(&cluster).await?;
        let first = list(&cluster, "limit=3").await?;
        ensure!(names(&first) == ["m0", "m1", "m2"], "{first}");
        ensure!(first["metadata"]["remainingItemCount"] == 4, "{first}");

        let extra = config_map("m00", json!({}), json!({}))?;
        maps.create(&PostParams::default(), &extra).await?;
        maps.delete("m4", &DeleteParams::default()).await?;
        let change = Patch::Merge(json!({ "data": { "new": "yes" } }));
        maps.patch("m5", &PatchParams::default(), &change).await?;

        let second = list(&cluster, &format!("limit=3&continue={}", token(&first)?)).await?;
        ensure!(names(&second) == ["m3", "m4", "m5"], "{second}");
        ensure!(second["items"][2]["data"] == json!({}), "{second}");
        ensure!(second["metadata"]["remainingItemCount"] == 1, "{second}");
        ensure!(second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]);
        let last = list(&cluster, &format!("continue={}", token(&second)?)).await?;
        ensure!(names(&last) == ["m6"], "{last}");
        ensure!(
            last["metadata"] == json!({ "resourceVersion": first["metadata"]["resourceVersion"] }),
            "{last}"
        );

        // How many a selector leaves is not known, and all parts together are what it selects.
        let odd = list(&cluster, "limit=2&labelSelector=odd%3Dyes").await?;
        ensure!(
            names(&odd) == ["m1", "m3"] && odd["metadata"].get("remainingItemCount").is_none(),
            "{odd}"
        );
        let rest = list(
            &cluster,
            &format!("limit=2&labelSelector=odd%3Dyes&continue={}", token(&odd)?),
        )
        .await?;
        ensure!(
            names(&rest) == ["m5"] && rest["metadata"].get("continue").is_none(),
            "{rest}"
        );

        // What memory has comes whole, a revision of the past in parts.
        let past = first["metadata"]["resourceVersion"]
            .as_str()
            .context("no revision")?;
        let past = list(&cluster, &format!("limit=5&resourceVersion={past}")).await?;
        ensure!(names(&past) == ["m0", "m1", "m2", "m3", "m4"], "{past}");
        super::in_memory(&maps, 7).await?;
        let whole = list(&cluster, "limit=1&resourceVersion=0").await?;
        ensure!(
            names(&whole).len() == 7 && whole["metadata"].get("continue").is_none(),
            "{whole}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn bad_tokens_are_refused() -> anyhow::Result<()> {
    on_every_store("tokens-of-lists", async |cluster| {
        make_maps(&cluster).await?;
        let token = token(&list(&cluster, "limit=3").await?)?;
        for (query, expected) in [
            ("limit=3&continue=%21".to_owned(), "continue key is not valid: "),
            (
                format!("limit=3&resourceVersion=7&continue={token}"),
                "specifying resource version is not allowed when using continue",
            ),
        ] {
            let (code, told) = raw(&cluster, "GET", &format!("{MAPS}?{query}"), None, "").await?;
            ensure!(
                code == 400
                    && told["message"]
                        .as_str()
                        .is_some_and(|told| told.starts_with(expected)),
                "{told}"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_list_whose_revision_is_forgotten_goes_on_from_now() -> anyhow::Result<()> {
    on_every_store("forgotten", async |cluster| {
        let maps = make_maps(&cluster).await?;
        let first = list(&cluster, "limit=3").await?;
        maps.delete("m4", &DeleteParams::default()).await?;
        let mut store = etcd_client::Client::connect([cluster.store()], None).await?;
        let now = store
            .get("x", None)
            .await?
            .header()
            .context("no header")?
            .revision();
        store.compact(now, None).await?;

        let path = format!("{MAPS}?limit=2&continue={}", token(&first)?);
        let (code, told) = raw(&cluster, "GET", &path, None, "").await?;
        ensure!(code == 410 && told["reason"] == "Expired", "{told}");
        let rest = list(&cluster, &format!("limit=2&continue={}", token(&told)?)).await?;
        ensure!(names(&rest) == ["m3", "m5"], "{rest}");
        let revision = rest["metadata"]["resourceVersion"]
            .as_str()
            .context("no revision")?;
        ensure!(revision.parse::<i64>()? >= now, "{rest}");
        let last = list(&cluster, &format!("limit=2&continue={}", token(&rest)?)).await?;
        ensure!(names(&last) == ["m6"], "{last}");

        let past = first["metadata"]["resourceVersion"]
            .as_str()
            .context("no revision")?;
        let path = format!("{MAPS}?limit=2&resourceVersion={past}&resourceVersionMatch=Exact");
        let (code, told) = raw(&cluster, "GET", &path, None, "").await?;
        ensure!(
            code == 410 && told["metadata"].get("continue").is_none(),
            "{told}"
        );
        Ok(())
    })
    .await
}
