//! Reads a node. Each part is had or not: one that fails stops no other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::with_causes;
use netlink::{Namespace, Recording, sysctl};
use proxy::datapath::iptables;
use serde::Serialize;
use serde_json::{Value, json};

use super::archive::{self, STANDARD};
use super::redact::{redact, redact_value};
use super::{Bundle, FORMAT, Machine, Manifest, PATH, Told, part};
use crate::ask::{Agent, AskError, Bounds};
use crate::cli::BundleArgs;
use crate::config::{Config, Datapath};
use crate::explain::witness::{self, Had};
use crate::explain::{PodHere, Vantage, WithoutAgent};
use crate::explain_cli::{Outlook, vantage};
use crate::findings::{self, Order, Report};
use crate::logs::tell;
use crate::rights::{NotRoot, need_root};

/// Of a log where nobody says since when.
const LOG_BYTES: u64 = 256 << 10;
/// Of a log since some time.
const MOST_LOG_BYTES: u64 = 16 << 20;

/// All that an agent of the largest cluster knows: its objects, and what becomes of them.
const ALL: Bounds = Bounds {
    bytes: 1 << 30,
    time: Duration::from_mins(3),
};

/// Settings that people ask for; those by which routes are chosen are recorded with these.
const SETTINGS: [&str; 15] = [
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-iptables",
    "net/core/somaxconn",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/neigh/default/gc_thresh1",
    "net/ipv4/neigh/default/gc_thresh2",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv4/tcp_congestion_control",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
];

/// What was read so far.
#[derive(Default)]
struct Collection {
    parts: BTreeMap<String, Vec<u8>>,
    missing: BTreeMap<String, String>,
}

impl Collection {
    fn text(&mut self, name: &str, content: Result<String, String>) {
        match content {
            Ok(content) => {
                self.parts.insert(name.to_owned(), redact(&content).into_bytes());
            }
            Err(reason) => self.miss(name, &reason),
        }
    }

    fn json(&mut self, name: &str, content: Result<impl Serialize, String>) {
        let text = content.and_then(|content| {
            // String by string: what is taken out of JSON as a text can break it.
            let value = serde_json::to_value(content).map(redact_value);
            let text = value.and_then(|value| serde_json::to_vec_pretty(&value));
            text.map_err(|error| format!("it cannot be written as JSON: {error}"))
        });
        match text {
            Ok(text) => {
                self.parts.insert(name.to_owned(), text);
            }
            Err(reason) => self.miss(name, &reason),
        }
    }

    fn miss(&mut self, name: &str, reason: &str) {
        self.missing.insert(name.to_owned(), redact(reason));
    }
}

/// What a node's kernel is looked at with.
struct View {
    vantage: Vantage,
    /// Its network namespace, where that is another one.
    namespace: Option<Namespace>,
    /// Where the maps are pinned, as this process sees it.
    pin_dir: Option<PathBuf>,
    /// What of that path the agent does not see.
    root: String,
    /// Whether Services are programmed by iptables.
    is_by_iptables: bool,
    /// The node's pods.
    pods: Vec<PodHere>,
}

/// Writes the bundle that was asked for, and says what is in it. Whether nothing is missing.
///
/// # Errors
/// When there is no configuration of an agent, or no file can be written.
pub fn run(args: &BundleArgs) -> anyhow::Result<bool> {
    let config = args.agent.load()?;
    // What takes seconds is not done for a file that is not replaced.
    let file = args.output.as_deref();
    if let Some(path) = file.filter(|path| *path != Path::new(STANDARD)) {
        archive::may_be_written(path, args.force)?;
    }
    let bundle = collect(&config, args.since)?;
    match args.output.as_deref() {
        Some(path) if path == Path::new(STANDARD) => {
            archive::write_to(&bundle, &mut io::stdout().lock())?;
            tell(summary(&bundle, path));
        }
        path => {
            let path = path.map_or_else(|| file_name(&bundle), Path::to_owned);
            archive::write(&bundle, &path, args.force)?;
            tell(summary(&bundle, &path));
        }
    }
    Ok(bundle.manifest.missing.is_empty())
}

