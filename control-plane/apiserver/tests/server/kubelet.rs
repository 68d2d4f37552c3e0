//! A kubelet of the tests' own, and what the server asks of it.

use std::sync::Arc;

use anyhow::ensure;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, LogParams, PostParams};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Files, from, on_every_store, pod, raw_connection};

/// What a kubelet's upgraded connections lead to.
#[derive(Clone)]
pub(super) enum Behind {
    Echo,
    /// A web server with a certificate of its own making.
    Https,
}

pub(super) async fn serve_kubelet(files: &Files) -> anyhow::Result<u16> {
    serve_kubelet_before(files, Behind::Echo).await
}

/// A kubelet that answers every request with its first line; it asks for a certificate of the cluster's CA.
pub(super) async fn serve_kubelet_before(files: &Files, behind: Behind) -> anyhow::Result<u16> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.path("ca.crt"))?)?;
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()?;
    let certificate = vec![CertificateDer::from_pem_file(files.path("apiserver.crt"))?];
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificate,
            PrivateKeyDer::from_pem_file(files.path("apiserver.key"))?,
        )?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let behind = behind.clone();
            let echo = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                let line = format!("{} {}", request.method(), request.uri());
                let mut response = hyper::Response::new(line);
                if request.headers().contains_key("upgrade") {
                    *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
                    *response.headers_mut() = request.headers().clone();
                    response.headers_mut().remove("host");
                    response.body_mut().clear();
                    let upgraded = hyper::upgrade::on(&mut request);
                    let behind = behind.clone();
                    tokio::spawn(async move {
                        let stream = TokioIo::new(upgraded.await?);
                        match behind {
                            Behind::Echo => echo_stream(stream).await,
                            Behind::Https => answer_by_tls(stream).await,
                        }
                    });
                }
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server
                .serve_connection_with_upgrades(TokioIo::new(stream), echo)
                .await
            {
                eprintln!("the kubelet's connection failed: {error}");
            }
        }
    });
    Ok(port)
}

async fn echo_stream(stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    Ok(())
}

async fn answer_by_tls(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> anyhow::Result<()> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["elsewhere".to_owned()])?;
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    let stream = TlsAcceptor::from(Arc::new(tls)).accept(stream).await?;
    let told = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
        let line = format!("by TLS: {} {}", request.method(), request.uri());
        Ok::<_, std::convert::Infallible>(hyper::Response::new(line))
    });
    let server = hyper::server::conn::http1::Builder::new();
    Ok(server.serve_connection(TokioIo::new(stream), told).await?)
}

#[tokio::test]
async fn logs_and_streams_come_from_the_kubelet_of_the_pods_node() -> anyhow::Result<()> {
    on_every_store("logs", async |cluster| {
        let port = serve_kubelet(&cluster.files).await?;
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let node = json!({ "metadata": { "name": "n1" }, "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        } });
        nodes.create(&PostParams::default(), &from(node)?).await?;
        let pods: Api<Pod> = cluster.api();
        let mut bound = pod("a")?;
        bound.spec.get_or_insert_default().node_name = Some("n1".to_owned());
        pods.create(&PostParams::default(), &bound).await?;
        let parameters = LogParams {
            follow: true,
            tail_lines: Some(5),
            ..LogParams::default()
        };
        let logs = pods.logs("a", &parameters).await?;
        ensure!(
            logs == "GET /containerLogs/default/a/a?follow=true&tailLines=5",
            "{logs}"
        );

        let mut stream = raw_connection(&cluster).await?;
        let request = [
            "POST /api/v1/namespaces/default/pods/a/exec?command=ls HTTP/1.1",
            "host: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n",
        ];
        stream.write_all(request.join("\r\n").as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        ensure!(
            head.starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&head)
        );
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == b"ping");
        Ok(())
    })
    .await
}
