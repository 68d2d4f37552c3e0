//! One client floods a slow upstream while this process may have few files open, which is why this test is alone in it.

mod network;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::feed::Watched;
use dns::kubernetes::ApiServer;
use dns::name::Name;
use dns::question::{Query, query_packet, rcode, rtype};
use network::{answer, name_server, page};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);
/// The soft limit, which two sockets for each question of the flood are beyond, and the hard one.
const FILES: [u64; 2] = [128, 800];
/// A quarter of the hard limit may be under way, and one client may have half of that.
const SHARE: usize = 101;

const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A name server that answers for names with `good` in front, and for others never.
async fn upstream() -> SocketAddr {
    name_server(|packet| {
        let query = Query::parse(packet).expect("a query");
        let is_good = query.label_count() > 0 && query.label(0).starts_with(b"good");
        is_good.then(|| answer(packet, [1, 2, 3, 4]))
    })
    .await
}

/// Takes a port for DNS and one for HTTP and leaves them: nobody is given them by chance, since they are below
/// `net.ipv4.ip_local_port_range`.
fn free_ports() -> [u16; 2] {
    let first = 21_000 + u16::try_from(std::process::id() % 5_000).expect("small");
    let is_free = |port: &u16| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok()
    };
    let mut free = (first..first + 1_000).filter(is_free);
    [(); 2].map(|()| free.next().expect("a free port"))
}

async fn client(address: Ipv4Addr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).await.expect("bound");
    socket.connect(server).await.expect("connected");
    socket
}

fn question(name: &str) -> Vec<u8> {
    query_packet(7, Name::parse(name).expect("name").wire(), rtype::A)
}

/// Asks until there is an answer: datagrams may be lost in the server's full socket. Gives its code.
async fn ask(client: &UdpSocket, name: &str) -> u16 {
    let deadline = Instant::now() + DEADLINE;
    let mut buffer = [0; 512];
    loop {
        assert!(Instant::now() < deadline, "{name} is not answered");
        client.send(&question(name)).await.expect("sent");
        if let Ok(length) = tokio::time::timeout(Duration::from_secs(1), client.recv(&mut buffer)).await {
            length.expect("received");
            return u16::from(buffer[3] & 15);
        }
    }
}

async fn metric(http: SocketAddr, name: &str) -> usize {
    let page = tokio::time::timeout(DEADLINE, page(http, "/metrics")).await;
    let page = page.expect("in time").expect("a page");
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.expect("it is told").trim().parse().expect("a number")
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("read").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_floods_takes_neither_files_nor_upstreams_from_the_others() {
    let [soft, hard] = FILES.map(Some);
    let limit = Rlimit {
        current: soft,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, limit).expect("fewer files");
    let [dns, http] = free_ports().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let corefile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("flood-{}", std::process::id()));
    let text = format!(
        ".:{} {{\n bind 127.0.0.1\n prometheus {http}\n forward . {}\n}}",
        dns.port(),
        upstream().await
    );
    std::fs::write(&corefile, text).expect("written");
    let config = dns::Config::parse(&corefile).expect("a Corefile");
    std::fs::remove_file(&corefile).expect("removed");
    let no_api = |_: &ApiServer| -> Watched { panic!("no API server is named") };
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(dns::run(config, Arc::new(no_api), shutdown.clone()));

    let other = client(OTHER, dns).await;
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(dns).await.is_err() {
        assert!(Instant::now() < deadline, "the server does not listen");
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&other, "good.example").await, rcode::NOERROR);

    let flooder = client(FLOODER, dns).await;
    let stop = CancellationToken::new();
    let flood = tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        for number in 0.. {
            // The answers, and the errors of a full buffer, are nobody's concern.
            let _ = flooder.send(&question(&format!("bad{number}.example"))).await;
            tokio::task::yield_now().await;
        }
    }));
    let rejects = "coredns_forward_max_concurrent_rejects_total";
    while metric(http, rejects).await < 10 * SHARE {
        assert!(Instant::now() < deadline, "nothing is refused");
    }
    for number in 0..50 {
        let name = format!("good{number}.example");
        assert_eq!(ask(&other, &name).await, rcode::NOERROR, "{name}");
    }
    // Each question of the flood has a second socket after half a second.
    assert!(open_files() > SHARE, "{} files are open", open_files());
    stop.cancel();
    flood.await.expect("no panic");
    shutdown.cancel();
    served.await.expect("no panic").expect("a good end");
}
