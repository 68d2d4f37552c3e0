//! The nodes' VPC, which is a fake one: EC2's API, a metadata service on each node, and this machine as its router.
//!
//! ```text
//! node ─ agent ─► 172.30.0.1:8773 (EC2) ──────────┐
//!          └────► 169.254.169.254 (on its `lo`) ──┴─► Cloud ─► vpc.json
//!                                                       └─► Fabric: eth0, eth1… of each node, routes and checks here
//! ```
//! `up` makes the nodes' first devices before anything starts; a process of the cluster serves the rest, and is where
//! interfaces come and go. What the VPC has is written down at each change: who follows that process finds it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use fake_vpc::fabric::Place;
use fake_vpc::{Cloud, Fabric, Server};
use ipnetwork::IpNetwork;
use model::with_causes;
use netlink::{Address, Kernel as _, Namespace, Netlink, Scope};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use vpc_eni::ec2::{InstanceId, SubnetId, Tags, VpcId};

use crate::layout::StateDir;
use crate::settings::{Settings, Vpc};
use crate::underlay::namespace_name;

/// Where the VPC is.
pub const REGION: &str = "eu-west-1";
/// Where its subnet is.
pub const ZONE: &str = "eu-west-1a";

/// Eucalyptus' and OpenStack's port of the EC2 API.
const EC2_PORT: u16 = 8773;

/// Where instances find their metadata service (EC2 user guide, "Instance metadata").
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What is drawn by chance is the same in each cluster.
const SEED: u64 = 1;

/// Where EC2 answers nodes.
pub fn ec2_address(settings: &Settings) -> SocketAddr {
    SocketAddr::from((settings.control_plane_address(), EC2_PORT))
}

/// Gives the nodes' namespaces their first devices, and the address of a metadata service.
pub fn create(settings: &Settings, state: &StateDir) -> anyhow::Result<()> {
    for name in settings.node_names() {
        let mut node = Netlink::open_in(&Namespace::named(&namespace_name(&name))?)?;
        let loopback = node.link_named("lo")?.context("lo is missing")?;
        node.add_address(&Address {
            // No packet is sent with it of itself.
            scope: Scope::Host,
            ..Address::global(loopback.index, IpNetwork::from(IpAddr::V4(METADATA)))
        })?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let instances = Instances::open(settings, state)?;
        let fabric = Fabric::start(&instances.cloud, instances.place()?).await?;
        let problems: Vec<String> = fabric
            .problems()
            .iter()
            .map(|problem| with_causes(problem))
            .collect();
        fabric.abandon();
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        instances.save(state)
    })
}

/// Serves the VPC until shutdown, and leaves its network as it is.
pub async fn run(state: StateDir, settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let instances = Instances::open(&settings, &state)?;
    let mut changes = instances.cloud.changes();
    let fabric = Fabric::start(&instances.cloud, instances.place()?).await?;
    let ec2 = ec2_address(&settings);
    let server = Server::start(&instances.cloud, ec2).with_context(|| format!("listening on {ec2}"))?;
    for (name, instance) in &instances.by_node {
        let node = Namespace::named(&namespace_name(name))?;
        let listener = node.run(|| TcpListener::bind((METADATA, 80)))?;
        let listener = listener.with_context(|| format!("listening on {METADATA} of {name}"))?;
        server.serve_metadata_on(instance, listener)?;
    }
    loop {
        if let Err(error) = instances.save(&state) {
            warn!(
                error = format!("{error:#}"),
                "what the VPC has is not written down"
            );
        }
        tokio::select! {
            () = changes.next() => {}
            () = shutdown.cancelled() => break,
        }
    }
    fabric.abandon();
    instances.save(&state)
}

/// Removes what a VPC's network is on this machine; none is no error.
pub fn destroy() -> anyhow::Result<()> {
    let problems = Fabric::remove(&Namespace::current()?);
    let problems: Vec<String> = problems.iter().map(|problem| with_causes(problem)).collect();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// The region, and which instance is which node.
struct Instances {
    cloud: Cloud,
    vpc: VpcId,
    by_node: BTreeMap<String, InstanceId>,
}

impl Instances {
    /// Those that were written down, and new ones for the nodes that have none.
    fn open(settings: &Settings, state: &StateDir) -> anyhow::Result<Self> {
        let of_vpc = settings.vpc.as_ref().context("the cluster is not in a VPC")?;
        let path = state.vpc();
        let kept = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let cloud = match kept {
            Some(text) => {
                Cloud::restore(&text, SEED).with_context(|| format!("reading {}", path.display()))?
            }
            None => Cloud::new(SEED),
        };
        let known = machines(&cloud);
        let (vpc, subnet) = match known.values().next() {
            Some((_, vpc, subnet)) => (vpc.clone(), subnet.clone()),
            None => make_vpc(&cloud, settings)?,
        };
        let mut by_node = BTreeMap::new();
        for (index, name) in (0u8..).zip(settings.node_names()) {
            let address = settings.node_address(index);
            let instance = match known.get(&address) {
                Some((instance, _, _)) => instance.clone(),
                None => make_instance(&cloud, of_vpc, &subnet, address)
                    .with_context(|| format!("making the instance of {name}"))?,
            };
            by_node.insert(name, instance);
        }
        Ok(Self { cloud, vpc, by_node })
    }

    fn place(&self) -> anyhow::Result<Place> {
        let node = |(name, instance): (&String, &InstanceId)| {
            let namespace = Namespace::named(&namespace_name(name))?;
            anyhow::Ok((instance.clone(), namespace))
        };
        Ok(Place {
            vpc: self.vpc.clone(),
            router: Namespace::current()?,
            nodes: self.by_node.iter().map(node).collect::<anyhow::Result<_>>()?,
            internet: Vec::new(),
        })
    }

    fn save(&self, state: &StateDir) -> anyhow::Result<()> {
        let path = state.vpc();
        let new = path.with_extension("new");
        fs::write(&new, self.cloud.save())
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Instances by their own address, with where they are.
fn machines(cloud: &Cloud) -> BTreeMap<Ipv4Addr, (InstanceId, VpcId, SubnetId)> {
    let interfaces = cloud.interfaces().into_iter();
    let primary = interfaces.filter_map(|interface| {
        let attached = interface
            .eni
            .attachment
            .filter(|attached| attached.device_index == 0)?;
        let place = (attached.instance, interface.vpc, interface.eni.subnet);
        Some((interface.eni.primary, place))
    });
    primary.collect()
}

fn make_vpc(cloud: &Cloud, settings: &Settings) -> anyhow::Result<(VpcId, SubnetId)> {
    let network = settings.underlay_network();
    let vpc = cloud.make_vpc(&[network])?;
    let subnet = cloud.make_subnet(&vpc, network, ZONE, Tags::new())?;
    Ok((vpc, subnet))
}

fn make_instance(
    cloud: &Cloud,
    vpc: &Vpc,
    subnet: &SubnetId,
    address: Ipv4Addr,
) -> anyhow::Result<InstanceId> {
    Ok(cloud.make_instance_at(&vpc.instance_type, subnet, &[], address)?)
}
