//! What files there are to translate: configurations as they are, or in ConfigMaps as kubectl prints them.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::kinds::Kind;

/// Why a file is not looked at.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what `--from`, or the key in a ConfigMap, says.
    #[error("{place}: {reason}")]
    Parse {
        /// The file, and the key in it.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// There is nothing in it to translate.
    #[error(
        "{path}: there is no KubeProxyConfiguration, net-conf.json, CNI configuration or Corefile in it; --from says \
         what a file is, or the only text of a ConfigMap"
    )]
    Nothing {
        /// The file.
        path: PathBuf,
    },
    /// It is seen to be something else than `--from` says.
    #[error("{place}: is a configuration of {found}, not of {from} as --from says")]
    Other {
        /// The file, and the key in it.
        place: String,
        /// What it configures.
        found: Kind,
        /// What it was said to.
        from: Kind,
    },
    /// There are two of one kind.
    #[error("{second}: is a second configuration of {kind}, after {first}")]
    Twice {
        /// What it configures.
        kind: Kind,
        /// The first.
        first: String,
        /// The other.
        second: String,
    },
}

/// One configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The file, and the key in it.
    pub place: String,
    /// What it says.
    pub content: Content,
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A KubeProxyConfiguration, and the kubeconfig in the same ConfigMap.
    KubeProxy(Value, Option<Value>),
    /// flannel's network, and the command line of its DaemonSet in the same file.
    Flannel(Value, Option<Vec<String>>),
    /// A chain of CNI plugins.
    Cni(Value),
    /// A Corefile.
    Corefile(String),
}

impl Content {
    /// What it configures.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::KubeProxy(..) => Kind::KubeProxy,
            Self::Flannel(..) => Kind::Flannel,
            Self::Cni(_) => Kind::Cni,
            Self::Corefile(_) => Kind::Coredns,
        }
    }
}

/// Reads a file; `from` says what it is where that is not seen.
///
/// # Errors
/// When it cannot be read, nothing in it is known, or nothing in it is what `from` says.
pub fn read(path: &Path, from: Option<Kind>) -> Result<Vec<Source>, SourceError> {
    let text = std::fs::read_to_string(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    })?;
    let place = path.display().to_string();
    let sources = recognized(&place, &text, from)?;
    if sources.is_empty() {
        return Err(SourceError::Nothing {
            path: path.to_owned(),
        });
    }
    Ok(sources)
}

/// The configurations in a text.
///
/// # Errors
/// When none of them is what `from` says, or one not what a key of a ConfigMap says.
pub fn recognized(place: &str, text: &str, from: Option<Kind>) -> Result<Vec<Source>, SourceError> {
    let documents = documents(text);
    let objects: Vec<&Value> = documents.iter().flatten().flat_map(items).collect();
    if objects.iter().any(|object| object["kind"] == "ConfigMap") {
        let arguments = objects.iter().find_map(|object| flannels_arguments(object));
        let maps = objects.into_iter().filter(|object| object["kind"] == "ConfigMap");
        let read: Result<Vec<_>, _> = maps.map(|map| of_config_map(place, map, from)).collect();
        let mut sources: Vec<Source> = read?.into_iter().flatten().collect();
        for source in &mut sources {
            if let Content::Flannel(_, beside) = &mut source.content {
                beside.clone_from(&arguments);
            }
        }
        return is_what_was_said(sources, from);
    }
    let seen = if looks_like_a_corefile(text) {
        Some(Content::Corefile(text.to_owned()))
    } else {
        objects.iter().find_map(|object| of_object(object))
    };
    let content = match (seen, from, documents) {
        (Some(content), ..) => Some(content),
        (None, Some(kind), _) => Some(of_kind(kind, place, text)?),
        (None, None, Ok(_)) => None,
        (None, None, Err(error)) => return Err(wrong(place, error)),
    };
    let source = content.map(|content| Source {
        place: place.to_owned(),
        content,
    });
    is_what_was_said(source.into_iter().collect(), from)
}

/// One of them at least: flannel's ConfigMap has the CNI plugins' configuration too.
fn is_what_was_said(sources: Vec<Source>, from: Option<Kind>) -> Result<Vec<Source>, SourceError> {
    let (Some(from), Some(first)) = (from, sources.first()) else {
        return Ok(sources);
    };
    if sources.iter().any(|source| source.content.kind() == from) {
        return Ok(sources);
    }
    Err(SourceError::Other {
        place: first.place.clone(),
        found: first.content.kind(),
        from,
    })
}

fn wrong(place: &str, reason: impl ToString) -> SourceError {
    SourceError::Parse {
        place: place.to_owned(),
        reason: reason.to_string(),
    }
}

