//! The running kernel's types, as it tells them itself in `/sys/kernel/btf/vmlinux`: where structures have their fields,
//! and what the numbers of an enumeration are called. The format: Documentation/bpf/btf.rst.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use aya::{Btf, BtfError, Endianness};

/// Where the kernel tells them.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Before the name of a tracepoint: `btf_trace_kfree_skb` (include/trace/bpf_probe.h).
const TRACEPOINT: &[u8] = b"btf_trace_";

/// Why the types do not say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TypesError {
    /// The kernel does not tell its types.
    #[error("read {PATH}: the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Read(#[source] io::Error),
    /// What it tells is not what Linux 5.17 and later tell.
    #[error("{PATH} is damaged at byte {0}")]
    Damaged(usize),
    /// It has no such type.
    #[error("this kernel has no {0}")]
    NoType(String),
    /// A structure has no such field.
    #[error("this kernel's {structure} has no field {field}")]
    NoField {
        /// The structure.
        structure: String,
        /// The field.
        field: String,
    },
}

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The kernel's types.
pub struct KernelTypes {
    bytes: Vec<u8>,
    /// Where each type begins, by its number less one.
    types: Vec<usize>,
    strings: usize,
    /// Structures, unions, enumerations and the types of tracepoints by name.
    named: HashMap<(u32, Vec<u8>), u32>,
}

/// A type as it lies in the bytes.
#[derive(Clone, Copy)]
struct Type {
    name: usize,
    kind: u32,
    /// How many members it has.
    members: usize,
    /// Whether offsets of members are in bits below a width.
    has_bit_fields: bool,
    /// The type that it stands for, or its size.
    of: u32,
    /// Where the members begin.
    at: usize,
}

impl KernelTypes {
    /// Reads the types of the running kernel.
    ///
    /// # Errors
    /// When it does not tell them.
    pub fn read() -> Result<Self, TypesError> {
        Self::parse(fs::read(Path::new(PATH)).map_err(TypesError::Read)?)
    }

