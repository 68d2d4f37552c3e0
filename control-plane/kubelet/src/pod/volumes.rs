//! The pod's volumes: directories of the node that containers see.
//!
//! Contents that come from the API are written as Kubernetes writes them: all files into a new directory, then one
//! symbolic link `..data` is switched, so that a reader sees all of the old or all of the new.

use std::collections::BTreeMap;
use std::fs::{self, FileType};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret, ServiceAccount, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, PostParams};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::env::{EnvContext, field_value, resource_value};
use crate::config::Config;
use crate::disk::{self, DiskError, OnPath};

/// How often contents from the API are read again.
const REFRESH: Duration = Duration::from_secs(60);

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// On this node.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An object that it names.
    #[error("{kind} \"{name}\": {}", text_of(.source))]
    Api {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why it could not be read.
        source: Box<kube::Error>,
    },
    /// It is not there, not what it should be, or of a kind that this kubelet does not have.
    #[error("{0}")]
    Unusable(String),
}

fn text_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Files by relative path, with their modes.
type Payload = BTreeMap<String, (Vec<u8>, u32)>;

/// Makes and refreshes the volumes of one pod.
pub struct Volumes<'a> {
    /// The kubelet's settings.
    pub config: &'a Config,
    /// The API.
    pub client: &'a kube::Client,
    /// The pod and what its fields say.
    pub context: &'a EnvContext<'a>,
    /// `volumes/` of the pod.
    pub directory: PathBuf,
}

/// The volumes of a pod by name, and when they are to be refreshed.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    /// Path on the node by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// The next refresh; `None` = nothing comes from the API.
    pub refresh_at: Option<Timestamp>,
    /// Volumes on disk that may hold only so much.
    pub limits: Vec<DiskLimit>,
}

/// A volume on disk that may hold only so much (`emptyDir.sizeLimit`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLimit {
    /// Its name.
    pub volume: String,
    /// Where it is.
    pub path: PathBuf,
    /// How much, in bytes.
    pub bytes: u64,
    /// The same as the pod says it.
    pub told: String,
}

fn limit_of(volume: &Volume, path: &Path) -> Option<DiskLimit> {
    let empty = volume
        .empty_dir
        .as_ref()
        .filter(|empty| empty.medium.as_deref() != Some("Memory"))?;
    let told = empty.size_limit.as_ref()?.0.clone();
    let bytes = super::quantity::whole(&told).and_then(|bytes| u64::try_from(bytes).ok());
    Some(DiskLimit {
        volume: volume.name.clone(),
        path: path.to_owned(),
        // 0 is no limit (`emptyDirLimitEviction`).
        bytes: bytes.filter(|bytes| *bytes > 0)?,
        told,
    })
}

