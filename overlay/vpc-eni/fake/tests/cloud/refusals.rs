//! What EC2 refuses, with which code, and that it leaves everything as it was.

use fake_vpc::ledger::Outcome;
use fake_vpc::request::{Attribute, Filter, Request, Search};
use http::StatusCode;
use vpc_eni::ec2::{Amount, AttachmentId, EniId, InstanceId, Meaning, NewEni, SecurityGroupId, SubnetId};

use crate::support::{Http, World, tags, v4};

/// Sets the stage, and says what is asked for then.
type Ask = fn(&World) -> Request;

struct Row {
    claim: &'static str,
    ask: Ask,
    code: &'static str,
    /// A part of the message.
    says: &'static str,
    meaning: Meaning,
}

const fn row(claim: &'static str, ask: Ask, code: &'static str, says: &'static str, meaning: Meaning) -> Row {
    Row {
        claim,
        ask,
        code,
        says,
        meaning,
    }
}

fn assign(eni: &EniId, amount: Amount) -> Request {
    Request::AssignPrivateIpAddresses {
        eni: eni.clone(),
        amount,
    }
}

fn attach(eni: &EniId, instance: &InstanceId, device_index: u32) -> Request {
    Request::AttachNetworkInterface {
        eni: eni.clone(),
        instance: instance.clone(),
        device_index,
        card_index: 0,
    }
}

