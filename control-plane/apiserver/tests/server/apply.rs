//! Server-side apply over HTTP and through kube-rs; duplicate fields; older versions of kinds.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, config_map, from, on_every_store, raw, raw_response, refused};

const APPLY: Option<&str> = Some("application/apply-patch+yaml");
const JSON: Option<&str> = Some("application/json");
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
    });
    json_patch::merge(&mut object["spec"], &spec);
    object
}

/// Manager, operation, subresource and fields of each entry.
fn owners(object: &Value) -> Vec<(String, String, String, Value)> {
    let list = object["metadata"]["managedFields"].as_array();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    list.into_iter()
        .flatten()
        .map(|entry| {
            (
                text(entry, "manager"),
                text(entry, "operation"),
                text(entry, "subresource"),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

async fn apply(cluster: &Cluster, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    raw(cluster, "PATCH", path, APPLY, body.to_string()).await
}

#[tokio::test]
async fn an_apply_makes_changes_and_shares_an_object() -> anyhow::Result<()> {
    on_every_store("apply", async |cluster| {
        let web = format!("{DEPLOYMENTS}/web");
        let by = |manager: &str| format!("{web}?fieldManager={manager}");
        let config = deployment(json!({ "replicas": 2 }));
        let (code, dry) = apply(&cluster, &format!("{}&dryRun=All", by("one")), &config).await?;
        ensure!(code == 201 && dry["spec"]["replicas"] == 2, "{code} {dry}");
        let (code, made) = apply(&cluster, &by("one"), &config).await?;
        ensure!(code == 201, "{made}");
        let fields = json!({ "f:spec": { "f:replicas": {}, "f:selector": {}, "f:template": {
            "f:metadata": { "f:labels": { "f:app": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"web\"}": { ".": {}, "f:name": {}, "f:image": {} } } },
        } } });
        let one = ("one".to_owned(), "Apply".to_owned(), String::new(), fields.clone());
        ensure!(owners(&made) == [one.clone()], "{}", made["metadata"]);

        let (code, again) = apply(&cluster, &by("one"), &config).await?;
        ensure!(code == 200 && again == made, "an apply of the same changed something: {again}");

        let scaled = json!({ "spec": { "replicas": 5 } }).to_string();
        let scale = format!("{web}/scale?fieldManager=scaler");
        let (code, told) = raw(&cluster, "PATCH", &scale, Some("application/merge-patch+json"), scaled).await?;
        ensure!(code == 200, "{told}");
        let replicas = json!({ "f:spec": { "f:replicas": {} } });
        ensure!(owners(&told) == [("scaler".into(), "Update".into(), "scale".into(), replicas)], "{told}");
        ensure!(told["metadata"]["managedFields"][0]["apiVersion"] == "autoscaling/v1", "{told}");

        let (code, told) = apply(&cluster, &by("one"), &config).await?;
        let message = "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas";
        let cause = json!([{ "reason": "FieldManagerConflict", "field": ".spec.replicas",
            "message": "conflict with \"scaler\" with subresource \"scale\" using apps/v1" }]);
        ensure!((code, &told["reason"], &told["message"]) == (409, &json!("Conflict"), &json!(message)), "{told}");
        ensure!(told["details"]["causes"] == cause, "{told}");
        let (code, forced) = apply(&cluster, &format!("{}&force=true", by("one")), &config).await?;
        ensure!(code == 200 && forced["spec"]["replicas"] == 2 && owners(&forced) == [one], "{forced}");

        // Who names replicas no more leaves it to its default; a scale that is applied owns it then.
        let (code, less) = apply(&cluster, &by("one"), &deployment(json!({}))).await?;
        ensure!(code == 200 && less["spec"]["replicas"] == 1, "{less}");
        let wanted = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "web" }, "spec": { "replicas": 4 } });
        let (code, told) = apply(&cluster, &format!("{web}/scale?fieldManager=hpa"), &wanted).await?;
        ensure!(code == 200 && told["spec"]["replicas"] == 4, "{told}");
        let (code, told) = apply(&cluster, &by("one"), &config).await?;
        ensure!(code == 409, "{told}");

        let status = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "status": { "replicas": 3 }, "spec": { "replicas": 9 } });
        let (code, told) = apply(&cluster, &format!("{web}/status?fieldManager=watcher"), &status).await?;
        ensure!(code == 200 && told["status"]["replicas"] == 3 && told["spec"]["replicas"] == 4, "{told}");
        let watcher = ("watcher".into(), "Apply".into(), "status".into(), json!({ "f:status": { "f:replicas": {} } }));
        ensure!(owners(&told).contains(&watcher), "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn other_writes_own_what_they_set() -> anyhow::Result<()> {
    on_every_store("owners", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        let by = |manager: &str| Some(manager.to_owned());
        let params = PostParams { field_manager: by("maker"), ..PostParams::default() };
        maps.create(&params, &config_map("a", json!({ "l": "1" }), json!({ "k": "1", "m": "1" }))?).await?;
        let params = PatchParams { field_manager: by("changer"), ..PatchParams::default() };
        maps.patch("a", &params, &Patch::Merge(json!({ "data": { "k": "2", "m": null, "n": "3" } }))).await?;
        let path = format!("{MAPS}/a");
        let (_, found) = raw(&cluster, "GET", &path, None, "").await?;
        let expected = [
            ("maker".into(), "Update".into(), String::new(), json!({ "f:data": {},
                "f:metadata": { "f:labels": { ".": {}, "f:l": {} } } })),
            ("changer".into(), "Update".into(), String::new(), json!({ "f:data": { "f:k": {}, "f:n": {} } })),
        ];
        let found = owners(&found);
        ensure!(found.len() == 2 && expected.iter().all(|one| found.contains(one)), "{found:?}");

        // Without the parameter it is the program; who sends no list leaves the stored one.
        let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "z": "1" } });
        let request = http::Request::put(&path).header("content-type", "application/json").header("user-agent", "tool/v1 (x)");
        let changed: Value = cluster.client.request(request.body(body.to_string().into_bytes())?).await?;
        let names: Vec<String> = owners(&changed).into_iter().map(|(name, ..)| name).collect();
        ensure!(names.contains(&"tool".to_owned()), "{names:?}");

        let reset = json!({ "metadata": { "managedFields": [{}] } });
        let reset: ConfigMap = maps.patch("a", &PatchParams::default(), &Patch::Merge(reset)).await?;
        ensure!(reset.metadata.managed_fields.is_none(), "{reset:?}");
        let told = maps.patch("a", &PatchParams::apply("one"), &Patch::Apply(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "z": "2" },
        }))).await;
        let (code, _, told) = refused(told)?;
        let expected = "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.z";
        ensure!((code, told.as_str()) == (409, expected), "{told}");
        let forced = maps.patch("a", &PatchParams::apply("one").force(), &Patch::Apply(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "z": "2" },
        }))).await?;
        ensure!(forced.data.is_some_and(|data| data["z"] == "2"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn hostile_configurations_are_refused_and_the_server_goes_on() -> anyhow::Result<()> {
    on_every_store("hostile-apply", async |cluster| {
        let typed = |why: &str| format!("failed to create typed patch object (default/web; apps/v1, Kind=Deployment): {why}");
        let containers = |containers: Value| deployment(json!({ "template": { "spec": { "containers": containers } } })).to_string();
        let deep = format!("{{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"spec\":{}", "[".repeat(50_000));
        let many = format!("apiVersion: apps/v1\nkind: Deployment\nx: [{}]", "0,".repeat(140_000));
        for (query, body, code, expected) in [
            ("", deployment(json!({})).to_string(), 422, "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch".to_owned()),
            ("fieldManager=a", "[1]".to_owned(), 400, "error decoding YAML: the body of the request is not an object".to_owned()),
            ("fieldManager=a", "spec: {}".to_owned(), 400, "Object 'Kind' is missing in '{\"spec\":{}}'".to_owned()),
            ("fieldManager=a", "{apiVersion: v1, kind: Deployment}".to_owned(), 400,
                "Incorrect version specified in apply patch. Specified patch version: v1, expected: apps/v1".to_owned()),
            ("fieldManager=a", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: other}}".to_owned(), 400,
                "the name of the object (other) does not match the name on the URL (web)".to_owned()),
            ("fieldManager=a", "{apiVersion: apps/v1, kind: Deployment, metadata: {managedFields: [{}]}}".to_owned(), 400,
                "metadata.managedFields must be nil".to_owned()),
            ("fieldManager=a", deployment(json!({ "replica": 1 })).to_string(), 500, typed(".spec.replica: field not declared in schema")),
            ("fieldManager=a", containers(json!([{ "name": "web" }, { "name": "web" }])), 500,
                typed(".spec.template.spec.containers: duplicate entries for key [name=\"web\"]")),
            ("fieldManager=a", containers(json!({ "name": "web" })), 500,
                typed("json: cannot unmarshal object into Go struct field .spec.template.spec.containers of type a sequence")),
            ("fieldManager=a", containers(json!([{ "image": "x" }])), 500,
                typed(".spec.template.spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)")),
            ("fieldManager=a&fieldValidation=Strict", "{apiVersion: apps/v1, kind: Deployment, kind: Deployment}".to_owned(), 400,
                "error strict decoding YAML: duplicate field \"kind\"".to_owned()),
            ("fieldManager=a", many, 413, "Request entity too large: limit is 131072 values".to_owned()),
        ] {
            let (found, told) = raw(&cluster, "PATCH", &format!("{DEPLOYMENTS}/web?{query}"), APPLY, body).await?;
            ensure!((found, told["message"].as_str()) == (code, Some(&*expected)), "{told}");
        }
        let (code, told) = raw(&cluster, "PATCH", &format!("{DEPLOYMENTS}/web?fieldManager=a"), APPLY, deep).await?;
        ensure!(code == 400 && told["message"].as_str().is_some_and(|told| told.starts_with("error decoding YAML: ")), "{told}");

        let name = "x".repeat(129);
        let (code, told) = apply(&cluster, &format!("{DEPLOYMENTS}/web?fieldManager={name}"), &deployment(json!({}))).await?;
        ensure!(code == 422 && told["message"].as_str().is_some_and(|told| told.ends_with("fieldManager: Too long: may not be more than 128 bytes")), "{told}");
        let forced = raw(&cluster, "PATCH", &format!("{MAPS}/a?force=true"), Some("application/merge-patch+json"), "{}").await?;
        ensure!(forced.0 == 422, "{}", forced.1);

        // Owners that somebody made up are believed as far as they can be read, and take no more than a body may have.
        let map = |managed: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "managedFields": managed } }).to_string();
        let (code, told) = raw(&cluster, "POST", MAPS, JSON, map(json!([{ "manager": 7 }]))).await?;
        ensure!(code == 201, "{told}");
        for (managed, code) in [
            (json!("x"), 400),
            (json!([1]), 400),
            (json!([{ "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": { "z": 1 } }]), 200),
            (json!([{ "manager": "m", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": { "f:data": { "f:x": {} } } }]), 200),
        ] {
            let (found, told) = raw(&cluster, "PUT", &format!("{MAPS}/a"), JSON, map(managed)).await?;
            ensure!(found == code, "{told}");
        }
        let (_, found) = raw(&cluster, "GET", &format!("{MAPS}/a"), None, "").await?;
        ensure!(owners(&found) == [("m".into(), "Apply".into(), String::new(), json!({ "f:data": { "f:x": {} } }))], "{found}");
        let wide: serde_json::Map<String, Value> = (0..140_000).map(|at| (format!("f:{at}"), json!({}))).collect();
        let wide = map(json!([{ "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": wide }]));
        let (code, told) = raw(&cluster, "PUT", &format!("{MAPS}/a"), JSON, wide).await?;
        ensure!(code == 413, "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn duplicate_fields_are_refused_told_or_passed_over() -> anyhow::Result<()> {
    on_every_store("duplicates", async |cluster| {
        let body = |name: &str| format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"a":"1","a":"2"}},"dada":1}}"#);
        let yaml = |name: &str| format!("metadata: {{name: {name}}}\ndata: {{a: '1', a: '2'}}\ndada: 1\n");
        let both = ["299 - \"duplicate field \\\"data.a\\\"\"", "299 - \"unknown field \\\"dada\\\"\""];
        let strict = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\", unknown field \"dada\"";
        for (validation, code, warnings, told) in [
            ("Warn", 201, &both[..], None),
            ("Ignore", 201, &[], None),
            ("Strict", 400, &[], Some(strict)),
        ] {
            for (kind, body) in [("application/json", body("j")), ("application/yaml", yaml("y"))] {
                let path = format!("{MAPS}?fieldValidation={validation}&dryRun=All");
                let (head, answer) = raw_response(&cluster, "POST", &path, Some(kind), body).await?;
                let found: Vec<&str> = head.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok()).collect();
                ensure!(head.status == code && found == warnings, "{validation} {kind}: {head:?} {answer}");
                ensure!(answer["message"].as_str() == told, "{validation} {kind}: {answer}");
                ensure!(code != 201 || answer["data"]["a"] == "2", "the last one counts: {answer}");
            }
        }
        let maps: Api<ConfigMap> = cluster.api();
        maps.create(&PostParams::default(), &config_map("a", json!({}), json!({}))?).await?;
        for kind in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
            let path = format!("{MAPS}/a?fieldValidation=Strict");
            let (code, told) = raw(&cluster, "PATCH", &path, Some(kind), r#"{"data":{"a":"1","a":"2"}}"#).await?;
            let expected = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\"";
            ensure!((code, told["message"].as_str()) == (400, Some(expected)), "{told}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn older_versions_are_views_of_what_is_stored_once() -> anyhow::Result<()> {
    on_every_store("versions", async |cluster| {
        let old = |group: &str, kind: &str, spec: Value| json!({ "apiVersion": group, "kind": kind, "metadata": { "name": "a" }, "spec": spec });
        let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
        let cpu = |percent: i64| json!([{ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": percent } } }]);
        let job = json!({ "schedule": "@hourly", "jobTemplate": { "spec": { "template": { "spec": {
            "containers": [{ "name": "a", "image": "x" }], "restartPolicy": "Never" } } } } });
        for (old_version, version, kind, plural, spec, path_in_new, expected) in [
            ("autoscaling/v1", "autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers",
                json!({ "maxReplicas": 3, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": target }), "/spec/metrics", cpu(50)),
            ("batch/v1beta1", "batch/v1", "CronJob", "cronjobs", job, "/spec/schedule", json!("@hourly")),
            ("policy/v1beta1", "policy/v1", "PodDisruptionBudget", "poddisruptionbudgets",
                json!({ "minAvailable": 1, "selector": { "matchLabels": { "a": "b" } } }), "/spec/minAvailable", json!(1)),
        ] {
            let path = |version: &str| format!("/apis/{version}/namespaces/default/{plural}");
            let (code, made) = raw(&cluster, "POST", &path(old_version), JSON, old(old_version, kind, spec.clone()).to_string()).await?;
            ensure!(code == 201 && made["apiVersion"] == old_version, "{made}");
            for (field, value) in spec.as_object().into_iter().flatten().filter(|(field, _)| *field != "jobTemplate") {
                ensure!(made["spec"][field] == *value, "{field}: {made}");
            }
            let (_, found) = raw(&cluster, "GET", &format!("{}/a", path(version)), None, "").await?;
            ensure!(found["apiVersion"] == version && found.pointer(path_in_new) == Some(&expected), "{found}");
            ensure!(found["metadata"]["uid"] == made["metadata"]["uid"] && found["metadata"]["managedFields"][0]["apiVersion"] == version, "{found}");
            let (_, list) = raw(&cluster, "GET", &path(old_version), None, "").await?;
            ensure!(list["items"][0]["apiVersion"] == old_version && list["items"][0]["spec"] == made["spec"], "{list}");
            let labelled = json!({ "metadata": { "labels": { "x": "y" } } }).to_string();
            let (code, told) = raw(&cluster, "PATCH", &format!("{}/a", path(old_version)), Some("application/merge-patch+json"), labelled).await?;
            ensure!(code == 200 && told["spec"] == made["spec"], "{told}");
            let (_, again) = raw(&cluster, "GET", &format!("{}/a", path(version)), None, "").await?;
            ensure!(again["spec"] == found["spec"], "{again}");
            let mut applied = old(old_version, kind, spec);
            applied["metadata"]["labels"] = json!({ "z": "w" });
            let (code, told) = apply(&cluster, &format!("{}/a?fieldManager=one", path(old_version)), &applied).await?;
            ensure!(code == 200 && told["metadata"]["labels"] == json!({ "x": "y", "z": "w" }) && told["spec"] == made["spec"], "{told}");
            let (_, group) = raw(&cluster, "GET", &format!("/apis/{}", version.split('/').next().unwrap_or_default()), None, "").await?;
            ensure!(group["preferredVersion"]["groupVersion"] == version && group["versions"][1]["groupVersion"] == old_version, "{group}");
            let (code, told) = raw(&cluster, "DELETE", &format!("{}/a", path(old_version)), None, "").await?;
            ensure!(code == 200, "{told}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn kube_rs_applies() -> anyhow::Result<()> {
    on_every_store("kube-apply", async |cluster| {
        let deployments: Api<Deployment> = cluster.api();
        let config: Deployment = from(deployment(json!({ "replicas": 2 })))?;
        for _ in 0..2 {
            let made = deployments
                .patch("web", &PatchParams::apply("controller"), &Patch::Apply(&config))
                .await?;
            ensure!(made.metadata.generation == Some(1), "{:?}", made.metadata);
            ensure!(made.metadata.managed_fields.is_some_and(|list| list.len() == 1));
        }
        Ok(())
    })
    .await
}
