//! The HTTP client: every request on a connection of its own, so that each is a new decision of the service proxy.

use std::io::{self, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::clock;
use crate::dns::Resolver;
use crate::http;

/// An `http://` address in its parts.
struct Url {
    host: String,
    port: u16,
    path: String,
}

/// `testserver fetch` and, as `fetch --forever`, `testserver loop`.
pub fn run(args: &Args, forever: bool) -> Result<bool, String> {
    crate::exit_on_ending_signals()?;
    let urls = args
        .positionals()
        .iter()
        .map(|text| parse_url(text))
        .collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() {
        return Err("fetch needs a URL".to_owned());
    }
    let forever = forever || args.flag("forever");
    let count: u64 = args.value("count", 1)?;
    let interval = Duration::from_millis(args.value("interval-ms", if forever { 1000 } else { 0 })?);
    let timeout = Duration::from_millis(args.value("timeout-ms", 5000)?);
    let resolver = Resolver::from_system(args.text("resolver"), timeout)?;

    let (mut sent, mut failed) = (0u64, 0u64);
    let mut latencies = Vec::new();
    let mut hosts = std::collections::BTreeMap::<String, u64>::new();
    let mut next = Instant::now();
    while forever || sent < count * urls.len() as u64 {
        for url in &urls {
            let start = Instant::now();
            let (status, body) = match get(url, &resolver, timeout) {
                Ok(response) => (response.status.to_string(), response.body),
                Err(error) => (format!("error={}", error_word(&error)), Vec::new()),
            };
            let (host, client) = (told(&body, "hostname"), told(&body, "client"));
            let micros = start.elapsed().as_micros();
            println!("{} {status} {host} {micros} {client}", clock::now());
            if args.flag("body") {
                println!("{}", String::from_utf8_lossy(&body));
            }
            sent += 1;
            failed += u64::from(!status.starts_with('2'));
            if !forever {
                latencies.push(micros);
                *hosts.entry(host).or_default() += 1;
            }
        }
        next += interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }

    latencies.sort_unstable();
    let percentile = |of_100: usize| latencies.get((latencies.len() * of_100 / 100).min(latencies.len() - 1));
    let hosts: Vec<_> = hosts
        .iter()
        .map(|(host, count)| format!("{host}={count}"))
        .collect();
    println!(
        "summary: requests={sent} failed={failed} p50_us={} p99_us={} hosts: {}",
        percentile(50).unwrap_or(&0),
        percentile(99).unwrap_or(&0),
        hosts.join(" ")
    );
    Ok(failed == 0)
}

fn get(url: &Url, resolver: &Resolver, timeout: Duration) -> io::Result<http::Response> {
    let deadline = Instant::now() + timeout;
    let addresses = match url.host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => resolver.addresses(&url.host)?,
    };
    let mut last = io::Error::new(ErrorKind::NotFound, "no address");
    for address in addresses {
        match get_from(SocketAddr::new(address, url.port), url, deadline) {
            Ok(response) => return Ok(response),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn get_from(address: SocketAddr, url: &Url, deadline: Instant) -> io::Result<http::Response> {
    let mut stream = TcpStream::connect_timeout(&address, remaining(deadline)?)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(remaining(deadline)?))?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    let host = if url.port == 80 {
        url.host.clone()
    } else {
        format!("{}:{}", url.host, url.port)
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: causeway-testserver\r\nConnection: close\r\n\r\n",
        url.path
    );
    stream.write_all(request.as_bytes())?;
    http::read_response(&mut BufReader::new(stream))
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    let rest = text
        .strip_prefix("http://")
        .ok_or_else(|| format!("{text:?} does not begin with http://"))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let bad_port = || format!("{text:?} has a bad port");
    let (host, port) = match authority
        .strip_prefix('[')
        .and_then(|inner| inner.split_once(']'))
    {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| bad_port()))?;
    Ok(Url {
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

/// What a line of a `testserver serve` answer tells, for example `hostname: hello-1`; `-` when it does not.
fn told(body: &[u8], what: &str) -> String {
    String::from_utf8_lossy(body)
        .lines()
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(": "))
        .unwrap_or("-")
        .to_owned()
}

/// One word for the error, so that a line keeps its columns.
fn error_word(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "timed-out".to_owned(),
        _ => error
            .to_string()
            .split(" (os")
            .next()
            .unwrap_or_default()
            .to_lowercase()
            .replace(' ', "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_split_into_host_port_and_path() {
        for (text, expected) in [
            ("http://hello", Some(("hello", 80, "/"))),
            ("http://hello:8080/a?b=c", Some(("hello", 8080, "/a?b=c"))),
            ("http://[fd00::1]:81/x", Some(("fd00::1", 81, "/x"))),
            ("http://hello:port/", None),
            ("https://hello/", None),
        ] {
            let url = parse_url(text).ok();
            let parts = url
                .as_ref()
                .map(|url| (url.host.as_str(), url.port, url.path.as_str()));
            assert_eq!(parts, expected, "{text}");
        }
    }
}
