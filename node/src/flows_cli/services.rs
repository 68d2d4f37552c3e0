//! Services and pods of other nodes, as agents of this machine know them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use model::ObjectName;
use trace::flows::record::Object;
use trace::hop::Protocol;

use crate::agent::naming::{self, Named};
use crate::ask;
use crate::config;
use crate::config::here::of_this_machine;
use crate::logs::tell;

/// Services by their addresses, and who takes what is sent there.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_address: BTreeMap<IpAddr, ObjectName>,
    endpoints: BTreeMap<ObjectName, Vec<(SocketAddr, Protocol)>>,
    /// Pods of all nodes by their addresses.
    pub(super) pods: BTreeMap<IpAddr, String>,
    /// Whether an agent answered.
    is_known: bool,
}

impl Services {
    /// Asks the agents with these configurations; without one, that with the usual configuration. Who does not answer is
    /// told and left out.
    pub(super) async fn ask(configs: &[PathBuf]) -> anyhow::Result<Self> {
        let mut services = Self::default();
        for path in of_this_machine(configs) {
            let config = config::load(&path, None)?;
            match ask::ask::<Named>(&config.state_dir, naming::PATH, None::<&()>).await {
                Ok(named) => services.add(named),
                Err(error) => tell(format_args!("warning: Services have no names: {error}")),
            }
        }
        Ok(services)
    }

    pub(super) fn add(&mut self, named: Named) {
        self.is_known = true;
        for service in named.services {
            let addresses = service.addresses.iter();
            self.by_address
                .extend(addresses.map(|address| (*address, service.name.clone())));
            let endpoints = service.endpoints.iter().map(|endpoint| {
                let at = SocketAddr::new(endpoint.address, endpoint.port);
                (at, Protocol(endpoint.protocol.number()))
            });
            self.endpoints
                .entry(service.name)
                .or_default()
                .extend(endpoints.collect::<Vec<_>>());
        }
        let pods = named.pods.into_iter();
        self.pods
            .extend(pods.map(|pod| (pod.address, format!("pod/{}", pod.name))));
    }

    /// The Service that has an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<Object> {
        let ObjectName { namespace, name } = self.by_address.get(&address)?;
        Some(Object {
            name: name.to_string(),
            namespace: namespace.to_string(),
        })
    }

    /// Addresses of a Service, and of its endpoints with their ports.
    pub(super) fn ends(&self, name: &ObjectName) -> anyhow::Result<Vec<(IpAddr, Option<u16>)>> {
        ensure!(
            self.is_known,
            "svc/{name} is not known: no agent answers; name the configuration of one that runs by --config"
        );
        let endpoints = self
            .endpoints
            .get(name)
            .with_context(|| format!("no Service {name} in this cluster"))?;
        let own = self.by_address.iter().filter(|(_, other)| *other == name);
        let own = own.map(|(address, _)| (*address, None));
        let theirs = endpoints.iter().map(|(at, _)| (at.ip(), Some(at.port())));
        Ok(own.chain(theirs).collect())
    }
}
