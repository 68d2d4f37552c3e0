//! The words that every room of Causeway speaks, and nothing that does I/O.
//!
//! Tour:
//! - [`text`]: [`Text`], of which equal ones share memory.
//! - [`names`]: [`NodeName`], [`ObjectName`] and the other newtypes that stand at borders.
//! - [`service`], [`endpoint`], [`node`], [`pod`]: slim Kubernetes objects, only the fields a data plane reads.
//! - [`by_family`]: [`ByFamily`], one of each version of IP.
//! - [`lease`]: a node's subnets in the pod network.
//! - [`wiring`]: the plan by which the CNI plugin wires one pod.
//! - [`shared_map`]: a map whose copies share structure and that tells what differs between two copies.
//! - [`few`]: lists that mostly have one member, or none.
//! - [`slices`]: the EndpointSlices of one Service.
//! - [`snapshot`]: everything that is known of the cluster at one moment; [`Change`] edits it,
//!   [`Snapshot::changed_since`] compares two.
//! - [`with_causes`]: an error on one line.
//! - [`removal`]: what an uninstallation did.
//! - [`bundled`]: where the cluster of `causeway up` is found.
//! - [`feed`]: how the agent hands its snapshot to the DNS process.

pub mod bundled;
pub mod by_family;
mod causes;
pub mod endpoint;
pub mod feed;
pub mod few;
pub mod lease;
pub mod names;
pub mod node;
pub mod pod;
mod pools;
pub mod removal;
pub mod service;
pub mod shared_map;
pub mod slices;
pub mod snapshot;
pub mod text;
pub mod wiring;

pub use by_family::ByFamily;
pub use causes::with_causes;
pub use endpoint::{
    Conditions, Endpoint, EndpointPort, EndpointRef, EndpointSlice, Endpoints, Extras, UnixTime,
};
pub use few::{Few, Seldom};
pub use names::{MacAddr, Mtu, NodeName, ObjectName, Vni};
pub use node::Node;
pub use pod::Pod;
pub use pools::Pools;
pub use removal::Removal;
pub use service::{IpFamily, Protocol, Service, ServiceKind, ServicePort, SessionAffinity, TrafficPolicy};
pub use shared_map::SharedMap;
pub use slices::Slices;
pub use snapshot::{Change, Changed, Kind, Namespace, ServiceCidr, Snapshot};
pub use text::Text;
