//! A node in a VPC: the manager, the cloud it asks, and a book of pods' addresses in place of the agent's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fake_vpc::cloud::Cloud;
use fake_vpc::ledger::Call;
use fake_vpc::request::{Attribute, Interface as Eni, Request};
use ipnetwork::IpNetwork;
use model::MacAddr;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vpc_eni::ec2::{Action, Amount, EniId, InstanceId, NewEni, SecurityGroupId, SubnetId, Tags, VpcId};
use vpc_eni::home::{Census, Facts, Home, Interface, Use};
use vpc_eni::ipam::{Ipam, Status};
use vpc_eni::settings::Settings;

/// How long an address that came back is given to nobody.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// Who has which address.
#[derive(Clone)]
pub struct Book {
    shared: Arc<Shared>,
    cloud: Cloud,
    instance: InstanceId,
}

struct Shared {
    pages: Mutex<Pages>,
    changed: Notify,
    /// The devices of which it was told last.
    devices: Mutex<BTreeSet<MacAddr>>,
    /// How many devices the kernel has at most.
    most_devices: AtomicUsize,
}

#[derive(Default)]
struct Pages {
    blocks: BTreeSet<IpNetwork>,
    withdrawn: BTreeSet<IpNetwork>,
    pods: BTreeMap<u32, IpAddr>,
    waiting: Vec<u32>,
    cooling: BTreeMap<IpAddr, Instant>,
    next_pod: u32,
}

impl Pages {
    fn is_free(&self, address: IpAddr) -> bool {
        !self.pods.values().any(|used| *used == address) && !self.cooling.contains_key(&address)
    }

    /// Whoever waits has the first address that is free.
    fn serve_waiting(&mut self) {
        self.cooling.retain(|_, until| *until > Instant::now());
        while let Some(pod) = self.waiting.first().copied() {
            let given = self.blocks.difference(&self.withdrawn);
            // A /80 has more than can be looked through.
            let mut addresses = given.flat_map(|block| block.iter().take(256));
            let Some(address) = addresses.find(|address| self.is_free(*address)) else {
                return;
            };
            self.waiting.remove(0);
            self.pods.insert(pod, address);
        }
    }

    fn used(&self, block: IpNetwork) -> Use {
        let within = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
            addresses.filter(|address| block.contains(**address)).count() as u32
        };
        Use {
            assigned: within(&mut self.pods.values()),
            cooling: within(&mut self.cooling.keys()),
        }
    }
}

impl Book {
    fn of(cloud: &Cloud, instance: &InstanceId) -> Self {
        Self {
            shared: Arc::new(Shared {
                pages: Mutex::default(),
                changed: Notify::new(),
                devices: Mutex::default(),
                most_devices: AtomicUsize::new(usize::MAX),
            }),
            cloud: cloud.clone(),
            instance: instance.clone(),
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.shared.pages.lock().expect("nobody panicked")
    }

    pub fn add_pods(&self, count: u32) {
        let mut pages = self.pages();
        for _ in 0..count {
            let pod = pages.next_pod;
            pages.next_pod += 1;
            pages.waiting.push(pod);
        }
        pages.serve_waiting();
        drop(pages);
        self.shared.changed.notify_one();
    }

    /// The last that came go.
    pub fn remove_pods(&self, count: u32) {
        let mut pages = self.pages();
        for _ in 0..count {
            if pages.waiting.pop().is_none() {
                let (_, address) = pages.pods.pop_last().expect("as many pods");
                pages.cooling.insert(address, Instant::now() + COOL_DOWN);
            }
        }
        drop(pages);
        self.shared.changed.notify_one();
    }

    pub fn pods(&self) -> Vec<IpAddr> {
        self.pages().pods.values().copied().collect()
    }

    /// From now on the kernel has so many devices at most: those of the interfaces that came first.
    pub fn limit_devices(&self, most: usize) {
        self.shared.most_devices.store(most, Ordering::Relaxed);
    }

    fn macs(&self) -> BTreeSet<MacAddr> {
        let most = self.shared.most_devices.load(Ordering::Relaxed);
        let devices = self.cloud.devices(&self.instance).into_iter();
        devices.take(most).map(|eni| eni.mac).collect()
    }

    pub fn waiting(&self) -> usize {
        self.pages().waiting.len()
    }

    fn devices_changed(&self) -> bool {
        let devices = self.macs();
        let mut known = self.shared.devices.lock().expect("nobody panicked");
        std::mem::replace(&mut *known, devices.clone()) != devices
    }

    /// What a pod could be given now.
    pub fn offered(&self) -> BTreeSet<IpNetwork> {
        let pages = self.pages();
        pages.blocks.difference(&pages.withdrawn).copied().collect()
    }
}

impl Home for Book {
    fn devices(&self) -> Option<BTreeSet<MacAddr>> {
        Some(self.macs())
    }

