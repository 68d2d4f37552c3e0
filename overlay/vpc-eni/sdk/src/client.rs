//! EC2's actions by the SDK.

use std::error::Error;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{FrameworkMetadata, IdentityCache};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    Filter, InstanceType, NetworkInterfaceAttachmentChanges, ResourceType, Tag, TagSpecification,
};
use aws_smithy_async::future::pagination_stream::PaginationStream;
use vpc_eni::ec2::{
    Action, Addresses, Amount, AttachmentId, CallError, Called, Ec2, Eni, EniId, Instance, InstanceId,
    Limits, NewEni, SecurityGroupId, Subnet, Tags, VpcId, Which,
};

use crate::connector::http_client;
use crate::failure::{call_error, unusable};
use crate::reply::{self, Unusable, Usable, needed};
use crate::settings::{CredentialSource, Limited, Settings, SettingsError};

/// The most of a list that EC2 gives at once.
const PAGE: i32 = 1000;

/// EC2 of one region. Calls are independent of each other and may run at the same time; clones share their
/// connections and credentials.
///
/// A call is one request, of a list one for each page: the SDK's own retries are off, since whoever calls has a record
/// of what was asked and a budget of calls.
#[derive(Clone, Debug)]
pub struct Client {
    ec2: aws_sdk_ec2::Client,
}

impl Client {
    /// A client. Credentials are first asked for with the first call.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub async fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.validate()?;
        let Settings {
            region,
            endpoint,
            credentials,
            timeouts,
        } = settings;
        let mut shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(region))
            .http_client(http_client());
        if let CredentialSource::Given(provider) = credentials {
            shared = shared.credentials_provider(provider);
        }
        if let Some(endpoint) = endpoint {
            shared = shared.endpoint_url(endpoint);
        }
        let shared = shared.load().await;
        // Of EC2 alone: what fetches credentials may repeat itself, since it changes nothing.
        let waits = TimeoutConfig::builder()
            .connect_timeout(timeouts.connect)
            .read_timeout(timeouts.read)
            .operation_timeout(timeouts.call)
            .build();
        let provider = shared
            .credentials_provider()
            .expect("invariant: the SDK makes its chain where none is given");
        let provider = Limited {
            provider,
            limit: timeouts.credentials,
        };
        // Longer, so that it is never the SDK's that ends the wait.
        let cache = IdentityCache::lazy()
            .load_timeout(timeouts.credentials * 2)
            .build();
        let config = aws_sdk_ec2::config::Builder::from(&shared)
            .retry_config(RetryConfig::disabled())
            .timeout_config(waits)
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .identity_cache(cache)
            .framework_metadata(product())
            .build();
        let ec2 = aws_sdk_ec2::Client::from_conf(config);
        Ok(Self { ec2 })
    }
}

/// What the user agent says besides the SDK: `lib/causeway/VERSION`.
fn product() -> FrameworkMetadata {
    FrameworkMetadata::new("causeway", Some(env!("CARGO_PKG_VERSION")))
        .expect("invariant: letters, digits and points")
}

fn filter(name: impl Into<String>, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn sdk_tags(tags: &Tags) -> Vec<Tag> {
    let tag = |(key, value)| Tag::builder().key(key).value(value).build();
    tags.iter().map(tag).collect()
}

/// As a list of a request; one that is empty is left out.
fn texts<T: ToString>(values: &[T]) -> Option<Vec<String>> {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    Some(texts).filter(|texts| !texts.is_empty())
}

/// A count in EC2's type; what is too large for it is also too large for EC2, which says so.
fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What of a reply is used.
fn used<T>(action: Action, reply: Usable<T>) -> Called<T> {
    reply.map_err(|why| unusable(action, &why))
}

/// All pages of a list. The SDK stops without a word where a token comes twice, and what it has by then would pass for
/// the whole list: interfaces that are missing from it would count as gone.
async fn pages<O, E>(
    action: Action,
    mut stream: PaginationStream<Result<O, SdkError<E>>>,
    next_token: fn(&O) -> Option<&str>,
) -> Called<Vec<O>>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let mut pages = Vec::new();
    while let Some(page) = stream.next().await {
        pages.push(page.map_err(|error| call_error(action, error))?);
    }
    match pages.last().and_then(next_token) {
        Some(token) if !token.is_empty() => Err(unusable(action, &Unusable::Endless)),
        _ => Ok(pages),
    }
}

