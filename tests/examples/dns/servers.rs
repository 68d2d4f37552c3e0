//! The servers that are compared, each at a port of its own, with the same names.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::cluster::program;
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tests::ledger::Holdings;
use tests::process::{Process, command, installed};
use tests::topology::Host;
use tests::{skipped, wait};

use crate::load::ask;
use crate::objects;
use crate::upstream::Upstream;

const OURS: SocketAddr = at(5301);
const UNBOUND: SocketAddr = at(5302);
const KNOT: SocketAddr = at(5303);
const UPSTREAM: SocketAddr = at(5300);

/// For a server to know all of its names.
const START: Duration = Duration::from_secs(120);

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Where everything runs. Processes end before what they stand on goes.
pub struct Bench {
    pub api: FakeApi,
    pub upstream: Upstream,
    pub directory: Directory,
    pub host: Host,
}

/// A server that runs.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    pub process: Process,
}

impl Bench {
    /// With an API server that has so many Services.
    pub fn new(services: u32, endpoints: u32) -> Result<Self> {
        let host = Host::new("dns")?;
        let api = FakeApi::start_on(host.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
        objects::fill(&api, services, endpoints);
        Ok(Self {
            api,
            upstream: Upstream::start(&host, UPSTREAM)?,
            directory: Directory::new("dns"),
            host,
        })
    }

    fn start(&self, name: &'static str, command: &mut Command, address: SocketAddr) -> Result<Server> {
        let server = Server {
            name,
            address,
            process: Process::spawn(&self.host.place(), command)?,
        };
        let first = objects::name(0);
        wait::until(&format!("{name} knows {first}"), START, || {
            match ask(&self.host, address, &first) {
                Some(found) if found == objects::address(0) => Ok(()),
                other => Err((other, server.process.output())),
            }
        });
        Ok(server)
    }

    /// Ours, with kubeadm's Corefile, whose cache keeps what it has, and `more` plugins.
    pub fn ours(&self, more: &str) -> Result<Server> {
        let corefile = self.write_corefile(more);
        let mut dns = command(&self.host.place(), program("causeway"));
        dns.args(["dns", "--conf"]).arg(corefile);
        self.start("causeway", &mut dns, OURS)
    }

    /// Writes the Corefile of [`Bench::ours`].
    pub fn write_corefile(&self, more: &str) -> std::path::PathBuf {
        let corefile = format!(
            ".:{port} {{
    bind 127.0.0.1
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint {api}
        state {state}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus 127.0.0.1:9153
    forward . {upstream} {{
        max_concurrent 1000
    }}
    cache 3600
    loop
    reload 2s 1s
    loadbalance
    {more}
}}
",
            port = OURS.port(),
            api = self.api.url(),
            state = self.directory.path().display(),
            upstream = self.upstream.address,
        );
        self.directory.write("Corefile", &corefile)
    }

    /// Debian's unbound with the Services' names as local data, and the same upstream. None = it is not there.
    pub fn unbound(&self, services: u32) -> Result<Option<Server>> {
        let Some(unbound) = peer("unbound") else {
            return Ok(None);
        };
        let mut conf = format!(
            "server:
    directory: \"{directory}\"
    chroot: \"\"
    username: \"\"
    pidfile: \"\"
    use-syslog: no
    interface: {address}
    num-threads: 2
    so-reuseport: yes
    module-config: \"iterator\"
    do-not-query-localhost: no
    do-ip6: no
    local-zone: \"cluster.local.\" static
",
            directory = self.directory.path().display(),
            address = unbound_style(UNBOUND),
        );
        for number in 0..services {
            let (name, address) = (objects::name(number), objects::address(number));
            writeln!(conf, "    local-data: \"{name}. 30 IN A {address}\"")?;
        }
        write!(
            conf,
            "remote-control:\n    control-enable: no\nforward-zone:\n    name: \".\"\n    forward-addr: {}\n",
            unbound_style(self.upstream.address)
        )?;
        let conf = self.directory.write("unbound.conf", &conf);
        let mut unbound = command(&self.host.place(), unbound);
        self.start("unbound", unbound.args(["-d", "-p", "-c"]).arg(conf), UNBOUND)
            .map(Some)
    }

    /// Debian's knot with the zone as a file. None = it is not there.
    pub fn knot(&self, services: u32) -> Result<Option<Server>> {
        let Some(knot) = peer("knotd") else {
            return Ok(None);
        };
        let mut zone =
            "$ORIGIN cluster.local.\n$TTL 30\n@ SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ NS ns.dns\n\
                        ns.dns A 10.96.0.10\n"
                .to_owned();
        for number in 0..services {
            writeln!(zone, "{}. A {}", objects::name(number), objects::address(number))?;
        }
        let _ = self.directory.write("cluster.local.zone", &zone);
        let conf = knot_conf(self.directory.path());
        let conf = self.directory.write("knot.conf", &conf);
        let mut knot = command(&self.host.place(), knot);
        self.start("knot", knot.arg("-c").arg(conf), KNOT).map(Some)
    }
}

fn knot_conf(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "server:
    rundir: \"{directory}\"
    listen: {address}
    udp-workers: 2
    tcp-workers: 1
    background-workers: 1
database:
    storage: \"{directory}\"
log:
  - target: stderr
    any: error
zone:
  - domain: cluster.local
    storage: \"{directory}\"
    file: cluster.local.zone
    zonefile-sync: -1
    journal-content: none
",
        address = unbound_style(KNOT),
    )
}

/// `ADDRESS@PORT`, as both peers write it.
fn unbound_style(address: SocketAddr) -> String {
    format!("{}@{}", address.ip(), address.port())
}

fn peer(name: &str) -> Option<std::path::PathBuf> {
    let found = installed(name);
    if found.is_none() {
        skipped(name, "it is not installed: ./setup.sh bench");
    }
    found
}

impl Server {
    pub fn holdings(&self) -> Result<Holdings> {
        Holdings::of(self.process.pid()).with_context(|| format!("{} runs", self.name))
    }
}
