//! A small world, and both ways to call it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use fake_vpc::request::{Attribute, Reply, Request, Search};
use fake_vpc::{Client, Cloud, Server};
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use vpc_eni::ec2::{
    Amount, AttachmentId, Ec2, Eni, EniId, InstanceId, NewEni, SecurityGroupId, SubnetId, Tags, VpcId, Which,
};

/// One VPC with an instance in it.
pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) ec2: Client,
    pub(crate) vpc: VpcId,
    /// `10.0.1.0/24` and an IPv6 block, in the instance's zone.
    pub(crate) subnet: SubnetId,
    /// `10.0.2.0/28`, in the instance's zone: eleven addresses can be given.
    pub(crate) tiny: SubnetId,
    /// `10.0.3.0/24`, in another zone.
    pub(crate) elsewhere: SubnetId,
    pub(crate) group: SecurityGroupId,
    /// An m5.large: 3 interfaces, 10 addresses each.
    pub(crate) instance: InstanceId,
}

pub(crate) fn tags<const N: usize>(tags: [(&str, &str); N]) -> Tags {
    tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

impl World {
    pub(crate) fn new() -> Self {
        let cloud = Cloud::new(7);
        let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
        let zone = "eu-west-1a";
        let subnet = cloud
            .make_dual_subnet(
                &vpc,
                "10.0.1.0/24".parse().unwrap(),
                "2001:db8:0:1::/64".parse().unwrap(),
                zone,
                tags([("kubernetes.io/role/cni", "1")]),
            )
            .unwrap();
        let tiny = cloud
            .make_subnet(&vpc, "10.0.2.0/28".parse().unwrap(), zone, Tags::new())
            .unwrap();
        let elsewhere = cloud
            .make_subnet(&vpc, "10.0.3.0/24".parse().unwrap(), "eu-west-1b", Tags::new())
            .unwrap();
        let group = cloud
            .make_security_group(&vpc, tags([("Name", "nodes")]))
            .unwrap();
        let instance = cloud
            .make_instance("m5.large", &subnet, std::slice::from_ref(&group))
            .unwrap();
        Self {
            ec2: cloud.client(),
            cloud,
            vpc,
            subnet,
            tiny,
            elsewhere,
            group,
            instance,
        }
    }

    pub(crate) fn primary(&self) -> Eni {
        self.cloud.interfaces_of(&self.instance)[0].eni.clone()
    }

    pub(crate) fn new_eni(&self, amount: Amount) -> NewEni {
        NewEni {
            subnet: self.subnet.clone(),
            groups: vec![self.group.clone()],
            description: "of a test".to_owned(),
            tags: tags([("causeway", "yes")]),
            amount,
            client_token: String::new(),
        }
    }

    /// Of an interface that is not made yet: this call is not in the ledger.
    pub(crate) fn make(&self, new: NewEni) -> Eni {
        match self.cloud.meddle(&Request::CreateNetworkInterface(new)).unwrap() {
            Reply::Created { interface, .. } => interface.eni,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attach(&self, eni: &EniId, instance: &InstanceId, device_index: u32) -> AttachmentId {
        let request = Request::AttachNetworkInterface {
            eni: eni.clone(),
            instance: instance.clone(),
            device_index,
            card_index: 0,
        };
        match self.cloud.meddle(&request).unwrap() {
            Reply::Attached { attachment, .. } => attachment,
            other => panic!("{other:?}"),
        }
    }

    /// An interface at a device index of the instance.
    pub(crate) fn attached(&self, amount: Amount, device_index: u32) -> Eni {
        let eni = self.make(self.new_eni(amount));
        self.attach(&eni.id, &self.instance, device_index);
        self.cloud.interface(&eni.id).unwrap().eni
    }

    pub(crate) fn enis(&self) -> Vec<Eni> {
        self.cloud
            .interfaces()
            .into_iter()
            .map(|interface| interface.eni)
            .collect()
    }

    pub(crate) async fn seen(&self) -> Vec<EniId> {
        let which = Which::AttachedTo(self.instance.clone());
        self.ec2
            .interfaces(&which)
            .await
            .unwrap()
            .into_iter()
            .map(|eni| eni.id)
            .collect()
    }
}

pub(crate) fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A server with what calls it.
pub(crate) struct Http {
    pub(crate) server: Server,
    client: HttpClient<HttpConnector, Full<Bytes>>,
}

pub(crate) const SIGNED: (&str, &str) = (
    "authorization",
    "AWS4-HMAC-SHA256 Credential=a/b/c/ec2/aws4_request, SignedHeaders=host, Signature=0",
);

impl Http {
    pub(crate) fn new(cloud: &Cloud) -> Self {
        Self {
            server: Server::start(cloud, loopback()).unwrap(),
            client: HttpClient::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// A form for EC2; the status and the body. `None`: nobody answers.
    pub(crate) async fn post(&self, form: &str, headers: &[(&str, &str)]) -> Option<(StatusCode, String)> {
        self.send("POST", self.server.ec2(), "/", headers, form).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        at: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<(StatusCode, String)> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{at}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = self.client.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    /// One request; what came, or the error's status, code and message.
    pub(crate) async fn call(&self, request: &Request) -> Result<Element, (StatusCode, String, String)> {
        let (status, body) = self.post(&form(request), &[SIGNED]).await.expect("an answer");
        let document = parse(&body);
        if status == StatusCode::OK {
            return Ok(document);
        }
        let error = document.at(&["Errors", "Error"]);
        Err((
            status,
            error.at(&["Code"]).text.clone(),
            error.at(&["Message"]).text.clone(),
        ))
    }
}

pub(crate) fn loopback() -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::LOCALHOST), 0).into()
}

/// A request as a form, written from EC2's reference.
pub(crate) fn form(request: &Request) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    let mut add = |name: &str, value: &str| {
        form.append_pair(name, value);
    };
    add("Action", &request.action().to_string());
    add("Version", "2016-11-15");
    match request {
        Request::AssignIpv6Addresses { eni, prefixes } => {
            add("NetworkInterfaceId", &eni.0);
            add("Ipv6PrefixCount", &prefixes.to_string());
        }
        Request::AssignPrivateIpAddresses { eni, amount } => {
            add("NetworkInterfaceId", &eni.0);
            add_amount(&mut add, *amount);
        }
        Request::AttachNetworkInterface {
            eni,
            instance,
            device_index,
            card_index,
        } => {
            add("NetworkInterfaceId", &eni.0);
            add("InstanceId", &instance.0);
            add("DeviceIndex", &device_index.to_string());
            add("NetworkCardIndex", &card_index.to_string());
        }
        Request::CreateNetworkInterface(new) => {
            add("SubnetId", &new.subnet.0);
            add("Description", &new.description);
            add_each(
                &mut add,
                "SecurityGroupId",
                new.groups.iter().map(|group| &group.0),
            );
            add_amount(&mut add, new.amount);
            if !new.tags.is_empty() {
                add("TagSpecification.1.ResourceType", "network-interface");
            }
            add_tags(&mut add, "TagSpecification.1.Tag", &new.tags);
            if !new.client_token.is_empty() {
                add("ClientToken", &new.client_token);
            }
        }
        Request::CreateTags { resources, tags } => {
            add_each(&mut add, "ResourceId", resources);
            add_tags(&mut add, "Tag", tags);
        }
        Request::DeleteNetworkInterface { eni } => add("NetworkInterfaceId", &eni.0),
        Request::DescribeInstanceTypes(search) => add_search(&mut add, "InstanceType", search),
        Request::DescribeInstances(search) => add_search(&mut add, "InstanceId", search),
        Request::DescribeNetworkInterfaces(search) => add_search(&mut add, "NetworkInterfaceId", search),
        Request::DescribeSecurityGroups(search) => add_search(&mut add, "GroupId", search),
        Request::DescribeSubnets(search) => add_search(&mut add, "SubnetId", search),
        Request::DetachNetworkInterface { attachment } => add("AttachmentId", &attachment.0),
        Request::ModifyNetworkInterfaceAttribute { eni, attribute } => {
            add("NetworkInterfaceId", &eni.0);
            match attribute {
                Attribute::DeleteOnTermination { attachment, value } => {
                    add("Attachment.AttachmentId", &attachment.0);
                    add("Attachment.DeleteOnTermination", &value.to_string());
                }
                Attribute::Groups(groups) => {
                    add_each(&mut add, "SecurityGroupId", groups.iter().map(|group| &group.0));
                }
            }
        }
        Request::UnassignIpv6Addresses { eni, prefixes } => {
            add("NetworkInterfaceId", &eni.0);
            add_each(&mut add, "Ipv6Prefix", prefixes);
        }
        Request::UnassignPrivateIpAddresses {
            eni,
            addresses,
            prefixes,
        } => {
            add("NetworkInterfaceId", &eni.0);
            add_each(&mut add, "PrivateIpAddress", addresses);
            add_each(&mut add, "Ipv4Prefix", prefixes);
        }
    }
    form.finish()
}

fn add_each(add: &mut impl FnMut(&str, &str), name: &str, values: impl IntoIterator<Item = impl ToString>) {
    for (index, value) in values.into_iter().enumerate() {
        add(&format!("{name}.{}", index + 1), &value.to_string());
    }
}

fn add_tags(add: &mut impl FnMut(&str, &str), name: &str, tags: &Tags) {
    for (index, (key, value)) in tags.iter().enumerate() {
        add(&format!("{name}.{}.Key", index + 1), key);
        add(&format!("{name}.{}.Value", index + 1), value);
    }
}

fn add_amount(add: &mut impl FnMut(&str, &str), amount: Amount) {
    match amount {
        Amount::Addresses(count) => add("SecondaryPrivateIpAddressCount", &count.to_string()),
        Amount::Prefixes(count) => add("Ipv4PrefixCount", &count.to_string()),
        Amount::PrefixesV6(count) => add("Ipv6PrefixCount", &count.to_string()),
    }
}

fn add_search(add: &mut impl FnMut(&str, &str), ids: &str, search: &Search) {
    add_each(add, ids, &search.ids);
    for (index, filter) in search.filters.iter().enumerate() {
        add(&format!("Filter.{}.Name", index + 1), &filter.name);
        add_each(add, &format!("Filter.{}.Value", index + 1), &filter.values);
    }
    if let Some(most) = search.max_results {
        add("MaxResults", &most.to_string());
    }
    if let Some(token) = &search.next_token {
        add("NextToken", token);
    }
}

/// An element of an XML document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    /// What stands after the name in the opening tag.
    pub(crate) attributes: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

impl Element {
    #[track_caller]
    pub(crate) fn at(&self, path: &[&str]) -> &Self {
        path.iter().fold(self, |element, name| {
            let mut found = element.children.iter().filter(|child| child.name == *name);
            let Some(one) = found.next() else {
                panic!("no {name} in {element:#?}")
            };
            assert_eq!(found.next(), None, "one {name}");
            one
        })
    }
}

/// Reads what the fake writes: elements, text, the five entities and numbers of characters. Panics where it is not
/// well-formed.
pub(crate) fn parse(document: &str) -> Element {
    let mut rest = document
        .strip_prefix(r#"<?xml version="1.0" encoding="UTF-8"?>"#)
        .expect("a declaration");
    let mut open = vec![Element::default()];
    while let Some((text, after)) = rest.split_once('<') {
        let parent = open.last_mut().expect("an open element");
        write!(parent.text, "{}", unescape(text)).unwrap();
        let (tag, after) = after.split_once('>').expect("a tag's end");
        rest = after;
        match tag.strip_prefix('/') {
            Some(name) => {
                let closed = open.pop().expect("an open element");
                assert_eq!(closed.name, name, "closed as it was opened");
                open.last_mut().expect("a parent").children.push(closed);
            }
            None => {
                let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
                open.push(Element {
                    name: name.to_owned(),
                    attributes: attributes.to_owned(),
                    ..Element::default()
                });
            }
        }
    }
    assert_eq!(rest, "", "nothing after the end");
    let mut top = open.pop().expect("the document");
    assert!(open.is_empty(), "all closed");
    assert_eq!(top.children.len(), 1, "one root");
    top.children.remove(0)
}

fn unescape(text: &str) -> String {
    assert!(!text.contains('>'), "{text}");
    let mut plain = String::new();
    let mut parts = text.split('&');
    plain += parts.next().unwrap_or_default();
    for part in parts {
        let (entity, after) = part.split_once(';').expect("an entity's end");
        plain += match entity {
            "amp" => "&",
            "lt" => "<",
            "gt" => ">",
            "quot" => "\"",
            "#13" => "\r",
            other => panic!("the entity {other}"),
        };
        plain += after;
    }
    plain
}
