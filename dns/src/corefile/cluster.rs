//! The options of `kubernetes`, which has more than any other plugin.

use std::path::{Path, PathBuf};

use super::arguments::{bare, duration, names, no_options, number, single, unknown_option};
use super::lexer::Token;
use super::tree::Directive;
use super::{Error, ServerBlock};
use crate::kubernetes::{Access, Agent, ApiServer, Exposed, Objects, Options, PodMode, TlsFiles};
use crate::name::Name;
use crate::zone::EndpointNames;

const DEFAULT_FEED: &str = "/run/causeway/dns.sock";
/// Where the snapshot of an API server is kept.
const DEFAULT_STATE: &str = "/run/causeway";
const MAX_TTL: u32 = 3600;

const KNOWN_OPTIONS: &[&str] = &[
    "pods",
    "ttl",
    "fallthrough",
    "endpoint_pod_names",
    "namespaces",
    "namespace_labels",
    "labels",
    "noendpoints",
    "ignore",
    "endpoint",
    "tls",
    "kubeconfig",
    "feed",
    "state",
    "startup_timeout",
];

/// What the options say of the source of objects, until all of them are read.
#[derive(Default)]
struct Source<'d> {
    feed: Option<PathBuf>,
    kubeconfig: Option<Access>,
    url: Option<String>,
    tls: Option<TlsFiles>,
    labels: Option<String>,
    namespace_labels: Option<String>,
    /// The latest option that only an API server can fulfil: where, what it is called, what the agent does not have.
    selects: Option<(&'d Token, &'d str, &'static str)>,
}

/// Reads the directive. `own_zones` are those of its server block.
pub(super) fn kubernetes(directive: &Directive, own_zones: &[Name]) -> Result<Options, Error> {
    let zones = if directive.args.is_empty() {
        own_zones.to_vec()
    } else {
        names(&directive.args)?
    };
    if zones.iter().all(Name::is_reverse) {
        return Err(directive
            .name
            .error("kubernetes needs a zone that is not a reverse zone"));
    }
    let mut options = Options::new(zones);
    let mut source = Source::default();
    for option in &directive.options {
        no_options(option)?;
        match option.name.text.as_str() {
            "pods" => {
                options.pods = pod_mode(single(option)?)?;
                if options.pods == PodMode::Verified {
                    source.selects = Some((&option.name, "pods verified", "pods"));
                }
            }
            "ttl" => options.ttl = ttl(single(option)?)?,
            "fallthrough" if option.args.is_empty() => options.fallthrough.0.push(Name::root()),
            "fallthrough" => options.fallthrough.0.extend(names(&option.args)?),
            "endpoint_pod_names" => {
                bare(option)?;
                options.endpoint_names = EndpointNames::Pod;
            }
            "namespaces" => expose(&mut options.exposed, option)?,
            "noendpoints" => options.endpoints = !bare(option)?,
            "ignore" => options.empty_services = !ignores_empty(single(option)?)?,
            "startup_timeout" => options.startup_timeout = duration(single(option)?)?,
            "state" => options.state = PathBuf::from(&single(option)?.text),
            _ => source.take(directive, option)?,
        }
    }
    if source.namespace_labels.is_some() {
        if options.exposed != Exposed::All {
            let message = "namespaces and namespace_labels exclude each other";
            return Err(directive.name.error(message));
        }
        options.exposed = Exposed::Listed;
    }
    options.objects = source.objects(directive, options.endpoints, options.pods)?;
    if options.endpoint_names == EndpointNames::Pod {
        options.objects = options.objects.with_pod_names();
    }
    if options.state.as_os_str().is_empty() {
        options.state = match &options.objects {
            Objects::Agent(Agent { socket, .. }) => socket.parent().map(Path::to_owned).unwrap_or_default(),
            Objects::Api(_) => DEFAULT_STATE.into(),
        };
    }
    Ok(options)
}

/// Where nothing is said of the source and no pod's service account is there, the node's agent tells, as far as it
/// can: it has no labels, and no pods.
pub(super) fn outside_of_a_pod(block: &mut ServerBlock) {
    let Some(options) = &mut block.kubernetes else {
        return;
    };
    let pod_names = options.objects.pod_names();
    let served_by_agents = ApiServer {
        endpoints: options.endpoints,
        pod_names,
        ..ApiServer::default()
    };
    if options.objects == Objects::Api(served_by_agents) {
        let socket = DEFAULT_FEED.into();
        options.objects = Objects::Agent(Agent { socket, pod_names });
    }
}

