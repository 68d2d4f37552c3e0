//! EC2's answers in its XML.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use vpc_eni::ec2::{Action, Attached, Limits, Subnet, Tags, VpcId};

use crate::account::hypervisor;
use crate::request::{Interface, Machine, Progress, Refusal, Reply, SecurityGroup};

/// Whose account it is: the one that AWS's documents have in their examples.
pub(crate) const OWNER: &str = "123456789012";

/// What turns the cloud's clock into days and hours: it begins with the year 2026.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calendar {
    pub(crate) began: Instant,
    pub(crate) now: Instant,
}

impl Calendar {
    fn date(self, at: Instant) -> String {
        let begin = Timestamp::from_second(1_767_225_600).expect("invariant: jiff knows 2026");
        let passed = SignedDuration::try_from(at.saturating_duration_since(self.began)).unwrap_or_default();
        begin
            .saturating_add(passed)
            .unwrap_or(begin)
            .strftime("%Y-%m-%dT%H:%M:%S.000Z")
            .to_string()
    }
}

/// The body of an answer.
pub(crate) fn reply(action: Action, reply: &Reply, request_id: &str, calendar: Calendar) -> String {
    let mut xml = Xml::default();
    let root = format!("{action}Response");
    xml.0 += r#"<?xml version="1.0" encoding="UTF-8"?>"#;
    xml.0 += &format!(r#"<{root} xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">"#);
    xml.text("requestId", request_id);
    xml.reply(action, reply, calendar);
    xml.0 += &format!("</{root}>");
    xml.0
}

/// The body of an answer that says why not.
pub(crate) fn refusal(refusal: &Refusal, request_id: &str) -> String {
    let mut xml = Xml::default();
    xml.0 += r#"<?xml version="1.0" encoding="UTF-8"?>"#;
    xml.element("Response", |xml| {
        xml.element("Errors", |xml| {
            xml.element("Error", |xml| {
                xml.text("Code", &refusal.code);
                xml.text("Message", &refusal.message);
            });
        });
        xml.text("RequestID", request_id);
    });
    xml.0
}

/// The HTTP status that an error comes with (EC2 API reference, "Error codes": client errors are 400 but for those of
/// who asks, server errors 500 and 503).
pub(crate) fn status(code: &str) -> u16 {
    match code {
        "AuthFailure" => 401,
        "UnauthorizedOperation"
        | "MissingAuthenticationToken"
        | "OptInRequired"
        | "InvalidClientTokenId"
        | "ExpiredToken" => 403,
        "InternalError" | "InternalFailure" => 500,
        "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" => 503,
        _ => 400,
    }
}

#[derive(Default)]
struct Xml(String);

impl Xml {
    fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) {
        self.0 += &format!("<{name}>");
        content(self);
        self.0 += &format!("</{name}>");
    }

    fn text(&mut self, name: &str, text: impl ToString) {
        let text = escape(&text.to_string());
        self.0 += &format!("<{name}>{text}</{name}>");
    }

    fn set<T>(&mut self, name: &str, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        self.element(name, |xml| {
            for one in items {
                xml.element("item", |xml| item(xml, one));
            }
        });
    }

    fn reply(&mut self, action: Action, reply: &Reply, calendar: Calendar) {
        match reply {
            Reply::Done => self.text("return", true),
            Reply::Assigned { eni, addresses } if action == Action::AssignIpv6Addresses => {
                self.text("networkInterfaceId", eni);
                self.set("assignedIpv6PrefixSet", &addresses.prefixes_v6, |xml, prefix| {
                    xml.is(prefix)
                });
            }
            Reply::Assigned { eni, addresses } => {
                self.text("networkInterfaceId", eni);
                self.set(
                    "assignedPrivateIpAddressesSet",
                    &addresses.secondary,
                    |xml, address| {
                        xml.text("privateIpAddress", address);
                    },
                );
                self.set("assignedIpv4PrefixSet", &addresses.prefixes, |xml, prefix| {
                    xml.text("ipv4Prefix", prefix);
                });
                self.text("return", true);
            }
            Reply::Unassigned { eni, addresses } => {
                self.text("networkInterfaceId", eni);
                self.set(
                    "unassignedIpv6PrefixSet",
                    &addresses.prefixes_v6,
                    |xml, prefix| xml.is(prefix),
                );
            }
            Reply::Attached {
                attachment,
                card_index,
            } => {
                self.text("attachmentId", attachment);
                self.text("networkCardIndex", card_index);
            }
            Reply::Created {
                interface,
                client_token,
            } => {
                self.element("networkInterface", |xml| xml.interface(interface, calendar));
                if !client_token.is_empty() {
                    self.text("clientToken", client_token);
                }
            }
            Reply::InstanceTypes(page) => {
                self.set("instanceTypeSet", &page.items, |xml, (name, limits)| {
                    xml.instance_type(name, *limits)
                });
                self.next(page.next_token.as_deref());
            }
            Reply::Instances(page) => {
                self.set("reservationSet", &page.items, |xml, machine| {
                    xml.reservation(machine, calendar)
                });
                self.next(page.next_token.as_deref());
            }
            Reply::Interfaces(page) => {
                self.set("networkInterfaceSet", &page.items, |xml, interface| {
                    xml.interface(interface, calendar)
                });
                self.next(page.next_token.as_deref());
            }
            Reply::SecurityGroups(page) => {
                self.set("securityGroupInfo", &page.items, |xml, (group, vpc)| {
                    xml.group(group, vpc)
                });
                self.next(page.next_token.as_deref());
            }
            Reply::Subnets(page) => {
                self.set("subnetSet", &page.items, Self::subnet);
                self.next(page.next_token.as_deref());
            }
        }
    }

    /// What an item is, where it has no members.
    fn is(&mut self, text: impl ToString) {
        self.0 += &escape(&text.to_string());
    }

    fn next(&mut self, token: Option<&str>) {
        if let Some(token) = token {
            self.text("nextToken", token);
        }
    }

    fn tags(&mut self, tags: &Tags) {
        self.set("tagSet", tags, |xml, (key, value)| {
            xml.text("key", key);
            xml.text("value", value);
        });
    }

    fn interface(&mut self, interface: &Interface, calendar: Calendar) {
        self.text("availabilityZone", &interface.zone);
        self.text("interfaceType", &interface.eni.kind);
        self.text("requesterManaged", false);
        self.tags(&interface.eni.tags);
        self.held(interface);
        if let Some((attached, progress)) = interface.eni.attachment.as_ref().zip(interface.progress) {
            self.element("attachment", |xml| {
                xml.text("instanceId", &attached.instance);
                xml.text("instanceOwnerId", OWNER);
                xml.attachment(attached, progress, calendar);
            });
        }
    }

    /// What an instance's interface is told to be like, and any other.
    fn held(&mut self, interface: &Interface) {
        let eni = &interface.eni;
        self.text("networkInterfaceId", &eni.id);
        self.text("subnetId", &eni.subnet);
        self.text("vpcId", &interface.vpc);
        self.text("description", &eni.description);
        self.text("ownerId", OWNER);
        self.text("status", interface.status());
        self.text("macAddress", eni.mac);
        self.text("privateIpAddress", eni.primary);
        self.text("sourceDestCheck", true);
        self.set("groupSet", &eni.groups, |xml, group| {
            xml.text("groupId", group);
            xml.text("groupName", group);
        });
        let addresses =
            std::iter::once((eni.primary, true)).chain(eni.secondary.iter().map(|one| (*one, false)));
        self.set(
            "privateIpAddressesSet",
            addresses,
            |xml, (address, is_primary)| {
                xml.text("privateIpAddress", address);
                xml.text("primary", is_primary);
            },
        );
        self.set("ipv6AddressesSet", [(); 0], |_, ()| {});
        self.set("ipv4PrefixSet", &eni.prefixes, |xml, prefix| {
            xml.text("ipv4Prefix", prefix)
        });
        self.set("ipv6PrefixSet", &eni.prefixes_v6, |xml, prefix| {
            xml.text("ipv6Prefix", prefix)
        });
    }

    fn attachment(&mut self, attached: &Attached, progress: Progress, calendar: Calendar) {
        self.text("attachmentId", &attached.id);
        self.text("deviceIndex", attached.device_index);
        self.text("networkCardIndex", attached.card_index);
        self.text("status", progress.status(calendar.now));
        self.text("attachTime", calendar.date(progress.since));
        self.text("deleteOnTermination", attached.delete_on_termination);
    }

    fn reservation(&mut self, machine: &Machine, calendar: Calendar) {
        self.text("reservationId", machine.id.0.replacen("i-", "r-", 1));
        self.text("ownerId", OWNER);
        self.set("groupSet", [(); 0], |_, ()| {});
        self.set("instancesSet", [machine], |xml, machine| {
            xml.instance(machine, calendar)
        });
    }

    fn instance(&mut self, machine: &Machine, calendar: Calendar) {
        let (code, name) = if machine.is_terminated {
            (48, "terminated")
        } else {
            (16, "running")
        };
        self.text("instanceId", &machine.id);
        self.text("instanceType", &machine.instance_type);
        self.element("instanceState", |xml| {
            xml.text("code", code);
            xml.text("name", name);
        });
        self.element("placement", |xml| xml.text("availabilityZone", &machine.zone));
        // Of a terminated instance EC2 does not tell any more where it was.
        if !machine.is_terminated {
            self.text("vpcId", &machine.vpc);
            self.text("subnetId", &machine.subnet);
        }
        if let Some(primary) = machine.interfaces.first() {
            self.text("privateIpAddress", primary.eni.primary);
        }
        self.set("networkInterfaceSet", &machine.interfaces, |xml, interface| {
            xml.held(interface);
            if let Some((attached, progress)) = interface.eni.attachment.as_ref().zip(interface.progress) {
                xml.element("attachment", |xml| xml.attachment(attached, progress, calendar));
            }
        });
    }

    fn instance_type(&mut self, name: &str, limits: Limits) {
        self.text("instanceType", name);
        self.text("bareMetal", false);
        self.text("hypervisor", hypervisor(limits));
        self.element("networkInfo", |xml| {
            xml.text("maximumNetworkInterfaces", limits.interfaces);
            xml.text("maximumNetworkCards", 1);
            xml.text("defaultNetworkCardIndex", 0);
            xml.set("networkCards", [limits.interfaces], |xml, interfaces| {
                xml.text("networkCardIndex", 0);
                xml.text("maximumNetworkInterfaces", interfaces);
            });
            xml.text("ipv4AddressesPerInterface", limits.addresses_per_interface);
            xml.text("ipv6AddressesPerInterface", limits.addresses_per_interface);
            xml.text("ipv6Supported", true);
        });
    }

    fn group(&mut self, group: &SecurityGroup, vpc: &VpcId) {
        self.text("ownerId", OWNER);
        self.text("groupId", &group.id);
        self.text("groupName", &group.id);
        self.text("groupDescription", "");
        self.text("vpcId", vpc);
        self.tags(&group.tags);
    }

    fn subnet(&mut self, subnet: &Subnet) {
        self.text("subnetId", &subnet.id);
        self.text("state", "available");
        self.text("vpcId", &subnet.vpc);
        self.text("ownerId", OWNER);
        self.text("cidrBlock", subnet.network);
        self.text("availableIpAddressCount", subnet.free_addresses);
        self.text("availabilityZone", &subnet.zone);
        self.tags(&subnet.tags);
    }
}

/// Text as it stands between tags; what XML cannot hold at all is left out.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // A reader would take it for a line's end.
            '\r' => escaped += "&#13;",
            '\t' | '\n' => escaped.push(letter),
            letter if letter.is_control() || letter == '\u{fffe}' || letter == '\u{ffff}' => {}
            letter => escaped.push(letter),
        }
    }
    escaped
}
