//! A Corefile: the DNS server takes it as it is.

use dns::corefile::{Corefile, Key};
use serde_json::{Value, json};

use super::draft::Draft;
use super::told::Verdict;

const OF: &str = "coredns";

/// Reads the text as the server in a pod would.
pub fn translate(text: &str, draft: &mut Draft) {
    let in_a_pod = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.96.0.1".to_owned());
    let (corefile, errors) = Corefile::look_over_text("Corefile", text, &in_a_pod, false);
    let verdict = if errors.is_empty() {
        Verdict::as_it_is("causeway dns --conf takes it as it is")
    } else if Corefile::look_over_text("Corefile", text, &in_a_pod, true)
        .1
        .is_empty()
    {
        Verdict::not_supported(
            "causeway dns --conf refuses the whole file for the lines told below; with --lenient it warns, and serves \
             without them",
        )
    } else {
        Verdict::not_supported("causeway dns --conf refuses the whole file for the lines told below")
    };
    for block in &corefile.blocks {
        let zones: Vec<String> = block.keys.iter().map(Key::to_string).collect();
        let plugins = json!(block.plugins().join(" "));
        draft.add(OF, zones.join(" "), &plugins, &verdict);
    }
    for error in errors {
        let path = format!("{}:{}", error.file, error.line);
        draft.add(OF, path, &Value::Null, &Verdict::not_supported(error.message));
    }
}
