//! The network between the nodes: a bridge on the host that stands for the data centre's LAN, and a network
//! namespace per node with its `eth0` on that bridge. The host is the LAN's router and stands outside the cluster.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, bail};
use ipnetwork::{IpNetwork, Ipv4Network};
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
    let taken = routes
        .iter()
        .find(|route| overlaps(route.destination, settings.underlay_cidr));
    match taken {
        Some(route) => bail!(
            "--underlay-cidr {}: this host has a route to {} already; choose another network",
            settings.underlay_cidr,
            route.destination
        ),
        None => Ok(()),
    }
}

fn overlaps(destination: IpNetwork, underlay: Ipv4Network) -> bool {
    match destination {
        IpNetwork::V4(network) => network.prefix() > 0 && network.overlaps(underlay),
        IpNetwork::V6(_) => false,
    }
}

/// Makes the bridge and all nodes' namespaces.
pub fn create(settings: &Settings, state: &StateDir) -> anyhow::Result<()> {
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
    let address = on_underlay(settings, settings.control_plane_address())?;
    host.add_address(&Address::global(bridge.index, address))?;
    for (index, name) in (0u8..).zip(settings.node_names()) {
        create_node(
            &mut host,
            bridge.index,
            settings,
            &name,
            settings.node_address(index),
        )
        .with_context(|| format!("making the network of {name}"))?;
    }
    Nft::open()?.ensure(&masquerade(settings.underlay_cidr))?;
    forward(state)
}

fn masquerade(underlay: Ipv4Network) -> Layout {
    let underlay = IpNetwork::V4(underlay);
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
    address: Ipv4Addr,
) -> anyhow::Result<()> {
    let namespace = Namespace::create(&namespace_name(name))?;
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
    for device in ["lo", NODE_DEVICE] {
        let link = inside
            .link_named(device)?
            .with_context(|| format!("{device} is missing"))?;
        inside.change_link(link.index, &LinkChange::up())?;
        if device == NODE_DEVICE {
            inside.add_address(&Address::global(link.index, on_underlay(settings, address)?))?;
            let everywhere = IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0)?;
            let gateway = IpAddr::V4(settings.control_plane_address());
            inside.replace_route(&Route::via(everywhere, gateway, link.index, STATIC))?;
        }
    }
    Ok(())
}

fn on_underlay(settings: &Settings, address: Ipv4Addr) -> anyhow::Result<IpNetwork> {
    Ok(IpNetwork::new(address.into(), settings.underlay_cidr.prefix())?)
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