/// Reads the node of the agent with this configuration.
///
/// # Errors
/// When the runtime that asks the agent does not start.
fn collect(config: &Config, since: Option<Duration>) -> anyhow::Result<Bundle> {
    let mut collection = Collection::default();
    let agent = crate::block_on(Agent::connect(&config.state_dir))?;
    let pid = match &agent {
        Ok(agent) => agent.pid(),
        Err(AskError::Silent { pid, .. }) => *pid,
        Err(AskError::Stopped { pid }) => Some(*pid),
        Err(AskError::NotRoot(_) | AskError::Connect { .. } | AskError::Answer { .. }) => None,
    };
    let unheard = agent.as_ref().err().map(ToString::to_string);
    let told: Result<Told, AskError> = match agent {
        Ok(_) => crate::block_on(tell_all(&config.state_dir))?,
        Err(error) => Err(error),
    };
    let version = told.as_ref().ok().map(|told| told.version.clone());
    let reason = told.as_ref().err().map(ToString::to_string);
    let view = match told {
        Ok(told) => {
            let view = view_of(config, &told, pid);
            put_told(&mut collection, told);
            view
        }
        Err(error) => view_without(&mut collection, config, &error),
    };
    let vantage = match view {
        Ok(view) => {
            put_kernel(&mut collection, &view);
            view.vantage
        }
        Err(reason) => {
            for name in [part::NETWORK, part::PROGRAMS, part::SETTINGS] {
                collection.miss(name, &reason);
            }
            Vantage::default()
        }
    };
    if let Some(reason) = reason {
        for name in [part::OBJECTS, part::AGENT, part::STATUS, part::METRICS] {
            collection.miss(name, &reason);
        }
    }
    match unheard {
        // Also an agent that does not tell all of it in time can know what is wrong.
        None => crate::block_on(put_findings(&mut collection, &config.state_dir))?,
        Some(reason) => collection.miss(part::DOCTOR, &reason),
    }
    collection.text(part::LOG, log(pid, since));
    collection.text(part::CONFIG, Ok(config.to_yaml()));
    Ok(bundle(collection, config, version, vantage))
}

async fn tell_all(state_dir: &Path) -> Result<Told, AskError> {
    Agent::connect(state_dir).await?.ask_within(PATH, (), ALL).await
}

