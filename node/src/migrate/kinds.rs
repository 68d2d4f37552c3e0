//! Whose configurations are known.

use std::fmt;

use clap::ValueEnum;

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// kube-proxy's KubeProxyConfiguration.
    KubeProxy,
    /// flannel's net-conf.json.
    Flannel,
    /// CNI plugins: flannel's cni-conf.json.
    Cni,
    /// CoreDNS's Corefile.
    Coredns,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KubeProxy => "kube-proxy",
            Self::Flannel => "flannel",
            Self::Cni => "CNI plugins",
            Self::Coredns => "CoreDNS",
        })
    }
}
