//! Which fields the messages have: `messages.txt`, which `messages.py` writes.

use std::collections::HashMap;
use std::sync::LazyLock;

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| Messages::parse(include_str!("messages.txt")));

/// All messages that an object of the API can hold.
pub(super) struct Messages {
    by_name: HashMap<&'static str, usize>,
    /// Each sorted by number.
    fields: Vec<Vec<Field>>,
}

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u32,
    /// Name in JSON; `-` when inlined.
    pub(super) json: &'static str,
    pub(super) shape: Shape,
    pub(super) kind: Kind,
}

/// How often a field stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Once; `pointer` when Go tells its zero from its absence.
    One {
        pointer: bool,
    },
    Repeated,
    /// From strings.
    Map,
    /// The fields of this message are those of the message around it.
    Inline(usize),
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    /// 32 or 64 bits.
    Int,
    String,
    /// Base64 in JSON.
    Bytes,
    /// A list of strings as the value of a map: a message with the field `items`.
    Texts,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `runtime.RawExtension`, `metav1.FieldsV1`: JSON as it is.
    Raw,
    /// An index of [`Messages::fields`].
    Message(usize),
}

impl Messages {
    /// The one table of this process.
    pub(super) fn global() -> &'static Messages {
        &MESSAGES
    }

    fn parse(table: &'static str) -> Self {
        let lines = || table.lines().filter(|line| !line.starts_with('#'));
        let names = lines().filter(|line| !line.starts_with(' '));
        let by_name: HashMap<&str, usize> = names.enumerate().map(|(at, name)| (name, at)).collect();
        let mut fields: Vec<Vec<Field>> = Vec::with_capacity(by_name.len());
        for line in lines() {
            match (line.strip_prefix(' '), fields.last_mut()) {
                (Some(line), Some(message)) => message.push(field(&by_name, line)),
                _ => fields.push(Vec::new()),
            }
        }
        Messages { by_name, fields }
    }

    /// The message of a kind: `apps/v1` is `apps/v1.Deployment`, `rbac.authorization.k8s.io/v1` is `rbac/v1.Role`.
    /// DeleteOptions are of every group and version, and the same in all; `batch` and `policy` had the messages of `v1`
    /// before it.
    pub(super) fn of_kind(&self, api_version: &str, kind: &str) -> Option<usize> {
        let name = match (api_version.split_once('/'), kind) {
            (_, "DeleteOptions") => "meta/v1.DeleteOptions".to_owned(),
            (None, _) => format!("core/{api_version}.{kind}"),
            (Some((group, version)), _) => {
                let package = group.split('.').next().unwrap_or_default();
                let version = match (group, version) {
                    ("batch" | "policy", "v1beta1") => "v1",
                    (_, version) => version,
                };
                format!("{package}/{version}.{kind}")
            }
        };
        self.by_name.get(name.as_str()).copied()
    }

    /// The field of a message with this number.
    pub(super) fn field(&self, message: usize, number: u32) -> Option<&Field> {
        let fields = self.of(message);
        let at = fields.binary_search_by_key(&number, |field| field.number).ok()?;
        fields.get(at)
    }

    /// All fields of a message.
    pub(super) fn of(&self, message: usize) -> &[Field] {
        self.fields.get(message).map(Vec::as_slice).unwrap_or_default()
    }
}

/// `6 revisionHistoryLimit ?int`.
fn field(by_name: &HashMap<&str, usize>, line: &'static str) -> Field {
    let mut words = line.splitn(3, ' ');
    let mut word = || {
        words
            .next()
            .expect("invariant: a line of the table has three words")
    };
    let (number, json, kind) = (word(), word(), word());
    let number = number.parse().expect("invariant: the table has numbers");
    let (shape, kind) = match (
        kind.strip_prefix('?'),
        kind.strip_prefix("[]"),
        kind.strip_prefix("map "),
    ) {
        (Some(kind), _, _) => (Shape::One { pointer: true }, kind),
        (_, Some(kind), _) => (Shape::Repeated, kind),
        (_, _, Some(kind)) => (Shape::Map, kind),
        _ => (Shape::One { pointer: false }, kind),
    };
    let kind = match kind {
        "bool" => Kind::Bool,
        "int" => Kind::Int,
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "items string" => Kind::Texts,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "quantity" => Kind::Quantity,
        "intorstring" => Kind::IntOrString,
        "raw" => Kind::Raw,
        message => {
            let found = by_name.get(message);
            Kind::Message(*found.expect("invariant: the table has every message that it names"))
        }
    };
    let shape = match kind {
        Kind::Message(inner) if json == "-" => Shape::Inline(inner),
        _ => shape,
    };
    Field {
        number,
        json,
        shape,
        kind,
    }
}
