//! Certificates of the agent's own that are over.

use std::process::Command;

use serde_json::{Value, json};
use tests::cluster::program;
use tests::node::Node;

/// Self-signed, good in January 2020.
const EXPIRED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBAzCBqgIBATAKBggqhkjOPQQDAjAOMQwwCgYDVQQDDANjd3QwHhcNMjAwMTAx
MDAwMDAwWhcNMjAwMjAxMDAwMDAwWjAOMQwwCgYDVQQDDANjd3QwWTATBgcqhkjO
PQIBBggqhkjOPQMBBwNCAATg9Xv7G5WjoQIAx4OExCfiR9VcEebu2wPXM7Gt2B2C
d9QQAOp2GmlfKUxxhSHNCBg4ifgbdhomqKLB+82oC+0AMAoGCCqGSM49BAMCA0gA
MEUCIGkYGaJGOWzjH2d8qyUL2bauW0H57+XOdPdGJT7VUQCqAiEA2kLsAKQbp5jo
6J6kDSO3bjuv8YiQJqfYWlia7jduss4=
-----END CERTIFICATE-----
";

#[test]
fn doctor_names_a_certificate_that_is_over_by_its_file() -> anyhow::Result<()> {
    if !tests::privileged("doctor names a certificate that is over") {
        return Ok(());
    }
    let node = Node::new("expired")?;
    let authority = node.path("authority.crt");
    std::fs::write(&authority, EXPIRED)?;
    let kubeconfig = node.path("expired.kubeconfig");
    let written = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{
            "name": "c",
            "cluster": {"server": node.api.url(), "certificate-authority": authority},
        }],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {}}],
    });
    std::fs::write(&kubeconfig, written.to_string())?;
    let config = node.configure(json!({"kubernetes": {"kubeconfig": kubeconfig}}));
    let _agent = node.agent(&config);
    node.until_working("findings");
    let mut doctor = Command::new(program("causeway"));
    doctor.args(["doctor", "-o", "json", "--config"]).arg(&config);
    let output = doctor.env_remove("NODE_NAME").output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let found = findings
        .iter()
        .find(|finding| finding["id"] == "certificate-expired");
    let found = found.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(found["object"], format!("certificate {authority}"));
    let evidence = found["evidence"].as_str().unwrap_or_default();
    assert!(evidence.contains("ended at 2020-02-01T00:00:00Z"), "{evidence}");
    assert_eq!(output.status.code(), Some(1), "it is wrong");
    Ok(())
}