impl Volumes<'_> {
    /// Makes all volumes, or brings them up to date.
    pub async fn mount_all(&self) -> Result<Mounted, (String, VolumeError)> {
        let mut mounted = Mounted::default();
        let volumes = self
            .context
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let named = |error| (volume.name.clone(), error);
            let path = self
                .mount_one(volume, &mut mounted.refresh_at)
                .await
                .map_err(named)?;
            mounted.limits.extend(limit_of(volume, &path));
            mounted.paths.insert(volume.name.clone(), path);
        }
        Ok(mounted)
    }

    async fn mount_one(
        &self,
        volume: &Volume,
        refresh_at: &mut Option<Timestamp>,
    ) -> Result<PathBuf, VolumeError> {
        let path = self.directory.join(&volume.name);
        if let Some(host) = &volume.host_path {
            let place = self.config.on_machine(Path::new(&host.path));
            return host_path(&host.path, place, host.type_.as_deref().unwrap_or_default());
        }
        if let Some(empty) = &volume.empty_dir {
            if empty.medium.as_deref() == Some("Memory") {
                empty_dir_in_memory(&path, empty.size_limit.as_ref(), self.fs_group())?;
            } else {
                empty_dir(&path, self.fs_group())?;
            }
            return Ok(path);
        }
        let mut due = Timestamp::now() + REFRESH;
        let payload = if let Some(source) = &volume.config_map {
            let mode = source.default_mode;
            self.config_map(&source.name, source.optional, source.items.as_deref(), mode)
                .await?
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            self.secret(
                &name,
                source.optional,
                source.items.as_deref(),
                source.default_mode,
            )
            .await?
        } else if let Some(source) = &volume.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default(), source.default_mode)?
        } else if let Some(source) = &volume.projected {
            self.projected(source, &mut due).await?
        } else {
            return Err(VolumeError::Unusable("no volume plugin matched".to_owned()));
        };
        write_payload(&path, &payload, self.fs_group())?;
        *refresh_at = Some(refresh_at.map_or(due, |earlier| earlier.min(due)));
        Ok(path)
    }

    /// `fsGroup`: the group that a pod's volumes belong to.
    fn fs_group(&self) -> Option<u32> {
        let spec = self.context.pod.spec.as_ref()?;
        let group = spec.security_context.as_ref()?.fs_group?;
        u32::try_from(group).ok()
    }

    async fn projected(
        &self,
        source: &ProjectedVolumeSource,
        due: &mut Timestamp,
    ) -> Result<Payload, VolumeError> {
        let mut payload = Payload::new();
        let mode = source.default_mode;
        for part in source.sources.iter().flatten() {
            if let Some(token) = &part.service_account_token {
                let (text, refresh) = self
                    .token(token.audience.clone(), token.expiration_seconds.unwrap_or(3600))
                    .await?;
                *due = (*due).min(refresh);
                payload.insert(token.path.clone(), (text.into_bytes(), mode_of(mode)));
            } else if let Some(part) = &part.config_map {
                let items = part.items.as_deref();
                payload.extend(self.config_map(&part.name, part.optional, items, mode).await?);
            } else if let Some(part) = &part.secret {
                payload.extend(
                    self.secret(&part.name, part.optional, part.items.as_deref(), mode)
                        .await?,
                );
            } else if let Some(part) = &part.downward_api {
                payload.extend(self.downward(part.items.as_deref().unwrap_or_default(), mode)?);
            } else {
                let text = "a projected source is of a type that this kubelet does not support yet";
                return Err(VolumeError::Unusable(text.to_owned()));
            }
        }
        Ok(payload)
    }

    /// A token bound to the pod, and when it is to be replaced: at 80 % of its lifetime (KEP-1205).
    async fn token(
        &self,
        audience: Option<String>,
        seconds: i64,
    ) -> Result<(String, Timestamp), VolumeError> {
        let (metadata, spec) = (&self.context.pod.metadata, self.context.pod.spec.as_ref());
        let account = spec
            .and_then(|spec| spec.service_account_name.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.into_iter().collect(),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: metadata.name.clone(),
                    uid: metadata.uid.clone(),
                }),
            },
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = self.api();
        let answer = api
            .create_token_request(&account, &PostParams::default(), &request)
            .await;
        let status = answer
            .map_err(|source| VolumeError::Api {
                kind: "serviceaccount token",
                name: account.clone(),
                source: Box::new(source),
            })?
            .status
            .ok_or_else(|| VolumeError::Unusable(format!("no token in the answer for {account}")))?;
        let now = Timestamp::now();
        let lifetime = status
            .expiration_timestamp
            .0
            .duration_since(now)
            .as_secs()
            .max(10);
        Ok((
            status.token,
            now + Duration::from_secs(lifetime.unsigned_abs() * 4 / 5),
        ))
    }

    async fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
    ) -> Result<Payload, VolumeError> {
        let api: Api<ConfigMap> = self.api();
        let failed = |source| VolumeError::Api {
            kind: "configmap",
            name: name.to_owned(),
            source,
        };
        let object = match api.get_opt(name).await.map_err(|error| failed(Box::new(error)))? {
            None if optional == Some(true) => return Ok(Payload::new()),
            None => {
                return Err(VolumeError::Unusable(format!("configmap \"{name}\" not found")));
            }
            Some(object) => object,
        };
        select(config_map_data(object), "configmap", items, optional, mode)
    }

    async fn secret(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
    ) -> Result<Payload, VolumeError> {
        let api: Api<Secret> = self.api();
        let failed = |source| VolumeError::Api {
            kind: "secret",
            name: name.to_owned(),
            source,
        };
        let object = match api.get_opt(name).await.map_err(|error| failed(Box::new(error)))? {
            None if optional == Some(true) => return Ok(Payload::new()),
            None => return Err(VolumeError::Unusable(format!("secret \"{name}\" not found"))),
            Some(object) => object,
        };
        select(secret_data(object), "secret", items, optional, mode)
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile], mode: Option<i32>) -> Result<Payload, VolumeError> {
        let mut payload = Payload::new();
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_value(&field.field_path, self.context)
                    .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path)),
                (None, Some(selector)) => {
                    resource_value(selector, None, self.context).map_err(|error| error.to_string())
                }
                (None, None) => Err(format!("downward API item \"{}\" names nothing", item.path)),
            };
            let value = value.map_err(VolumeError::Unusable)?;
            payload.insert(
                item.path.clone(),
                (value.into_bytes(), mode_of(item.mode.or(mode))),
            );
        }
        Ok(payload)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(
            self.client.clone(),
            self.context
                .pod
                .metadata
                .namespace
                .as_deref()
                .unwrap_or("default"),
        )
    }
}

