//! What is programmed, as it was read once: to be kept, and asked elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ebpf::ServiceMaps;
use ebpf::abi::net::Port;
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey as HookKey, SlotKey};
use model::IpFamily;
use netlink::nft;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Hook, Programmed};
use crate::Error;
use crate::datapath::packets::elements::{Data, Elements, Name};
use crate::datapath::packets::read_back::Rules;
use crate::datapath::sockets::read_back::HookMaps;

/// Both layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The socket hook's maps, where some are pinned.
    pub hook: Option<RecordedHook>,
    /// The packet rules of each version of IP.
    rules: Vec<RecordedRules>,
}

/// The socket hook's maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedHook {
    links: usize,
    /// Where `FRONTENDS` is pinned.
    pub frontends_pin: PathBuf,
    frontends: Vec<FrontendRow>,
    slots: Vec<SlotRow>,
    endpoints: Vec<EndpointRow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrontendRow {
    address: IpAddr,
    port: u16,
    protocol: u8,
    kind: u8,
    service: u32,
    revision: u16,
    flags: u16,
    cluster: u16,
    local: u16,
    affinity_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SlotRow {
    service: u32,
    revision: u16,
    slot: u16,
    endpoint: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndpointRow {
    id: u32,
    address: IpAddr,
    port: u16,
    protocol: u8,
    flags: u8,
}

/// The sets of one version of IP by which frontends are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordedRules {
    family: IpFamily,
    /// Whether there is such a table.
    is_there: bool,
    /// Comments and handles of the rules that look frontends up.
    rules: Vec<(String, u64)>,
    sets: BTreeMap<String, Vec<Row>>,
}

/// An element: its key in hexadecimal digits, and a value or a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verdict: Option<String>,
}

/// The hook's maps, to be looked up in.
#[derive(Debug)]
pub(super) struct RecordedMaps {
    links: usize,
    frontends_pin: PathBuf,
    frontends: BTreeMap<HookKey, Frontend>,
    slots: BTreeMap<SlotKey, u32>,
    endpoints: BTreeMap<u32, Endpoint>,
}

impl Programmed {
    /// All of it, to be kept.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn record(&self) -> Result<Recorded, Error> {
        Ok(Recorded {
            hook: match &self.hook {
                Some(Hook::Pinned(maps)) => Some(RecordedHook::of(maps)?),
                Some(Hook::Recorded(_)) | None => None,
            },
            rules: self.rules.values().map(RecordedRules::of).collect(),
        })
    }
}

impl From<&Recorded> for Programmed {
    fn from(recorded: &Recorded) -> Self {
        let hook = recorded.hook.as_ref().map(RecordedMaps::from);
        let rules = recorded.rules.iter().map(|rules| (rules.family, rules.read()));
        Self {
            hook: hook.map(Hook::Recorded),
            rules: rules.collect(),
        }
    }
}

impl RecordedHook {
    fn of(maps: &ServiceMaps) -> Result<Self, Error> {
        let frontends = maps.all_frontends()?.into_iter().map(|(key, value)| FrontendRow {
            address: key.addr.into(),
            port: key.port.number(),
            protocol: key.proto,
            kind: key.kind,
            service: value.service,
            revision: value.revision,
            flags: value.flags,
            cluster: value.cluster,
            local: value.local,
            affinity_seconds: value.affinity_seconds,
        });
        let slots = maps.all_slots()?.into_iter().map(|(key, endpoint)| SlotRow {
            service: key.service,
            revision: key.revision,
            slot: key.slot,
            endpoint,
        });
        let endpoints = maps.all_endpoints()?.into_iter().map(|(id, value)| EndpointRow {
            id,
            address: value.addr.into(),
            port: value.port.number(),
            protocol: value.proto,
            flags: value.flags,
        });
        Ok(Self {
            links: maps.links(),
            frontends_pin: maps.frontends_pin(),
            frontends: frontends.collect(),
            slots: slots.collect(),
            endpoints: endpoints.collect(),
        })
    }
}

impl From<&RecordedHook> for RecordedMaps {
    fn from(hook: &RecordedHook) -> Self {
        let frontends = hook.frontends.iter().map(|row| {
            let key = HookKey {
                addr: row.address.into(),
                port: Port::new(row.port),
                proto: row.protocol,
                kind: row.kind,
            };
            let value = Frontend {
                service: row.service,
                revision: row.revision,
                flags: row.flags,
                cluster: row.cluster,
                local: row.local,
                affinity_seconds: row.affinity_seconds,
            };
            (key, value)
        });
        let slots = hook.slots.iter().map(|row| {
            let key = SlotKey {
                service: row.service,
                revision: row.revision,
                slot: row.slot,
            };
            (key, row.endpoint)
        });
        let endpoints = hook.endpoints.iter().map(|row| {
            let value = Endpoint {
                addr: row.address.into(),
                port: Port::new(row.port),
                proto: row.protocol,
                flags: row.flags,
                id: row.id,
            };
            (row.id, value)
        });
        Self {
            links: hook.links,
            frontends_pin: hook.frontends_pin.clone(),
            frontends: frontends.collect(),
            slots: slots.collect(),
            endpoints: endpoints.collect(),
        }
    }
}

