//! What the calls do, and what they answer.

use fake_vpc::request::{Attribute, Filter, Reply, Request, Search, SecurityGroup};
use fake_vpc::{Cloud, cloud};
use http::StatusCode;
use vpc_eni::ec2::{
    Action, Addresses, Amount, Attached, Ec2, Eni, EniId, Instance, Limits, Subnet, Tags, VpcId, Which,
};

use crate::support::{Http, SIGNED, World, parse, tags, v4};

#[tokio::test]
async fn a_new_interface_is_as_it_was_asked_for() {
    let world = World::new();
    let expected = Eni {
        id: EniId::from("eni-0000000000000000c"),
        subnet: world.subnet.clone(),
        mac: "0a:00:00:00:00:0b".parse().unwrap(),
        description: "of a test".to_owned(),
        tags: tags([("causeway", "yes")]),
        groups: vec![world.group.clone()],
        primary: v4("10.0.1.5"),
        secondary: vec![v4("10.0.1.6"), v4("10.0.1.7")],
        prefixes: vec![],
        prefixes_v6: vec![],
        kind: "interface".to_owned(),
        attachment: None,
    };
    let made = world.ec2.create(&world.new_eni(Amount::Addresses(2))).await;
    assert_eq!(made, Ok(expected.clone()));
    let named = world.ec2.interfaces(&Which::Named(expected.id.clone())).await;
    assert_eq!(named, Ok(vec![expected]));
}

#[tokio::test]
async fn a_new_interface_has_the_prefixes_that_were_asked_for() {
    let world = World::new();
    let made = world
        .ec2
        .create(&world.new_eni(Amount::Prefixes(2)))
        .await
        .unwrap();
    // The first block of the subnet holds what AWS keeps.
    let prefixes = vec!["10.0.1.16/28".parse().unwrap(), "10.0.1.32/28".parse().unwrap()];
    assert_eq!(
        (made.primary, made.secondary, made.prefixes),
        (v4("10.0.1.5"), vec![], prefixes)
    );
    let made = world
        .ec2
        .create(&world.new_eni(Amount::PrefixesV6(1)))
        .await
        .unwrap();
    assert_eq!(made.prefixes_v6, ["2001:db8:0:1:1::/80".parse().unwrap()]);
}

#[tokio::test]
async fn an_interface_without_groups_has_its_vpcs_own() {
    let world = World::new();
    let mut new = world.new_eni(Amount::Addresses(0));
    new.groups.clear();
    let made = world.ec2.create(&new).await.unwrap();
    assert_eq!(
        Some(made.groups),
        world.cloud.default_group(&world.vpc).map(|group| vec![group])
    );
}

#[tokio::test]
async fn a_client_token_makes_one_interface_however_often_it_comes() {
    let world = World::new();
    let mut new = world.new_eni(Amount::Addresses(1));
    new.client_token = "once".to_owned();
    let first = world.ec2.create(&new).await.unwrap();
    let before = world.enis();
    assert_eq!(world.ec2.create(&new).await, Ok(first.clone()));
    assert_eq!(world.enis(), before);
    // What it is like by now.
    world.ec2.attach(&first.id, &world.instance, 1).await.unwrap();
    assert!(world.ec2.create(&new).await.unwrap().attachment.is_some());
    // It is not made again where it is gone.
    world.cloud.take_interface(&first.id).unwrap();
    assert_eq!(world.ec2.create(&new).await, Ok(first.clone()));
    assert_eq!(world.cloud.interface(&first.id), None);

    let (one, other) = (
        world.new_eni(Amount::Addresses(1)),
        world.new_eni(Amount::Addresses(1)),
    );
    let (one, other) = (
        world.ec2.create(&one).await.unwrap(),
        world.ec2.create(&other).await.unwrap(),
    );
    assert_ne!(one.id, other.id, "no token, no such promise");
}

