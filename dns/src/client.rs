//! One question to a server and its answer in words, with the server's own explanation where it gives one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::explain::{self, Explanation};
use crate::mnemonic;
use crate::name::{Name, NameError};
use crate::question::{HEADER, Record, expand_name, query_packet, rtype};

/// A server that works answers sooner, also where it asks others.
const DEADLINE: Duration = Duration::from_secs(10);
/// Said in the OPT record, where it bounds nothing: the question goes by TCP.
const UDP_SIZE: u16 = 1232;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name.
    pub name: Name,
    /// The type.
    pub qtype: u16,
}

/// Why a question cannot be asked, or has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// RFC 1035's limits.
    #[error("the name {text:?} {reason}")]
    Name {
        /// The name.
        text: String,
        /// What is wrong with it.
        reason: NameError,
    },
    /// Not a record type.
    #[error("{text:?} is no record type like A, SRV or TYPE65")]
    Type {
        /// What it is instead.
        text: String,
    },
    /// There is no connection, or it broke off.
    #[error("ask {server} by tcp")]
    Connect {
        /// The server.
        server: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What came is no answer to the question.
    #[error("ask {server} by tcp: what came is no answer")]
    Answer {
        /// The server.
        server: SocketAddr,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// `NOERROR` and its like.
    pub code: String,
    /// Records as zone files have them.
    pub answers: Vec<String>,
    /// The same.
    pub authorities: Vec<String>,
    /// The same, without what EDNS and the explanation are carried in.
    pub additionals: Vec<String>,
    /// Length of the whole message.
    pub bytes: usize,
    /// From the question to the last byte of the answer.
    pub microseconds: u64,
    /// Who answered, and of what. None = the server does not say.
    pub explanation: Option<Explanation>,
}

impl Question {
    /// Reads `web.default.svc.cluster.local` and `SRV`; an address alone asks for its names.
    ///
    /// # Errors
    /// When one of them is not what it should be.
    pub fn parse(name: &str, qtype: Option<&str>) -> Result<Self, ClientError> {
        let (name, default) = match name.parse::<IpAddr>() {
            Ok(address) => (Name::reverse(address), rtype::PTR),
            Err(_) => {
                let error = |reason| ClientError::Name {
                    text: name.to_owned(),
                    reason,
                };
                (Name::parse(name).map_err(error)?, rtype::A)
            }
        };
        let qtype = qtype.map_or(Ok(default), type_number)?;
        Ok(Self { name, qtype })
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = query_packet(rand::random(), self.name.wire(), self.qtype);
        packet[11] = 1;
        let ([s0, s1], [o0, o1]) = (UDP_SIZE.to_be_bytes(), explain::OPTION.to_be_bytes());
        packet.extend_from_slice(&[0, 0, rtype::OPT as u8, s0, s1, 0, 0, 0, 0, 0, 4, o0, o1, 0, 0]);
        packet
    }
}

fn type_number(text: &str) -> Result<u16, ClientError> {
    mnemonic::type_number(text).ok_or_else(|| ClientError::Type {
        text: text.to_owned(),
    })
}

/// Asks by TCP, so that nothing is cut off.
///
/// # Errors
/// When there is no answer.
pub async fn ask(server: SocketAddr, question: &Question) -> Result<Reply, ClientError> {
    let packet = question.packet();
    let began = Instant::now();
    let exchanged = timeout(DEADLINE, exchange(server, &packet)).await;
    let answer = exchanged
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ClientError::Connect { server, source })?;
    let reply = read(&answer, began.elapsed());
    reply
        .filter(|_| answer[..2] == packet[..2])
        .ok_or(ClientError::Answer { server })
}

async fn exchange(server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = (packet.len() as u16).to_be_bytes();
    stream.write_all(&[&length[..], packet].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn read(answer: &[u8], took: Duration) -> Option<Reply> {
    let header: &[u8; HEADER] = answer.get(..HEADER)?.try_into().ok()?;
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let mut code = u16::from(header[3] & 15);
    let mut at = HEADER;
    if count(4) > 0 {
        at += expand_name(answer, at)?.len() + 4;
    }
    let mut sections: [Vec<String>; 3] = Default::default();
    for (section, records) in sections.iter_mut().zip([6, 8, 10]) {
        for _ in 0..count(records) {
            let (record, next) = Record::read(answer, at)?;
            match record.rtype {
                // The high bits of the code stand in the TTL (RFC 6891 §6.1.3).
                rtype::OPT => code |= (record.ttl >> 20) as u16 & 0xff0,
                _ if record.class == 3 => {}
                _ => section.push(record_text(answer, &record)?),
            }
            at = next;
        }
    }
    let [answers, authorities, additionals] = sections;
    Some(Reply {
        code: mnemonic::code_name(code).into_owned(),
        answers,
        authorities,
        additionals,
        bytes: answer.len(),
        microseconds: took.as_micros() as u64,
        explanation: Explanation::read(answer),
    })
}

fn record_text(answer: &[u8], record: &Record<'_>) -> Option<String> {
    let owner = name_at(answer, record.start)?;
    let kind = mnemonic::type_name(record.rtype);
    let data = data_text(answer, record)?;
    Some(format!("{owner} {} IN {kind} {data}", record.ttl))
}

/// The data as a zone file has it; what is not known as RFC 3597 §5 has it.
fn data_text(answer: &[u8], record: &Record<'_>) -> Option<String> {
    let word = |at: usize| {
        Some(u16::from_be_bytes([
            *record.data.get(at)?,
            *record.data.get(at + 1)?,
        ]))
    };
    match record.rtype {
        rtype::A => Some(IpAddr::from(<[u8; 4]>::try_from(record.data).ok()?).to_string()),
        rtype::AAAA => Some(IpAddr::from(<[u8; 16]>::try_from(record.data).ok()?).to_string()),
        rtype::CNAME | rtype::NS | rtype::PTR => name_at(answer, record.data_at),
        rtype::SRV => {
            let target = name_at(answer, record.data_at + 6)?;
            Some(format!("{} {} {} {target}", word(0)?, word(2)?, word(4)?))
        }
        rtype::SOA => soa_text(answer, record),
        rtype::TXT => Some(strings_text(record.data)),
        _ => {
            let hex: String = record.data.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("\\# {} {hex}", record.data.len()))
        }
    }
}

fn soa_text(answer: &[u8], record: &Record<'_>) -> Option<String> {
    let (server, next) = (
        name_at(answer, record.data_at)?,
        after_name(answer, record.data_at)?,
    );
    let (mailbox, next) = (name_at(answer, next)?, after_name(answer, next)?);
    let numbers = answer.get(next..next + 20)?.chunks_exact(4);
    let numbers = numbers.filter_map(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?).to_string()));
    let numbers: Vec<String> = numbers.collect();
    Some(format!("{server} {mailbox} {}", numbers.join(" ")))
}

