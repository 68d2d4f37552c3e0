//! What the hook's pinned maps have for one frontend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use ebpf::ServiceMaps;
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey as HookKey, SlotKey, flags};

use super::abi::{Lists, Place, affinity_seconds, flags_of, from_abi, to_abi};
use crate::Error;
use crate::plan::{Admits, FrontendKey, PortPlan, Target};
use crate::programmed::{At, Entry, Layer, LayerKind, Rule, Treatment, Wanted, text};

/// The hook's maps, as they are or as they were read once.
pub(crate) trait HookMaps {
    /// How many links of programs to cgroups are pinned.
    fn links(&self) -> usize;
    /// Where `FRONTENDS` is pinned.
    fn frontends_pin(&self) -> PathBuf;
    /// All keys of `FRONTENDS`.
    fn frontends(&self) -> Result<Vec<HookKey>, Error>;
    /// What `FRONTENDS` has for a frontend.
    fn frontend(&self, key: &HookKey) -> Result<Option<Frontend>, Error>;
    /// What `SLOTS` has at a place of a list.
    fn slot(&self, key: &SlotKey) -> Result<Option<u32>, Error>;
    /// What `ENDPOINTS` has under an id.
    fn endpoint(&self, id: u32) -> Result<Option<Endpoint>, Error>;
}

impl HookMaps for ServiceMaps {
    fn links(&self) -> usize {
        self.links()
    }

    fn frontends_pin(&self) -> PathBuf {
        self.frontends_pin()
    }

    fn frontends(&self) -> Result<Vec<HookKey>, Error> {
        Ok(self.frontends()?)
    }

    fn frontend(&self, key: &HookKey) -> Result<Option<Frontend>, Error> {
        Ok(self.frontend(key)?)
    }

    fn slot(&self, key: &SlotKey) -> Result<Option<u32>, Error> {
        Ok(self.slot(key)?)
    }

    fn endpoint(&self, id: u32) -> Result<Option<Endpoint>, Error> {
        Ok(self.endpoint(id)?)
    }
}

/// What the maps have for a frontend.
pub(crate) fn layer(maps: &impl HookMaps, key: &FrontendKey, wanted: Wanted<'_>) -> Result<Layer, Error> {
    let mut entries = vec![links(maps)];
    let found = match to_abi(key) {
        Some(hook_key) => look_up(maps, &hook_key, key, &mut entries)?,
        None => None,
    };
    Ok(Layer {
        kind: LayerKind::SocketHook,
        is_attached: maps.links() > 0,
        wanted: match wanted {
            Wanted::Port(plan, _) => treatment(plan, key),
            Wanted::Nothing | Wanted::Unknown => None,
        },
        is_wanted_known: !matches!(wanted, Wanted::Unknown),
        found,
        entries,
        at: to_abi(key).map(|key| At::Map {
            pin: maps.frontends_pin(),
            key: key_bytes(&key),
        }),
    })
}

/// As they lie in the map: see [`HookKey`].
fn key_bytes(key: &HookKey) -> Vec<u8> {
    let HookKey {
        addr,
        port,
        proto,
        kind,
    } = key;
    let address = addr.0.iter().flat_map(|word| word.to_ne_bytes());
    let rest = port.number().to_be_bytes().into_iter().chain([*proto, *kind]);
    address.chain(rest).collect()
}

/// The frontends that the maps know.
pub(crate) fn frontends(maps: &impl HookMaps) -> Result<Vec<FrontendKey>, Error> {
    Ok(maps.frontends()?.iter().filter_map(from_abi).collect())
}

fn links(maps: &impl HookMaps) -> Entry {
    Entry {
        place: "pinned links".to_owned(),
        key: "programs attached to cgroups".to_owned(),
        value: (maps.links() > 0).then(|| maps.links().to_string()),
    }
}

