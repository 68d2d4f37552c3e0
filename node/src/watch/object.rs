//! One object as it comes from the API: read leniently, converted while it is parsed, and kept slim from then on.
//!
//! kube-rs parses a page of a list as a whole, so that one object that does not fit its type would hide all the
//! others. [`Watched`] therefore never fails on an object: what does not fit becomes [`Rejected`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use model::{Change, Kind, ObjectName};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::faults::{Faults, Rejected};

/// What an object of the API is to a data plane.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Converted {
    /// Something to know.
    Put(Box<Change>),
    /// A valid object that is no matter of a data plane, for example an EndpointSlice of type FQDN.
    Irrelevant,
    /// Nothing that can be used. What was known of the object before stays.
    Invalid,
}

/// A kind of object that is watched.
pub(super) trait Watchable: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static {
    /// The kind.
    const KIND: Kind;
    /// Older servers do not have it, and older roles do not allow it: then it is done without.
    const OPTIONAL: bool = false;
    /// Field selector of the objects that matter. None = all.
    const FIELDS: Option<&'static str> = None;

    /// Converts the object, whose name is known to be usable.
    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted;
}

/// The edit that removes an object.
pub(super) fn deletion(kind: Kind, object: ObjectName) -> Change {
    match kind {
        Kind::Service => Change::DeleteService(object),
        Kind::EndpointSlice => Change::DeleteEndpointSlice(object),
        Kind::Node => Change::DeleteNode(model::NodeName(object.name)),
        Kind::Namespace => Change::DeleteNamespace(object.name),
        Kind::Pod => Change::DeletePod(object),
        Kind::ServiceCidr => Change::DeleteServiceCidr(object.name),
    }
}

/// An object of kind `K`, converted.
#[derive(Clone, Debug)]
pub(super) struct Watched<K> {
    /// Only name, namespace and resource version: what the watcher itself reads.
    metadata: ObjectMeta,
    pub(super) converted: Converted,
    pub(super) rejected: Vec<Rejected>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Watched<K> {
    /// Namespace (empty for kinds without) and name.
    pub(super) fn name(&self) -> ObjectName {
        ObjectName::new(
            self.metadata.namespace.clone().unwrap_or_default(),
            self.metadata.name.clone().unwrap_or_default(),
        )
    }
}

impl<'de, K: Watchable> Deserialize<'de> for Watched<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(
            match deserializer.deserialize_newtype_struct(RAW_VALUE, JsonVisitor)? {
                Json::Text(text) => Self::from_text(text.get()),
                Json::Value(value) => Self::from_value(value),
            },
        )
    }
}

/// How a deserializer of serde_json is asked for the text of what comes next ([`RawValue`]). What others, or another
/// version, answer is taken too.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// An object that is read: as it was sent, or by its parts, where a server sends the type of an event behind its object
/// and serde had to keep them.
enum Json<'de> {
    /// In the line of a watch, or in the list.
    Text(&'de RawValue),
    Value(Value),
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Json<'de>, A::Error> {
        <&RawValue>::deserialize(MapAccessDeserializer::new(map)).map(Json::Text)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        Value::deserialize(deserializer).map(Json::Value)
    }
}

impl<K: Watchable> Watched<K> {
    /// Nearly every object is what its type says, and is read at once.
    fn from_text(text: &str) -> Self {
        if let Ok(object) = serde_json::from_str::<K>(text) {
            let meta = object.meta();
            let metadata = ObjectMeta {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                resource_version: meta.resource_version.clone(),
                ..ObjectMeta::default()
            };
            return Self::new(metadata, || Ok(object));
        }
        match serde_json::from_str(text) {
            Ok(value) => Self::from_value(value),
            Err(error) => Self::new(ObjectMeta::default(), || Err(error)),
        }
    }

    fn from_value(value: Value) -> Self {
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Self::new(metadata, || serde_json::from_value(value))
    }

    fn new(metadata: ObjectMeta, read: impl FnOnce() -> serde_json::Result<K>) -> Self {
        let name = ObjectName::new(
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        );
        let mut faults = Faults::default();
        let converted = convert(read, &name, &mut faults);
        Self {
            metadata,
            converted,
            rejected: faults.into_rejected(K::KIND, &name),
            kind: PhantomData,
        }
    }
}

fn convert<K: Watchable>(
    read: impl FnOnce() -> serde_json::Result<K>,
    name: &ObjectName,
    faults: &mut Faults,
) -> Converted {
    if !is_object_name(&name.name) {
        faults.add(
            "metadata.name",
            format!("{:?} is not an object's name", name.name),
        );
        return Converted::Invalid;
    }
    let namespaced = !matches!(K::KIND, Kind::Node | Kind::Namespace | Kind::ServiceCidr);
    if namespaced && !is_object_name(&name.namespace) {
        let reason = format!("{:?} is not a namespace's name", name.namespace);
        faults.add("metadata.namespace", reason);
        return Converted::Invalid;
    }
    match read() {
        Ok(object) => object.convert(name, faults),
        Err(error) => {
            faults.add("", error.to_string());
            Converted::Invalid
        }
    }
}

/// Whether a text may name an object: a DNS subdomain (RFC 1123), which also keeps control characters out of logs.
fn is_object_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed)
}

impl<K: Watchable> Resource for Watched<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
