//! Which protocol a client and this kubelet speak, and the answer that switches to it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// In which SPDY clients name what they want to speak in it.
const SPDY_PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 6455.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// A protocol that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol<P> {
    /// In what it is spoken.
    pub transport: Transport,
    /// Its name between client and server.
    pub name: &'static str,
    /// What it is to whom it is served by.
    pub meaning: P,
}

/// A client that is served, once it has the answer.
pub struct Accepted<P> {
    /// What was agreed on.
    pub meaning: P,
    /// Its connection.
    pub upgrade: OnUpgrade,
    /// The answer.
    pub response: Response,
}

/// Agrees with a client on the first of its protocols that is `spoken`.
pub fn accept<P: Copy>(request: &mut Request, spoken: &[Protocol<P>]) -> Result<Accepted<P>, Refusal> {
    let headers = request.headers();
    let transport = match values(headers, &header::UPGRADE).next() {
        Some(name) if name.eq_ignore_ascii_case("websocket") => Transport::WebSocket,
        Some(name) if name.eq_ignore_ascii_case("spdy/3.1") => Transport::Spdy,
        Some(other) => {
            return Err(Refusal::bad_request(format!("unable to upgrade to {other}")));
        }
        None => return Err(Refusal::bad_request("Upgrade request required")),
    };
    let names = match transport {
        Transport::WebSocket => &header::SEC_WEBSOCKET_PROTOCOL,
        Transport::Spdy => &SPDY_PROTOCOLS,
    };
    let offered: Vec<&str> = values(headers, names).collect();
    let known = |offer: &&str| {
        spoken
            .iter()
            .find(|one| one.transport == transport && one.name == *offer)
    };
    let Some(agreed) = offered.iter().find_map(known) else {
        let served = spoken
            .iter()
            .filter(|one| one.transport == transport)
            .map(|one| one.name);
        let served: Vec<&str> = served.collect();
        // As `httpstream.Handshake` says it.
        let text =
            format!("unable to negotiate protocol: client supports {offered:?}, server accepts {served:?}");
        return Err(Refusal(StatusCode::FORBIDDEN, text));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let mut set = |name: &HeaderName, value: HeaderValue| response.headers_mut().insert(name.clone(), value);
    set(&header::CONNECTION, HeaderValue::from_static("Upgrade"));
    set(names, HeaderValue::from_static(agreed.name));
    match transport {
        Transport::Spdy => set(&header::UPGRADE, HeaderValue::from_static("SPDY/3.1")),
        Transport::WebSocket => {
            let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
            let accept = key.and_then(|key| HeaderValue::from_str(&derive_accept_key(key)).ok());
            let Some(accept) = accept else {
                return Err(Refusal::bad_request("Sec-WebSocket-Key is missing"));
            };
            set(&header::SEC_WEBSOCKET_ACCEPT, accept);
            set(&header::UPGRADE, HeaderValue::from_static("websocket"))
        }
    };
    let meaning = agreed.meaning;
    let upgrade = hyper::upgrade::on(request);
    Ok(Accepted {
        meaning,
        upgrade,
        response,
    })
}

/// The values of a header, which may stand on one line or on several.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// A request that is refused, with the reason that clients print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    /// The request makes no sense.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    /// What it is about is not here.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1 + "\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOKEN: [Protocol<u8>; 3] = [
        Protocol {
            transport: Transport::WebSocket,
            name: "v5.channel.k8s.io",
            meaning: 5,
        },
        Protocol {
            transport: Transport::WebSocket,
            name: "v4.channel.k8s.io",
            meaning: 4,
        },
        Protocol {
            transport: Transport::Spdy,
            name: "v4.channel.k8s.io",
            meaning: 104,
        },
    ];

    #[track_caller]
    fn check(headers: &[(&str, &str)], expected: Result<(u8, &str), u16>) {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).expect("a request");
        let seen = accept(&mut request, &SPOKEN);
        let seen = seen
            .as_ref()
            .map_err(|refused| refused.0.as_u16())
            .map(|accepted| {
                let accept = accepted.response.headers().get("sec-websocket-accept");
                (
                    accepted.meaning,
                    accept.map_or("", |value| value.to_str().expect("text")),
                )
            });
        assert_eq!(seen, expected, "{headers:?}");
    }

    #[test]
    fn the_clients_first_protocol_that_is_spoken_is_agreed_on() {
        // The key and its answer are those of RFC 6455 §1.3.
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let answer = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let web = ("upgrade", "websocket");
        let wanted = |protocols| ("sec-websocket-protocol", protocols);
        check(&[web, key, wanted("v5.channel.k8s.io")], Ok((5, answer)));
        check(
            &[web, key, wanted("base64.channel.k8s.io, v4.channel.k8s.io")],
            Ok((4, answer)),
        );
        check(
            &[web, key, wanted("v4.channel.k8s.io"), wanted("v5.channel.k8s.io")],
            Ok((4, answer)),
        );
        check(&[web, wanted("v4.channel.k8s.io")], Err(400));
        check(&[web, key, wanted("v9.channel.k8s.io")], Err(403));
        check(&[web, key], Err(403));
        let spdy = ("upgrade", "SPDY/3.1");
        let version = |name| ("x-stream-protocol-version", name);
        check(
            &[spdy, version("v5.channel.k8s.io"), version("v4.channel.k8s.io")],
            Ok((104, "")),
        );
        check(&[spdy, version("v5.channel.k8s.io")], Err(403));
        check(&[("upgrade", "h2c")], Err(400));
        check(&[], Err(400));
    }
}
