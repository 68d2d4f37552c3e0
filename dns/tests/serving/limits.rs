//! What one client can take from the others, and from the server's end.

use tokio::net::TcpSocket;

use super::*;

/// Of the 1024 connections of an address.
const SHARE: usize = 256;
/// Less than the time that answers get at the end.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn connect_from(client: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let own = format!("{client}:0").parse().expect("address");
    socket.bind(own).expect("bound");
    socket.connect(server).await.expect("connected")
}

/// Asks on a connection; empty where that is closed.
async fn ask(stream: &mut TcpStream, name: &str) -> String {
    let question = packet(7, name);
    let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    let asked = async {
        stream.write_all(&framed).await?;
        let mut reply = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(text(&reply))
    };
    let answered = tokio::time::timeout(DEADLINE, asked).await;
    answered.expect("in time").unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_take_all_connections() {
    const NAME: &str = "dns-version.cluster.local";
    let folder = Folder::new("share");
    let server = start(&folder).await;
    let mut own = Vec::new();
    for _ in 0..SHARE {
        own.push(connect_from("127.0.0.2", server.dns).await);
    }
    // The last one is served only when all of them are: they are accepted in their order.
    assert_eq!(ask(own.last_mut().expect("many"), NAME).await, "NOERROR");
    let mut beyond = connect_from("127.0.0.2", server.dns).await;
    assert_eq!(ask(&mut beyond, NAME).await, "");
    let mut other = connect_from("127.0.0.3", server.dns).await;
    assert_eq!(ask(&mut other, NAME).await, "NOERROR");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_nothing_do_not_hold_the_end_up() {
    let folder = Folder::new("held");
    let server = start(&folder).await;
    let mut http = TcpStream::connect(server.http).await.expect("connected");
    http.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("written");
    let mut page = [0; 12];
    http.read_exact(&mut page).await.expect("a page");
    assert_eq!(&page, b"HTTP/1.1 503");
    let mut begun = TcpStream::connect(server.http).await.expect("connected");
    begun
        .write_all(b"GET /ready HTTP/1.1\r\n")
        .await
        .expect("written");
    let dns = TcpStream::connect(server.dns).await.expect("connected");
    let ended = tokio::time::timeout(AT_ONCE, server.end()).await;
    ended.expect("in time");
    drop((http, begun, dns));
}

#[tokio::test]
async fn a_client_that_goes_on_asking_does_not_hold_the_end_up() {
    let folder = Folder::new("asking");
    let server = start(&folder).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    client.connect(server.dns).await.expect("loopback");
    let asking = async {
        // Faster than a thread waits for a query.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            pace.tick().await;
            let _ = client.send(&packet(1, "a.test")).await; // in the end nobody is there
        }
    };
    let ended = tokio::time::timeout(AT_ONCE, server.end());
    tokio::select! {
        ended = ended => ended.expect("in time"),
        () = asking => {}
    }
}
