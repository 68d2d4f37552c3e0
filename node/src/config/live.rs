//! What of a configuration may change while the agent runs.

use serde_json::Value;

use super::{Config, Logging, Proxy};

impl Config {
    /// This configuration, with what of `newer` needs no restart. As it is where that would make no sense.
    #[must_use]
    pub fn with_live_parts_of(&self, newer: &Self) -> Self {
        let Self {
            node_name: _,
            kubernetes: _,
            network: _,
            vpc_eni: _,
            proxy,
            dns: _,
            cni: _,
            state_dir: _,
            health_bind,
            metrics_bind,
            logging,
            telemetry: _,
            node: _,
        } = newer;
        let mixed = Self {
            proxy: self.proxy.with_live_parts_of(proxy),
            health_bind: *health_bind,
            metrics_bind: *metrics_bind,
            logging: Logging {
                level: logging.level,
                ..self.logging
            },
            ..self.clone()
        };
        if mixed.problems().is_empty() {
            mixed
        } else {
            self.clone()
        }
    }

    /// Keys whose values differ, with dots between sections.
    #[must_use]
    pub fn differing_keys(&self, other: &Self) -> Vec<String> {
        let [ours, theirs] = [self, other]
            .map(|config| serde_json::to_value(config).expect("invariant: every key is a string"));
        let mut keys = Vec::new();
        differences("", &ours, &theirs, &mut keys);
        keys
    }
}

fn differences(prefix: &str, ours: &Value, theirs: &Value, keys: &mut Vec<String>) {
    match (ours, theirs) {
        _ if ours == theirs => {}
        (Value::Object(ours), Value::Object(theirs)) => {
            let absent = &Value::Null;
            let added = theirs.keys().filter(|name| !ours.contains_key(*name));
            for name in ours.keys().chain(added) {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                let [ours, theirs] = [ours, theirs].map(|section| section.get(name).unwrap_or(absent));
                differences(&key, ours, theirs, keys);
            }
        }
        _ => keys.push(prefix.to_owned()),
    }
}

impl Proxy {
    /// Plans are made anew for what is taken; what a datapath is opened with stays.
    fn with_live_parts_of(&self, newer: &Self) -> Self {
        let Self {
            datapath: _,
            iptables_variant: _,
            cgroup: _,
            pin_dir: _,
            detect_local_mode,
            pod_networks,
            bridge_interface,
            interface_name_prefix,
            masquerade_all,
            external_ips,
            node_port_addresses,
            min_sync_period,
            conntrack,
        } = newer;
        Self {
            detect_local_mode: *detect_local_mode,
            pod_networks: pod_networks.clone(),
            bridge_interface: bridge_interface.clone(),
            interface_name_prefix: interface_name_prefix.clone(),
            masquerade_all: *masquerade_all,
            external_ips: *external_ips,
            node_port_addresses: node_port_addresses.clone(),
            min_sync_period: *min_sync_period,
            conntrack: conntrack.clone(),
            ..self.clone()
        }
    }
}
