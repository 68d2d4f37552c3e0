//! §5, result types: what a plugin prints.

use serde_json::Value;
use tests::topology::Host;

use crate::subject::Subject;

#[test]
fn version_tells_every_version_whatever_is_on_standard_input() {
    for subject in Subject::all("CNI §5: VERSION") {
        let ran = subject.call("VERSION", "", "").run();
        assert!(ran.success, "{}: {ran:?}", subject.name);
        let supported: Vec<&str> = ran.output["supportedVersions"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for version in subject.versions() {
            assert!(
                supported.contains(&version),
                "{} {version}: {supported:?}",
                subject.name
            );
        }
        assert!(ran.output["cniVersion"].is_string());
    }
    let Some(ours) = Subject::ours("CNI §5: VERSION without input") else {
        return;
    };
    assert!(ours.call("VERSION", "", "").input("").run().success);
}

#[test]
fn a_success_has_the_form_of_its_version() {
    for subject in Subject::all("CNI §5: success") {
        for (number, version) in subject.versions().enumerate() {
            let container = format!("c{number}");
            let pod = Host::new("pod").expect("a namespace");
            let input = subject.config(version).to_string();
            let ran = subject.call("ADD", &container, &pod.path()).input(input).run();
            let result = &ran.output;
            let interfaces = result["interfaces"].as_array().expect("interfaces");
            for interface in interfaces {
                assert!(
                    interface["name"].is_string() && interface["mac"].is_string(),
                    "{interface}"
                );
            }
            for ip in result["ips"].as_array().expect("ips") {
                let place = ip["interface"].as_u64().expect("an index");
                let of_pod = &interfaces[usize::try_from(place).expect("small")];
                assert_eq!(of_pod["sandbox"], pod.path(), "{} {version}", subject.name);
                assert!(ip["address"].as_str().expect("a text").contains('/'), "{ip}");
                let before_1_0 = version.starts_with("0.");
                assert_eq!(
                    ip["version"].is_string(),
                    before_1_0,
                    "{} {version}: {ip}",
                    subject.name
                );
            }
            let routes = result["routes"].as_array().into_iter().flatten();
            assert!(
                routes.into_iter().all(|route| route["dst"].is_string()),
                "{result}"
            );
            assert!(result["dns"].is_object(), "{} {version}: {result}", subject.name);
        }
    }
}

#[test]
fn an_error_is_an_object_on_standard_output_with_version_code_and_message() {
    for subject in Subject::all("CNI §5: error") {
        for version in subject.versions() {
            let input = subject.config(version).to_string();
            let ran = subject.call("ADD", "c1", "/nonexistent").input(input).run();
            assert!(
                ran.code().is_some_and(|code| code > 0),
                "{} {version}: {ran:?}",
                subject.name
            );
            let said = ran.output["msg"].as_str().is_some_and(|text| !text.is_empty());
            assert!(said, "{} {version}: {ran:?}", subject.name);
            if subject.name == "causeway-cni" {
                assert_eq!(ran.output["cniVersion"], version);
            }
        }
    }
}
