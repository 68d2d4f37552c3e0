//! Serving itself: what a stream tells its client, and what the server does not wait for.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::directory::Directory;
use tests::probe::queries;
use tests::process::{Place, Process, command};
use tests::{http, wait};

use crate::message::{ask_tcp, ask_udp, header, opt, query, wire};
use crate::plain::{Plain, ask, memory, metric};
use crate::subject::{DEADLINE, Subject, free_address};

const ANSWER: Duration = Duration::from_secs(5);
const NAME: &str = "svc1.testns.svc.cluster.local.";

/// A question with these options in its OPT record.
fn with_options(options: &[u8]) -> Vec<u8> {
    let question = [&wire(NAME)[..], &[0, 1, 0, 1]].concat();
    [
        header(7, 0x0100, [1, 0, 0, 1]),
        question,
        opt(1232, 0, 0, options),
    ]
    .concat()
}

/// How long the connection may be idle by the last option of the OPT record, in tenths of a second.
fn keepalive(answer: &[u8]) -> Option<u8> {
    match answer {
        [.., 0, 6, 0, 11, 0, 2, 0, tenths] => Some(*tenths),
        _ => None,
    }
}

#[test]
fn a_client_that_asks_is_told_how_long_its_connection_may_be_idle() {
    let subject = Subject::start("");
    if !subject.is_ours {
        tests::skipped("keepalive", "CoreDNS knows no edns-tcp-keepalive");
        return;
    }
    let asking = with_options(&[0, 11, 0, 0]);
    let told = keepalive(&ask_tcp(subject.address, &asking));
    assert!(told.is_some_and(|tenths| (1..=100).contains(&tenths)), "{told:?}");
    let rows = [
        (
            "RFC 7828 §3.2.2: nobody is told who did not ask",
            with_options(&[]),
            true,
        ),
        (
            "§3.2.1: a question has no timeout",
            with_options(&[0, 11, 0, 2, 0, 9]),
            true,
        ),
        ("§3.2.2: nothing is idle by UDP", asking, false),
    ];
    for (rule, packet, by_tcp) in rows {
        let answer = match by_tcp {
            true => ask_tcp(subject.address, &packet),
            false => ask_udp(subject.address, &packet, ANSWER).expect("an answer"),
        };
        assert_eq!((answer[3] & 15, keepalive(&answer)), (0, None), "{rule}");
    }
}

#[test]
fn a_log_that_nobody_reads_stops_no_answer_and_no_end() {
    let directory = Directory::new("unread");
    let (address, pages) = (free_address(), free_address());
    let corefile = format!(
        ".:{} {{\n bind 127.0.0.1\n log\n prometheus {pages}\n whoami\n}}\n",
        address.port()
    );
    let corefile = directory.write("Corefile", &corefile);
    // As long as it is open for reading the server may write to it, as much as it takes.
    let log = directory.path().join("log");
    mkfifo(&log, Mode::S_IRWXU).expect("a pipe");
    let unread = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&log)
        .expect("open");
    let program = tests::cluster::programs().join("causeway");
    let script = format!(
        "exec {} dns --conf {} 2>{}",
        program.display(),
        corefile.display(),
        log.display()
    );
    let mut start = command(&Place::default(), "/bin/sh");
    start.args(["-c", &script]);
    let mut process = Process::spawn(&Place::default(), &mut start).expect("it starts");
    wait::until("the server listens", DEADLINE, || {
        TcpStream::connect(address).map(drop)
    });
    // More than the pipe takes, and the queue.
    let packet = query("www.example. A", None);
    wait::until("lines are dropped, and counted", 3 * DEADLINE, || {
        for _ in 0..1000 {
            let answer = ask_udp(address, &packet, ANSWER);
            assert!(answer.is_some(), "it waits for its log");
        }
        let page = http::get(pages, "/metrics").expect("a page");
        let name = "causeway_dns_log_lines_dropped_total ";
        let dropped = page.lines().find_map(|line| line.strip_prefix(name));
        match dropped {
            Some("0") | None => Err(page.len()),
            Some(_) => Ok(()),
        }
    });
    process.terminate().expect("it runs");
    assert!(process.await_end(DEADLINE).success());
    drop(unread);
}

#[test]
fn blocks_without_bind_and_with_all_addresses_share_them_and_one_address_has_its_own() {
    let here = free_address();
    let port = here.port();
    let block = |zone: &str, bind: &str| {
        format!("{zone}:{port} {{\n {bind}\n hosts /none/such {{\n 192.0.2.1 {zone}\n }}\n}}\n")
    };
    let corefile = [
        block("a.test", ""),
        block("b.test", "bind 0.0.0.0"),
        block("c.test", "bind 127.0.0.1"),
    ];
    let _server = Plain::start(&corefile.concat());
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], port));
    let by_v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let has_v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let (answered, refused) = ("192.0.2.1", "code 5, [0, 0] answers");
    for (server, expected) in [
        (elsewhere, [answered, answered, refused]),
        (here, [refused, refused, answered]),
        (by_v6, [answered, refused, refused]),
    ] {
        if server.is_ipv6() && !has_v6 {
            tests::skipped("blocks without bind at IPv6", "there is no IPv6");
            continue;
        }
        let found = ["a.test", "b.test", "c.test"].map(|name| ask(server, name));
        assert_eq!(found, expected, "{server}");
    }
}

