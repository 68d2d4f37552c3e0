//! HTTP for the SDK: over rustls with ring, as everything here.

use std::sync::LazyLock;

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

/// One for the process: it keeps its connections.
static CLIENT: LazyLock<SharedHttpClient> = LazyLock::new(|| {
    // An image may have no certificates at all. The SDK asserts in a debug build that there are some; without it the
    // handshake fails in words, and an endpoint without TLS works.
    let has_roots = !rustls_native_certs::load_native_certs().certs.is_empty();
    let context = TlsContext::builder()
        .with_trust_store(TrustStore::empty().with_native_roots(has_roots))
        .build()
        .expect("invariant: no certificate was given that might be malformed");
    Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https()
});

pub(crate) fn http_client() -> SharedHttpClient {
    CLIENT.clone()
}
