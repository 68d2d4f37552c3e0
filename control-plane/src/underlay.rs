//! The network between the nodes: a bridge on the host that stands for the data centre's LAN, and a network
//! namespace per node with its `eth0` on that bridge. The host is the LAN's router and stands outside the cluster.
//! In a VPC there is no bridge: [`crate::vpc`] has the devices, and the host is the VPC's router.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use netlink::nft::{BaseChain, Chain, Family, Layout, Nft, Rule, Table};
use netlink::{
    AbsentIsFine as _, Address, Kernel as _, LinkChange, Namespace, Netlink, NewLink, NewLinkKind, Route,
    RouteFilter, VethPeer, sysctl,
};
use nix::errno::Errno;

use crate::layout::StateDir;
use crate::settings::{BRIDGE, Settings};

/// Prefix of the nodes' network namespaces, as `ip netns` shows them, and of their links on the host.
const NAMESPACE_PREFIX: &str = "causeway-";
const LINK_PREFIX: &str = "cw-";
/// A node's device on the underlay.
const NODE_DEVICE: &str = "eth0";
/// `RTPROT_STATIC`: configured by the administrator, who here is this program.
const STATIC: u8 = 4;
/// The host's own nftables table: it hides the underlay from the world behind the host.
const TABLE: &str = "causeway-underlay";
/// Routing between the bridge and the world.
const IP_FORWARD: &str = "net/ipv4/ip_forward";

/// Name of a node's network namespace.
pub fn namespace_name(node: &str) -> String {
    format!("{NAMESPACE_PREFIX}{node}")
}

/// Refuses an underlay that this host already reaches otherwise.
pub fn check_free(settings: &Settings) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    if netlink.link_named(BRIDGE)?.is_some() {
        bail!("a device named {BRIDGE} is there already and not ours: ip link delete {BRIDGE}");
    }
    let routes = netlink.routes(&RouteFilter {
        table: Some(netlink::route::TABLE_MAIN),
        ..RouteFilter::default()
    })?;
    let taken = routes.iter().find(|route| {
        settings
            .underlay_cidr
            .iter()
            .any(|underlay| overlaps(route.destination, underlay))
    });
    match taken {
        Some(route) => bail!(
            "--underlay-cidr {}: this host has a route to {} already; choose another network",
            settings.underlay_cidr,
            route.destination
        ),
        None => Ok(()),
    }
}

/// Whether they share an address; a default route is none to a network.
fn overlaps(destination: IpNetwork, underlay: IpNetwork) -> bool {
    destination.prefix() > 0
        && (destination.contains(underlay.network()) || underlay.contains(destination.network()))
}

/// Makes the bridge and all nodes' namespaces.
pub fn create(settings: &Settings, state: &StateDir) -> anyhow::Result<()> {
    if settings.vpc.is_some() {
        for name in settings.node_names() {
            create_namespace(&name).with_context(|| format!("making the network of {name}"))?;
        }
        crate::vpc::create(settings, state)?;
    } else {
        create_lan(settings)?;
    }
    Nft::open()?.ensure(&masquerade(settings.underlay_cidr.primary()))?;
    forward(state)
}

fn create_lan(settings: &Settings) -> anyhow::Result<()> {
    let mut host = Netlink::open()?;
    let bridge = host.create_link(&NewLink {
        up: true,
        ..NewLink::new(BRIDGE, NewLinkKind::Bridge)
    });
    let bridge = bridge.map_err(|error| match error.errno() {
        Some(Errno::EOPNOTSUPP) => {
            anyhow::anyhow!("this kernel has no bridges: it must be built with CONFIG_BRIDGE")
        }
        _ => error.into(),
    })?;
    let own = Addresses {
        v4: settings.control_plane_address(),
        v6: settings.control_plane_address_v6(),
    };
    own.add(&mut host, bridge.index, settings)?;
    for (index, name) in (0u8..).zip(settings.node_names()) {
        let addresses = Addresses {
            v4: settings.node_address(index),
            v6: settings.node_address_v6(index),
        };
        create_node(&mut host, bridge.index, settings, &name, addresses)
            .with_context(|| format!("making the network of {name}"))?;
    }
    Ok(())
}

