//! A server that writes down what it is asked and answers with what it was told to, in that order.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use vpc_eni_sdk::{Client, CredentialSource, Settings, Timeouts};

/// What is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status and a body.
    Body(u16, String),
    /// A token of the metadata service's.
    Token,
    /// Nothing; the connection is closed.
    Close,
    /// Nothing; the connection stays.
    Silence,
    /// The beginning of a body that never ends.
    Stall,
}

impl Reply {
    /// An action's result: members of `…Response`.
    pub fn xml(action: &str, members: &str) -> Self {
        Self::Body(
            200,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
                 <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>{members}</{action}Response>"
            ),
        )
    }

    /// An error as EC2 writes it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Body(
            status,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
                 <RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>"
            ),
        )
    }

    pub fn text(status: u16, text: &str) -> Self {
        Self::Body(status, text.to_owned())
    }
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `METHOD path?query`.
    pub line: String,
    /// `user-agent`.
    pub agent: String,
    /// `authorization`.
    pub authorization: String,
    /// The body's pairs, by their names.
    pub form: Vec<(String, String)>,
}

impl Asked {
    /// `NAME=VALUE` for each pair, sorted, without the API's version, which is the same always.
    pub fn members(&self) -> Vec<String> {
        let pairs = self.form.iter().filter(|(name, _)| name != "Version");
        let mut members: Vec<String> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
        members.sort();
        members
    }
}

#[derive(Debug, Default)]
struct Script {
    replies: VecDeque<Reply>,
    asked: Vec<Asked>,
}

/// A server on the loopback interface. It ends with the test.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
    _serving: JoinSet<()>,
}

impl Server {
    /// One that gives these replies, and closes the connection on whoever asks for more.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_over(None, replies).await
    }

    /// The same over TLS, where there is some.
    pub async fn start_over(tls: Option<TlsAcceptor>, replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script {
            replies: replies.into_iter().collect(),
            asked: Vec::new(),
        }));
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, tls, Arc::clone(&script)));
        Self {
            address,
            script,
            _serving: serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked up to now.
    pub fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }

    /// What was asked, method and path.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The replies that nobody fetched.
    pub fn left(&self) -> usize {
        self.script.lock().unwrap().replies.len()
    }

    /// A client of it.
    pub async fn client(&self) -> Client {
        Client::new(settings(&self.url())).await.unwrap()
    }
}

/// Short times and a key: what a test of one call needs.
pub fn settings(endpoint: &str) -> Settings {
    Settings {
        region: "eu-central-1".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        credentials: CredentialSource::fixed("AKIDEXAMPLE", "secret"),
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            read: Duration::from_secs(20),
            credentials: Duration::from_secs(20),
            call: Duration::from_secs(40),
        },
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, script: Arc<Mutex<Script>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, script) = (tls.clone(), Arc::clone(&script));
        connections.spawn(async move {
            let Some(tls) = tls else {
                return serve(stream, script).await;
            };
            // Who does not trust it goes away.
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, script).await;
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, script: Arc<Mutex<Script>>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&script)));
    // An answer that is an error closes the connection: that is what it is for.
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    script: Arc<Mutex<Script>>,
) -> Result<Response<Body>, std::io::Error> {
    let asked = read(request).await;
    let reply = {
        let mut script = script.lock().unwrap();
        script.asked.push(asked);
        script.replies.pop_front()
    };
    let full = |text: String| Full::new(Bytes::from(text)).boxed_unsync();
    match reply {
        Some(Reply::Body(status, text)) => Ok(Response::builder().status(status).body(full(text)).unwrap()),
        Some(Reply::Token) => Ok(Response::builder()
            .header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            .body(full("TOKEN==".to_owned()))
            .unwrap()),
        Some(Reply::Silence) => std::future::pending().await,
        Some(Reply::Stall) => {
            let first = Frame::data(Bytes::from_static(b"<DetachNetworkInterfaceResponse>"));
            let frames = stream::iter([Ok(first)]).chain(stream::pending());
            Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
        }
        Some(Reply::Close) | None => Err(std::io::Error::other("as told")),
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let header = |name: &str| {
        let value = head.headers.get(name);
        value
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let path = head.uri.path_and_query().unwrap();
    let body = body.collect().await.unwrap().to_bytes();
    Asked {
        line: format!("{} {path}", head.method),
        agent: header("user-agent"),
        authorization: header("authorization"),
        form: form_urlencoded::parse(&body).into_owned().collect(),
    }
}
