//! The verbs: each asks the agent, and does with the kernel what it answers.

use std::io;
use std::time::Duration;

use model::wiring::is_host_ifname;
use netlink::Namespace;

use crate::host_local;
use crate::protocol::{self, Failure, Request, Response};
use crate::spec::{self, Call, NetConf, Variables, Verb, code};
use crate::tombstone;
use crate::wire::{self, Sides};

/// How long the agent may take. Its slowest step is a write to disk.
const AGENT: Duration = Duration::from_secs(10);

/// How long a pod waits for an address, in seconds, where its node has none now. Runtimes end a plugin after a minute or
/// two, and the pod has to be wired in that time, too.
const PATIENCE_SECONDS: u32 = 45;

/// What the program prints, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output: the runtime reads it.
    pub output: String,
    /// For standard error: people read it.
    pub notice: String,
    /// Exit code 0.
    pub success: bool,
}

/// Carries out what environment and standard input ask for.
#[must_use]
pub fn answer(variables: &Variables, input: &[u8]) -> Answer {
    let version = spec::input_version(input);
    let result = match spec::parse_environment(variables) {
        Ok(None) => return about(),
        Ok(Some(call)) => carry_out(&call, &version, input),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(output) => Answer {
            output,
            notice: String::new(),
            success: true,
        },
        Err(failure) => {
            let output = spec::error_result(&version, &failure).to_string();
            Answer {
                output,
                notice: failure.msg,
                success: false,
            }
        }
    }
}

fn about() -> Answer {
    let version = env!("CARGO_PKG_VERSION");
    let notice = format!(
        "causeway-cni {version}\nCNI protocol versions supported: {}",
        spec::VERSIONS.join(", ")
    );
    Answer {
        output: String::new(),
        notice,
        success: true,
    }
}

fn carry_out(call: &Call, version: &str, input: &[u8]) -> Result<String, Failure> {
    if call.verb == Verb::Version {
        return Ok(spec::version_result(version).to_string());
    }
    let conf = spec::parse_config(call.verb, input)?;
    match call.verb {
        Verb::Add => add(call, &conf),
        Verb::Del => del(call, &conf).map(|()| String::new()),
        Verb::Check => check(call, &conf).map(|()| String::new()),
        Verb::Gc => gc(&conf).map(|()| String::new()),
        Verb::Status => status(&conf).map(|()| String::new()),
        Verb::Version => Ok(spec::version_result(version).to_string()),
    }
}

/// ADD: look, ask, wire, tell. A failure after the agent gave an address takes it back.
fn add(call: &Call, conf: &NetConf) -> Result<String, Failure> {
    let namespace = pod_namespace(call)?;
    let mut sides = Sides::open(&namespace).map_err(kernel)?;
    let present = sides.pod_link(&call.key.ifname).map_err(kernel)?;
    // CNI 1.1 §2: "If an interface of the requested name already exists in the container, the CNI plugin MUST return with
    // an error." It may stay what it is, with its address.
    let had = match present {
        Some(_) => earlier(call, conf, &mut sides)?,
        None => Earlier::Unknown,
    };
    if had == Earlier::Complete {
        return Err(exists(call));
    }
    let request = Request::Add {
        key: call.key.clone(),
        netns: call.netns.clone(),
        pod: call.pod.clone(),
        wishes: conf.wishes.clone(),
        taken: host_local::given(&conf.host_local).map_err(|error| {
            let what = format!(
                "read the addresses of other pods in {}",
                conf.host_local.display()
            );
            failed(code::IO, &what, &error)
        })?,
        patience_seconds: Some(PATIENCE_SECONDS),
    };
    let Response::Wired { plan } = ask(conf, &request)? else {
        return Err(unexpected());
    };
    // A device with the plan's MAC address is what an interrupted ADD of this very interface left; any other is not ours.
    if present.is_some_and(|link| link.mac != Some(plan.pod_mac.0)) {
        // Somebody may have changed the MAC address of an interface that is in use, with its address.
        if had == Earlier::Unknown {
            release(call, conf);
        }
        return Err(exists(call));
    }
    if let Err(error) = sides.apply(&plan) {
        if let Err(undone) = wire::remove_pod_link(&namespace, &plan.pod_ifname) {
            eprintln!("undo a failed ADD: {undone}");
        }
        release(call, conf);
        return Err(kernel(error));
    }
    Ok(spec::result(&conf.version, &plan, &call.netns).to_string())
}

/// What an earlier ADD of this very interface came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Earlier {
    /// There was none.
    Unknown,
    /// It has an address, and not everything that belongs to it.
    Interrupted,
    /// It came to its end.
    Complete,
}

fn earlier(call: &Call, conf: &NetConf, sides: &mut Sides) -> Result<Earlier, Failure> {
    let key = call.key.clone();
    match ask(conf, &Request::Check { key }) {
        Ok(Response::Wired { plan }) => {
            let differences = sides.differences(&plan).map_err(kernel)?;
            Ok(if differences.is_empty() {
                Earlier::Complete
            } else {
                Earlier::Interrupted
            })
        }
        Ok(_) => Err(unexpected()),
        Err(failure) if failure.code == code::UNKNOWN_CONTAINER => Ok(Earlier::Unknown),
        Err(failure) => Err(failure),
    }
}