/// All keys of a ConfigMap.
pub fn config_map_data(object: ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let binary = object
        .binary_data
        .into_iter()
        .flatten()
        .map(|(key, ByteString(bytes))| (key, bytes));
    object
        .data
        .into_iter()
        .flatten()
        .map(|(key, text)| (key, text.into_bytes()))
        .chain(binary)
        .collect()
}

/// All keys of a Secret.
pub fn secret_data(object: Secret) -> BTreeMap<String, Vec<u8>> {
    object
        .data
        .into_iter()
        .flatten()
        .map(|(key, ByteString(bytes))| (key, bytes))
        .collect()
}

/// All keys under their own names, or the listed ones under theirs.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    kind: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: Option<i32>,
) -> Result<Payload, VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .into_iter()
            .map(|(key, value)| (key, (value, mode_of(mode))))
            .collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                payload.insert(item.path.clone(), (value.clone(), mode_of(item.mode.or(mode))));
            }
            None if optional == Some(true) => {}
            None => {
                let text = match kind {
                    "secret" => format!("references non-existent secret key: {}", item.key),
                    _ => format!("configmap references non-existent config key: {}", item.key),
                };
                return Err(VolumeError::Unusable(text));
            }
        }
    }
    Ok(payload)
}

fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}

/// A path of the node, at `place` of this machine, made or checked as its type says (`pkg/volume/hostpath`). Without a
/// type a missing path becomes a directory, as docker did and containerd does.
fn host_path(path: &str, place: PathBuf, kind: &str) -> Result<PathBuf, VolumeError> {
    match kind {
        "DirectoryOrCreate" | "" if !place.exists() => disk::make_dir(&place)?,
        "FileOrCreate" if !place.exists() => fs::write(&place, b"").on("create", &place)?,
        _ => {}
    }
    let found = fs::metadata(&place).ok().map(|found| found.file_type());
    let (wanted, is): (&str, fn(&FileType) -> bool) = match kind {
        "Directory" | "DirectoryOrCreate" => ("directory", FileType::is_dir),
        "File" | "FileOrCreate" => ("file", |found| !found.is_dir()),
        "Socket" => ("socket file", FileType::is_socket),
        "CharDevice" => ("character device", FileType::is_char_device),
        "BlockDevice" => ("block device", FileType::is_block_device),
        _ => return Ok(place),
    };
    if found.is_some_and(|found| is(&found)) {
        Ok(place)
    } else {
        Err(VolumeError::Unusable(format!(
            "hostPath type check failed: {path} is not a {wanted}"
        )))
    }
}

/// Made whole, then renamed into place: what a container does with its mode and group later is its own.
fn empty_dir(path: &Path, group: Option<u32>) -> Result<(), DiskError> {
    if path.exists() {
        return Ok(());
    }
    // No volume has such a name: it would not be a DNS label.
    let beside = path.with_added_extension("new");
    disk::make_dir(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o777)).on("chmod", &beside)?;
    if let Some(group) = group {
        give_to_group(&beside, group, 0o660)?;
    }
    fs::rename(&beside, path).on("rename into place", path)
}

/// As [`empty_dir`], whole from its mount on.
fn empty_dir_in_memory(path: &Path, limit: Option<&Quantity>, group: Option<u32>) -> Result<(), DiskError> {
    disk::make_dir(path)?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).on("read", path);
    if device(path)? != device(path.parent().unwrap_or(path))? {
        return Ok(());
    }
    let mut options = group.map_or_else(
        || "mode=0777".to_owned(),
        |group| format!("mode=2777,gid={group}"),
    );
    if let Some(size) = limit.and_then(|limit| super::quantity::whole(&limit.0)) {
        options.push_str(&format!(",size={size}"));
    }
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .on("mount tmpfs on", path)
}

