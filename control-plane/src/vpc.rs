//! The nodes' VPC, which is a fake one: EC2's API, a metadata service on each node, and this machine as its router.
//!
//! ```text
//! node ─ agent ─► 172.30.0.1:8773 (EC2) ──────────┐
//!          └────► 169.254.169.254 (on its `lo`) ──┴─► Cloud ─► vpc.json
//!                                                       └─► Fabric: eth0, eth1… of each node, routes and checks here
//! ```
//! `up` makes the nodes' first devices before anything starts; a process of the cluster serves the rest, and is where
//! interfaces come and go. What the VPC has is written down before a change is answered: who follows that
//! process finds it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use fake_vpc::fabric::Place;
use fake_vpc::request::Machine;
use fake_vpc::{Cloud, Fabric, Server};
use ipnetwork::IpNetwork;
use model::with_causes;
use netlink::{Address, Kernel as _, Namespace, Netlink, Scope};
use tokio_util::sync::CancellationToken;
use vpc_eni::ec2::{InstanceId, Tags, VpcId};

use crate::layout::StateDir;
use crate::settings::Settings;
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
        Ok(())
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
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = changes.next() => {
                // Nobody reads the ledger of calls here, and it would grow for ever.
                drop(instances.cloud.take_calls());
            }
        }
    }
    fabric.abandon();
    Ok(())
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
        let cloud = Cloud::open(&state.vpc(), SEED)?;
        let vpc = match cloud.vpcs().into_iter().next() {
            Some(vpc) => vpc,
            None => cloud.make_vpc(&[settings.underlay_network()])?,
        };
        let subnet = match cloud.subnets(&vpc).into_iter().next() {
            Some(subnet) => subnet.id,
            None => cloud.make_subnet(&vpc, settings.underlay_network(), ZONE, Tags::new())?,
        };
        let known = by_address(&cloud);
        let mut by_node = BTreeMap::new();
        for (index, name) in (0u8..).zip(settings.node_names()) {
            let address = settings.node_address(index);
            let instance = match known.get(&address) {
                Some(instance) => instance.clone(),
                None => cloud
                    .make_instance_at(&of_vpc.instance_type, &subnet, &[], address)
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
}

/// Instances by their own address.
fn by_address(cloud: &Cloud) -> BTreeMap<Ipv4Addr, InstanceId> {
    let of_machine = |machine: Machine| {
        let first = machine.interfaces.iter().find(|interface| {
            let attached = interface.eni.attachment.as_ref();
            attached.is_some_and(|attached| attached.device_index == 0)
        })?;
        Some((first.eni.primary, machine.id.clone()))
    };
    cloud.instances().into_iter().filter_map(of_machine).collect()
}
