//! The packages that the programs are built of, as cargo knows them: their licences, sources and checksums, and a bill
//! of materials (CycloneDX 1.5).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Packages of our own whose programs are shipped; the last one lies within the first.
const SHIPPED: [&str; 5] = ["node", "cni-plugin", "control-plane", "kubelet", "ebpf-programs"];

/// What is built for: the node, and the kernel's virtual machine.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "bpfel-unknown-none"];

/// One version of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in the registry.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What its manifest says: an SPDX expression.
    pub licence: Option<String>,
    /// The registry or repository; `None` = a directory here.
    pub source: Option<String>,
    /// SHA-256 of the archive in the registry, in hexadecimal.
    pub checksum: Option<String>,
    /// Its manifest here, or where cargo unpacked it.
    pub manifest: PathBuf,
    /// Keys of what is built into it, or builds it.
    needs: BTreeSet<String>,
}

/// All packages that a build of the workspace, with its tests, takes, by cargo's ids.
#[derive(Clone, Debug)]
pub struct Packages(BTreeMap<String, Package>);

/// The root of the repository.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

impl Packages {
    /// Asks cargo, and `Cargo.lock` for checksums.
    ///
    /// # Errors
    /// When cargo refuses, for example since `Cargo.lock` is not up to date.
    pub fn read() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["metadata", "--locked", "--format-version", "1"])
            .current_dir(root());
        for platform in PLATFORMS {
            command.args(["--filter-platform", platform]);
        }
        let output = command.output().context("start cargo")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let checksums = checksums(&std::fs::read_to_string(root().join("Cargo.lock"))?);
        Self::parse(&serde_json::from_slice(&output.stdout)?, &checksums)
    }

    fn parse(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Self> {
        let mut packages = BTreeMap::new();
        for package in list(&metadata["packages"])? {
            let text = |field: &str| package[field].as_str().map(str::to_owned);
            let (name, version) = (
                text("name").context("a name")?,
                text("version").context("a version")?,
            );
            let parsed = Package {
                checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
                name,
                version,
                licence: text("license"),
                source: text("source"),
                manifest: text("manifest_path").context("a manifest")?.into(),
                needs: BTreeSet::new(),
            };
            packages.insert(text("id").context("an id")?, parsed);
        }
        for node in list(&metadata["resolve"]["nodes"])? {
            let id = node["id"].as_str().context("an id")?;
            let package = packages.get_mut(id).context("a node without package")?;
            for needed in list(&node["deps"])? {
                let kinds = list(&needed["dep_kinds"])?;
                if kinds.iter().any(|kind| kind["kind"] != "dev") {
                    let needed = needed["pkg"].as_str().context("an id")?;
                    package.needs.insert(needed.to_owned());
                }
            }
        }
        Ok(Self(packages))
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &Package> {
        self.0.values()
    }

    /// The ids of what is built into the programs, or builds them.
    #[must_use]
    fn shipped(&self) -> BTreeSet<&str> {
        let is_root =
            |package: &Package| package.source.is_none() && SHIPPED.contains(&package.name.as_str());
        let roots = self.0.iter().filter(|(_, package)| is_root(package));
        let mut waiting: Vec<&str> = roots.map(|(id, _)| id.as_str()).collect();
        let mut shipped = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if shipped.insert(id) {
                let needs = self.0.get(id).into_iter().flat_map(|package| &package.needs);
                waiting.extend(needs.map(String::as_str));
            }
        }
        shipped
    }

    /// A bill of materials of what is shipped, in CycloneDX's JSON, version 1.5. It has no time and no random number:
    /// the same sources have the same bill.
    #[must_use]
    pub fn bill_of_materials(&self, version: &str) -> Value {
        let shipped = self.shipped();
        let shipped: Vec<&Package> = shipped.into_iter().filter_map(|id| self.0.get(id)).collect();
        let mut dependencies: Vec<Value> = shipped.iter().map(|package| self.dependencies(package)).collect();
        let (ours, theirs): (Vec<&Package>, Vec<_>) =
            shipped.into_iter().partition(|package| package.source.is_none());
        let own: Vec<String> = ours.iter().map(|package| package.reference()).collect();
        dependencies.push(json!({"ref": "causeway", "dependsOn": own}));
        let components = ours.iter().chain(&theirs).map(|package| package.component());
        json!({
            "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": {"component": {
                "type": "application", "bom-ref": "causeway", "name": "causeway", "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
            }},
            "components": components.collect::<Vec<_>>(),
            "dependencies": dependencies,
        })
    }

    fn dependencies(&self, package: &Package) -> Value {
        let needs = package.needs.iter().filter_map(|id| self.0.get(id));
        json!({"ref": package.reference(), "dependsOn": needs.map(Package::reference).collect::<Vec<_>>()})
    }
}

impl Package {
    /// A package URL, for what comes from the registry, and a name like it for our own.
    #[must_use]
    pub fn reference(&self) -> String {
        let kind = if self.source.is_some() {
            "pkg:cargo"
        } else {
            "causeway"
        };
        format!("{kind}/{}@{}", self.name, self.version)
    }

    fn component(&self) -> Value {
        let mut component = json!({
            "type": "library", "bom-ref": self.reference(), "name": self.name, "version": self.version,
        });
        if self.source.is_some() {
            component["purl"] = self.reference().into();
        }
        if let Some(licence) = &self.licence {
            component["licenses"] = json!([{"expression": spdx(licence)}]);
        }
        if let Some(checksum) = &self.checksum {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        component
    }
}

/// An expression of SPDX: in the older form that cargo took, `/` means `OR`.
fn spdx(licence: &str) -> String {
    let choices: Vec<&str> = licence.split('/').map(str::trim).collect();
    choices.join(" OR ")
}

/// Whether one may choose within an SPDX expression so that only allowed licences are chosen. `OR` binds less than
/// `AND` (SPDX 2.3, annex D.4).
#[must_use]
pub fn is_allowed(licence: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = spdx(licence)
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace(" WITH ", "+WITH+");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(&mut words, allowed);
    verdict && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut verdict = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all_of(words, allowed);
    }
    verdict
}

fn all_of(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut verdict = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    match words.next() {
        Some("(") => any_of(words, allowed) & (words.next() == Some(")")),
        Some(licence) => allowed(&licence.replace("+WITH+", " WITH ")),
        None => false,
    }
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("not what cargo metadata prints")
}

/// By name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let package = |text: &str| {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches([' ', '=']).trim_matches('"').to_owned())
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    };
    lock.split("[[package]]").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_allowed_when_one_may_choose_so() {
        let allowed = |licence: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&licence);
        for (licence, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 / AGPL-3.0", false),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC", true),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("(GPL-3.0 OR MIT) AND Zlib", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT OR", true),
            ("(MIT", false),
            ("MIT ISC", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(licence, &allowed), expected, "{licence}");
        }
    }

    #[test]
    fn a_lock_file_tells_checksums() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"00ff\"\n\n\
                    [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n";
        let expected = [(("a".to_owned(), "1.0.0".to_owned()), "00ff".to_owned())];
        assert_eq!(checksums(lock), expected.into());
    }
}
