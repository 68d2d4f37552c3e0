//! The network of a VPC on one Linux machine: real devices in the nodes' network namespaces, and a router that lets
//! through what a VPC lets through.
//!
//! Each interface that has a device ([`Cloud::devices`]) is a pair of devices: one end is in the node's namespace,
//! with the interface's MAC address and the name `eth<device index>`, the other end is a *port* of the router. A node's
//! device of that MAC address that is there already, by whatever name, is taken as it is, if its other end is in the
//! router's namespace and no port of a bridge. The first device of an instance has its address and a default route when it
//! comes, as after booting; the others are down and bare, as EC2's are.
//!
//! # Packet walk
//! ```text
//! a pod with 10.0.1.20, which is ENI 2's, on node A           → 10.0.3.7, an address of node B
//! A       sends by eth1; asks there who has the gateway, 10.0.1.1, or, within the subnet, who has the address itself
//! router  answers: the gateway's address is on each port, and for what other ports lead to there is proxy_arp; who
//!         asks for nobody's address, or for one of the same interface, hears nothing
//! router, prerouting, before connection tracking, for what comes in by ports:
//!         port . source in `owned`, else                      → strangers: counted, dropped
//!         destination in `addresses`                          → goes on
//!         destination is the router's: gateway, internet      → goes on
//!         destination in a block of the VPC                   → nobodys: counted, dropped
//! router, routes: 10.0.3.7 via B's primary address, by B's port; the MAC address is the ENI's, and nobody is asked
//!         for it: nodes need not answer for their pods
//! B       gets it by the device of the ENI that owns the address
//! ```
//! In IPv6 the gateway is `fe80::1` on each port, and nobody answers for others' addresses on the link: nodes send to the
//! gateway. No router advertisements are sent.
//!
//! The *internet* is addresses of the router itself: what is sent there arrives at a socket of [`Fabric::listen`], which
//! tells from which address. Any address that is owned may go there, as if it had a public one. Where else the router
//! has routes to outside the VPC, it forwards to.
//!
//! It looks when something happens in the cloud, when it is asked to ([`Fabric::settle`]), and soon again after a problem;
//! what others do to its devices meanwhile is put right then, and not before. It writes tables `fake-vpc` into nftables,
//! routes of protocol 214 into the main table, and aliases `fake-vpc …`, by which it knows later what is its own, also
//! without the cloud that it was made of ([`Fabric::remove`]).
//!
//! The router's namespace may be the machine's own. Devices, routes, tables and settings of others are left alone there,
//! and packets of devices that are no ports are not looked at: whether what comes in by those is forwarded to the VPC is
//! the machine's affair, as is what rules of others do with what comes in by ports. A route that somebody else has to a
//! block of the VPC, or to an address in it, stays, and is a [`Problem::Route`]. Before Linux 6.17 there is one setting
//! for forwarding IPv6 from all devices, which is changed where the VPC has IPv6, and changed back in the end.
//!
//! Not played: security groups, network ACLs, route tables of subnets, DHCP, the metadata service's address. Addresses
//! of interfaces whose instance has no namespace here are nobody's. One fabric fits into a router's namespace.

mod filter;
mod plan;
mod router;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ipnetwork::IpNetwork;
use netlink::Namespace;
use netlink::nft::{self, Nft};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Duration, sleep};
use vpc_eni::ec2::{EniId, InstanceId, VpcId};

use crate::Cloud;
use crate::cloud::Changes;
use crate::request::Refusal;
pub use filter::Drops;
use router::Router;

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How many looks may be waited for.
const QUEUE: usize = 16;

/// Where a VPC's network is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The VPC.
    pub vpc: VpcId,
    /// The namespace of its router.
    pub router: Namespace,
    /// The namespaces of its instances. Others' interfaces have no devices.
    pub nodes: BTreeMap<InstanceId, Namespace>,
    /// Addresses outside the VPC that the router has for the internet, for example `198.51.100.1`.
    pub internet: Vec<IpAddr>,
}

