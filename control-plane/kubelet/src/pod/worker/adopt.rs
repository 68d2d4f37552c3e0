//! Taking over what an earlier kubelet left of a pod.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::shared_processes::PAUSER;
use super::{Worker, log_leftover, roles};
use crate::pod::decide::Role;
use crate::pod::slot::{Current, Slot};
use crate::process::Signal;
use crate::runtime::Container;
use crate::sandbox::Sandbox;

impl Worker {
    /// Takes over what an earlier kubelet started.
    pub(super) async fn adopt(&mut self, adopted: Vec<Container>) {
        let uid = self.uid();
        match Sandbox::load(&self.node.config, &uid) {
            Ok(sandbox) => self.sandbox = sandbox,
            Err(error) => tracing::warn!(%error, uid, "sandbox not readable"),
        }
        self.slots = roles(&self.pod)
            .map(|(definition, role)| Slot::new(&definition.name, role, self.known_status(&definition.name)))
            .collect();
        let config = &self.node.config;
        let whole = self
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.is_whole(config));
        for container in adopted {
            if container.request.container == PAUSER {
                self.pauser = Some(container);
                continue;
            }
            let Some(slot) = self
                .slots
                .iter_mut()
                .find(|slot| slot.name == container.request.container)
            else {
                continue;
            };
            if let Some(previous) = slot.current.take() {
                self.node
                    .runtime
                    .forget(&previous.container.request)
                    .unwrap_or_else(log_leftover);
            }
            let image_id = container.request.image_id.clone();
            let mut current = Current::new(container, image_id);
            match current.container.exit() {
                Ok(Some(exit)) => current.ended(&exit),
                _ if !whole => {
                    current.container.signal(Signal::KILL);
                    let exit = current.container.ended().await;
                    current.ended(&exit);
                }
                _ => {}
            }
            slot.attempt = current.container.request.attempt + 1;
            slot.current = Some(current);
            if let (Some((started, ready)), Some(current)) = (slot.known_results(), &mut slot.current) {
                current.trust(started, ready);
            }
        }
        if !whole {
            self.end_pauser().await;
        }
        if !whole && let Some(sandbox) = self.sandbox.take() {
            sandbox.destroy(&self.node.config).await.unwrap_or_else(|error| {
                tracing::warn!(%error, uid, "broken sandbox not removed");
            });
        }
        let has_run = |slot: &Slot| slot.role == Role::Main && slot.current.is_some();
        self.initialized = whole && self.slots.iter().any(has_run);
        if !whole && !self.is_terminal() {
            self.initialize_again();
        }
        if self.is_terminal() && self.slots.iter().all(|slot| slot.current.is_none()) {
            self.refused = true;
        }
        let running: Vec<usize> = (0..self.slots.len())
            .filter(|index| self.slots.get(*index).is_some_and(Slot::is_live))
            .collect();
        for index in running {
            self.watch_container(index, false);
        }
        if self.slots.iter().any(Slot::is_live) {
            self.prepare().await;
        }
    }

    /// In a new sandbox all init containers run again.
    fn initialize_again(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.role != Role::Main) {
            if let Some(previous) = slot.begin_again() {
                let forgotten = self.node.runtime.forget(&previous.container.request);
                forgotten.unwrap_or_else(log_leftover);
            }
        }
    }

    fn known_status(&self, name: &str) -> Option<&ContainerStatus> {
        let init = self.status.init_container_statuses.iter().flatten();
        init.chain(self.status.container_statuses.iter().flatten())
            .find(|status| status.name == name)
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}