impl Ec2 for Client {
    async fn instance(&self, id: &InstanceId) -> Called<Instance> {
        let action = Action::DescribeInstances;
        let sent = self.ec2.describe_instances().instance_ids(&id.0).send().await;
        let reply = sent.map_err(|error| call_error(action, error))?;
        let mut instances = reply.reservations().iter().flat_map(|all| all.instances());
        let it = instances.find(|instance| instance.instance_id() == Some(&id.0));
        used(
            action,
            needed("instancesSet item that was asked for", it).and_then(reply::instance),
        )
    }

    async fn limits(&self, instance_type: &str) -> Called<Option<Limits>> {
        let action = Action::DescribeInstanceTypes;
        let instance_type = InstanceType::from(instance_type);
        let call = self
            .ec2
            .describe_instance_types()
            .instance_types(instance_type.clone());
        let reply = match call.send().await.map_err(|error| call_error(action, error)) {
            Err(error) if error.code() == Some("InvalidInstanceType") => return Ok(None),
            sent => sent?,
        };
        let it = reply
            .instance_types()
            .iter()
            .find(|info| info.instance_type() == Some(&instance_type));
        used(
            action,
            needed("instanceTypeSet item that was asked for", it).and_then(reply::limits),
        )
        .map(Some)
    }

    async fn subnets(&self, vpc: &VpcId, zone: &str) -> Called<Vec<Subnet>> {
        let action = Action::DescribeSubnets;
        let call = self
            .ec2
            .describe_subnets()
            .filters(filter("vpc-id", &vpc.0))
            .filters(filter("availability-zone", zone));
        let stream = call.into_paginator().page_size(PAGE).send();
        let pages = pages(action, stream, |page| page.next_token()).await?;
        let subnets = pages.iter().flat_map(|page| page.subnets());
        used(
            action,
            subnets
                .filter_map(|subnet| reply::subnet(subnet).transpose())
                .collect(),
        )
    }

    async fn interfaces(&self, which: &Which) -> Called<Vec<Eni>> {
        let action = Action::DescribeNetworkInterfaces;
        let call = self.ec2.describe_network_interfaces();
        let pager = match which {
            Which::AttachedTo(instance) => call
                .filters(filter("attachment.instance-id", &instance.0))
                .into_paginator()
                .page_size(PAGE),
            Which::Available {
                vpc,
                tag_key,
                tag_value,
            } => {
                let tag = match tag_value {
                    Some(value) => filter(format!("tag:{tag_key}"), value),
                    None => filter("tag-key", tag_key),
                };
                call.filters(filter("status", "available"))
                    .filters(filter("vpc-id", &vpc.0))
                    .filters(tag)
                    .into_paginator()
                    .page_size(PAGE)
            }
            // EC2 refuses a size of pages beside a name.
            Which::Named(eni) => call.network_interface_ids(&eni.0).into_paginator(),
        };
        let pages = pages(action, pager.send(), |page| page.next_token()).await?;
        let interfaces = pages.iter().flat_map(|page| page.network_interfaces());
        used(action, interfaces.map(reply::eni).collect())
    }

