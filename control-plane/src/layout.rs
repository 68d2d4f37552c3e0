//! Where everything of a cluster lies on disk: one directory, given by `--state-dir`.

use std::path::{Path, PathBuf};

use model::bundled::{ADMIN_KUBECONFIG, AGENT_CONFIG, NODES};

/// The directory that holds a cluster's state, and the names of what is in it.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Names the directory; creates nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The settings that the cluster was brought up with.
    pub fn settings(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// What `net.ipv4.ip_forward` was before the cluster, where that was not 1.
    pub fn ip_forward_before(&self) -> PathBuf {
        self.root.join("ip_forward.before")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// A certificate and its key, by the name both files share.
    pub fn key_pair(&self, name: &str) -> KeyPairFiles {
        KeyPairFiles {
            cert: self.pki().join(format!("{name}.crt")),
            key: self.pki().join(format!("{name}.key")),
        }
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join(ADMIN_KUBECONFIG)
    }

    /// The embedded store's data.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// What the nodes' VPC has, where they are in one.
    pub fn vpc(&self) -> PathBuf {
        self.root.join("vpc.json")
    }

    /// Log files, one a process.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Which supervised process has which pid.
    pub fn processes(&self) -> PathBuf {
        self.root.join("processes.json")
    }

    /// Mount point for namespace files.
    pub fn namespaces(&self) -> PathBuf {
        self.root.join("ns")
    }

    /// Everything of one node.
    pub fn node(&self, name: &str) -> NodeDir {
        NodeDir {
            root: self.root.join(NODES).join(name),
        }
    }
}

/// The two files of a certificate.
#[derive(Clone, Debug)]
pub struct KeyPairFiles {
    /// Certificate, PEM.
    pub cert: PathBuf,
    /// Private key, PKCS#8 PEM, mode 0600.
    pub key: PathBuf,
}

/// One node's part of the state directory.
#[derive(Clone, Debug)]
pub struct NodeDir {
    root: PathBuf,
}

impl NodeDir {
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Kubelet: pods, containers, images, logs.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// Kubelet's configuration.
    pub fn kubelet_config(&self) -> PathBuf {
        self.root.join("kubelet.yaml")
    }

    /// The agent's state: the IPAM log, the lease.
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// The agent's configuration.
    pub fn agent_config(&self) -> PathBuf {
        self.root.join(AGENT_CONFIG)
    }

    /// The DNS process's state: the last good snapshot.
    pub fn dns(&self) -> PathBuf {
        self.root.join("dns")
    }

    /// The DNS process's Corefile.
    pub fn corefile(&self) -> PathBuf {
        self.root.join("Corefile")
    }

    /// Resolvers that the node forwards to.
    pub fn resolv_conf(&self) -> PathBuf {
        self.root.join("resolv.conf")
    }

    /// CNI configuration; the agent writes it, the kubelet waits for it.
    pub fn cni_conf(&self) -> PathBuf {
        self.root.join("cni/net.d")
    }

    /// Where what is installed into the cluster puts CNI plugins.
    pub fn cni_bin(&self) -> PathBuf {
        self.root.join("cni/bin")
    }

    /// A kubeconfig, by whose it is.
    pub fn kubeconfig(&self, whose: &str) -> PathBuf {
        self.root.join(format!("{whose}.kubeconfig"))
    }
}
