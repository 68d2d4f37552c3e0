//! The queueing discipline at a device's root: what holds back the packets that leave through it.
//!
//! ```text
//! TCA_OPTIONS of tbf, numbers in host order (include/uapi/linux/pkt_sched.h):
//! TCA_TBF_PARMS   tc_tbf_qopt [rate:12][peakrate:12][limit:4][buffer:4][mtu:4] = 36 bytes
//!                 rate, peakrate: tc_ratespec [cell_log:1][linklayer:1][overhead:2][cell_align:2][mpu:2][rate:4]
//! TCA_TBF_RATE64  [8], where the rate does not fit
//! TCA_TBF_BURST   [4]
//! ```

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::error::{Error, Operation, Result};
use crate::kernel::Netlink;

const TOKEN_BUCKET: &str = "tbf";
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel reckons with packets' lengths as they are, without a table from user space.
const LINKLAYER_ETHERNET: u8 = 1;

const PARMS_BYTES: usize = 36;
const LINKLAYER_AT: usize = 1;
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;

/// A token bucket (`tc-tbf(8)`): packets leave at a rate once what may come at once is used up, and wait until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes in a second, headers of Ethernet included.
    pub rate_bytes: u64,
    /// Bytes that may leave at once. A packet with more never does.
    pub burst_bytes: u32,
    /// Bytes that may wait; what comes then is dropped.
    pub limit_bytes: u32,
}

/// What is at a device's root, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootQdisc {
    /// A token bucket. Its burst is told as a rounded time only, and not here.
    TokenBucket {
        /// Bytes in a second.
        rate_bytes: u64,
        /// Bytes that may wait.
        limit_bytes: u32,
    },
    /// Anything else, by the kernel's name for it: `noqueue` at a virtual device that was given nothing.
    Other(String),
}

impl RootQdisc {
    /// Whether it is the one that was asked for, as far as the kernel tells.
    #[must_use]
    pub fn is(&self, wanted: &TokenBucket) -> bool {
        let TokenBucket {
            rate_bytes,
            limit_bytes,
            burst_bytes: _,
        } = *wanted;
        *self
            == Self::TokenBucket {
                rate_bytes,
                limit_bytes,
            }
    }
}

impl Netlink {
    /// What is at a device's root; `None` where there is no such device, or one that is down and was given nothing.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn root_qdisc(&mut self, link: u32) -> Result<Option<RootQdisc>> {
        // A request for a single one is answered by a notification to everybody (`qdisc_get_notify`), and a listing
        // is of all devices (`tc_dump_qdisc`).
        let request = Message::GetQueueDiscipline(at_root(link));
        let messages = self
            .socket
            .dump(request)
            .map_err(Error::of(Operation::ListQdiscs, ""))?;
        Ok(messages.iter().find_map(|message| match message {
            Message::NewQueueDiscipline(message) if is_at_root(link, message) => decode(message),
            _ => None,
        }))
    }

    /// Puts a token bucket at a device's root, in place of whatever is there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn replace_root_qdisc(&mut self, link: u32, bucket: &TokenBucket) -> Result<()> {
        let mut message = at_root(link);
        message.attributes = vec![
            TcAttribute::Kind(TOKEN_BUCKET.to_owned()),
            TcAttribute::Options(encode(bucket)),
        ];
        self.socket
            .change(Message::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(Error::of(Operation::ReplaceQdisc, link))
    }

    /// Takes what was put at a device's root away; the kernel's own takes its place.
    ///
    /// # Errors
    /// As the kernel says, `ENOENT` where nothing was put.
    pub fn delete_root_qdisc(&mut self, link: u32) -> Result<()> {
        self.socket
            .change(Message::DelQueueDiscipline(at_root(link)), 0)
            .map_err(Error::of(Operation::DeleteQdisc, link))
    }
}

fn at_root(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message
}

fn is_at_root(link: u32, message: &TcMessage) -> bool {
    message.header.index == link.cast_signed() && message.header.parent == TcHandle::ROOT
}

fn encode(bucket: &TokenBucket) -> Vec<TcOption> {
    let mut parms = [0; PARMS_BYTES];
    // Saturated, the kernel takes the longer one (`psched_ratecfg_precompute`).
    let rate = u32::try_from(bucket.rate_bytes).unwrap_or(u32::MAX);
    parms[LINKLAYER_AT] = LINKLAYER_ETHERNET;
    parms[RATE_AT..RATE_AT + 4].copy_from_slice(&rate.to_ne_bytes());
    parms[LIMIT_AT..LIMIT_AT + 4].copy_from_slice(&bucket.limit_bytes.to_ne_bytes());
    let option = |kind, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
    let mut options = vec![
        option(TCA_TBF_PARMS, &parms),
        option(TCA_TBF_BURST, &bucket.burst_bytes.to_ne_bytes()),
    ];
    if rate == u32::MAX {
        options.push(option(TCA_TBF_RATE64, &bucket.rate_bytes.to_ne_bytes()));
    }
    options
}

fn decode(message: &TcMessage) -> Option<RootQdisc> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let bucket = || decode_token_bucket(options?);
    Some(match kind {
        TOKEN_BUCKET => bucket().unwrap_or_else(|| RootQdisc::Other(kind.to_owned())),
        _ => RootQdisc::Other(kind.to_owned()),
    })
}

/// The options of a discipline that the library does not know are one attribute to it, `TCA_OPTIONS` itself.
fn decode_token_bucket(options: &[TcOption]) -> Option<RootQdisc> {
    let whole = options.iter().find_map(|option| match option {
        TcOption::Other(whole) if netlink_packet_core::Nla::kind(whole) == TCA_OPTIONS => Some(whole),
        _ => None,
    })?;
    let mut bytes = vec![0; whole.buffer_len()];
    whole.emit(&mut bytes);
    let (mut parms, mut rate64) = (None, None);
    for option in NlasIterator::new(bytes.get(4..)?) {
        let option = option.ok()?;
        match option.kind() {
            TCA_TBF_PARMS => parms = Some(option.value().to_vec()),
            TCA_TBF_RATE64 => rate64 = Some(u64::from_ne_bytes(option.value().try_into().ok()?)),
            _ => {}
        }
    }
    let parms = parms?;
    let number = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
    Some(RootQdisc::TokenBucket {
        rate_bytes: rate64.map_or_else(|| number(RATE_AT).map(u64::from), Some)?,
        limit_bytes: number(LIMIT_AT)?,
    })
}