fn exists(call: &Call) -> Failure {
    Failure {
        code: code::KERNEL,
        msg: format!("device {} exists in the pod already", call.key.ifname),
        details: String::new(),
    }
}

/// Gives an address back after an ADD that failed. The agent's GC does it where this fails.
fn release(call: &Call, conf: &NetConf) {
    if let Err(failure) = ask(
        conf,
        &Request::Del {
            key: call.key.clone(),
        },
    ) {
        eprintln!("release a failed ADD: {}", failure.msg);
    }
}

/// DEL: the device first, then the address, so that no two pods have it. It succeeds without namespace, without
/// device, with an unknown key, and without the agent, which then finds a tombstone (CNI 1.1 §2, DEL).
fn del(call: &Call, conf: &NetConf) -> Result<(), Failure> {
    match pod_namespace(call) {
        Ok(namespace) => wire::remove_pod_link(&namespace, &call.key.ifname).map_err(kernel)?,
        Err(failure) if call.netns.is_empty() || failure.code == code::UNKNOWN_CONTAINER => {}
        Err(failure) => return Err(failure),
    }
    for device in conf
        .previous_devices
        .iter()
        .filter(|device| is_host_ifname(device))
    {
        wire::remove_node_link(device).map_err(kernel)?;
    }
    if let Err(error) = host_local::give_back(&conf.host_local, &call.key) {
        eprintln!(
            "give back what host-local gave, in {}: {error}",
            conf.host_local.display()
        );
    }
    match protocol::call(
        &conf.socket,
        &Request::Del {
            key: call.key.clone(),
        },
        AGENT,
    ) {
        Ok(Response::Error(failure)) => Err(failure),
        Ok(_) => Ok(()),
        Err(error) => {
            eprintln!("the agent does not answer ({error}), leaving a tombstone");
            tombstone::leave(&tombstone::directory(&conf.socket), &call.key)
                .map_err(|error| failed(code::IO, "leave a tombstone", &error))
        }
    }
}

/// CHECK: what is there against what was planned.
fn check(call: &Call, conf: &NetConf) -> Result<(), Failure> {
    let namespace = pod_namespace(call)?;
    let Response::Wired { plan } = ask(
        conf,
        &Request::Check {
            key: call.key.clone(),
        },
    )?
    else {
        return Err(unexpected());
    };
    let differences = Sides::open(&namespace)
        .and_then(|mut sides| sides.differences(&plan))
        .map_err(kernel)?;
    if differences.is_empty() {
        return Ok(());
    }
    let msg = format!("interface {} is not as it was made", call.key.ifname);
    Err(Failure {
        code: code::DIFFERENT,
        msg,
        details: differences.join("; "),
    })
}

/// GC: the agent knows what there is.
fn gc(conf: &NetConf) -> Result<(), Failure> {
    let msg = "cni.dev/valid-attachments is missing".to_owned();
    let missing = Failure {
        code: code::CONFIG,
        msg,
        details: String::new(),
    };
    let valid = conf.valid.clone().ok_or(missing)?;
    ask(conf, &Request::Gc { valid }).map(drop)
}

/// STATUS: 50 whatever the reason, since the runtime knows no other.
fn status(conf: &NetConf) -> Result<(), Failure> {
    match ask(conf, &Request::Status) {
        Ok(_) => Ok(()),
        Err(failure) => Err(Failure {
            code: code::NOT_AVAILABLE,
            ..failure
        }),
    }
}

/// Asks the agent; an absent one means "try again", since it is on its way back.
fn ask(conf: &NetConf, request: &Request) -> Result<Response, Failure> {
    match protocol::call(&conf.socket, request, AGENT) {
        Ok(Response::Error(failure)) => Err(failure),
        Ok(response) => Ok(response),
        Err(error) => {
            let what = format!("the agent does not answer on {}", conf.socket.display());
            Err(failed(code::TRY_AGAIN, &what, &error))
        }
    }
}

/// The pod's namespace, which must not be the node's.
fn pod_namespace(call: &Call) -> Result<Namespace, Failure> {
    let namespace = Namespace::open(&call.netns)
        .map_err(|error| failed(code::UNKNOWN_CONTAINER, "open CNI_NETNS", &error))?;
    let own = Namespace::current().map_err(kernel)?;
    if own == namespace && !call.own_netns_allowed {
        let msg = format!("CNI_NETNS {} is the plugin's own namespace", call.netns);
        return Err(Failure {
            code: code::ENVIRONMENT,
            msg,
            details: String::new(),
        });
    }
    Ok(namespace)
}

fn failed(code: u32, what: &str, error: &dyn std::error::Error) -> Failure {
    Failure {
        code,
        msg: format!("{what}: {error}"),
        details: String::new(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn kernel(error: netlink::Error) -> Failure {
    Failure {
        code: code::KERNEL,
        msg: error.to_string(),
        details: String::new(),
    }
}

fn unexpected() -> Failure {
    let error = io::Error::new(io::ErrorKind::InvalidData, "not an answer to this request");
    failed(code::IO, "the agent answered", &error)
}
