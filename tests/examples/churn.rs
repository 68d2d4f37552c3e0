//! How soon connections reach a new endpoint, on a node of a large cluster whose endpoints come and go.
//!
//! ```text
//! churn [--datapath ebpf|nftables|iptables] [--services N] [--rate N] [--seconds N]
//!
//! API server ── watch ──► causeway node ──► kernel      an EndpointSlice changes: the only endpoint that serves is
//!                                                       another one now
//! client pod ── fresh connections to the ClusterIP, one every 0.5 ms ──► server pods, which say who they are
//! ```
//! Root; everything is in network namespaces of its own. Needs the agent of the same profile: `cargo build --release -p
//! node`. There are N Services of ten endpoints each. A tenth of them have one that serves and nine that do not, and
//! these take turns in random order: every change is one of the API server's, and none is more than that.
//!
//! What is printed: the time from the moment when the API server has the change until the first connection that the
//! new endpoint answers, over all changes but the first ones; connections that failed meanwhile; the agent's processor
//! time by changes, all else that it does included, and its memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use tests::bpffs::Bpffs;
use tests::ledger::Holdings;
use tests::node::Node;
use tests::probe::now;
use tests::process::{Place, command};
use tests::topology::{Host, pod};
use tests::wait;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const SERVERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 244, 2, 2),
    Ipv4Addr::new(10, 244, 3, 2),
    Ipv4Addr::new(10, 244, 4, 2),
];

/// The Service number 0 is at the first of these, its endpoints, apart from servers, at the first ten of those.
const FIRST_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);

const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
const ENDPOINTS: u32 = 10;

/// Changes that are not counted: what the agent does for the first time.
const FIRST_CHANGES: usize = 20;

/// For the agent to program all Services: chains of iptables take their time.
const START: Duration = Duration::from_secs(600);

/// Later, the last change counts as never programmed.
const LAST: Duration = Duration::from_secs(60);

/// From one connection to the next. After a while that is a hundredth of the time so far: enough to tell how long it
/// takes, and no load that makes it longer.
const BETWEEN_CONNECTIONS: Duration = Duration::from_micros(500);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "client") {
        return client();
    }
    let options = Options::parse(&arguments)?;
    let Options {
        datapath,
        services,
        rate,
        seconds,
    } = &options;
    println!("{datapath}, {services} Services of {ENDPOINTS} endpoints, {rate} changes/s for {seconds} s");
    let node = Node::new("churn")?;
    let bpffs = Bpffs::mount("churn")?;
    let client = pod(node.host(), "client", CLIENT)?;
    let _servers: Vec<_> = SERVERS
        .into_iter()
        .map(|address| server(node.host(), address))
        .collect::<Result<_>>()?;
    for number in 0..*services {
        node.api.put(service(number));
        node.api.put(slice(number, 0));
    }
    let config = node.configure(json!({"proxy": {
        "datapath": datapath, "podNetworks": ["10.244.0.0/16", "10.128.0.0/9"],
        "cgroup": node.cgroup.path(), "pinDir": bpffs.path().join("causeway"),
    }}));
    let started = Instant::now();
    let agent = node.agent(&config);
    wait::until_value(
        "the proxy works",
        START,
        || node.part("proxy"),
        |state| state.as_deref() == Some("working"),
    );
    println!("programmed after {:.1} s", started.elapsed().as_secs_f64());
    let place = Place {
        cgroup: Some(node.cgroup.path().to_owned()),
        ..client.place()
    };
    let mut churn = Churn::start(&node, &place, *services)?;
    let interval = Duration::from_secs(1) / *rate;
    churn.make(FIRST_CHANGES, interval)?;
    let before = Holdings::of(agent.pid())?;
    let waits = churn.make(usize::try_from(rate * seconds)?, interval)?;
    let after = Holdings::of(agent.pid())?;
    print(&waits);
    println!(
        "agent: {:.2} ms of a CPU for each change, VmRSS {:.1} MiB; load of the machine {}",
        (after.cpu_ticks - before.cpu_ticks) as f64 * 10.0 / waits.len() as f64,
        after.resident_kib as f64 / 1024.0,
        std::fs::read_to_string("/proc/loadavg")?.trim(),
    );
    Ok(())
}

