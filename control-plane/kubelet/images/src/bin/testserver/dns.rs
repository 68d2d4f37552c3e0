//! A stub resolver (RFC 1034 §5.3.1): `/etc/resolv.conf`, search list and `ndots` (resolv.conf(5)), UDP with TCP when
//! an answer is truncated. A static program cannot rely on glibc's resolver, which loads NSS modules at run time.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The record types that are asked for and printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    A,
    Ns,
    Cname,
    Soa,
    Ptr,
    Txt,
    Aaaa,
    Srv,
    Other(u16),
}

impl RecordType {
    const NAMED: [(&str, u16, RecordType); 8] = [
        ("A", 1, Self::A),
        ("NS", 2, Self::Ns),
        ("CNAME", 5, Self::Cname),
        ("SOA", 6, Self::Soa),
        ("PTR", 12, Self::Ptr),
        ("TXT", 16, Self::Txt),
        ("AAAA", 28, Self::Aaaa),
        ("SRV", 33, Self::Srv),
    ];

    /// A type by its name.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::NAMED
            .iter()
            .find(|(known, ..)| known.eq_ignore_ascii_case(name))
            .map(|(_, _, record_type)| *record_type)
            .ok_or_else(|| format!("unknown record type {name:?}"))
    }

    /// Its name; `TYPE123` for one without (RFC 3597 §5).
    pub fn name(self) -> String {
        let named = Self::NAMED.iter().find(|(.., known)| *known == self);
        named.map_or_else(|| format!("TYPE{}", self.code()), |(name, ..)| (*name).to_owned())
    }

    fn from_code(code: u16) -> Self {
        Self::NAMED
            .iter()
            .find(|(_, known, _)| *known == code)
            .map_or(Self::Other(code), |(.., known)| *known)
    }

    fn code(self) -> u16 {
        match self {
            Self::Other(code) => code,
            _ => Self::NAMED
                .iter()
                .find(|(.., known)| *known == self)
                .map_or(0, |(_, code, _)| *code),
        }
    }
}

/// One record of an answer; `data` as text.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub ttl: u32,
    pub record_type: RecordType,
    pub data: String,
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, PartialEq, Eq)]
struct Conf {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

/// The resolver.
pub struct Resolver {
    conf: Conf,
    timeout: Duration,
    over_tcp: bool,
}

impl Resolver {
    /// By `/etc/resolv.conf`; `server` replaces its name servers.
    pub fn from_system(server: Option<&str>, timeout: Duration) -> Result<Self, String> {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let mut conf = parse_conf(&text);
        if let Some(server) = server {
            let address = server
                .parse::<SocketAddr>()
                .or_else(|_| server.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
                .map_err(|_| format!("--resolver: {server:?} is no address"))?;
            conf.servers = vec![address];
        }
        Ok(Self {
            conf,
            timeout,
            over_tcp: false,
        })
    }

    /// The same, asking by TCP from the beginning.
    pub fn over_tcp(mut self, over_tcp: bool) -> Self {
        self.over_tcp = over_tcp;
        self
    }

    /// The addresses of a name, IPv4 first.
    pub fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        let mut last = None;
        for record_type in [RecordType::A, RecordType::Aaaa] {
            match self.lookup(name, record_type) {
                Ok(records) => addresses.extend(
                    records
                        .iter()
                        .filter(|r| r.record_type == record_type)
                        .filter_map(|r| r.data.parse::<IpAddr>().ok()),
                ),
                Err(error) => last = Some(error),
            }
            if !addresses.is_empty() {
                return Ok(addresses);
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(ErrorKind::NotFound, "no such name")))
    }

