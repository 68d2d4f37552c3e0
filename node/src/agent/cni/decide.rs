//! What each request of the plugin comes to.

use std::time::Duration;

use cni_plugin::protocol::{self, Failure, Request, Response};
use cni_plugin::spec::code;
use model::ObjectName;
use model::wiring::WiringPlan;
use overlay::pods::{Attachment, AttachmentKey, PodError, PodNetwork};

use crate::agent::history::History;

/// How long an ADD waits until the kernel leads the pod's packets. A pass over everything is tried each second; the plugin
/// gives up when it hears nothing for ten.
///
/// An ADD that fails is tried again by the runtime, and tells the user why. One that was answered all the same would be
/// a pod that runs, and of which nobody knows why what it sends is lost.
const LED: Duration = Duration::from_secs(5);

/// Answers a request; `history` learns of pods that left. Blocks on the disk.
pub(super) fn decide(pods: &PodNetwork, history: &History, request: Request) -> Response {
    match request {
        Request::Add {
            key: of,
            netns,
            pod,
            wishes,
            taken,
            patience_seconds: _,
        } => {
            let attachment = Attachment {
                key: key(&of),
                netns,
                pod,
                wishes,
                taken: taken.into_iter().collect(),
            };
            added(pods.add(&attachment))
        }
        Request::Del { key: of } => answer(pods.remove(&key(&of)), |left| {
            left.iter().for_each(|pod| history.left(pod));
            Response::Done
        }),
        Request::Check { key: of } => answer(pods.check(&key(&of)), |plan| Response::Wired { plan }),
        Request::Gc { valid } => {
            let valid: Vec<AttachmentKey> = valid.iter().map(key).collect();
            answer(pods.retain(&valid), |left| {
                left.iter().for_each(|pod| history.left(pod));
                Response::Done
            })
        }
        Request::Status => match pods.ready() {
            Ok(()) => Response::Done,
            Err(error) if has_stranded(pods) => failure(code::LIMITED, &error),
            Err(error) => failure(code::NOT_AVAILABLE, &error),
        },
        Request::Unknown => Response::Error(Failure {
            code: code::ENVIRONMENT,
            msg: "this agent is older than the plugin and does not know the request".to_owned(),
            details: String::new(),
        }),
    }
}

/// Whether pods have addresses that are not this node's any more.
fn has_stranded(pods: &PodNetwork) -> bool {
    pods.census().is_some_and(|census| !census.stranded.is_empty())
}

/// What a request asks for that waits where the node has no address now.
pub(super) fn waiting(request: &Request) -> Option<Attachment> {
    let Request::Add {
        key: of,
        netns,
        pod,
        wishes,
        taken,
        patience_seconds: Some(_),
    } = request
    else {
        return None;
    };
    Some(Attachment {
        key: key(of),
        netns: netns.clone(),
        pod: pod.clone(),
        wishes: wishes.clone(),
        taken: taken.iter().copied().collect(),
    })
}

/// The interface that a request wants connected.
pub(super) fn connects(request: &Request) -> Option<AttachmentKey> {
    match request {
        Request::Add { key: of, .. } => Some(key(of)),
        _ => None,
    }
}

/// The answer to an ADD, unless the packets of its interface are not led.
pub(super) async fn once_led(pods: &PodNetwork, of: &AttachmentKey, answered: Response) -> Response {
    match answered {
        Response::Wired { .. } => answer(pods.await_led(of, LED).await, |()| answered),
        other => other,
    }
}

/// Answers an ADD.
pub(super) fn added(result: Result<WiringPlan, PodError>) -> Response {
    answer(result, |plan| Response::Wired { plan })
}

fn answer<T>(result: Result<T, PodError>, success: impl FnOnce(T) -> Response) -> Response {
    match result {
        Ok(value) => success(value),
        Err(error) => {
            let code = match &error {
                PodError::NotReady { .. }
                | PodError::Exhausted { .. }
                | PodError::NoneNow { .. }
                | PodError::NoneComing { .. }
                | PodError::NotLed { .. }
                | PodError::Dismissed(_)
                | PodError::NoPool
                | PodError::PortInUse { .. } => code::TRY_AGAIN,
                PodError::NotOfThisNode { .. } | PodError::InUse(_) => code::CONFIG,
                PodError::Unknown(_) => code::UNKNOWN_CONTAINER,
                PodError::Log { .. } => code::IO,
                PodError::Kernel(_) => code::KERNEL,
            };
            tracing::warn!(code, error = model::with_causes(&error), "CNI request not served");
            failure(code, &error)
        }
    }
}

fn failure(code: u32, error: &PodError) -> Response {
    let cause = std::error::Error::source(error);
    Response::Error(Failure {
        code,
        msg: error.to_string(),
        details: cause.map(ToString::to_string).unwrap_or_default(),
    })
}

/// The overlay's word for the plugin's.
pub(super) fn key(key: &protocol::AttachmentKey) -> AttachmentKey {
    let protocol::AttachmentKey { container_id, ifname } = key;
    AttachmentKey {
        container_id: container_id.clone(),
        ifname: ifname.clone(),
    }
}

/// The name of a request for an interface.
pub(super) const ADD: &str = "add";

