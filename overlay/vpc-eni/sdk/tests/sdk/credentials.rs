//! Where credentials and trusted certificates come from, and how a call fails without. The SDK reads its own environment, so each row is asked
//! in a process of its own, with nothing in it but the row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use vpc_eni::ec2::{Action, CallError, Called, Ec2, Meaning, Metadata, Why};
use vpc_eni_sdk::{Client, CredentialSource, ENDPOINT_VARIABLE, ImdsMetadata, Settings};

use crate::server::{Reply, Server, settings};

/// Before what the process was answered.
const ANSWER: &str = "answer: ";

#[tokio::test]
#[ignore = "not a test: asks in an environment of its own, started by the others"]
async fn ask() {
    let settings = Settings::from_env("eu-central-1");
    let is_safe = settings.endpoint.is_some() || std::env::var_os("AWS_ENDPOINT_URL_EC2").is_some();
    assert!(is_safe, "AWS's own endpoints are not asked from here");
    let client = Client::new(settings).await.unwrap();
    let detached = client.detach(&"eni-attach-1".into()).await;
    println!("\n{ANSWER}{}", told(detached));
}

#[tokio::test]
#[ignore = "not a test: asks in an environment of its own, started by the others"]
async fn ask_metadata() {
    let variable = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    assert!(variable.is_ok(), "AWS's own endpoints are not asked from here");
    let identity = ImdsMetadata::new(None).unwrap().identity().await;
    println!("\n{ANSWER}{}", identity.unwrap_err());
}

fn told(called: Called<()>) -> String {
    match called {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vpc-eni-sdk-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Asks in a process with these variables alone.
async fn answer(question: &str, home: &Path, variables: &BTreeMap<&str, String>) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            &format!("credentials::{question}"),
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env_clear()
        .env("HOME", home)
        .envs(variables)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(ANSWER));
    let errors = String::from_utf8_lossy(&output.stderr);
    line.unwrap_or_else(|| panic!("{text}\n{errors}")).to_owned()
}

/// Variables in which `SERVER` stands for where the server answers, which is also where EC2 is.
fn environment<'a>(variables: &[(&'a str, &str)], server: &Server) -> BTreeMap<&'a str, String> {
    let mut environment: BTreeMap<&str, String> = variables
        .iter()
        .map(|(name, value)| (*name, value.replace("SERVER", &server.url())))
        .collect();
    environment.insert(ENDPOINT_VARIABLE, server.url());
    environment
}

/// An address where nobody answers.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The access key of the call to EC2, the last of what was asked.
fn access_key(server: &Server) -> String {
    let asked = server.asked();
    let call = asked.last().expect("something was asked");
    assert!(
        call.form
            .contains(&("Action".to_owned(), "DetachNetworkInterface".to_owned())),
        "{call:?}"
    );
    let (_, key) = call
        .authorization
        .split_once("Credential=")
        .expect("a credential");
    key.split('/').next().expect("a key").to_owned()
}

const EXPIRATION: &str = "2999-01-01T00:00:00Z";

fn of_role(key: &str) -> String {
    format!(
        "{{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"AccessKeyId\": \"{key}\", \"SecretAccessKey\": \"s\", \
         \"Token\": \"t\", \"LastUpdated\": \"2026-11-30T10:00:00Z\", \"Expiration\": \"{EXPIRATION}\"}}"
    )
}

fn done() -> Reply {
    Reply::text(200, "<r/>")
}

