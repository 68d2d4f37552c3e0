//! What of objects is never read, and not kept.

use model::{Change, Endpoint, EndpointRef, Extras};

use crate::kubernetes::Objects;

/// Takes something off an object.
pub type Trim = fn(&mut Change);

/// What takes off what is never read of these objects: at 100,000 endpoints that is most of the memory.
#[must_use]
pub fn trim_of(objects: &Objects) -> Trim {
    if objects.pod_names() {
        slim
    } else {
        slim_without_pod_names
    }
}

fn slim_without_pod_names(change: &mut Change) {
    take_off(change, |_| None);
}

pub(super) fn slim(change: &mut Change) {
    take_off(change, |endpoint| endpoint.pod.map(Box::from));
}

fn take_off(change: &mut Change, pod: fn(EndpointRef<'_>) -> Option<Box<str>>) {
    match change {
        Change::EndpointSlice(slice) => {
            let ready = slice.endpoints.iter();
            let ready = ready.filter(|endpoint| endpoint.conditions().ready);
            let mut kept: Vec<_> = ready
                .map(|endpoint| only_names(endpoint, pod(endpoint)))
                .collect();
            // In this order they are searched; a table keeps no other one of its own then.
            kept.sort_by_key(|endpoint| endpoint.address);
            slice.endpoints = kept.into();
        }
        Change::Pod(pod) => pod.node = None,
        _ => {}
    }
}

fn only_names(endpoint: EndpointRef<'_>, pod: Option<Box<str>>) -> Endpoint {
    let extras = Extras {
        hostname: endpoint.hostname().map(Box::from),
        ..Extras::default()
    };
    Endpoint {
        conditions: endpoint.conditions(),
        pod,
        extras: extras.some(),
        ..Endpoint::new(endpoint.address)
    }
}
