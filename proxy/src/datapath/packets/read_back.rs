//! What the packet rules have, read by somebody who only looks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use model::IpFamily;
use netlink::nft::{self, Nft, Table};

use super::elements::{self, Data, Elements, LOCAL_SLOTS, Name, Place, frontend_of};
use super::layout::{self, SERVICES, nft_family};
use super::{Mirror, read_mirror};
use crate::plan::{Frontend, FrontendAddress, FrontendKey, List, PortPlan, Target};
use crate::programmed::{At, Entry, Layer, LayerKind, Rule, Treatment, Wanted, text};

/// The sets by which frontends are served.
const READ: [Name; 5] = [
    Name::ServiceIps,
    Name::NodePorts,
    Name::ServiceIds,
    Name::NodePortIds,
    Name::Endpoints,
];

/// The table of one version of IP.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) family: IpFamily,
    table: Table,
    pub(crate) is_there: bool,
    pub(crate) mirror: Mirror,
    /// Comments and handles of the rules that look frontends up.
    pub(crate) rules: Vec<(String, u64)>,
}

impl Rules {
    /// One that is not there.
    pub(crate) fn absent(family: IpFamily) -> Self {
        Self {
            family,
            table: layout::table(nft_family(family)),
            is_there: false,
            mirror: Mirror::new(),
            rules: Vec::new(),
        }
    }

    /// Reads it; one that is not there has nothing.
    pub(crate) fn read(family: IpFamily) -> Result<Self, nft::Error> {
        let mut nft = Nft::open()?;
        let mut rules = Self::absent(family);
        rules.is_there = nft.has_table(&rules.table)?;
        if rules.is_there {
            rules.mirror = read_mirror(&mut nft, &rules.table, READ)?;
            let of_services = nft.rules(&rules.table)?.into_iter();
            let of_services = of_services.filter(|rule| rule.chain == SERVICES);
            rules.rules = of_services
                .map(|rule| (rule.comment.unwrap_or_default(), rule.handle))
                .collect();
        }
        Ok(rules)
    }

    /// The table, where it is not there.
    pub(crate) fn missing(&self) -> Option<String> {
        (!self.is_there).then(|| self.table.to_string())
    }

