//! Starting one container of a pod: image, variables, specification, shim.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as Definition;

use super::container::{ContainerContext, container_spec};
use super::env::{self, ConfigError};
use super::slot::{ImageTrouble, Trouble};
use super::sub_path::SubPath;
use super::worker::{Worker, sources};
use crate::cgroup::Cgroup;
use crate::disk::{self, DiskError, OnPath};
use crate::events::EventType;
use crate::images::{self, Image};
use crate::oci::oci_config;
use crate::runtime::{Container, StartError};
use crate::shim::state::{ContainerRequest, Stdin};

impl From<ConfigError> for Trouble {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<DiskError> for Trouble {
    fn from(error: DiskError) -> Self {
        Self::Config(error.to_string())
    }
}

/// Why a container did not start, from the runtime.
pub fn refused(error: StartError) -> Trouble {
    match error {
        StartError::Disk(error) => Trouble::Config(error.to_string()),
        StartError::Refused(text) => Trouble::Start(text),
    }
}

impl Worker {
    /// Starts a container, with the events that `kubectl describe` shows.
    pub(super) async fn start_container(
        &self,
        definition: &Definition,
        attempt: u32,
        pulled: bool,
    ) -> Result<Container, Trouble> {
        let (events, pod, name) = (&self.node.events, &self.pod, definition.name.as_str());
        let image = match self.image(definition, pulled) {
            Ok(image) => image,
            Err(trouble) => {
                if let Trouble::Image { trouble, .. } = &trouble {
                    let text = format!("Error: {}", trouble.reason());
                    events.container(pod, name, EventType::Warning, "Failed", text);
                }
                return Err(trouble);
            }
        };
        let outcome = self.create_and_start(definition, attempt, &image).await;
        match &outcome {
            Ok(_) => {
                events.container(
                    pod,
                    name,
                    EventType::Normal,
                    "Created",
                    format!("Created container: {name}"),
                );
                events.container(
                    pod,
                    name,
                    EventType::Normal,
                    "Started",
                    format!("Started container {name}"),
                );
            }
            Err(Trouble::Config(text) | Trouble::Start(text)) => {
                events.container(pod, name, EventType::Warning, "Failed", format!("Error: {text}"));
            }
            Err(Trouble::Image { .. } | Trouble::Unpulled) => {}
        }
        outcome
    }

    async fn create_and_start(
        &self,
        definition: &Definition,
        attempt: u32,
        image: &Image,
    ) -> Result<Container, Trouble> {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let sources = sources(&self.node.client, &namespace, definition).await?;
        let services: Vec<_> = self
            .node
            .services
            .state()
            .iter()
            .map(|service| (**service).clone())
            .collect();
        let ips = self.ips();
        let variables = env::environment(definition, &self.env_context(&ips, &services, &sources))?;
        let mut request = self.request(definition, attempt, image)?;
        let cgroup = Cgroup::at(&request.cgroup)?;
        let container_dir = self.node.runtime.container_dir(&request.id);
        let context = ContainerContext {
            pod: &self.pod,
            image,
            variables: &variables,
            volumes: &self.mounted.paths,
            etc: &self.etc_dir(),
            termination_log: &request.termination_log,
            hostname: self.hostname(),
            netns: self.sandbox.as_ref().and_then(|sandbox| sandbox.netns_path()),
            ipc: self
                .sandbox
                .as_ref()
                .and_then(|sandbox| sandbox.ipc(&self.node.config)),
            shared_pids: self.shared_pids(),
            rootfs: container_dir.rootfs(),
            cgroup_path: cgroup.oci_path(),
            own_oom_score: self.node.own_oom_score,
            own_capabilities: self.node.own_capabilities,
            devices_guarded: cgroup.guards_devices(),
        };
        let mut spec = container_spec(definition, &context)?;
        for mount in &mut spec.mounts {
            let Some(volume) = mount.within.take() else {
                continue;
            };
            let path = mount.source.strip_prefix(&volume).unwrap_or(Path::new(""));
            let sub_path = SubPath {
                path: path.to_owned(),
                volume,
            };
            // What is wrong is told before there is a container; the shim opens it again, for its mount.
            sub_path.open()?;
            mount.source = container_dir.sub_path(request.sub_paths.len());
            request.sub_paths.push(sub_path);
        }
        self.node
            .runtime
            .start(request, &oci_config(&spec))
            .await
            .map_err(refused)
    }

