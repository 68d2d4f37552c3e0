//! `causeway capture` on a machine: real packets between namespaces, through VXLAN, and what is in the file.

mod privileged {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use tests::cluster::program;
    use tests::directory::Directory;
    use tests::pcapng::{self, Contents, Packet};
    use tests::process::{self, Output, Place, Process, installed};
    use tests::topology::{Host, connect, join_by_vxlan, pod};
    use tests::traced::bare_way_out;
    use tests::wait;

    const SOON: Duration = Duration::from_secs(20);
    const PORT: u16 = 8080;
    /// Of an Ethernet header.
    const ETHERNET: usize = 14;
    /// Ethernet, IPv4, UDP and VXLAN.
    const WRAPPING: usize = 14 + 20 + 8 + 8;

    /// `client - node 1 = VXLAN = node 2 - server`. Each test has addresses of its own: all of the machine is looked at.
    struct World {
        from: Ipv4Addr,
        to: Ipv4Addr,
        client: Host,
        n1: Host,
        n2: Host,
        server: Host,
        directory: Directory,
    }

    impl World {
        fn new(number: u8) -> Self {
            let from = Ipv4Addr::new(10, 213, number, 5);
            let to = Ipv4Addr::new(10, 214, number, 5);
            let network = |[a, b, c, _]: [u8; 4]| format!("{a}.{b}.{c}.0/24").parse().expect("a network");
            let (n1, n2) = (Host::new("n1").expect("a node"), Host::new("n2").expect("a node"));
            connect((&n1, "eth0"), (&n2, "eth0")).expect("a cable");
            let client = pod(&n1, "client", from).expect("a pod");
            let server = pod(&n2, "server", to).expect("a pod");
            join_by_vxlan(&n1, (1, 2), network(to.octets())).expect("a tunnel");
            join_by_vxlan(&n2, (2, 1), network(from.octets())).expect("a tunnel");
            Self {
                from,
                to,
                client,
                n1,
                n2,
                server,
                directory: Directory::new("captured"),
            }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("packets.pcapng")
        }

        /// Captures from here on.
        fn capture(&self, arguments: &[&str]) -> Process {
            let mut command = Command::new(program("causeway"));
            command.arg("capture").args(arguments).arg("-w").arg(self.file());
            let mut capture = Process::spawn(&Place::default(), &mut command).expect("started");
            capture.await_line("capturing at ", SOON);
            capture
        }

        /// What was captured until now.
        fn finish(&self, mut capture: Process, code: i32) -> Contents {
            signal(&capture, Signal::SIGINT);
            let status = capture.await_end(SOON);
            assert_eq!(status.code(), Some(code), "{}", capture.output());
            self.read()
        }

        fn read(&self) -> Contents {
            pcapng::read(&std::fs::read(self.file()).expect("the file"))
        }

        /// The devices, in the order in which a packet of the client meets them.
        fn places(&self) -> Vec<String> {
            let (n1, n2) = (self.n1.name(), self.n2.name());
            let (client, server) = (self.client.name(), self.server.name());
            vec![
                format!("{n1}/{client}/eth0"),
                format!("{n1}/client"),
                format!("{n1}/vx"),
                format!("{n1}/eth0"),
                format!("{n2}/eth0"),
                format!("{n2}/vx"),
                format!("{n2}/server"),
                format!("{n2}/{server}/eth0"),
            ]
        }