fn unassign(eni: &EniId, addresses: &[&str], prefixes: &[&str]) -> Request {
    Request::UnassignPrivateIpAddresses {
        eni: eni.clone(),
        addresses: addresses.iter().map(|address| v4(address)).collect(),
        prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

fn create(world: &World, change: impl FnOnce(&mut NewEni)) -> Request {
    let mut new = world.new_eni(Amount::Addresses(0));
    change(&mut new);
    Request::CreateNetworkInterface(new)
}

fn describe(ids: &[&str], filters: &[(&str, &[&str])]) -> Search {
    let filters = filters.iter().map(|(name, values)| Filter {
        name: (*name).to_owned(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    });
    Search {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        filters: filters.collect(),
        ..Search::default()
    }
}

fn modify(eni: &EniId, attribute: Attribute) -> Request {
    Request::ModifyNetworkInterfaceAttribute {
        eni: eni.clone(),
        attribute,
    }
}

const ROWS: &[Row] = &[
    row(
        "a new interface needs a subnet that is there",
        |world| create(world, |new| new.subnet = SubnetId::from("subnet-0")),
        "InvalidSubnetID.NotFound",
        "'subnet-0'",
        Meaning::NotFound,
    ),
    row(
        "a new interface needs groups that are there",
        |world| create(world, |new| new.groups.push(SecurityGroupId::from("sg-0"))),
        "InvalidGroup.NotFound",
        "'sg-0'",
        Meaning::NoSuchGroup,
    ),
    row(
        "a group that somebody deleted is not there",
        |world| {
            world.cloud.take_group(&world.group).unwrap();
            create(world, |_| {})
        },
        "InvalidGroup.NotFound",
        "does not exist",
        Meaning::NoSuchGroup,
    ),
    row(
        "a group of another VPC is refused",
        |world| {
            let vpc = world.cloud.make_vpc(&["10.1.0.0/16".parse().unwrap()]).unwrap();
            let group = world.cloud.make_security_group(&vpc, tags([])).unwrap();
            create(world, |new| new.groups.push(group))
        },
        "InvalidParameter",
        "another network",
        Meaning::Other,
    ),
    row(
        "a new interface with more addresses than any type allows is refused",
        |world| create(world, |new| new.amount = Amount::Addresses(50)),
        "PrivateIpAddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "a new interface with its own address is one more than the subnet has",
        |world| {
            create(world, |new| {
                new.subnet = world.tiny.clone();
                new.amount = Amount::Addresses(11);
            })
        },
        "InsufficientFreeAddressesInSubnet",
        "enough free addresses",
        Meaning::SubnetExhausted,
    ),
    row(
        "the smallest subnet has no whole block",
        |world| {
            create(world, |new| {
                new.subnet = world.tiny.clone();
                new.amount = Amount::Prefixes(1);
            })
        },
        "InsufficientCidrBlocks",
        "enough free cidr blocks",
        Meaning::SubnetExhausted,
    ),
    row(
        "a tag of Amazon's own is refused",
        |world| create(world, |new| new.tags = tags([("aws:mine", "")])),
        "InvalidParameterValue",
        "aws:mine",
        Meaning::Other,
    ),
    row(
        "an account has so many interfaces",
        |world| {
            world.cloud.limit_interfaces(1);
            create(world, |_| {})
        },
        "NetworkInterfaceLimitExceeded",
        "maximum",
        Meaning::InterfaceLimit,
    ),
    row(
        "a client token stands for one request",
        |world| {
            let mut new = world.new_eni(Amount::Addresses(1));
            new.client_token = "once".to_owned();
            world.make(new.clone());
            create(world, |new| new.client_token = "once".to_owned())
        },
        "IdempotentParameterMismatch",
        "client token",
        Meaning::Other,
    ),
    row(
        "addresses are assigned to an interface that is there",
        |_| assign(&EniId::from("eni-0"), Amount::Addresses(1)),
        "InvalidNetworkInterfaceID.NotFound",
        "'eni-0'",
        Meaning::NotFound,
    ),
    row(
        "none is not a count",
        |world| assign(&world.primary().id, Amount::Addresses(0)),
        "MissingParameter",
        "no address",
        Meaning::Other,
    ),
    row(
        "an interface's own address counts, so that ten more are one too many for an m5.large",
        |world| assign(&world.primary().id, Amount::Addresses(10)),
        "PrivateIpAddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "a prefix takes an address's place",
        |world| {
            let eni = world.attached(Amount::Prefixes(5), 1);
            assign(&eni.id, Amount::Addresses(5))
        },
        "PrivateIpAddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "prefixes have the same limit",
        |world| assign(&world.primary().id, Amount::Prefixes(10)),
        "PrivateIpAddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "single free addresses are not a block",
        |world| {
            for block in 1..15 {
                let address = v4(&format!("10.0.1.{}", block * 16 + 7));
                world.cloud.occupy(&world.subnet, address).unwrap();
            }
            assign(&world.primary().id, Amount::Prefixes(1))
        },
        "InsufficientCidrBlocks",
        "enough free cidr blocks",
        Meaning::SubnetExhausted,
    ),
    row(
        "two blocks where there is one give none",
        |world| {
            for block in 2..15 {
                let address = v4(&format!("10.0.1.{}", block * 16 + 7));
                world.cloud.occupy(&world.subnet, address).unwrap();
            }
            assign(&world.primary().id, Amount::Prefixes(2))
        },
        "InsufficientCidrBlocks",
        "enough free cidr blocks",
        Meaning::SubnetExhausted,
    ),
    row(
        "nine addresses where there are eight give none",
        |world| {
            let mut new = world.new_eni(Amount::Addresses(2));
            new.subnet = world.tiny.clone();
            let eni = world.make(new).id;
            assign(&eni, Amount::Addresses(9))
        },
        "InsufficientFreeAddressesInSubnet",
        "enough free addresses",
        Meaning::SubnetExhausted,
    ),
    row(
        "an instance without Nitro has no prefixes",
        |world| {
            let old = world.cloud.make_instance("m4.large", &world.subnet, &[]).unwrap();
            let eni = world.cloud.interfaces_of(&old)[0].eni.id.clone();
            assign(&eni, Amount::Prefixes(1))
        },
        "UnsupportedOperation",
        "m4.large",
        Meaning::Other,
    ),
    row(
        "an instance without Nitro has no IPv6 prefixes",
        |world| {
            let old = world.cloud.make_instance("m4.large", &world.subnet, &[]).unwrap();
            Request::AssignIpv6Addresses {
                eni: world.cloud.interfaces_of(&old)[0].eni.id.clone(),
                prefixes: 1,
            }
        },
        "UnsupportedOperation",
        "m4.large",
        Meaning::Other,
    ),
    row(
        "an interface has so many IPv6 prefixes",
        |world| Request::AssignIpv6Addresses {
            eni: world.primary().id,
            prefixes: 11,
        },
        "Ipv6AddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "a subnet without IPv6 gives no IPv6 prefix",
        |world| {
            let mut new = world.new_eni(Amount::Addresses(0));
            new.subnet = world.elsewhere.clone();
            Request::AssignIpv6Addresses {
                eni: world.make(new).id,
                prefixes: 1,
            }
        },
        "InvalidParameterValue",
        "no IPv6 CIDR block",
        Meaning::Other,
    ),
    row(
        "an interface that is not there is not attached",
        |world| attach(&EniId::from("eni-0"), &world.instance, 1),
        "InvalidNetworkInterfaceID.NotFound",
        "'eni-0'",
        Meaning::NotFound,
    ),
    row(
        "nothing is attached to an instance that is not there",
        |world| {
            let eni = world.make(world.new_eni(Amount::Addresses(0)));
            attach(&eni.id, &InstanceId::from("i-0"), 1)
        },
        "InvalidInstanceID.NotFound",
        "'i-0'",
        Meaning::NotFound,
    ),
    row(
        "nothing is attached to an instance that is terminated",
        |world| {
            let eni = world.make(world.new_eni(Amount::Addresses(0)));
            world.cloud.terminate(&world.instance).unwrap();
            attach(&eni.id, &world.instance, 1)
        },
        "IncorrectInstanceState",
        "terminated",
        Meaning::Other,
    ),
    row(
        "a fourth interface is one too many for an m5.large",
        |world| {
            world.attached(Amount::Addresses(0), 1);
            world.attached(Amount::Addresses(0), 2);
            let eni = world.make(world.new_eni(Amount::Addresses(0)));
            attach(&eni.id, &world.instance, 3)
        },
        "AttachmentLimitExceeded",
        "Interface count 4 exceeds the limit for m5.large",
        Meaning::InterfaceLimit,
    ),
    row(
        "a device index holds one interface",
        |world| {
            world.attached(Amount::Addresses(0), 1);
            let eni = world.make(world.new_eni(Amount::Addresses(0)));
            attach(&eni.id, &world.instance, 1)
        },
        "InvalidParameterValue",
        "already has an interface attached at device index '1'.",
        Meaning::IndexTaken,
    ),
    row(
        "an interface has one instance",
        |world| {
            let eni = world.attached(Amount::Addresses(0), 1);
            attach(&eni.id, &world.instance, 2)
        },
        "InvalidNetworkInterface.InUse",
        "in use",
        Meaning::InUse,
    ),
    row(
        "an interface and its instance are of one zone",
        |world| {
            let mut new = world.new_eni(Amount::Addresses(0));
            new.subnet = world.elsewhere.clone();
            attach(&world.make(new).id, &world.instance, 1)
        },
        "InvalidParameterCombination",
        "zone",
        Meaning::Other,
    ),
    row(
        "there is one network card",
        |world| Request::AttachNetworkInterface {
            eni: world.make(world.new_eni(Amount::Addresses(0))).id,
            instance: world.instance.clone(),
            device_index: 1,
            card_index: 1,
        },
        "InvalidParameterValue",
        "network card",
        Meaning::Other,
    ),
    row(
        "an interface with prefixes is not attached to an instance without Nitro",
        |world| {
            let old = world.cloud.make_instance("m4.large", &world.subnet, &[]).unwrap();
            let eni = world.make(world.new_eni(Amount::Prefixes(1)));
            attach(&eni.id, &old, 1)
        },
        "UnsupportedOperation",
        "m4.large",
        Meaning::Other,
    ),
    row(
        "an interface with more addresses than the type allows is not attached",
        |world| {
            let eni = world.make(world.new_eni(Amount::Addresses(10)));
            attach(&eni.id, &world.instance, 1)
        },
        "PrivateIpAddressLimitExceeded",
        "will exceed limit",
        Meaning::InterfaceFull,
    ),
    row(
        "the primary interface is not detached",
        |world| Request::DetachNetworkInterface {
            attachment: world.primary().attachment.unwrap().id,
        },
        "OperationNotPermitted",
        "device index 0",
        Meaning::Other,
    ),
    row(
        "what is not attached is not detached",
        |_| Request::DetachNetworkInterface {
            attachment: AttachmentId::from("eni-attach-0"),
        },
        "InvalidAttachmentID.NotFound",
        "'eni-attach-0'",
        Meaning::NotFound,
    ),
    row(
        "what is being detached is not detached again",
        |world| {
            world
                .cloud
                .set_weather(|weather| weather.detaching = std::time::Duration::from_secs(3600));
            let attachment = world.attached(Amount::Addresses(0), 1).attachment.unwrap().id;
            let request = Request::DetachNetworkInterface { attachment };
            world.cloud.meddle(&request).unwrap();
            request
        },
        "IncorrectState",
        "already",
        Meaning::Other,
    ),
    row(
        "what is being detached is in use still",
        |world| {
            world
                .cloud
                .set_weather(|weather| weather.detaching = std::time::Duration::from_secs(3600));
            let eni = world.attached(Amount::Addresses(0), 1);
            let attachment = eni.attachment.unwrap().id;
            world
                .cloud
                .meddle(&Request::DetachNetworkInterface { attachment })
                .unwrap();
            Request::DeleteNetworkInterface { eni: eni.id }
        },
        "InvalidParameterValue",
        "currently in use",
        Meaning::InUse,
    ),
    row(
        "what is attached is not deleted",
        |world| Request::DeleteNetworkInterface {
            eni: world.primary().id,
        },
        "InvalidParameterValue",
        "currently in use",
        Meaning::InUse,
    ),
    row(
        "what is deleted is not there",
        |world| {
            let eni = world.make(world.new_eni(Amount::Addresses(0))).id;
            let request = Request::DeleteNetworkInterface { eni };
            world.cloud.meddle(&request).unwrap();
            request
        },
        "InvalidNetworkInterfaceID.NotFound",
        "does not exist",
        Meaning::NotFound,
    ),
    row(
        "an interface gets groups that are there",
        |world| {
            let groups = vec![world.group.clone(), SecurityGroupId::from("sg-0")];
            modify(&world.primary().id, Attribute::Groups(groups))
        },
        "InvalidGroup.NotFound",
        "'sg-0'",
        Meaning::NoSuchGroup,
    ),
    row(
        "the attachment must be the interface's",
        |world| {
            let attachment = world.attached(Amount::Addresses(0), 1).attachment.unwrap().id;
            let attribute = Attribute::DeleteOnTermination {
                attachment,
                value: false,
            };
            modify(&world.primary().id, attribute)
        },
        "InvalidAttachmentID.NotFound",
        "does not exist",
        Meaning::NotFound,
    ),
    row(
        "an interface's own address stays",
        |world| {
            let eni = world.attached(Amount::Addresses(1), 1);
            unassign(
                &eni.id,
                &[&eni.secondary[0].to_string(), &eni.primary.to_string()],
                &[],
            )
        },
        "InvalidParameterValue",
        "primary private IP address",
        Meaning::Other,
    ),
    row(
        "one address that the interface does not have spoils the whole",
        |world| {
            let eni = world.attached(Amount::Addresses(1), 1);
            unassign(&eni.id, &[&eni.secondary[0].to_string(), "10.0.1.250"], &[])
        },
        "InvalidParameterValue",
        "not assigned to interface",
        Meaning::Other,
    ),
    row(
        "a prefix that the interface does not have spoils the whole",
        |world| {
            let eni = world.attached(Amount::Prefixes(1), 1);
            unassign(&eni.id, &[], &[&eni.prefixes[0].to_string(), "10.0.1.224/28"])
        },
        "InvalidParameterValue",
        "not assigned to interface",
        Meaning::Other,
    ),
    row(
        "an address within a prefix is not given up alone",
        |world| {
            let eni = world.attached(Amount::Prefixes(1), 1);
            unassign(&eni.id, &[&eni.prefixes[0].ip().to_string()], &[])
        },
        "InvalidParameterValue",
        "not assigned to interface",
        Meaning::Other,
    ),
    row(
        "nothing is not given up",
        |world| unassign(&world.primary().id, &[], &[]),
        "MissingParameter",
        "no address",
        Meaning::Other,
    ),
    row(
        "an IPv6 prefix that the interface does not have is not given up",
        |world| Request::UnassignIpv6Addresses {
            eni: world.primary().id,
            prefixes: vec!["2001:db8:0:1:1::/80".parse().unwrap()],
        },
        "InvalidParameterValue",
        "not assigned to interface",
        Meaning::Other,
    ),
    row(
        "tags are for what is there",
        |world| Request::CreateTags {
            resources: vec![world.primary().id.0, "eni-0".to_owned()],
            tags: tags([("a", "b")]),
        },
        "InvalidNetworkInterfaceID.NotFound",
        "'eni-0'",
        Meaning::NotFound,
    ),
    row(
        "tags are for what has tags",
        |_| Request::CreateTags {
            resources: vec!["nonsense".to_owned()],
            tags: tags([("a", "b")]),
        },
        "InvalidID",
        "'nonsense'",
        Meaning::Other,
    ),
    row(
        "an interface by a name that nobody has",
        |world| Request::DescribeNetworkInterfaces(describe(&[&world.primary().id.0, "eni-0"], &[])),
        "InvalidNetworkInterfaceID.NotFound",
        "'eni-0'",
        Meaning::NotFound,
    ),
    row(
        "a filter that EC2 does not have",
        |_| Request::DescribeNetworkInterfaces(describe(&[], &[("colour", &["blue"])])),
        "InvalidParameterValue",
        "The filter 'colour' is invalid",
        Meaning::Other,
    ),
    row(
        "a filter without a value",
        |_| Request::DescribeNetworkInterfaces(describe(&[], &[("status", &[])])),
        "InvalidParameterValue",
        "no value",
        Meaning::Other,
    ),
    row(
        "a page has five results at least",
        |_| {
            Request::DescribeNetworkInterfaces(Search {
                max_results: Some(4),
                ..Search::default()
            })
        },
        "InvalidParameterValue",
        "maxResults",
        Meaning::Other,
    ),
    row(
        "names come in no pages",
        |world| {
            Request::DescribeNetworkInterfaces(Search {
                max_results: Some(5),
                ..describe(&[&world.primary().id.0], &[])
            })
        },
        "InvalidParameterCombination",
        "MaxResults",
        Meaning::Other,
    ),
    row(
        "a token that nobody gave",
        |_| {
            Request::DescribeNetworkInterfaces(Search {
                next_token: Some("guess".to_owned()),
                ..Search::default()
            })
        },
        "InvalidPaginationToken",
        "guess",
        Meaning::Other,
    ),
    row(
        "an instance by a name that nobody has",
        |_| Request::DescribeInstances(describe(&["i-0"], &[])),
        "InvalidInstanceID.NotFound",
        "'i-0'",
        Meaning::NotFound,
    ),
    row(
        "an instance type that Amazon does not sell",
        |_| Request::DescribeInstanceTypes(describe(&["m5.large", "m99.huge"], &[])),
        "InvalidInstanceType",
        "[m99.huge]",
        Meaning::Other,
    ),
    row(
        "a subnet by a name that nobody has",
        |_| Request::DescribeSubnets(describe(&["subnet-0"], &[])),
        "InvalidSubnetID.NotFound",
        "'subnet-0'",
        Meaning::NotFound,
    ),
    row(
        "a group by a name that nobody has",
        |_| Request::DescribeSecurityGroups(describe(&["sg-0"], &[])),
        "InvalidGroup.NotFound",
        "'sg-0'",
        Meaning::NoSuchGroup,
    ),
];

#[tokio::test]
async fn what_is_refused_has_ec2s_code_and_changes_nothing() {
    for row in ROWS {
        let world = World::new();
        let request = (row.ask)(&world);
        let before = world.enis();
        let error = world.cloud.call(request).await.expect_err(row.claim);
        assert_eq!(error.code(), Some(row.code), "{}: {error}", row.claim);
        assert!(error.to_string().contains(row.says), "{}: {error}", row.claim);
        assert_eq!(error.meaning(), row.meaning, "{}: {error}", row.claim);
        assert_eq!(world.enis(), before, "{}", row.claim);
        let outcomes: Vec<Outcome> = world.cloud.calls().into_iter().map(|call| call.outcome).collect();
        let outcome = Outcome::Refused {
            code: row.code.to_owned(),
            happened: false,
        };
        assert_eq!(outcomes, [outcome], "{}", row.claim);
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_over_http_in_the_same_words() {
    for row in ROWS {
        let (world, twin) = (World::new(), World::new());
        let request = (row.ask)(&world);
        let error = twin.cloud.call((row.ask)(&twin)).await.expect_err(row.claim);
        let http = Http::new(&world.cloud);
        let (status, code, message) = http.call(&request).await.expect_err(row.claim);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{}", row.claim);
        assert_eq!(
            format!("{}: {code}: {message}", error.action),
            error.to_string(),
            "{}",
            row.claim
        );
        assert_eq!(world.enis(), twin.enis(), "{}", row.claim);
    }
}

#[tokio::test]
async fn a_form_that_makes_no_sense_is_refused() {
    let world = World::new();
    let http = Http::new(&world.cloud);
    let eni = world.primary().id;
    let describe = "Action=DescribeNetworkInterfaces&Version=2016-11-15";
    let assign = format!("Action=AssignPrivateIpAddresses&Version=2016-11-15&NetworkInterfaceId={eni}");
    let modify =
        format!("Action=ModifyNetworkInterfaceAttribute&Version=2016-11-15&NetworkInterfaceId={eni}");
    let rows: [(String, &str, &str); 26] = [
        (String::new(), "MissingAction", "Action"),
        ("Version=2016-11-15".into(), "MissingAction", "Action"),
        ("Action=RunInstances&Version=2016-11-15".into(), "InvalidAction", "RunInstances"),
        ("Action=describeNetworkInterfaces&Version=2016-11-15".into(), "InvalidAction", "describeNetworkInterfaces"),
        ("Action=DescribeSubnets".into(), "MissingParameter", "Version"),
        ("Action=DescribeSubnets&Version=2012-01-01".into(), "NoSuchVersion", "2012-01-01"),
        (format!("{describe}&Colour=blue"), "UnknownParameter", "Colour"),
        (format!("{describe}&NetworkInterfaceId={eni}"), "UnknownParameter", "NetworkInterfaceId"),
        (format!("{describe}&NetworkInterfaceId.0={eni}"), "MalformedQueryString", "'0'"),
        (format!("{describe}&NetworkInterfaceId.01={eni}"), "MalformedQueryString", "'01'"),
        (format!("{describe}&MaxResults=5&MaxResults=6"), "MalformedQueryString", "MaxResults"),
        (format!("{describe}&MaxResults=many"), "InvalidParameterValue", "many"),
        (format!("{describe}&MaxResults=-1"), "InvalidParameterValue", "-1"),
        (format!("{describe}&Filter.1.Value.1=x"), "MissingParameter", "Filter.1.Name"),
        (format!("{describe}&DryRun=true"), "UnsupportedOperation", "dry run"),
        (format!("{describe}&DryRun=perhaps"), "InvalidParameterValue", "perhaps"),
        (
            "Action=AttachNetworkInterface&Version=2016-11-15&NetworkInterfaceId=e&InstanceId=i".into(),
            "MissingParameter",
            "DeviceIndex",
        ),
        (
            format!("{assign}&SecondaryPrivateIpAddressCount=1&AllowReassignment=true"),
            "UnknownParameter",
            "AllowReassignment",
        ),
        (
            "Action=DetachNetworkInterface&Version=2016-11-15&AttachmentId=a&Force=hard".into(),
            "InvalidParameterValue",
            "hard",
        ),
        (
            format!("{assign}&SecondaryPrivateIpAddressCount=1&Ipv4PrefixCount=1"),
            "InvalidParameterCombination",
            "Ipv4PrefixCount",
        ),
        // It may not be ignored, as though it had been done.
        (format!("{assign}&PrivateIpAddress.1=10.0.1.9"), "UnknownParameter", "PrivateIpAddress.1"),
        (modify.clone(), "MissingParameter", "No attributes"),
        (format!("{modify}&SecurityGroupId.1=a&Attachment.AttachmentId=b"), "InvalidParameterCombination", "multiple"),
        (
            format!("Action=UnassignPrivateIpAddresses&Version=2016-11-15&NetworkInterfaceId={eni}&PrivateIpAddress.1=x"),
            "InvalidParameterValue",
            "'x'",
        ),
        (
            format!("Action=CreateTags&Version=2016-11-15&ResourceId.1={eni}&Tag.1.Key=a&Tag.2.Key=a"),
            "InvalidParameterValue",
            "unique",
        ),
        (
            "Action=CreateNetworkInterface&Version=2016-11-15&SubnetId=s&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=a"
                .into(),
            "InvalidParameterValue",
            "'instance'",
        ),
    ];
    for (form, code, says) in rows {
        let (status, body) = http
            .post(&form, &[crate::support::SIGNED])
            .await
            .expect("an answer");
        let error = crate::support::parse(&body);
        let error = error.at(&["Errors", "Error"]);
        assert_eq!(
            (status, error.at(&["Code"]).text.as_str()),
            (StatusCode::BAD_REQUEST, code),
            "{form}"
        );
        assert!(error.at(&["Message"]).text.contains(says), "{form}: {body}");
    }
    assert_eq!(world.cloud.calls(), []);
}

#[tokio::test]
async fn who_does_not_sign_gets_nothing() {
    let world = World::new();
    let http = Http::new(&world.cloud);
    let form = "Action=DescribeSubnets&Version=2016-11-15";
    for (headers, status, code) in [
        (&[][..], StatusCode::FORBIDDEN, "MissingAuthenticationToken"),
        (
            &[("authorization", "Basic YTpi")],
            StatusCode::UNAUTHORIZED,
            "AuthFailure",
        ),
        (
            &[("authorization", "AWS4-HMAC-SHA256 Credential=a")],
            StatusCode::UNAUTHORIZED,
            "AuthFailure",
        ),
    ] {
        let (found, body) = http.post(form, headers).await.expect("an answer");
        let error = crate::support::parse(&body);
        let found_code = &error.at(&["Errors", "Error", "Code"]).text;
        assert_eq!((found, found_code.as_str()), (status, code), "{headers:?}");
    }
    assert_eq!(world.cloud.calls(), []);
}
