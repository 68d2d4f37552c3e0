//! The client against the fake VPC over HTTP, beside the same calls without a network between: what one says, the other
//! must say.

use std::net::SocketAddr;

use fake_vpc::weather::Fault;
use fake_vpc::{Cloud, Server};
use model::MacAddr;
use vpc_eni::ec2::{
    Action, Addresses, Amount, Called, Ec2, EniId, InstanceId, Meaning, Metadata, MetadataError, NewEni,
    SubnetId, Tags, VpcId, Which,
};
use vpc_eni_sdk::{Client, ImdsMetadata};

use crate::server::settings;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A cloud with an instance in it, its endpoints, and who asks them.
struct World {
    cloud: Cloud,
    _server: Server,
    /// Over HTTP.
    client: Client,
    metadata: ImdsMetadata,
    /// Within this process.
    near: fake_vpc::Client,
    vpc: VpcId,
    subnet: SubnetId,
    instance: InstanceId,
}

impl World {
    async fn start() -> Self {
        let cloud = Cloud::new(7);
        let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
        let network = "10.0.0.0/20".parse().unwrap();
        let network_v6 = "2001:db8::/64".parse().unwrap();
        let tags = Tags::from([("kubernetes.io/role/cni".to_owned(), "1".to_owned())]);
        let subnet = cloud
            .make_dual_subnet(&vpc, network, network_v6, "eu-central-1a", tags)
            .unwrap();
        let group = cloud.make_security_group(&vpc, Tags::new()).unwrap();
        let instance = cloud.make_instance("m5.large", &subnet, &[group]).unwrap();
        let server = Server::start(&cloud, ANY).unwrap();
        let metadata = server.serve_metadata(&instance, ANY).unwrap();
        Self {
            client: Client::new(settings(&format!("http://{}", server.ec2())))
                .await
                .unwrap(),
            metadata: ImdsMetadata::new(Some(&format!("http://{metadata}"))).unwrap(),
            near: cloud.client(),
            _server: server,
            cloud,
            vpc,
            subnet,
            instance,
        }
    }

    fn new_eni(&self, amount: Amount, client_token: &str) -> NewEni {
        NewEni {
            subnet: self.subnet.clone(),
            groups: self.cloud.default_group(&self.vpc).into_iter().collect(),
            description: "of a test".to_owned(),
            tags: Tags::from([("owner".to_owned(), "causeway".to_owned())]),
            amount,
            client_token: client_token.to_owned(),
        }
    }

    /// The instance's interfaces, which both say alike.
    async fn attached(&self) -> Vec<vpc_eni::ec2::Eni> {
        self.listed(&Which::AttachedTo(self.instance.clone())).await
    }

    async fn listed(&self, which: &Which) -> Vec<vpc_eni::ec2::Eni> {
        let far = self.client.interfaces(which).await.unwrap();
        assert_eq!(Ok(&far), self.near.interfaces(which).await.as_ref());
        far
    }
}

#[tokio::test]
async fn what_is_there_is_told_alike_over_http_and_without() {
    let world = World::start().await;
    let World { client, near, .. } = &world;
    let instance = &world.instance;
    assert_eq!(client.instance(instance).await, near.instance(instance).await);
    for instance_type in ["m5.large", "m0.none"] {
        assert_eq!(
            client.limits(instance_type).await,
            near.limits(instance_type).await
        );
    }
    for zone in ["eu-central-1a", "eu-central-1b"] {
        assert_eq!(
            client.subnets(&world.vpc, zone).await,
            near.subnets(&world.vpc, zone).await
        );
    }
    assert_eq!(
        client
            .subnets(&world.vpc, "eu-central-1a")
            .await
            .map(|all| all.len()),
        Ok(1)
    );
    assert_eq!(world.attached().await.len(), 1);
    let identity = world.metadata.identity().await.unwrap();
    assert_eq!(
        world.cloud.imds(instance).identity().await.as_ref(),
        Ok(&identity)
    );
    let primary: MacAddr = identity.primary_mac;
    let networks = world.metadata.vpc_networks(primary).await;
    assert_eq!(networks, world.cloud.imds(instance).vpc_networks(primary).await);
}

