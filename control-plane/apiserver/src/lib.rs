//! The bundled cluster's Kubernetes API server: what kubectl (1.20 to 1.33), kube-rs, our controllers and our kubelet
//! use of `/api` and `/apis`, over etcd.
//!
//! Tour:
//! - [`serve`](mod@serve): listeners and TLS; [`Server`] is what programs run, [`Limits`] what clients may take.
//! - [`request`]: what a path asks for; [`authn`]: who asks; [`authz`] and [`rbac`]: whether they may.
//! - [`resources`]: the table, one row per resource: defaults, rules, columns. A further kind is a further row.
//! - [`api`]: the handlers, generic over rows: get, list, watch, create, update, patch, delete, subresources.
//! - [`etcd`]: the connection to it; [`storage`]: objects in it; [`watch_cache`]: newest state and recent
//!   events in memory, for lists and watches.
//! - [`patch`], [`selectors`], [`table`], [`negotiate`], [`protobuf`], [`status`](mod@status): the words of the
//!   protocol.
//! - [`services`]: ClusterIPs and node ports; [`admission`], [`tokens`], [`kubelet`] (logs and streams),
//!   [`metrics`] (`kubectl top`).
//! - [`discovery`], [`openapi`]: what there is; [`features`]: what of it is switched off.

pub mod admission;
pub mod api;
pub mod authn;
pub mod authz;
mod compaction;
pub mod config;
pub mod discovery;
pub mod etcd;
pub mod features;
pub mod kubelet;
mod managed;
pub mod metrics;
pub mod negotiate;
pub mod object;
mod open_files;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod rbac;
pub mod request;
pub mod resources;
pub mod selectors;
pub mod serve;
pub mod services;
pub mod status;
pub mod storage;
pub mod table;
pub mod tokens;
mod values;
pub mod watch_cache;

use serde_json::{Value, json};

pub use config::{Cidrs, CidrsError, Config, EtcdConfig, EtcdUser, Limits};
pub use features::{Features, Gates, KubernetesVersion};
pub use serve::{ServeError, Server, serve};

/// What a server of a version calls itself.
pub(crate) fn git_version(version: KubernetesVersion) -> String {
    format!("v{version}.0+causeway")
}

/// The body of `/version`.
pub fn version(version: KubernetesVersion) -> Value {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": "1", "minor": version.minor().to_string(), "gitVersion": git_version(version),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": format!("linux/{arch}"),
    })
}
