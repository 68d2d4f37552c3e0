//! The instance metadata service.

use std::net::SocketAddr;

use fake_vpc::weather::{MetadataMood, Weather};
use http::StatusCode;
use vpc_eni::ec2::{Amount, Identity, Metadata, MetadataError};

use crate::support::{Http, World, loopback};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

struct Node {
    http: Http,
    at: SocketAddr,
    token: String,
}

impl Node {
    async fn new(world: &World) -> Self {
        let http = Http::new(&world.cloud);
        let at = http.server.serve_metadata(&world.instance, loopback()).unwrap();
        let (status, token) = http
            .send("PUT", at, "/latest/api/token", &[(TTL, "60")], "")
            .await
            .unwrap();
        assert_eq!(status, StatusCode::OK);
        Self { http, at, token }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let headers = [(TOKEN, self.token.as_str())];
        self.http.send("GET", self.at, path, &headers, "").await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let (status, text) = self.get(&format!("/latest/{path}")).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        text
    }
}

#[tokio::test]
async fn the_instance_knows_itself() {
    let world = World::new();
    let imds = world.cloud.imds(&world.instance);
    let primary = world.primary();
    let expected = Identity {
        instance: world.instance.clone(),
        region: "eu-west-1".to_owned(),
        zone: "eu-west-1a".to_owned(),
        instance_type: "m5.large".to_owned(),
        primary_mac: primary.mac,
    };
    assert_eq!(imds.identity().await, Ok(expected));
    world
        .cloud
        .associate_network(&world.vpc, "100.64.0.0/16".parse().unwrap())
        .unwrap();
    let networks = vec!["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
    assert_eq!(imds.vpc_networks(primary.mac).await, Ok(networks));
    let missing = imds.vpc_networks("0a:00:00:00:00:ff".parse().unwrap()).await;
    let expected = MetadataError::Missing {
        path: "network/interfaces/macs/0a:00:00:00:00:ff/vpc-ipv4-cidr-blocks".to_owned(),
        why: "404 Not Found".to_owned(),
    };
    assert_eq!(missing, Err(expected));
}

#[tokio::test]
async fn every_path_has_what_the_user_guide_says() {
    let world = World::new();
    let eni = world.attached(Amount::Addresses(2), 1);
    world
        .cloud
        .meddle(&fake_vpc::request::Request::AssignPrivateIpAddresses {
            eni: eni.id.clone(),
            amount: Amount::Prefixes(2),
        })
        .unwrap();
    let node = Node::new(&world).await;
    let primary = world.primary();
    let (own, other) = (format!("{}/", primary.mac), format!("{}/", eni.mac));
    let macs = "meta-data/network/interfaces/macs";
    for (path, expected) in [
        ("meta-data/instance-id", world.instance.0.clone()),
        ("meta-data/instance-type", "m5.large".to_owned()),
        ("meta-data/placement/region", "eu-west-1".to_owned()),
        ("meta-data/placement/availability-zone", "eu-west-1a".to_owned()),
        ("meta-data/placement/", "availability-zone\nregion".to_owned()),
        ("meta-data/mac", primary.mac.to_string()),
        ("meta-data/local-ipv4", "10.0.1.4".to_owned()),
        (macs, format!("{own}\n{other}")),
        (&format!("{macs}/"), format!("{own}\n{other}")),
        (&format!("{macs}/{other}interface-id"), eni.id.0.clone()),
        (&format!("{macs}/{own}device-number"), "0".to_owned()),
        (&format!("{macs}/{other}device-number"), "1".to_owned()),
        (
            &format!("{macs}/{other}local-ipv4s"),
            "10.0.1.5\n10.0.1.6\n10.0.1.7".to_owned(),
        ),
        (
            &format!("{macs}/{other}ipv4-prefix"),
            "10.0.1.16/28\n10.0.1.32/28".to_owned(),
        ),
        (&format!("{macs}/{other}subnet-id"), world.subnet.0.clone()),
        (
            &format!("{macs}/{other}subnet-ipv4-cidr-block"),
            "10.0.1.0/24".to_owned(),
        ),
        (&format!("{macs}/{other}vpc-id"), world.vpc.0.clone()),
        (
            &format!("{macs}/{other}vpc-ipv4-cidr-blocks"),
            "10.0.0.0/16".to_owned(),
        ),
        (
            &format!("{macs}/{other}security-group-ids"),
            world.group.0.clone(),
        ),
        (
            &format!("{macs}/{own}"),
            "device-number\ninterface-id\nlocal-ipv4s\nmac\nowner-id\nsecurity-group-ids\nsubnet-id\n\
             subnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-block\nvpc-ipv4-cidr-blocks"
                .to_owned(),
        ),
        ("meta-data/iam/security-credentials/", "fake-node-role".to_owned()),
        ("", "dynamic/\nmeta-data/".to_owned()),
    ] {
        assert_eq!(node.text(path).await, expected, "{path}");
    }
    let document = node.text("dynamic/instance-identity/document").await;
    for member in [
        r#""region" : "eu-west-1""#,
        r#""availabilityZone" : "eu-west-1a""#,
        r#""instanceType" : "m5.large""#,
        r#""privateIp" : "10.0.1.4""#,
        &format!(r#""instanceId" : "{}""#, world.instance),
    ] {
        assert!(document.contains(member), "{document}");
    }
    let keys = node
        .text("meta-data/iam/security-credentials/fake-node-role")
        .await;
    for member in [
        r#""Code" : "Success""#,
        r#""AccessKeyId" : "ASIAFAKE"#,
        r#""Expiration" : "20"#,
    ] {
        assert!(keys.contains(member), "{keys}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let world = World::new();
    let node = Node::new(&world).await;
    let primary = world.primary().mac;
    for path in [
        "/latest/meta-data/nothing",
        "/latest/meta-data/instance-id/more",
        "/latest/meta-data/inst",
        &format!("/latest/meta-data/network/interfaces/macs/{primary}/ipv4-prefix"),
        "/latest/meta-data/network/interfaces/macs/0a:00:00:00:00:ff/",
        "/",
        "/2009-04-04",
    ] {
        assert_eq!(
            node.get(path).await,
            (StatusCode::NOT_FOUND, String::new()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn nothing_is_told_outside_a_session() {
    let world = World::new();
    let node = Node::new(&world).await;
    let instance_id = "/latest/meta-data/instance-id";
    let token = "/latest/api/token";
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let rows: [(&str, &str, Headers<'_>, StatusCode); 11] = [
        ("GET", instance_id, &[], StatusCode::UNAUTHORIZED),
        ("GET", instance_id, &[(TOKEN, "guess")], StatusCode::UNAUTHORIZED),
        ("GET", "/latest/meta-data/nothing", &[], StatusCode::UNAUTHORIZED),
        ("PUT", token, &[], StatusCode::BAD_REQUEST),
        ("PUT", token, &[(TTL, "0")], StatusCode::BAD_REQUEST),
        ("PUT", token, &[(TTL, "21601")], StatusCode::BAD_REQUEST),
        ("PUT", token, &[(TTL, "long")], StatusCode::BAD_REQUEST),
        (
            "PUT",
            token,
            &[(TTL, "60"), ("x-forwarded-for", "10.0.0.1")],
            StatusCode::FORBIDDEN,
        ),
        ("PUT", token, &[(TTL, "21600")], StatusCode::OK),
        ("GET", token, &[(TTL, "60")], StatusCode::METHOD_NOT_ALLOWED),
        (
            "POST",
            instance_id,
            &[(TOKEN, &node.token)],
            StatusCode::METHOD_NOT_ALLOWED,
        ),
    ];
    for (method, path, headers, expected) in rows {
        let (status, _) = node.http.send(method, node.at, path, headers, "").await.unwrap();
        assert_eq!(status, expected, "{method} {path} {headers:?}");
    }
}

#[tokio::test]
async fn each_instance_sees_itself() {
    let world = World::new();
    let other = world.cloud.make_instance("t3.micro", &world.subnet, &[]).unwrap();
    let node = Node::new(&world).await;
    let at = node.http.server.serve_metadata(&other, loopback()).unwrap();
    let (_, token) = node
        .http
        .send("PUT", at, "/latest/api/token", &[(TTL, "60")], "")
        .await
        .unwrap();
    let headers = [(TOKEN, token.as_str())];
    let (_, id) = node
        .http
        .send("GET", at, "/latest/meta-data/instance-id", &headers, "")
        .await
        .unwrap();
    assert_eq!(
        (id, node.text("meta-data/instance-id").await),
        (other.0, world.instance.0.clone())
    );
}

#[tokio::test(start_paused = true)]
async fn what_it_tells_may_lag_behind_and_lack_things() {
    let world = World::new();
    let second = std::time::Duration::from_secs(1);
    tokio::time::advance(60 * second).await;
    let mood = |change: fn(&mut MetadataMood, &World)| {
        world.cloud.set_weather(|weather| {
            *weather = Weather::default();
            change(&mut weather.metadata, &world);
        });
    };
    let eni = world.attached(Amount::Addresses(2), 1);
    let interfaces = async || {
        let imds = world.cloud.imds(&world.instance);
        // A path of the interface is there where the interface is told of.
        imds.vpc_networks(eni.mac).await.is_ok()
    };
    assert!(interfaces().await);
    mood(|mood, _| mood.behind = std::time::Duration::from_secs(10));
    assert!(!interfaces().await);
    assert!(
        world.cloud.imds(&world.instance).identity().await.is_ok(),
        "it knows itself"
    );
    tokio::time::advance(10 * second).await;
    assert!(interfaces().await);
    mood(|mood, world| mood.missing = world.enis().into_iter().skip(1).map(|eni| eni.id).collect());
    assert!(!interfaces().await);
    mood(|mood, _| mood.is_down = true);
    let silence = MetadataError::NoAnswer("nobody is there".to_owned());
    assert_eq!(world.cloud.imds(&world.instance).identity().await, Err(silence));
    mood(|mood, _| mood.is_disabled = true);
    let disabled = MetadataError::Missing {
        path: "latest/api/token".to_owned(),
        why: "403 Forbidden".to_owned(),
    };
    assert_eq!(world.cloud.imds(&world.instance).identity().await, Err(disabled));
}

#[tokio::test]
async fn the_weather_is_felt_over_http() {
    let world = World::new();
    let eni = world.attached(Amount::Addresses(2), 1);
    let node = Node::new(&world).await;
    let lack = eni.secondary[0].into();
    world
        .cloud
        .set_weather(|weather| weather.metadata.missing_addresses = [lack].into());
    let path = format!("meta-data/network/interfaces/macs/{}/local-ipv4s", eni.mac);
    assert_eq!(
        node.text(&path).await,
        format!("{}\n{}", eni.primary, eni.secondary[1])
    );
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_disabled = true);
    assert_eq!(
        node.get(&format!("/latest/{path}")).await.0,
        StatusCode::FORBIDDEN
    );
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    let silence = node
        .http
        .send("GET", node.at, "/latest/meta-data/mac", &[], "")
        .await;
    assert_eq!(silence, None);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_has_not_come_is_not_told_of() {
    let world = World::new();
    let second = std::time::Duration::from_secs(1);
    world
        .cloud
        .set_weather(|weather| weather.device_after = std::time::Duration::from_secs(4));
    let eni = world.attached(Amount::Addresses(0), 1);
    let imds = world.cloud.imds(&world.instance);
    assert!(imds.vpc_networks(eni.mac).await.is_err());
    tokio::time::advance(4 * second).await;
    assert!(imds.vpc_networks(eni.mac).await.is_ok());
}
