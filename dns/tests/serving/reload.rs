//! The Corefile changes while clients ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::watch;

use super::*;

/// A name server that answers every question with this address, and counts.
async fn upstream(address: [u8; 4]) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let own = name_server(move |query| {
        count.fetch_add(1, Ordering::SeqCst);
        Some(answer(query, address))
    });
    (own.await, asked)
}

/// Asks for a name again and again on sockets of their own; gives how many answers came and how many did not.
struct Load {
    stop: Arc<AtomicBool>,
    askers: Vec<tokio::task::JoinHandle<(usize, usize)>>,
}

impl Load {
    async fn start(server: SocketAddr, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut askers = Vec::new();
        for asker in 0..8u16 {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
            socket.connect(server).await.expect("connected");
            let stop = Arc::clone(&stop);
            askers.push(tokio::spawn(async move {
                let (mut answered, mut lost) = (0, 0);
                let mut buffer = [0; 512];
                while !stop.load(Ordering::Relaxed) {
                    socket.send(&packet(asker, name)).await.expect("sent");
                    let reply = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
                    let is_good = reply.is_ok_and(|length| {
                        let length = length.expect("received");
                        text(&buffer[..length]).starts_with("NOERROR 10.0.0.")
                    });
                    answered += usize::from(is_good);
                    lost += usize::from(!is_good);
                }
                (answered, lost)
            }));
        }
        Self { stop, askers }
    }

    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = (0, 0);
        for asker in self.askers {
            let (answered, lost) = asker.await.expect("no panic");
            total = (total.0 + answered, total.1 + lost);
        }
        total
    }
}

/// Asks where perhaps nobody listens.
async fn try_ask_udp(server: SocketAddr, name: &str) -> Option<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(server).await.expect("connected");
    socket.send(&packet(7, name)).await.expect("sent");
    let mut buffer = [0; 512];
    let reply = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await;
    reply.ok()?.ok().map(|length| text(&buffer[..length]))
}

/// The sockets at an address of 127.0.0.1, by their inodes: others in their place would have others.
fn udp_sockets(address: SocketAddr) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/net/udp").expect("read");
    let own = format!("0100007F:{:04X}", address.port());
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut inodes: Vec<String> = rows
        .filter(|row| row.get(1) == Some(&own.as_str()))
        .filter_map(|row| Some((*row.get(9)?).to_owned()))
        .collect();
    inodes.sort();
    inodes
}

impl Running {
    /// Waits until a line of the metrics is there.
    async fn tells(&self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let page = self.get("/metrics").await;
            if page.lines().any(|found| found == line) {
                return;
            }
            assert!(Instant::now() < deadline, "{line} is not in {page}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_corefile_takes_over_while_clients_ask_and_a_broken_one_does_not() {
    let folder = Folder::new("reload");
    let (upstream, asked) = upstream([10, 9, 9, 9]).await;
    let corefile = format!(
        ".:0 {{\n bind 127.0.0.1\n reload 2s 1s\n prometheus 127.0.0.1:0\n import hosts.conf\n cache\n forward . {upstream}\n}}\n"
    );
    let hosts = |address: &str| {
        let text = format!("hosts /none/such {{\n {address} a.example\n fallthrough\n}}\n");
        std::fs::write(folder.file("hosts.conf"), text).expect("written");
    };
    hosts("10.0.0.1");
    let server = start_with(&folder, &corefile).await;
    server.answers("a.example", "NOERROR 10.0.0.1").await;
    server.answers("www.example", "NOERROR 10.9.9.9").await;
    let mut stream = TcpStream::connect(server.dns).await.expect("connected");
    let load = Load::start(server.dns, "a.example").await;
    let sockets = udp_sockets(server.dns);
    assert!(!sockets.is_empty());

    // An imported file changes: the answers do, the cache stays, connections stay.
    hosts("10.0.0.2");
    server.answers("a.example", "NOERROR 10.0.0.2").await;
    server.answers("www.example", "NOERROR 10.9.9.9").await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let question = packet(3, "a.example");
    stream.write_u16(question.len() as u16).await.expect("written");
    stream.write_all(&question).await.expect("written");
    let mut reply = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
    stream.read_exact(&mut reply).await.expect("a reply");
    assert_eq!(text(&reply), "NOERROR 10.0.0.2");

    // One that cannot be read is refused, told once, and the one before goes on.
    server.tells("coredns_reload_failed_total 0").await;
    std::fs::write(folder.file("hosts.conf"), "hosts {\n nonsense\n}\n").expect("written");
    server.tells("coredns_reload_failed_total 1").await;
    server.answers("a.example", "NOERROR 10.0.0.2").await;

    // So is one that wants an address that somebody else has.
    hosts("10.0.0.2");
    let taken = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let taken = taken
        .local_addr()
        .map(|address| (taken, address))
        .expect("address");
    let second = format!(
        "{corefile}.:{} {{\n bind 127.0.0.1\n whoami\n}}\n",
        taken.1.port()
    );
    std::fs::write(folder.file("Corefile"), &second).expect("written");
    server.tells("coredns_reload_failed_total 2").await;
    server.answers("a.example", "NOERROR 10.0.0.2").await;

    // Once it is free it is served beside the first, whose sockets are the same.
    drop(taken.0);
    let deadline = Instant::now() + DEADLINE;
    while try_ask_udp(taken.1, "b.example").await.as_deref() != Some("NOERROR") {
        assert!(Instant::now() < deadline, "the second address is not served");
    }

    let enabled = format!(
        "coredns_plugin_enabled{{server=\"dns://:{}\",zone=\".\",view=\"\",name=\"whoami\"}} 1",
        taken.1.port()
    );
    server.tells(&enabled).await;

    // And given back when nobody wants it any more.
    std::fs::write(folder.file("Corefile"), &corefile).expect("written");
    let deadline = Instant::now() + DEADLINE;
    while std::net::UdpSocket::bind(taken.1).is_err() {
        assert!(Instant::now() < deadline, "the address is still taken");
        tokio::task::yield_now().await;
    }
    server.answers("a.example", "NOERROR 10.0.0.2").await;
    assert_eq!(udp_sockets(server.dns), sockets);
    let (answered, lost) = load.end().await;
    assert!(answered > 1000 && lost == 0, "{answered} answered, {lost} lost");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_http_may_become_all_addresses_at_its_port_and_one_again() {
    let folder = Folder::new("http-widens");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a port").port();
    let corefile = |address: &str| {
        format!(".:0 {{\n bind 127.0.0.1\n reload 2s 1s\n prometheus {address}:{port}\n whoami\n}}\n")
    };
    let server = start_with(&folder, &corefile("localhost")).await;
    for (address, is_everywhere) in [("", true), ("localhost", false)] {
        std::fs::write(folder.file("Corefile"), corefile(address)).expect("written");
        let deadline = Instant::now() + DEADLINE;
        // Pages, not bare connections: those that the client closes first keep ports from other tests for a minute.
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], port));
        while page(elsewhere, "/metrics").await.is_some() != is_everywhere {
            assert!(Instant::now() < deadline, "{address:?} is not taken");
            tokio::task::yield_now().await;
        }
        // Who was on the way to the socket that was given back is sent away, and asks again.
        while page(server.http, "/metrics")
            .await
            .is_none_or(|page| !page.contains("\ncoredns_reload_failed_total 0\n"))
        {
            assert!(Instant::now() < deadline, "{address:?} is not served");
        }
    }
    server.end().await;
}

