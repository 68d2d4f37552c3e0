//! The pod network under faults: agents in their namespaces, an etcd on the LAN, pods wired by the CNI plugin, and probes
//! between them that count what is lost. Each fault has its number in the project's list of faults. Needs root and etcd.

mod bundle;
mod damage;
mod dns_address;
mod doctor;
mod explain;
mod flannel;
mod leases;
mod paths;
mod processes;
mod services;
mod trace;
mod uninstall;
