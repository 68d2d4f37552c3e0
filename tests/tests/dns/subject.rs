//! The server under test: `causeway dns`, or another one with the same Corefile and the same API server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::process::{Place, Process, command};
use tests::wait;

use crate::message::{answer_text, ask_tcp, ask_udp_from, query};
use crate::{Rule, cluster};

pub const DEADLINE: Duration = Duration::from_secs(20);
/// No answer on the loopback takes longer.
const ANSWER: Duration = Duration::from_secs(5);
/// The kubernetes plugin's default, in seconds.
pub const DEFAULT_TTL: u32 = 5;

/// The command of another server, to which the name of a Corefile is added.
const OTHER: &str = "CAUSEWAY_TEST_DNS";

/// What a Corefile is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config<'c> {
    /// The option that names the API server. None = `endpoint` and its URL.
    pub source: Option<&'c str>,
    /// Options of the kubernetes plugin.
    pub options: &'c str,
    /// Further plugins of the block.
    pub plugins: &'c str,
}

/// A server with a cluster of its own. Processes end before what they stand on goes.
pub struct Subject {
    pub process: Process,
    pub address: SocketAddr,
    pub api: FakeApi,
    pub directory: Directory,
    pub is_ours: bool,
}

impl Subject {
    /// Starts it with the whole cluster, and waits until it knows it.
    pub fn start(options: &str) -> Self {
        Self::with(Config {
            options,
            ..Config::default()
        })
    }

    pub fn with(config: Config<'_>) -> Self {
        let subject = Self::on(cluster::api(), config);
        subject.wait_until("dns-version TXT", "NOERROR TXT 1.1.0");
        subject
    }

    /// Starts it on an API server as that is.
    pub fn on(api: FakeApi, config: Config<'_>) -> Self {
        let directory = Directory::new("dns");
        let other = std::env::var(OTHER).ok();
        let address = free_address();
        let port = address.port();
        let endpoint = format!("endpoint {}", api.url());
        let source = config.source.unwrap_or(&endpoint);
        let state = match other {
            None => format!("state {}", directory.path().display()),
            Some(_) => String::new(),
        };
        let text = format!(
            ".:{port} {{
    bind 127.0.0.1
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        {source}
        {state}
        {}
    }}
    {}
}}
",
            config.options, config.plugins
        );
        let corefile = directory.write("Corefile", &text);
        let process = match &other {
            None => start_ours(&corefile.display().to_string()),
            Some(other) => {
                let mut start = command(&Place::default(), "/bin/sh");
                start.args(["-c", &format!("exec {other} {}", corefile.display())]);
                Process::spawn(&Place::default(), &mut start).expect("it starts")
            }
        };
        let subject = Self {
            process,
            address,
            api,
            directory,
            is_ours: other.is_none(),
        };
        subject.wait_until_it_listens();
        subject
    }

    /// Starts it again with the same Corefile.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = start_ours(&self.corefile());
        self.wait_until_it_listens();
    }

    pub fn corefile(&self) -> String {
        self.directory.path().join("Corefile").display().to_string()
    }

    fn wait_until_it_listens(&self) {
        wait::until("the server listens", DEADLINE, || {
            std::net::TcpStream::connect(self.address).map(drop)
        });
    }

    #[track_caller]
    pub fn wait_until(&self, question: &str, expected: &str) {
        wait::until_value(
            question,
            DEADLINE,
            || self.ask(question, DEFAULT_TTL),
            |found| found == expected,
        );
    }

    /// Over UDP.
    pub fn ask(&self, question: &str, ttl: u32) -> String {
        self.ask_from(Ipv4Addr::UNSPECIFIED.into(), question, ttl)
    }

    /// Over UDP, from an address.
    pub fn ask_from(&self, own: IpAddr, question: &str, ttl: u32) -> String {
        let packet = query(question, Some(4096));
        match ask_udp_from(own, self.address, &packet, ANSWER) {
            Some(answer) => answer_text(&packet, &answer, ttl),
            None => "silence".to_owned(),
        }
    }

    fn ask_by_tcp(&self, question: &str, ttl: u32) -> String {
        let packet = query(question, None);
        answer_text(&packet, &ask_tcp(self.address, &packet), ttl)
    }

    /// Puts every row to it, over UDP and TCP.
    #[track_caller]
    pub fn check(&self, rules: &[Rule]) {
        self.check_ttl(rules, DEFAULT_TTL);
    }

    #[track_caller]
    pub fn check_ttl(&self, rules: &[Rule], ttl: u32) {
        let mut wrong = Vec::new();
        for (rule, rows) in rules {
            for (question, expected) in *rows {
                for (how, found) in [
                    ("UDP", self.ask(question, ttl)),
                    ("TCP", self.ask_by_tcp(question, ttl)),
                ] {
                    if found != *expected {
                        wrong.push(format!(
                            "{rule}\n  {question} by {how}\n    expected {expected}\n    found    {found}"
                        ));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// The same for rows that another server is known to answer otherwise: the rule says why this is right.
    #[track_caller]
    pub fn check_ours(&self, rules: &[Rule]) {
        if self.is_ours {
            self.check(rules);
        } else {
            let names: Vec<&str> = rules.iter().map(|(rule, _)| *rule).collect();
            tests::skipped(&names.join("; "), "CoreDNS answers otherwise");
        }
    }
}

fn start_ours(corefile: &str) -> Process {
    start_causeway(&["dns", "--conf", corefile])
}

/// Starts `causeway`.
pub fn start_causeway(arguments: &[&str]) -> Process {
    let mut start = command(&Place::default(), tests::cluster::programs().join("causeway"));
    start.args(arguments);
    Process::spawn(&Place::default(), &mut start).expect("it starts")
}

/// A port that is free for both transports, and that the kernel gives to no client meanwhile: it is below those of
/// `net.ipv4.ip_local_port_range`.
pub fn free_address() -> SocketAddr {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let of_this_process = u16::try_from(std::process::id() % 100).expect("small") * 100;
    wait::until("a port that is free for UDP and TCP", DEADLINE, || {
        let port = 20_000 + of_this_process + TAKEN.fetch_add(1, Ordering::Relaxed) % 100;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = TcpListener::bind(address)?;
        UdpSocket::bind(address).map(|_| drop(listener))?;
        Ok::<_, std::io::Error>(address)
    })
}