struct Options {
    datapath: String,
    services: u32,
    rate: u32,
    seconds: u32,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            datapath: "ebpf".to_owned(),
            services: 10_000,
            rate: 10,
            seconds: 30,
        };
        for pair in arguments.chunks(2) {
            match pair {
                [name, value] if name == "--datapath" => options.datapath.clone_from(value),
                [name, value] if name == "--services" => options.services = value.parse()?,
                [name, value] if name == "--rate" => options.rate = value.parse()?,
                [name, value] if name == "--seconds" => options.seconds = value.parse()?,
                _ => bail!(
                    "usage: churn [--datapath ebpf|nftables|iptables] [--services N] [--rate N] [--seconds N]"
                ),
            }
        }
        ensure!(
            options.services > 0 && options.rate > 0 && options.seconds > 0,
            "nothing to measure"
        );
        Ok(options)
    }
}

fn print(waits: &[Wait]) {
    let mut took: Vec<_> = waits.iter().filter_map(|wait| wait.took).collect();
    took.sort_unstable();
    let millis = |rank: usize| took[rank].as_secs_f64() * 1000.0;
    let percentile = |percent: usize| millis((took.len() * percent).div_ceil(100).max(1) - 1);
    if took.is_empty() {
        println!("the new endpoint was never reached");
        return;
    }
    println!(
        "first connection to the new endpoint: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} changes, {} \
         never reached)",
        percentile(50),
        percentile(90),
        percentile(99),
        millis(took.len() - 1),
        waits.len(),
        waits.len() - took.len(),
    );
    let sum = |count: fn(&Wait) -> usize| waits.iter().map(count).sum::<usize>();
    println!(
        "connections meanwhile: {}, failed {}",
        sum(|wait| wait.connections),
        sum(|wait| wait.failed)
    );
}

/// A pod whose server says the own address to everybody who connects.
fn server(node: &Host, address: Ipv4Addr) -> Result<Host> {
    let label = format!("server-{}", address.octets()[2]);
    let host = pod(node, &label, address)?;
    let listener = host.run(|| TcpListener::bind((address, TARGET_PORT)))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&address.octets()); // the client may be gone
        }
    });
    Ok(host)
}

/// What became of a change.
#[derive(Clone, Copy, Debug, Default)]
struct Wait {
    /// Until the new endpoint answered; nothing when it never did.
    took: Option<Duration>,
    connections: usize,
    failed: usize,
}

/// Changes, and the client that sees what becomes of them.
struct Churn<'a> {
    node: &'a Node,
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Services that take turns, and the number of the server of each.
    turns: Vec<(u32, usize)>,
    next: usize,
}

impl<'a> Churn<'a> {
    fn start(node: &'a Node, place: &Place, services: u32) -> Result<Self> {
        let mut command = command(place, std::env::current_exe()?);
        command.arg("client").stdin(Stdio::piped()).stdout(Stdio::piped());
        let namespace = place.namespace.as_ref().context("a namespace")?;
        let mut client = namespace.run(|| command.spawn())??;
        let mut turns: Vec<_> = (0..services)
            .filter(|number| takes_turns(*number))
            .map(|number| (number, 0))
            .collect();
        turns.shuffle(&mut rand::rng());
        Ok(Self {
            node,
            input: client.stdin.take().context("piped")?,
            output: BufReader::new(client.stdout.take().context("piped")?),
            client,
            turns,
            next: 0,
        })
    }

