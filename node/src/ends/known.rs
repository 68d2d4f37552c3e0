//! What network namespaces and addresses are called while somebody looks at packets for a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::{NodeName, ObjectName};
use trace::Names;
use trace::flows::record::Object;
use trace::hop::Protocol;
use trace::namespaces::Found;

use super::meant::Resolver;
use crate::logs::tell;
use crate::names::Called;

/// How long what an agent said of an address holds, also that it knows nothing of it; and how long an agent is left alone
/// that did not answer.
const HOLDS: Duration = Duration::from_secs(10);

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
    /// Whose agents did not answer, and when that was.
    silent: BTreeMap<NodeName, Instant>,
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
        let Names {
            netns,
            entering,
            pods,
        } = self.resolver.names(&self.namespaces);
        self.names.netns.extend(netns);
        self.names.entering.extend(entering);
        self.names.pods.extend(pods);
    }

    /// Has agents say what these are called, where that is not known, or has not been asked for a while. Who did not answer
    /// is left alone for a while.
    pub fn ask(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let now = Instant::now();
        let holds = |at: &Instant| now.duration_since(*at) < HOLDS;
        self.told.asked.retain(|_, at| holds(at));
        let is_unknown = |address: &IpAddr| {
            !address.is_loopback()
                && !self.names.pods.contains_key(address)
                && !self.told.asked.contains_key(address)
        };
        let wanted: HashSet<IpAddr> = addresses.into_iter().filter(is_unknown).collect();
        if wanted.is_empty() {
            return;
        }
        let question: Vec<IpAddr> = wanted.iter().copied().collect();
        let mut all = None;
        for agent in self.resolver.agents.iter() {
            let before = self.told.silent.get(&agent.node).copied();
            if before.as_ref().is_some_and(holds) {
                continue;
            }
            match agent.call(&question) {
                Ok(called) => {
                    self.told.silent.remove(&agent.node);
                    all.get_or_insert_with(Vec::new).extend(called);
                }
                Err(why) => {
                    self.told.silent.insert(agent.node.clone(), Instant::now());
                    // Once, not each time.
                    if before.is_none() {
                        tell(format_args!(
                            "warning: what only the agent of {} knows has no name: {why}",
                            agent.node
                        ));
                    }
                }
            }
        }
        if let Some(called) = all {
            self.told
                .asked
                .extend(question.into_iter().map(|address| (address, now)));
            self.told.take(&wanted, called);
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
    use std::os::unix::net::UnixListener;

    use super::super::agents::Agents;
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

    #[test]
    fn an_agent_that_does_not_answer_is_left_alone_for_a_while() {
        let directory = std::env::temp_dir().join(format!("cwt-{}-known", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        let socket = directory.join(crate::ask::SOCKET);
        let _ = std::fs::remove_file(&socket); // of a run that was killed
        let listener = UnixListener::bind(&socket).expect("bound");
        listener.set_nonblocking(true).expect("a socket");
        // Each question is hung up on.
        let hang_up = || listener.accept().is_ok();
        let mut known = Known::with(Pods::default(), Vec::new());
        known.resolver.agents = Agents::at(directory.clone());
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| known.ask([[10, 96, 0, 7].into()]));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !hang_up() {
                assert!(Instant::now() < deadline, "nobody asks");
                std::thread::yield_now();
            }
            asking.join().expect("asked");
        });
        known.ask([[10, 96, 0, 8].into()]);
        assert!(!hang_up(), "it was asked again");
        assert!(known.told.asked.is_empty(), "nothing was said of these");
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