impl HookMaps for RecordedMaps {
    fn links(&self) -> usize {
        self.links
    }

    fn frontends_pin(&self) -> PathBuf {
        self.frontends_pin.clone()
    }

    fn frontends(&self) -> Result<Vec<HookKey>, Error> {
        Ok(self.frontends.keys().copied().collect())
    }

    fn frontend(&self, key: &HookKey) -> Result<Option<Frontend>, Error> {
        Ok(self.frontends.get(key).copied())
    }

    fn slot(&self, key: &SlotKey) -> Result<Option<u32>, Error> {
        Ok(self.slots.get(key).copied())
    }

    fn endpoint(&self, id: u32) -> Result<Option<Endpoint>, Error> {
        Ok(self.endpoints.get(&id).copied())
    }
}

impl RecordedRules {
    fn of(rules: &Rules) -> Self {
        let sets = rules.mirror.iter().map(|(name, elements)| {
            let rows = elements.iter().map(|(key, data)| Row::of(key, &data));
            (name.text().to_owned(), rows.collect())
        });
        Self {
            family: rules.family,
            is_there: rules.is_there,
            rules: rules.rules.clone(),
            sets: sets.collect(),
        }
    }

    /// Sets and elements that this version does not know are passed over: nobody looks them up.
    fn read(&self) -> Rules {
        let mut rules = Rules::absent(self.family);
        rules.is_there = self.is_there;
        rules.rules.clone_from(&self.rules);
        for (name, rows) in &self.sets {
            let Some(name) = Name::named(name) else { continue };
            let elements: &mut Elements = rules.mirror.entry(name).or_default();
            for (key, data) in rows.iter().filter_map(Row::read) {
                elements.insert(&key, &data);
            }
        }
        rules
    }
}

impl Row {
    fn of(key: &[u8], data: &Data) -> Self {
        let (value, verdict) = match data {
            Data::None => (None, None),
            Data::Value(bytes) => (Some(digits(bytes)), None),
            Data::Verdict(verdict) => (None, Some(verdict.to_string())),
        };
        Self {
            key: digits(key),
            value,
            verdict,
        }
    }

    fn read(&self) -> Option<(Vec<u8>, Data)> {
        /// As [`Elements`] have room for it.
        const LONGEST_KEY: usize = 128;
        let key = bytes(&self.key).filter(|key| key.len() <= LONGEST_KEY)?;
        let data = match (&self.value, &self.verdict) {
            (Some(value), _) => Data::Value(SmallVec::from_vec(
                bytes(value).filter(|value| value.len() <= LONGEST_KEY)?,
            )),
            (None, Some(verdict)) => Data::Verdict(Box::new(verdict_of(verdict)?)),
            (None, None) => Data::None,
        };
        Some((key, data))
    }
}

/// As nftables' verdicts display.
fn verdict_of(text: &str) -> Option<nft::Verdict> {
    /// NFT_NAME_MAXLEN.
    const LONGEST_NAME: usize = 256;
    let chain = |name: &str| Some(name.to_owned()).filter(|name| name.len() <= LONGEST_NAME);
    Some(match text.split_once(' ') {
        None if text == "accept" => nft::Verdict::Accept,
        None if text == "drop" => nft::Verdict::Drop,
        None if text == "return" => nft::Verdict::Return,
        Some(("jump", name)) => nft::Verdict::Jump(chain(name)?),
        Some(("goto", name)) => nft::Verdict::Goto(chain(name)?),
        _ => return None,
    })
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_of_the_rules_is_read_back_as_it_was_and_what_is_odd_is_passed_over() {
        let mut rules = Rules::absent(IpFamily::V4);
        rules.is_there = true;
        rules.rules.push(("by address ".to_owned(), 7));
        let entries = [
            (Name::ServiceIps, Data::Verdict(Box::new(nft::Verdict::Drop))),
            (
                Name::NodePorts,
                Data::Verdict(Box::new(nft::Verdict::Goto("address.cluster-1".to_owned()))),
            ),
            (
                Name::Endpoints,
                Data::Value(SmallVec::from_slice(&[0, 0, 0, 0, 10, 0xff])),
            ),
        ];
        for (name, data) in &entries {
            let elements = rules.mirror.entry(*name).or_default();
            elements.insert(&[0, 1, 0xfe], data);
        }
        let recorded = Recorded {
            hook: None,
            rules: vec![RecordedRules::of(&rules)],
        };
        let read = Programmed::from(&recorded);
        let read = &read.rules[&IpFamily::V4];
        assert_eq!(read.mirror, rules.mirror);
        assert_eq!((&read.rules, read.is_there), (&rules.rules, true));
        for odd in ["0", "zz", &"00".repeat(200)] {
            let row = Row {
                key: odd.to_owned(),
                value: None,
                verdict: Some("goto x".to_owned()),
            };
            assert_eq!(row.read(), None, "{odd}");
        }
        assert_eq!(verdict_of("return to sender"), None);
    }
}