    /// The records of a name: the first candidate of the search list that has any.
    pub fn lookup(&self, name: &str, record_type: RecordType) -> io::Result<Vec<Record>> {
        let mut last = io::Error::new(ErrorKind::NotFound, "no such name");
        for candidate in candidates(name, &self.conf) {
            match self.query(&candidate, record_type) {
                Ok(records) if !records.is_empty() => return Ok(records),
                Ok(_) => last = io::Error::new(ErrorKind::NotFound, "no data"),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Asks the servers in their order, twice.
    fn query(&self, name: &str, record_type: RecordType) -> io::Result<Vec<Record>> {
        let mut last = io::Error::new(ErrorKind::NotFound, "no name server configured");
        for server in self.conf.servers.iter().chain(&self.conf.servers) {
            match self.ask(*server, name, record_type) {
                Ok(records) => return Ok(records),
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn ask(&self, server: SocketAddr, name: &str, record_type: RecordType) -> io::Result<Vec<Record>> {
        let id = next_id();
        let question = encode_query(id, name, record_type)?;
        if self.over_tcp {
            return self.ask_tcp(server, &question);
        }
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(self.timeout.min(Duration::from_secs(2))))?;
        socket.connect(server)?;
        socket.send(&question)?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer)?;
            let message = buffer.get(..length).unwrap_or_default();
            if message.get(..2) != Some(&id.to_be_bytes()) {
                continue;
            }
            let truncated = message.get(2).is_some_and(|flags| flags & 0x02 != 0);
            return if truncated {
                self.ask_tcp(server, &question)
            } else {
                decode(message)
            };
        }
    }

    /// RFC 7766 §8: a two-byte length before each message.
    fn ask_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<Record>> {
        let mut stream = TcpStream::connect_timeout(&server, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        let length = u16::try_from(question.len()).map_err(|_| malformed())?;
        stream.write_all(&[&length.to_be_bytes(), question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message)?;
        decode(&message)
    }
}

/// The name under which an address is found by a PTR question.
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let mut name = String::new();
            for byte in v6.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", byte & 0xf, byte >> 4);
            }
            name + "ip6.arpa."
        }
    }
}

/// The names to try, in their order: as it is first when it has `ndots` dots, else after the search list.
fn candidates(name: &str, conf: &Conf) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let searched = conf.search.iter().map(|domain| format!("{name}.{domain}."));
    let as_it_is = format!("{name}.");
    if name.matches('.').count() >= conf.ndots {
        std::iter::once(as_it_is).chain(searched).collect()
    } else {
        searched.chain(std::iter::once(as_it_is)).collect()
    }
}

fn parse_conf(text: &str) -> Conf {
    let mut conf = Conf {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: 1,
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => conf.servers.extend(
                words
                    .filter_map(|w| w.parse().ok())
                    .map(|ip| SocketAddr::new(ip, 53)),
            ),
            Some("search" | "domain") => {
                conf.search = words.map(|word| word.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => {
                for option in words {
                    if let Some(ndots) = option.strip_prefix("ndots:").and_then(|n| n.parse().ok()) {
                        conf.ndots = ndots;
                    }
                }
            }
            _ => {}
        }
    }
    conf
}

/// Message ids that differ between runs and within one. The connected socket's random port is the protection against
/// forged answers.
fn next_id() -> u16 {
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    let [.., a, b] = nanos.to_be_bytes();
    u16::from_be_bytes([a, b]).wrapping_add(COUNTER.fetch_add(257, Ordering::Relaxed))
}

/// RFC 1035 §4.1: header with RD set, one question.
fn encode_query(id: u16, name: &str, record_type: RecordType) -> io::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(64);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&[0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name
        .trim_end_matches('.')
        .split('.')
        .filter(|label| !label.is_empty())
    {
        let length = u8::try_from(label.len()).ok().filter(|length| *length < 64);
        message.push(length.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "label too long"))?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&record_type.code().to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    Ok(message)
}

/// The answer section; an error for every rcode but NOERROR.
fn decode(message: &[u8]) -> io::Result<Vec<Record>> {
    let mut reader = Reader { message, at: 2 };
    let flags = reader.u16()?;
    match flags & 0xf {
        0 => {}
        3 => return Err(io::Error::new(ErrorKind::NotFound, "no such name (NXDOMAIN)")),
        2 => return Err(io::Error::other("the name server failed (SERVFAIL)")),
        code => return Err(io::Error::other(format!("the name server answered rcode {code}"))),
    }
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.at = 12;
    for _ in 0..questions {
        reader.name()?;
        reader.at += 4;
    }
    (0..answers).map(|_| reader.record()).collect()
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, length: usize) -> io::Result<&[u8]> {
        let bytes = self
            .message
            .get(self.at..self.at + length)
            .ok_or_else(malformed)?;
        self.at += length;
        Ok(bytes)
    }

    fn u8(&mut self) -> io::Result<u8> {
        self.bytes(1)
            .map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// A name, with compression pointers (RFC 1035 §4.1.4) followed backwards only, so that they cannot loop.
    fn name(&mut self) -> io::Result<String> {
        let mut name = String::new();
        let mut resume = None;
        let mut lowest = self.at;
        loop {
            let length = self.u8()?;
            if length == 0 {
                break;
            }
            if length & 0xc0 == 0xc0 {
                let target = usize::from(u16::from_be_bytes([length & 0x3f, self.u8()?]));
                resume.get_or_insert(self.at);
                if target >= lowest {
                    return Err(malformed());
                }
                (lowest, self.at) = (target, target);
                continue;
            }
            name.push_str(&String::from_utf8_lossy(self.bytes(usize::from(length))?));
            name.push('.');
        }
        if let Some(resume) = resume {
            self.at = resume;
        }
        Ok(if name.is_empty() { ".".to_owned() } else { name })
    }

    fn record(&mut self) -> io::Result<Record> {
        let name = self.name()?;
        let record_type = RecordType::from_code(self.u16()?);
        self.u16()?;
        let ttl = self.u32()?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        let data = self.data(record_type, length)?;
        self.at = end;
        Ok(Record {
            name,
            ttl,
            record_type,
            data,
        })
    }

    fn data(&mut self, record_type: RecordType, length: usize) -> io::Result<String> {
        Ok(match record_type {
            RecordType::A => Ipv4Addr::from(self.u32()?).to_string(),
            RecordType::Aaaa => {
                let octets: [u8; 16] = self.bytes(16)?.try_into().map_err(|_| malformed())?;
                Ipv6Addr::from(octets).to_string()
            }
            RecordType::Cname | RecordType::Ns | RecordType::Ptr => self.name()?,
            RecordType::Srv => {
                let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                format!("{priority} {weight} {port} {}", self.name()?)
            }
            RecordType::Soa => {
                let (primary, mailbox) = (self.name()?, self.name()?);
                let numbers = [self.u32()?, self.u32()?, self.u32()?, self.u32()?, self.u32()?];
                format!(
                    "{primary} {mailbox} {}",
                    numbers.map(|number| number.to_string()).join(" ")
                )
            }
            RecordType::Txt | RecordType::Other(_) => {
                String::from_utf8_lossy(self.bytes(length)?).into_owned()
            }
        })
    }
}

fn malformed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "malformed DNS message")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str =
        "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";