fn look_up(
    maps: &impl HookMaps,
    hook_key: &HookKey,
    key: &FrontendKey,
    entries: &mut Vec<Entry>,
) -> Result<Option<Treatment>, Error> {
    let value = maps.frontend(hook_key)?;
    entries.push(Entry {
        place: "map FRONTENDS".to_owned(),
        key: key.to_string(),
        value: value.as_ref().map(frontend_text),
    });
    let Some(frontend) = value else {
        return Ok(None);
    };
    let cluster = list(maps, &frontend, 0, frontend.cluster, entries)?;
    let local = list(maps, &frontend, SlotKey::LOCAL, frontend.local, entries)?;
    Ok(Some(Treatment {
        rule: Rule::Hook {
            flags: frontend.flags,
            affinity_seconds: frontend.affinity_seconds,
        },
        cluster,
        local,
    }))
}

/// The endpoints that slots of a list lead to. A slot that leads nowhere adds none.
fn list(
    maps: &impl HookMaps,
    frontend: &Frontend,
    first: u16,
    count: u16,
    entries: &mut Vec<Entry>,
) -> Result<BTreeSet<Target>, Error> {
    let mut targets = BTreeSet::new();
    for number in 0..count {
        let slot = SlotKey {
            service: frontend.service,
            revision: frontend.revision,
            slot: first | number,
        };
        let id = maps.slot(&slot)?;
        entries.push(Entry {
            place: "map SLOTS".to_owned(),
            key: format!(
                "service {} revision {} slot {}",
                slot.service, slot.revision, slot.slot
            ),
            value: id.map(|id| format!("endpoint {id}")),
        });
        let Some(id) = id else { continue };
        let target = maps.endpoint(id)?.as_ref().and_then(target);
        entries.push(Entry {
            place: "map ENDPOINTS".to_owned(),
            key: id.to_string(),
            value: target.as_ref().map(text),
        });
        targets.extend(target);
    }
    Ok(targets)
}

fn target(endpoint: &Endpoint) -> Option<Target> {
    Some(Target {
        address: IpAddr::from(endpoint.addr),
        port: NonZeroU16::new(endpoint.port.number())?,
    })
}

fn frontend_text(frontend: &Frontend) -> String {
    let Frontend {
        service,
        revision,
        flags,
        cluster,
        local,
        affinity_seconds,
    } = frontend;
    format!(
        "service {service} revision {revision} flags {flags:#x} cluster {cluster} local {local} \
         affinity {affinity_seconds} s"
    )
}

/// The bits of a frontend in words.
pub(crate) fn flags_text(bits: u16) -> String {
    let names = [
        (flags::REFUSE, "refuse"),
        (flags::LOCAL_ONLY, "spread on this node"),
        (flags::THIS_NODE_ONLY, "spread at this node's addresses"),
    ];
    let set: Vec<_> = names.into_iter().filter(|(bit, _)| bits & bit != 0).collect();
    match set.as_slice() {
        [] => "spread".to_owned(),
        set => set
            .iter()
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join(" and "),
    }
}

/// What the plan wants of the hook at a frontend. None where it is left to the packet rules.
fn treatment(plan: &PortPlan, key: &FrontendKey) -> Option<Treatment> {
    let seen = plan.frontends.iter();
    let seen = seen.filter(|(_, frontend)| frontend.admits == Admits::Everyone);
    let actions: BTreeMap<_, _> = seen
        .filter_map(|(key, frontend)| Some((to_abi(key)?, frontend.action)))
        .collect();
    let action = actions.get(&to_abi(key)?)?;
    let lists = Lists::needed(plan, &actions, key.protocol);
    let targets = |places: &[Place]| -> BTreeSet<Target> {
        let targets = places.iter().filter_map(|(address, port, _)| {
            Some(Target {
                address: (*address).into(),
                port: NonZeroU16::new(port.number())?,
            })
        });
        targets.collect()
    };
    Some(Treatment {
        rule: Rule::Hook {
            flags: flags_of(*action),
            affinity_seconds: affinity_seconds(plan.affinity),
        },
        cluster: targets(&lists.cluster),
        local: targets(&lists.local),
    })
}
