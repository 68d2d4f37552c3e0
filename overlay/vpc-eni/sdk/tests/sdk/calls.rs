//! Each action: what is sent, and what is made of a full reply.

use std::fmt::Debug;
use std::future::Future;

use futures::future::BoxFuture;
use ipnetwork::IpNetwork;
use vpc_eni::ec2::{
    Action, Addresses, Amount, Attached, CallError, Called, Ec2, Eni, EniId, Instance, InstanceId, Limits,
    NewEni, SecurityGroupId, Subnet, Tags, VpcId, Which, Why,
};
use vpc_eni_sdk::Client;

use crate::server::{Asked, Reply, Server};

/// A call, the replies to it, the members of each request, in any order, and what is made of it.
async fn check<T, F>(replies: Vec<Reply>, call: impl FnOnce(Client) -> F, asked: &[&str], made: Called<T>)
where
    T: Debug + PartialEq,
    F: Future<Output = Called<T>>,
{
    let server = Server::start(replies).await;
    assert_eq!(call(server.client().await).await, made);
    let members: Vec<Vec<String>> = server.asked().iter().map(Asked::members).collect();
    let in_order = |asked: &&str| {
        let mut lines: Vec<String> = asked.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(members, asked.iter().map(in_order).collect::<Vec<_>>());
    assert_eq!(server.left(), 0, "replies that nobody fetched");
}

fn eni_id() -> EniId {
    EniId::from("eni-0a1b2c3d")
}

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// An interface with everything that EC2 tells of one; `attachment` is what is there of it.
fn interface(attachment: &str) -> String {
    format!(
        "<networkInterfaceId>eni-0a1b2c3d</networkInterfaceId><subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId>\
         <availabilityZone>eu-central-1a</availabilityZone><description>aws-K8S-i-1</description>\
         <ownerId>111122223333</ownerId><requesterManaged>false</requesterManaged><status>in-use</status>\
         <macAddress>02:81:60:cb:27:37</macAddress><privateIpAddress>10.0.0.146</privateIpAddress>\
         <sourceDestCheck>true</sourceDestCheck>\
         <groupSet><item><groupId>sg-1</groupId><groupName>default</groupName></item>\
         <item><groupId>sg-2</groupId><groupName>pods</groupName></item></groupSet>{attachment}\
         <tagSet><item><key>cluster</key><value>a</value></item><item><key>bare</key><value/></item></tagSet>\
         <privateIpAddressesSet><item><privateIpAddress>10.0.0.146</privateIpAddress><primary>true</primary></item>\
         <item><privateIpAddress>10.0.0.148</privateIpAddress><primary>false</primary></item>\
         <item><privateIpAddress>10.0.0.150</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>\
         <ipv4PrefixSet><item><ipv4Prefix>10.0.1.16/28</ipv4Prefix></item></ipv4PrefixSet>\
         <ipv6AddressesSet><item><ipv6Address>2001:db8::1</ipv6Address></item></ipv6AddressesSet>\
         <ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:1::/80</ipv6Prefix></item></ipv6PrefixSet>\
         <interfaceType>interface</interfaceType>"
    )
}

const ATTACHMENT: &str = "<attachment><attachmentId>eni-attach-1</attachmentId><instanceId>i-1</instanceId>\
    <instanceOwnerId>111122223333</instanceOwnerId><deviceIndex>2</deviceIndex><networkCardIndex>1</networkCardIndex>\
    <status>attached</status><attachTime>2026-11-30T10:00:00.000Z</attachTime>\
    <deleteOnTermination>true</deleteOnTermination></attachment>";

/// What is made of [`interface`] without an attachment.
fn eni() -> Eni {
    Eni {
        id: eni_id(),
        subnet: "subnet-1".into(),
        mac: "02:81:60:cb:27:37".parse().unwrap(),
        description: "aws-K8S-i-1".to_owned(),
        tags: tags(&[("bare", ""), ("cluster", "a")]),
        groups: vec!["sg-1".into(), "sg-2".into()],
        primary: [10, 0, 0, 146].into(),
        secondary: vec![[10, 0, 0, 148].into(), [10, 0, 0, 150].into()],
        prefixes: vec!["10.0.1.16/28".parse().unwrap()],
        prefixes_v6: vec!["2001:db8:0:1:1::/80".parse().unwrap()],
        kind: "interface".to_owned(),
        attachment: None,
    }
}

fn attached() -> Attached {
    Attached {
        id: "eni-attach-1".into(),
        instance: "i-1".into(),
        device_index: 2,
        card_index: 1,
        delete_on_termination: true,
    }
}

fn interfaces(items: &[String], next_token: &str) -> Reply {
    let items: String = items.iter().map(|item| format!("<item>{item}</item>")).collect();
    Reply::xml(
        "DescribeNetworkInterfaces",
        &format!("<networkInterfaceSet>{items}</networkInterfaceSet>{next_token}"),
    )
}

fn no_answer<T>(action: Action, words: &str) -> Called<T> {
    let why = Why::NoAnswer(words.to_owned());
    Err(CallError { action, why })
}

#[tokio::test]
async fn an_instance_is_described_with_the_indexes_of_its_first_card() {
    let on = |card: &str, index: u32| {
        format!(
            "<item><networkInterfaceId>eni-{index}</networkInterfaceId><attachment>\
             <attachmentId>eni-attach-{index}</attachmentId><deviceIndex>{index}</deviceIndex>{card}\
             </attachment></item>"
        )
    };
    let card = |index: u32| format!("<networkCardIndex>{index}</networkCardIndex>");
    let enis = [on(&card(0), 3), on("", 0), on(&card(1), 1)].concat();
    let reply = Reply::xml(
        "DescribeInstances",
        &format!(
            "<reservationSet><item><reservationId>r-1</reservationId><instancesSet><item>\
             <instanceId>i-1</instanceId><instanceType>m5.large</instanceType>\
             <placement><availabilityZone>eu-central-1a</availabilityZone><tenancy>default</tenancy></placement>\
             <subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId>\
             <networkInterfaceSet>{enis}</networkInterfaceSet></item></instancesSet></item></reservationSet>"
        ),
    );
    let instance = Instance {
        id: "i-1".into(),
        instance_type: "m5.large".to_owned(),
        vpc: "vpc-1".into(),
        subnet: "subnet-1".into(),
        zone: "eu-central-1a".to_owned(),
        device_indexes: vec![0, 3],
    };
    let asked = "Action=DescribeInstances\nInstanceId.1=i-1\n";
    let call = async |client: Client| client.instance(&"i-1".into()).await;
    check(vec![reply], call, &[asked], Ok(instance)).await;
    let nobody = Reply::xml("DescribeInstances", "<reservationSet/>");
    let words = "the reply has no instancesSet item that was asked for";
    check(
        vec![nobody],
        call,
        &[asked],
        no_answer(Action::DescribeInstances, words),
    )
    .await;
}

#[tokio::test]
async fn an_instance_type_has_the_limits_of_its_default_card() {
    let cards = "<maximumNetworkInterfaces>60</maximumNetworkInterfaces>\
        <maximumNetworkCards>4</maximumNetworkCards><defaultNetworkCardIndex>0</defaultNetworkCardIndex><networkCards>\
        <item><networkCardIndex>1</networkCardIndex><maximumNetworkInterfaces>16</maximumNetworkInterfaces></item>\
        <item><networkCardIndex>0</networkCardIndex><maximumNetworkInterfaces>15</maximumNetworkInterfaces></item>\
        </networkCards>";
    let one = "<maximumNetworkInterfaces>3</maximumNetworkInterfaces>";
    let (nitro, xen) = ("<hypervisor>nitro</hypervisor>", "<hypervisor>xen</hypervisor>");
    let metal = "<bareMetal>true</bareMetal>";
    let rows = [
        (nitro, cards, (15, true)),
        (nitro, one, (3, true)),
        (xen, one, (3, false)),
        ("<bareMetal>false</bareMetal>", one, (3, false)),
        (metal, one, (3, true)),
    ];
    for (host, interfaces, (maximum, is_nitro)) in rows {
        let reply = Reply::xml(
            "DescribeInstanceTypes",
            &format!(
                "<instanceTypeSet><item><instanceType>m5.large</instanceType>{host}<networkInfo>{interfaces}\
                 <ipv4AddressesPerInterface>10</ipv4AddressesPerInterface></networkInfo></item></instanceTypeSet>"
            ),
        );
        let limits = Limits {
            interfaces: maximum,
            addresses_per_interface: 10,
            is_nitro,
        };
        check(
            vec![reply],
            async |client: Client| client.limits("m5.large").await,
            &["Action=DescribeInstanceTypes\nInstanceType.1=m5.large\n"],
            Ok(Some(limits)),
        )
        .await;
    }
}

#[tokio::test]
async fn an_instance_type_that_is_not_there_has_no_limits() {
    let message = "The following supplied instance types do not exist: [m0.none]";
    check(
        vec![Reply::error(400, "InvalidInstanceType", message)],
        async |client: Client| client.limits("m0.none").await,
        &["Action=DescribeInstanceTypes\nInstanceType.1=m0.none\n"],
        Ok(None),
    )
    .await;
}

#[tokio::test]
async fn subnets_are_those_of_a_zone_that_have_ipv4_addresses() {
    let reply = Reply::xml(
        "DescribeSubnets",
        "<subnetSet>\
         <item><subnetId>subnet-6</subnetId><vpcId>vpc-1</vpcId><ipv6Native>true</ipv6Native>\
         <availabilityZone>eu-central-1a</availabilityZone></item>\
         <item><subnetId>subnet-1</subnetId><state>available</state><vpcId>vpc-1</vpcId>\
         <cidrBlock>10.0.0.0/24</cidrBlock><ipv6Native>false</ipv6Native>\
         <availableIpAddressCount>251</availableIpAddressCount><availabilityZone>eu-central-1a</availabilityZone>\
         <tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item></subnetSet>",
    );
    let subnet = Subnet {
        id: "subnet-1".into(),
        vpc: "vpc-1".into(),
        zone: "eu-central-1a".to_owned(),
        network: "10.0.0.0/24".parse().unwrap(),
        free_addresses: 251,
        tags: tags(&[("kubernetes.io/role/cni", "1")]),
    };
    check(
        vec![reply],
        async |client: Client| client.subnets(&VpcId::from("vpc-1"), "eu-central-1a").await,
        &[
            "Action=DescribeSubnets\nFilter.1.Name=vpc-id\nFilter.1.Value.1=vpc-1\n\
           Filter.2.Name=availability-zone\nFilter.2.Value.1=eu-central-1a\nMaxResults=1000\n",
        ],
        Ok(vec![subnet]),
    )
    .await;
}

#[tokio::test]
async fn interfaces_are_asked_for_by_instance_by_tag_and_by_name() {
    let available = |tag_value: Option<&str>| Which::Available {
        vpc: "vpc-1".into(),
        tag_key: "node.k8s.amazonaws.com/createdAt".to_owned(),
        tag_value: tag_value.map(str::to_owned),
    };
    let free = "Action=DescribeNetworkInterfaces\nMaxResults=1000\n\
        Filter.1.Name=status\nFilter.1.Value.1=available\nFilter.2.Name=vpc-id\nFilter.2.Value.1=vpc-1\n";
    let rows = [
        (
            Which::AttachedTo("i-1".into()),
            "Action=DescribeNetworkInterfaces\nMaxResults=1000\n\
             Filter.1.Name=attachment.instance-id\nFilter.1.Value.1=i-1\n"
                .to_owned(),
        ),
        (
            available(None),
            format!("{free}Filter.3.Name=tag-key\nFilter.3.Value.1=node.k8s.amazonaws.com/createdAt\n"),
        ),
        (
            available(Some("a b&c")),
            format!("{free}Filter.3.Name=tag:node.k8s.amazonaws.com/createdAt\nFilter.3.Value.1=a b&c\n"),
        ),
        (
            Which::Named(eni_id()),
            "Action=DescribeNetworkInterfaces\nNetworkInterfaceId.1=eni-0a1b2c3d\n".to_owned(),
        ),
    ];
    for (which, asked) in rows {
        let reply = interfaces(&[interface(ATTACHMENT), interface("")], "");
        let in_use = Eni {
            attachment: Some(attached()),
            ..eni()
        };
        let call = async |client: Client| client.interfaces(&which).await;
        check(vec![reply], call, &[&asked], Ok(vec![in_use, eni()])).await;
    }
}

#[tokio::test]
async fn interfaces_are_those_of_all_pages_empty_ones_between_them() {
    let asked = "Action=DescribeNetworkInterfaces\nMaxResults=1000\n\
        Filter.1.Name=attachment.instance-id\nFilter.1.Value.1=i-1\n";
    let page = |token: &str| asked.replace("MaxResults", &format!("NextToken={token}\nMaxResults"));
    check(
        vec![
            interfaces(&[interface("")], "<nextToken>second==</nextToken>"),
            interfaces(&[], "<nextToken>third</nextToken>"),
            interfaces(&[interface("")], "<nextToken/>"),
        ],
        async |client: Client| client.interfaces(&Which::AttachedTo("i-1".into())).await,
        &[asked, &page("second=="), &page("third")],
        Ok(vec![eni(), eni()]),
    )
    .await;
}

/// It would be shorter than what there is, and interfaces that are not in it would count as gone.
#[tokio::test]
async fn a_list_whose_pages_have_no_end_is_no_list() {
    let again = || interfaces(&[interface("")], "<nextToken>again</nextToken>");
    let server = Server::start([again(), again()]).await;
    let client = server.client().await;
    let listed = client.interfaces(&Which::AttachedTo("i-1".into())).await;
    let words = "the reply's pages have no end: nextToken came twice";
    assert_eq!(listed, no_answer(Action::DescribeNetworkInterfaces, words));
}

#[tokio::test]
async fn a_failure_on_a_later_page_fails_the_list() {
    let server = Server::start([
        interfaces(&[interface("")], "<nextToken>second</nextToken>"),
        Reply::error(503, "RequestLimitExceeded", "Request limit exceeded."),
    ])
    .await;
    let client = server.client().await;
    let listed = client.interfaces(&Which::AttachedTo("i-1".into())).await;
    let action = Action::DescribeNetworkInterfaces;
    let limit = CallError::refused(action, "RequestLimitExceeded", "Request limit exceeded.");
    assert_eq!(listed, Err(limit));
}

#[tokio::test]
async fn an_interface_that_cannot_have_an_ipv4_address_does_not_hide_the_others() {
    let kind =
        |kind: &str| interface("").replace("<interfaceType>interface", &format!("<interfaceType>{kind}"));
    let own = "<privateIpAddress>10.0.0.146</privateIpAddress><sourceDestCheck>";
    let bare = |text: String| text.replace(own, "<sourceDestCheck>");
    let efa = bare(kind("efa-only"));
    let v6 = bare(interface("")) + "<ipv6Native>true</ipv6Native>";
    let server = Server::start([interfaces(&[efa, kind("trunk"), v6], "")]).await;
    let client = server.client().await;
    let without = |kind: &str| Eni {
        primary: [0, 0, 0, 0].into(),
        kind: kind.to_owned(),
        ..eni()
    };
    let trunk = Eni {
        kind: "trunk".to_owned(),
        ..eni()
    };
    assert_eq!(
        client.interfaces(&Which::AttachedTo("i-1".into())).await,
        Ok(vec![without("efa-only"), trunk, without("interface")])
    );
}

#[tokio::test]
async fn an_interface_is_made_with_all_that_it_shall_have() {
    let new = |amount, tags, groups: &[&str]| NewEni {
        subnet: "subnet-1".into(),
        groups: groups.iter().copied().map(SecurityGroupId::from).collect(),
        description: "aws-K8S-i-1".to_owned(),
        tags,
        amount,
        client_token: "0b7e".to_owned(),
    };
    let rows = [
        (Amount::Addresses(5), "", "SecondaryPrivateIpAddressCount=5\n"),
        (Amount::Prefixes(2), "Ipv4PrefixCount=2\n", ""),
        (Amount::PrefixesV6(1), "Ipv6PrefixCount=1\n", ""),
        (Amount::Addresses(0), "", ""),
        (Amount::Prefixes(0), "", ""),
    ];
    let reply = || {
        let members = format!(
            "<networkInterface>{}</networkInterface><clientToken>0b7e</clientToken>",
            interface("")
        );
        Reply::xml("CreateNetworkInterface", &members)
    };
    for (amount, before, after) in rows {
        let asked = format!(
            "Action=CreateNetworkInterface\n{before}TagSpecification.1.ResourceType=network-interface\n\
             TagSpecification.1.Tag.1.Key=a\nTagSpecification.1.Tag.1.Value=1\n\
             TagSpecification.1.Tag.2.Key=b\nTagSpecification.1.Tag.2.Value=\n\
             ClientToken=0b7e\nSubnetId=subnet-1\nDescription=aws-K8S-i-1\n\
             SecurityGroupId.1=sg-1\nSecurityGroupId.2=sg-2\n{after}"
        );
        let new = new(amount, tags(&[("a", "1"), ("b", "")]), &["sg-1", "sg-2"]);
        let call = async |client: Client| client.create(&new).await;
        check(vec![reply()], call, &[&asked], Ok(eni())).await;
    }
    // EC2 refuses a specification of no tags; without groups it takes the VPC's default.
    let new = new(Amount::Addresses(0), Tags::new(), &[]);
    let asked =
        "Action=CreateNetworkInterface\nClientToken=0b7e\nSubnetId=subnet-1\nDescription=aws-K8S-i-1\n";
    let call = async |client: Client| client.create(&new).await;
    check(vec![reply()], call, &[asked], Ok(eni())).await;
}

#[tokio::test]
async fn an_interface_is_attached_at_an_index() {
    let attached = "<attachmentId>eni-attach-1</attachmentId><networkCardIndex>0</networkCardIndex>";
    check(
        vec![Reply::xml("AttachNetworkInterface", attached)],
        async |client: Client| client.attach(&eni_id(), &InstanceId::from("i-1"), 2).await,
        &["Action=AttachNetworkInterface\nNetworkInterfaceId=eni-0a1b2c3d\nInstanceId=i-1\nDeviceIndex=2\n"],
        Ok("eni-attach-1".into()),
    )
    .await;
}

#[tokio::test]
async fn calls_without_a_result_send_what_they_name() {
    type Call = fn(Client) -> BoxFuture<'static, Called<()>>;
    let modify = "Action=ModifyNetworkInterfaceAttribute\nNetworkInterfaceId=eni-0a1b2c3d\n";
    let rows: [(Call, Action, String); 5] = [
        (
            |client| Box::pin(async move { client.delete_on_termination(&eni_id(), &"eni-attach-1".into()).await }),
            Action::ModifyNetworkInterfaceAttribute,
            format!("{modify}Attachment.AttachmentId=eni-attach-1\nAttachment.DeleteOnTermination=true\n"),
        ),
        (
            |client| Box::pin(async move { client.set_groups(&eni_id(), &["sg-1".into(), "sg-2".into()]).await }),
            Action::ModifyNetworkInterfaceAttribute,
            format!("{modify}SecurityGroupId.1=sg-1\nSecurityGroupId.2=sg-2\n"),
        ),
        (
            |client| Box::pin(async move { client.tag(&eni_id(), &tags(&[("a", "1"), ("b", "")])).await }),
            Action::CreateTags,
            "Action=CreateTags\nResourceId.1=eni-0a1b2c3d\nTag.1.Key=a\nTag.1.Value=1\nTag.2.Key=b\nTag.2.Value=\n"
                .to_owned(),
        ),
        (
            |client| Box::pin(async move { client.detach(&"eni-attach-1".into()).await }),
            Action::DetachNetworkInterface,
            "Action=DetachNetworkInterface\nAttachmentId=eni-attach-1\n".to_owned(),
        ),
        (
            |client| Box::pin(async move { client.delete(&eni_id()).await }),
            Action::DeleteNetworkInterface,
            "Action=DeleteNetworkInterface\nNetworkInterfaceId=eni-0a1b2c3d\n".to_owned(),
        ),
    ];
    for (call, action, asked) in rows {
        let reply = Reply::xml(&action.to_string(), "<return>true</return>");
        check(vec![reply], call, &[&asked], Ok(())).await;
    }
}

#[tokio::test]
async fn what_is_assigned_is_what_came() {
    let addresses = "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.9</privateIpAddress></item>\
        <item><privateIpAddress>10.0.0.7</privateIpAddress></item></assignedPrivateIpAddressesSet>";
    let blocks =
        "<assignedIpv4PrefixSet><item><ipv4Prefix>10.0.1.32/28</ipv4Prefix></item></assignedIpv4PrefixSet>";
    let blocks_v6 = "<assignedIpv6AddressesSet/><assignedIpv6PrefixSet><item>2001:db8:0:1:2::/80</item>\
        </assignedIpv6PrefixSet>";
    let v4 = "Action=AssignPrivateIpAddresses\nNetworkInterfaceId=eni-0a1b2c3d\n";
    let v6 = "Action=AssignIpv6Addresses\nNetworkInterfaceId=eni-0a1b2c3d\n";
    let rows = [
        (
            Amount::Addresses(3),
            Reply::xml("AssignPrivateIpAddresses", addresses),
            format!("{v4}SecondaryPrivateIpAddressCount=3\n"),
            Addresses {
                secondary: vec![[10, 0, 0, 9].into(), [10, 0, 0, 7].into()],
                ..Addresses::default()
            },
        ),
        (
            Amount::Prefixes(1),
            Reply::xml("AssignPrivateIpAddresses", blocks),
            format!("{v4}Ipv4PrefixCount=1\n"),
            Addresses {
                prefixes: vec!["10.0.1.32/28".parse().unwrap()],
                ..Addresses::default()
            },
        ),
        (
            Amount::PrefixesV6(1),
            Reply::xml("AssignIpv6Addresses", blocks_v6),
            format!("{v6}Ipv6PrefixCount=1\n"),
            Addresses {
                prefixes_v6: vec!["2001:db8:0:1:2::/80".parse().unwrap()],
                ..Addresses::default()
            },
        ),
    ];
    for (amount, reply, asked, came) in rows {
        let call = async |client: Client| client.assign(&eni_id(), amount).await;
        check(vec![reply], call, &[&asked], Ok(came)).await;
    }
}

#[tokio::test]
async fn what_is_given_up_is_named_and_nothing_is_not_asked() {
    let done = |action: &str| Reply::xml(action, "<return>true</return>");
    let v4 = || done("UnassignPrivateIpAddresses");
    let v6 = || done("UnassignIpv6Addresses");
    let asked_v4 = "Action=UnassignPrivateIpAddresses\nNetworkInterfaceId=eni-0a1b2c3d\n";
    let asked_v6 =
        "Action=UnassignIpv6Addresses\nNetworkInterfaceId=eni-0a1b2c3d\nIpv6Prefix.1=2001:db8:0:1:2::/80\n";
    let of_addresses = format!("{asked_v4}PrivateIpAddress.1=10.0.0.9\nPrivateIpAddress.2=10.0.0.7\n");
    let of_prefixes = format!("{asked_v4}Ipv4Prefix.1=10.0.1.32/28\n");
    let of_both = format!("{asked_v4}PrivateIpAddress.1=10.0.0.9\nIpv4Prefix.1=10.0.1.32/28\n");
    let rows: [(&[&str], Vec<Reply>, &[&str]); 5] = [
        (&["10.0.0.9/32", "10.0.0.7/32"], vec![v4()], &[&of_addresses]),
        (&["10.0.1.32/28"], vec![v4()], &[&of_prefixes]),
        (&["2001:db8:0:1:2::/80"], vec![v6()], &[asked_v6]),
        (
            &["10.0.0.9/32", "10.0.1.32/28", "2001:db8:0:1:2::/80"],
            vec![v4(), v6()],
            &[&of_both, asked_v6],
        ),
        (&[], vec![], &[]),
    ];
    for (blocks, replies, asked) in rows {
        let addresses: Addresses = blocks
            .iter()
            .map(|block| block.parse::<IpNetwork>().unwrap())
            .collect();
        let call = async |client: Client| client.unassign(&eni_id(), &addresses).await;
        check(replies, call, asked, Ok(())).await;
    }
}

/// EC2 gives none of it without an error; who counts on what came must not go on with nothing.
#[tokio::test]
async fn a_reply_without_what_is_needed_says_which_member_is_missing() {
    async fn check(action: Action, members: &str, call: impl AsyncFnOnce(Client) -> Called<()>, words: &str) {
        let server = Server::start([Reply::xml(&action.to_string(), members)]).await;
        assert_eq!(
            call(server.client().await).await,
            no_answer(action, words),
            "{members}"
        );
    }
    let listed = async |client: Client| client.interfaces(&Which::Named(eni_id())).await.map(drop);
    let whole = interface(ATTACHMENT);
    let rows = [
        (
            "<networkInterfaceId>eni-0a1b2c3d</networkInterfaceId>",
            "",
            "has no networkInterfaceId",
        ),
        ("<subnetId>subnet-1</subnetId>", "", "has no subnetId"),
        ("<subnetId>subnet-1</subnetId>", "<subnetId/>", "has no subnetId"),
        (
            "<macAddress>02:81:60:cb:27:37</macAddress>",
            "",
            "has no macAddress",
        ),
        ("02:81:60:cb:27:37", "02:81", "'s macAddress is \"02:81\""),
        (
            "<privateIpAddress>10.0.0.146</privateIpAddress><s",
            "<s",
            "has no privateIpAddress",
        ),
        (
            "10.0.0.148",
            "10.0.0.256",
            "'s privateIpAddress is \"10.0.0.256\"",
        ),
        (
            "<privateIpAddress>10.0.0.148</privateIpAddress>",
            "",
            "has no privateIpAddress",
        ),
        (
            "10.0.1.16/28",
            "10.0.1.16/33",
            "'s ipv4Prefix is \"10.0.1.16/33\"",
        ),
        (
            "<ipv6Prefix>2001:db8:0:1:1::/80</ipv6Prefix>",
            "",
            "has no ipv6Prefix",
        ),
        ("<groupId>sg-2</groupId>", "", "has no groupId"),
        ("<key>cluster</key>", "", "has no key"),
        (
            "<interfaceType>interface</interfaceType>",
            "",
            "has no interfaceType",
        ),
        (
            "<attachmentId>eni-attach-1</attachmentId>",
            "",
            "has no attachmentId",
        ),
        ("<instanceId>i-1</instanceId>", "", "has no instanceId"),
        ("<deviceIndex>2</deviceIndex>", "", "has no deviceIndex"),
        ("<deviceIndex>2", "<deviceIndex>-1", "'s deviceIndex is \"-1\""),
        (
            "<deleteOnTermination>true</deleteOnTermination>",
            "",
            "has no deleteOnTermination",
        ),
    ];
    for (member, instead, words) in rows {
        let item = whole.replacen(member, instead, 1);
        assert_ne!(item, whole, "{member}");
        let set = format!("<networkInterfaceSet><item>{item}</item></networkInterfaceSet>");
        let space = if words.starts_with('\'') { "" } else { " " };
        let words = format!("the reply{space}{words}");
        check(Action::DescribeNetworkInterfaces, &set, listed, &words).await;
    }
    let limits = async |client: Client| client.limits("m5.large").await.map(drop);
    let of_type = |members: &str| {
        format!(
            "<instanceTypeSet><item><instanceType>m5.large</instanceType>{members}</item></instanceTypeSet>"
        )
    };
    let types = Action::DescribeInstanceTypes;
    let other = "the reply has no instanceTypeSet item that was asked for";
    check(types, "<instanceTypeSet/>", limits, other).await;
    check(types, &of_type(""), limits, "the reply has no networkInfo").await;
    let words = "the reply has no maximumNetworkInterfaces";
    check(types, &of_type("<networkInfo/>"), limits, words).await;
    let one = "<networkInfo><maximumNetworkInterfaces>3</maximumNetworkInterfaces></networkInfo>";
    check(
        types,
        &of_type(one),
        limits,
        "the reply has no ipv4AddressesPerInterface",
    )
    .await;
    let assign = |amount| async move |client: Client| client.assign(&eni_id(), amount).await.map(drop);
    let action = Action::AssignPrivateIpAddresses;
    let words = "the reply has no assignedPrivateIpAddressesSet";
    check(action, "", assign(Amount::Addresses(1)), words).await;
    let words = "the reply has no assignedIpv4PrefixSet";
    check(action, "", assign(Amount::Prefixes(1)), words).await;
    let words = "the reply has no assignedIpv6PrefixSet";
    check(
        Action::AssignIpv6Addresses,
        "",
        assign(Amount::PrefixesV6(1)),
        words,
    )
    .await;
    let attach = async |client: Client| client.attach(&eni_id(), &"i-1".into(), 1).await.map(drop);
    let words = "the reply has no attachmentId";
    check(Action::AttachNetworkInterface, "", attach, words).await;
    let create = async |client: Client| {
        let new = NewEni {
            subnet: "subnet-1".into(),
            groups: Vec::new(),
            description: String::new(),
            tags: Tags::new(),
            amount: Amount::Addresses(0),
            client_token: "0b7e".to_owned(),
        };
        client.create(&new).await.map(drop)
    };
    let words = "the reply has no networkInterface";
    check(Action::CreateNetworkInterface, "", create, words).await;
}
