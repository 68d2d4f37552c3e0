//! What was asked before the end.

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::*;

/// A name server that thinks for a while before it says `10.9.9.9`. Tells of each question that it has got.
async fn slow_upstream() -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    const THOUGHT: Duration = Duration::from_secs(1);
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("bound"));
    let own = socket.local_addr().expect("address");
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let query = dns::question::Query::parse(&buffer[..length]).expect("a query");
            let mut reply = query.head().to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 10, 9, 9, 9]);
            // The test may have seen enough of them.
            let _ = asked.send(());
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(THOUGHT).await;
                socket.send_to(&reply, from).await.expect("sent");
            });
        }
    });
    (own, questions)
}

#[test]
fn queries_under_way_are_answered_before_the_process_ends() {
    // What still runs in a runtime goes with it, as with a process.
    let (process, others) = (
        Runtime::new().expect("a runtime"),
        Runtime::new().expect("a runtime"),
    );
    let folder = Folder::new("under-way");
    let (upstream, mut asked) = others.block_on(slow_upstream());
    let forward = format!("forward . {upstream} {{\n prefer_udp\n }}");
    let text = format!(".:0 {{\n bind 127.0.0.1\n ready 127.0.0.1:0\n {forward}\n}}");
    let server = process.block_on(start_with(&folder, &text));
    let (udp, mut tcp) = others.block_on(async {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        udp.connect(server.dns).await.expect("connected");
        udp.send(&packet(1, "a.example")).await.expect("sent");
        let mut tcp = TcpStream::connect(server.dns).await.expect("connected");
        let question = packet(2, "b.example");
        tcp.write_u16(question.len() as u16).await.expect("written");
        tcp.write_all(&question).await.expect("written");
        for _ in 0..2 {
            let question = tokio::time::timeout(DEADLINE, asked.recv()).await;
            question.expect("in time").expect("a question");
        }
        (udp, tcp)
    });
    process.block_on(server.end());
    drop(process);
    others.block_on(async {
        let mut buffer = [0; 512];
        let received = tokio::time::timeout(DEADLINE, udp.recv(&mut buffer)).await;
        let length = received.expect("in time").expect("received");
        assert_eq!(super::text(&buffer[..length]), "NOERROR 10.9.9.9");
        let length = tcp.read_u16().await.expect("a length");
        let mut reply = vec![0; usize::from(length)];
        tcp.read_exact(&mut reply).await.expect("a reply");
        assert_eq!(super::text(&reply), "NOERROR 10.9.9.9");
    });
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
