//! Whose packets are meant by both ends.

use std::net::{IpAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use anyhow::{Context, bail, ensure};
use trace::Filter;
use trace::hop::Protocol;

use super::pods::Pods;
use crate::ends::{Ends, Subject};

/// Whose packets these are.
///
/// # Errors
/// When an end is not known, or cannot be followed.
pub fn filter(ends: &Ends, pods: &Pods) -> anyhow::Result<Filter> {
    let Ends { source, destination } = ends;
    let targets = addresses(&destination.subject, pods)?;
    let sources = addresses(source, pods)?;
    // Only ports of Services have names, and those have no addresses here.
    let port = destination.number().map(NonZeroU16::get);
    ensure!(
        port.is_none() || destination.protocol.is_none_or(Protocol::has_ports),
        "{destination}: only TCP and UDP have ports that can be followed"
    );
    ensure!(
        !sources.is_empty() || !targets.is_empty(),
        "one of the ends must be somebody: all packets of a machine are too many"
    );
    ensure!(
        port.is_none() || !targets.is_empty(),
        "a port needs an address before it"
    );
    Ok(Filter {
        sources,
        targets: targets.into_iter().map(|address| (address, port)).collect(),
        protocol: destination.protocol,
        ..Filter::default()
    })
}

/// None: anybody.
fn addresses(subject: &Subject, pods: &Pods) -> anyhow::Result<Vec<IpAddr>> {
    match subject {
        Subject::Any => Ok(Vec::new()),
        Subject::Address(address) => Ok(vec![*address]),
        Subject::Pod(name) => pods.addresses(name),
        Subject::Service(name) => bail!(
            "{subject}: Services are not looked up yet. Name a pod behind it (kubectl -n {} get endpointslices -l \
             kubernetes.io/service-name={}), whose address packets bear where the socket hook translates; else its \
             address (kubectl -n {0} get service {1})",
            name.namespace,
            name.name
        ),
        Subject::Node(name) => bail!(
            "{subject}: nodes are not looked up yet. Name its address (kubectl get node {name} -o wide)"
        ),
        Subject::Dns(name) => {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found = found.with_context(|| format!("find the address of host {name}"))?;
            let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> anyhow::Result<Filter> {
        filter(&Ends::parse(&[text.to_owned()])?, &Pods::default())
    }

    #[test]
    fn both_ends_are_a_filter() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let expected = Filter {
            sources: vec![address("10.0.0.1")],
            targets: vec![(address("fd00::1"), Some(53))],
            protocol: Some(Protocol::UDP),
            ..Filter::default()
        };
        assert_eq!(of("10.0.0.1 [fd00::1]:53/udp").expect("a filter"), expected);
        let from_anybody = Filter {
            sources: Vec::new(),
            ..expected
        };
        assert_eq!(of("any [fd00::1]:53/udp").expect("a filter"), from_anybody);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_what_can() {
        let rows = [
            ("any any", "all packets of a machine are too many"),
            ("10.0.0.1 any:80", "a port needs an address before it"),
            ("any 10.0.0.1:80/sctp", "only TCP and UDP have ports"),
            (
                "any svc/shop/web:http",
                "svc/shop/web: Services are not looked up yet",
            ),
            ("any svc/shop/web", "kubectl -n shop get service web"),
            ("node/n 10.0.0.1", "kubectl get node n -o wide"),
            ("any pod/a", "pod default/a is not known"),
            ("any 10.0.0.1:0", "is no port"),
        ];
        for (text, part) in rows {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
