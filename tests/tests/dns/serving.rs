//! Serving itself: what a stream tells its client, and what the server does not wait for.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::directory::Directory;
use tests::process::{Place, Process, command};
use tests::wait;

use crate::message::{ask_tcp, ask_udp, header, opt, query, wire};
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

fn page(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

#[test]
fn a_log_that_nobody_reads_stops_no_answer_and_no_end() {
    let directory = Directory::new("unread");
    let (address, http) = (free_address(), free_address());
    let corefile = format!(
        ".:{} {{\n bind 127.0.0.1\n log\n prometheus {http}\n whoami\n}}\n",
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
        let page = page(http).expect("a page");
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