    fn serve(&self, interfaces: &[Interface], _blocked: Option<&str>) {
        let mut pages = self.pages();
        pages.blocks = interfaces
            .iter()
            .flat_map(|interface| interface.blocks.clone())
            .collect();
        pages.withdrawn.clear();
        pages.serve_waiting();
    }

    fn census(&self) -> Census {
        let mut pages = self.pages();
        pages.serve_waiting();
        let blocks = pages.blocks.iter().map(|block| (*block, pages.used(*block)));
        let is_stranded = |address: &&IpAddr| !pages.blocks.iter().any(|block| block.contains(**address));
        Census {
            blocks: blocks.collect(),
            waiting: pages.waiting.len() as u32,
            stranded: pages.pods.values().filter(is_stranded).copied().collect(),
        }
    }

    fn withdraw(&self, blocks: &[IpNetwork]) -> Vec<IpNetwork> {
        let mut pages = self.pages();
        let (free, used): (Vec<_>, Vec<_>) = blocks
            .iter()
            .partition(|block| pages.used(**block) == Use::default());
        pages.withdrawn.extend(free);
        used
    }

    async fn changed(&self) {
        let cools_until = {
            let mut pages = self.pages();
            let before = pages.cooling.len();
            pages.cooling.retain(|_, until| *until > Instant::now());
            if pages.cooling.len() < before {
                return;
            }
            pages.cooling.values().min().copied()
        };
        let cooled = async {
            match cools_until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        // Of what happens at EC2 a node sees its devices only.
        let plugged = async {
            let mut cloud = self.cloud.changes();
            while !self.devices_changed() {
                cloud.next().await;
            }
        };
        tokio::select! {
            () = self.shared.changed.notified() => {}
            () = cooled => {}
            () = plugged => {}
        }
    }
}

/// A directory of its own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Where there is memory for it, no disk is waited for.
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("vpc-eni-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays is a directory of /tmp.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct World {
    pub cloud: Cloud,
    pub book: Book,
    pub vpc: VpcId,
    pub subnet: SubnetId,
    pub instance: InstanceId,
    pub facts: watch::Sender<Facts>,
    status: watch::Receiver<Status>,
    settings: Settings,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
    directory: Directory,
}

/// `NAME=VALUE NAME=VALUE`, as the peer's DaemonSet has them.
pub fn settings(variables: &str) -> Settings {
    let pairs = variables
        .split_whitespace()
        .map(|pair| pair.split_once('=').expect("NAME=VALUE"));
    let (settings, refused) =
        Settings::from_variables(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(refused, []);
    settings
}

impl World {
    /// A node that nobody manages yet, in a subnet of 1,019 addresses.
    pub fn build(instance_type: &str, variables: &str) -> Self {
        Self::build_in("10.0.0.0/22", instance_type, variables)
    }

    pub fn build_in(subnet: &str, instance_type: &str, variables: &str) -> Self {
        let (cloud, vpc) = cloud_with_vpc();
        let network = subnet.parse().expect("a network");
        let subnet = cloud
            .make_subnet(&vpc, network, "eu-west-1a", Tags::new())
            .expect("a subnet");
        Self::build_on(cloud, vpc, subnet, instance_type, variables)
    }

    /// A node of a cluster of IPv6.
    pub fn build_v6(instance_type: &str) -> Self {
        let (cloud, vpc) = cloud_with_vpc();
        let (v4, v6) = (
            "10.0.0.0/22".parse().expect("a network"),
            "fd05:1::/64".parse().expect("a network"),
        );
        let subnet = cloud
            .make_dual_subnet(&vpc, v4, v6, "eu-west-1a", Tags::new())
            .expect("a subnet");
        Self::build_on(
            cloud,
            vpc,
            subnet,
            instance_type,
            "ENABLE_IPv4=false ENABLE_IPv6=true",
        )
    }

    fn build_on(cloud: Cloud, vpc: VpcId, subnet: SubnetId, instance_type: &str, variables: &str) -> Self {
        let group = cloud.default_group(&vpc).expect("a VPC has one");
        let instance = cloud
            .make_instance(instance_type, &subnet, &[group])
            .expect("an instance");
        let book = Book::of(&cloud, &instance);
        let (_, status) = watch::channel(Status::default());
        Self {
            cloud,
            book,
            vpc,
            subnet,
            instance,
            facts: watch::Sender::new(Facts::default()),
            status,
            settings: settings(variables),
            shutdown: CancellationToken::new(),
            task: None,
            directory: Directory::new(),
        }
    }

    pub fn start(&mut self) {
        let (manager, status) = Ipam::new(
            self.cloud.client(),
            self.cloud.imds(&self.instance),
            self.book.clone(),
            self.settings.clone(),
            self.facts.subscribe(),
            &self.directory.0,
        )
        .expect("the record can be read");
        self.status = status;
        self.shutdown = CancellationToken::new();
        self.task = Some(tokio::spawn(manager.run(self.shutdown.clone())));
    }

    /// Another node, from the next start on: with a book and a record of its own.
    pub fn work_for(&mut self, instance: &InstanceId) {
        self.book = Book::of(&self.cloud, instance);
        self.instance = instance.clone();
        self.directory = Directory::new();
    }

    /// Other settings from the next start on.
    pub fn set_variables(&mut self, variables: &str) {
        self.settings = settings(variables);
    }

    /// What the manager has written down.
    pub fn records(&self) -> Vec<serde_json::Value> {
        let text =
            fs::read(self.directory.0.join(vpc_eni::undertaking::FILE)).unwrap_or_else(|_| b"[]".to_vec());
        serde_json::from_slice(&text).expect("a list")
    }

    /// Ends the manager where it is, as a kill does.
    pub async fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let ended = task.await;
            assert!(
                ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()),
                "the manager panicked"
            );
        }
    }