fn bundle(collection: Collection, config: &Config, agent: Option<String>, vantage: Vantage) -> Bundle {
    let Collection { parts, missing } = collection;
    let sizes = parts
        .iter()
        .map(|(name, content)| (name.clone(), content.len() as u64));
    Bundle {
        manifest: Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent,
            made: now(),
            node: config.node_name.to_string(),
            machine: machine(),
            vantage,
            parts: sizes.collect(),
            notes: notes(
                &missing,
                need_root("the agent's socket, maps and rules are root's"),
            ),
            missing,
        },
        parts,
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn machine() -> Machine {
    let Ok(names) = nix::sys::utsname::uname() else {
        return Machine::default();
    };
    let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    Machine {
        name: text(names.nodename()),
        kernel: format!("{} {}", text(names.release()), text(names.version())),
        architecture: text(names.machine()),
    }
}

/// Where the agent stands.
fn view_of(config: &Config, told: &Told, pid: Option<i32>) -> Result<View, String> {
    let Some(pid) = pid else {
        return Err(
            "the agent's process cannot be seen from here: run this in its PID namespace, in its container"
                .to_owned(),
        );
    };
    let vantage = vantage::on_process(pid);
    let namespace = (!vantage.network.is_empty()).then(|| Namespace::open(format!("/proc/{pid}/ns/net")));
    let root = vantage.root.clone();
    let pin_dir = told.facts.pin_dir.as_ref();
    Ok(View {
        namespace: namespace.transpose().map_err(|error| with_causes(&error))?,
        pin_dir: pin_dir.map(|path| PathBuf::from(format!("{root}{}", path.display()))),
        root,
        vantage,
        is_by_iptables: config.proxy.datapath == Datapath::Iptables,
        pods: told.facts.pods.clone(),
    })
}

/// The same where it does not tell.
fn view_without(collection: &mut Collection, config: &Config, error: &AskError) -> Result<View, String> {
    let outlook = match Outlook::without_agent(config, error) {
        Ok(outlook) => outlook,
        Err(error) => {
            collection.miss(part::WITHOUT_AGENT, &format!("{error:#}"));
            Outlook::from(WithoutAgent {
                pin_dir: config.proxy.pin_dir.clone(),
                doubt: Some("whether this is the node's network namespace is not known".to_owned()),
                ..WithoutAgent::default()
            })
        }
    };
    let Outlook {
        vantage,
        known,
        namespace,
    } = outlook;
    collection.json(part::WITHOUT_AGENT, Ok(&known));
    Ok(View {
        vantage,
        namespace,
        pin_dir: Some(known.pin_dir),
        pods: known.pods,
        root: String::new(),
        is_by_iptables: config.proxy.datapath == Datapath::Iptables,
    })
}

/// Objects lie apart from what the agent makes of them: they are what people look for.
fn put_told(collection: &mut Collection, told: Told) {
    let Told {
        version: _,
        facts,
        status,
        metrics,
        policies,
    } = told;
    let facts = serde_json::to_value(facts).map_err(|error| error.to_string());
    let objects = facts.clone().map(|mut facts| facts["snapshot"].take());
    collection.json(part::OBJECTS, objects);
    collection.json(
        part::AGENT,
        facts.map(|mut facts| {
            facts["snapshot"] = Value::Null;
            json!({"facts": facts, "networkPolicies": policies})
        }),
    );
    collection.json(part::STATUS, Ok(status));
    collection.text(part::METRICS, Ok(metrics));
}

async fn put_findings(collection: &mut Collection, state_dir: &Path) {
    let order = Order { fix: false };
    let report: Result<Report, _> = crate::ask::ask(state_dir, findings::PATH, order).await;
    collection.json(part::DOCTOR, report.map_err(|error| error.to_string()));
}

fn put_kernel(collection: &mut Collection, view: &View) {
    let look = || {
        let network = Recording::take();
        let links = network.as_ref().map_or(&[][..], |network| &network.links);
        let programs = witness::Programs::take(view.pin_dir.as_deref(), links, &view.pods);
        let iptables = view.is_by_iptables.then(iptables::saved);
        (network, programs, settings(), iptables)
    };
    let seen = match &view.namespace {
        Some(namespace) => namespace.run(look),
        None => Ok(look()),
    };
    let (network, mut programs, settings, iptables) = match seen {
        Ok(seen) => seen,
        Err(error) => {
            for name in [part::NETWORK, part::PROGRAMS, part::SETTINGS] {
                collection.miss(name, &with_causes(&error));
            }
            return;
        }
    };
    collection.json(part::NETWORK, network.map_err(|error| with_causes(&error)));
    collection.json(part::SETTINGS, Ok(settings));
    if let Some(iptables) = iptables {
        collection.text(part::IPTABLES, iptables.map_err(|error| with_causes(&error)));
    }
    if let Had::Read(services) = &mut programs.services
        && let Some(hook) = &mut services.hook
        && let Ok(path) = hook.frontends_pin.strip_prefix(&view.root)
        && !view.root.is_empty()
    {
        hook.frontends_pin = Path::new("/").join(path);
    }
    for (what, missing) in [
        ("services", programs.services.there().err()),
        ("fast path", programs.fast_path.there().err()),
        ("verdicts", programs.missing_verdicts()),
        ("rules of others", programs.others.there().err()),
    ] {
        if let Some(reason) = missing {
            collection.miss(&format!("{}: {what}", part::PROGRAMS), &reason);
        }
    }
    collection.json(part::PROGRAMS, Ok(programs));
}

/// Those that there are.
fn settings() -> BTreeMap<&'static str, String> {
    let read = SETTINGS
        .iter()
        .map(|path| Some((*path, sysctl::read(path).ok()?)));
    read.flatten().collect()
}

/// The end of what a process wrote to its standard error, where that is a file.
fn log(pid: Option<i32>, since: Option<Duration>) -> Result<String, String> {
    let Some(pid) = pid else {
        return Err("no agent's process is seen from here, and so not what it wrote".to_owned());
    };
    let path = PathBuf::from(format!("/proc/{pid}/fd/2"));
    let read = |error: io::Error| format!("read {}: {error}", path.display());
    if !fs::metadata(&path).map_err(read)?.is_file() {
        return Err(
            "the agent writes its log to no file: see kubectl logs, or the journal, of its process"
                .to_owned(),
        );
    }
    let most = if since.is_some() {
        MOST_LOG_BYTES
    } else {
        LOG_BYTES
    };
    let text = tail(File::open(&path).map_err(read)?, most).map_err(read)?;
    Ok(match since {
        Some(since) => lines_since(&text, jiff::Timestamp::now(), since),
        None => text,
    })
}

/// Whole lines at the end.
fn tail(mut file: File, most: u64) -> io::Result<String> {
    let length = file.seek(SeekFrom::End(0))?;
    let skipped = length.saturating_sub(most);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(match text.split_once('\n') {
        Some((_, whole)) if skipped > 0 => whole.to_owned(),
        _ => text.into_owned(),
    })
}

