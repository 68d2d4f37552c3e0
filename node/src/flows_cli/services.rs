//! Services and pods of other nodes, as agents of this machine know them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use model::ObjectName;
use trace::flows::record::Object;
use trace::hop::Protocol;

use crate::agent::naming::{self, Named, NamedEndpoint};
use crate::ask;
use crate::config;
use crate::config::here::of_this_machine;
use crate::logs::tell;

/// Services by where they are asked, and who takes what is sent there.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_frontend: BTreeMap<(SocketAddr, Protocol), ObjectName>,
    endpoints: BTreeMap<ObjectName, Vec<SocketAddr>>,
    /// Pods of all nodes by their addresses.
    pub(super) pods: BTreeMap<IpAddr, String>,
    /// Whether an agent answered.
    is_known: bool,
}

impl Services {
    /// Asks the agents with these configurations; without one, those that are usual. Who does not answer is told and left
    /// out.
    pub(super) async fn ask(configs: &[PathBuf]) -> anyhow::Result<Self> {
        let mut services = Self::default();
        for path in of_this_machine(configs) {
            let config = config::load(&path, None)?;
            match ask::ask::<Named>(&config.state_dir, naming::PATH, ()).await {
                Ok(named) => services.add(named),
                Err(error) => tell(format_args!("warning: Services have no names: {error}")),
            }
        }
        Ok(services)
    }

    pub(super) fn add(&mut self, named: Named) {
        self.is_known = true;
        for service in named.services {
            let at = |place: &NamedEndpoint| SocketAddr::new(place.address, place.port);
            let frontends = service.frontends.iter().map(|frontend| {
                let protocol = Protocol(frontend.protocol.number());
                ((at(frontend), protocol), service.name.clone())
            });
            self.by_frontend.extend(frontends);
            let endpoints = service.endpoints.iter().map(at);
            self.endpoints
                .entry(service.name.clone())
                .or_default()
                .extend(endpoints);
        }
        let pods = named.pods.into_iter();
        self.pods
            .extend(pods.map(|pod| (pod.address, format!("pod/{}", pod.name))));
    }

    /// The Service that is asked there.
    pub(super) fn at(&self, frontend: SocketAddr, protocol: Protocol) -> Option<Object> {
        let ObjectName { namespace, name } = self.by_frontend.get(&(frontend, protocol))?;
        Some(Object {
            name: name.to_string(),
            namespace: namespace.to_string(),
        })
    }

    /// Addresses of a Service, and of its endpoints, with their ports.
    pub(super) fn ends(&self, name: &ObjectName) -> anyhow::Result<Vec<(IpAddr, Option<u16>)>> {
        ensure!(
            self.is_known,
            "svc/{name} is not known: no agent answers; name the configuration of one that runs by --config"
        );
        let endpoints = self
            .endpoints
            .get(name)
            .with_context(|| format!("no Service {name} in this cluster"))?;
        let own = self.by_frontend.iter().filter(|(_, other)| *other == name);
        let all = own.map(|((at, _), _)| at).chain(endpoints);
        Ok(all.map(|at| (at.ip(), Some(at.port()))).collect())
    }
}