    /// Lets time pass until something is so.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        what: &'a str,
        limit: Duration,
        holds: impl Fn(&Self) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let end = Instant::now() + limit;
            while !holds(self) {
                assert!(
                    Instant::now() < end && self.task.as_ref().is_none_or(|task| !task.is_finished()),
                    "{caller}: {what} within {limit:?}: {} pods, {} wait, {:?}, {:?}",
                    self.book.pods().len(),
                    self.book.waiting(),
                    self.held(),
                    self.status.borrow()
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// All pods have addresses, and nothing has changed for five minutes.
    pub async fn settle(&self) {
        self.until("pods have addresses", Duration::from_secs(1200), |world| {
            world.book.waiting() == 0
        })
        .await;
        let mut changes = self.changes();
        let mut quiet = 0;
        let end = Instant::now() + Duration::from_secs(4 * 3600);
        while quiet < 60 {
            assert!(Instant::now() < end, "never at rest: {:?}", self.status.borrow());
            tokio::time::sleep(Duration::from_secs(5)).await;
            let now = self.changes();
            quiet = if now == changes { quiet + 1 } else { 0 };
            changes = now;
        }
    }

    /// How many calls were made that change something.
    pub fn changes(&self) -> usize {
        self.counts()
            .iter()
            .filter(|(action, _)| action.changes())
            .map(|(_, count)| count)
            .sum()
    }

    pub fn counts(&self) -> BTreeMap<Action, usize> {
        self.cloud.counts()
    }

    /// When leaks were looked for.
    pub fn sweeps(&self) -> Vec<Instant> {
        self.searched_by("status")
    }

    /// When this node's interfaces were looked at.
    pub fn looks(&self) -> Vec<Instant> {
        self.searched_by("attachment.instance-id")
    }

    fn searched_by(&self, filter: &str) -> Vec<Instant> {
        let calls = self.cloud.calls().into_iter();
        let is_it = |call: &Call| match &call.request {
            Request::DescribeNetworkInterfaces(search) => {
                search.filters.iter().any(|found| found.name == filter)
            }
            _ => false,
        };
        calls.filter(is_it).map(|call| call.at).collect()
    }

    /// Lets time pass until leaks were looked for: nothing else is due for some minutes then.
    pub async fn until_a_sweep(&self) {
        let has_swept = |world: &Self| {
            let last = world.sweeps().last().copied();
            last.is_some_and(|at| at.elapsed() < Duration::from_secs(1))
        };
        self.until("leaks are looked for", Duration::from_secs(21 * 60), has_swept)
            .await;
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The problem of a subject.
    pub fn problem(&self, subject: &str) -> Option<String> {
        let status = self.status.borrow();
        let found = status.problems.iter().find(|(found, _)| *found == subject);
        found.map(|(_, problem)| problem.to_string())
    }

    /// The units on each of the instance's interfaces, by device index.
    pub fn held(&self) -> Vec<usize> {
        let mut interfaces = self.cloud.interfaces_of(&self.instance);
        interfaces.sort_by_key(index);
        let units = |interface: &Eni| {
            let eni = &interface.eni;
            eni.secondary.len() + eni.prefixes.len() + eni.prefixes_v6.len()
        };
        interfaces.iter().map(units).collect()
    }

    /// The interface with that device index.
    pub fn eni(&self, device_index: u32) -> EniId {
        let interfaces = self.cloud.interfaces_of(&self.instance);
        let found = interfaces
            .into_iter()
            .find(|interface| index(interface) == device_index);
        found.expect("an interface").eni.id
    }

    /// What pods have, and what they could be given, is delivered to this node; and no address is two pods'.
    pub fn assert_delivered(&self, what: &str) {
        let pods = self.book.pods();
        assert_eq!(
            pods.iter().collect::<BTreeSet<_>>().len(),
            pods.len(),
            "{what}: an address twice: {pods:?}"
        );
        let own: BTreeSet<EniId> = self
            .cloud
            .interfaces_of(&self.instance)
            .into_iter()
            .map(|interface| interface.eni.id)
            .collect();
        let offered = self.book.offered().into_iter().map(|block| block.ip());
        for address in pods.into_iter().chain(offered) {
            let owner = self.cloud.owner(&self.vpc, address);
            assert!(
                owner.as_ref().is_some_and(|owner| own.contains(owner)),
                "{what}: {address} is {owner:?}'s, of {own:?}"
            );
        }
    }

    /// What must always be so: pods have addresses that this node's interfaces own, each its own; and no interface that
    /// was made is with nobody.
    pub fn assert_sound(&self) {
        self.assert_delivered("");
        let own = self.cloud.interfaces_of(&self.instance);
        let all = self.cloud.interfaces();
        let leaked: Vec<_> = all
            .iter()
            .filter(|interface| interface.eni.attachment.is_none())
            .collect();
        assert!(leaked.is_empty(), "with nobody: {leaked:?}");
        assert_eq!(all.len(), own.len(), "only this instance is there");
    }

    /// That, and every address that EC2 has given is one that pods can have.
    pub fn assert_nothing_is_lost(&self) {
        self.assert_sound();
        let offered = self.book.offered();
        for interface in self.cloud.interfaces_of(&self.instance) {
            let blocks = interface
                .eni
                .secondary
                .iter()
                .map(|address| IpNetwork::from(IpAddr::V4(*address)));
            let blocks = blocks.chain(interface.eni.prefixes.iter().copied().map(IpNetwork::V4));
            let unused: Vec<IpNetwork> = blocks.filter(|block| !offered.contains(block)).collect();
            assert_eq!(unused, [], "of {}", interface.eni.id);
        }
    }

    /// Somebody changes the security groups of an interface.
    pub fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) {
        let change = Request::ModifyNetworkInterfaceAttribute {
            eni: eni.clone(),
            attribute: Attribute::Groups(groups.to_vec()),
        };
        self.cloud.meddle(&change).expect("it is there");
    }

    /// Somebody makes another interface; it is with nobody.
    pub fn make_another(&self, tags: Tags) -> EniId {
        let new = NewEni {
            subnet: self.subnet.clone(),
            groups: Vec::new(),
            description: String::new(),
            tags,
            amount: Amount::Addresses(0),
            client_token: String::new(),
        };
        let before: BTreeSet<EniId> = self
            .cloud
            .interfaces()
            .into_iter()
            .map(|found| found.eni.id)
            .collect();
        self.cloud
            .meddle(&Request::CreateNetworkInterface(new))
            .expect("room");
        let mut after = self.cloud.interfaces().into_iter().map(|found| found.eni.id);
        after.find(|id| !before.contains(id)).expect("it was made")
    }

    /// Somebody attaches another interface.
    pub fn attach_another(&self, device_index: u32, tags: Tags) -> EniId {
        self.attach_to_card(0, device_index, tags)
    }

    /// Somebody attaches another interface to one of the instance's network cards.
    pub fn attach_to_card(&self, card_index: u32, device_index: u32, tags: Tags) -> EniId {
        let eni = self.make_another(tags);
        let attach = Request::AttachNetworkInterface {
            eni: eni.clone(),
            instance: self.instance.clone(),
            device_index,
            card_index,
        };
        self.cloud.meddle(&attach).expect("room");
        eni
    }

    /// An address of the subnet.
    pub fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }
}

fn cloud_with_vpc() -> (Cloud, VpcId) {
    let cloud = Cloud::new(1);
    let vpc = cloud
        .make_vpc(&["10.0.0.0/16".parse().expect("a network")])
        .expect("a VPC");
    (cloud, vpc)
}

fn index(interface: &Eni) -> u32 {
    interface
        .eni
        .attachment
        .as_ref()
        .map_or(u32::MAX, |attached| attached.device_index)
}
