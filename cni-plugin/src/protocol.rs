//! How the plugin and the agent speak: one JSON frame each way over a unix socket, `[length:4 be][JSON:length]`.
//!
//! Either side may be older than the other, since an upgrade replaces them one after the other: unknown fields are
//! ignored, missing ones have defaults, and an unknown verb is answered, not refused with a broken connection.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use model::ObjectName;
use model::wiring::{WiringPlan, Wishes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where the agent listens.
pub const DEFAULT_SOCKET: &str = "/run/causeway/cni.sock";

/// Bytes of the length before every frame.
pub const HEADER_BYTES: usize = 4;

/// Longest frame: a GC of a hundred thousand attachments fits.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// One network interface of one container: the key of everything (CNI 1.1 §2, "container ID" and "interface name").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// Decide how to connect an interface. Asked again for the same key, the answer is the same.
    #[serde(rename_all = "camelCase")]
    Add {
        /// Which interface.
        #[serde(flatten)]
        key: AttachmentKey,
        /// Path of the pod's network namespace.
        netns: String,
        /// The pod, where the runtime told (`K8S_POD_NAMESPACE`, `K8S_POD_NAME`).
        #[serde(default)]
        pod: Option<ObjectName>,
        /// What else the runtime asks for.
        #[serde(default)]
        wishes: Wishes,
        /// Addresses that pods have which another plugin wired ([`crate::host_local`]).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        taken: Vec<IpAddr>,
        /// How long the plugin waits for an address, where there is none now; absent: not at all. As long as it waits it
        /// hears [`Response::Waiting`] every few seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        patience_seconds: Option<u32>,
    },
    /// Release an interface. Always succeeds when the key is unknown.
    Del {
        /// Which interface.
        #[serde(flatten)]
        key: AttachmentKey,
    },
    /// Tell the plan of an interface that was added.
    Check {
        /// Which interface.
        #[serde(flatten)]
        key: AttachmentKey,
    },
    /// Release everything that is not listed.
    Gc {
        /// What is still in use.
        valid: Vec<AttachmentKey>,
    },
    /// Whether an ADD would be served now.
    Status,
    /// A verb of a newer plugin.
    #[serde(other)]
    Unknown,
}

impl Request {
    /// How long the answer may take beyond what the agent needs.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self {
            Self::Add { patience_seconds, .. } => {
                Duration::from_secs(patience_seconds.unwrap_or_default().into())
            }
            Self::Del { .. } | Self::Check { .. } | Self::Gc { .. } | Self::Status | Self::Unknown => {
                Duration::ZERO
            }
        }
    }
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Response {
    /// How the interface is, or shall be, wired.
    Wired {
        /// The plan.
        plan: WiringPlan,
    },
    /// Done, or ready.
    Done,
    /// No answer yet: one follows. Only those hear it who said how long they wait.
    #[serde(rename_all = "camelCase")]
    Waiting {
        /// What it takes.
        waiting_for: String,
    },
    /// Not done.
    Error(Failure),
}

/// Why not: passed on to the runtime as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// CNI error code (CNI 1.1, "Error"); see [`crate::spec::code`].
    pub code: u32,
    /// One line.
    pub msg: String,
    /// More, or empty.
    #[serde(default)]
    pub details: String,
}

/// Length and JSON of a message, ready to be written.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "frame too long"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(json);
    Ok(frame)
}

/// The length of the JSON that follows a header.
///
/// # Errors
/// When it is longer than [`MAX_FRAME_BYTES`].
pub fn frame_length(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(header))
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame too long"))
}

/// Reads a message from the JSON of a frame, without its header.
///
/// # Errors
/// When it is not such a message.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(json)?)
}

/// Reads a whole frame and its message; for both sides where they block.
///
/// # Errors
/// When the peer hangs up, is too slow, or does not speak this protocol.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut json = vec![0; frame_length(header)?];
    stream.read_exact(&mut json)?;
    decode(&json)
}

/// Asks the agent and waits for its answer: for `timeout`, and as long as it says that there is something to wait for,
/// for the request's patience on top of that.
///
/// # Errors
/// When nobody listens, or no answer comes in time. Whether the agent acted on the request is then unknown.
pub fn call(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(&encode(request)?)?;
    answer(&mut stream, Instant::now() + request.patience() + timeout)
}

