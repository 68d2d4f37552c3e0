//! The server: HTTP that tells who answered whom, TCP and UDP echo, an end without a lost request.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::ending_signals;
use crate::http::{self, Request};

/// How long an idle connection may sleep before it looks whether the server ends.
const IDLE_CHECK: Duration = Duration::from_millis(100);

/// What all connections share.
struct Server {
    hostname: String,
    ready: AtomicBool,
    draining: AtomicBool,
    connections: AtomicUsize,
}

/// `testserver serve`.
pub fn run(args: &Args) -> Result<bool, String> {
    let ends = ending_signals();
    ends.thread_block()
        .map_err(|error| format!("block signals: {error}"))?;
    let server = Arc::new(Server {
        hostname: hostname(),
        ready: AtomicBool::new(true),
        draining: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
    });
    let grace = Duration::from_secs(args.value("grace", 25)?);
    let mut listeners = Vec::new();
    let http = args
        .text("http")
        .unwrap_or(if args.flag("tcp") || args.flag("udp") {
            ""
        } else {
            ":8080"
        });
    for (address, handle) in [
        (http, serve_http as Handler),
        (args.text("tcp").unwrap_or(""), echo_tcp),
    ] {
        if !address.is_empty() {
            listeners.push(listen(address, &server, handle)?);
        }
    }
    if let Some(address) = args.text("udp") {
        echo_udp(address)?;
    }

    let signal = ends
        .wait()
        .map_err(|error| format!("wait for a signal: {error}"))?;
    println!(
        "{signal}: finishing {} connections",
        server.connections.load(Ordering::SeqCst)
    );
    drain(&server, listeners, Instant::now() + grace);
    Ok(true)
}

type Handler = fn(&Server, TcpStream) -> io::Result<()>;

struct Listener {
    address: SocketAddr,
    accepting: thread::JoinHandle<()>,
}

/// Opens the listener, accepts in a thread, each connection in a thread of its own.
fn listen(address: &str, server: &Arc<Server>, handle: Handler) -> Result<Listener, String> {
    let listener = bind(address, TcpListener::bind)?;
    let local = listener.local_addr().map_err(|error| error.to_string())?;
    println!("listening on tcp {local}");
    let server = Arc::clone(server);
    let accepting = thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => spawn_connection(&server, stream, handle),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    eprintln!("accept: {error}");
                    thread::sleep(IDLE_CHECK);
                }
            }
            // What waits in the backlog is still served: closing the listener would reset it.
            if server.draining.load(Ordering::SeqCst) && listener.set_nonblocking(true).is_err() {
                return;
            }
        }
    });
    Ok(Listener {
        address: local,
        accepting,
    })
}

fn spawn_connection(server: &Arc<Server>, stream: TcpStream, handle: Handler) {
    let server = Arc::clone(server);
    server.connections.fetch_add(1, Ordering::SeqCst);
    thread::spawn(move || {
        // A client that resets or times out is its own affair.
        let _ = stream.set_nonblocking(false);
        let _ = handle(&server, stream);
        server.connections.fetch_sub(1, Ordering::SeqCst);
    });
}