#[tokio::test]
async fn credentials_come_from_each_link_of_the_chain() {
    let folder = Folder::new("chain");
    let file = folder.file(
        "credentials",
        "[default]\naws_access_key_id = AKPROFILE\naws_secret_access_key = s\n",
    );
    let token = folder.file("token", "header.claims.signature");
    let of_sts = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKIRSA</AccessKeyId>\
         <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{EXPIRATION}</Expiration>\
         </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    let text = |text: &str| Reply::text(200, text);
    type Row<'a> = (&'a [(&'a str, &'a str)], Vec<Reply>, &'a [&'a str], &'a str);
    let rows: [Row; 5] = [
        (
            &[
                ("AWS_ACCESS_KEY_ID", "AKENV"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                ("SSL_CERT_FILE", "/nowhere"),
            ],
            vec![done()],
            &["POST /"],
            "AKENV",
        ),
        (
            &[("AWS_SHARED_CREDENTIALS_FILE", &file)],
            vec![done()],
            &["POST /"],
            "AKPROFILE",
        ),
        (
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/pods"),
                ("AWS_ENDPOINT_URL_STS", "SERVER/sts"),
            ],
            vec![text(&of_sts), done()],
            &["POST /sts/", "POST /"],
            "AKIRSA",
        ),
        (
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "SERVER/v1/credentials"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
            ],
            vec![text(&of_role("AKPODIDENTITY")), done()],
            &["GET /v1/credentials", "POST /"],
            "AKPODIDENTITY",
        ),
        (
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "SERVER")],
            vec![Reply::Token, text("node"), text(&of_role("AKINSTANCE")), done()],
            &[
                "PUT /latest/api/token",
                "GET /latest/meta-data/iam/security-credentials/",
                "GET /latest/meta-data/iam/security-credentials/node",
                "POST /",
            ],
            "AKINSTANCE",
        ),
    ];
    for (variables, replies, lines, key) in rows {
        let server = Server::start(replies).await;
        let environment = environment(variables, &server);
        assert_eq!(answer("ask", &folder.0, &environment).await, "done", "{key}");
        assert_eq!(server.lines(), lines);
        assert_eq!(access_key(&server), key);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_empty_is_the_sdks_to_find() {
    let folder = Folder::new("endpoint");
    let server = Server::start([done()]).await;
    let environment = BTreeMap::from([
        ("AWS_ACCESS_KEY_ID", "AKENV".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "s".to_owned()),
        ("AWS_ENDPOINT_URL_EC2", format!("{}/own", server.url())),
        (ENDPOINT_VARIABLE, String::new()),
    ]);
    assert_eq!(answer("ask", &folder.0, &environment).await, "done");
    assert_eq!(server.lines(), ["POST /own/"]);
}

#[tokio::test]
async fn a_call_that_nothing_can_sign_says_what_was_tried_and_is_not_sent() {
    let folder = Folder::new("none");
    let token = folder.file("token", "header.claims.signature");
    let refused = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
        <Code>AccessDenied</Code><Message>Not authorized</Message></Error></ErrorResponse>";
    let web_identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/pods"),
        ("AWS_ENDPOINT_URL_STS", "SERVER/sts"),
    ];
    let nobody = nobody();
    type Row<'a> = (&'a [(&'a str, &'a str)], Vec<Reply>, &'a str);
    let imds: &[(&str, &str)] = &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "SERVER")];
    let rows: [Row; 7] = [
        (
            &[("AWS_EC2_METADATA_DISABLED", "true")],
            vec![],
            "Ec2InstanceMetadata: the credential provider was not enabled: IMDS disabled by AWS_EC2_METADATA_DISABLED \
             env var set to `true`",
        ),
        (
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &nobody)],
            vec![],
            "Connection refused (os error 111)",
        ),
        (
            imds,
            vec![Reply::text(403, "")],
            "request forbidden: IMDS is disabled or the caller has insufficient permissions.",
        ),
        (imds, vec![Reply::Silence], "HTTP read timeout occurred after 1s"),
        (
            imds,
            vec![Reply::Token, Reply::text(404, "")],
            "Ec2InstanceMetadata: the credential provider was not enabled: received 404 from IMDS",
        ),
        (&web_identity, vec![Reply::text(403, refused)], "AccessDenied"),
        (
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere"),
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pods"),
            ],
            vec![],
            "No such file or directory (os error 2)",
        ),
    ];
    for (variables, replies, words) in rows {
        let server = Server::start(replies).await;
        let environment = environment(variables, &server);
        let answer = answer("ask", &folder.0, &environment).await;
        assert!(
            answer.starts_with("DetachNetworkInterface: no credentials: ") && answer.contains(words),
            "{variables:?}: {answer}"
        );
        assert!(
            !server.lines().contains(&"POST /".to_owned()),
            "{:?}",
            server.lines()
        );
    }
}

