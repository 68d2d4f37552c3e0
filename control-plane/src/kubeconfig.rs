//! Kubeconfig files with everything inline, so that they can be copied as they are.

use std::fs;
use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::layout::KeyPairFiles;
use crate::pki;

/// Writes a kubeconfig that reaches `server` as the user of `client`. The file holds a private key: mode 0600.
pub fn write(
    path: &Path,
    server: &str,
    ca_pem: &str,
    user: &str,
    client: &KeyPairFiles,
) -> anyhow::Result<()> {
    let inline = |path: &Path| -> anyhow::Result<String> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(STANDARD.encode(bytes))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "causeway",
            "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": inline(&client.cert)?,
                "client-key-data": inline(&client.key)?,
            },
        }],
        "contexts": [{"name": "causeway", "context": {"cluster": "causeway", "user": user}}],
        "current-context": "causeway",
    });
    pki::write_secret(path, &serde_yaml_ng::to_string(&config)?)
}
