//! EC2's query protocol: a form says what is asked for, XML what came of it.

use std::collections::BTreeMap;
use std::str::FromStr;

use vpc_eni::ec2::{
    Action, Amount, AttachmentId, EniId, InstanceId, NewEni, SecurityGroupId, SubnetId, Tags,
};

use crate::request::{Attribute, Filter, Refusal, Request, Search};

/// The version of the API whose words these are.
pub const VERSION: &str = "2016-11-15";

/// The members of a request that the fake understands, by their names in the form; `N` stands for a number from 1 on.
/// Any other is refused: what is not done must not look as if it were.
#[must_use]
pub const fn members(action: Action) -> &'static [&'static str] {
    match action {
        Action::AssignIpv6Addresses => &["NetworkInterfaceId", "Ipv6PrefixCount"],
        Action::AssignPrivateIpAddresses => &[
            "NetworkInterfaceId",
            "SecondaryPrivateIpAddressCount",
            "Ipv4PrefixCount",
        ],
        Action::AttachNetworkInterface => &[
            "NetworkInterfaceId",
            "InstanceId",
            "DeviceIndex",
            "NetworkCardIndex",
            "DryRun",
        ],
        Action::CreateNetworkInterface => &[
            "SubnetId",
            "SecurityGroupId.N",
            "Description",
            "InterfaceType",
            "SecondaryPrivateIpAddressCount",
            "Ipv4PrefixCount",
            "Ipv6PrefixCount",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
            "ClientToken",
            "DryRun",
        ],
        Action::CreateTags => &["ResourceId.N", "Tag.N.Key", "Tag.N.Value", "DryRun"],
        Action::DeleteNetworkInterface => &["NetworkInterfaceId", "DryRun"],
        Action::DescribeInstanceTypes => &[
            "InstanceType.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
            "DryRun",
        ],
        Action::DescribeInstances => &[
            "InstanceId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
            "DryRun",
        ],
        Action::DescribeNetworkInterfaces => &[
            "NetworkInterfaceId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
            "DryRun",
        ],
        Action::DescribeSecurityGroups => &[
            "GroupId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
            "DryRun",
        ],
        Action::DescribeSubnets => &[
            "SubnetId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
            "DryRun",
        ],
        Action::DetachNetworkInterface => &["AttachmentId", "Force", "DryRun"],
        Action::ModifyNetworkInterfaceAttribute => &[
            "NetworkInterfaceId",
            "Attachment.AttachmentId",
            "Attachment.DeleteOnTermination",
            "SecurityGroupId.N",
            "DryRun",
        ],
        Action::UnassignIpv6Addresses => &["NetworkInterfaceId", "Ipv6Prefix.N"],
        Action::UnassignPrivateIpAddresses => &["NetworkInterfaceId", "PrivateIpAddress.N", "Ipv4Prefix.N"],
    }
}

/// Reads a request out of a form (`application/x-www-form-urlencoded`).
///
/// # Errors
/// What EC2 says of a request that makes no sense: `MissingAction`, `InvalidAction`, `NoSuchVersion`,
/// `MissingParameter`, `UnknownParameter`, `InvalidParameterValue`, `InvalidParameterCombination`,
/// `MalformedQueryString`.
pub fn read(form: &[u8]) -> Result<Request, Refusal> {
    let mut form = Form::parse(form)?;
    let Some(name) = form.text("Action") else {
        return Err(Refusal::new(
            "MissingAction",
            "The request must contain the parameter Action",
        ));
    };
    let Some(action) = Action::ALL.into_iter().find(|action| action.to_string() == name) else {
        let message = format!("The action {name} is not valid for this web service.");
        return Err(Refusal::new("InvalidAction", message));
    };
    let version = form.needed("Version")?;
    if version != VERSION {
        let message = format!("The requested version ({version}) of service EC2 does not exist");
        return Err(Refusal::new("NoSuchVersion", message));
    }
    form.check(action)?;
    if form.flag("DryRun")? == Some(true) {
        return Err(Refusal::new(
            "UnsupportedOperation",
            "The fake VPC knows no dry run.",
        ));
    }
    form.request(action)
}

/// A form's values by their names.
struct Form(BTreeMap<String, String>);

impl Form {
    fn parse(form: &[u8]) -> Result<Self, Refusal> {
        let mut values = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(form) {
            if values
                .insert(name.clone().into_owned(), value.into_owned())
                .is_some()
            {
                let message = format!("The parameter {name} stands twice.");
                return Err(Refusal::new("MalformedQueryString", message));
            }
        }
        Ok(Self(values))
    }