    #[test]
    fn the_search_list_comes_first_below_ndots() {
        let conf = parse_conf(CLUSTER);
        for (name, expected) in [
            (
                "hello",
                vec![
                    "hello.default.svc.cluster.local.",
                    "hello.svc.cluster.local.",
                    "hello.",
                ],
            ),
            ("hello.", vec!["hello."]),
            (
                "a.b.c.d.e.f",
                vec![
                    "a.b.c.d.e.f.",
                    "a.b.c.d.e.f.default.svc.cluster.local.",
                    "a.b.c.d.e.f.svc.cluster.local.",
                ],
            ),
        ] {
            assert_eq!(candidates(name, &conf), expected);
        }
    }

    #[test]
    fn an_answer_with_compression_is_read() {
        let mut message = encode_query(7, "a.example.", RecordType::A).expect("a valid name");
        message[2] |= 0x80;
        message[7] = 1;
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1]);
        let expected = Record {
            name: "a.example.".into(),
            ttl: 30,
            record_type: RecordType::A,
            data: "10.96.0.1".into(),
        };
        assert_eq!(decode(&message).expect("a valid answer"), vec![expected]);
    }

    #[test]
    fn a_pointer_loop_is_an_error() {
        let mut message = encode_query(7, "a.", RecordType::A).expect("a valid name");
        message[7] = 1;
        let at = u8::try_from(message.len()).expect("a short message");
        message.extend_from_slice(&[0xc0, at, 0, 1, 0, 1, 0, 0, 0, 30, 0, 0]);
        assert!(decode(&message).is_err());
    }
}
