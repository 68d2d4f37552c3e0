//! What the programs are made of, by the lists of `deny.toml`: licences, sources, packages that must not be there, and
//! versions that are there twice. `cargo deny` says the same where it is installed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tests::packages::{Package, Packages, is_allowed, root};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Packages whose manifest names a file in the place of a licence, and what that file is.
const LICENCES_IN_FILES: [(&str, &str); 1] = [("rust-criu", "MIT")];

/// What `deny.toml` says.
struct Rules(String);

/// `crate = "name:requirement"`, with the rest of its line.
struct Rule<'a> {
    name: &'a str,
    requirement: &'a str,
    rest: &'a str,
}

impl Rules {
    fn read() -> Self {
        Self(std::fs::read_to_string(root().join("deny.toml")).expect("readable"))
    }

    /// The text between the brackets of a list.
    fn list(&self, key: &str) -> &str {
        let start = format!("\n{key} = [");
        let (_, rest) = self
            .0
            .split_once(&start)
            .unwrap_or_else(|| panic!("no list {key}"));
        // Lists of one line end in it.
        let end = if rest.starts_with('\n') { "\n]" } else { "]\n" };
        rest.split_once(end).expect("it ends").0
    }

    fn rules(&self, key: &str) -> Vec<Rule<'_>> {
        let lines = self.list(key).split("{ crate = \"").skip(1);
        let rule = |line| {
            let (package, rest): (&str, &str) = str::split_once(line, '"').expect("a quoted name");
            let (name, requirement) = package.split_once(':').unwrap_or((package, ""));
            Rule {
                name,
                requirement,
                rest,
            }
        };
        lines.map(rule).collect()
    }
}

impl Rule<'_> {
    fn is_of(&self, package: &Package) -> bool {
        if self.name != package.name {
            return false;
        }
        if let Some(bound) = self.requirement.strip_prefix('<') {
            return numbers(&package.version) < numbers(bound);
        }
        let prefix = self.requirement.trim_start_matches('^');
        prefix.is_empty() || package.version.starts_with(&format!("{prefix}."))
    }
}

fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release
        .split('.')
        .map(|number| number.parse().expect("a number"))
        .collect()
}