#[tokio::test]
async fn an_interface_lives_from_its_making_to_its_end() {
    let world = World::start().await;
    let client = &world.client;
    let new = world.new_eni(Amount::Prefixes(1), "token-1");
    let made = client.create(&new).await.unwrap();
    assert_eq!((made.prefixes.len(), &made.tags), (1, &new.tags));
    assert_eq!(
        client.create(&new).await.as_ref(),
        Ok(&made),
        "a token makes one interface"
    );
    let available = Which::Available {
        vpc: world.vpc.clone(),
        tag_key: "owner".to_owned(),
        tag_value: Some("causeway".to_owned()),
    };
    assert_eq!(world.listed(&available).await, std::slice::from_ref(&made));

    let attachment = client.attach(&made.id, &world.instance, 1).await.unwrap();
    client.delete_on_termination(&made.id, &attachment).await.unwrap();
    let addresses = client.assign(&made.id, Amount::Addresses(2)).await.unwrap();
    assert_eq!((addresses.secondary.len(), addresses.prefixes.len()), (2, 0));
    let more = client.assign(&made.id, Amount::Prefixes(1)).await.unwrap();
    assert_eq!((more.secondary.len(), more.prefixes.len()), (0, 1));
    let more_v6 = client.assign(&made.id, Amount::PrefixesV6(1)).await.unwrap();
    client
        .set_groups(&made.id, &world.new_eni(Amount::Addresses(0), "").groups)
        .await
        .unwrap();
    client
        .tag(&made.id, &Tags::from([("seen".to_owned(), "yes".to_owned())]))
        .await
        .unwrap();
    let attached = world.attached().await;
    let it = attached
        .iter()
        .find(|eni| eni.id == made.id)
        .expect("it is attached");
    let place = it.attachment.as_ref().expect("it is attached");
    assert_eq!(
        (&place.id, place.device_index, place.delete_on_termination),
        (&attachment, 1, true)
    );
    assert_eq!(
        (&it.secondary, &it.prefixes, &it.prefixes_v6, it.tags.len()),
        (
            &addresses.secondary,
            &[made.prefixes.clone(), more.prefixes.clone()].concat(),
            &more_v6.prefixes_v6,
            2
        )
    );

    let all = Addresses {
        secondary: addresses.secondary,
        prefixes: more.prefixes,
        prefixes_v6: more_v6.prefixes_v6,
    };
    client.unassign(&made.id, &all).await.unwrap();
    let [now] = world
        .listed(&Which::Named(made.id.clone()))
        .await
        .try_into()
        .expect("one");
    assert_eq!(
        (now.secondary, now.prefixes, now.prefixes_v6),
        (vec![], made.prefixes.clone(), vec![])
    );

    let in_use = client.delete(&made.id).await.expect_err("it is attached");
    assert_eq!(in_use.code(), Some("InvalidParameterValue"));
    client.detach(&attachment).await.unwrap();
    client.delete(&made.id).await.unwrap();
    let gone = client
        .interfaces(&Which::Named(made.id.clone()))
        .await
        .expect_err("it is gone");
    assert_eq!(
        (gone.action, gone.meaning()),
        (Action::DescribeNetworkInterfaces, Meaning::NotFound)
    );
    assert_eq!(world.attached().await.len(), 1);
}

#[tokio::test]
async fn a_list_of_many_pages_is_whole() {
    let world = World::start().await;
    // More than EC2 gives at once.
    for number in 0..1_001 {
        let new = world.new_eni(Amount::Addresses(0), &format!("token-{number}"));
        world.near.create(&new).await.unwrap();
    }
    let available = Which::Available {
        vpc: world.vpc.clone(),
        tag_key: "owner".to_owned(),
        tag_value: None,
    };
    let whole = world.near.interfaces(&available).await.unwrap();
    assert_eq!(whole.len(), 1_001);
    let before = world.cloud.count(Action::DescribeNetworkInterfaces);
    assert_eq!(world.client.interfaces(&available).await, Ok(whole));
    assert_eq!(
        world.cloud.count(Action::DescribeNetworkInterfaces) - before,
        2,
        "pages"
    );
}

#[tokio::test]
async fn what_befalls_a_call_is_told_once_and_truly() {
    let world = World::start().await;
    let eni = world.attached().await.remove(0).id;
    let assign =
        async |eni: &EniId| -> Called<Addresses> { world.client.assign(eni, Amount::Addresses(1)).await };
    let action = Action::AssignPrivateIpAddresses;
    let rows = [
        (Fault::refused("RequestLimitExceeded"), Meaning::Throttled, 0),
        (Fault::refused("UnauthorizedOperation"), Meaning::Denied, 0),
        (
            Fault::refused("InsufficientFreeAddressesInSubnet"),
            Meaning::SubnetExhausted,
            0,
        ),
        (Fault::done_and_refused("InternalError"), Meaning::Unknown, 1),
        (Fault::Lost, Meaning::Unknown, 0),
        (Fault::AnswerLost, Meaning::Unknown, 1),
    ];
    for (fault, meaning, happened) in rows {
        let before = world
            .listed(&Which::Named(eni.clone()))
            .await
            .remove(0)
            .secondary
            .len();
        let calls = world.cloud.count(action);
        world.cloud.fail(action, 1, fault.clone());
        let error = assign(&eni).await.expect_err("it fails");
        assert_eq!(
            (error.action, error.meaning()),
            (action, meaning),
            "{fault:?}: {error}"
        );
        assert_eq!(world.cloud.count(action) - calls, 1, "{fault:?}: once");
        let after = world
            .listed(&Which::Named(eni.clone()))
            .await
            .remove(0)
            .secondary
            .len();
        assert_eq!(after - before, happened, "{fault:?}");
    }
    assert_eq!(assign(&eni).await.map(|came| came.secondary.len()), Ok(1));
    world.cloud.set_weather(|weather| weather.outage = true);
    assert_eq!(
        assign(&eni).await.map_err(|error| error.meaning()),
        Err(Meaning::Unknown)
    );
}

#[tokio::test]
async fn a_metadata_service_that_is_away_or_disabled_gives_no_answer() {
    let world = World::start().await;
    let is_silent = async || matches!(world.metadata.identity().await, Err(MetadataError::NoAnswer(_)));
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_disabled = true);
    assert!(is_silent().await);
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_disabled = false);
    assert!(!is_silent().await);
    // With a session at hand.
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_disabled = true);
    assert!(is_silent().await);
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    assert!(is_silent().await);
}
