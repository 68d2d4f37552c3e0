//! The files that the kubelet puts into each container's `/etc`: `hosts` and `resolv.conf`.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Limits of glibc, which Kubernetes checks (`pkg/kubelet/network/dns`): what is beyond is cut, and said in an event.
const MOST_NAMESERVERS: usize = 3;
const MOST_SEARCH_DOMAINS: usize = 32;
const LONGEST_SEARCH_LIST: usize = 2048;

/// A resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// `nameserver` lines.
    pub nameservers: Vec<String>,
    /// The `search` line.
    pub search: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

impl Resolv {
    /// Reads a `resolv.conf`.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.nameservers.extend(words.next()),
                Some("search") => conf.search = words.collect(),
                Some("options") => conf.options.extend(words),
                _ => {}
            }
        }
        conf
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        for nameserver in &self.nameservers {
            let _ = writeln!(text, "nameserver {nameserver}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }

    /// Cuts what glibc would ignore; says what was cut.
    fn limit(&mut self) -> Vec<String> {
        let mut cut = Vec::new();
        if self.nameservers.len() > MOST_NAMESERVERS {
            self.nameservers.truncate(MOST_NAMESERVERS);
            cut.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.nameservers.join(" ")
            ));
        }
        let before = self.search.len();
        self.search.truncate(MOST_SEARCH_DOMAINS);
        while self.search.join(" ").len() > LONGEST_SEARCH_LIST {
            self.search.pop();
        }
        if self.search.len() < before {
            cut.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.search.join(" ")
            ));
        }
        cut
    }
}

/// What the node contributes.
#[derive(Clone, Debug)]
pub struct ClusterDns<'a> {
    /// The cluster's name servers.
    pub nameservers: &'a [IpAddr],
    /// The cluster's domain.
    pub domain: &'a str,
    /// The node's own configuration.
    pub host: &'a Resolv,
}

/// The pod's resolver configuration by `dnsPolicy` and `dnsConfig`, and what had to be cut from it.
pub fn pod_resolv(spec: &PodSpec, namespace: &str, cluster: &ClusterDns) -> (Resolv, Vec<String>) {
    let on_host = spec.host_network.unwrap_or(false);
    let cluster_first = || {
        let domain = cluster.domain;
        let own = [
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
        let inherited = cluster
            .host
            .search
            .iter()
            .filter(|entry| entry.as_str() != ".")
            .cloned();
        Resolv {
            nameservers: cluster.nameservers.iter().map(IpAddr::to_string).collect(),
            search: own.into_iter().chain(inherited).collect(),
            options: vec!["ndots:5".to_owned()],
        }
    };
    let mut conf = match spec.dns_policy.as_deref() {
        Some("None") => Resolv::default(),
        Some("Default") => cluster.host.clone(),
        Some("ClusterFirstWithHostNet") => cluster_first(),
        // On the node's network ClusterFirst means the node's resolver.
        _ if on_host || cluster.nameservers.is_empty() => cluster.host.clone(),
        _ => cluster_first(),
    };
    if let Some(extra) = &spec.dns_config {
        for nameserver in extra.nameservers.iter().flatten() {
            push_new(&mut conf.nameservers, nameserver.clone());
        }
        for domain in extra.searches.iter().flatten() {
            push_new(&mut conf.search, domain.clone());
        }
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            conf.options
                .retain(|known| known.split(':').next() != Some(name.as_str()));
            conf.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    let cut = conf.limit();
    (conf, cut)
}

fn push_new(list: &mut Vec<String>, entry: String) {
    if !list.contains(&entry) {
        list.push(entry);
    }
}

/// The pod's host name: `spec.hostname` or its own name, at most 63 bytes (RFC 1123 §2.1).
pub fn hostname(pod: &Pod) -> String {
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.hostname.as_deref())
        .unwrap_or(own);
    let cut = name.get(..63).unwrap_or(name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's fully qualified name, where it has a subdomain.
pub fn fqdn(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod
        .spec
        .as_ref()?
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// The managed `/etc/hosts`.
pub fn hosts(pod: &Pod, addresses: &[IpAddr], domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let short = hostname(pod);
    for address in addresses {
        let _ = match fqdn(pod, domain) {
            Some(full) => writeln!(text, "{address}\t{full}\t{short}"),
            None => writeln!(text, "{address}\t{short}"),
        };
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_ref());
    if let Some(aliases) = aliases.filter(|aliases| !aliases.is_empty()) {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.clone().unwrap_or_default().join("\t");
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, expected: &str) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec: PodSpec = serde_json::from_value(spec).expect("a valid spec");
        let host = Resolv::parse("nameserver 192.0.2.1\nsearch lan\noptions timeout:1\n");
        let nameservers = ["10.96.0.10".parse().expect("an address")];
        let cluster = ClusterDns {
            nameservers: &nameservers,
            domain: "cluster.local",
            host: &host,
        };
        assert_eq!(pod_resolv(&spec, "ns", &cluster).0.render(), expected);
    }

    const CLUSTER: &str = "search ns.svc.cluster.local svc.cluster.local cluster.local lan\n\
                           nameserver 10.96.0.10\noptions ndots:5\n";
    const HOST: &str = "search lan\nnameserver 192.0.2.1\noptions timeout:1\n";

    #[test]
    fn each_dns_policy_has_its_file() {
        check(json!({}), CLUSTER);
        check(json!({"dnsPolicy": "ClusterFirst"}), CLUSTER);
        check(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), HOST);
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            CLUSTER,
        );
        check(json!({"dnsPolicy": "Default"}), HOST);
        check(json!({"dnsPolicy": "None"}), "");
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["a"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a\nnameserver 192.0.2.9\noptions ndots:2 edns0\n",
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            &CLUSTER.replace("ndots:5", "ndots:2"),
        );
    }

    #[test]
    fn what_glibc_ignores_is_cut_and_told() {
        let mut conf = Resolv {
            nameservers: (1..=4).map(|last| format!("192.0.2.{last}")).collect(),
            search: (0..40).map(|number| format!("d{number}")).collect(),
            options: Vec::new(),
        };
        let told = conf.limit();
        assert_eq!(
            (conf.nameservers.len(), conf.search.len(), told.len()),
            (3, 32, 2)
        );
    }

    #[test]
    fn hosts_name_the_pod_by_each_address() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "ns"},
            "spec": {"containers": [], "subdomain": "web",
                     "hostAliases": [{"ip": "192.0.2.5", "hostnames": ["a", "b"]}]}
        }))
        .expect("a valid pod");
        let addresses = ["10.244.1.2".parse().expect("an address")];
        let text = hosts(&pod, &addresses, "cluster.local");
        let tail = "10.244.1.2\tweb-0.web.ns.svc.cluster.local\tweb-0\n\n\
                    # Entries added by HostAliases.\n192.0.2.5\ta\tb\n";
        assert!(text.ends_with(tail), "{text}");
    }
}
