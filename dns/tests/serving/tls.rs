//! Clients that ask by TLS.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

const NAME: &str = "dns.example";

/// An authority whose certificate is in the folder, as `authority.pem`.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(folder: &Folder) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        std::fs::write(folder.file("authority.pem"), issuer.pem()).expect("written");
        Self { issuer }
    }

    fn sign(&self) -> Signed {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![NAME.to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Signed { certificate, key }
    }

    /// Connects, with a certificate or without.
    async fn connect(
        &self,
        server: SocketAddr,
        own: Option<&Signed>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => config
                .with_client_auth_cert(vec![own.certificate.der().clone()], own.key_der())
                .expect("a pair"),
        };
        let stream = TcpStream::connect(server).await?;
        let name = ServerName::try_from(NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

impl Signed {
    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Puts certificate and key where the Corefile names them.
    fn write(&self, folder: &Folder) {
        std::fs::write(folder.file("key.pem"), self.key.serialize_pem()).expect("written");
        std::fs::write(folder.file("certificate.pem"), self.certificate.pem()).expect("written");
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let question = packet(7, "a.example");
    let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(text(&reply))
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().expect("shown")[0].clone()
}

fn corefile(folder: &Folder, options: &str) -> String {
    let hosts = "hosts /none/such {\n 10.0.0.1 a.example\n }";
    format!(
        "tls://.:0 {{\n bind 127.0.0.1\n reload 2s 1s\n prometheus 127.0.0.1:0\n root {}\n tls {options}\n {hosts}\n}}\n",
        folder.0.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_the_old_ones_go_on() {
    let folder = Folder::new("tls");
    let authority = Authority::new(&folder);
    let (first, second) = (authority.sign(), authority.sign());
    first.write(&folder);
    let server = start_with(&folder, &corefile(&folder, "certificate.pem key.pem")).await;
    let mut old = authority.connect(server.dns, None).await.expect("connected");
    assert_eq!(shown(&old), *first.certificate.der());
    assert_eq!(ask(&mut old).await.expect("answered"), "NOERROR 10.0.0.1");

    second.write(&folder);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut new = authority.connect(server.dns, None).await.expect("connected");
        if shown(&new) == *second.certificate.der() {
            assert_eq!(ask(&mut new).await.expect("answered"), "NOERROR 10.0.0.1");
            break;
        }
        assert!(Instant::now() < deadline, "the first certificate is still shown");
    }
    assert_eq!(ask(&mut old).await.expect("answered"), "NOERROR 10.0.0.1");
    let counted = "coredns_dns_responses_total{server=\"tls://:0\",zone=\".\",view=\"\",rcode=\"NOERROR\",plugin=\"hosts\"} 3";
    let page = server.get("/metrics").await;
    assert!(page.lines().any(|line| line == counted), "{page}");
    // Nobody answers in the clear.
    let mut plain = TcpStream::connect(server.dns).await.expect("connected");
    let question = packet(7, "a.example");
    let length = u16::try_from(question.len()).expect("short").to_be_bytes();
    let framed = [&length[..], &question].concat();
    plain.write_all(&framed).await.expect("written");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut rest)).await;
    let _reset = ended.expect("the connection ends");
    assert!(
        !rest.windows(9).any(|bytes| bytes == b"\x01a\x07example"),
        "{rest:?}"
    );
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_have_to_show_a_certificate_where_the_corefile_wants_it() {
    let folder = Folder::new("tls-clients");
    let authority = Authority::new(&folder);
    authority.sign().write(&folder);
    let options = |who| format!("certificate.pem key.pem authority.pem {{\n client_auth {who}\n }}");
    let known = authority.sign();
    let stranger = Authority::new(&Folder::new("tls-stranger")).sign();
    for (who, client, is_served) in [
        ("nocert", None, true),
        ("verify_if_given", None, true),
        ("verify_if_given", Some(&known), true),
        ("verify_if_given", Some(&stranger), false),
        ("require_and_verify", None, false),
        ("require_and_verify", Some(&known), true),
        ("require_and_verify", Some(&stranger), false),
    ] {
        let server = start_with(&folder, &corefile(&folder, &options(who))).await;
        // A client learns that it is not let in with the first answer that does not come.
        let answered = async { ask(&mut authority.connect(server.dns, client).await?).await };
        let answer = answered.await.ok();
        assert_eq!(
            answer.as_deref(),
            is_served.then_some("NOERROR 10.0.0.1"),
            "{who}"
        );
        server.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_not_told_of_addresses_that_are_asked_by_tls() {
    let folder = Folder::new("tls-told");
    Authority::new(&folder).sign().write(&folder);
    let feed = folder.file("dns.sock");
    let agent = Agent::listen(&feed);
    let plain = format!(
        ".:0 {{\n bind 127.0.0.1\n ready 127.0.0.1:0\n kubernetes cluster.local {{\n feed {}\n }}\n}}\n",
        feed.display()
    );
    let tls = format!(
        "tls://.:0 {{\n bind 127.0.0.2\n root {}\n tls certificate.pem key.pem\n whoami\n}}\n",
        folder.0.display()
    );
    let server = start_with(&folder, &format!("{plain}{tls}")).await;
    let stream = agent.send(&[r#"{"begin":{"version":1,"hears":true}}"#]).await;
    let mut lines = BufReader::new(stream).lines();
    let deadline = Instant::now() + DEADLINE;
    // Before it serves it says that it answers nowhere.
    let told = loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line())
            .await
            .expect("in time");
        let line = line.expect("read").expect("a line");
        let serving: model::feed::Serving = serde_json::from_str(&line).expect("where it answers");
        if !serving.addresses.is_empty() {
            break serving.addresses;
        }
        assert!(Instant::now() < deadline, "it answers nowhere");
    };
    assert_eq!(told, [server.dns].into());
    server.end().await;
}
