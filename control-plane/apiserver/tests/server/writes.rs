//! What the options of writes and deletes do: dry runs, field validation, preconditions, dependents.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use prost::Message as _;
use serde_json::{Value, json};

use super::{Cluster, config_map, on_every_store, protobuf, raw, raw_response};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MERGE: &str = "application/merge-patch+json";

async fn make(cluster: &Cluster, name: &str) -> anyhow::Result<ConfigMap> {
    let maps: Api<ConfigMap> = cluster.api();
    let map = config_map(name, json!({ "app": "a" }), json!({ "k": "1" }))?;
    Ok(maps.create(&PostParams::default(), &map).await?)
}

async fn delete(cluster: &Cluster, name: &str, options: Value) -> anyhow::Result<(u16, Value)> {
    let options = options.to_string();
    raw(
        cluster,
        "DELETE",
        &format!("{MAPS}/{name}"),
        Some("application/json"),
        options,
    )
    .await
}

#[tokio::test]
async fn a_dry_run_of_any_verb_answers_and_writes_nothing() -> anyhow::Result<()> {
    on_every_store("dry", async |cluster| {
        let stored = make(&cluster, "a").await?;
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
            "spec": { "replicas": 3, "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "x" }] },
            } },
        });
        let deployments = "/apis/apps/v1/namespaces/default/deployments";
        let json = Some("application/json");
        let (code, told) = raw(&cluster, "POST", deployments, json, deployment.to_string()).await?;
        ensure!(code == 201, "{told}");
        let mut changed = serde_json::to_value(&stored)?;
        changed["data"]["k"] = "2".into();
        let new = json!({ "metadata": { "name": "new" } });
        let scaled = json!({ "spec": { "replicas": 1 } });
        let store = || async {
            let mut store = etcd_client::Client::connect([cluster.store()], None).await?;
            let revision = store.get("x", None).await?.header().map(|header| header.revision());
            revision.context("no header")
        };
        let before = store().await?;
        for (method, path, kind, body, code, path_in_answer, expected) in [
            ("POST", MAPS.to_owned(), json, new, 201, "/metadata/name", json!("new")),
            ("PUT", format!("{MAPS}/a"), json, changed, 200, "/data/k", json!("2")),
            ("PATCH", format!("{MAPS}/a"), Some(MERGE), json!({ "data": { "k": "3" } }), 200, "/data/k", json!("3")),
            ("DELETE", format!("{MAPS}/a"), None, Value::Null, 200, "/status", json!("Success")),
            ("DELETE", MAPS.to_owned(), None, Value::Null, 200, "/items/0/metadata/name", json!("a")),
            ("PATCH", format!("{deployments}/d/scale"), Some(MERGE), scaled, 200, "/spec/replicas", json!(1)),
        ] {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let (found, answer) = raw(&cluster, method, &format!("{path}?dryRun=All"), kind, body.clone()).await?;
            ensure!(found == code && answer.pointer(path_in_answer) == Some(&expected), "{method} {path}: {answer}");
            let (found, told) = raw(&cluster, method, &format!("{path}?dryRun=Some"), kind, body).await?;
            let said = told["message"].as_str().unwrap_or_default();
            let expected = "dryRun: Unsupported value: \"Some\": supported values: \"All\"";
            ensure!(found == 422 && said.ends_with(expected), "{method} {path}: {told}");
        }
        let in_body = json!({ "dryRun": ["All"] });
        ensure!(delete(&cluster, "a", in_body).await?.0 == 200);
        ensure!(store().await? == before, "a dry run wrote");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn unknown_fields_are_refused_told_or_passed_over() -> anyhow::Result<()> {
    on_every_store("fields", async |cluster| {
        let body = |name: &str| json!({ "metadata": { "name": name }, "dada": {} }).to_string();
        for (validation, code, warning, told) in [
            ("", 201, Some("299 - \"unknown field \\\"dada\\\"\""), None),
            ("Warn", 201, Some("299 - \"unknown field \\\"dada\\\"\""), None),
            ("Ignore", 201, None, None),
            (
                "Strict",
                400,
                None,
                Some("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dada\""),
            ),
            (
                "Loud",
                422,
                None,
                Some("CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Loud\": supported values: \"Ignore\", \"Strict\", \"Warn\""),
            ),
        ] {
            let path = format!("{MAPS}?fieldValidation={validation}");
            let name = format!("m-{}", validation.to_lowercase());
            let (head, answer) = raw_response(&cluster, "POST", &path, Some("application/json"), body(&format!("{name}x"))).await?;
            let found = head.headers.get("warning").and_then(|value| value.to_str().ok());
            ensure!(head.status == code && found == warning, "{validation}: {head:?} {answer}");
            ensure!(answer["message"].as_str() == told, "{validation}: {answer}");
        }
        make(&cluster, "a").await?;
        let path = format!("{MAPS}/a?fieldValidation=Strict");
        let (code, told) = raw(&cluster, "PATCH", &path, Some(MERGE), json!({ "dada": {} }).to_string()).await?;
        ensure!(code == 400, "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_delete_with_preconditions_takes_that_object_alone() -> anyhow::Result<()> {
    on_every_store("preconditions", async |cluster| {
        let made = make(&cluster, "a").await?;
        let (uid, revision) = (
            made.uid().context("no uid")?,
            made.resource_version().context("no revision")?,
        );
        for (preconditions, why) in [
            (
                json!({ "uid": "x" }),
                format!("UID in precondition: x, UID in object meta: {uid}"),
            ),
            (
                json!({ "uid": uid, "resourceVersion": "1" }),
                format!("ResourceVersion in precondition: 1, ResourceVersion in object meta: {revision}"),
            ),
        ] {
            let (code, told) = delete(&cluster, "a", json!({ "preconditions": preconditions })).await?;
            let expected =
                format!("Operation cannot be fulfilled on configmaps \"a\": Precondition failed: {why}");
            ensure!(
                (code, told["message"].as_str()) == (409, Some(expected.as_str())),
                "{told}"
            );
        }
        // The same in protobuf.
        use k8s_pb::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
        let options = |revision: &str| DeleteOptions {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: Some(revision.to_owned()),
            }),
            ..DeleteOptions::default()
        };
        for (revision, expected) in [("1", 409), (revision.as_str(), 200)] {
            let body = protobuf("v1", "DeleteOptions", &options(revision).encode_to_vec());
            let kind = Some("application/vnd.kubernetes.protobuf");
            let (code, told) = raw(&cluster, "DELETE", &format!("{MAPS}/a"), kind, body).await?;
            ensure!(code == expected, "{told}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_collection_is_deleted_by_its_selector() -> anyhow::Result<()> {
    on_every_store("collection", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        for name in ["a", "b"] {
            make(&cluster, name).await?;
        }
        maps.create(
            &PostParams::default(),
            &config_map("other", json!({}), json!({}))?,
        )
        .await?;
        let (code, list) = raw(
            &cluster,
            "DELETE",
            &format!("{MAPS}?labelSelector=app%3Da"),
            None,
            "",
        )
        .await?;
        ensure!(
            code == 200 && list["items"].as_array().is_some_and(|items| items.len() == 2),
            "{list}"
        );
        let left = maps.list(&ListParams::default()).await?;
        let left: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
        ensure!(left == ["other"], "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_finalizer_tells_the_collector_what_becomes_of_dependents() -> anyhow::Result<()> {
    on_every_store("dependents", async |cluster| {
        for (options, finalizers) in [
            (json!({ "propagationPolicy": "Foreground" }), json!(["foregroundDeletion"])),
            (json!({ "propagationPolicy": "Orphan" }), json!(["orphan"])),
            (json!({ "orphanDependents": true }), json!(["orphan"])),
        ] {
            make(&cluster, "a").await?;
            for _ in 0..2 {
                let (code, marked) = delete(&cluster, "a", options.clone()).await?;
                let marked = &marked["metadata"];
                ensure!(code == 200 && marked["finalizers"] == finalizers, "{options}: {marked}");
                ensure!(marked["deletionTimestamp"].is_string() && marked["deletionGracePeriodSeconds"] == 0, "{marked}");
            }
            // Nothing said keeps what was said; a word for the background takes it back.
            let (_, marked) = delete(&cluster, "a", json!({})).await?;
            ensure!(marked["metadata"]["finalizers"] == finalizers, "{marked}");
            let (_, gone) = delete(&cluster, "a", json!({ "propagationPolicy": "Background" })).await?;
            ensure!(gone["status"] == "Success", "{gone}");
        }
        make(&cluster, "a").await?;
        delete(&cluster, "a", json!({ "propagationPolicy": "Foreground" })).await?;
        let none = json!({ "metadata": { "finalizers": null } }).to_string();
        let (code, _) = raw(&cluster, "PATCH", &format!("{MAPS}/a"), Some(MERGE), none).await?;
        ensure!(code == 200);
        let (code, told) = raw(&cluster, "GET", &format!("{MAPS}/a"), None, "").await?;
        ensure!(code == 404, "{told}");
        for (options, expected) in [
            (
                json!({ "propagationPolicy": "Orphan", "orphanDependents": true }),
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set",
            ),
            (
                json!({ "propagationPolicy": "Later" }),
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Later\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
            ),
        ] {
            let (code, told) = delete(&cluster, "a", options).await?;
            ensure!((code, told["message"].as_str()) == (422, Some(expected)), "{told}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn hostile_bodies_are_refused_and_the_server_goes_on() -> anyhow::Result<()> {
    on_every_store("hostile", async |cluster| {
        let kind = Some("application/vnd.kubernetes.protobuf");
        let empty_containers = b"\x12\x00".repeat(200_000);
        let spec = [&b"\x12"[..], &[0x80, 0xb5, 0x18], &empty_containers].concat();
        let pods = "/api/v1/namespaces/default/pods";
        for (content_type, body, code, expected) in [
            (kind, b"{}".to_vec(), 400, "the object provided is unrecognized (must be of type): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"),
            (kind, protobuf("v1", "Pod", b"\x0a\x7f"), 400, "Pod in version \"v1\" cannot be handled as a Pod: unexpected EOF"),
            (kind, protobuf("v1", "Podd", b""), 400, "no kind \"Podd\" is registered for version \"v1\" in scheme"),
            (kind, protobuf("v1", "Secret", b""), 400, "Secret in version \"v1\" cannot be handled as a Pod: the kind in the data does not match"),
            (kind, protobuf("v1", "Pod", &spec), 413, "Request entity too large: limit is 131072 values"),
            (Some("application/json"), format!("[{}0]", "0,".repeat(131_072)).into_bytes(), 413, "Request entity too large: limit is 131072 values"),
            (Some("application/json"), "[".repeat(100_000).into_bytes(), 400, "the object provided is unrecognized (must be of type): recursion limit exceeded at line 1 column 128"),
        ] {
            let (found, told) = raw(&cluster, "POST", pods, content_type, body).await?;
            ensure!((found, told["message"].as_str()) == (code, Some(expected)), "{told}");
        }
        make(&cluster, "a").await?;
        Ok(())
    })
    .await
}