    async fn create(&self, new: &NewEni) -> Called<Eni> {
        let action = Action::CreateNetworkInterface;
        let NewEni {
            subnet,
            groups,
            description,
            tags,
            amount,
            client_token,
        } = new;
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::NetworkInterface)
            .set_tags(Some(sdk_tags(tags)));
        let mut call = self
            .ec2
            .create_network_interface()
            .subnet_id(&subnet.0)
            .set_groups(texts(groups))
            .description(description)
            .client_token(client_token);
        if !new.tags.is_empty() {
            call = call.tag_specifications(tags.build());
        }
        let call = match *amount {
            Amount::Addresses(0) | Amount::Prefixes(0) | Amount::PrefixesV6(0) => call,
            Amount::Addresses(count) => call.secondary_private_ip_address_count(number(count)),
            Amount::Prefixes(count) => call.ipv4_prefix_count(number(count)),
            Amount::PrefixesV6(count) => call.ipv6_prefix_count(number(count)),
        };
        let reply = call.send().await.map_err(|error| call_error(action, error))?;
        used(
            action,
            needed("networkInterface", reply.network_interface()).and_then(reply::eni),
        )
    }

    async fn attach(&self, eni: &EniId, instance: &InstanceId, device_index: u32) -> Called<AttachmentId> {
        let action = Action::AttachNetworkInterface;
        // Without a network card's index it is the first.
        let call = self
            .ec2
            .attach_network_interface()
            .network_interface_id(&eni.0)
            .instance_id(&instance.0)
            .device_index(number(device_index));
        let reply = call.send().await.map_err(|error| call_error(action, error))?;
        used(action, needed("attachmentId", reply.attachment_id())).map(AttachmentId::from)
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Called<()> {
        let changes = NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(&attachment.0)
            .delete_on_termination(true);
        let call = self
            .ec2
            .modify_network_interface_attribute()
            .network_interface_id(&eni.0)
            .attachment(changes.build());
        done(Action::ModifyNetworkInterfaceAttribute, call.send().await)
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Called<()> {
        let call = self
            .ec2
            .modify_network_interface_attribute()
            .network_interface_id(&eni.0)
            .set_groups(texts(groups));
        done(Action::ModifyNetworkInterfaceAttribute, call.send().await)
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Called<()> {
        let call = self
            .ec2
            .create_tags()
            .resources(&eni.0)
            .set_tags(Some(sdk_tags(tags)));
        done(Action::CreateTags, call.send().await)
    }

    async fn detach(&self, attachment: &AttachmentId) -> Called<()> {
        let call = self.ec2.detach_network_interface().attachment_id(&attachment.0);
        done(Action::DetachNetworkInterface, call.send().await)
    }

    async fn delete(&self, eni: &EniId) -> Called<()> {
        let call = self.ec2.delete_network_interface().network_interface_id(&eni.0);
        done(Action::DeleteNetworkInterface, call.send().await)
    }

    async fn assign(&self, eni: &EniId, amount: Amount) -> Called<Addresses> {
        match amount {
            Amount::Addresses(count) => self.assign_v4(eni, Some(number(count)), None).await,
            Amount::Prefixes(count) => self.assign_v4(eni, None, Some(number(count))).await,
            Amount::PrefixesV6(count) => self.assign_v6(eni, number(count)).await,
        }
    }

    async fn unassign(&self, eni: &EniId, addresses: &Addresses) -> Called<()> {
        let Addresses {
            secondary,
            prefixes,
            prefixes_v6,
        } = addresses;
        if !secondary.is_empty() || !prefixes.is_empty() {
            let call = self
                .ec2
                .unassign_private_ip_addresses()
                .network_interface_id(&eni.0)
                .set_private_ip_addresses(texts(secondary))
                .set_ipv4_prefixes(texts(prefixes));
            done(Action::UnassignPrivateIpAddresses, call.send().await)?;
        }
        if !prefixes_v6.is_empty() {
            let call = self
                .ec2
                .unassign_ipv6_addresses()
                .network_interface_id(&eni.0)
                .set_ipv6_prefixes(texts(prefixes_v6));
            done(Action::UnassignIpv6Addresses, call.send().await)?;
        }
        Ok(())
    }
}

impl Client {
    async fn assign_v4(
        &self,
        eni: &EniId,
        addresses: Option<i32>,
        prefixes: Option<i32>,
    ) -> Called<Addresses> {
        let action = Action::AssignPrivateIpAddresses;
        let call = self
            .ec2
            .assign_private_ip_addresses()
            .network_interface_id(&eni.0)
            .set_secondary_private_ip_address_count(addresses)
            .set_ipv4_prefix_count(prefixes);
        let reply = call.send().await.map_err(|error| call_error(action, error))?;
        let (came, blocks) = (
            reply.assigned_private_ip_addresses(),
            reply.assigned_ipv4_prefixes(),
        );
        let missing = match addresses {
            Some(_) if came.is_empty() => Some("assignedPrivateIpAddressesSet"),
            None if blocks.is_empty() => Some("assignedIpv4PrefixSet"),
            _ => None,
        };
        let whole = missing.map_or(Ok(()), |member| Err(Unusable::Missing { member }));
        used(action, whole.and_then(|()| reply::assigned(came, blocks)))
    }

    async fn assign_v6(&self, eni: &EniId, prefixes: i32) -> Called<Addresses> {
        let action = Action::AssignIpv6Addresses;
        let call = self
            .ec2
            .assign_ipv6_addresses()
            .network_interface_id(&eni.0)
            .ipv6_prefix_count(prefixes);
        let reply = call.send().await.map_err(|error| call_error(action, error))?;
        let blocks = Some(reply.assigned_ipv6_prefixes()).filter(|blocks| !blocks.is_empty());
        used(
            action,
            needed("assignedIpv6PrefixSet", blocks).and_then(reply::assigned_v6),
        )
    }
}

/// Whether a call whose reply says nothing more was done.
fn done<O, E>(action: Action, sent: Result<O, SdkError<E>>) -> Result<(), CallError>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    sent.map(drop).map_err(|error| call_error(action, error))
}