#[tokio::test]
async fn the_metadata_service_is_where_the_environment_says() {
    let folder = Folder::new("metadata");
    let server = Server::start([Reply::Token, Reply::text(404, "")]).await;
    let environment = BTreeMap::from([("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url())]);
    assert_eq!(
        answer("ask_metadata", &folder.0, &environment).await,
        "the instance's metadata service has no instance-id: there is nothing"
    );
    assert_eq!(
        server.lines(),
        ["PUT /latest/api/token", "GET /latest/meta-data/instance-id"]
    );
    let environment = BTreeMap::from([("AWS_EC2_METADATA_SERVICE_ENDPOINT", "not an address".to_owned())]);
    assert_eq!(
        answer("ask_metadata", &folder.0, &environment).await,
        "the instance's metadata service does not answer: an unexpected error occurred communicating with IMDS: failed to \
         build IMDS client: invalid URI: invalid uri character"
    );
}

/// A server that shows a certificate of its own, and the certificate.
async fn https(replies: Vec<Reply>) -> (Server, String) {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let server = Server::start_over(Some(TlsAcceptor::from(Arc::new(config))), replies).await;
    (server, own.cert.pem())
}

/// An image may have none at all: that must not end the process.
#[tokio::test]
async fn only_certificates_of_the_machine_are_trusted() {
    let folder = Folder::new("trust");
    let (server, certificate) = https(vec![done()]).await;
    let own = folder.file("own.pem", &certificate);
    let other = folder.file("other.pem", &https(vec![]).await.1);
    // The other's name is the same, its key is not.
    let rows = [("/nowhere", "UnknownIssuer"), (other.as_str(), "BadSignature")].map(|(file, why)| {
        let words = "no answer: dispatch failure: io error: client error (Connect): TLS handshake failed";
        let told = format!("DetachNetworkInterface: {words}: invalid peer certificate: {why}");
        (file, told)
    });
    for (file, told) in rows.into_iter().chain([(own.as_str(), "done".to_owned())]) {
        let environment = BTreeMap::from([
            ("AWS_ACCESS_KEY_ID", "AKENV".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "s".to_owned()),
            ("SSL_CERT_FILE", file.to_owned()),
            (ENDPOINT_VARIABLE, server.url().replace("http:", "https:")),
        ]);
        assert_eq!(answer("ask", &folder.0, &environment).await, told, "{file}");
    }
    assert_eq!(access_key(&server), "AKENV");
}

/// Credentials that are never found.
#[derive(Debug)]
struct Never;

impl ProvideCredentials for Never {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test]
async fn credentials_that_do_not_come_are_not_waited_for_long() {
    let server = Server::start([]).await;
    let mut settings = settings(&server.url());
    settings.credentials = CredentialSource::Given(SharedCredentialsProvider::new(Never));
    settings.timeouts.credentials = Duration::from_millis(120);
    let error = Client::new(settings)
        .await
        .unwrap()
        .detach(&"eni-attach-1".into())
        .await
        .expect_err("it cannot be signed");
    let why = Why::NoCredentials("credentials provider timed out after 0 seconds".to_owned());
    let action = Action::DetachNetworkInterface;
    assert_eq!(
        (&error, error.meaning()),
        (&CallError { action, why }, Meaning::Denied)
    );
    assert_eq!(server.lines(), Vec::<String>::new());
}