    /// Makes so many changes, one in each interval whatever became of those before, and waits for the outcome of all.
    fn make(&mut self, count: usize, interval: Duration) -> Result<Vec<Wait>> {
        let mut sent = Vec::with_capacity(count);
        let mut at = Instant::now();
        for change in 0..count {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            at += interval;
            let index = self.next % self.turns.len();
            let (number, server) = &mut self.turns[index];
            *server = (*server + 1) % SERVERS.len();
            let changed = slice(*number, *server);
            // The client connects already when the change is made.
            writeln!(self.input, "{change} {} {}", vip(*number), SERVERS[*server])?;
            sent.push(now());
            self.node.api.put(changed);
            self.next += 1;
        }
        let mut waits = vec![Wait::default(); count];
        for _ in 0..count {
            let mut line = String::new();
            self.output.read_line(&mut line)?;
            let words: Vec<u64> = line
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            let [change, reached, connections, failed] = words[..] else {
                bail!("the client printed {line:?}")
            };
            let change = usize::try_from(change)?;
            waits[change] = Wait {
                took: (reached > 0).then(|| Duration::from_micros(reached.saturating_sub(sent[change]))),
                connections: usize::try_from(connections)?,
                failed: usize::try_from(failed)?,
            };
        }
        Ok(waits)
    }
}

impl Drop for Churn<'_> {
    fn drop(&mut self) {
        let _ = self.client.kill(); // ended already
        let _ = self.client.wait();
    }
}

/// Reads `CHANGE VIP SERVER` and connects until that server answers; prints `CHANGE WHEN CONNECTIONS FAILED`, when in
/// microseconds since 1970, 0 for never.
fn client() -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let mut word = || words.next().with_context(|| format!("not a change: {line:?}"));
        let change: usize = word()?.parse()?;
        let vip = SocketAddr::new(word()?.parse()?, PORT);
        let server: Ipv4Addr = word()?.parse()?;
        std::thread::spawn(move || {
            let (reached, connections, failed) = connect_until(vip, server);
            println!("{change} {reached} {connections} {failed}");
        });
    }
    Ok(())
}

fn connect_until(vip: SocketAddr, server: Ipv4Addr) -> (u64, usize, usize) {
    let (began, mut failed) = (Instant::now(), 0);
    for connection in 1.. {
        let started = Instant::now();
        match ask(vip) {
            Ok(answer) if answer == server => return (now(), connection, failed),
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        let so_far = began.elapsed();
        if so_far > LAST {
            return (0, connection, failed);
        }
        let interval = BETWEEN_CONNECTIONS.max(so_far / 100);
        std::thread::sleep(interval.saturating_sub(started.elapsed()));
    }
    unreachable!("it connects until the time is over")
}

fn ask(vip: SocketAddr) -> std::io::Result<Ipv4Addr> {
    let mut stream = TcpStream::connect_timeout(&vip, Duration::from_secs(1))?;
    // A reset instead of TIME_WAIT: ports must last.
    let reset = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &reset)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut address = [0; 4];
    stream.read_exact(&mut address)?;
    Ok(address.into())
}

/// Whether one endpoint of this Service serves, and that changes.
fn takes_turns(number: u32) -> bool {
    number.is_multiple_of(10)
}

fn vip(number: u32) -> Ipv4Addr {
    (u32::from(FIRST_VIP) + number).into()
}

fn name(number: u32) -> String {
    format!("web-{number:05}")
}

fn service(number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name(number)},
        "spec": {
            "type": "ClusterIP", "clusterIP": vip(number), "clusterIPs": [vip(number)], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT}],
        },
    })
}

fn slice(number: u32, server: usize) -> Value {
    let endpoint = |address: Ipv4Addr, node: &str, ready: bool| {
        let conditions = json!({"ready": ready, "serving": ready, "terminating": false});
        json!({"addresses": [address], "conditions": conditions, "nodeName": node})
    };
    let own = |index: u32| Ipv4Addr::from(u32::from(FIRST_ENDPOINT) + number * ENDPOINTS + index);
    let turns = takes_turns(number);
    let mut endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|index| endpoint(own(index), "node-2", !turns))
        .collect();
    if turns {
        endpoints[0] = endpoint(SERVERS[server], "node-1", true);
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": name(number), "labels": {"kubernetes.io/service-name": name(number)},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
    })
}