/// What was heard of a server over a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    lines: usize,
    has_ended: bool,
}

/// Hears a connection to its end.
fn hear(stream: UnixStream) -> watch::Receiver<Heard> {
    let (heard, receiver) = watch::channel(Heard::default());
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(_)) = lines.next_line().await {
            heard.send_modify(|heard| heard.lines += 1);
        }
        heard.send_modify(|heard| heard.has_ended = true);
        // Nobody is told of an end by the end of the channel.
        heard.closed().await;
    });
    receiver
}

async fn until(heard: &mut watch::Receiver<Heard>, is_it: impl FnMut(&Heard) -> bool) -> Heard {
    let waited = tokio::time::timeout(DEADLINE, heard.wait_for(is_it)).await;
    *waited.expect("in time").expect("it is heard")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_is_replaced_goes_on_until_its_successor_has_everything() {
    const HEARS: &str = r#"{"begin":{"version":1,"hears":true}}"#;
    let folder = Folder::new("hand-over");
    let corefile = |option: &str, address: &str| {
        let feed = folder.file("dns.sock").display().to_string();
        let state = folder.file("state").display().to_string();
        format!(
            ".:0 {{\n bind 127.0.0.1\n reload 2s 1s\n ready 127.0.0.1:0\n hosts /none/such {{\n {address} a.example\n \
             fallthrough\n }}\n kubernetes cluster.local {{\n feed {feed}\n state {state}\n {option}\n }}\n}}\n"
        )
    };
    let agent = Agent::listen(&folder.file("dns.sock"));
    let web = service("web", "10.96.0.7");
    let everything = [HEARS, &web, SYNCED[0], SYNCED[1], SYNCED[2], END];
    let server = start_with(&folder, &corefile("", "10.0.0.1")).await;
    let mut first = hear(agent.send(&everything).await);
    server
        .answers("web.default.svc.cluster.local", "NOERROR 10.96.0.7")
        .await;

    std::fs::write(
        folder.file("Corefile"),
        corefile("endpoint_pod_names", "10.0.0.2"),
    )
    .expect("written");
    let mut second = agent.send(&[]).await;
    server.answers("a.example", "NOERROR 10.0.0.2").await;
    let before = first.borrow().lines;
    let heard = until(&mut first, |heard| heard.has_ended || heard.lines >= before + 2).await;
    assert!(
        !heard.has_ended,
        "nobody says any more that it answers: {heard:?}"
    );

    write(&mut second, &everything).await;
    let mut second = hear(second);
    until(&mut second, |heard| heard.lines > 0).await;
    until(&mut first, |heard| heard.has_ended).await;
    assert!(!second.borrow().has_ended);
    server
        .answers("web.default.svc.cluster.local", "NOERROR 10.96.0.7")
        .await;
    server.end().await;
}
