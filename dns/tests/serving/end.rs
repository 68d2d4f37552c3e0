//! What was asked before the end.

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::*;

/// A name server that says `10.9.9.9` when it is let. Tells of each question that it has got.
async fn slow_upstream(let_go: CancellationToken) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("bound"));
    let own = socket.local_addr().expect("address");
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let reply = answer(&buffer[..length], [10, 9, 9, 9]);
            // The test may have seen enough of them.
            let _ = asked.send(());
            let (socket, let_go) = (Arc::clone(&socket), let_go.clone());
            tokio::spawn(async move {
                let_go.cancelled().await;
                socket.send_to(&reply, from).await.expect("sent");
            });
        }
    });
    (own, questions)
}

async fn ask_tcp(server: SocketAddr, name: &str) -> String {
    let mut stream = TcpStream::connect(server).await.expect("connected");
    let question = packet(2, name);
    stream.write_u16(question.len() as u16).await.expect("written");
    stream.write_all(&question).await.expect("written");
    let mut reply = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
    stream.read_exact(&mut reply).await.expect("a reply");
    text(&reply)
}

/// Asks what an upstream has to be asked for, and ends the process meanwhile.
fn check(name: &'static str, ask: impl AsyncFnOnce(SocketAddr, &str) -> String) {
    let folder = Folder::new(name);
    // What still runs in a runtime goes with it, as with a process.
    let (process, others) = (
        Runtime::new().expect("a runtime"),
        Runtime::new().expect("a runtime"),
    );
    let let_go = CancellationToken::new();
    let (upstream, mut asked) = others.block_on(slow_upstream(let_go.clone()));
    let forward = format!("forward . {upstream} {{\n prefer_udp\n }}");
    let text = format!(".:0 {{\n bind 127.0.0.1\n ready 127.0.0.1:0\n {forward}\n}}");
    let server = process.block_on(start_with(&folder, &text));
    let dns = server.dns;
    let end = move || {
        asked.blocking_recv().expect("a question");
        server.shutdown.cancel();
        let is_ready = |page: Option<String>| page.is_some_and(|page| page.starts_with("HTTP/1.1 200"));
        process.block_on(async {
            let deadline = Instant::now() + DEADLINE;
            while is_ready(page(server.http, "/ready").await) {
                assert!(Instant::now() < deadline, "it is still ready");
            }
            let_go.cancel();
            server.end().await;
        });
    };
    let ended = std::thread::spawn(end);
    assert_eq!(others.block_on(ask(dns, "a.example")), "NOERROR 10.9.9.9");
    ended.join().expect("no panic");
}

#[test]
fn a_query_under_way_is_answered_by_udp_before_the_process_ends() {
    check("under-way-udp", ask_udp);
}

#[test]
fn a_query_under_way_is_answered_by_tcp_before_the_process_ends() {
    check("under-way-tcp", ask_tcp);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_its_lameduck_time_answers_and_is_not_ready() {
    let folder = Folder::new("lameduck");
    let pages = "ready 127.0.0.1:0\n prometheus 127.0.0.1:0\n health 127.0.0.1:0 {\n lameduck 2s\n }";
    let text = format!(".:0 {{\n bind 127.0.0.1\n {pages}\n whoami\n}}");
    let server = start_with(&folder, &text).await;
    assert!(server.get("/ready").await.starts_with("HTTP/1.1 200"));
    // It sees its own health meanwhile.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = server.get("/metrics").await;
        let count = |name| page.lines().find_map(|line| line.strip_prefix(name));
        assert_eq!(count("coredns_health_request_failures_total "), Some("0"));
        if count("coredns_health_request_duration_seconds_count ") == Some("1") {
            break;
        }
        assert!(Instant::now() < deadline, "{page}");
        tokio::task::yield_now().await;
    }
    server.shutdown.cancel();
    while !server.get("/ready").await.starts_with("HTTP/1.1 503") {
        assert!(Instant::now() < deadline, "it is still ready");
    }
    assert!(server.get("/health").await.starts_with("HTTP/1.1 200"));
    assert_eq!(ask_udp(server.dns, "a.example").await, "NOERROR");
    server.end().await;
}