    fn request(
        &self,
        definition: &Definition,
        attempt: u32,
        image: &Image,
    ) -> Result<ContainerRequest, DiskError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (uid, name) = (self.uid(), definition.name.clone());
        let own_dir = self.node.config.pod_dir(&uid).join("containers").join(&name);
        disk::make_dir(&own_dir)?;
        let termination_log = own_dir.join(format!("{attempt}.message"));
        fs::write(&termination_log, b"").on("create", &termination_log)?;
        let log_dir = self.log_dir().join(&name);
        // The log before this one stays for `kubectl logs --previous`; older ones go.
        if let Some(old) = attempt.checked_sub(2) {
            let _ = fs::remove_file(log_dir.join(format!("{old}.log")));
            let _ = fs::remove_file(log_dir.join(format!("{old}.log.1")));
        }
        Ok(ContainerRequest {
            id: uuid::Uuid::new_v4().simple().to_string(),
            pod_namespace: text(&self.pod.metadata.namespace),
            pod_name: text(&self.pod.metadata.name),
            cgroup: self.node.config.pods_cgroup().join(&uid).join(&name),
            pod_uid: uid,
            container: name,
            attempt,
            image: definition.image.clone().unwrap_or_default(),
            image_id: image.id.clone(),
            image_rootfs: image.rootfs.clone(),
            terminal: definition.tty.unwrap_or(false),
            stdin: match (definition.stdin, definition.stdin_once) {
                (Some(true), Some(true)) => Stdin::Once,
                (Some(true), _) => Stdin::Kept,
                _ => Stdin::Closed,
            },
            sub_paths: Vec::new(),
            log: log_dir.join(format!("{attempt}.log")),
            termination_log,
            falls_back_to_log: definition.termination_message_policy.as_deref()
                == Some("FallbackToLogsOnError"),
            shares_pids: self.shares_processes()
                || self.pod.spec.as_ref().and_then(|spec| spec.host_pid) == Some(true),
            created_at: Timestamp::now(),
        })
    }

    /// The image, as the pull policy allows. `pulled` = it has just been.
    fn image(&self, definition: &Definition, pulled: bool) -> Result<Image, Trouble> {
        let reference = definition.image.clone().unwrap_or_default();
        let (events, pod, name) = (&self.node.events, &self.pod, definition.name.as_str());
        let warn = |reason, text: String| events.container(pod, name, EventType::Warning, reason, text);
        let refused = |trouble, message| Trouble::Image { trouble, message };
        if let Err(why) = images::check_reference(&reference) {
            let message = format!(
                "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}"
            );
            warn("InspectFailed", message.clone());
            return Err(refused(ImageTrouble::BadName, message));
        }
        let found = self.node.images.find(&reference)?;
        match (definition.image_pull_policy.as_deref(), found) {
            (_, Some(image)) if pulled => Ok(image),
            (Some("Never") | Some("IfNotPresent") | None, Some(image)) => {
                let text = format!("Container image \"{reference}\" already present on machine");
                events.container(pod, name, EventType::Normal, "Pulled", text);
                Ok(image)
            }
            (Some("Never"), None) => {
                let message =
                    format!("Container image \"{reference}\" is not present with pull policy of Never");
                warn("ErrImageNeverPull", message.clone());
                Err(refused(ImageTrouble::NeverPulled, message))
            }
            _ => Err(Trouble::Unpulled),
        }
    }
}