/// Blocks that have their objects from the same place share them: with the names of pods where one wants these.
pub(super) fn share_objects(blocks: &mut [ServerBlock]) {
    let objects = blocks
        .iter()
        .filter_map(|block| Some(&block.kubernetes.as_ref()?.objects));
    let named: Vec<Objects> = objects.filter(|objects| objects.pod_names()).cloned().collect();
    for options in blocks.iter_mut().filter_map(|block| block.kubernetes.as_mut()) {
        let with_names = options.objects.clone().with_pod_names();
        if named.contains(&with_names) {
            options.objects = with_names;
        }
    }
}

impl<'d> Source<'d> {
    fn take(&mut self, directive: &Directive, option: &'d Directive) -> Result<(), Error> {
        match option.name.text.as_str() {
            "feed" => self.feed = Some(PathBuf::from(&single(option)?.text)),
            "kubeconfig" => self.kubeconfig = Some(kubeconfig(option)?),
            "endpoint" => self.url = Some(single(option)?.text.clone()),
            "tls" => self.tls = Some(tls(option)?),
            "labels" => self.labels = Some(selector(option)?),
            "namespace_labels" => self.namespace_labels = Some(selector(option)?),
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
        if let name @ ("labels" | "namespace_labels") = option.name.text.as_str() {
            self.selects = Some((&option.name, name, "labels"));
        }
        Ok(())
    }

    fn objects(self, directive: &Directive, endpoints: bool, pods: PodMode) -> Result<Objects, Error> {
        let error = |message: &str| Err(directive.name.error(message));
        if self.tls.is_some() && self.url.is_none() {
            return error("tls needs an endpoint");
        }
        let endpoint = self.url.map(|url| Access::Endpoint { url, tls: self.tls });
        let access = match (self.feed, self.kubeconfig, endpoint) {
            (None, None, None) => Access::ServiceAccount,
            (None, Some(access), None) | (None, None, Some(access)) => access,
            (Some(feed), None, None) => match self.selects {
                None => return Ok(Objects::Agent(feed.into())),
                Some((option, name, lacks)) => {
                    return Err(option.error(format!(
                        "{name} needs an API server: the agent's feed has no {lacks}"
                    )));
                }
            },
            _ => return error("feed, kubeconfig and endpoint exclude each other"),
        };
        Ok(Objects::Api(ApiServer {
            access,
            labels: self.labels,
            namespace_labels: self.namespace_labels,
            endpoints,
            pods: pods == PodMode::Verified,
            pod_names: false,
        }))
    }
}

fn pod_mode(token: &Token) -> Result<PodMode, Error> {
    match token.text.as_str() {
        "disabled" => Ok(PodMode::Disabled),
        "insecure" => Ok(PodMode::Insecure),
        "verified" => Ok(PodMode::Verified),
        other => Err(token.error(format!("pods is disabled, insecure or verified, not {other:?}"))),
    }
}

fn ttl(token: &Token) -> Result<u32, Error> {
    let ttl = number(token)?;
    if ttl > MAX_TTL {
        return Err(token.error(format!("ttl is 0 to {MAX_TTL} seconds, not {ttl}")));
    }
    Ok(ttl)
}

/// Several of these options add up, as in CoreDNS.
fn expose(exposed: &mut Exposed, option: &Directive) -> Result<(), Error> {
    if option.args.is_empty() {
        return Err(option.name.error("namespaces takes at least one namespace"));
    }
    let named = option.args.iter().map(|token| token.text.to_ascii_lowercase());
    let named = named.map(|name| name.into_bytes().into_boxed_slice());
    match exposed {
        Exposed::Named(known) => known.extend(named),
        Exposed::All | Exposed::Listed => *exposed = Exposed::Named(named.collect()),
    }
    Ok(())
}

fn ignores_empty(token: &Token) -> Result<bool, Error> {
    match token.text.as_str() {
        "empty_service" => Ok(true),
        other => Err(token.error(format!("ignore takes empty_service, not {other:?}"))),
    }
}

fn kubeconfig(option: &Directive) -> Result<Access, Error> {
    let (file, context) = match option.args.as_slice() {
        [file] => (file, None),
        [file, context] => (file, Some(context.text.clone())),
        _ => {
            return Err(option
                .name
                .error("kubeconfig takes a file and, where wanted, a context"));
        }
    };
    let file = PathBuf::from(&file.text);
    Ok(Access::Kubeconfig { file, context })
}

fn tls(option: &Directive) -> Result<TlsFiles, Error> {
    let [certificate, key, authority] = option.args.as_slice() else {
        return Err(option
            .name
            .error("tls takes three files: certificate, key and authority"));
    };
    Ok(TlsFiles {
        certificate: PathBuf::from(&certificate.text),
        key: PathBuf::from(&key.text),
        authority: PathBuf::from(&authority.text),
    })
}

/// A label selector as `kubectl get -l` takes it: `app=web,environment in (staging, qa),!canary`. The API server
/// judges names and values; here only what cannot be one is refused.
fn selector(option: &Directive) -> Result<String, Error> {
    let words: Vec<&str> = option.args.iter().map(|token| token.text.as_str()).collect();
    let text = words.join(" ");
    let mut depth = 0_usize;
    let requirements = text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    if requirements.into_iter().all(is_requirement) {
        return Ok(text);
    }
    let error = format!("{text:?} is no label selector like app=web,environment in (staging, qa)");
    Err(option.name.error(error))
}

/// `key`, `!key`, `key=value`, `key!=value`, `key in (…)` or `key notin (…)`.
fn is_requirement(text: &str) -> bool {
    let is_word = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        !text.is_empty() && text.bytes().all(allowed)
    };
    let text = text.trim();
    if let Some((key, set)) = text.split_once('(') {
        let Some(set) = set.strip_suffix(')') else {
            return false;
        };
        let operator: Vec<&str> = key.split_whitespace().collect();
        let values = set.split(',').map(str::trim);
        return matches!(operator.as_slice(), [key, "in" | "notin"] if is_word(key))
            && values.into_iter().all(|value| value.is_empty() || is_word(value));
    }
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (
            key.strip_suffix('!').unwrap_or(key),
            value.strip_prefix('=').unwrap_or(value),
        ),
        None => (text.strip_prefix('!').unwrap_or(text), ""),
    };
    is_word(key.trim()) && (value.trim().is_empty() || is_word(value.trim()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::corefile::Corefile;

    fn options_in(text: &str, in_pod: bool) -> Result<Options, String> {
        let environment = |name: &str| {
            let is_set = in_pod && name == "KUBERNETES_SERVICE_HOST";
            is_set.then(|| "10.96.0.1".to_owned())
        };
        let text = format!(". {{\nkubernetes cluster.local {{\n{text}\n}}\n}}");
        let corefile = Corefile::parse("Corefile", &text, &environment).map_err(|error| error.to_string())?;
        let block = corefile.blocks.into_iter().next().expect("one block");
        Ok(block.kubernetes.expect("one plugin"))
    }

    fn kubeconfig(file: &str, context: Option<&str>) -> ApiServer {
        let (file, context) = (file.into(), context.map(str::to_owned));
        ApiServer {
            access: Access::Kubeconfig { file, context },
            ..ApiServer::default()
        }
    }

    fn endpoint(url: &str, tls: Option<TlsFiles>) -> ApiServer {
        let url = url.to_owned();
        ApiServer {
            access: Access::Endpoint { url, tls },
            ..ApiServer::default()
        }
    }

    #[test]
    fn the_options_name_a_source_and_what_is_watched_there() {
        let default = ApiServer::default;
        let files = TlsFiles {
            certificate: "c.pem".into(),
            key: "k.pem".into(),
            authority: "a.pem".into(),
        };
        let agent = Objects::Agent("/run/causeway/dns.sock".into());
        let labels = |labels: &str| ApiServer {
            labels: Some(labels.to_owned()),
            ..default()
        };
        for (text, in_pod, expected) in [
            ("", false, agent.clone()),
            ("", true, Objects::Api(default())),
            ("noendpoints", false, agent.clone()),
            ("endpoint_pod_names", false, agent.clone().with_pod_names()),
            (
                "endpoint_pod_names",
                true,
                Objects::Api(default()).with_pod_names(),
            ),
            (
                "feed /a/b.sock\nendpoint_pod_names",
                true,
                Objects::Agent("/a/b.sock".into()).with_pod_names(),
            ),
            ("feed /a/b.sock", true, Objects::Agent("/a/b.sock".into())),
            ("kubeconfig /k", false, Objects::Api(kubeconfig("/k", None))),
            (
                "kubeconfig /k x",
                false,
                Objects::Api(kubeconfig("/k", Some("x"))),
            ),
            (
                "endpoint http://h:1",
                true,
                Objects::Api(endpoint("http://h:1", None)),
            ),
            (
                "tls c.pem k.pem a.pem\nendpoint https://h",
                false,
                Objects::Api(endpoint("https://h", Some(files))),
            ),
            // The agent has no labels and no pods: these are meant for a pod, wherever the file is looked at.
            ("labels app=web", false, Objects::Api(labels("app=web"))),
            (
                "labels app = web,!canary , tier in (a, b) , x notin (c),y!=z,w==v",
                false,
                Objects::Api(labels(
                    "app = web,!canary , tier in (a, b) , x notin (c),y!=z,w==v",
                )),
            ),
            (
                "namespace_labels team",
                true,
                Objects::Api(ApiServer {
                    namespace_labels: Some("team".to_owned()),
                    ..default()
                }),
            ),
            (
                "pods verified",
                false,
                Objects::Api(ApiServer {
                    pods: true,
                    ..default()
                }),
            ),
            (
                "noendpoints\nkubeconfig /k",
                false,
                Objects::Api(ApiServer {
                    endpoints: false,
                    ..kubeconfig("/k", None)
                }),
            ),
        ] {
            let found = options_in(text, in_pod).map(|options| options.objects);
            assert_eq!(found, Ok(expected), "{text}");
        }
    }

    #[test]
    fn blocks_share_their_objects_with_the_names_of_pods_where_one_of_them_wants_these() {
        let cluster = |port: u16, options: &str| format!("c:{port} {{\nkubernetes c {{\n{options}\n}}\n}}\n");
        let text = [
            cluster(1, "feed /a"),
            cluster(2, "feed /a\nendpoint_pod_names"),
            cluster(3, "feed /b"),
            cluster(4, "feed /a\nttl 7"),
        ];
        let corefile = Corefile::parse("Corefile", &text.concat(), &|_| None).expect("a Corefile");
        let options = corefile.blocks.into_iter().filter_map(|block| block.kubernetes);
        let found: Vec<_> = options
            .map(|options| (options.objects, options.endpoint_names))
            .collect();
        let a = || Objects::Agent("/a".into()).with_pod_names();
        let expected = [
            (a(), EndpointNames::Dashed),
            (a(), EndpointNames::Pod),
            (Objects::Agent("/b".into()), EndpointNames::Dashed),
            (a(), EndpointNames::Dashed),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_options_say_which_names_there_are() {
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| name.as_bytes().into());
            Exposed::Named(names.collect())
        };
        for (text, exposed, endpoints, empty_services) in [
            ("", Exposed::All, true, true),
            ("namespaces a B", named(&["a", "b"]), true, true),
            ("namespaces a\nnamespaces b", named(&["a", "b"]), true, true),
            ("namespace_labels x=y", Exposed::Listed, true, true),
            ("noendpoints", Exposed::All, false, true),
            ("ignore empty_service", Exposed::All, true, false),
        ] {
            let options = options_in(text, true).expect(text);
            let found = (options.exposed, options.endpoints, options.empty_services);
            assert_eq!(found, (exposed, endpoints, empty_services), "{text}");
        }
        let waits = |text: &str| options_in(text, true).map(|options| options.startup_timeout);
        assert_eq!(waits(""), Ok(Duration::from_secs(5)));
        assert_eq!(waits("startup_timeout 0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn options_that_do_not_fit_are_refused_with_their_line() {
        let exclude = "Corefile:2: feed, kubeconfig and endpoint exclude each other";
        let no_selector = |text: &str| {
            format!("Corefile:3: {text:?} is no label selector like app=web,environment in (staging, qa)")
        };
        let rows = [
            ("feed /f\nkubeconfig /k", exclude.to_owned()),
            ("feed /f\nendpoint http://h", exclude.to_owned()),
            ("kubeconfig /k\nendpoint http://h", exclude.to_owned()),
            ("tls a b c", "Corefile:2: tls needs an endpoint".to_owned()),
            (
                "tls a b",
                "Corefile:3: tls takes three files: certificate, key and authority".to_owned(),
            ),
            (
                "feed /f\nlabels a=b",
                "Corefile:4: labels needs an API server: the agent's feed has no labels".to_owned(),
            ),
            (
                "pods verified\nfeed /f",
                "Corefile:3: pods verified needs an API server: the agent's feed has no pods".to_owned(),
            ),
            (
                "namespaces a\nnamespace_labels b",
                "Corefile:2: namespaces and namespace_labels exclude each other".to_owned(),
            ),
            (
                "namespaces",
                "Corefile:3: namespaces takes at least one namespace".to_owned(),
            ),
            (
                "kubeconfig",
                "Corefile:3: kubeconfig takes a file and, where wanted, a context".to_owned(),
            ),
            (
                "endpoint",
                "Corefile:3: endpoint takes exactly one argument".to_owned(),
            ),
            (
                "ignore services",
                "Corefile:3: ignore takes empty_service, not \"services\"".to_owned(),
            ),
            (
                "noendpoints yes",
                "Corefile:3: noendpoints takes no argument".to_owned(),
            ),
            (
                "startup_timeout soon",
                "Corefile:3: \"soon\" is no duration like 5s, 500ms or 1m30s".to_owned(),
            ),
            ("labels", no_selector("")),
            ("labels =a", no_selector("=a")),
            ("labels a b", no_selector("a b")),
            ("labels a in (b", no_selector("a in (b")),
            ("labels a of (b)", no_selector("a of (b)")),
            ("labels a=b,,c", no_selector("a=b,,c")),
        ];
        for (text, expected) in rows {
            let found = options_in(text, true).err();
            assert_eq!(found, Some(expected), "{text}");
        }
    }
}
