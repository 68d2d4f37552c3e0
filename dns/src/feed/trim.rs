//! What of objects is never read, and not kept.

use model::{Change, Extras};

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
    if let Change::EndpointSlice(slice) = change {
        slice
            .endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.pod = None);
    }
    slim(change);
}

pub(super) fn slim(change: &mut Change) {
    match change {
        Change::EndpointSlice(slice) => {
            slice.endpoints.retain(|endpoint| endpoint.conditions.ready);
            slice.endpoints.shrink_to_fit();
            // In this order they are searched; a table keeps no other one of its own then.
            slice.endpoints.sort_by_key(|endpoint| endpoint.address);
            for endpoint in &mut slice.endpoints {
                endpoint.node = None;
                endpoint.zone = None;
                let hostname = endpoint.extras.take().and_then(|extras| extras.hostname);
                let extras = Extras {
                    hostname,
                    ..Extras::default()
                };
                endpoint.extras = extras.some();
            }
        }
        Change::Pod(pod) => pod.node = None,
        _ => {}
    }
}