    /// The frontends that it knows.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = FrontendKey> {
        let maps = [Name::ServiceIps, Name::NodePorts].into_iter();
        maps.flat_map(move |name| {
            let keys = self.mirror.get(&name).into_iter().flat_map(Elements::keys);
            keys.filter_map(move |key| frontend_of(self.family, name, key))
        })
    }

    pub(crate) fn layer(&self, key: &FrontendKey, wanted: Wanted<'_>) -> Layer {
        let mut entries = Vec::new();
        let found = if self.is_there {
            self.look_up(key, &mut entries)
        } else {
            entries.push(Entry {
                place: format!("tables of {}", self.word()),
                key: self.table.name.clone(),
                value: None,
            });
            None
        };
        Layer {
            kind: LayerKind::PacketRules,
            is_attached: self.is_there,
            wanted: match wanted {
                Wanted::Port(plan, frontend) => Some(treatment(plan, key, frontend)),
                Wanted::Nothing | Wanted::Unknown => None,
            },
            is_wanted_known: !matches!(wanted, Wanted::Unknown),
            found,
            entries,
            at: Some(At::Set {
                family: self.word(),
                table: self.table.name.clone(),
                set: elements::place(*key).verdicts.text(),
                key: key_text(key),
            }),
        }
    }

    const fn word(&self) -> &'static str {
        match self.family {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        }
    }

    fn get(&self, name: Name, key: &[u8]) -> Option<Data> {
        self.mirror.get(&name)?.get(key)
    }

    fn look_up(&self, key: &FrontendKey, entries: &mut Vec<Entry>) -> Option<Treatment> {
        let Place {
            verdicts,
            ids,
            key: bytes,
            ..
        } = elements::place(*key);
        let place = |name: Name| format!("set {} {} {}", self.word(), self.table.name, name.text());
        entries.push(self.rule(verdicts));
        let rule = match self.get(verdicts, &bytes) {
            Some(Data::Verdict(verdict)) => Some(Rule::from(*verdict)),
            _ => None,
        };
        let id = self.get(ids, &bytes).as_ref().and_then(elements::id_in);
        for (name, value) in [
            (verdicts, rule.as_ref().map(Rule::to_string)),
            (ids, id.map(|id| format!("id {id}"))),
        ] {
            entries.push(Entry {
                place: place(name),
                key: key_text(key),
                value,
            });
        }
        let mut treatment = Treatment {
            rule: rule?,
            cluster: BTreeSet::new(),
            local: BTreeSet::new(),
        };
        let endpoints = self.mirror.get(&Name::Endpoints);
        let endpoints = id.and_then(|id| Some((id, endpoints?)));
        for (id, slot, data) in endpoints.into_iter().flat_map(|(id, elements)| {
            let slots = elements.of_id(id);
            slots.map(move |(key, data)| (id, key.get(4..).and_then(elements::leading_id), data))
        }) {
            let slot = slot.unwrap_or_default();
            let target = match &data {
                Data::Value(bytes) => target(bytes, self.family),
                Data::None | Data::Verdict(_) => None,
            };
            entries.push(Entry {
                place: place(Name::Endpoints),
                key: format!("{id} . {slot}"),
                value: target.as_ref().map(text),
            });
            let list = if slot & LOCAL_SLOTS == 0 {
                &mut treatment.cluster
            } else {
                &mut treatment.local
            };
            list.extend(target);
        }
        Some(treatment)
    }

    /// The rule that looks frontends up in that set.
    fn rule(&self, verdicts: Name) -> Entry {
        let comment = match verdicts {
            Name::NodePorts => "by node port on ",
            _ => "by address ",
        };
        let found = self.rules.iter().find(|(text, _)| text.starts_with(comment));
        Entry {
            place: format!("rule {} {} {SERVICES}", self.word(), self.table.name),
            key: comment.trim_end().to_owned(),
            value: found.map(|(_, handle)| format!("handle {handle}")),
        }
    }
}

/// The frontend as `nft` shows it.
fn key_text(key: &FrontendKey) -> String {
    let transport = format!("{} . {}", key.protocol.to_string().to_lowercase(), key.port);
    match key.address {
        FrontendAddress::Service(address) => format!("{address} . {transport}"),
        FrontendAddress::EveryNodeAddress(_) => transport,
    }
}

/// A value of `endpoints`: `[0:4][address:4 or 16][port:2 be][pad:2]`.
fn target(bytes: &[u8], family: IpFamily) -> Option<Target> {
    let bytes = bytes.get(4..)?;
    let (address, rest): (IpAddr, _) = match family {
        IpFamily::V4 => {
            let (octets, rest) = bytes.split_first_chunk::<4>()?;
            ((*octets).into(), rest)
        }
        IpFamily::V6 => {
            let (octets, rest) = bytes.split_first_chunk::<16>()?;
            ((*octets).into(), rest)
        }
    };
    let port = rest.first_chunk::<2>().map(|port| u16::from_be_bytes(*port))?;
    Some(Target {
        address,
        port: NonZeroU16::new(port)?,
    })
}

/// What the plan wants of the packet rules at a frontend.
fn treatment(plan: &PortPlan, key: &FrontendKey, frontend: Frontend) -> Treatment {
    let via = elements::place(*key).via;
    let of = |list: List| -> BTreeSet<Target> {
        let used = elements::leads_to(plan, list);
        plan.list(list).iter().filter(|_| used).copied().collect()
    };
    Treatment {
        rule: elements::verdict(frontend, via, plan).into(),
        cluster: of(List::Cluster),
        local: of(List::Local),
    }
}
