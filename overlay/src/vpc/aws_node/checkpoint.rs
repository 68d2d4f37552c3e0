//! The file in which amazon-vpc-cni-k8s remembers whom it gave addresses (pkg/ipamd/datastore there).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use model::ObjectName;
use serde::Deserialize;

use crate::pods::AttachmentKey;
use crate::pods::wiring::eni_ifname;

/// Its name in `/var/run/aws-node`.
const FILE: &str = "ipam.json";

/// The only version that there is.
const VERSION: &str = "vpc-cni-ipam/1";

/// The interface that a pod's device is called after; others' names need what the file lacks.
const FIRST_IFNAME: &str = "eth0";

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is no JSON of that form.
    #[error("understand {}", .0.display())]
    Malformed(PathBuf, #[source] serde_json::Error),
    /// A version came that is not known here.
    #[error("{} is of version {version:?}, and {VERSION:?} alone is known", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: String,
    },
}

/// A pod that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: AttachmentKey,
    pub(super) address: IpAddr,
    pub(super) pod: Option<ObjectName>,
}

impl Entry {
    /// What its device on the node's side is called, where that follows from the entry.
    pub(super) fn host_ifname(&self) -> Option<String> {
        let pod = self.pod.as_ref();
        pod.filter(|_| self.key.ifname == FIRST_IFNAME).map(eni_ifname)
    }
}

#[derive(Deserialize)]
struct Checkpoint {
    /// As its writer makes it of no pods.
    allocations: Option<Vec<Allocation>>,
}

/// Fields that are not here are for its writer alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
    #[serde(default)]
    ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    ipv6: Option<Ipv6Addr>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    #[serde(rename = "k8sPodNamespace")]
    pod_namespace: String,
    #[serde(rename = "k8sPodName")]
    pod_name: String,
}

/// Who had addresses; nobody, where there is no file.
pub(super) fn read(directory: &Path) -> Result<Vec<Entry>, CheckpointError> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CheckpointError::Read(path, error)),
    };
    parse(&path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>, CheckpointError> {
    /// The version alone: the rest of another one may be anything.
    #[derive(Deserialize)]
    struct Stamp {
        version: String,
    }
    let malformed = |error| CheckpointError::Malformed(path.to_owned(), error);
    let stamp: Stamp = serde_json::from_slice(bytes).map_err(malformed)?;
    if stamp.version != VERSION {
        return Err(CheckpointError::Version {
            path: path.to_owned(),
            version: stamp.version,
        });
    }
    let checkpoint: Checkpoint = serde_json::from_slice(bytes).map_err(malformed)?;
    let allocations = checkpoint.allocations.unwrap_or_default().into_iter();
    let entry = |allocation: Allocation| {
        let Metadata {
            pod_namespace,
            pod_name,
        } = allocation.metadata;
        let v6 = allocation.ipv6.map(IpAddr::V6);
        Some(Entry {
            key: AttachmentKey {
                container_id: allocation.container_id,
                ifname: allocation.if_name,
            },
            address: allocation.ipv4.map(IpAddr::V4).or(v6)?,
            pod: (!pod_name.is_empty()).then(|| ObjectName::new(pod_namespace, pod_name)),
        })
    };
    Ok(allocations.filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Entry>, String> {
        parse(Path::new("ipam.json"), text.as_bytes()).map_err(|error| model::with_causes(&error))
    }

    /// As v1.23 writes it.
    #[test]
    fn a_checkpoint_names_pods_by_container_interface_and_address() {
        let text = r#"{"version":"vpc-cni-ipam/1","allocations":[
            {"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.0.5",
             "allocationTimestamp":1700000000000000000,
             "metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}},
            {"networkName":"aws-cni","containerID":"c2","ifName":"eth0","ipv6":"fd00::5","allocationTimestamp":1,
             "metadata":{}},
            {"networkName":"aws-cni","containerID":"c3","ifName":"eth0","allocationTimestamp":1,"metadata":{}}]}"#;
        let entry = |id: &str, address: &str, pod: Option<ObjectName>| Entry {
            key: AttachmentKey {
                container_id: id.to_owned(),
                ifname: "eth0".to_owned(),
            },
            address: address.parse().expect("an address"),
            pod,
        };
        let web = Some(ObjectName::new("default", "web-0"));
        let entries = vec![entry("c1", "10.0.0.5", web), entry("c2", "fd00::5", None)];
        let names: Vec<_> = entries.iter().map(Entry::host_ifname).collect();
        assert_eq!(parsed(text), Ok(entries));
        assert_eq!(names, [Some("eni0d7763386da".to_owned()), None]);
        assert_eq!(
            parsed(r#"{"version":"vpc-cni-ipam/1","allocations":null}"#),
            Ok(Vec::new())
        );
    }

    #[test]
    fn what_is_not_understood_is_told_and_taken_for_nothing_else() {
        for (text, why) in [
            (
                "",
                "understand ipam.json: EOF while parsing a value at line 1 column 0",
            ),
            (
                r#"{"version":"vpc-cni-ipam/1","alloc"#,
                "understand ipam.json: EOF while parsing a string at line 1 column 34",
            ),
            (
                r#"{"version":"vpc-cni-ipam/2","allocations":{"10.0.0.5":"c1"}}"#,
                r#"ipam.json is of version "vpc-cni-ipam/2", and "vpc-cni-ipam/1" alone is known"#,
            ),
            (
                r#"{"version":"vpc-cni-ipam/1","allocations":[{"containerID":"c1","ifName":"eth0","ipv4":"x"}]}"#,
                "understand ipam.json: invalid IPv4 address syntax at line 1 column 89",
            ),
            (
                r#"{"version":"vpc-cni-ipam/1","allocations":[{"ifName":"eth0","ipv4":"10.0.0.5"}]}"#,
                "understand ipam.json: missing field `containerID` at line 1 column 78",
            ),
            (
                "[]",
                "understand ipam.json: invalid length 0, expected struct Stamp with 1 element at line 1 column 2",
            ),
        ] {
            assert_eq!(parsed(text), Err(why.to_owned()), "{text}");
        }
    }
}