#[tokio::test]
async fn an_assign_answers_with_what_is_new_and_nothing_else() {
    let world = World::new();
    let eni = world.attached(Amount::Addresses(1), 1);
    let addresses = world.ec2.assign(&eni.id, Amount::Addresses(2)).await.unwrap();
    let expected = Addresses {
        secondary: vec![v4("10.0.1.7"), v4("10.0.1.8")],
        ..Addresses::default()
    };
    assert_eq!(addresses, expected);
    let prefixes = world.ec2.assign(&eni.id, Amount::Prefixes(1)).await.unwrap();
    let expected = Addresses {
        prefixes: vec!["10.0.1.16/28".parse().unwrap()],
        ..Addresses::default()
    };
    assert_eq!(prefixes, expected);
    let prefixes = world.ec2.assign(&eni.id, Amount::PrefixesV6(2)).await.unwrap();
    let expected = Addresses {
        prefixes_v6: vec![
            "2001:db8:0:1:1::/80".parse().unwrap(),
            "2001:db8:0:1:2::/80".parse().unwrap(),
        ],
        ..Addresses::default()
    };
    assert_eq!(prefixes, expected);
    let held = world.cloud.interface(&eni.id).unwrap().eni;
    assert_eq!(held.secondary, [v4("10.0.1.6"), v4("10.0.1.7"), v4("10.0.1.8")]);
}

#[tokio::test]
async fn what_is_given_up_is_free_again() {
    let world = World::new();
    let eni = world.attached(Amount::Addresses(2), 1);
    world.ec2.assign(&eni.id, Amount::Prefixes(1)).await.unwrap();
    world.ec2.assign(&eni.id, Amount::PrefixesV6(1)).await.unwrap();
    // 256 - 5, the instance's own, and what this interface has.
    let free = || world.cloud.subnet(&world.subnet).unwrap().free_addresses;
    assert_eq!(free(), 251 - 1 - 3 - 16);
    let held = world.cloud.interface(&eni.id).unwrap().eni;
    let addresses = Addresses {
        secondary: vec![held.secondary[0]],
        prefixes: held.prefixes,
        prefixes_v6: held.prefixes_v6,
    };
    assert_eq!(world.ec2.unassign(&eni.id, &addresses).await, Ok(()));
    assert_eq!(free(), 251 - 1 - 2);
    let held = world.cloud.interface(&eni.id).unwrap().eni;
    assert_eq!(
        (held.secondary, held.prefixes, held.prefixes_v6),
        (vec![eni.secondary[1]], vec![], vec![])
    );
    let again = world.ec2.assign(&eni.id, Amount::Addresses(1)).await.unwrap();
    assert_eq!(again.secondary, [eni.secondary[0]]);
}

#[tokio::test]
async fn addresses_given_here_and_there_leave_no_whole_block() {
    let world = World::new();
    world.cloud.make_instance_type(
        "m99.huge",
        Limits {
            interfaces: 3,
            addresses_per_interface: 50,
            is_nitro: true,
        },
    );
    world.cloud.set_weather(|weather| weather.scattered = true);
    let huge = world.cloud.make_instance("m99.huge", &world.subnet, &[]).unwrap();
    let eni = world.cloud.interfaces_of(&huge)[0].eni.id.clone();
    world.ec2.assign(&eni, Amount::Addresses(48)).await.unwrap();
    let error = world.ec2.assign(&eni, Amount::Prefixes(1)).await.unwrap_err();
    assert_eq!(error.code(), Some("InsufficientCidrBlocks"), "{error}");
    assert!(world.cloud.subnet(&world.subnet).unwrap().free_addresses > 190);
}

#[tokio::test]
async fn an_attached_interface_is_the_instances() {
    let world = World::new();
    let eni = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap();
    let attachment = world.ec2.attach(&eni.id, &world.instance, 2).await.unwrap();
    let expected = Eni {
        attachment: Some(Attached {
            id: attachment.clone(),
            instance: world.instance.clone(),
            device_index: 2,
            card_index: 0,
            delete_on_termination: false,
        }),
        ..eni.clone()
    };
    let attached = Which::AttachedTo(world.instance.clone());
    assert_eq!(
        world.ec2.interfaces(&attached).await,
        Ok(vec![world.primary(), expected])
    );
    let expected = Instance {
        id: world.instance.clone(),
        instance_type: "m5.large".to_owned(),
        vpc: world.vpc.clone(),
        subnet: world.subnet.clone(),
        zone: "eu-west-1a".to_owned(),
        device_indexes: vec![0, 2],
    };
    assert_eq!(world.ec2.instance(&world.instance).await, Ok(expected));

    assert_eq!(
        world.ec2.delete_on_termination(&eni.id, &attachment).await,
        Ok(())
    );
    let held = world.cloud.interface(&eni.id).unwrap().eni.attachment.unwrap();
    assert!(held.delete_on_termination);
    assert_eq!(world.ec2.detach(&attachment).await, Ok(()));
    assert_eq!(world.ec2.interfaces(&attached).await, Ok(vec![world.primary()]));
    assert_eq!(world.ec2.delete(&eni.id).await, Ok(()));
    assert_eq!(world.enis(), [world.primary()]);
}

