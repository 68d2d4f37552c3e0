//! What goes wrong with a call, and in which words.

use std::time::Duration;

use vpc_eni::ec2::{Action, CallError, Called, Ec2, Meaning, Why};
use vpc_eni_sdk::{Client, SettingsError, Timeouts};

use crate::server::{Reply, Server, settings};

/// One call that changes something, which no failure may repeat.
async fn detach(client: &Client) -> Called<()> {
    client.detach(&"eni-attach-1".into()).await
}

/// Why it failed.
async fn why(client: &Client) -> Why {
    let error = detach(client).await.expect_err("it fails");
    assert_eq!(error.action, Action::DetachNetworkInterface);
    error.why
}

#[tokio::test]
async fn ec2s_errors_keep_their_codes_and_words() {
    let rows = [
        (503, "RequestLimitExceeded", Meaning::Throttled),
        (400, "UnauthorizedOperation", Meaning::Denied),
        (401, "AuthFailure", Meaning::Denied),
        (400, "InvalidAttachmentID.NotFound", Meaning::NotFound),
        (400, "InsufficientCidrBlocks", Meaning::SubnetExhausted),
        (500, "InternalError", Meaning::Unknown),
        (503, "Unavailable", Meaning::Unknown),
        (400, "OperationNotPermitted", Meaning::Other),
    ];
    for (status, code, meaning) in rows {
        let server = Server::start([Reply::error(status, code, "Some &lt;words&gt;.")]).await;
        let error = detach(&server.client().await).await.expect_err(code);
        assert_eq!(
            (&error, error.meaning()),
            (
                &CallError::refused(Action::DetachNetworkInterface, code, "Some <words>."),
                meaning
            )
        );
    }
}

#[tokio::test]
async fn what_does_not_speak_as_ec2_is_no_answer() {
    let no_error = |status: u16| format!("HTTP {status} without an error of EC2");
    let rows = [
        (Reply::text(502, "<html>Bad Gateway</html>"), no_error(502)),
        (Reply::text(503, ""), no_error(503)),
        (Reply::text(400, "{\"message\": \"no\"}"), no_error(400)),
        (Reply::text(500, "<Response><Errors><Error>"), no_error(500)),
        (
            Reply::text(
                500,
                "<Response><Errors><Error><Message>m</Message></Error></Errors></Response>",
            ),
            no_error(500),
        ),
    ];
    for (reply, words) in rows {
        let server = Server::start([reply]).await;
        assert_eq!(why(&server.client().await).await, Why::NoAnswer(words));
    }
}

/// Each of them once: whether it happened cannot be known, and a second request might do it twice.
#[tokio::test]
async fn no_failure_is_asked_again() {
    let rows = [
        Reply::error(503, "RequestLimitExceeded", "Request limit exceeded."),
        Reply::error(500, "InternalError", "An internal error has occurred"),
        Reply::text(502, ""),
        Reply::Close,
    ];
    for reply in rows {
        let server = Server::start([reply.clone(), Reply::text(200, "<r/>")]).await;
        let client = server.client().await;
        detach(&client).await.expect_err("it fails");
        assert_eq!(server.lines(), ["POST /"], "{reply:?}");
        // The next is a call of its own, over a connection that works.
        assert_eq!(detach(&client).await, Ok(()), "{reply:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_after_the_request_is_no_answer() {
    let server = Server::start([Reply::Close]).await;
    let words =
        "dispatch failure: other: client error (SendRequest): connection closed before message completed";
    assert_eq!(why(&server.client().await).await, Why::NoAnswer(words.to_owned()));
    assert_eq!(server.lines(), ["POST /"]);
}

#[tokio::test]
async fn nobody_there_is_no_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(settings(&format!("http://{address}"))).await.unwrap();
    let words = "dispatch failure: io error: client error (Connect): tcp connect error: Connection refused (os error 111)";
    assert_eq!(why(&client).await, Why::NoAnswer(words.to_owned()));
}

#[tokio::test]
async fn each_wait_ends() {
    let ms = Duration::from_millis;
    let long = settings("").timeouts;
    let rows = [
        (
            Reply::Silence,
            Timeouts {
                read: ms(500),
                ..long
            },
            "dispatch failure: timeout: HTTP read timeout occurred after 500ms: timed out",
        ),
        (
            Reply::Silence,
            Timeouts {
                call: ms(500),
                ..long
            },
            "request has timed out: operation timeout (all attempts including retries) occurred after 500ms",
        ),
        (
            Reply::Stall,
            Timeouts {
                call: ms(500),
                ..long
            },
            "request has timed out: operation timeout (all attempts including retries) occurred after 500ms",
        ),
    ];
    for (reply, timeouts, words) in rows {
        let server = Server::start([reply]).await;
        let mut settings = settings(&server.url());
        settings.timeouts = timeouts;
        let client = Client::new(settings).await.unwrap();
        assert_eq!(why(&client).await, Why::NoAnswer(words.to_owned()));
        assert_eq!(server.lines(), ["POST /"]);
    }
}

#[tokio::test]
async fn calls_are_signed_for_the_region_and_say_who_makes_them() {
    let server = Server::start([Reply::text(200, "<r/>")]).await;
    detach(&server.client().await).await.unwrap();
    let [asked] = server.asked().try_into().expect("one");
    assert_eq!(asked.line, "POST /");
    let scope = asked
        .authorization
        .split_once(' ')
        .expect("a method and its parameters");
    assert_eq!(scope.0, "AWS4-HMAC-SHA256");
    let credential = scope.1.split(',').next().expect("the credential");
    assert!(
        credential.starts_with("Credential=AKIDEXAMPLE/")
            && credential.ends_with("/eu-central-1/ec2/aws4_request"),
        "{credential}"
    );
    let product = format!(" lib/causeway/{}", env!("CARGO_PKG_VERSION"));
    assert!(asked.agent.contains(&product), "{}", asked.agent);
    assert!(
        asked
            .form
            .contains(&("Version".to_owned(), "2016-11-15".to_owned())),
        "{:?}",
        asked.form
    );
}

#[tokio::test]
async fn settings_that_no_call_could_be_made_with_are_refused() {
    let endpoints = [
        "ec2.local",
        "ftp://ec2.local",
        "http://",
        "/path",
        "",
        "http://a b",
        "http:///x",
    ];
    for endpoint in endpoints {
        let made = Client::new(settings(endpoint)).await.map(drop);
        assert_eq!(made, Err(SettingsError::Endpoint(endpoint.to_owned())));
    }
    for region in ["", "eu central", "eu-central-1/", "EU-CENTRAL-1", "a.b"] {
        let mut settings = settings("http://127.0.0.1");
        settings.region = region.to_owned();
        let made = Client::new(settings).await.map(drop);
        assert_eq!(made, Err(SettingsError::Region(region.to_owned())));
    }
}