/// A node's namespace, with nothing but a loopback device that is up.
fn create_namespace(node: &str) -> anyhow::Result<Namespace> {
    let namespace = Namespace::create(&namespace_name(node))?;
    let mut inside = Netlink::open_in(&namespace)?;
    let loopback = inside.link_named("lo")?.context("lo is missing")?;
    inside.change_link(loopback.index, &LinkChange::up())?;
    Ok(namespace)
}

fn masquerade(underlay: IpNetwork) -> Layout {
    let mut layout = Layout::new(Table::new(Family::Ip, TABLE));
    layout.add_chain(
        Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
        [
            Rule::new("nodes among themselves")
                .source(underlay)
                .destination(underlay)
                .returns(),
            Rule::new("nodes to the world").source(underlay).masquerade(),
        ],
    );
    layout
}

fn create_node(
    host: &mut Netlink,
    bridge: u32,
    settings: &Settings,
    name: &str,
    addresses: Addresses,
) -> anyhow::Result<()> {
    let namespace = create_namespace(name)?;
    let peer = VethPeer {
        name: NODE_DEVICE.to_owned(),
        mac: None,
        mtu: None,
        namespace: Some(namespace.clone()),
    };
    let veth = NewLink {
        up: true,
        ..NewLink::new(format!("{LINK_PREFIX}{name}"), NewLinkKind::Veth(peer))
    };
    let port = host.create_link(&veth)?;
    host.change_link(port.index, &LinkChange::master(bridge))?;

    let mut inside = Netlink::open_in(&namespace)?;
    let link = inside
        .link_named(NODE_DEVICE)?
        .with_context(|| format!("{NODE_DEVICE} is missing"))?;
    inside.change_link(link.index, &LinkChange::up())?;
    addresses.add(&mut inside, link.index, settings)?;
    let gateways = [
        Some((
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            settings.control_plane_address().into(),
        )),
        settings
            .control_plane_address_v6()
            .map(|gateway| (IpAddr::V6(Ipv6Addr::UNSPECIFIED), gateway.into())),
    ];
    for (everywhere, gateway) in gateways.into_iter().flatten() {
        let everywhere = IpNetwork::new(everywhere, 0)?;
        inside.replace_route(&Route::via(everywhere, gateway, link.index, STATIC))?;
    }
    Ok(())
}

/// Addresses of a host on the underlay.
struct Addresses {
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

impl Addresses {
    fn add(&self, kernel: &mut Netlink, link: u32, settings: &Settings) -> anyhow::Result<()> {
        let all = [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)];
        for (address, network) in all.into_iter().flatten().zip(settings.underlay_cidr.iter()) {
            // Nobody else is on this LAN whose address could be a duplicate.
            kernel.add_address(&Address {
                no_dad: true,
                ..Address::global(link, IpNetwork::new(address, network.prefix())?)
            })?;
        }
        Ok(())
    }
}

/// Lets nodes reach the world through this host; the setting that was there before is kept for [`destroy`].
fn forward(state: &StateDir) -> anyhow::Result<()> {
    let before = sysctl::read(IP_FORWARD)?;
    if before != "1" {
        fs::write(state.ip_forward_before(), &before)?;
        sysctl::write(IP_FORWARD, "1")?;
    }
    Ok(())
}

/// Removes whatever [`create`] made; what is not there is no error.
pub fn destroy(state: &StateDir) -> anyhow::Result<()> {
    for name in Namespace::pinned()?
        .iter()
        .filter(|name| name.starts_with(NAMESPACE_PREFIX))
    {
        Namespace::delete(name).absent_is_fine()?;
    }
    let mut host = Netlink::open()?;
    // A namespace ends some time after its last pin: its host links, too.
    let ours = |name: &str| name == BRIDGE || name.starts_with(&format!("{LINK_PREFIX}node-"));
    for link in host.links()?.iter().filter(|link| ours(&link.name)) {
        host.delete_link(link.index).absent_is_fine()?;
    }
    Nft::open()?.remove(&Table::new(Family::Ip, TABLE))?;
    crate::vpc::destroy()?;
    match fs::read_to_string(state.ip_forward_before()) {
        Ok(before) => {
            sysctl::write(IP_FORWARD, before.trim())?;
            fs::remove_file(state.ip_forward_before())?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("reading the forwarding setting from before"),
    }
    Ok(())
}
