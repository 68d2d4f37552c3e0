//! The server over real sockets of the loopback, fed by a real unix socket.

mod end;
mod limits;
#[path = "../network/mod.rs"]
mod network;
mod reload;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use network::{answer, name_server, page};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cwt-dns-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over in a temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server under test, and how to end it.
struct Running {
    dns: SocketAddr,
    http: SocketAddr,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<Result<(), dns::Error>>,
}

async fn start(folder: &Folder) -> Running {
    let text = format!(
        ".:0 {{\n bind 127.0.0.1\n ready 127.0.0.1:0\n kubernetes cluster.local {{\n feed {}\n state {}\n ttl 30\n }}\n}}",
        folder.file("dns.sock").display(),
        folder.file("state").display()
    );
    start_with(folder, &text).await
}

/// Serves a Corefile that is written into the folder first.
async fn start_with(folder: &Folder, text: &str) -> Running {
    let corefile = folder.file("Corefile");
    std::fs::write(&corefile, text).expect("written");
    let config = dns::Config::parse(&corefile).expect("a Corefile");
    let server = dns::server::Bound::new(&config).await.expect("bound");
    let (dns, http) = (server.addresses()[0], server.http_addresses()[0]);
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(server.run(shutdown.clone()));
    Running {
        dns,
        http,
        shutdown,
        ended,
    }
}

impl Running {
    async fn end(self) {
        self.shutdown.cancel();
        self.ended.await.expect("no panic").expect("a good end");
    }

    /// Asks by UDP until the answer is `expected`.
    #[track_caller]
    fn answers(&self, name: &str, expected: &'static str) -> impl Future<Output = ()> {
        let (server, name) = (self.dns, name.to_owned());
        async move {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let found = ask_udp(server, &name).await;
                if found == expected {
                    return;
                }
                assert!(
                    Instant::now() < deadline,
                    "{name}: expected {expected}, found {found}"
                );
                tokio::task::yield_now().await;
            }
        }
    }

    async fn get(&self, path: &str) -> String {
        page(self.http, path).await.expect("a page")
    }
}

fn packet(id: u16, name: &str) -> Vec<u8> {
    dns::question::query_packet(id, dns::name::Name::parse(name).expect("name").wire(), 1)
}

/// The code and the addresses of an answer.
fn text(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).expect("a message");
    let code = match message.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        other => panic!("{other}"),
    };
    let answers = message.answers.iter().map(|record| format!(" {}", record.data));
    std::iter::once(code.to_owned()).chain(answers).collect()
}

async fn ask_udp(server: SocketAddr, name: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(server).await.expect("connected");
    socket.send(&packet(7, name)).await.expect("sent");
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .expect("in time")
        .expect("received");
    text(&buffer[..length])
}

/// The agent's side of a feed.
struct Agent(UnixListener);

impl Agent {
    fn listen(path: &Path) -> Self {
        // A socket of an agent that died is in the way of the next one.
        let _ = std::fs::remove_file(path);
        Self(UnixListener::bind(path).expect("bound"))
    }

    /// Accepts the DNS process and sends lines.
    async fn send(&self, lines: &[&str]) -> UnixStream {
        let accepted = tokio::time::timeout(DEADLINE, self.0.accept())
            .await
            .expect("in time");
        let (mut stream, _) = accepted.expect("accepted");
        write(&mut stream, lines).await;
        stream
    }
}

async fn write(stream: &mut UnixStream, lines: &[&str]) {
    for line in lines {
        stream
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("written");
    }
}

fn service(name: &str, address: &str) -> String {
    format!(
        r#"{{"change":{{"service":{{"name":{{"namespace":"default","name":"{name}"}},"kind":{{"ClusterIp":{{"addresses":["{address}"]}}}},"ports":[{{"name":"http","protocol":"TCP","port":80,"node_port":null,"app_protocol":null}}],"external_addresses":[],"load_balancer":[],"source_ranges":[],"external_policy":"Cluster","internal_policy":"Cluster","health_check_node_port":null,"affinity":"None","traffic_distribution":null,"publish_not_ready":false,"proxy_labels":{{}}}}}}}}"#
    )
}

