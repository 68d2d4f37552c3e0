//! What the programs count: one per-CPU counter for each verdict. A call of `connect()`, and of `sendto()` with an
//! address, counts once.

/// Index of a counter in `STATS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Counter(pub u32);

impl Counter {
    /// A connection, or the first datagram of a flow, was sent to an endpoint that was picked for it.
    pub const TRANSLATED: Self = Self(0);
    /// The destination is no Service's.
    pub const NOT_A_SERVICE: Self = Self(1);
    /// Refused: the Service has no endpoint.
    pub const REFUSED: Self = Self(2);
    /// Left to the packet rules: policy Local, and no endpoint on this node.
    pub const NO_LOCAL_ENDPOINT: Self = Self(3);
    /// Left to the packet rules: another node decides.
    pub const OTHER_NODE_DECIDES: Self = Self(4);
    /// Left to the packet rules: a slot or an endpoint was missing (an update raced, or the maps are damaged).
    pub const SLOT_MISSING: Self = Self(5);
    /// The protocol is neither TCP nor UDP.
    pub const OTHER_PROTOCOL: Self = Self(6);
    /// A connection, or the first datagram of a flow, was sent to the endpoint that its client stays with.
    pub const AFFINITY_KEPT: Self = Self(7);
    /// A datagram was sent to the endpoint of the socket's earlier ones.
    pub const FLOW_KEPT: Self = Self(8);

    /// How many there are.
    pub const COUNT: u32 = 9;

    /// Counters and their names in metrics, by index.
    pub const NAMES: [&'static str; Self::COUNT as usize] = [
        "translated",
        "not_a_service",
        "refused",
        "no_local_endpoint",
        "other_node_decides",
        "slot_missing",
        "other_protocol",
        "affinity_kept",
        "flow_kept",
    ];
}
