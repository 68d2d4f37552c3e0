//! Where the cluster of `causeway up` is found on its machine.

/// The file that names the state directory of this machine's cluster, as long as there is one. There is one at a time.
pub const OWNER: &str = "/run/causeway.owner";

/// The state directory where nobody named another one.
pub const STATE_DIR: &str = "/var/lib/causeway";

/// Below the state directory: a directory of each node, named after it.
pub const NODES: &str = "nodes";

/// In a node's directory: its agent's configuration.
pub const AGENT_CONFIG: &str = "agent.yaml";

/// In the state directory: the administrator's kubeconfig.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
