//! Which flows are told.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use anyhow::{Context, bail, ensure};
use model::ObjectName;
use trace::flows::Passed;
use trace::flows::record::{Record, Verdict};
use trace::hop::Protocol;

use super::services::Services;
use crate::cli::{FlowsArgs, FlowsVerdict};
use crate::ends::{NAMESPACE, Name, Subject};
use crate::trace_cli::pods::Pods;

/// Which flows are told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whose {
    from: End,
    to: End,
    /// Of a Service: either end is one of these.
    service: Option<End>,
    verdict: Option<Verdict>,
}

/// Who is meant as one end; none: anybody.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    anybody: bool,
    at: Vec<(IpAddr, Option<u16>)>,
    protocol: Option<Protocol>,
}

impl Whose {
    pub(super) fn new(args: &FlowsArgs, pods: &Pods, services: &Services) -> anyhow::Result<Self> {
        let service = args.service.as_deref().map(|text| {
            let text = text.strip_prefix("svc/").unwrap_or(text);
            let (namespace, name) = text.split_once('/').unwrap_or((NAMESPACE, text));
            anyhow::Ok(End {
                anybody: false,
                at: services.ends(&ObjectName::new(namespace, name))?,
                protocol: None,
            })
        });
        Ok(Self {
            from: End::new(args.from.as_deref(), pods, services)?,
            to: End::new(args.to.as_deref(), pods, services)?,
            service: service.transpose()?,
            verdict: args.verdict.map(|verdict| match verdict {
                FlowsVerdict::Forwarded => Verdict::Forwarded,
                FlowsVerdict::Dropped => Verdict::Dropped,
            }),
        })
    }

    /// Whether packets of this direction are meant.
    pub(super) fn has(&self, passed: &Passed) -> bool {
        let flow = &passed.flow;
        // Who began may call the other end otherwise.
        let service = passed.service.into_iter();
        let (sources, destinations): (Vec<_>, Vec<_>) = if passed.is_reply {
            (
                [flow.source].into_iter().chain(service).collect(),
                vec![flow.destination],
            )
        } else {
            (
                vec![flow.source],
                [flow.destination].into_iter().chain(service).collect(),
            )
        };
        let is_of = |end: &End, at: &[SocketAddr]| at.iter().any(|at| end.is(*at, flow.protocol));
        is_of(&self.from, &sources)
            && is_of(&self.to, &destinations)
            && self
                .service
                .as_ref()
                .is_none_or(|service| is_of(service, if passed.is_reply { &sources } else { &destinations }))
    }

    pub(super) fn has_verdict(&self, record: &Record) -> bool {
        self.verdict.is_none_or(|verdict| verdict == record.verdict)
    }
}

impl End {
    fn new(text: Option<&str>, pods: &Pods, services: &Services) -> anyhow::Result<Self> {
        let Some(text) = text else {
            return Ok(Self {
                anybody: true,
                ..Self::default()
            });
        };
        let name = Name::parse(text)?;
        let port = name.number().map(NonZeroU16::get);
        ensure!(
            port.is_some() == name.port.is_some(),
            "{text}: say the port by its number; -o json has the names of Services"
        );
        let with_port =
            |addresses: Vec<IpAddr>| addresses.into_iter().map(|address| (address, port)).collect();
        let at = match &name.subject {
            Subject::Any => {
                return Ok(Self {
                    anybody: true,
                    protocol: name.protocol,
                    ..Self::default()
                });
            }
            Subject::Address(address) => with_port(vec![*address]),
            Subject::Pod(pod) => with_port(pods.need(pod)?),
            Subject::Service(service) => services.ends(service)?,
            Subject::Node(node) => {
                bail!(
                    "node/{node}: nodes are not looked up. Name its address (kubectl get node {node} -o wide)"
                )
            }
            Subject::Dns(host) => {
                let found = (host.as_str(), 0).to_socket_addrs();
                let found = found.with_context(|| format!("find the address of host {host}"))?;
                with_port(found.map(|address| address.ip()).collect())
            }
        };
        Ok(Self {
            anybody: false,
            at,
            protocol: name.protocol,
        })
    }

    fn is(&self, at: SocketAddr, protocol: Protocol) -> bool {
        let is_one = |(address, port): &(IpAddr, Option<u16>)| {
            *address == at.ip() && port.is_none_or(|port| port == at.port())
        };
        self.protocol.is_none_or(|own| own == protocol) && (self.anybody || self.at.iter().any(is_one))
    }
}
