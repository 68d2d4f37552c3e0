//! What the Describe calls find: names, filters, pages.

use std::collections::BTreeSet;

use tokio::time::Instant;
use vpc_eni::ec2::{Attached, EniId, InstanceId, Limits, SecurityGroupId, Subnet, SubnetId, Tags, VpcId};

use super::{Account, Pace};
use crate::request::{Filter, Interface, Machine, Page, Refusal, Reply, Search, SecurityGroup};

/// How many results a page may have (EC2's reference: 5 to 1000).
const PAGE: std::ops::RangeInclusive<u32> = 5..=1_000;

/// A filter's name and the values that an object has for it.
type Property<T> = (&'static str, fn(&T) -> Vec<String>);

/// An interface at the time that it is looked at.
struct Seen(Interface, Instant);

impl Seen {
    fn attached(&self, value: fn(&Attached) -> String) -> Vec<String> {
        self.0.eni.attachment.iter().map(value).collect()
    }
}

const OF_INTERFACES: &[Property<Seen>] = &[
    ("attachment.instance-id", |seen| {
        seen.attached(|attached| attached.instance.to_string())
    }),
    ("attachment.attachment-id", |seen| {
        seen.attached(|attached| attached.id.to_string())
    }),
    ("attachment.device-index", |seen| {
        seen.attached(|attached| attached.device_index.to_string())
    }),
    ("attachment.status", |Seen(interface, now)| {
        let progress = interface.progress.iter();
        progress
            .map(|progress| progress.status(*now).to_owned())
            .collect()
    }),
    ("status", |seen| vec![seen.0.status().to_owned()]),
    ("vpc-id", |seen| vec![seen.0.vpc.to_string()]),
    ("subnet-id", |seen| vec![seen.0.eni.subnet.to_string()]),
    ("availability-zone", |seen| vec![seen.0.zone.clone()]),
    ("group-id", |seen| {
        seen.0.eni.groups.iter().map(ToString::to_string).collect()
    }),
    ("network-interface-id", |seen| vec![seen.0.eni.id.to_string()]),
    ("mac-address", |seen| vec![seen.0.eni.mac.to_string()]),
    ("description", |seen| vec![seen.0.eni.description.clone()]),
    ("private-ip-address", |seen| vec![seen.0.eni.primary.to_string()]),
    ("interface-type", |seen| vec![seen.0.eni.kind.clone()]),
    ("tag-key", |seen| seen.0.eni.tags.keys().cloned().collect()),
];

const OF_INSTANCES: &[Property<Machine>] = &[
    ("instance-id", |machine| vec![machine.id.to_string()]),
    ("instance-type", |machine| vec![machine.instance_type.clone()]),
    ("vpc-id", |machine| vec![machine.vpc.to_string()]),
    ("subnet-id", |machine| vec![machine.subnet.to_string()]),
    ("availability-zone", |machine| vec![machine.zone.clone()]),
];

const OF_TYPES: &[Property<(String, Limits)>] = &[
    ("instance-type", |(name, _)| vec![name.clone()]),
    ("hypervisor", |(_, limits)| vec![hypervisor(*limits).to_owned()]),
];

const OF_GROUPS: &[Property<(SecurityGroup, VpcId)>] = &[
    ("group-id", |(group, _)| vec![group.id.to_string()]),
    ("vpc-id", |(_, vpc)| vec![vpc.to_string()]),
    ("tag-key", |(group, _)| group.tags.keys().cloned().collect()),
];

const OF_SUBNETS: &[Property<Subnet>] = &[
    ("subnet-id", |subnet| vec![subnet.id.to_string()]),
    ("vpc-id", |subnet| vec![subnet.vpc.to_string()]),
    ("availability-zone", |subnet| vec![subnet.zone.clone()]),
    ("cidr-block", |subnet| vec![subnet.network.to_string()]),
    ("tag-key", |subnet| subnet.tags.keys().cloned().collect()),
];

/// `nitro` or `xen`.
pub(crate) const fn hypervisor(limits: Limits) -> &'static str {
    if limits.is_nitro { "nitro" } else { "xen" }
}

