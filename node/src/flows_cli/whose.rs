//! Which flows are told.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use trace::flows::Passed;
use trace::flows::record::{Record, Verdict};
use trace::hop::Protocol;

use crate::cli::{FlowsArgs, FlowsVerdict};
use crate::ends::meant::Resolver;
use crate::ends::{Name, Subject};

/// Which flows are told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whose {
    from: End,
    to: End,
    /// Of a Service: either end is one of these.
    service: Option<End>,
    verdict: Option<Verdict>,
    /// Either end, or the Service, is of this Kubernetes namespace.
    namespace: Option<String>,
}

/// Who is meant as one end; none: anybody.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    anybody: bool,
    at: Vec<(IpAddr, Option<u16>)>,
    protocol: Option<Protocol>,
}

impl Whose {
    pub(super) fn new(args: &FlowsArgs, resolver: &Resolver) -> anyhow::Result<Self> {
        if let Some(namespace) = args.of_namespace() {
            // It may have Services that are talked to from here, and pods that are elsewhere.
            resolver.pods.need_agent(&format!("namespace {namespace}"))?;
        }
        let service = args.service()?.map(|name| End::of(&name, resolver)).transpose()?;
        let end = |name: Option<Name>| match name {
            Some(name) => End::of(&name, resolver),
            None => Ok(End {
                anybody: true,
                ..End::default()
            }),
        };
        Ok(Self {
            from: end(args.from()?)?,
            to: end(args.to()?)?,
            service,
            verdict: args.verdict.map(|verdict| match verdict {
                FlowsVerdict::Forwarded => Verdict::Forwarded,
                FlowsVerdict::Dropped => Verdict::Dropped,
            }),
            namespace: args.of_namespace().map(str::to_owned),
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

    /// Whether a record is told of what is meant.
    pub(super) fn has_record(&self, record: &Record) -> bool {
        let ends = [&record.source.namespace, &record.destination.namespace];
        let of_service = record
            .destination_service
            .as_ref()
            .map(|service| &service.namespace);
        let mut namespaces = ends.into_iter().flatten().chain(of_service);
        self.verdict.is_none_or(|verdict| verdict == record.verdict)
            && self
                .namespace
                .as_ref()
                .is_none_or(|own| namespaces.any(|namespace| namespace == own))
    }
}

impl End {
    fn of(name: &Name, resolver: &Resolver) -> anyhow::Result<Self> {
        let meant = resolver.meant(name)?;
        if let Some(lacks) = meant.lacks_port() {
            bail!(lacks);
        }
        Ok(Self {
            anybody: name.subject == Subject::Any,
            at: meant.targets(),
            protocol: meant.protocol,
        })
    }

    fn is(&self, at: SocketAddr, protocol: Protocol) -> bool {
        let is_one = |(address, port): &(IpAddr, Option<u16>)| {
            *address == at.ip() && port.is_none_or(|port| port == at.port())
        };
        self.protocol.is_none_or(|own| own == protocol) && (self.anybody || self.at.iter().any(is_one))
    }
}