    fn check(&self, action: Action) -> Result<(), Refusal> {
        let known = members(action);
        match self
            .0
            .keys()
            .find(|name| !known.contains(&pattern(name).as_str()))
        {
            Some(name) => {
                let message = format!("The parameter {name} is not recognized");
                Err(Refusal::new("UnknownParameter", message))
            }
            None => Ok(()),
        }
    }

    fn request(&mut self, action: Action) -> Result<Request, Refusal> {
        Ok(match action {
            Action::AssignIpv6Addresses => Request::AssignIpv6Addresses {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                prefixes: self.number("Ipv6PrefixCount")?.unwrap_or_default(),
            },
            Action::AssignPrivateIpAddresses => Request::AssignPrivateIpAddresses {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                amount: self.amount()?,
            },
            Action::AttachNetworkInterface => Request::AttachNetworkInterface {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                instance: InstanceId(self.needed("InstanceId")?),
                device_index: self
                    .number("DeviceIndex")?
                    .ok_or_else(|| missing("DeviceIndex"))?,
                card_index: self.number("NetworkCardIndex")?.unwrap_or_default(),
            },
            Action::CreateNetworkInterface => Request::CreateNetworkInterface(self.new_eni()?),
            Action::CreateTags => Request::CreateTags {
                resources: some("ResourceId", self.list("ResourceId")?)?,
                tags: self.tags("Tag")?,
            },
            Action::DeleteNetworkInterface => Request::DeleteNetworkInterface {
                eni: EniId(self.needed("NetworkInterfaceId")?),
            },
            Action::DescribeInstanceTypes => Request::DescribeInstanceTypes(self.search("InstanceType")?),
            Action::DescribeInstances => Request::DescribeInstances(self.search("InstanceId")?),
            Action::DescribeNetworkInterfaces => {
                Request::DescribeNetworkInterfaces(self.search("NetworkInterfaceId")?)
            }
            Action::DescribeSecurityGroups => Request::DescribeSecurityGroups(self.search("GroupId")?),
            Action::DescribeSubnets => Request::DescribeSubnets(self.search("SubnetId")?),
            Action::DetachNetworkInterface => {
                // By force or not: there is no operating system here that would not let go.
                self.flag("Force")?;
                Request::DetachNetworkInterface {
                    attachment: AttachmentId(self.needed("AttachmentId")?),
                }
            }
            Action::ModifyNetworkInterfaceAttribute => Request::ModifyNetworkInterfaceAttribute {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                attribute: self.attribute()?,
            },
            Action::UnassignIpv6Addresses => Request::UnassignIpv6Addresses {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                prefixes: self.values("Ipv6Prefix")?,
            },
            Action::UnassignPrivateIpAddresses => Request::UnassignPrivateIpAddresses {
                eni: EniId(self.needed("NetworkInterfaceId")?),
                addresses: self.values("PrivateIpAddress")?,
                prefixes: self.values("Ipv4Prefix")?,
            },
        })
    }

    fn new_eni(&mut self) -> Result<NewEni, Refusal> {
        if let Some(kind) = self.text("InterfaceType").filter(|kind| kind != "interface") {
            let message = format!("The fake VPC has no interface of the type {kind}.");
            return Err(Refusal::new("UnsupportedOperation", message));
        }
        let prefixes_v6 = self.number("Ipv6PrefixCount")?;
        let amount = match (self.amount()?, prefixes_v6) {
            (amount, None | Some(0)) => amount,
            (Amount::Addresses(0), Some(count)) => Amount::PrefixesV6(count),
            _ => return Err(combined("Ipv6PrefixCount")),
        };
        let mut tags = Tags::new();
        for index in self.indexes("TagSpecification")? {
            let name = format!("TagSpecification.{index}");
            let kind = self.needed(&format!("{name}.ResourceType"))?;
            if kind != "network-interface" {
                let message = format!("'{kind}' is not a valid taggable resource type for this operation.");
                return Err(Refusal::new("InvalidParameterValue", message));
            }
            tags.extend(self.tags(&format!("{name}.Tag"))?);
        }
        Ok(NewEni {
            subnet: SubnetId(self.needed("SubnetId")?),
            groups: self
                .list("SecurityGroupId")?
                .into_iter()
                .map(SecurityGroupId)
                .collect(),
            description: self.text("Description").unwrap_or_default(),
            tags,
            amount,
            client_token: self.text("ClientToken").unwrap_or_default(),
        })
    }

    fn amount(&mut self) -> Result<Amount, Refusal> {
        let addresses = self.number("SecondaryPrivateIpAddressCount")?;
        let prefixes = self.number("Ipv4PrefixCount")?;
        match (addresses.unwrap_or_default(), prefixes.unwrap_or_default()) {
            (addresses, 0) => Ok(Amount::Addresses(addresses)),
            (0, prefixes) => Ok(Amount::Prefixes(prefixes)),
            _ => Err(combined("Ipv4PrefixCount")),
        }
    }