    /// Finds the types in what the kernel tells.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, TypesError> {
        const MAGIC: u32 = 0xeb9f;
        if word(&bytes, 0)? & 0xffff != MAGIC {
            return Err(TypesError::Damaged(0));
        }
        let header = word(&bytes, 4)? as usize;
        let first = header + word(&bytes, 8)? as usize;
        let end = first + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        let mut types = Self {
            bytes,
            types: Vec::new(),
            strings,
            named: HashMap::new(),
        };
        let mut at = first;
        while at < end {
            let found = types.at(at)?;
            types.types.push(at);
            let number = u32::try_from(types.types.len()).map_err(|_| TypesError::Damaged(at))?;
            if matches!(found.kind, kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64) {
                let name = types.string(found.name)?.to_vec();
                types.named.entry((found.kind, name)).or_insert(number);
            } else if found.kind == kind::TYPEDEF && types.string(found.name)?.starts_with(TRACEPOINT) {
                let name = types.string(found.name)?.to_vec();
                types.named.insert((found.kind, name), number);
            }
            at = found.at + member_bytes(found.kind) * found.members + extra_bytes(found.kind);
        }
        Ok(types)
    }

    /// The same for the loader of programs.
    pub(crate) fn for_loader(&self) -> Result<Btf, BtfError> {
        Btf::parse(&self.bytes, Endianness::default())
    }

    /// Where a structure has a field, in bytes: `path` leads through nested ones, as in `ns.inum`.
    ///
    /// # Errors
    /// When it has none.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, TypesError> {
        let mut found = self.structure(structure)?;
        let mut bits = 0;
        for field in path.split('.') {
            let (offset, number) = self.field(found, field.as_bytes())?.ok_or(TypesError::NoField {
                structure: structure.to_owned(),
                field: path.to_owned(),
            })?;
            bits += offset;
            found = self.resolved(number)?;
        }
        Ok(bits / 8)
    }

    /// The size of a structure in bytes.
    ///
    /// # Errors
    /// When there is no such structure.
    pub fn size(&self, structure: &str) -> Result<u32, TypesError> {
        Ok(self.structure(structure)?.of)
    }

    /// The names of an enumeration by number.
    ///
    /// # Errors
    /// When there is no such enumeration.
    pub fn enumeration(&self, name: &str) -> Result<BTreeMap<u32, String>, TypesError> {
        let key = (kind::ENUM, name.as_bytes().to_vec());
        let number = self.named.get(&key);
        let found = self.number(*number.ok_or_else(|| TypesError::NoType(format!("enum {name}")))?)?;
        let entry = |index| {
            let at = found.at + index * member_bytes(kind::ENUM);
            let text = self.string(word(&self.bytes, at)? as usize)?;
            Ok((
                word(&self.bytes, at + 4)?,
                String::from_utf8_lossy(text).into_owned(),
            ))
        };
        (0..found.members).map(entry).collect()
    }

    /// How many arguments a tracepoint gives to programs.
    ///
    /// # Errors
    /// When there is no such tracepoint.
    pub fn arguments(&self, tracepoint: &str) -> Result<usize, TypesError> {
        let key = (kind::TYPEDEF, [TRACEPOINT, tracepoint.as_bytes()].concat());
        let missing = || TypesError::NoType(format!("tracepoint {tracepoint}"));
        let pointer = self.resolved(*self.named.get(&key).ok_or_else(missing)?)?;
        if pointer.kind != kind::PTR {
            return Err(TypesError::Damaged(pointer.at));
        }
        let function = self.number(pointer.of)?;
        // The first parameter is the tracepoint's own.
        match (function.kind, function.members.checked_sub(1)) {
            (kind::FUNC_PROTO, Some(arguments)) => Ok(arguments),
            _ => Err(TypesError::Damaged(function.at)),
        }
    }

    fn structure(&self, name: &str) -> Result<Type, TypesError> {
        let key = (kind::STRUCT, name.as_bytes().to_vec());
        let number = self.named.get(&key);
        self.number(*number.ok_or_else(|| TypesError::NoType(format!("struct {name}")))?)
    }

    /// The offset in bits and the type of a field, also of one in a nested structure without a name.
    fn field(&self, within: Type, name: &[u8]) -> Result<Option<(u32, u32)>, TypesError> {
        if !matches!(within.kind, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        for index in 0..within.members {
            let at = within.at + index * member_bytes(within.kind);
            let (member, number) = (word(&self.bytes, at)? as usize, word(&self.bytes, at + 4)?);
            let offset = word(&self.bytes, at + 8)?;
            let bits = if within.has_bit_fields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            let text = self.string(member)?;
            if text == name {
                return Ok(Some((bits, number)));
            }
            if text.is_empty()
                && let Some((inner, number)) = self.field(self.resolved(number)?, name)?
            {
                return Ok(Some((bits + inner, number)));
            }
        }
        Ok(None)
    }

    /// The type behind names, qualifiers and dimensions.
    fn resolved(&self, number: u32) -> Result<Type, TypesError> {
        const BEHIND: [u32; 5] = [
            kind::TYPEDEF,
            kind::VOLATILE,
            kind::CONST,
            kind::RESTRICT,
            kind::TYPE_TAG,
        ];
        let mut found = self.number(number)?;
        // A chain is never as long as that; a damaged one may be a ring.
        for _ in 0..32 {
            if !BEHIND.contains(&found.kind) {
                return Ok(found);
            }
            found = self.number(found.of)?;
        }
        Err(TypesError::Damaged(found.at))
    }

    fn number(&self, number: u32) -> Result<Type, TypesError> {
        let index = (number as usize).checked_sub(1);
        let at = index.and_then(|index| self.types.get(index));
        // Type 0 is `void`, which is never looked into.
        at.map_or(
            Ok(Type {
                name: 0,
                kind: 0,
                members: 0,
                has_bit_fields: false,
                of: 0,
                at: 0,
            }),
            |at| self.at(*at),
        )
    }

    fn at(&self, at: usize) -> Result<Type, TypesError> {
        let info = word(&self.bytes, at + 4)?;
        Ok(Type {
            name: word(&self.bytes, at)? as usize,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            of: word(&self.bytes, at + 8)?,
            at: at + 12,
        })
    }

    fn string(&self, offset: usize) -> Result<&[u8], TypesError> {
        let start = self.strings + offset;
        let rest = self.bytes.get(start..).ok_or(TypesError::Damaged(start))?;
        let length = rest.iter().position(|byte| *byte == 0);
        rest.get(..length.unwrap_or(rest.len()))
            .ok_or(TypesError::Damaged(start))
    }
}