/// The quoted words of a text.
fn quoted(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

fn packages() -> Packages {
    Packages::read().expect("cargo tells")
}

#[test]
fn every_licence_is_allowed() {
    let rules = Rules::read();
    let allowed: BTreeSet<&str> = quoted(rules.list("allow")).into_iter().collect();
    assert!(allowed.contains("MIT") && allowed.len() < 10, "{allowed:?}");
    let mut exceptions: BTreeSet<_> = rules
        .rules("exceptions")
        .iter()
        .map(|rule| (rule.name, quoted(rule.rest)))
        .collect();
    let mut used = BTreeSet::new();
    for package in packages().all() {
        let in_file = LICENCES_IN_FILES.iter().find(|(name, _)| *name == package.name);
        let licence = package
            .licence
            .as_deref()
            .or(in_file.map(|(_, licence)| *licence));
        let licence = licence.unwrap_or_else(|| panic!("{package:?}"));
        let own = exceptions.iter().find(|(name, _)| *name == package.name);
        let is_listed = |licence: &str| allowed.contains(licence);
        if is_allowed(licence, &is_listed) {
            continue;
        }
        let (name, more) = own.unwrap_or_else(|| panic!("{} is under {licence}", package.name));
        assert!(
            is_allowed(licence, &|licence| is_listed(licence) || more.contains(&licence)),
            "{name}: {licence}"
        );
        used.insert((*name, more.clone()));
    }
    exceptions.retain(|exception| !used.contains(exception));
    assert!(exceptions.is_empty(), "nobody needs them: {exceptions:?}");
}

#[test]
fn a_licence_in_a_file_is_what_is_said_of_it() {
    for (name, licence) in LICENCES_IN_FILES {
        let packages = packages();
        let package = packages
            .all()
            .find(|package| package.name == name)
            .expect("it is used");
        assert_eq!((package.licence.as_deref(), licence), (None, "MIT"));
        let text = std::fs::read_to_string(package.manifest.with_file_name("LICENSE")).expect("readable");
        let grant = "Permission is hereby granted, free of charge, to any person obtaining a copy of";
        assert!(text.contains(grant) && !text.contains("GNU"), "{text}");
    }
}

#[test]
fn every_package_is_of_crates_io_with_its_checksum_or_lies_here() {
    for package in packages().all() {
        match package.source.as_deref() {
            None => assert!(package.manifest.starts_with(root()), "{package:?}"),
            Some(source) => {
                assert_eq!(source, CRATES_IO, "{package:?}");
                assert!(
                    package
                        .checksum
                        .as_ref()
                        .is_some_and(|checksum| checksum.len() == 64),
                    "{package:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_banned_is_not_there() {
    let rules = Rules::read();
    let banned = rules.rules("deny");
    assert!(
        banned.iter().any(|rule| rule.requirement == "<0.26.2"),
        "a version among them"
    );
    for package in packages().all() {
        let rule = banned.iter().find(|rule| rule.is_of(package));
        assert!(
            rule.is_none(),
            "{}: {}",
            package.reference(),
            rule.map_or("", |rule| rule.rest)
        );
    }
}

#[test]
fn versions_beside_newer_ones_are_listed_with_their_reason() {
    let (rules, packages) = (Rules::read(), packages());
    let skipped = rules.rules("skip");
    let mut by_name: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in packages.all() {
        by_name.entry(&package.name).or_default().push(package);
    }
    let mut listed = BTreeSet::new();
    for versions in by_name.values().filter(|versions| versions.len() > 1) {
        let newest = versions.iter().map(|package| numbers(&package.version)).max();
        for package in versions
            .iter()
            .filter(|package| Some(numbers(&package.version)) != newest)
        {
            let rule = skipped.iter().position(|rule| rule.is_of(package));
            listed.insert(rule.unwrap_or_else(|| panic!("{} is not in deny.toml", package.reference())));
        }
    }
    for (position, rule) in skipped.iter().enumerate() {
        assert!(
            listed.contains(&position),
            "{}:{} is not there twice",
            rule.name,
            rule.requirement
        );
        assert!(
            quoted(rule.rest)
                .last()
                .is_some_and(|reason| !reason.trim().is_empty()),
            "{}: why?",
            rule.name
        );
    }
}

#[test]
fn the_bill_of_materials_names_what_is_shipped_and_nothing_of_the_tests() {
    let packages = packages();
    let bill = packages.bill_of_materials("0.1.0");
    assert_eq!(
        (&bill["bomFormat"], &bill["specVersion"]),
        (&"CycloneDX".into(), &"1.5".into())
    );
    let components = bill["components"].as_array().expect("a list");
    let references: BTreeSet<&str> = components
        .iter()
        .filter_map(|component| component["bom-ref"].as_str())
        .collect();
    assert_eq!(references.len(), components.len(), "each once");
    for component in components {
        let name = &component["name"];
        let is_theirs = component["purl"].is_string();
        assert_eq!(component["hashes"][0]["content"].is_string(), is_theirs, "{name}");
        let licence = component["licenses"][0]["expression"].as_str();
        assert!(
            licence.is_some_and(|licence| !licence.contains('/')) || name == "rust-criu",
            "{name}"
        );
    }
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    for shipped in [
        "node",
        "cni-plugin",
        "kubelet",
        "rustls",
        "aya",
        "aya-ebpf",
        "libcontainer",
    ] {
        assert!(has(shipped), "{shipped}");
    }
    for of_tests in ["tests", "libtest-mimic", "k8s-pb"] {
        assert!(!has(of_tests), "{of_tests}");
    }
    let edges = bill["dependencies"].as_array().expect("a list");
    let named: BTreeSet<&str> = edges.iter().filter_map(|edge| edge["ref"].as_str()).collect();
    let mut all = references.clone();
    all.insert("causeway");
    assert_eq!(named, all);
    for edge in edges {
        let needed: Vec<&str> = edge["dependsOn"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        assert!(needed.iter().all(|needed| references.contains(needed)), "{edge}");
    }
}
