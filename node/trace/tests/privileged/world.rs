//! Two nodes with a pod each, VXLAN between them, and a Service that nftables translates.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::topology::{Host, connect, join_by_vxlan, pod};
use trace::hop::{Hop, HopKind, Protocol};
use trace::part::{Attached, Part, Seen, Within};
use trace::{Filter, Gaps, Names, Session, Story};

/// Long enough for anything that cables do.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 5);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 5);
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 203, 0, 10)), 80);
pub const PORT: u16 = 8080;

/// All of the machine is counted, and worlds have the same addresses: one test at a time has this one.
static TURN: Mutex<()> = Mutex::new(());

/// `p1 - n1 = VXLAN 77 = n2 - p2`.
pub struct World {
    pub p1: Host,
    pub n1: Host,
    pub n2: Host,
    pub p2: Host,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub fn new() -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (n1, n2) = (Host::new("n1")?, Host::new("n2")?);
        connect((&n1, "eth0"), (&n2, "eth0"))?;
        let p1 = pod(&n1, "vethp", CLIENT)?;
        let p2 = pod(&n2, "vethp", SERVER)?;
        let world = Self {
            p1,
            n1,
            n2,
            p2,
            _turn: turn,
        };
        join_by_vxlan(&world.n1, (1, 2), "10.202.0.0/24".parse()?)?;
        join_by_vxlan(&world.n2, (2, 1), "10.201.0.0/24".parse()?)?;
        world.nft(&world.n1, "add table ip svc")?;
        world.nft(
            &world.n1,
            "add chain ip svc pre { type nat hook prerouting priority -100; }",
        )?;
        let rule = format!(
            "add rule ip svc pre ip daddr {} tcp dport {} dnat to {SERVER}:{PORT}",
            SERVICE.ip(),
            SERVICE.port()
        );
        world.nft(&world.n1, &rule)?;
        Ok(world)
    }

    pub fn nft(&self, host: &Host, rule: &str) -> Result<()> {
        let output = host.command("nft", &[rule])?;
        ensure!(output.status.success(), "nft {rule}: {}", output.stderr);
        Ok(())
    }

    /// Answers one TCP connection with what it sends.
    pub fn serve(&self) -> Result<JoinHandle<()>> {
        let listener = self.p2.run(|| TcpListener::bind((SERVER, PORT)))??;
        Ok(std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 5];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(&request).expect("an answer");
        }))
    }

    /// What the namespaces are called here.
    pub fn names(&self) -> Names {
        let of = |host: &Host, name: &str| {
            let inode = trace::places::inode(host.path().as_ref()).expect("a namespace");
            (inode, name.to_owned())
        };
        Names {
            pods: BTreeMap::new(),
            entering: BTreeMap::new(),
            netns: BTreeMap::from([
                of(&self.p1, "p1"),
                of(&self.n1, "n1"),
                of(&self.n2, "n2"),
                of(&self.p2, "p2"),
            ]),
        }
    }

    /// The same as two machines tell it, n1 with p1 and n2 with p2, of which the second began an hour before.
    pub fn as_of_two_machines(&self, story: &Story) -> Option<Story> {
        let names = self.names();
        let steps = story.packets.iter().flat_map(|packet| &packet.hops);
        let mut hops: Vec<Hop> = steps.map(|step| step.hop.clone()).collect();
        hops.sort_by_key(|hop| hop.at_ns);
        let part = |node: &str, own: [&str; 2], ahead: Duration| {
            let own = names
                .netns
                .iter()
                .filter(|(_, name)| own.contains(&name.as_str()));
            let namespaces = own.map(|(inode, _)| *inode).collect();
            let mut within = Within::new(&namespaces);
            let mut hops: Vec<Hop> = hops.iter().filter(|hop| within.has(hop)).cloned().collect();
            for hop in &mut hops {
                hop.at_ns += u64::try_from(ahead.as_nanos()).expect("not that long");
            }
            let filter = Filter {
                sources: vec![CLIENT.into()],
                targets: vec![(SERVICE.ip(), Some(SERVICE.port())), (SERVER.into(), Some(PORT))],
                ..Filter::default()
            };
            let seen = hops.iter().map(|hop| Seen {
                at: names.of_netns(hop.netns),
                entering: None,
                hop: hop.clone(),
            });
            Part {
                node: node.to_owned(),
                hops: seen.collect(),
                story: Some(Story::new(&filter, &hops, &names, Gaps::default())),
                attached: Some(Attached {
                    kernel: node.to_owned(),
                    filter,
                    namespaces,
                    ..Attached::default()
                }),
                missing: None,
            }
        };
        let hour = Duration::from_secs(3600);
        Story::joined(&[
            part("node-1", ["n1", "p1"], Duration::ZERO),
            part("node-2", ["n2", "p2"], hour),
        ])
    }

    /// Follows what `send` does on the client, until the story is as it is waited for.
    pub fn follow(
        &self,
        target: SocketAddr,
        send: impl FnOnce(SocketAddr) + Send,
        is_told: impl Fn(&Story) -> bool,
    ) -> Result<Story> {
        let filter = Filter {
            sources: vec![CLIENT.into()],
            targets: vec![(target.ip(), Some(target.port()))],
            ..Filter::default()
        };
        let mut session = Session::start(&filter, "machine")?;
        println!("attached in {} ms", session.attached_in().as_millis());
        self.p1.run(|| send(target))?;
        let deadline = Instant::now() + DEADLINE;
        let (names, mut hops) = (self.names(), Vec::new());
        loop {
            let hop = session.next_hop(deadline)?;
            let is_over = hop.is_none();
            hops.extend(hop);
            let story = Story::new(&filter, &hops, &names, session.gaps()?);
            if is_told(&story) {
                return Ok(story);
            }
            ensure!(!is_over, "not told in time:\n{}", trace::render::text(&story));
        }
    }
}