    fn attribute(&mut self) -> Result<Attribute, Refusal> {
        let groups = self.list("SecurityGroupId")?;
        let attachment = self.text("Attachment.AttachmentId");
        let goes = self.flag("Attachment.DeleteOnTermination")?;
        match (groups.is_empty(), attachment, goes) {
            (false, None, None) => Ok(Attribute::Groups(
                groups.into_iter().map(SecurityGroupId).collect(),
            )),
            (true, Some(attachment), Some(value)) => Ok(Attribute::DeleteOnTermination {
                attachment: AttachmentId(attachment),
                value,
            }),
            (true, None, None) => Err(Refusal::new("MissingParameter", "No attributes specified.")),
            (true, None, Some(_)) => Err(missing("Attachment.AttachmentId")),
            (true, Some(_), None) => Err(missing("Attachment.DeleteOnTermination")),
            (false, ..) => {
                let message = "Fields for multiple attribute types specified";
                Err(Refusal::new("InvalidParameterCombination", message))
            }
        }
    }

    fn search(&mut self, ids: &str) -> Result<Search, Refusal> {
        let mut filters = Vec::new();
        for index in self.indexes("Filter")? {
            filters.push(Filter {
                name: self.needed(&format!("Filter.{index}.Name"))?,
                values: self.list(&format!("Filter.{index}.Value"))?,
            });
        }
        Ok(Search {
            ids: self.list(ids)?,
            filters,
            max_results: self.number("MaxResults")?,
            next_token: self.text("NextToken").filter(|token| !token.is_empty()),
        })
    }

    fn tags(&mut self, name: &str) -> Result<Tags, Refusal> {
        let mut tags = Tags::new();
        for index in self.indexes(name)? {
            let key = self.needed(&format!("{name}.{index}.Key"))?;
            let value = self.text(&format!("{name}.{index}.Value")).unwrap_or_default();
            if tags.insert(key.clone(), value).is_some() {
                let message = format!("Tag keys must be unique. The key '{key}' is not.");
                return Err(Refusal::new("InvalidParameterValue", message));
            }
        }
        if tags.is_empty() {
            return Err(missing(name));
        }
        Ok(tags)
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn needed(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| missing(name))
    }

    fn number(&mut self, name: &str) -> Result<Option<u32>, Refusal> {
        self.text(name).map(|value| parse(name, &value)).transpose()
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.text(name).map(|value| parse(name, &value)).transpose()
    }

    fn values<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, Refusal> {
        self.list(name)?.iter().map(|value| parse(name, value)).collect()
    }

    /// `NAME.1`, `NAME.2`, …
    fn list(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let indexes = self.indexes(name)?;
        let values = indexes
            .into_iter()
            .filter_map(|index| self.text(&format!("{name}.{index}")));
        Ok(values.collect())
    }

    /// The numbers after a name, in their order.
    fn indexes(&self, name: &str) -> Result<Vec<u32>, Refusal> {
        let after = self
            .0
            .keys()
            .filter_map(|key| key.strip_prefix(name)?.strip_prefix('.'));
        let mut indexes = after
            .map(|rest| {
                let index = rest.split('.').next().unwrap_or_default();
                // Another way to write the number would be another name.
                let parsed = index
                    .parse()
                    .ok()
                    .filter(|parsed: &u32| *parsed > 0 && parsed.to_string() == index);
                parsed.ok_or_else(|| {
                    let message = format!("The index '{index}' of {name} is not valid.");
                    Refusal::new("MalformedQueryString", message)
                })
            })
            .collect::<Result<Vec<u32>, Refusal>>()?;
        indexes.sort_unstable();
        indexes.dedup();
        Ok(indexes)
    }
}

/// A member's name with `N` for each number.
fn pattern(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| if is_number(part) { "N" } else { part })
        .collect();
    parts.join(".")
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, Refusal> {
    value.parse().map_err(|_| {
        Refusal::new(
            "InvalidParameterValue",
            format!("Invalid value '{value}' for {name}."),
        )
    })
}

fn some<T>(name: &str, values: Vec<T>) -> Result<Vec<T>, Refusal> {
    if values.is_empty() {
        Err(missing(name))
    } else {
        Ok(values)
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::new(
        "MissingParameter",
        format!("The request must contain the parameter {name}"),
    )
}

fn combined(name: &str) -> Refusal {
    Refusal::new(
        "InvalidParameterCombination",
        format!("The parameter {name} cannot be used with another count."),
    )
}
