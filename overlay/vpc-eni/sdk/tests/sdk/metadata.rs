//! The instance's metadata service.

use ipnetwork::IpNetwork;
use model::MacAddr;
use vpc_eni::ec2::{Identity, Metadata, MetadataError};
use vpc_eni_sdk::{ImdsMetadata, SettingsError};

use crate::server::{Reply, Server};

const MAC: MacAddr = MacAddr([0x02, 0x81, 0x60, 0xcb, 0x27, 0x37]);
const MACS: &str = "/latest/meta-data/network/interfaces/macs/02:81:60:cb:27:37";

fn text(text: &str) -> Reply {
    Reply::text(200, text)
}

async fn started(replies: impl IntoIterator<Item = Reply>) -> (Server, ImdsMetadata) {
    let server = Server::start(replies).await;
    let metadata = ImdsMetadata::new(Some(&server.url())).unwrap();
    (server, metadata)
}

fn missing<T>(path: &str, why: &str) -> Result<T, MetadataError> {
    Err(MetadataError::Missing {
        path: path.to_owned(),
        why: why.to_owned(),
    })
}

#[tokio::test]
async fn an_instance_is_told_who_it_is_within_one_session() {
    let (server, metadata) = started([
        Reply::Token,
        text("i-1"),
        text("eu-central-1"),
        text("eu-central-1a"),
        text("m5.large\n"),
        text("02:81:60:cb:27:37"),
    ])
    .await;
    let identity = Identity {
        instance: "i-1".into(),
        region: "eu-central-1".to_owned(),
        zone: "eu-central-1a".to_owned(),
        instance_type: "m5.large".to_owned(),
        primary_mac: MAC,
    };
    assert_eq!(metadata.identity().await, Ok(identity));
    assert_eq!(
        server.lines(),
        [
            "PUT /latest/api/token",
            "GET /latest/meta-data/instance-id",
            "GET /latest/meta-data/placement/region",
            "GET /latest/meta-data/placement/availability-zone",
            "GET /latest/meta-data/instance-type",
            "GET /latest/meta-data/mac",
        ]
    );
}

#[tokio::test]
async fn a_vpc_has_ipv4_networks_and_perhaps_ipv6_networks() {
    let networks =
        |texts: &[&str]| -> Vec<IpNetwork> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let rows = [
        (
            text("10.0.0.0/16\n100.64.0.0/16"),
            text("2001:db8::/56"),
            networks(&["10.0.0.0/16", "100.64.0.0/16", "2001:db8::/56"]),
        ),
        (
            text("10.0.0.0/16"),
            Reply::text(404, "<html/>"),
            networks(&["10.0.0.0/16"]),
        ),
        (text("10.0.0.0/16\n"), text(""), networks(&["10.0.0.0/16"])),
    ];
    for (v4, v6, networks) in rows {
        let (server, metadata) = started([Reply::Token, v4, v6]).await;
        assert_eq!(metadata.vpc_networks(MAC).await, Ok(networks));
        assert_eq!(
            server.lines(),
            [
                "PUT /latest/api/token".to_owned(),
                format!("GET {MACS}/vpc-ipv4-cidr-blocks"),
                format!("GET {MACS}/vpc-ipv6-cidr-blocks"),
            ]
        );
    }
}

#[tokio::test]
async fn what_is_not_there_or_makes_no_sense_is_missing() {
    let v4 = &format!("{MACS}/vpc-ipv4-cidr-blocks")["/latest/meta-data/".len()..];
    let rows = [
        (Reply::text(404, "<html/>"), "there is nothing"),
        (text(""), "there is nothing"),
        (text(" \n"), "there is nothing"),
        (text("10.0.0.0/33"), "\"10.0.0.0/33\""),
        (Reply::text(400, "no"), "HTTP 400"),
    ];
    for (reply, why) in rows {
        let (_server, metadata) = started([Reply::Token, reply, Reply::text(404, "")]).await;
        assert_eq!(metadata.vpc_networks(MAC).await, missing(v4, why));
    }
    let (_server, metadata) = started([
        Reply::Token,
        text("i-1"),
        text("r"),
        text("z"),
        text("t"),
        text("02:81"),
    ])
    .await;
    assert_eq!(metadata.identity().await, missing("mac", "\"02:81\""));
}

#[tokio::test]
async fn a_service_that_is_disabled_says_so_or_nothing() {
    let forbidden = "failed to load IMDS session token: service error: request forbidden: IMDS is disabled or the \
        caller has insufficient permissions.";
    let rows = [
        (vec![Reply::text(403, "")], forbidden),
        (
            vec![Reply::Token, Reply::text(403, "")],
            "HTTP 403: it is disabled",
        ),
        (
            vec![Reply::Close],
            "failed to load IMDS session token: dispatch failure: other: client error (SendRequest): connection \
             closed before message completed",
        ),
    ];
    for (replies, words) in rows {
        let (_server, metadata) = started(replies).await;
        assert_eq!(
            metadata.identity().await,
            Err(MetadataError::NoAnswer(words.to_owned()))
        );
    }
}

/// A hop limit of 1 ends in this: the reply does not reach the pod.
#[tokio::test]
async fn a_reply_that_does_not_come_is_not_waited_for_long() {
    let (server, metadata) = started([Reply::Silence]).await;
    let words = "failed to load IMDS session token: dispatch failure: timeout: HTTP read timeout occurred after 1s: \
        timed out";
    assert_eq!(
        metadata.identity().await,
        Err(MetadataError::NoAnswer(words.to_owned()))
    );
    assert_eq!(server.lines(), ["PUT /latest/api/token"]);
}

#[tokio::test]
async fn what_the_service_cannot_answer_now_is_asked_again() {
    let busy = || Reply::text(503, "");
    let (server, metadata) = started([Reply::Token, busy(), text("10.0.0.0/16"), Reply::text(404, "")]).await;
    assert_eq!(
        metadata.vpc_networks(MAC).await,
        Ok(vec!["10.0.0.0/16".parse().unwrap()])
    );
    assert_eq!(server.left(), 0);
    let (server, metadata) = started([Reply::Token, busy(), busy(), busy(), busy()]).await;
    let refused = MetadataError::NoAnswer("HTTP 503".to_owned());
    assert_eq!(metadata.vpc_networks(MAC).await, Err(refused));
    assert_eq!(server.left(), 0);
}

/// The SDK asks four times by itself, with the session that it has.
#[tokio::test]
async fn a_session_that_is_not_known_any_more_is_followed_by_a_new_one() {
    let unknown = || Reply::text(401, "");
    let within_the_old = [Reply::Token, unknown(), unknown(), unknown(), unknown()];
    let v4 = [Reply::Token, text("10.0.0.0/16"), Reply::text(404, "")];
    let (server, metadata) = started(within_the_old.into_iter().chain(v4)).await;
    let networks = Ok(vec!["10.0.0.0/16".parse().unwrap()]);
    assert_eq!(metadata.vpc_networks(MAC).await, networks);
    assert_eq!(server.left(), 0, "{:?}", server.lines());
}

#[test]
fn an_endpoint_that_is_none_is_refused() {
    for endpoint in ["169.254.169.254", "http://", ""] {
        let made = ImdsMetadata::new(Some(endpoint)).map(drop);
        assert_eq!(made.unwrap_err(), SettingsError::Endpoint(endpoint.to_owned()));
    }
}
