//! As much of HTTP/1.1 (RFC 9112) as a test server and its client need: requests with a `Content-Length` body,
//! answers with `Content-Length`, chunked or until the end of the connection.

use std::io::{self, BufRead, Read, Write};

/// A request that arrived.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub body: Vec<u8>,
    pub keep_alive: bool,
}

/// An answer that arrived.
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

const LONGEST_BODY: u64 = 16 << 20;

/// Reads one request; `None` when the client has closed the connection before one began.
pub fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(invalid("not an HTTP request line"));
    };
    let headers = read_headers(reader)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut body = vec![0; content_length(&headers)?.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let connection = header(&headers, "connection")
        .unwrap_or_default()
        .to_ascii_lowercase();
    Ok(Some(Request {
        keep_alive: connection != "close" && (version == "HTTP/1.1" || connection == "keep-alive"),
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body,
    }))
}

/// Writes one answer in a single write, so that a small one is a single segment.
pub fn write_response(stream: &mut impl Write, status: u16, body: &[u8], keep_alive: bool) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        503 => "Service Unavailable",
        _ => "-",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    stream.write_all(&answer)
}

/// Reads one answer to a GET.
pub fn read_response(reader: &mut impl BufRead) -> io::Result<Response> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed before an answer",
        ));
    }
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid("not an HTTP status line"))?;
    let headers = read_headers(reader)?;
    let chunked = header(&headers, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
    let mut body = Vec::new();
    match content_length(&headers)? {
        _ if chunked => read_chunks(reader, &mut body)?,
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        None => {
            reader.take(LONGEST_BODY).read_to_end(&mut body)?;
        }
    }
    Ok(Response { status, body })
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| invalid("bad chunk size"))?;
        if size > LONGEST_BODY {
            return Err(invalid("chunk too large"));
        }
        reader.by_ref().take(size).read_to_end(body)?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn read_headers(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed within the headers",
            ));
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("not a header"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

fn content_length(headers: &[(String, String)]) -> io::Result<Option<usize>> {
    let Some(text) = header(headers, "content-length") else {
        return Ok(None);
    };
    let length: u64 = text.parse().map_err(|_| invalid("bad Content-Length"))?;
    if length > LONGEST_BODY {
        return Err(invalid("body too large"));
    }
    usize::try_from(length)
        .map(Some)
        .map_err(|_| invalid("body too large"))
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