impl Account {
    pub(super) fn search_interfaces(&self, search: &Search, pace: Pace) -> Result<Reply, Refusal> {
        let finder = Finder::new(search, pace, OF_INTERFACES, |seen: &Seen| Some(&seen.0.eni.tags))?;
        for id in &search.ids {
            self.interface(&EniId::from(id.as_str()))?;
        }
        let all = self
            .interfaces
            .values()
            .map(|interface| Seen(interface.clone(), pace.now));
        let page = finder.page(all, |seen| seen.0.eni.id.0.clone())?;
        let items = page
            .items
            .into_iter()
            .map(|Seen(interface, _)| interface)
            .collect();
        Ok(Reply::Interfaces(Page {
            items,
            next_token: page.next_token,
        }))
    }

    pub(super) fn search_instances(&self, search: &Search, pace: Pace) -> Result<Reply, Refusal> {
        let finder = Finder::new(search, pace, OF_INSTANCES, |_| None)?;
        for id in &search.ids {
            self.machine(&InstanceId::from(id.as_str()))?;
        }
        Ok(Reply::Instances(
            finder.page(self.machines(), |machine| machine.id.0.clone())?,
        ))
    }

    pub(super) fn search_types(&self, search: &Search, pace: Pace) -> Result<Reply, Refusal> {
        let finder = Finder::new(search, pace, OF_TYPES, |_| None)?;
        let unknown: Vec<&str> = search
            .ids
            .iter()
            .filter(|name| !self.types.contains_key(*name))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            let message = format!(
                "The following supplied instance types do not exist: [{}]",
                unknown.join(", ")
            );
            return Err(Refusal::new("InvalidInstanceType", message));
        }
        let all = self.types.iter().map(|(name, limits)| (name.clone(), *limits));
        Ok(Reply::InstanceTypes(finder.page(all, |(name, _)| name.clone())?))
    }

    pub(super) fn search_groups(&self, search: &Search, pace: Pace) -> Result<Reply, Refusal> {
        let finder = Finder::new(search, pace, OF_GROUPS, |(group, _)| Some(&group.tags))?;
        for id in &search.ids {
            self.group(&SecurityGroupId::from(id.as_str()))?;
        }
        let all = self.groups.values().cloned();
        Ok(Reply::SecurityGroups(
            finder.page(all, |(group, _)| group.id.0.clone())?,
        ))
    }

    pub(super) fn search_subnets(&self, search: &Search, pace: Pace) -> Result<Reply, Refusal> {
        let finder = Finder::new(search, pace, OF_SUBNETS, |subnet| Some(&subnet.tags))?;
        for id in &search.ids {
            self.land(&SubnetId::from(id.as_str()))?;
        }
        let all = self.lands.values().map(|land| Subnet {
            free_addresses: self.space(land).free(),
            ..land.subnet.clone()
        });
        Ok(Reply::Subnets(finder.page(all, |subnet| subnet.id.0.clone())?))
    }
}

/// A search that makes sense.
struct Finder<'a, T: 'static> {
    search: &'a Search,
    properties: &'static [Property<T>],
    tags: fn(&T) -> Option<&Tags>,
    most: usize,
}