/// What could not be done. It is tried again every half second.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The VPC is not there.
    #[error("look at the VPC: {0}")]
    Cloud(Refusal),
    /// Something about an interface's device.
    #[error("device of {eni}")]
    Device {
        /// The interface.
        eni: EniId,
        /// What the kernel says.
        #[source]
        source: netlink::Error,
    },
    /// The node has a device of the interface's MAC address that is no end of a pair with the router, or is a bridge's.
    #[error("{device} has the MAC address of {eni}, and does not lead to the router")]
    Foreign {
        /// The interface.
        eni: EniId,
        /// The device.
        device: String,
    },
    /// Somebody else has a route there, which stays.
    #[error("the router has a route to {0} that is not the fabric's")]
    Route(IpNetwork),
    /// Something about the router.
    #[error("router")]
    Router(#[from] netlink::Error),
    /// Something about its rules.
    #[error("rules of the router")]
    Filter(#[from] nft::Error),
    /// No thread.
    #[error("start a thread for the router")]
    Thread(#[source] io::Error),
}

/// Who waits for a look.
type Look = Option<oneshot::Sender<Arc<Vec<Problem>>>>;

/// The network of a VPC. It follows the cloud until it is dropped; then all that it made is removed.
pub struct Fabric {
    router: Namespace,
    looks: Option<mpsc::Sender<Look>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    keeps: Arc<AtomicBool>,
    follower: AbortHandle,
    thread: Option<JoinHandle<Vec<Problem>>>,
}

impl Fabric {
    /// Makes the network what the cloud says, and keeps it so. What is there of an earlier fabric is taken over.
    ///
    /// Must be called in a tokio runtime, the cloud's: its clock counts. What could not be done at once does not keep it
    /// from starting; see [`Self::problems`].
    ///
    /// # Errors
    /// An unknown VPC; a namespace that cannot be entered, or rights that are missing.
    pub async fn start(cloud: &Cloud, place: Place) -> Result<Self, Problem> {
        let Place {
            vpc,
            router,
            nodes,
            internet,
        } = place;
        cloud.grounds(&vpc).map_err(Problem::Cloud)?;
        let changes = cloud.changes();
        let worker = Worker {
            cloud: cloud.clone(),
            vpc,
            namespace: router.clone(),
            router: Router::open(&router, nodes, internet)?,
            problems: watch::Sender::new(Arc::default()),
            keeps: Arc::default(),
        };
        let problems = worker.problems.subscribe();
        let keeps = Arc::clone(&worker.keeps);
        let (sender, looks) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("fabric".to_owned());
        let thread = thread.spawn(move || {
            // For the cloud's clock, which may be a test's.
            let _runtime = runtime.enter();
            worker.work(looks)
        });
        let follower = tokio::spawn(follow(changes, sender.downgrade(), problems.clone()));
        let fabric = Self {
            router,
            looks: Some(sender),
            problems,
            keeps,
            follower: follower.abort_handle(),
            thread: Some(thread.map_err(Problem::Thread)?),
        };
        fabric.settle().await;
        Ok(fabric)
    }

    /// Returns when the network is what the cloud says now, with what could not be done.
    pub async fn settle(&self) -> Arc<Vec<Problem>> {
        let (sender, looked) = oneshot::channel();
        if let Some(looks) = &self.looks {
            // No thread, no look: then the last problems are the answer.
            let _ = looks.send(Some(sender)).await;
        }
        looked.await.unwrap_or_else(|_| self.problems())
    }

    /// What could not be done at the last look.
    #[must_use]
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.borrow().clone()
    }

    /// How many packets the router dropped.
    ///
    /// # Errors
    /// When the rules cannot be read.
    pub fn drops(&self) -> Result<Drops, Problem> {
        let drops = || Nft::open().and_then(|mut nft| filter::drops(&mut nft));
        Ok(self.router.run(drops)??)
    }

    /// A socket in the router's namespace: at an address of the internet it tells who sends there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the address is not the router's.
    pub fn listen(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        self.router
            .run(|| UdpSocket::bind(at))
            .map_err(io::Error::other)?
    }

    /// Ends, and removes all that was made; blocks for some milliseconds. What could not be removed is told.
    pub fn stop(mut self) -> Vec<Problem> {
        self.end()
    }

    /// Removes what a fabric left in a router's namespace when its process was killed, or that was abandoned, and says
    /// what could not be. Blocks for some milliseconds.
    ///
    /// A device that others made, and that was a port, keeps the router's address on it: nothing tells that from one of
    /// theirs.
    pub fn remove(router: &Namespace) -> Vec<Problem> {
        let removed = router.run(|| match Router::open(router, BTreeMap::new(), Vec::new()) {
            Ok(mut router) => router.clear(),
            Err(problem) => vec![problem],
        });
        removed.unwrap_or_else(|error| vec![error.into()])
    }

    /// Ends, and leaves everything as it is, for a fabric that starts later.
    pub fn abandon(mut self) {
        self.keeps.store(true, Ordering::Relaxed);
        self.end();
    }

    fn end(&mut self) -> Vec<Problem> {
        self.follower.abort();
        drop(self.looks.take());
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for problem in self.end() {
            tracing::warn!(error = &problem as &dyn std::error::Error, "not removed");
        }
    }
}

/// Has the cloud looked at whenever there may be something new.
async fn follow(
    mut changes: Changes,
    looks: mpsc::WeakSender<Look>,
    mut problems: watch::Receiver<Arc<Vec<Problem>>>,
) {
    loop {
        let has_problems = !problems.borrow_and_update().is_empty();
        tokio::select! {
            () = changes.next() => {}
            told = problems.changed() => match told {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = sleep(RETRY), if has_problems => {}
        }
        let Some(looks) = looks.upgrade() else { return };
        // Where the queue is full, somebody's look is to come, and sees this.
        let _ = looks.try_send(None);
    }
}

/// What the thread of the router has.
struct Worker {
    cloud: Cloud,
    vpc: VpcId,
    namespace: Namespace,
    router: Router,
    problems: watch::Sender<Arc<Vec<Problem>>>,
    keeps: Arc<AtomicBool>,
}

impl Worker {
    fn work(mut self, mut looks: mpsc::Receiver<Look>) -> Vec<Problem> {
        if let Err(error) = self.namespace.enter() {
            return vec![error.into()];
        }
        while let Some(asked) = looks.blocking_recv() {
            let problems = Arc::new(self.look());
            for problem in problems.iter() {
                tracing::warn!(
                    error = problem as &dyn std::error::Error,
                    "the network is not as the cloud is"
                );
            }
            self.problems.send_replace(Arc::clone(&problems));
            if let Some(asked) = asked {
                // Who asked may have gone.
                let _ = asked.send(problems);
            }
        }
        if self.keeps.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.router.clear()
    }

    fn look(&mut self) -> Vec<Problem> {
        match self.cloud.grounds(&self.vpc) {
            Ok(grounds) => {
                let plan = self.router.plan(&grounds);
                self.router.apply(&plan)
            }
            Err(refusal) => vec![Problem::Cloud(refusal)],
        }
    }
}