#[tokio::test]
async fn groups_and_tags_are_changed_for_all_to_see() {
    let world = World::new();
    let eni = world.primary();
    let group = world.cloud.make_security_group(&world.vpc, Tags::new()).unwrap();
    assert_eq!(
        world.ec2.set_groups(&eni.id, std::slice::from_ref(&group)).await,
        Ok(())
    );
    assert_eq!(
        world.ec2.tag(&eni.id, &tags([("a", "1"), ("b", "2")])).await,
        Ok(())
    );
    assert_eq!(world.ec2.tag(&eni.id, &tags([("b", "3")])).await, Ok(()));
    let expected = Eni {
        groups: vec![group],
        tags: tags([("a", "1"), ("b", "3")]),
        ..eni
    };
    assert_eq!(world.enis(), [expected]);
}

#[tokio::test]
async fn a_terminated_instance_takes_along_what_goes_with_it() {
    let world = World::new();
    let goes = world.attached(Amount::Addresses(0), 1);
    let stays = world.attached(Amount::Addresses(0), 2);
    world
        .ec2
        .delete_on_termination(&goes.id, &goes.attachment.unwrap().id)
        .await
        .unwrap();
    world.cloud.terminate(&world.instance).unwrap();
    let free = Eni {
        attachment: None,
        ..stays
    };
    assert_eq!(world.enis(), std::slice::from_ref(&free));
    let available = Which::Available {
        vpc: world.vpc.clone(),
        tag_key: "causeway".to_owned(),
        tag_value: None,
    };
    assert_eq!(world.ec2.interfaces(&available).await, Ok(vec![free]));
    let error = world.ec2.instance(&world.instance).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "DescribeInstances: no answer: the instance has no VPC: it is terminated"
    );
}

#[tokio::test]
async fn limits_are_as_published() {
    let world = World::new();
    let mut found = Vec::new();
    for name in [
        "t3.micro",
        "t3.small",
        "t3.medium",
        "t3.large",
        "m5.large",
        "m5.xlarge",
        "m5.4xlarge",
        "c5.large",
        "t2.micro",
        "m4.large",
    ] {
        let limits = world.ec2.limits(name).await.unwrap().unwrap();
        found.push((
            name,
            limits.interfaces,
            limits.addresses_per_interface,
            limits.is_nitro,
        ));
    }
    let expected = [
        ("t3.micro", 2, 2, true),
        ("t3.small", 3, 4, true),
        ("t3.medium", 3, 6, true),
        ("t3.large", 3, 12, true),
        ("m5.large", 3, 10, true),
        ("m5.xlarge", 4, 15, true),
        ("m5.4xlarge", 8, 30, true),
        ("c5.large", 3, 10, true),
        ("t2.micro", 2, 2, false),
        ("m4.large", 2, 10, false),
    ];
    assert_eq!(found, expected);
    assert_eq!(world.ec2.limits("m99.huge").await, Ok(None));
}