/// Ends all listeners, then waits for the open connections.
fn drain(server: &Server, listeners: Vec<Listener>, deadline: Instant) {
    server.draining.store(true, Ordering::SeqCst);
    for listener in listeners {
        // Wakes the thread out of accept(2); it finds `draining` set and leaves.
        let mut wake = listener.address;
        if wake.ip().is_unspecified() {
            wake.set_ip(Ipv6Addr::LOCALHOST.to_canonical());
            if wake.is_ipv6() && TcpStream::connect(wake).is_err() {
                wake.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
        }
        let _ = TcpStream::connect(wake);
        let _ = listener.accepting.join();
    }
    while server.connections.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

fn serve_http(server: &Server, stream: TcpStream) -> io::Result<()> {
    let (client, local) = (stream.peer_addr()?, stream.local_addr()?);
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while wait_for_bytes(server, &reader)? {
        let Some(request) = http::read_request(&mut reader)? else {
            return Ok(());
        };
        let (status, body) = answer(server, &request, client, local);
        let keep_alive = request.keep_alive && !server.draining.load(Ordering::SeqCst);
        http::write_response(&mut writer, status, &body, keep_alive)?;
        if !keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits until the next request begins; false when the server ends first.
fn wait_for_bytes(server: &Server, reader: &BufReader<TcpStream>) -> io::Result<bool> {
    if !reader.buffer().is_empty() {
        return Ok(true);
    }
    let stream = reader.get_ref();
    stream.set_read_timeout(Some(IDLE_CHECK))?;
    loop {
        match stream.peek(&mut [0; 1]) {
            Ok(_) => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if server.draining.load(Ordering::SeqCst) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(true)
}

fn answer(server: &Server, request: &Request, client: SocketAddr, local: SocketAddr) -> (u16, Vec<u8>) {
    match (request.method.as_str(), request.path.as_str()) {
        (_, "/") => {
            let (client, local) = (canonical(client), canonical(local));
            let text = format!(
                "hostname: {}\nclient: {client}\nserver: {local}\n",
                server.hostname
            );
            (200, text.into_bytes())
        }
        (_, "/hostname") => (200, server.hostname.clone().into_bytes()),
        (_, "/healthz") => (200, b"ok\n".to_vec()),
        ("POST" | "PUT", "/readyz") => {
            let ready = parameter(&request.query, "value") != Some("false");
            server.ready.store(ready, Ordering::SeqCst);
            (200, format!("ready: {ready}\n").into_bytes())
        }
        (_, "/readyz") if server.ready.load(Ordering::SeqCst) => (200, b"ok\n".to_vec()),
        (_, "/readyz") => (503, b"not ready\n".to_vec()),
        (_, "/echo") => match parameter(&request.query, "msg") {
            Some(message) => (200, message.as_bytes().to_vec()),
            None => (200, request.body.clone()),
        },
        (_, "/delay") => {
            let millis = parameter(&request.query, "ms")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0);
            thread::sleep(Duration::from_millis(millis));
            (200, format!("hostname: {}\n", server.hostname).into_bytes())
        }
        _ => (404, b"not found\n".to_vec()),
    }
}

fn echo_tcp(server: &Server, stream: TcpStream) -> io::Result<()> {
    let mut stream = stream;
    stream.set_read_timeout(Some(IDLE_CHECK))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if server.draining.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Answers each datagram with itself; a datagram of the word `hostname` gets the host's name instead.
fn echo_udp(address: &str) -> Result<(), String> {
    let socket = bind(address, UdpSocket::bind)?;
    println!(
        "listening on udp {}",
        socket.local_addr().map_err(|error| error.to_string())?
    );
    thread::spawn(move || {
        let name = hostname();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, client)) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    let reply = if datagram == b"hostname" {
                        name.as_bytes()
                    } else {
                        datagram
                    };
                    let _ = socket.send_to(reply, client);
                }
                Err(error) => eprintln!("udp receive: {error}"),
            }
        }
    });
    Ok(())
}

/// Binds `:PORT` to all addresses of both families (or of IPv4 alone where the kernel has no IPv6), else as written.
fn bind<T>(address: &str, bind: fn(SocketAddr) -> io::Result<T>) -> Result<T, String> {
    let candidates = match address.strip_prefix(':') {
        Some(port) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
        None => vec![address.to_owned()],
    };
    let mut last = String::new();
    for candidate in candidates {
        let parsed = candidate
            .parse()
            .map_err(|_| format!("{address:?} is not ADDRESS:PORT or :PORT"))?;
        match bind(parsed) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = format!("listen on {candidate}: {error}"),
        }
    }
    Err(last)
}

/// An IPv4 client of a dual-stack socket is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}