/// The first answer that is one.
fn answer(stream: &mut impl Read, deadline: Instant) -> io::Result<Response> {
    loop {
        match read(stream)? {
            Response::Waiting { waiting_for } if Instant::now() >= deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, waiting_for));
            }
            Response::Waiting { .. } => {}
            response => return Ok(response),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AttachmentKey {
        AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    #[test]
    fn messages_have_these_forms_on_the_wire() {
        let pod = Some(ObjectName::new("default", "web"));
        let rows = [
            (
                Request::Add {
                    key: key(),
                    netns: "/run/netns/x".to_owned(),
                    pod,
                    wishes: Wishes::default(),
                    taken: Vec::new(),
                    patience_seconds: None,
                },
                r#"{"verb":"add","containerId":"c1","ifname":"eth0","netns":"/run/netns/x","pod":{"namespace":"default","name":"web"},"wishes":{}}"#,
            ),
            (
                Request::Del { key: key() },
                r#"{"verb":"del","containerId":"c1","ifname":"eth0"}"#,
            ),
            (
                Request::Add {
                    key: key(),
                    netns: "n".to_owned(),
                    pod: None,
                    wishes: Wishes::default(),
                    taken: Vec::new(),
                    patience_seconds: Some(45),
                },
                r#"{"verb":"add","containerId":"c1","ifname":"eth0","netns":"n","pod":null,"wishes":{},"patienceSeconds":45}"#,
            ),
            (
                Request::Gc { valid: vec![key()] },
                r#"{"verb":"gc","valid":[{"containerId":"c1","ifname":"eth0"}]}"#,
            ),
            (Request::Status, r#"{"verb":"status"}"#),
        ];
        for (request, json) in rows {
            assert_eq!(serde_json::to_string(&request).expect("encode"), json);
            let frame = encode(&request).expect("frame");
            assert_eq!(read::<Request>(&mut frame.as_slice()).expect("read"), request);
        }
        let failure = Response::Error(Failure {
            code: 11,
            msg: "try again".to_owned(),
            details: String::new(),
        });
        let waiting = Response::Waiting {
            waiting_for: "a block".to_owned(),
        };
        let rows = [
            (
                failure,
                r#"{"answer":"error","code":11,"msg":"try again","details":""}"#,
            ),
            (waiting, r#"{"answer":"waiting","waitingFor":"a block"}"#),
        ];
        for (response, json) in rows {
            assert_eq!(serde_json::to_string(&response).expect("encode"), json);
            assert_eq!(decode::<Response>(json.as_bytes()).expect(json), response);
        }
    }

    #[test]
    fn messages_of_newer_and_older_peers_are_understood() {
        let rows = [
            (r#"{"verb":"resize"}"#, Request::Unknown),
            (
                r#"{"verb":"del","containerId":"c1","ifname":"eth0","new":7}"#,
                Request::Del { key: key() },
            ),
            (
                r#"{"verb":"add","containerId":"c1","ifname":"eth0","netns":"n"}"#,
                Request::Add {
                    key: key(),
                    netns: "n".to_owned(),
                    pod: None,
                    wishes: Wishes::default(),
                    taken: Vec::new(),
                    patience_seconds: None,
                },
            ),
        ];
        for (json, request) in rows {
            assert_eq!(decode::<Request>(json.as_bytes()).expect(json), request);
        }
    }

    #[test]
    fn a_plugin_waits_as_long_as_it_hears_of_it_and_not_beyond_its_deadline() {
        let waiting = |what: &str| Response::Waiting {
            waiting_for: what.to_owned(),
        };
        let frames = |responses: &[Response]| -> Vec<u8> {
            responses
                .iter()
                .flat_map(|response| encode(response).expect("frame"))
                .collect()
        };
        let long = Instant::now() + Duration::from_secs(3600);
        let told = frames(&[waiting("a block"), waiting("a turn"), Response::Done]);
        assert_eq!(
            answer(&mut told.as_slice(), long).expect("in time"),
            Response::Done
        );
        let late = answer(&mut told.as_slice(), Instant::now()).expect_err("too late");
        assert_eq!(
            (late.kind(), late.to_string()),
            (io::ErrorKind::TimedOut, "a block".to_owned())
        );
        let hung_up = answer(&mut frames(&[waiting("a block")]).as_slice(), long).expect_err("no answer");
        assert_eq!(hung_up.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_frame_that_is_torn_or_too_long_is_refused() {
        let frame = encode(&Request::Status).expect("frame");
        for length in 0..frame.len() {
            assert!(
                read::<Request>(&mut frame.get(..length).expect("shorter")).is_err(),
                "{length} bytes"
            );
        }
        assert!(read::<Request>(&mut [0xff, 0xff, 0xff, 0xff, b'{'].as_slice()).is_err());
    }
}