#[tokio::test]
async fn subnets_and_groups_are_those_of_the_vpc_and_the_zone() {
    let world = World::new();
    let other = world.cloud.make_vpc(&["10.1.0.0/16".parse().unwrap()]).unwrap();
    world
        .cloud
        .make_subnet(&other, "10.1.0.0/24".parse().unwrap(), "eu-west-1a", Tags::new())
        .unwrap();
    let subnet = |id: &vpc_eni::ec2::SubnetId, network: &str, free_addresses, tags| Subnet {
        id: id.clone(),
        vpc: world.vpc.clone(),
        zone: "eu-west-1a".to_owned(),
        network: network.parse().unwrap(),
        free_addresses,
        tags,
    };
    let expected = vec![
        subnet(
            &world.subnet,
            "10.0.1.0/24",
            250,
            tags([("kubernetes.io/role/cni", "1")]),
        ),
        subnet(&world.tiny, "10.0.2.0/28", 11, Tags::new()),
    ];
    assert_eq!(world.ec2.subnets(&world.vpc, "eu-west-1a").await, Ok(expected));
    let group = |id: &vpc_eni::ec2::SecurityGroupId, tags| SecurityGroup { id: id.clone(), tags };
    let expected = vec![
        group(&world.cloud.default_group(&world.vpc).unwrap(), Tags::new()),
        group(&world.group, tags([("Name", "nodes")])),
    ];
    let search = Search {
        filters: vec![Filter {
            name: "vpc-id".to_owned(),
            values: vec![world.vpc.0.clone()],
        }],
        ..Search::default()
    };
    let found = match world.cloud.call(Request::DescribeSecurityGroups(search)).await {
        Ok(Reply::SecurityGroups(page)) => page.items,
        other => panic!("{other:?}"),
    };
    let found: Vec<SecurityGroup> = found.into_iter().map(|(group, _)| group).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn filters_find_what_has_one_of_their_values() {
    let world = World::new();
    let primary = world.primary().id;
    let free = world.make(world.new_eni(Amount::Addresses(0))).id;
    let mut new = world.new_eni(Amount::Addresses(0));
    (new.subnet, new.tags) = (world.elsewhere.clone(), tags([("causeway", "no"), ("other", "")]));
    let far = world.make(new).id;
    let all = || vec![primary.clone(), free.clone(), far.clone()];
    let group = world.group.0.clone();
    type Filters<'a> = &'a [(&'a str, &'a [&'a str])];
    let rows: [(Filters<'_>, Vec<EniId>); 14] = [
        (&[], all()),
        (
            &[("attachment.instance-id", &[&world.instance.0])],
            vec![primary.clone()],
        ),
        (&[("attachment.instance-id", &["i-0"])], vec![]),
        (&[("attachment.status", &["attached"])], vec![primary.clone()]),
        (&[("attachment.device-index", &["0"])], vec![primary.clone()]),
        (&[("status", &["available"])], vec![free.clone(), far.clone()]),
        (&[("status", &["in-use", "available"])], all()),
        (&[("vpc-id", &["vpc-0"])], vec![]),
        (&[("tag-key", &["causeway"])], vec![free.clone(), far.clone()]),
        (&[("tag:causeway", &["y*"])], vec![free.clone()]),
        (&[("tag:other", &[""])], vec![far.clone()]),
        (&[("availability-zone", &["eu-west-1b"])], vec![far.clone()]),
        (
            &[("group-id", &[&group]), ("status", &["available"])],
            vec![free.clone(), far.clone()],
        ),
        (
            &[("status", &["available"]), ("tag:causeway", &["yes"])],
            vec![free.clone()],
        ),
    ];
    for (filters, expected) in rows {
        let search = Search {
            filters: filters
                .iter()
                .map(|(name, values)| Filter {
                    name: (*name).to_owned(),
                    values: values.iter().map(|value| (*value).to_owned()).collect(),
                })
                .collect(),
            ..Search::default()
        };
        let Reply::Interfaces(page) = world
            .cloud
            .call(Request::DescribeNetworkInterfaces(search))
            .await
            .unwrap()
        else {
            panic!("another reply");
        };
        let found: Vec<EniId> = page.items.into_iter().map(|interface| interface.eni.id).collect();
        assert_eq!((found, page.next_token), (expected, None), "{filters:?}");
    }
}

/// Twelve interfaces, of which each page holds five.
async fn pages(world: &World, http: &Http) -> Vec<Vec<String>> {
    let mut pages: Vec<Vec<String>> = Vec::new();
    let mut token = None;
    loop {
        let search = Search {
            max_results: Some(5),
            next_token: token,
            ..Search::default()
        };
        let reply = http
            .call(&Request::DescribeNetworkInterfaces(search))
            .await
            .unwrap();
        let set = reply.at(&["networkInterfaceSet"]);
        pages.push(
            set.children
                .iter()
                .map(|item| item.at(&["networkInterfaceId"]).text.clone())
                .collect(),
        );
        assert!(pages.len() < 10, "no end: {pages:?}");
        // What goes meanwhile moves nothing else.
        if pages.len() == 1 {
            world.cloud.take_interface(&EniId(pages[0][0].clone())).unwrap();
        }
        token = reply
            .children
            .iter()
            .find(|child| child.name == "nextToken")
            .map(|token| token.text.clone());
        if token.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn pages_together_are_the_whole_also_where_something_goes_meanwhile() {
    let world = World::new();
    for _ in 0..11 {
        world.make(world.new_eni(Amount::Addresses(0)));
    }
    let all: Vec<String> = world.enis().into_iter().map(|eni| eni.id.0).collect();
    let http = Http::new(&world.cloud);
    let pages = pages(&world, &http).await;
    let expected: Vec<Vec<String>> = all.chunks(5).map(<[String]>::to_vec).collect();
    assert_eq!(pages, expected);
}

#[tokio::test]
async fn pages_that_nobody_asked_for_are_followed_by_the_trait() {
    let world = World::new();
    for device_index in [1, 2] {
        world.attached(Amount::Addresses(0), device_index);
    }
    world.cloud.set_weather(|weather| weather.page_size = Some(1));
    let all: Vec<EniId> = world.enis().into_iter().map(|eni| eni.id).collect();
    assert_eq!(world.seen().await, all);
    assert_eq!(world.cloud.count(Action::DescribeNetworkInterfaces), 3);
}

#[tokio::test]
async fn a_foreign_hand_leaves_no_trace_in_the_ledger() {
    let world = World::new();
    let eni = world.attached(Amount::Addresses(2), 1);
    let taken: Addresses = [eni.secondary[0]]
        .into_iter()
        .map(|one| ipnetwork::IpNetwork::from(std::net::IpAddr::V4(one)))
        .collect();
    world.cloud.take_addresses(&eni.id, &taken).unwrap();
    world.cloud.take_group(&world.group).unwrap();
    let held = world.cloud.interface(&eni.id).unwrap().eni;
    let default_group = world.cloud.default_group(&world.vpc).unwrap();
    assert_eq!(
        (held.secondary, held.groups),
        (vec![eni.secondary[1]], vec![default_group.clone()])
    );
    world.cloud.take_interface(&eni.id).unwrap();
    assert_eq!(world.cloud.interface(&eni.id), None);
    assert_eq!(world.cloud.calls(), []);
    let refused = [
        world.cloud.take_interface(&eni.id).unwrap_err().code,
        world.cloud.take_addresses(&eni.id, &taken).unwrap_err().code,
        world.cloud.take_group(&world.group).unwrap_err().code,
        world.cloud.take_group(&default_group).unwrap_err().code,
    ];
    let not_found = "InvalidNetworkInterfaceID.NotFound";
    assert_eq!(
        refused,
        [not_found, not_found, "InvalidGroup.NotFound", "CannotDelete"]
    );
}

#[tokio::test]
async fn an_address_is_delivered_to_who_has_it() {
    let world = World::new();
    let eni = world.attached(Amount::Prefixes(1), 1);
    let other = world.cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
    for (vpc, address, owner) in [
        (&world.vpc, "10.0.1.5", Some(eni.id.clone())),
        (&world.vpc, "10.0.1.16", Some(eni.id.clone())),
        (&world.vpc, "10.0.1.31", Some(eni.id.clone())),
        (&world.vpc, "10.0.1.32", None),
        (&world.vpc, "10.0.1.4", Some(world.primary().id)),
        (&other, "10.0.1.4", None),
    ] {
        assert_eq!(
            world.cloud.owner(vpc, address.parse().unwrap()),
            owner,
            "{address}"
        );
    }
}

#[test]
fn a_vpc_and_its_subnets_are_laid_out_as_ec2_allows() {
    let cloud: Cloud = cloud::Cloud::new(0);
    let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
    let code = |made: Result<vpc_eni::ec2::SubnetId, fake_vpc::request::Refusal>| {
        made.map_err(|refusal| refusal.code).err()
    };
    let subnet = |network: &str| code(cloud.make_subnet(&vpc, network.parse().unwrap(), "z", Tags::new()));
    for (network, expected) in [
        ("10.0.1.0/24", None),
        ("10.0.1.0/24", Some("InvalidSubnet.Conflict")),
        ("10.0.0.0/16", Some("InvalidSubnet.Conflict")),
        ("10.0.2.0/29", Some("InvalidSubnet.Range")),
        ("10.0.2.1/24", Some("InvalidSubnet.Range")),
        ("10.1.2.0/24", Some("InvalidSubnet.Range")),
        ("10.0.2.0/28", None),
    ] {
        assert_eq!(subnet(network).as_deref(), expected, "{network}");
    }
    let dual = cloud.make_dual_subnet(
        &vpc,
        "10.0.9.0/24".parse().unwrap(),
        "2001:db8::/56".parse().unwrap(),
        "z",
        Tags::new(),
    );
    assert_eq!(code(dual).as_deref(), Some("InvalidSubnet.Range"));
    let nowhere = cloud.make_subnet(
        &VpcId::from("vpc-0"),
        "10.0.9.0/24".parse().unwrap(),
        "z",
        Tags::new(),
    );
    assert_eq!(code(nowhere).as_deref(), Some("InvalidVpcID.NotFound"));
    let vpcs = [
        &[][..],
        &["10.0.0.0/8".parse().unwrap()],
        &["10.0.0.1/16".parse().unwrap()],
    ];
    let codes = vpcs.map(|networks| cloud.make_vpc(networks).unwrap_err().code);
    assert_eq!(
        codes,
        ["MissingParameter", "InvalidVpc.Range", "InvalidVpc.Range"]
    );
    cloud
        .associate_network(&vpc, "100.64.0.0/16".parse().unwrap())
        .unwrap();
    assert_eq!(subnet("100.64.0.0/19"), None);
}

/// What a manager does in its life, from a new interface to none.
pub(crate) fn life(world: &World) -> Vec<Request> {
    let mut new = world.new_eni(Amount::Prefixes(1));
    new.client_token = "life".to_owned();
    let eni = EniId::from("eni-0000000000000000c");
    let attachment = vpc_eni::ec2::AttachmentId::from("eni-attach-0000000000000000d");
    let described = || Request::DescribeNetworkInterfaces(Search::default());
    vec![
        Request::CreateNetworkInterface(new.clone()),
        Request::CreateNetworkInterface(new),
        Request::AttachNetworkInterface {
            eni: eni.clone(),
            instance: world.instance.clone(),
            device_index: 1,
            card_index: 0,
        },
        Request::ModifyNetworkInterfaceAttribute {
            eni: eni.clone(),
            attribute: Attribute::DeleteOnTermination {
                attachment: attachment.clone(),
                value: true,
            },
        },
        Request::ModifyNetworkInterfaceAttribute {
            eni: eni.clone(),
            attribute: Attribute::Groups(vec![world.cloud.default_group(&world.vpc).unwrap()]),
        },
        Request::AssignPrivateIpAddresses {
            eni: eni.clone(),
            amount: Amount::Addresses(2),
        },
        Request::AssignIpv6Addresses {
            eni: eni.clone(),
            prefixes: 1,
        },
        Request::CreateTags {
            resources: vec![eni.0.clone()],
            tags: tags([("a&b", "<\"c\">")]),
        },
        described(),
        Request::DescribeInstances(Search::default()),
        Request::UnassignPrivateIpAddresses {
            eni: eni.clone(),
            addresses: vec![v4("10.0.1.6")],
            prefixes: vec!["10.0.1.16/28".parse().unwrap()],
        },
        Request::UnassignIpv6Addresses {
            eni: eni.clone(),
            prefixes: vec!["2001:db8:0:1:1::/80".parse().unwrap()],
        },
        described(),
        Request::DetachNetworkInterface { attachment },
        Request::DeleteNetworkInterface { eni },
        described(),
        Request::DescribeSubnets(Search::default()),
        Request::DescribeSecurityGroups(Search::default()),
        Request::DescribeInstanceTypes(Search::default()),
    ]
}

#[tokio::test]
async fn http_does_what_the_trait_does() {
    let (world, twin) = (World::new(), World::new());
    let http = Http::new(&world.cloud);
    let requests = life(&world);
    for request in &requests {
        http.call(request)
            .await
            .unwrap_or_else(|error| panic!("{request:?}: {error:?}"));
        twin.cloud.call(request.clone()).await.unwrap();
        assert_eq!(world.enis(), twin.enis(), "{request:?}");
    }
    // Every member of every request arrived as it was sent.
    let arrived: Vec<Request> = world.cloud.calls().into_iter().map(|call| call.request).collect();
    assert_eq!(arrived, requests);
    let actions: std::collections::BTreeSet<Action> = requests.iter().map(Request::action).collect();
    assert_eq!(actions, Action::ALL.into_iter().collect(), "all of them");
}

#[tokio::test]
async fn an_interface_in_xml_is_the_whole_interface() {
    let world = World::new();
    let http = Http::new(&world.cloud);
    for request in &life(&world)[..8] {
        http.call(request).await.unwrap();
    }
    let search = Search {
        ids: vec!["eni-0000000000000000c".to_owned()],
        ..Search::default()
    };
    let form = crate::support::form(&Request::DescribeNetworkInterfaces(search));
    let (status, body) = http.post(&form, &[SIGNED]).await.unwrap();
    let default_group = world.cloud.default_group(&world.vpc).unwrap();
    let attach_time = parse(&body)
        .at(&["networkInterfaceSet", "item", "attachment", "attachTime"])
        .text
        .clone();
    assert!(
        attach_time.starts_with("2026-01-01T00:0") && attach_time.ends_with(".000Z"),
        "{attach_time}"
    );
    let expected = format!(
        concat!(
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<DescribeNetworkInterfacesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">"#,
            "<requestId>00000000-0000-4000-8000-000000000009</requestId><networkInterfaceSet><item>",
            "<availabilityZone>eu-west-1a</availabilityZone><interfaceType>interface</interfaceType>",
            "<requesterManaged>false</requesterManaged>",
            "<tagSet><item><key>a&amp;b</key><value>&lt;&quot;c&quot;&gt;</value></item>",
            "<item><key>causeway</key><value>yes</value></item></tagSet>",
            "<networkInterfaceId>eni-0000000000000000c</networkInterfaceId><subnetId>{subnet}</subnetId>",
            "<vpcId>{vpc}</vpcId><description>of a test</description><ownerId>123456789012</ownerId>",
            "<status>in-use</status><macAddress>0a:00:00:00:00:0b</macAddress>",
            "<privateIpAddress>10.0.1.5</privateIpAddress><sourceDestCheck>true</sourceDestCheck>",
            "<groupSet><item><groupId>{group}</groupId><groupName>{group}</groupName></item></groupSet>",
            "<privateIpAddressesSet>",
            "<item><privateIpAddress>10.0.1.5</privateIpAddress><primary>true</primary></item>",
            "<item><privateIpAddress>10.0.1.6</privateIpAddress><primary>false</primary></item>",
            "<item><privateIpAddress>10.0.1.7</privateIpAddress><primary>false</primary></item>",
            "</privateIpAddressesSet><ipv6AddressesSet></ipv6AddressesSet>",
            "<ipv4PrefixSet><item><ipv4Prefix>10.0.1.16/28</ipv4Prefix></item></ipv4PrefixSet>",
            "<ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:1::/80</ipv6Prefix></item></ipv6PrefixSet>",
            "<attachment><instanceId>{instance}</instanceId><instanceOwnerId>123456789012</instanceOwnerId>",
            "<attachmentId>eni-attach-0000000000000000d</attachmentId><deviceIndex>1</deviceIndex>",
            "<networkCardIndex>0</networkCardIndex><status>attached</status><attachTime>{attach_time}</attachTime>",
            "<deleteOnTermination>true</deleteOnTermination></attachment>",
            "</item></networkInterfaceSet></DescribeNetworkInterfacesResponse>",
        ),
        subnet = world.subnet,
        vpc = world.vpc,
        group = default_group,
        instance = world.instance,
        attach_time = attach_time,
    );
    assert_eq!((status, body), (StatusCode::OK, expected));
}

#[tokio::test]
async fn a_get_is_answered_as_a_post_is() {
    let world = World::new();
    let http = Http::new(&world.cloud);
    let path = "/?Action=DescribeSubnets&Version=2016-11-15&Filter.1.Name=availability-zone&Filter.1.Value.1=eu-west-1b";
    let (status, body) = http
        .send("GET", http.server.ec2(), path, &[SIGNED], "")
        .await
        .unwrap();
    let found = parse(&body);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        found.at(&["subnetSet", "item", "subnetId"]).text,
        world.elsewhere.0
    );
}

#[tokio::test]
async fn an_instance_has_the_primary_address_that_was_asked_for_if_nobody_has_it() {
    let world = World::new();
    world.cloud.occupy(&world.subnet, v4("10.0.1.77")).unwrap();
    let made = world.attached(Amount::Prefixes(1), 1);
    assert_eq!(made.prefixes, ["10.0.1.16/28".parse().unwrap()]);
    let make = |address: &str| {
        let made = world
            .cloud
            .make_instance_at("t3.micro", &world.subnet, &[], v4(address));
        let made = made.map_err(|refusal| (refusal.code, refusal.message))?;
        let machine = world
            .cloud
            .instances()
            .into_iter()
            .find(|machine| machine.id == made);
        let machine = machine.expect("it is there");
        Ok((
            machine.instance_type,
            machine.interfaces[0].eni.primary.to_string(),
        ))
    };
    let has = |address: &str| Ok(("t3.micro".to_owned(), address.to_owned()));
    let refused = |code: &str, message: String| Err((code.to_owned(), message));
    let in_use = |address: &str| refused("InvalidIPAddress.InUse", format!("Address {address} is in use."));
    let kept = |address: &str| {
        let message = format!("Address {address} is in subnet's reserved address range");
        refused("InvalidParameterValue", message)
    };
    let elsewhere = |address: &str| {
        let message = format!("Address {address} does not fall within the subnet's address range");
        refused("InvalidParameterValue", message)
    };
    for (address, expected) in [
        ("10.0.1.10", has("10.0.1.10")),
        ("10.0.1.254", has("10.0.1.254")),
        ("10.0.1.10", in_use("10.0.1.10")),
        ("10.0.1.4", in_use("10.0.1.4")),
        ("10.0.1.77", in_use("10.0.1.77")),
        ("10.0.1.31", in_use("10.0.1.31")),
        ("10.0.1.0", kept("10.0.1.0")),
        ("10.0.1.3", kept("10.0.1.3")),
        ("10.0.1.255", kept("10.0.1.255")),
        ("10.0.2.9", elsewhere("10.0.2.9")),
        ("10.0.0.255", elsewhere("10.0.0.255")),
    ] {
        assert_eq!(make(address), expected, "{address}");
    }
    let primaries: Vec<_> = world.enis().iter().map(|eni| eni.primary.to_string()).collect();
    assert_eq!(primaries, ["10.0.1.4", "10.0.1.5", "10.0.1.10", "10.0.1.254"]);
}

#[tokio::test]
async fn each_network_card_has_device_indexes_of_its_own() {
    let world = World::new();
    world.cloud.set_network_cards("m5.large", 2);
    let attach = |card_index, device_index| {
        let request = Request::AttachNetworkInterface {
            eni: world.make(world.new_eni(Amount::Addresses(0))).id,
            instance: world.instance.clone(),
            device_index,
            card_index,
        };
        let attached = world.cloud.meddle(&request);
        attached.map(drop).map_err(|refusal| refusal.code)
    };
    let refused = |code: &str| Err(code.to_owned());
    for (card, device, expected) in [
        (0, 1, Ok(())),
        (1, 1, Ok(())),
        (1, 1, refused("InvalidParameterValue")),
        (1, 0, Ok(())),
        (1, 2, Ok(())),
        (1, 3, refused("AttachmentLimitExceeded")),
        (2, 1, refused("InvalidParameterValue")),
        (0, 2, Ok(())),
    ] {
        assert_eq!(attach(card, device), expected, "{card} {device}");
    }
    let instance = world.ec2.instance(&world.instance).await.unwrap();
    assert_eq!(instance.device_indexes, [0, 1, 2]);
}