/// The documents of a YAML file. JSON is YAML.
///
/// # Errors
/// What is no YAML, twice the same key in one map included.
fn documents(text: &str) -> Result<Vec<Value>, serde_yaml_ng::Error> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents
        .map(|document| {
            let read = serde_yaml_ng::Value::deserialize(document)?;
            serde_yaml_ng::from_value(read)
        })
        .collect()
}

/// The objects of a list, or the one that it is.
fn items(document: &Value) -> Vec<&Value> {
    match document["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![document],
    }
}

/// What follows `flanneld` in the container that runs it.
fn flannels_arguments(object: &Value) -> Option<Vec<String>> {
    if object["kind"] != "DaemonSet" {
        return None;
    }
    let containers = object.pointer("/spec/template/spec/containers")?.as_array()?;
    containers.iter().find_map(|container| {
        let words = ["command", "args"]
            .into_iter()
            .flat_map(|list| container[list].as_array());
        let words: Vec<&str> = words.flatten().filter_map(Value::as_str).collect();
        let program = words.iter().position(|word| word.ends_with("flanneld"))?;
        let arguments = words.iter().skip(program + 1);
        Some(arguments.map(|word| (*word).to_owned()).collect())
    })
}

/// By its keys; where those tell nothing, its only text is what `from` says.
fn of_config_map(place: &str, map: &Value, from: Option<Kind>) -> Result<Vec<Source>, SourceError> {
    let name = map["metadata"]["name"].as_str().unwrap_or_default();
    let data = map["data"].as_object();
    let texts = || {
        let pairs = data.into_iter().flatten();
        pairs.filter_map(|(key, text)| Some((key.as_str(), text.as_str()?)))
    };
    let kubeconfig = texts().find(|(key, _)| *key == "kubeconfig.conf");
    let kubeconfig = match kubeconfig {
        Some((key, text)) => Some(one_document(&format!("{place}: {name}/{key}"), text)?),
        None => None,
    };
    let known = |(key, text)| Some((key, text, kind_of_key(key, text)?));
    let mut known: Vec<(&str, &str, Kind)> = texts().filter_map(known).collect();
    if let ([], Some(kind), [(key, text)]) = (known.as_slice(), from, texts().collect::<Vec<_>>().as_slice())
    {
        known.push((key, text, kind));
    }
    let mut sources = Vec::new();
    for (key, text, kind) in known {
        let place = format!("{place}: {name}/{key}");
        let mut content = of_kind(kind, &place, text)?;
        if let Content::KubeProxy(_, beside) = &mut content {
            beside.clone_from(&kubeconfig);
        }
        sources.push(Source { place, content });
    }
    Ok(sources)
}

/// kubeadm says `config.conf`, others `config`, `config.yaml` or `kube-proxy-config`.
fn kind_of_key(key: &str, text: &str) -> Option<Kind> {
    match key {
        "net-conf.json" => Some(Kind::Flannel),
        "cni-conf.json" => Some(Kind::Cni),
        "Corefile" => Some(Kind::Coredns),
        _ => is_of_kube_proxy(text).then_some(Kind::KubeProxy),
    }
}

/// What cannot be read is told as an error if it names the kind.
fn is_of_kube_proxy(text: &str) -> bool {
    const KIND: &str = "KubeProxyConfiguration";
    match documents(text) {
        Ok(documents) => documents.iter().any(|document| document["kind"] == KIND),
        Err(_) => text.contains(KIND),
    }
}

fn of_kind(kind: Kind, place: &str, text: &str) -> Result<Content, SourceError> {
    Ok(match kind {
        Kind::Coredns => Content::Corefile(text.to_owned()),
        Kind::KubeProxy => Content::KubeProxy(one_document(place, text)?, None),
        Kind::Flannel => Content::Flannel(one_document(place, text)?, None),
        Kind::Cni => Content::Cni(one_document(place, text)?),
    })
}

fn one_document(place: &str, text: &str) -> Result<Value, SourceError> {
    match documents(text).map_err(|error| wrong(place, error))?.as_slice() {
        [document] if document.is_object() => Ok(document.clone()),
        [_] => Err(wrong(place, "is not an object")),
        documents => Err(wrong(place, format_args!("has {} documents", documents.len()))),
    }
}

/// By what it says, where no key says what it is.
fn of_object(object: &Value) -> Option<Content> {
    let fields = object.as_object()?;
    let has = |wanted: &str| fields.keys().any(|name| name.eq_ignore_ascii_case(wanted));
    if object["kind"] == "KubeProxyConfiguration" {
        return Some(Content::KubeProxy(object.clone(), None));
    }
    if has("kind") {
        return None;
    }
    if has("plugins") || has("cniVersion") {
        return Some(Content::Cni(object.clone()));
    }
    (has("Network") || has("IPv6Network")).then(|| Content::Flannel(object.clone(), None))
}

/// A server block begins with zones and a brace.
fn looks_like_a_corefile(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| line.ends_with('{') && !line.starts_with('{'))
}
