//! What network namespaces and addresses are called while somebody looks at packets for a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::ObjectName;
use trace::Names;
use trace::flows::record::Object;
use trace::hop::Protocol;
use trace::namespaces::Found;

use super::agents::NotLocated;
use super::meant::Resolver;
use crate::logs::tell;
use crate::names::Called;

/// How long what an agent said of an address holds, also that it knows nothing of it; and how long agents are left alone
/// that did not answer.
const HOLDS: Duration = Duration::from_secs(10);

/// Addresses that are asked for at once: others wait for the next time.
const AT_ONCE: usize = 4096;

/// What they are called, also those that were there before.
#[derive(Debug)]
pub struct Known {
    configs: Vec<PathBuf>,
    resolver: Resolver,
    names: Names,
    namespaces: Vec<Found>,
    told: Told,
}

/// What agents have told of addresses.
#[derive(Debug, Default)]
struct Told {
    /// When an address was asked for last.
    asked: HashMap<IpAddr, Instant>,
    services: BTreeMap<(SocketAddr, Protocol), ObjectName>,
    pods: BTreeMap<IpAddr, String>,
    /// Since when nobody answers.
    silent: Option<Instant>,
}

impl Known {
    /// Looks which there are. Agents are those with these configurations; without one, those that are usual.
    ///
    /// # Errors
    /// When a configuration cannot be read, or the book beside it.
    pub fn read(configs: &[PathBuf]) -> anyhow::Result<Self> {
        Ok(Self::of(configs, Resolver::read(configs)?))
    }

    fn of(configs: &[PathBuf], resolver: Resolver) -> Self {
        let namespaces = trace::namespaces::of_this_machine();
        Self {
            configs: configs.to_vec(),
            names: resolver.names(&namespaces),
            resolver,
            namespaces,
            told: Told::default(),
        }
    }

    /// Looks again; what is gone keeps its name, unless somebody else has its number or address now.
    pub fn look_again(&mut self) {
        // What cannot be read any more has been read before.
        if let Ok(resolver) = Resolver::read(&self.configs) {
            self.resolver = resolver;
        }
        self.namespaces = trace::namespaces::of_this_machine();
        let Names { netns, pods } = self.resolver.names(&self.namespaces);
        self.names.netns.extend(netns);
        self.names.pods.extend(pods);
    }

    /// Has agents say what these are called, where that is not known, or has not been asked for a while.
    pub fn ask(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let now = Instant::now();
        let holds = |at: &Instant| now.duration_since(*at) < HOLDS;
        if self.told.silent.as_ref().is_some_and(holds) {
            return;
        }
        self.told.asked.retain(|_, at| holds(at));
        let mut wanted = HashSet::new();
        for address in addresses {
            if wanted.len() == AT_ONCE {
                break;
            }
            let is_known = address.is_loopback() || self.names.pods.contains_key(&address);
            if !is_known && !self.told.asked.contains_key(&address) {
                wanted.insert(address);
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.told
            .asked
            .extend(wanted.iter().map(|address| (*address, now)));
        match self.resolver.agents.call(wanted.iter().copied().collect()) {
            Ok(called) => {
                self.told.silent = None;
                self.told.take(&wanted, called);
            }
            Err(why) => {
                // Once, not each time.
                if self.told.silent.replace(now).is_none() && !matches!(why, NotLocated::NoAgent) {
                    tell(format_args!(
                        "warning: Services and pods of other nodes have no names: {why}"
                    ));
                }
                self.told.asked.clear();
            }
        }
    }

    /// Where names are looked up.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The names: those that this machine's agents have written down before those that agents tell.
    #[must_use]
    pub fn names(&self) -> Names {
        let mut names = self.names.clone();
        for (address, pod) in &self.told.pods {
            names.pods.entry(*address).or_insert_with(|| pod.clone());
        }
        names
    }

    /// The Service that is asked there.
    #[must_use]
    pub fn service(&self, frontend: SocketAddr, protocol: Protocol) -> Option<Object> {
        let ObjectName { namespace, name } = self.told.services.get(&(frontend, protocol))?;
        Some(Object {
            name: name.to_string(),
            namespace: namespace.to_string(),
        })
    }

    /// Whether a network namespace has a name, or needs none.
    #[must_use]
    pub fn has_netns(&self, inode: u32) -> bool {
        inode == 0 || self.names.netns.contains_key(&inode)
    }

    /// The namespaces that are there.
    #[must_use]
    pub fn namespaces(&self) -> &[Found] {
        &self.namespaces
    }
}

impl Told {
    /// Takes what was said of addresses that were asked for.
    fn take(&mut self, asked: &HashSet<IpAddr>, called: Vec<Called>) {
        for address in asked {
            self.pods.remove(address);
        }
        self.services.retain(|(at, _), _| !asked.contains(&at.ip()));
        for Called {
            address,
            pod,
            services,
        } in called
        {
            self.pods.extend(pod.map(|pod| (address, format!("pod/{pod}"))));
            self.services.extend(services.into_iter().map(|frontend| {
                let at = SocketAddr::new(address, frontend.port);
                ((at, Protocol(frontend.protocol.number())), frontend.service)
            }));
        }
    }
}

#[cfg(test)]
impl Known {
    /// By these pods, and what an agent has told.
    pub fn with(pods: super::pods::Pods, called: Vec<Called>) -> Self {
        let resolver = Resolver {
            pods,
            ..Resolver::default()
        };
        let mut known = Self::of(&[], resolver);
        known.told.take(&HashSet::new(), called);
        known
    }
}

#[cfg(test)]
mod tests {
    use super::super::pods::Pods;
    use super::*;
    use crate::names::addresses::Frontend;

    #[test]
    fn what_is_said_anew_of_an_address_stands_in_place_of_what_was_said_before() {
        let address: IpAddr = [10, 96, 0, 7].into();
        let called = |service: &str| Called {
            address,
            pod: Some(ObjectName::new("shop", service)),
            services: vec![Frontend {
                port: 80,
                protocol: model::Protocol::Tcp,
                service: ObjectName::new("shop", service),
            }],
        };
        let mut known = Known::with(Pods::default(), vec![called("old")]);
        let at = SocketAddr::new(address, 80);
        let told = |known: &Known| {
            let service = known.service(at, Protocol::TCP).map(|service| service.name);
            (service, known.names().pods.get(&address).cloned())
        };
        let both = |name: &str| (Some(name.to_owned()), Some(format!("pod/shop/{name}")));
        assert_eq!(told(&known), both("old"));
        assert_eq!(known.service(at, Protocol::UDP), None);
        known.told.take(&[address].into(), vec![called("new")]);
        assert_eq!(told(&known), both("new"));
        known.told.take(&[address].into(), Vec::new());
        assert_eq!(told(&known), (None, None));
    }
}