const BEGIN: &str = r#"{"begin":{"version":1}}"#;
const END: &str = r#""end""#;
const SYNCED: [&str; 3] = [
    r#"{"change":{"synced":"Service"}}"#,
    r#"{"change":{"synced":"EndpointSlice"}}"#,
    r#"{"change":{"synced":"Namespace"}}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_is_followed_and_its_last_snapshot_outlives_agent_and_server() {
    const WEB: &str = "web.default.svc.cluster.local";
    const NEW: &str = "new.default.svc.cluster.local";
    const NONE: &str = "none.default.svc.cluster.local";
    let folder = Folder::new("feed");
    let server = start(&folder).await;
    // Before the agent is there nothing is known, and nothing is denied.
    server.answers(WEB, "SERVFAIL").await;
    assert!(server.get("/ready").await.starts_with("HTTP/1.1 503"));

    let agent = Agent::listen(&folder.file("dns.sock"));
    let mut lines = vec![BEGIN];
    let web = service("web", "10.96.0.7");
    lines.extend([web.as_str(), SYNCED[0], SYNCED[1], SYNCED[2], END]);
    let mut feed = agent.send(&lines).await;
    server.answers(WEB, "NOERROR 10.96.0.7").await;
    server.answers(NONE, "NXDOMAIN").await;
    assert!(server.get("/ready").await.starts_with("HTTP/1.1 200"));
    write(&mut feed, &[&service("new", "10.96.0.8")]).await;
    server.answers(NEW, "NOERROR 10.96.0.8").await;

    // The agent dies in the middle of its next snapshot, then says that it is done before it has listed everything:
    // what was known stays.
    drop(feed);
    drop(agent.send(&[BEGIN, &service("half", "10.96.0.9")]).await);
    let feed = agent.send(&[BEGIN, &service("half", "10.96.0.9"), END]).await;
    server.answers("half.default.svc.cluster.local", "NXDOMAIN").await;
    server.answers(NEW, "NOERROR 10.96.0.8").await;
    drop(feed);

    // The server starts anew without the agent.
    server.end().await;
    drop(agent);
    let server = start(&folder).await;
    server.answers(NEW, "NOERROR 10.96.0.8").await;
    server.answers(NONE, "NXDOMAIN").await;

    // The agent comes back, and one Service is gone.
    let agent = Agent::listen(&folder.file("dns.sock"));
    let feed = agent.send(&lines).await;
    server.answers(NEW, "NXDOMAIN").await;
    server.answers(WEB, "NOERROR 10.96.0.7").await;
    drop(feed);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_on_one_connection_are_all_answered() {
    let folder = Folder::new("tcp");
    let server = start(&folder).await;
    let mut stream = TcpStream::connect(server.dns).await.expect("connected");
    let mut sent = Vec::new();
    for id in 0..200u16 {
        let packet = packet(id, "dns-version.cluster.local");
        sent.extend((packet.len() as u16).to_be_bytes());
        sent.extend(packet);
    }
    stream.write_all(&sent).await.expect("written");
    let mut ids = Vec::new();
    for _ in 0..200 {
        let mut reply = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut reply).await.expect("a reply");
        assert_eq!(text(&reply), "NOERROR");
        ids.push(u16::from_be_bytes([reply[0], reply[1]]));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_have_come_in_are_answered_before_the_server_ends() {
    let folder = Folder::new("end");
    let server = start(&folder).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(server.dns).await.expect("connected");
    // As many as fit into the client's buffer, which nobody reads meanwhile.
    for id in 0..100 {
        let packet = packet(id, "dns-version.cluster.local");
        socket.send(&packet).await.expect("sent");
    }
    server.end().await;
    let mut buffer = [0; 512];
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await;
        let length = received.expect("in time").expect("received");
        assert_eq!(text(&buffer[..length]), "NOERROR");
        ids.insert(u16::from_be_bytes([buffer[0], buffer[1]]));
    }
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let taken = taken
        .local_addr()
        .map(|address| (taken, address))
        .expect("address");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let listening = listener.local_addr().expect("address");
    let in_use = "another program does; stop it, or choose another address or port";
    for (address, expected) in [
        (taken.1, format!("cannot listen at {} (udp): {in_use}", taken.1)),
        (listening, format!("cannot listen at {listening} (tcp): {in_use}")),
        (
            SocketAddr::from(([192, 0, 2, 99], 1053)),
            "cannot listen at 192.0.2.99:1053 (udp): no interface has this address".to_owned(),
        ),
    ] {
        let text = format!(".:{} {{\n bind {}\n whoami\n}}", address.port(), address.ip());
        let corefile = dns::corefile::Corefile::parse("Corefile", &text, &|_| None).expect("a Corefile");
        let bound = dns::server::Bound::new(&dns::Config(corefile)).await;
        let refused = bound.err().map(|error| error.to_string());
        assert_eq!(refused, Some(expected));
    }
}