/// The request's name, for metrics.
pub(super) fn verb(request: &Request) -> &'static str {
    match request {
        Request::Add { .. } => ADD,
        Request::Del { .. } => "del",
        Request::Check { .. } => "check",
        Request::Gc { .. } => "gc",
        Request::Status => "status",
        Request::Unknown => "unknown",
    }
}

/// The container that a request is about.
pub(super) fn container(request: &Request) -> Option<&str> {
    match request {
        Request::Add { key, .. } | Request::Del { key } | Request::Check { key } => Some(&key.container_id),
        Request::Gc { .. } | Request::Status | Request::Unknown => None,
    }
}

/// The pod that a request names.
pub(super) fn pod(request: &Request) -> Option<&ObjectName> {
    match request {
        Request::Add { pod, .. } => pod.as_ref(),
        _ => None,
    }
}

/// The answer's kind, for metrics.
pub(super) fn result(response: &Response) -> &'static str {
    match response {
        Response::Wired { .. } | Response::Done => "ok",
        Response::Waiting { .. } => "waiting",
        Response::Error(_) => "error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnetwork::IpNetwork;
    use model::Mtu;
    use model::wiring::Wishes;
    use overlay::pods::{Block, Growth, Pool};

    use super::*;

    fn key_of(id: &str) -> protocol::AttachmentKey {
        protocol::AttachmentKey {
            container_id: id.to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    fn add(id: &str) -> Request {
        Request::Add {
            key: key_of(id),
            netns: "/proc/self/ns/net".to_owned(),
            pod: Some(ObjectName::new("default", id)),
            wishes: Wishes::default(),
            taken: Vec::new(),
            patience_seconds: None,
        }
    }

    #[track_caller]
    fn error_code(response: &Response) -> u32 {
        match response {
            Response::Error(failure) => failure.code,
            other => panic!("{other:?} is no error"),
        }
    }

    #[test]
    fn requests_are_served_once_there_is_a_subnet_and_refused_with_the_codes_of_cni_before() {
        let directory = std::env::temp_dir().join(format!("cwt-cni-{}", std::process::id()));
        let pods = PodNetwork::open(&directory).expect("temporary directory is writable");
        let history = History::default();
        let decide = |request| decide(&pods, &history, request);
        assert_eq!(error_code(&decide(add("a"))), 11);
        assert_eq!(error_code(&decide(Request::Status)), 50);
        assert_eq!(error_code(&decide(Request::Check { key: key_of("a") })), 3);
        assert_eq!(error_code(&decide(Request::Unknown)), 4);
        assert_eq!(decide(Request::Del { key: key_of("a") }), Response::Done);

        let subnet: IpNetwork = "10.244.1.0/30".parse().expect("valid");
        pods.serve([subnet].into_iter().collect(), Mtu(1450));
        assert_eq!(decide(Request::Status), Response::Done);
        let first = decide(add("a"));
        assert!(matches!(first, Response::Wired { .. }), "{first:?}");
        assert_eq!(decide(add("a")), first, "asked again, the same");
        assert_eq!(decide(Request::Check { key: key_of("a") }), first);
        let more: Vec<Response> = (0..4)
            .map(|index| decide(add(&format!("more-{index}"))))
            .collect();
        let full = more.last().expect("four");
        assert_eq!(error_code(full), 11, "the subnet is full");
        let last_left = || {
            let former = history.former().into_values();
            let names = former.map(|told| told.split(" until ").next().unwrap_or_default().to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(last_left(), Vec::<String>::new());
        assert_eq!(decide(Request::Del { key: key_of("a") }), Response::Done);
        assert_eq!(last_left(), ["pod default/a"]);
        assert!(matches!(decide(add("b")), Response::Wired { .. }));
        assert_eq!(decide(Request::Gc { valid: vec![] }), Response::Done);
        assert_eq!(last_left(), ["pod default/b"]);
        assert_eq!(error_code(&decide(Request::Check { key: key_of("a") })), 3);
        std::fs::remove_dir_all(directory).expect("it was made");
    }

    #[test]
    fn a_node_whose_pods_lost_their_addresses_says_more_than_that_it_takes_no_more_pods() {
        let directory = std::env::temp_dir().join(format!("cwt-cni-stranded-{}", std::process::id()));
        let pods = PodNetwork::open(&directory).expect("temporary directory is writable");
        let serve = |networks: &[&str]| {
            let blocks = networks.iter().map(|network| Block {
                network: network.parse().expect("valid"),
                device_index: 0,
            });
            pods.serve_pool(Pool {
                blocks: blocks.collect(),
                mtu: Mtu(9001),
                cool_down: Duration::ZERO,
                growth: Growth::Blocked {
                    reason: "allow it".to_owned(),
                },
            });
        };
        let status = || decide(&pods, &History::default(), Request::Status);
        serve(&["10.0.0.5/32"]);
        assert_eq!(status(), Response::Done);
        let wired = decide(&pods, &History::default(), add("a"));
        assert!(matches!(wired, Response::Wired { .. }), "{wired:?}");
        let full = "no free address: 1 in use, and no more to come: allow it";
        let failure = |code, msg: &str| {
            Response::Error(Failure {
                code,
                msg: msg.to_owned(),
                details: String::new(),
            })
        };
        assert_eq!(status(), failure(50, full));
        serve(&[]);
        assert_eq!(
            status(),
            failure(51, "this node has no addresses for pods yet: allow it")
        );
        std::fs::remove_dir_all(directory).expect("it was made");
    }
}
