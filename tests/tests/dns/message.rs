//! Questions in wire form, and answers as text.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use tests::name_server::{frame, read_frame};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The zone that names are in which do not end in a dot.
pub const ZONE: &str = "cluster.local.";
const ID: u16 = 4711;

/// `NAME TYPE`, in wire form: recursion desired, and an OPT record where `udp_size` is given.
pub fn query(question: &str, udp_size: Option<u16>) -> Vec<u8> {
    let (name, qtype) = question.split_once(' ').expect("a name and a type");
    let mut packet = header(ID, 0x0100, [1, 0, 0, u16::from(udp_size.is_some())]);
    packet.extend(wire(&absolute(name)));
    packet.extend(type_number(qtype).to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    packet.extend(udp_size.map(|size| opt(size, 0, 0, &[])).unwrap_or_default());
    packet
}

pub fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let words = [id, flags].into_iter().chain(counts);
    words.flat_map(u16::to_be_bytes).collect()
}

/// An OPT record: size, version, the flags' high byte, and options.
pub fn opt(size: u16, version: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    let length = u16::try_from(options.len()).expect("short").to_be_bytes();
    let fixed = [0, 0, 41, high, low, 0, version, flags, 0, length[0], length[1]];
    [&fixed[..], options].concat()
}

/// The name as it stands: its case has to come back.
pub fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> = Vec::new();
    for label in labels {
        wire.push(u8::try_from(label.len()).expect("a label"));
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

pub fn absolute(name: &str) -> String {
    match name {
        "@" => ZONE.to_owned(),
        name if name.ends_with('.') => name.to_owned(),
        name => format!("{name}.{ZONE}"),
    }
}

fn type_number(text: &str) -> u16 {
    match text {
        "ANY" => 255,
        "AXFR" => 252,
        "IXFR" => 251,
        "TYPE65280" => 65_280,
        text => text.parse::<RecordType>().map(u16::from).expect("a record type"),
    }
}

/// Sends a datagram. `None` = nobody is there, or there is no answer in the time.
pub fn ask_udp(server: SocketAddr, packet: &[u8], timeout: Duration) -> Option<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    ask_udp_from(any, server, packet, timeout)
}

/// The same from an address.
pub fn ask_udp_from(own: IpAddr, server: SocketAddr, packet: &[u8], timeout: Duration) -> Option<Vec<u8>> {
    const NOBODY: [ErrorKind; 3] = [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::ConnectionRefused,
    ];
    let socket = UdpSocket::bind((own, 0)).expect("a port");
    socket.connect(server).expect("a route");
    socket.set_read_timeout(Some(timeout)).expect("a socket");
    socket.send(packet).expect("sent");
    let mut buffer = vec![0; 65_535];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Some(buffer)
        }
        Err(error) if NOBODY.contains(&error.kind()) => None,
        Err(error) => panic!("{server}: {error}"),
    }
}

pub fn ask_tcp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).expect("it listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a socket");
    stream.write_all(&frame(packet)).expect("sent");
    read_frame(&mut stream).expect("a whole answer")
}

/// What must hold whatever is asked, and the answer as [`render`] writes it.
pub fn answer_text(packet: &[u8], answer: &[u8], ttl: u32) -> String {
    let message = Message::from_vec(answer).expect("hickory reads the answer");
    let metadata = &message.metadata;
    assert_eq!((metadata.id, metadata.message_type), (ID, MessageType::Response));
    assert!(!metadata.recursion_available && metadata.recursion_desired);
    let question_end = packet
        .iter()
        .skip(12)
        .position(|byte| *byte == 0)
        .expect("a name")
        + 12
        + 5;
    assert_eq!(
        answer.get(12..question_end),
        packet.get(12..question_end),
        "the question comes back as it came"
    );
    render(&message, ttl)
}

/// `NOERROR A 10.0.0.1 + svc1.testns.svc A 10.0.0.1`: answers, then additional records with their owners. Records of a
/// kind are sorted, because their order means nothing; an answer tells its owner where that is not the question's name.
/// `NODATA` and `NXDOMAIN` tell the owner of their SOA record where that is not `cluster.local.`. Names in that zone
/// are written without it.
pub fn render(message: &Message, ttl: u32) -> String {
    let asked = message.queries.first().map(|query| query.name().to_string());
    let code = match message.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::FormErr => "FORMERR",
        other => panic!("unexpected code {other}"),
    };
    let is_denial = message.answers.is_empty() && code == "NOERROR" && !message.authorities.is_empty();
    let mut parts = vec![if is_denial { "NODATA" } else { code }.to_owned()];
    let aliases = message.answers.iter().take_while(|record| is_alias(record));
    parts.extend(aliases.map(|record| record_text(record, asked.as_deref(), ttl)));
    let others = message.answers.iter().skip_while(|record| is_alias(record));
    let others: Vec<_> = others.collect();
    assert!(
        !others.iter().any(|record| is_alias(record)),
        "an alias stands in front of what it leads to: {message:?}"
    );
    parts.extend(sorted(
        others
            .into_iter()
            .map(|record| record_text(record, asked.as_deref(), ttl)),
    ));
    for soa in &message.authorities {
        let (zone, data) = (soa.name.to_string(), soa.data.to_string());
        let words: Vec<&str> = data.split(' ').collect();
        let [server, mailbox, serial, rest @ ..] = words.as_slice() else {
            panic!("{data}")
        };
        assert_eq!(
            (*server, *mailbox),
            (&*format!("ns.dns.{zone}"), &*format!("hostmaster.{zone}"))
        );
        assert!(serial.parse::<u32>().is_ok(), "{data}");
        assert_eq!(
            rest,
            ["7200", "1800", "86400", ttl.to_string().as_str()],
            "{data}"
        );
        assert_eq!(soa.ttl, ttl.min(300), "a denial is kept for five minutes at most");
        parts.extend((zone != ZONE).then_some(zone));
    }
    parts.extend(sorted(
        message
            .additionals
            .iter()
            .map(|record| format!("+ {}", record_text(record, None, ttl))),
    ));
    parts.join(" ")
}

fn is_alias(record: &Record) -> bool {
    record.record_type() == RecordType::CNAME
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<String> = texts.collect();
    texts.sort();
    texts
}

fn record_text(record: &Record, asked: Option<&str>, ttl: u32) -> String {
    let owner = record.name.to_string();
    let data = record.data.to_string();
    let expected = if record.record_type() == RecordType::TXT {
        28_800
    } else {
        ttl
    };
    assert_eq!(record.ttl, expected, "{owner} {data}");
    // The serial of an SOA is the time of the latest change.
    let kind = record.record_type();
    let suffix = format!(".{ZONE}");
    let data = match kind {
        RecordType::SOA => data.split(' ').take(2).collect::<Vec<_>>().join(" "),
        _ => data.strip_suffix(&suffix).unwrap_or(&data).to_owned(),
    };
    match asked {
        Some(asked) if asked == owner => format!("{kind} {data}"),
        _ => format!("{} {kind} {data}", owner.strip_suffix(&suffix).unwrap_or(&owner)),
    }
}