/// Lines have their time in front, or as the field `timestamp`; those without one belong to the line before.
fn lines_since(text: &str, now: jiff::Timestamp, since: Duration) -> String {
    let begin = jiff::SignedDuration::try_from(since).ok();
    let begin = begin.and_then(|since| now.checked_sub(since).ok());
    let is_since = |line: &str| {
        let in_json = line.split_once("\"timestamp\":\"").map(|(_, rest)| rest);
        let time = in_json
            .unwrap_or(line)
            .split(['"', ' '])
            .next()
            .unwrap_or_default();
        let time: jiff::Timestamp = time.parse().ok()?;
        Some(begin.is_none_or(|begin| time >= begin))
    };
    let mut is_told = false;
    let mut told = String::new();
    for line in text.lines() {
        is_told = is_since(line).unwrap_or(is_told);
        if is_told {
            told += line;
            told.push('\n');
        }
    }
    told
}

/// What a bundle is called that nobody named.
fn file_name(bundle: &Bundle) -> PathBuf {
    let time: String = bundle
        .manifest
        .made
        .chars()
        .filter(|character| character.is_ascii_alphanumeric())
        .collect();
    PathBuf::from(format!("causeway-{}-{time}.tar.gz", bundle.manifest.node))
}

/// What was written, and what is missing, for people.
fn summary(bundle: &Bundle, path: &Path) -> String {
    let manifest = &bundle.manifest;
    let bytes: u64 = manifest.parts.values().sum();
    let mut text = format!(
        "{}: {} of {}, {} parts, {} KiB before compression\n",
        path.display(),
        manifest.made,
        manifest.node,
        manifest.parts.len(),
        bytes.div_ceil(1024)
    );
    for (name, reason) in &manifest.missing {
        text += &format!("missing: {name}: {reason}\n");
    }
    for note in &manifest.notes {
        text += &format!("{note}\n");
    }
    text
}

/// What whoever reads it should know of how it was made.
fn notes(missing: &BTreeMap<String, String>, made_by: Result<(), NotRoot>) -> Vec<String> {
    let denied = made_by.err().filter(|_| !missing.is_empty());
    let parts = || missing.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let note = denied.map(|NotRoot(why)| {
        format!(
            "made without root, and without {}: run it as root to have them ({why})",
            parts()
        )
    });
    note.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_lines_since_a_time_are_told_in_both_its_forms() {
        let log = "2026-11-30T10:00:00.000001Z  INFO old\n\
                   2026-11-30T10:09:00.000001Z ERROR panicked\n   at its second line\n\
                   {\"timestamp\":\"2026-11-30T10:10:00Z\",\"level\":\"INFO\"}\n";
        let now = "2026-11-30T10:10:30Z".parse().expect("a time");
        let told = |minutes| lines_since(log, now, Duration::from_mins(minutes));
        assert_eq!(told(20), log);
        let (_, later) = log.split_once('\n').expect("lines");
        assert_eq!(told(2), later);
        assert_eq!(told(1), log.lines().last().expect("lines").to_owned() + "\n");
        assert_eq!(told(0), "");
    }

    #[test]
    fn what_is_missing_without_root_is_noted_with_what_would_have_it() {
        let missing = |names: &[&str]| {
            let names = names.iter().map(|name| ((*name).to_owned(), "denied".to_owned()));
            names.collect::<BTreeMap<_, _>>()
        };
        let user = || Err(NotRoot("the rules are root's".to_owned()));
        let both = missing(&["objects.json", "network.json"]);
        assert_eq!(
            notes(&both, user()),
            [
                "made without root, and without network.json, objects.json: run it as root to have them (the rules are root's)"
            ]
        );
        assert_eq!(notes(&missing(&[]), user()), [""; 0]);
        assert_eq!(notes(&both, Ok(())), [""; 0], "root lacks it for another reason");
    }

    #[test]
    fn the_end_of_a_long_log_begins_with_a_whole_line() {
        let path = std::env::temp_dir().join(format!("cwt-bundle-log-{}", std::process::id()));
        fs::write(&path, "first\nsecond\nthird\n").expect("written");
        let end = |most| tail(File::open(&path).expect("there"), most).expect("read");
        assert_eq!(
            [end(100), end(15), end(6)],
            ["first\nsecond\nthird\n", "second\nthird\n", ""]
        );
        fs::remove_file(&path).expect("it was made");
    }
}