/// Unmounts and removes all volumes of a pod. Paths of the node (`hostPath`) are not below and stay.
pub fn remove_all(directory: &Path) -> Result<(), DiskError> {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten() {
            // EINVAL says that nothing is mounted there, which is the usual case.
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    disk::remove_tree(directory)
}

/// Gives a file or directory to a group, which may do there what `bits` say; what is made in a directory later belongs
/// to the group too (`changeFilePermission` of `pkg/volume`).
fn give_to_group(path: &Path, group: u32, bits: u32) -> Result<(), DiskError> {
    let found = fs::symlink_metadata(path).on("read", path)?;
    let more = if found.is_dir() { 0o2110 } else { 0 };
    chown(path, None, Some(group)).on("chown", path)?;
    let mode = found.mode() & 0o7777 | bits | more;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("chmod", path)
}

fn write_payload(directory: &Path, payload: &Payload, group: Option<u32>) -> Result<(), DiskError> {
    disk::make_dir(directory)?;
    let data = directory.join("..data");
    let current = current_version(directory);
    if current.as_ref().is_some_and(|current| holds(current, payload)) {
        return Ok(());
    }
    let version = format!("..{}", Timestamp::now().as_nanosecond());
    let place = directory.join(&version);
    for (path, (contents, mode)) in payload {
        let file = place.join(safe_relative(path));
        disk::make_dir(file.parent().unwrap_or(&place))?;
        fs::write(&file, contents).on("write", &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).on("chmod", &file)?;
        if let Some(group) = group {
            give_to_group(&file, group, 0o440)?;
        }
    }
    disk::make_dir(&place)?;
    let beside = directory.join("..data_tmp");
    let _ = fs::remove_file(&beside);
    symlink(&version, &beside).on("link", &beside)?;
    fs::rename(&beside, &data).on("switch", &data)?;
    let top_level = |path: &String| {
        safe_relative(path)
            .components()
            .next()
            .map(|c| PathBuf::from(c.as_os_str()))
    };
    let names: std::collections::BTreeSet<PathBuf> = payload.keys().filter_map(top_level).collect();
    for entry in fs::read_dir(directory).on("read", directory)?.flatten() {
        let name = PathBuf::from(entry.file_name());
        let internal = name.to_string_lossy().starts_with("..");
        if !internal && !names.contains(&name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for name in names {
        let link = directory.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(&name), &link).on("link", &link)?;
        }
    }
    match current {
        Some(old) => disk::remove_tree(&old),
        None => Ok(()),
    }
}

/// The directory that `..data` names: one of this volume's own, whatever the link says.
fn current_version(directory: &Path) -> Option<PathBuf> {
    let target = fs::read_link(directory.join("..data")).ok()?;
    let name = target.to_str()?;
    let is_version = name.len() > 2 && name.starts_with("..") && !name.contains('/');
    is_version.then(|| directory.join(name))
}

/// Whether the current version is the wanted one already.
fn holds(current: &Path, payload: &Payload) -> bool {
    let same = |(path, (contents, _)): (&String, &(Vec<u8>, u32))| {
        fs::read(current.join(safe_relative(path))).is_ok_and(|known| known == *contents)
    };
    payload.iter().all(same) && count_files(current) == payload.len()
}

fn count_files(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            if entry.path().is_dir() {
                count_files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

/// The path without anything that leads out of its directory.
pub fn safe_relative(path: &str) -> PathBuf {
    Path::new(path)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refresh_switches_all_files_at_once() {
        let directory = std::env::temp_dir().join(format!("cwt-volume-{}", std::process::id()));
        let payload = |pairs: &[(&str, &str)]| -> Payload {
            pairs
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (text.as_bytes().to_vec(), 0o644)))
                .collect()
        };
        let read = |path: &str| fs::read_to_string(directory.join(path)).ok();
        write_payload(&directory, &payload(&[("token", "1"), ("dir/ca.crt", "x")]), None).expect("written");
        assert_eq!(
            (read("token"), read("dir/ca.crt")),
            (Some("1".into()), Some("x".into()))
        );
        let version = fs::read_link(directory.join("..data")).expect("a link");
        write_payload(&directory, &payload(&[("token", "1"), ("dir/ca.crt", "x")]), None).expect("unchanged");
        assert_eq!(fs::read_link(directory.join("..data")).expect("a link"), version);
        write_payload(&directory, &payload(&[("token", "2")]), None).expect("rewritten");
        assert_eq!((read("token"), read("dir/ca.crt")), (Some("2".into()), None));
        assert!(!directory.join(version).exists());
        disk::remove_tree(&directory).expect("removable");
    }

    #[test]
    fn a_link_that_a_container_made_is_not_written_through() {
        let base = std::env::temp_dir().join(format!("cwt-links-{}", std::process::id()));
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        for dir in [&volume, &outside] {
            disk::make_dir(dir).expect("a directory");
        }
        fs::write(outside.join("kept"), b"kept").expect("written");
        symlink(&outside, volume.join("..data")).expect("a link");
        let payload = Payload::from([("key".to_owned(), (b"value".to_vec(), 0o644))]);
        write_payload(&volume, &payload, None).expect("written");
        assert_eq!(fs::read(volume.join("key")).ok(), Some(b"value".to_vec()));
        assert_eq!(fs::read(outside.join("kept")).ok(), Some(b"kept".to_vec()));
        disk::remove_tree(&base).expect("removable");
    }

    #[test]
    fn an_empty_directory_keeps_the_mode_that_a_container_gave_it() {
        let base = std::env::temp_dir().join(format!("cwt-empty-{}", std::process::id()));
        let volume = base.join("volume");
        let own_group = nix::unistd::getegid().as_raw();
        for (group, made) in [(None, 0o777), (Some(own_group), 0o2777)] {
            let again = || {
                empty_dir(&volume, group).expect("made");
                fs::metadata(&volume).expect("a directory").mode() & 0o7777
            };
            assert_eq!(again(), made, "{group:?}");
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o750)).expect("its own");
            assert_eq!(again(), 0o750, "{group:?}");
            disk::remove_tree(&volume).expect("removable");
        }
        disk::remove_tree(&base).expect("removable");
    }

    #[test]
    fn a_path_of_the_node_is_made_or_checked_as_its_type_says() {
        let base = std::env::temp_dir().join(format!("cwt-host-path-{}", std::process::id()));
        disk::make_dir(&base).expect("a directory");
        let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).expect("a socket");
        fs::write(base.join("file"), b"kept").expect("written");
        for (path, kind, failure) in [
            ("made", "DirectoryOrCreate", None),
            ("made", "Directory", None),
            ("made", "File", Some("file")),
            ("untyped", "", None),
            ("untyped", "Directory", None),
            ("new", "FileOrCreate", None),
            ("file", "FileOrCreate", None),
            ("file", "File", None),
            ("file", "Directory", Some("directory")),
            ("file", "DirectoryOrCreate", Some("directory")),
            ("absent", "Directory", Some("directory")),
            ("absent", "File", Some("file")),
            ("socket", "Socket", None),
            ("file", "Socket", Some("socket file")),
            ("file", "CharDevice", Some("character device")),
            ("/dev/null", "CharDevice", None),
            ("/dev/null", "BlockDevice", Some("block device")),
        ] {
            let place = base.join(path);
            let place = place.to_str().expect("a path");
            let expected = match failure {
                None => Ok(PathBuf::from(place)),
                Some(wanted) => Err(format!("hostPath type check failed: {place} is not a {wanted}")),
            };
            let seen = host_path(place, place.into(), kind).map_err(|error| error.to_string());
            assert_eq!(seen, expected, "{path} {kind}");
        }
        assert_eq!(fs::read(base.join("file")).ok(), Some(b"kept".to_vec()));
        disk::remove_tree(&base).expect("removable");
    }

    #[test]
    fn volumes_on_disk_have_the_limit_that_they_name() {
        for (source, expected) in [
            (
                json!({ "emptyDir": { "sizeLimit": "1Mi" } }),
                Some((1 << 20, "1Mi")),
            ),
            (json!({ "emptyDir": { "sizeLimit": "0" } }), None),
            (
                json!({ "emptyDir": { "sizeLimit": "1Mi", "medium": "Memory" } }),
                None,
            ),
            (json!({ "emptyDir": {} }), None),
            (json!({ "hostPath": { "path": "/x" } }), None),
        ] {
            let mut volume = source;
            volume["name"] = json!("v");
            let volume: Volume = serde_json::from_value(volume).expect("a volume");
            let seen = limit_of(&volume, Path::new("/v"));
            let seen = seen.as_ref().map(|limit| (limit.bytes, limit.told.as_str()));
            assert_eq!(seen, expected, "{volume:?}");
        }
    }

    #[test]
    fn paths_cannot_leave_their_volume() {
        for (path, expected) in [
            ("a/b", "a/b"),
            ("../a", "a"),
            ("/etc/a", "etc/a"),
            ("a/../../b", "a/b"),
        ] {
            assert_eq!(safe_relative(path), PathBuf::from(expected));
        }
    }
}