#[test]
fn queries_that_come_to_a_cache_and_need_no_upstream_are_counted_there() {
    for (plugin, expected) in [
        ("whoami", "code 0, [0, 0] answers"),
        ("", "code 2, [0, 0] answers"),
    ] {
        let (here, pages) = (free_address(), free_address());
        let port = here.port();
        let text = format!(".:{port} {{\n bind 127.0.0.1\n prometheus {pages}\n cache\n {plugin}\n}}\n");
        let _server = Plain::start(&text);
        let count = |name: &str| {
            let series =
                format!("coredns_cache_{name}_total{{server=\"dns://:{port}\",zones=\".\",view=\"\"}}");
            metric(pages, &series)
        };
        for asked in 1..=3 {
            assert_eq!(ask(here, "a.test"), expected, "{plugin:?}");
            assert_eq!((count("requests"), count("misses")), (asked, asked), "{plugin:?}");
        }
    }
}

/// Of the connections that an address has.
const CONNECTIONS: usize = 1020;

#[test]
fn a_query_takes_no_memory_before_it_comes() {
    const MOST_KIB: u64 = 32 << 10;
    let here = free_address();
    let server = Plain::start(&format!(".:{} {{\n bind 127.0.0.1\n whoami\n}}\n", here.port()));
    let before = memory(server.process.pid(), "VmData");
    // No client has more than a quarter of the connections. Each promises the longest query, and sends a byte of it.
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|number| {
            let mut stream = connect_from(u8::try_from(number % 4 + 2).expect("four"), here);
            stream.write_all(&[0xff, 0xff, 7]).expect("sent");
            stream
        })
        .collect();
    wait::until("all of it is read", DEADLINE, || match unread(here.port()) {
        (CONNECTIONS, 0) => Ok(()),
        other => Err(other),
    });
    let taken = memory(server.process.pid(), "VmData").saturating_sub(before);
    println!("{CONNECTIONS} begun queries take {taken} KiB");
    assert!(taken < MOST_KIB, "{taken} KiB");
    drop(streams);
}

fn connect_from(last: u8, server: SocketAddr) -> TcpStream {
    let stream = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    let own = SockaddrIn::new(127, 0, 0, last, 0);
    bind(stream.as_raw_fd(), &own).expect("bound");
    connect(stream.as_raw_fd(), &SockaddrStorage::from(server)).expect("connected");
    stream.into()
}

/// The connections of a port of this machine, and how many of them hold bytes that nobody has read.
fn unread(port: u16) -> (usize, usize) {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("read");
    let rows = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = format!(":{port:04X}");
    let own: Vec<Vec<&str>> = rows
        .filter(|row| row[1].ends_with(&own) && row[3] == ESTABLISHED)
        .collect();
    let full = own.iter().filter(|row| !row[4].ends_with(":00000000")).count();
    (own.len(), full)
}

#[test]
fn a_block_at_every_address_shares_those_of_ipv4_with_one_that_says_so_and_is_not_asked_where_another_binds()
{
    let port = free_address().port();
    let block = |zone: &str, number: u8, bind: &str| {
        format!("{zone}:{port} {{\n {bind}\n hosts /none/such {{\n 192.0.2.{number} {zone}\n }}\n}}\n")
    };
    let blocks = [
        block("every.example", 1, ""),
        block("all-v4.example", 2, "bind 0.0.0.0"),
        block("own.example", 3, "bind 127.0.0.2"),
    ];
    const REFUSED: &str = "code 5, [0, 0] answers";
    let _server = Plain::start(&blocks.concat());
    for (server, answers) in [
        ("127.0.0.1", ["192.0.2.1", "192.0.2.2", REFUSED]),
        ("127.0.0.2", [REFUSED, REFUSED, "192.0.2.3"]),
        ("::1", ["192.0.2.1", REFUSED, REFUSED]),
    ] {
        let server = SocketAddr::new(server.parse().expect("an address"), port);
        let zones = ["every.example", "all-v4.example", "own.example"];
        assert_eq!(zones.map(|zone| ask(server, zone)), answers, "{server} by UDP");
        let by_tcp = zones.map(|zone| {
            let packet = queries::query(7, zone);
            let address = queries::address(&packet, &ask_tcp(server, &packet));
            address.map_or_else(|instead| instead, |address| address.to_string())
        });
        assert_eq!(by_tcp, answers, "{server} by TCP");
    }
}
