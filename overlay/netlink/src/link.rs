//! Network devices.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use serde::{Deserialize, Serialize};

use crate::Mac;
use crate::netns::Namespace;

/// A network device, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The kernel's number for it in its namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address; `None` where it has none or not six bytes.
    pub mac: Option<Mac>,
    /// Its MTU in bytes of layer-3 payload.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// It passes packets (`IFF_RUNNING`): it is up, what lies below is, and the kernel, which looks at that behind the
    /// change, has seen it.
    pub running: bool,
    /// It is the loopback device.
    pub loopback: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Its alias (`ip link set … alias`).
    pub alias: Option<String>,
    /// Index of the device below it, or of a veth's other end.
    pub parent: Option<u32>,
    /// The parent is in another namespace.
    pub parent_elsewhere: bool,
    /// What it is.
    pub kind: LinkKind,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// A hardware device, or the loopback: no `IFLA_INFO_KIND`.
    Physical,
    /// One end of a virtual cable.
    Veth,
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
    /// Anything else, by the kernel's name for it.
    Other(String),
}

/// The settings of a VXLAN device (RFC 7348). All but `learning` are fixed at creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// The network identifier; 0 with `collect_metadata`.
    pub vni: u32,
    /// Source address of the tunnel.
    pub local: Option<IpAddr>,
    /// Index of the device that tunnelled packets leave through.
    pub device: Option<u32>,
    /// UDP destination port.
    pub port: u16,
    /// Learn MAC addresses from what arrives.
    pub learning: bool,
    /// Fill the outer UDP checksum over IPv4.
    pub udp_csum: bool,
    /// Group-based policy extension.
    pub gbp: bool,
    /// The tunnel's other end is set per packet (by a route or a BPF program).
    pub collect_metadata: bool,
}

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLink {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address; `None` = the kernel picks one.
    pub mac: Option<Mac>,
    /// Its MTU; `None` = the kernel's default for the kind.
    pub mtu: Option<u32>,
    /// Set it up at once.
    pub up: bool,
    /// Its alias.
    pub alias: Option<String>,
    /// What it shall be.
    pub kind: NewLinkKind,
}

impl NewLink {
    /// A device that is down, with everything else left to the kernel.
    pub fn new(name: impl Into<String>, kind: NewLinkKind) -> Self {
        Self {
            name: name.into(),
            mac: None,
            mtu: None,
            up: false,
            alias: None,
            kind,
        }
    }
}

/// What a new device shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLinkKind {
    /// A virtual cable; the device itself is one end.
    Veth(VethPeer),
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
}

/// The other end of a new virtual cable. It is down at first: it cannot be set up by the request that makes it
/// (`veth_open` wants its peer, which `veth_newlink` sets last).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPeer {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address; `None` = the kernel picks one.
    pub mac: Option<Mac>,
    /// Its MTU; `None` = the kernel's default.
    pub mtu: Option<u32>,
    /// The namespace it is put into; `None` = that of the socket. Making it there is cheaper than moving it later
    /// (`dev_change_net_namespace` waits for RCU).
    pub namespace: Option<Namespace>,
}

/// Changes to a device; `None` leaves a property as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// New name.
    pub name: Option<String>,
    /// Alias; empty removes it.
    pub alias: Option<String>,
    /// Index of the bridge to join; 0 leaves it.
    pub master: Option<u32>,
    /// Namespace to move to.
    pub namespace: Option<Namespace>,
}

impl LinkChange {
    /// Sets a device up.
    #[must_use]
    pub fn up() -> Self {
        Self {
            up: Some(true),
            ..Self::default()
        }
    }

    /// Sets a device down.
    #[must_use]
    pub fn down() -> Self {
        Self {
            up: Some(false),
            ..Self::default()
        }
    }

    /// Makes a device the port of a bridge.
    #[must_use]
    pub fn master(bridge: u32) -> Self {
        Self {
            master: Some(bridge),
            ..Self::default()
        }
    }
}

pub(crate) fn decode(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
        alias: None,
        parent: None,
        parent_elsewhere: false,
        kind: LinkKind::Physical,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.parent = Some(index),
            LinkAttribute::LinkNetNsId(_) => link.parent_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.kind = decode_kind(infos),
            _ => {}
        }
    }
    link
}

fn decode_kind(infos: Vec<LinkInfo>) -> LinkKind {
    let mut kind = LinkKind::Physical;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(other) => kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(settings)) => kind = LinkKind::Vxlan(decode_vxlan(settings)),
            _ => {}
        }
    }
    kind
}

fn decode_vxlan(settings: Vec<InfoVxlan>) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        local: None,
        device: None,
        port: 0,
        learning: false,
        udp_csum: false,
        gbp: false,
        collect_metadata: false,
    };
    for setting in settings {
        match setting {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Local(address) => vxlan.local = Some(address.into()),
            InfoVxlan::Local6(address) => vxlan.local = Some(address.into()),
            InfoVxlan::Link(index) => vxlan.device = Some(index),
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Learning(on) => vxlan.learning = on,
            InfoVxlan::UDPCsum(on) => vxlan.udp_csum = on,
            InfoVxlan::Gbp(on) => vxlan.gbp = on,
            InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = on,
            _ => {}
        }
    }
    vxlan
}

/// The request that makes a device. The alias is not part of it: `rtnl_create_link` ignores `IFLA_IFALIAS`.
pub(crate) fn encode_new(link: &NewLink) -> LinkMessage {
    let mut message = end(&link.name, link.mac, link.mtu, link.up);
    let info = match &link.kind {
        NewLinkKind::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
        NewLinkKind::Vxlan(vxlan) => {
            vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(encode_vxlan(vxlan))),
            ]
        }
        NewLinkKind::Veth(peer) => {
            let mut other = end(&peer.name, peer.mac, peer.mtu, false);
            if let Some(namespace) = &peer.namespace {
                other
                    .attributes
                    .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
            }
            vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]
        }
    };
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

/// What a device and a veth's other end have in common.
fn end(name: &str, mac: Option<Mac>, mtu: Option<u32>, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
}

fn encode_vxlan(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut settings = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::UDPCsum(vxlan.udp_csum),
        InfoVxlan::Port(vxlan.port),
    ];
    settings.extend(vxlan.local.map(|address| match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }));
    settings.extend(vxlan.device.map(InfoVxlan::Link));
    if vxlan.gbp {
        settings.push(InfoVxlan::Gbp(true));
    }
    if vxlan.collect_metadata {
        settings.push(InfoVxlan::CollectMetadata(true));
    }
    settings
}

pub(crate) fn encode_change(index: u32, change: &LinkChange) -> LinkMessage {
    let LinkChange {
        up,
        mtu,
        mac,
        name,
        alias,
        master,
        namespace,
    } = change;
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(up) = up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if *up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    let attributes = &mut message.attributes;
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(name.clone().map(LinkAttribute::IfName));
    attributes.extend(alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(master.map(LinkAttribute::Controller));
    attributes.extend(
        namespace
            .as_ref()
            .map(|namespace| LinkAttribute::NetNsFd(namespace.as_raw_fd())),
    );
    message
}