impl<'a, T: 'static> Finder<'a, T> {
    fn new(
        search: &'a Search,
        pace: Pace,
        properties: &'static [Property<T>],
        tags: fn(&T) -> Option<&Tags>,
    ) -> Result<Self, Refusal> {
        let has_tags = properties.iter().any(|(name, _)| *name == "tag-key");
        for filter in &search.filters {
            let is_known = properties.iter().any(|(name, _)| *name == filter.name)
                || (has_tags && filter.name.starts_with("tag:"));
            if !is_known {
                let message = format!("The filter '{}' is invalid", filter.name);
                return Err(Refusal::new("InvalidParameterValue", message));
            }
            if filter.values.is_empty() {
                let message = format!("The filter '{}' has no value", filter.name);
                return Err(Refusal::new("InvalidParameterValue", message));
            }
        }
        let most = search
            .max_results
            .or(pace.page_size.filter(|_| search.ids.is_empty()));
        let finder = Self {
            search,
            properties,
            tags,
            most: most.map_or(usize::MAX, |most| most as usize),
        };
        let Some(max_results) = search.max_results else {
            return Ok(finder);
        };
        if !search.ids.is_empty() {
            let message = "MaxResults cannot be used with names.";
            return Err(Refusal::new("InvalidParameterCombination", message));
        }
        if !PAGE.contains(&max_results) {
            let message = format!("Value ( {max_results} ) for parameter maxResults is invalid.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        Ok(finder)
    }

    /// The next part of all that is found. The objects come in the order of their names, and a token says after which
    /// of them the next page begins: what comes or goes meanwhile moves nothing else.
    fn page(&self, all: impl Iterator<Item = T>, id: fn(&T) -> String) -> Result<Page<T>, Refusal> {
        let after = match &self.search.next_token {
            None => String::new(),
            Some(token) => match token.strip_prefix("after-") {
                Some(after) => after.to_owned(),
                None => {
                    return Err(Refusal::new(
                        "InvalidPaginationToken",
                        format!("The token '{token}' is invalid"),
                    ));
                }
            },
        };
        let wanted: BTreeSet<&str> = self.search.ids.iter().map(String::as_str).collect();
        let mut found = all.filter(|object| {
            let id = id(object);
            id > after && (wanted.is_empty() || wanted.contains(id.as_str())) && self.matches(object)
        });
        let items: Vec<T> = found.by_ref().take(self.most).collect();
        let has_more = found.next().is_some();
        let next_token = items
            .last()
            .filter(|_| has_more)
            .map(|last| format!("after-{}", id(last)));
        Ok(Page { items, next_token })
    }

    fn matches(&self, object: &T) -> bool {
        self.search.filters.iter().all(|filter| {
            let values = match filter.name.strip_prefix("tag:") {
                Some(key) => (self.tags)(object)
                    .and_then(|tags| tags.get(key))
                    .cloned()
                    .into_iter()
                    .collect(),
                None => self.values(filter, object),
            };
            values
                .iter()
                .any(|value| filter.values.iter().any(|pattern| is_like(value, pattern)))
        })
    }

    fn values(&self, filter: &Filter, object: &T) -> Vec<String> {
        let property = self.properties.iter().find(|(name, _)| *name == filter.name);
        property.map(|(_, values)| values(object)).unwrap_or_default()
    }
}

/// Whether a value is like a pattern, in which `*` stands for any text, `?` for one character and `\` for nothing but
/// that the next character is itself.
fn is_like(value: &str, pattern: &str) -> bool {
    let value: Vec<char> = value.chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    like(&value, &pattern)
}

fn like(value: &[char], pattern: &[char]) -> bool {
    match (pattern, value) {
        ([], rest) => rest.is_empty(),
        (['*', more @ ..], _) => (0..=value.len()).any(|skipped| like(&value[skipped..], more)),
        (['?', more @ ..], [_, rest @ ..]) => like(rest, more),
        (['\\', wanted, more @ ..], [found, rest @ ..]) => wanted == found && like(rest, more),
        ([wanted, more @ ..], [found, rest @ ..]) => wanted == found && like(rest, more),
        ([_, ..], []) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_knows_stars_question_marks_and_what_is_meant_as_it_stands() {
        for (value, pattern, expected) in [
            ("aws-K8S-i-1", "aws-K8S-*", true),
            ("aws-K8S-i-1", "*i-?", true),
            ("aws-K8S-i-1", "*i-??", false),
            ("a*b", r"a\*b", true),
            ("axb", r"a\*b", false),
            ("", "*", true),
            ("", "", true),
            ("a", "", false),
            ("", "?", false),
            ("Name", "name", false),
        ] {
            assert_eq!(is_like(value, pattern), expected, "{value} {pattern}");
        }
    }
}