        /// Answers one connection.
        fn exchange(&self) {
            let listener = self.server.run(|| TcpListener::bind((self.to, PORT)));
            let listener = listener.expect("entered").expect("bound");
            let answering = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 5];
                stream.read_exact(&mut request).expect("a request");
                stream.write_all(&request).expect("an answer");
            });
            let asking = self.client.run(|| {
                let server = SocketAddr::from((self.to, PORT));
                let mut stream = TcpStream::connect_timeout(&server, SOON).expect("connected");
                stream.set_read_timeout(Some(SOON)).expect("a timeout");
                stream.write_all(b"hello").expect("sent");
                let mut answer = [0; 5];
                stream.read_exact(&mut answer).expect("an answer");
            });
            asking.expect("entered");
            answering.join().expect("served");
        }
    }

    fn signal(process: &Process, signal: Signal) {
        let pid = i32::try_from(process.pid()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    fn causeway(arguments: &[&str]) -> Output {
        let mut command = Command::new(program("causeway"));
        process::run_in(&Place::default(), command.arg("capture").args(arguments), b"").expect("started")
    }

    /// Sender, receiver, ports, sequence number and flags of a TCP segment, also of one within VXLAN.
    fn segment(packet: &Packet) -> (Ipv4Addr, Ipv4Addr, [u8; 4], [u8; 4], u8) {
        let is_wrapped = packet.bytes[ETHERNET + 9] == 17;
        let ip = if is_wrapped { WRAPPING + ETHERNET } else { ETHERNET };
        let four = |at: usize| -> [u8; 4] { packet.bytes[ip + at..ip + at + 4].try_into().expect("four") };
        assert_eq!(packet.bytes[ip], 0x45, "IPv4 without options: {packet:?}");
        assert_eq!(packet.bytes[ip + 9], 6, "TCP: {packet:?}");
        (
            four(12).into(),
            four(16).into(),
            four(20),
            four(24),
            packet.bytes[ip + 33],
        )
    }

    #[test]
    fn a_packet_is_in_the_file_once_for_each_device_that_it_passes() {
        if !tests::privileged("causeway capture writes a packet of each device") {
            return;
        }
        let world = World::new(1);
        let server = world.to;
        let (client, to) = (world.from.to_string(), format!("{server}:{PORT}/tcp"));
        let capture = world.capture(&[&client, "--to", &to]);
        world.exchange();
        wait::until_value("its end at each device", SOON, || so_far(&world), has_ended);
        let contents = world.finish(capture, 0);
        let mut places = world.places();
        let mut names = contents.names();
        // The server's devices are found from its own on.
        places[4..].sort();
        names[4..].sort();
        assert_eq!(names, places);
        assert!(
            contents
                .interfaces
                .iter()
                .all(|(link, kept, _)| (*link, *kept) == (1, 128))
        );
        const SYN: u8 = 2;
        let syns: Vec<&Packet> = contents
            .packets
            .iter()
            .filter(|packet| segment(packet).4 == SYN)
            .collect();
        let first = segment(syns.first().expect("a SYN"));
        assert_eq!((first.0, first.1), (world.from, world.to));
        assert!(syns.iter().all(|packet| segment(packet) == first), "{syns:?}");
        let names = contents.names();
        let at: Vec<&str> = syns
            .iter()
            .map(|packet| names[packet.interface as usize].as_str())
            .collect();
        assert_eq!(at, world.places());
        let wrapped: Vec<bool> = syns
            .iter()
            .map(|packet| packet.bytes[ETHERNET + 9] == 17)
            .collect();
        assert_eq!(wrapped, [false, false, false, true, true, false, false, false]);
        let directions: Vec<Option<u32>> = syns.iter().map(|packet| packet.flags).collect();
        let (came, left) = (Some(1), Some(2));
        assert_eq!(directions, [left, came, left, left, came, came, left, came]);
        assert!(syns.is_sorted_by_key(|packet| packet.at), "{syns:?}");
        // The first of each says where it is.
        let comments = contents
            .packets
            .iter()
            .filter(|packet| packet.comment.is_some())
            .count();
        assert_eq!(comments, names.len());
        let comment = syns[2].comment.as_deref();
        assert_eq!(
            comment,
            Some(format!("{}: a VXLAN tunnel, vni 77", world.places()[2]).as_str())
        );
        // Each device had each packet, and the kernel room for all of them.
        let each = contents.packets.len() / names.len();
        let mut statistics = contents.statistics.clone();
        statistics.sort_unstable();
        let expected: Vec<(u32, u64, u64)> = (0..8).map(|number| (number, each as u64, 0)).collect();
        assert_eq!(statistics, expected);
        reads_in_tcpdump(&world, contents.packets.len());
    }

    /// Other programs read the file, too.
    fn reads_in_tcpdump(world: &World, packets: usize) {
        let Some(tcpdump) = installed("tcpdump") else {
            tests::skipped("tcpdump reads the file", "it is not installed");
            return;
        };
        let mut command = Command::new(tcpdump);
        command.args(["-n", "-r"]).arg(world.file());
        let output = process::run_in(&Place::default(), &mut command, b"").expect("started");
        assert!(output.status.success(), "{output:?}");
        // What is in a tunnel has a line of its own, without a time.
        let lines = output.stdout.lines();
        let lines = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
        assert_eq!(lines.count(), packets, "{output:?}");
    }

    /// What a capture of an exchange prints on both streams, but for the line by which it begins. It ends by itself.
    fn printed(world: &World, arguments: &[&str]) -> (Vec<u8>, String) {
        let mut command = Command::new(program("causeway"));
        command.arg("capture").args(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("read");
        assert!(line.starts_with("capturing at "), "{line}");
        world.exchange();
        let (mut output, mut rest) = (Vec::new(), String::new());
        child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_end(&mut output)
            .expect("read");
        said.read_to_string(&mut rest).expect("read");
        assert_eq!(child.wait().expect("ended").code(), Some(0), "{rest}");
        (output, rest)
    }

    #[test]
    fn a_capture_goes_through_a_pipe_and_ends_when_there_are_enough() {
        if !tests::privileged("causeway capture into a pipe") {
            return;
        }
        let world = World::new(2);
        let server = world.to;
        let (client, to) = (world.from.to_string(), format!("{server}:{PORT}"));
        let (file, said) = printed(&world, &[&client, "--to", &to, "--count", "8", "-w", "-"]);
        assert_eq!(pcapng::read(&file).packets.len(), 8);
        // A line for each device.
        assert_eq!(said.lines().count(), 8, "{said}");
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_fault() {
        if !tests::privileged("causeway capture without its reader") {
            return;
        }
        let world = World::new(3);
        let mut command = Command::new(program("causeway"));
        command.args(["capture", &world.from.to_string(), "-w", "-", "--for", "30s"]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut begin = [0; 4];
        let mut reader = child.stdout.take().expect("a pipe");
        reader.read_exact(&mut begin).expect("the first block");
        drop(reader);
        let ended = || {
            world.exchange();
            child.try_wait().expect("a child").map(|status| status.code())
        };
        let code = wait::until_value("its end", SOON, ended, Option::is_some);
        assert_eq!(code, Some(Some(0)));
    }

    #[test]
    fn what_the_kernel_drops_is_in_the_file_with_its_reason() {
        if !tests::privileged("causeway capture --drops") {
            return;
        }
        let world = World::new(4);
        for rule in [
            "add table ip guard",
            "add chain ip guard passing { type filter hook forward priority 0; }",
            "add rule ip guard passing udp dport 5353 drop",
        ] {
            let output = world.n2.command("nft", &[rule]).expect("run");
            assert!(output.status.success(), "{output:?}");
        }
        let server = world.to;
        let (client, to) = (world.from.to_string(), format!("{server}:5353/udp"));
        let capture = world.capture(&[&client, "--to", &to, "--drops"]);
        let sent = world.client.run(|| {
            let socket = UdpSocket::bind((world.from, 0)).expect("bound");
            socket.send_to(b"to be dropped", (world.to, 5353)).expect("sent");
        });
        sent.expect("entered");
        let is_told = |contents: &Contents| {
            let drops = contents.interfaces.len().saturating_sub(1);
            let (dropped, passed): (Vec<&Packet>, Vec<&Packet>) = contents
                .packets
                .iter()
                .partition(|packet| packet.interface as usize == drops);
            (passed.len(), dropped.len()) == (6, 1)
        };
        wait::until_value("the drop", SOON, || so_far(&world), is_told);
        let contents = world.finish(capture, 0);
        let names = contents.names();
        assert_eq!(names.last().map(String::as_str), Some("drops"));
        let dropped = contents
            .packets
            .iter()
            .find(|packet| packet.interface as usize == names.len() - 1);
        let dropped = dropped.expect("a drop");
        let comment = dropped.comment.as_deref().expect("a reason");
        let expected = format!(
            "DROPPED at {} vx: NETFILTER_DROP in nft_do_chain (a rule of nftables or iptables dropped it): {client}:",
            world.n2.name()
        );
        assert!(comment.starts_with(&expected), "{comment}");
        assert!(comment.ends_with(&format!(" -> {server}:5353  udp")), "{comment}");
        assert!(dropped.bytes.ends_with(b"to be dropped"), "{dropped:?}");
        assert_eq!(
            dropped.length as usize,
            ETHERNET + 20 + 8 + b"to be dropped".len()
        );
    }

    /// What is in the file so far, but for what is half written.
    fn so_far(world: &World) -> Contents {
        let file = std::fs::read(world.file()).expect("the file");
        let mut whole = 0;
        while let Some(length) = file.get(whole + 4..whole + 8) {
            let length = u32::from_le_bytes(length.try_into().expect("four")) as usize;
            if whole + length > file.len() {
                break;
            }
            whole += length;
        }
        pcapng::read(&file[..whole])
    }

    /// Each device had both ends of the connection end, and what was said to that.
    fn has_ended(contents: &Contents) -> bool {
        const FIN: u8 = 1;
        (0..8).all(|interface| {
            let packets = contents
                .packets
                .iter()
                .filter(|packet| packet.interface == interface);
            let ends: Vec<bool> = packets.map(|packet| segment(packet).4 & FIN != 0).collect();
            ends.iter().filter(|end| **end).count() == 2 && ends.last() == Some(&false)
        })
    }

    #[test]
    fn a_device_without_a_link_layer_has_its_packets_as_they_are() {
        if !tests::privileged("causeway capture at a tun device") {
            return;
        }
        let world = World::new(8);
        let _way_out = bare_way_out(&world.n1, "tun0", "172.30.213.0/24");
        let outside = Ipv4Addr::new(172, 30, 213, 9);
        let (client, to) = (world.from.to_string(), format!("{outside}:4242/udp"));
        let capture = world.capture(&[&client, "--to", &to]);
        let sent = world.client.run(|| {
            let socket = UdpSocket::bind((world.from, 40000)).expect("bound");
            socket.send_to(b"out of here", (outside, 4242)).expect("sent");
        });
        sent.expect("entered");
        let device = format!("{}/tun0", world.n1.name());
        let there = |contents: &Contents| {
            let at = contents.names().iter().position(|name| *name == device);
            let at = at.expect("the device");
            let mut packets = contents.packets.iter();
            packets
                .find(|packet| packet.interface as usize == at)
                .map(|packet| (contents.interfaces[at].0, packet.clone()))
        };
        wait::until_value("the packet", SOON, || there(&so_far(&world)), Option::is_some);
        let contents = world.finish(capture, 0);
        // LINKTYPE_RAW; the others are Ethernet's.
        let (link_type, packet) = there(&contents).expect("the packet");
        assert_eq!(link_type, 101);
        assert!(contents.interfaces.iter().filter(|(link, ..)| *link != 1).count() == 1);
        assert_eq!(
            (packet.bytes[0], packet.length),
            (0x45, 20 + 8 + 11),
            "{packet:?}"
        );
        assert_eq!(packet.bytes[16..20], outside.octets());
        // A line tells what is in it.
        let mut command = Command::new(program("causeway"));
        command.args(["capture", &client, "--to", &to, "--count", "3"]);
        let mut printing = Process::spawn(&Place::default(), &mut command).expect("started");
        printing.await_line("capturing at ", SOON);
        let sent = world.client.run(|| {
            let socket = UdpSocket::bind((world.from, 40000)).expect("bound");
            socket.send_to(b"out of here", (outside, 4242)).expect("sent");
        });
        sent.expect("entered");
        assert_eq!(printing.await_end(SOON).code(), Some(0), "{}", printing.output());
        let line = format!("{device}  out  {client}:40000 -> {outside}:4242  udp, 39 bytes");
        assert!(printing.output().contains(&line), "{}", printing.output());
    }

    #[test]
    fn packets_that_found_no_room_are_told() {
        if !tests::privileged("causeway capture tells what it missed") {
            return;
        }
        let world = World::new(5);
        let client = world.from.to_string();
        let capture = world.capture(&[&client, "--to", &format!("{}:9/udp", world.to)]);
        signal(&capture, Signal::SIGSTOP);
        let sent = world.client.run(|| {
            let socket = UdpSocket::bind((world.from, 0)).expect("bound");
            for _ in 0..40_000 {
                // Refused: nobody listens.
                let _ = socket.send_to(&[0; 1000], (world.to, 9));
            }
        });
        sent.expect("entered");
        signal(&capture, Signal::SIGCONT);
        signal(&capture, Signal::SIGINT);
        let mut capture = capture;
        let status = capture.await_end(SOON);
        let said = capture.output();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(" more found no room: INCOMPLETE"), "{said}");
        let contents = world.read();
        let (_, received, dropped) = contents.statistics[0];
        let kept = contents
            .packets
            .iter()
            .filter(|packet| packet.interface == 0)
            .count();
        assert!(dropped > 0, "{:?}", contents.statistics);
        assert_eq!(received - dropped, kept as u64);
        assert!(
            contents.packets.iter().all(|packet| packet.bytes.len() == 128),
            "cut to the snap length"
        );
        assert!(
            contents.packets.iter().any(|packet| packet.length == 1042),
            "with the length that it had"
        );
    }

    #[test]
    fn lines_tell_packets_where_no_file_is_asked_for() {
        if !tests::privileged("causeway capture prints lines") {
            return;
        }
        let world = World::new(6);
        let server = world.to;
        let (client, to) = (world.from.to_string(), format!("{server}:{PORT}"));
        let print = |form: &str| {
            let (output, _) = printed(&world, &[&client, "--to", &to, "--count", "4", "-o", form]);
            String::from_utf8(output).expect("UTF-8")
        };
        let places = world.places();
        let text = print("text");
        let line = text
            .lines()
            .find(|line| line.contains(&format!("  {}  out  ", places[3])));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        assert!(
            line.contains(&format!(
                " -> {server}:{PORT}  tcp SYN, 60 bytes  in VXLAN 192.168.77.1:"
            )),
            "{line}"
        );
        let json = print("json");
        let line = json
            .lines()
            .find(|line| line.starts_with('{'))
            .unwrap_or_else(|| panic!("{json}"));
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&line["interface"], &line["direction"], &line["headers"]["flags"]),
            (&places[0].as_str().into(), &"out".into(), &"SYN".into())
        );
    }

    #[test]
    fn what_cannot_be_captured_is_told() {
        if !tests::privileged("causeway capture's refusals") {
            return;
        }
        let world = World::new(7);
        let client = world.from.to_string();
        let rows: [(&[&str], &str); 9] = [
            (
                &["10.213.9.9"],
                "error: no device of this machine has an address of 10.213.9.9",
            ),
            (&["any"], "error: any: an end has to be somebody"),
            (&[&client, "--to", "any"], "error: any: an end has to be somebody"),
            (
                &["10.213.0.5:80", "--to", "10.214.0.5"],
                "error: 10.213.0.5:80: with --to, port and protocol stand behind the other end",
            ),
            (
                &[&client, "--snaplen", "10"],
                "error: --snaplen 10: a packet's headers need 64 bytes",
            ),
            (&[&client, "--count", "0"], "invalid value '0' for '--count"),
            (&[&client, "--for", "soon"], "soon is no time"),
            (&["pod/nobody"], "default/nobody"),
            (
                &[&client, "-w", "/nonexistent/file"],
                "error: write /nonexistent/file: No such file",
            ),
        ];
        for (arguments, words) in rows {
            causeway(arguments).assert_said(2, &[words]);
        }
        drop(world);
    }
}