/// Connects and gives up soon: a connection that is dropped is tried once.
pub fn knock(target: SocketAddr) {
    let _ = TcpStream::connect_timeout(&target, Duration::from_millis(50)); // it is dropped or refused, that is the test
}

/// Connects, asks, reads the answer.
pub fn ask(target: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&target, DEADLINE).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(b"hello").expect("sent");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"hello");
}

pub fn ip(host: &Host, line: &str) -> Result<()> {
    run(host, "ip", line)
}

pub fn run(host: &Host, program: &str, line: &str) -> Result<()> {
    let output = host.command(program, &line.split(' ').collect::<Vec<_>>())?;
    ensure!(output.status.success(), "{program} {line}: {}", output.stderr);
    Ok(())
}

/// A step in one line, the client's port and VXLAN's source port left out.
pub fn short(at: &str, hop: &Hop) -> String {
    let end = |address: SocketAddr| match address.port() {
        port if port >= 32768 => address.ip().to_string(),
        _ => address.to_string(),
    };
    let flow = |flow: trace::hop::Flow| format!("{}>{}", end(flow.source), end(flow.destination));
    let kind = match &hop.kind {
        HopKind::Sent => "sent".to_owned(),
        HopKind::Received => "received".to_owned(),
        HopKind::Dropped { reason, place } => format!("{reason}@{place}"),
        HopKind::Consumed { .. } => "taken".to_owned(),
    };
    let wrapped = hop.wrapping.map(|wrapping| {
        let (from, to) = (wrapping.flow.source.ip(), wrapping.flow.destination);
        format!(" in {} {from}>{to}", wrapping.vni)
    });
    assert_eq!(hop.header.flow.protocol, Protocol::TCP);
    let line = format!(
        "{at} {} {kind} {}{}",
        hop.device,
        flow(hop.header.flow),
        wrapped.unwrap_or_default()
    );
    line.replace("  ", " ")
}
