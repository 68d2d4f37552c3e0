//! TCP and TLS upstreams, and streams that are used again.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Answers questions on a stream until it ends; `limit` of them at most.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, limit: usize) {
    for _ in 0..limit {
        let Ok(length) = stream.read_u16().await else {
            return;
        };
        let mut packet = vec![0; usize::from(length)];
        stream.read_exact(&mut packet).await.expect("read");
        let reply = answer(&packet, &[[4, 4, 4, 4]]);
        stream.write_u16(reply.len() as u16).await.expect("written");
        stream.write_all(&reply).await.expect("written");
        stream.flush().await.expect("flushed");
    }
}

/// A certificate for `dns.example` that an authority signed, whose own is in a file.
struct Pki {
    authority: std::path::PathBuf,
    acceptor: TlsAcceptor,
}

impl Pki {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
        let authority = std::env::temp_dir().join(format!("cwt-tls-{name}-{}.pem", std::process::id()));
        std::fs::write(&authority, issuer.pem()).expect("written");
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["dns.example".to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .expect("a pair");
        Self {
            authority,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }

    /// Serves TLS.
    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let acceptor = self.acceptor.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust us ends the handshake.
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::spawn(serve(stream, usize::MAX));
                }
            }
        });
        address
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        // What is left over in a temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.authority);
    }
}

#[tokio::test]
async fn a_tls_upstream_is_asked_by_tls_alone_and_has_to_have_its_name() {
    let pki = Pki::new("right");
    let address = pki.listen().await;
    let forward = |server_name: Option<&str>, authorities: &std::path::Path| {
        Arc::new(Forward::new(Options {
            to: vec![Target {
                address,
                over_tls: true,
            }],
            tls: Tls {
                server_name: server_name.map(str::to_owned),
                authorities: Some(authorities.to_owned()),
                identity: None,
            },
            // No check takes a stream.
            max_fails: 0,
            ..Options::default()
        }))
    };
    let good = forward(Some("dns.example"), &pki.authority);
    for _ in 0..3 {
        assert_eq!(
            last_address(&ask(&good, false).await.expect("response")),
            [4, 4, 4, 4]
        );
    }
    let upstream = &good.upstreams()[0];
    assert_eq!(
        (upstream.stream_counts(), upstream.stream_protocol()),
        ((2, 1), "tcp-tls")
    );

    let stranger = Pki::new("stranger");
    for (what, forward, expected) in [
        (
            "another name",
            forward(Some("bank.example"), &pki.authority),
            "certificate not valid for name",
        ),
        (
            "its address",
            forward(None, &pki.authority),
            "certificate not valid for name",
        ),
        (
            "another authority",
            forward(Some("dns.example"), &stranger.authority),
            "BadSignature",
        ),
    ] {
        let failure = ask(&forward, false).await.expect_err(what);
        let text = model::with_causes(&failure).to_string();
        let expected = format!("invalid peer certificate: {expected}");
        assert!(text.contains(&expected), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_stream_is_used_again_until_it_is_too_old_or_closed() {
    for (what, limit, expire, expected) in [
        ("kept", usize::MAX, Duration::from_secs(10), (3, 1)),
        ("expired", usize::MAX, Duration::ZERO, (0, 4)),
        // The other side closes after each answer: the idle stream is tried, and a new one taken.
        ("closed", 1, Duration::from_secs(10), (3, 4)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, limit));
            }
        });
        let forward = Arc::new(Forward::new(Options {
            to: targets(&[address]),
            force_tcp: true,
            expire,
            max_fails: 0,
            ..Options::default()
        }));
        for _ in 0..4 {
            let response = ask(&forward, false).await.expect(what);
            assert_eq!(last_address(&response), [4, 4, 4, 4], "{what}");
        }
        assert_eq!(forward.upstreams()[0].stream_counts(), expected, "{what}");
    }
}

#[tokio::test]
async fn a_stream_that_is_out_of_step_is_closed_and_not_used_again() {
    let other = |packet: &[u8]| {
        let mut other = answer(packet, &[[6, 6, 6, 6]]);
        other[0] ^= 1;
        other
    };
    // What the first connection answers the first question with.
    type Replies = fn(&dyn Fn(&[u8]) -> Vec<u8>, &[u8]) -> Vec<Vec<u8>>;
    let rows: [(&str, Replies, bool, (u64, u64)); 2] = [
        (
            "the answer comes second",
            |other, packet| vec![other(packet), answer(packet, &[[4, 4, 4, 4]])],
            false,
            (0, 2),
        ),
        (
            "something comes behind the answer",
            |other, packet| vec![answer(packet, &[[4, 4, 4, 4]]), other(packet)],
            true,
            (1, 2),
        ),
    ];
    for (what, replies, is_first_answered, counts) in rows {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.expect("accepted");
            let mut packet = vec![0; usize::from(first.read_u16().await.expect("read"))];
            first.read_exact(&mut packet).await.expect("read");
            let replies = replies(&other, &packet);
            for reply in replies {
                first.write_u16(reply.len() as u16).await.expect("written");
                first.write_all(&reply).await.expect("written");
            }
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, usize::MAX));
            }
        });
        let forward = Arc::new(Forward::new(Options {
            to: targets(&[address]),
            force_tcp: true,
            max_fails: 0,
            ..Options::default()
        }));
        assert_eq!(ask(&forward, false).await.is_ok(), is_first_answered, "{what}");
        let response = ask(&forward, false).await.expect(what);
        assert_eq!(last_address(&response), [4, 4, 4, 4], "{what}");
        assert_eq!(forward.upstreams()[0].stream_counts(), counts, "{what}");
    }
}