fn strings_text(mut data: &[u8]) -> String {
    let mut strings = Vec::new();
    while let Some((&length, rest)) = data.split_first() {
        let (string, behind) = rest.split_at(usize::from(length).min(rest.len()));
        strings.push(format!("{:?}", String::from_utf8_lossy(string)));
        data = behind;
    }
    strings.join(" ")
}

fn name_at(answer: &[u8], at: usize) -> Option<String> {
    Some(Name::from_lower_wire(&expand_name(answer, at)?).to_string())
}

/// Where what stands behind a name begins.
fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            0xc0..=0xff => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Owner, Section, Writer, put_soa};
    use crate::question::{Query, rcode};

    #[test]
    fn questions_are_read_and_what_is_none_is_refused() {
        let read = |name: &str, qtype: Option<&str>| {
            let question = Question::parse(name, qtype).map_err(|error| error.to_string())?;
            Ok::<_, String>(format!("{} {}", question.name, question.qtype))
        };
        for (name, qtype, expected) in [
            ("Web.Default", None, Ok("web.default. 1")),
            ("web.default.", Some("srv"), Ok("web.default. 33")),
            ("web", Some("TYPE65280"), Ok("web. 65280")),
            ("10.0.0.1", None, Ok("1.0.0.10.in-addr.arpa. 12")),
            ("10.0.0.1", Some("SOA"), Ok("1.0.0.10.in-addr.arpa. 6")),
            (
                "web",
                Some("TYPE65536"),
                Err("\"TYPE65536\" is no record type like A, SRV or TYPE65"),
            ),
            (
                "web",
                Some("é"),
                Err("\"é\" is no record type like A, SRV or TYPE65"),
            ),
            ("a..b", None, Err("the name \"a..b\" has an empty label")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(read(name, qtype), expected, "{name} {qtype:?}");
        }
    }

    #[test]
    fn an_answer_is_written_as_a_zone_file_has_it() {
        let question = Question::parse("web.cluster.local", None).expect("a question");
        let packet = question.packet();
        let query = Query::parse(&packet).expect("query");
        assert!(query.edns.expect("an OPT record").explain);
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 65_535);
        let target = Name::parse("a.example").expect("name");
        writer.address(Section::Answer, Owner::QUESTION, [10, 0, 0, 1].into(), 5);
        writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, 5, target.wire());
        writer.record(Section::Answer, Owner::QUESTION, rtype::SRV, 5, |out| {
            out.extend_from_slice(&[0, 0, 0, 50, 0, 80]);
            out.extend_from_slice(target.wire());
        });
        writer.record(Section::Answer, Owner::QUESTION, 65280, 5, |out| {
            out.extend([0, 0xab])
        });
        put_soa(&mut writer, Section::Authority, query.packet_offset(1), 7, 5, 5);
        writer.record(Section::Additional, Owner::QUESTION, rtype::TXT, 5, |out| {
            out.extend_from_slice(b"\x021.\x010");
        });
        writer.finish(rcode::NXDOMAIN, true);
        let reply = read(&out, Duration::from_micros(9)).expect("an answer");
        let owner = "web.cluster.local. 5 IN";
        let expected = Reply {
            code: "NXDOMAIN".to_owned(),
            answers: vec![
                format!("{owner} A 10.0.0.1"),
                format!("{owner} CNAME a.example."),
                format!("{owner} SRV 0 50 80 a.example."),
                format!("{owner} TYPE65280 \\# 2 00ab"),
            ],
            authorities: vec![
                "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
                    .to_owned(),
            ],
            additionals: vec![format!("{owner} TXT \"1.\" \"0\"")],
            bytes: out.len(),
            microseconds: 9,
            explanation: None,
        };
        assert_eq!(reply, expected);
        for cut in 0..out.len() {
            // No answer that is cut off makes it panic.
            let _ = read(&out[..cut], Duration::ZERO);
        }
    }
}