impl std::fmt::Debug for KernelTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelTypes")
            .field("types", &self.types.len())
            .finish_non_exhaustive()
    }
}

/// How long a member of a type of this kind is.
const fn member_bytes(kind: u32) -> usize {
    match kind {
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12,
        kind::ENUM | kind::FUNC_PROTO => 8,
        _ => 0,
    }
}

/// What a type of this kind has beside its members.
const fn extra_bytes(kind: u32) -> usize {
    match kind {
        kind::ARRAY => 12,
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, TypesError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    found
        .map(|word| u32::from_ne_bytes(*word))
        .ok_or(TypesError::Damaged(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { int b; nested c; }; }`, `typedef struct named nested`, `struct named { int d; }`,
    /// `enum reasons { ZERO, TWELVE = 12 }`, `typedef void (*btf_trace_ends)(void *, int)`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0nested\0named\0d\0reasons\0ZERO\0TWELVE\0btf_trace_ends\0";
        let at = |name: &str| {
            let wanted = [b"\0".as_slice(), name.as_bytes(), b"\0"].concat();
            let found = strings.windows(wanted.len()).position(|window| window == wanted);
            u32::try_from(found.expect("a name") + 1).expect("small")
        };
        let info = |kind: u32, members: u32| kind << 24 | members;
        let types = [
            vec![at("int"), info(kind::INT, 0), 4, 0x0100_0020],
            vec![at("outer"), info(kind::STRUCT, 2), 12, at("a"), 1, 0, 0, 3, 32],
            vec![0, info(kind::STRUCT, 2), 8, at("b"), 1, 0, at("c"), 4, 32],
            vec![at("nested"), info(kind::TYPEDEF, 0), 5],
            vec![at("named"), info(kind::STRUCT, 1), 4, at("d"), 1, 0],
            vec![
                at("reasons"),
                info(kind::ENUM, 2),
                4,
                at("ZERO"),
                0,
                at("TWELVE"),
                12,
            ],
            vec![at("btf_trace_ends"), info(kind::TYPEDEF, 0), 8],
            vec![0, info(kind::PTR, 0), 9],
            vec![0, info(kind::FUNC_PROTO, 2), 0, 0, 0, 0, 1],
        ]
        .concat();
        let type_bytes = u32::try_from(types.len() * 4).expect("small");
        let string_bytes = u32::try_from(strings.len()).expect("small");
        let header = [0x0001_eb9f, 24, 0, type_bytes, type_bytes, string_bytes];
        let words = header.into_iter().chain(types);
        let mut bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn fields_are_found_in_nested_structures_with_and_without_a_name() {
        let types = KernelTypes::parse(sample()).expect("whole");
        let rows = [("a", 0), ("b", 4), ("c", 8), ("c.d", 8)];
        for (path, offset) in rows {
            assert_eq!(types.offset("outer", path).expect("there"), offset, "{path}");
        }
        assert_eq!(types.size("outer").expect("there"), 12);
        let error = types.offset("outer", "c.e").expect_err("none");
        assert_eq!(error.to_string(), "this kernel's outer has no field c.e");
        let error = types.offset("inner", "a").expect_err("none");
        assert_eq!(error.to_string(), "this kernel has no struct inner");
    }

    #[test]
    fn numbers_have_names() {
        let types = KernelTypes::parse(sample()).expect("whole");
        let names = types.enumeration("reasons").expect("there");
        assert_eq!(
            names,
            BTreeMap::from([(0, "ZERO".to_owned()), (12, "TWELVE".to_owned())])
        );
    }

    #[test]
    fn a_tracepoint_has_the_arguments_behind_its_own() {
        let types = KernelTypes::parse(sample()).expect("whole");
        assert_eq!(types.arguments("ends").expect("there"), 1);
        let error = types.arguments("begins").expect_err("none");
        assert_eq!(error.to_string(), "this kernel has no tracepoint begins");
    }

    #[test]
    fn what_is_cut_off_is_refused_and_not_read_beyond_its_end() {
        let whole = sample();
        for length in 0..whole.len() {
            if let Ok(types) = KernelTypes::parse(whole[..length].to_vec()) {
                let _ = types.offset("outer", "c.d");
                let _ = types.enumeration("reasons");
                let _ = types.arguments("ends");
            }
        }
        assert!(KernelTypes::parse(vec![0; 64]).is_err());
    }
}
