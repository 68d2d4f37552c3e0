//! Session affinity by rules alone: a map that packets fill, against the kernel and with real packets.

mod place;

mod privileged {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::num::NonZeroU32;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::time::{Duration, Instant};

    use netlink::nft::rule::{DynamicElement, KeyField, Register};
    use netlink::nft::{
        BaseChain, Batch, Chain, Contents, DataType, Element, ElementData, Family, Layout, Monitor, Nft,
        Repair, Rule, Set, SetKind, Table,
    };
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use crate::place::{add_address, in_namespace, run};

    const LONG: Duration = Duration::from_secs(600);
    const DEADLINE: Duration = Duration::from_secs(10);
    const SERVICE: u32 = 7;
    const LIST: u32 = 1;
    const PORT: u16 = 80;
    const FIRST_SLOT: u32 = 10;

    /// A service with three endpoints and two clients, all on one machine.
    struct Lab {
        family: Family,
        nft: Nft,
        servers: Vec<UdpSocket>,
        timeout: Duration,
        limit: u32,
        /// A port that is used twice would be translated as tracking remembers it, whatever the rules say.
        next_port: AtomicU16,
    }

    impl Lab {
        fn new(family: Family, timeout: Duration, limit: u32) -> Self {
            run("ip link set lo up");
            let mut lab = Self {
                family,
                nft: Nft::open().expect("a socket"),
                servers: Vec::new(),
                timeout,
                limit,
                next_port: AtomicU16::new(20_000),
            };
            let host = match family {
                Family::Ip => 32,
                Family::Ip6 => 128,
            };
            let endpoints = (1..=3).map(|number| lab.address(2, number));
            let clients = (1..=2).map(|number| lab.address(1, number));
            for address in clients.chain(endpoints.clone()) {
                add_address(&format!("{address}/{host}"), "lo");
            }
            run(&format!("ip route add {}/{host} dev lo", lab.address(0, 1)));
            lab.servers = endpoints
                .map(|address| UdpSocket::bind((address, 8080)).expect("a free port"))
                .collect();
            lab
        }

        fn address(&self, group: u8, number: u8) -> IpAddr {
            let text = match self.family {
                Family::Ip => format!("10.9.{group}.{number}"),
                Family::Ip6 => format!("fd00:9::{group}:{number}"),
            };
            text.parse().expect("an address")
        }

        fn table(&self) -> Table {
            Table::new(self.family, "cwt")
        }

        /// Registers: client, service, list, endpoint; one behind the other.
        fn registers(&self) -> [Register; 4] {
            let service = Register::FIRST.after(self.family.address());
            [Register::FIRST, service, service.skip(1), service.skip(2)]
        }

        fn layout(&self, endpoints: usize) -> Layout {
            use DataType::{InetProto, InetService, Mark};
            let address = self.family.address();
            let limit = NonZeroU32::new(self.limit).expect("a limit");
            let mut layout = Layout::new(self.table());
            layout
                .add_set(Set::new(
                    "services",
                    &[address, InetProto, InetService],
                    SetKind::Map(vec![Mark, Mark]),
                ))
                .add_set(Set::new(
                    "endpoints",
                    &[Mark, Mark],
                    SetKind::Map(vec![Mark, address, InetService]),
                ))
                .add_set(Set::new(
                    "eligible",
                    &[Mark, Mark, address, InetService],
                    SetKind::Set,
                ))
                .add_set(
                    Set::new(
                        "affinity",
                        &[address, Mark],
                        SetKind::Map(vec![Mark, address, InetService]),
                    )
                    .with_contents(Contents::ByPackets { limit }),
                );
            layout.add_chain(
                Chain::base("output", BaseChain::OUTPUT_NAT),
                self.rules(endpoints),
            );
            layout
        }

        /// The rules that the documentation of `nft::rule` describes.
        fn rules(&self, endpoints: usize) -> [Rule; 3] {
            let [client, service, list, endpoint] = self.registers();
            let to = [
                KeyField::DestinationAddress(self.family),
                KeyField::Protocol,
                KeyField::DestinationPort,
            ];
            let remembered = || DynamicElement {
                set: "affinity".into(),
                key: client,
                data: Some(list),
                timeout: Some(self.timeout),
            };
            let begin = |comment| {
                Rule::new(comment)
                    .load(KeyField::Number(0), service)
                    .load_all(&to, endpoint)
                    .value_from("services", endpoint, service.back(1))
                    .load(KeyField::SourceAddress(self.family), client)
            };
            let pick = KeyField::Random {
                modulus: u32::try_from(endpoints).expect("small"),
                offset: FIRST_SLOT,
            };
            let pick = |rule: Rule| {
                rule.load(pick, list)
                    .value_from("endpoints", service, list)
                    .load(KeyField::Number(LIST), list)
            };
            [
                begin("the endpoint that the client had")
                    .value_from("affinity", client, list)
                    .load(KeyField::Number(LIST), list)
                    .found_in("eligible", service)
                    .update_element(remembered())
                    .destination_nat(self.family, endpoint),
                pick(begin("another"))
                    .delete_element(remembered())
                    .update_element(remembered())
                    .destination_nat(self.family, endpoint),
                pick(begin("no memory left")).destination_nat(self.family, endpoint),
            ]
        }

        /// Makes these endpoints the ones that are picked from, and these the ones that clients may stay with.
        fn serve(&mut self, picked: &[usize], eligible: &[usize]) {
            self.nft.ensure(&self.layout(picked.len())).expect("written");
            let mut batch = Batch::new(&self.table());
            for set in ["services", "endpoints", "eligible"] {
                let old = self.nft.elements(&self.table(), set).expect("listed");
                batch.delete_elements(set, &old);
            }
            let value = |bytes| ElementData::Value(bytes);
            let number = [[0; 4], SERVICE.to_ne_bytes()].concat();
            let service = Element::new(self.service_key(), value(number));
            batch.add_elements("services", &[service]);
            let service = SERVICE.to_ne_bytes();
            let slots = (FIRST_SLOT..).zip(picked).map(|(slot, endpoint)| {
                let key = [service, slot.to_ne_bytes()].concat();
                Element::new(key, value(self.endpoint_data(*endpoint)))
            });
            batch.add_elements("endpoints", &slots.collect::<Vec<_>>());
            let eligible = eligible.iter().map(|endpoint| {
                let key = [service.as_slice(), &self.endpoint_data(*endpoint)].concat();
                Element::new(key, ElementData::None)
            });
            batch.add_elements("eligible", &eligible.collect::<Vec<_>>());
            self.nft.commit(&batch).expect("elements");
        }

        fn service_key(&self) -> Vec<u8> {
            let mut key = octets(self.address(0, 1));
            key.extend([17, 0, 0, 0, 0, 80, 0, 0]);
            key
        }

        /// `list address port`
        fn endpoint_data(&self, endpoint: usize) -> Vec<u8> {
            let address = self.servers[endpoint].local_addr().expect("bound");
            let [high, low] = address.port().to_be_bytes();
            [
                LIST.to_ne_bytes().as_slice(),
                &octets(address.ip()),
                &[high, low, 0, 0],
            ]
            .concat()
        }

        fn remembered(&self, client: u8, endpoint: usize) -> Element {
            let mut key = octets(self.address(1, client));
            key.extend(SERVICE.to_ne_bytes());
            Element::new(key, ElementData::Value(self.endpoint_data(endpoint)))
        }

        fn memory(&mut self) -> Vec<Element> {
            let table = self.table();
            self.nft.elements(&table, "affinity").expect("listed")
        }

        /// Which endpoint a new connection of that client reaches.
        #[track_caller]
        fn connect(&self, client: u8) -> usize {
            let port = self.next_port.fetch_add(1, Ordering::Relaxed);
            let socket = UdpSocket::bind((self.address(1, client), port)).expect("a free port");
            let service = SocketAddr::new(self.address(0, 1), PORT);
            socket.send_to(b"x", service).expect("sent");
            let mut fds: Vec<_> = self
                .servers
                .iter()
                .map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN))
                .collect();
            let wait = PollTimeout::try_from(DEADLINE).expect("short");
            assert_eq!(poll(&mut fds, wait), Ok(1), "one endpoint hears of it");
            let reached = fds.iter().position(|fd| fd.any() == Some(true));
            let reached = reached.expect("polled");
            let (_, from) = self.servers[reached].recv_from(&mut [0; 1]).expect("waiting");
            assert_eq!(from, socket.local_addr().expect("bound"));
            reached
        }

        fn connect_often(&self, client: u8) -> BTreeSet<usize> {
            (0..32).map(|_| self.connect(client)).collect()
        }

        fn await_oblivion(&mut self) {
            let deadline = Instant::now() + DEADLINE;
            while !self.memory().is_empty() {
                assert!(Instant::now() < deadline, "{:?}", self.memory());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    fn for_each_family(test: &str, body: impl Fn(Family) + Sync) {
        for (family, name) in [(Family::Ip, "4"), (Family::Ip6, "6")] {
            in_namespace(&format!("{test}{name}"), || body(family));
        }
    }

    #[test]
    fn without_memory_every_endpoint_is_picked_sooner_or_later() {
        for_each_family("spread", |family| {
            let mut lab = Lab::new(family, LONG, 100);
            lab.serve(&[0, 1, 2], &[]);
            let deadline = Instant::now() + DEADLINE;
            let mut reached = BTreeSet::new();
            while reached.len() < 3 {
                assert!(Instant::now() < deadline, "{reached:?}");
                reached.insert(lab.connect(1));
            }
        });
    }

    #[test]
    fn a_client_keeps_its_endpoint_until_that_is_no_longer_eligible() {
        for_each_family("keep", |family| {
            let mut lab = Lab::new(family, LONG, 100);
            lab.serve(&[0, 1, 2], &[0, 1, 2]);
            let first = lab.connect(1);
            assert_eq!(lab.connect_often(1), [first].into());
            assert_eq!(lab.memory(), [lab.remembered(1, first)]);
            let others: Vec<_> = (0..3).filter(|endpoint| *endpoint != first).collect();
            lab.serve(&others, &others);
            let second = lab.connect(1);
            assert_ne!(second, first);
            assert_eq!(lab.memory(), [lab.remembered(1, second)]);
            lab.serve(&[0, 1, 2], &[0, 1, 2]);
            assert_eq!(lab.connect_often(1), [second].into());
            let other_client = lab.connect(2);
            assert_eq!(lab.connect_often(2), [other_client].into());
            assert_eq!(
                lab.memory(),
                [lab.remembered(1, second), lab.remembered(2, other_client)]
            );
        });
    }

    #[test]
    fn every_connection_begins_the_time_anew_and_without_one_the_client_is_forgotten() {
        for_each_family("expire", |family| {
            let timeout = Duration::from_secs(2);
            let mut lab = Lab::new(family, timeout, 100);
            lab.serve(&[0], &[0]);
            assert_eq!(lab.connect(1), 0);
            lab.serve(&[1], &[0, 1]);
            let end = Instant::now() + timeout * 2;
            while Instant::now() < end {
                assert_eq!(lab.connect(1), 0);
                std::thread::sleep(Duration::from_millis(20));
            }
            lab.await_oblivion();
            assert_eq!(lab.connect(1), 1);
        });
    }

    #[test]
    fn what_packets_and_time_do_to_the_memory_is_neither_news_nor_damage() {
        for_each_family("quiet", |family| {
            let mut lab = Lab::new(family, Duration::from_secs(1), 100);
            lab.serve(&[0, 1, 2], &[0, 1, 2]);
            let mut monitor = Monitor::open(&[lab.table()], &[lab.nft.port()]).expect("a socket");
            let first = lab.connect(1);
            lab.connect(1);
            let layout = lab.layout(3);
            assert_eq!(lab.nft.ensure(&layout).expect("read"), Repair::Unchanged);
            assert_eq!(lab.memory(), [lab.remembered(1, first)]);
            lab.await_oblivion();
            // deleted by a packet: nothing is eligible
            lab.serve(&[0, 1, 2], &[]);
            lab.connect_often(1);
            lab.await_oblivion();
            assert!(!monitor.wait(Duration::from_millis(1500)).expect("events"));
            let name = if family == Family::Ip { "ip" } else { "ip6" };
            run(&format!("nft flush set {name} cwt eligible"));
            assert!(
                !monitor.wait(Duration::from_millis(1)).expect("events"),
                "it was empty"
            );
            run(&format!("nft flush map {name} cwt services"));
            assert!(monitor.wait(DEADLINE).expect("events"));
        });
    }

    #[test]
    fn clients_beyond_the_limit_are_served_but_not_remembered() {
        for_each_family("limit", |family| {
            let mut lab = Lab::new(family, LONG, 1);
            lab.serve(&[0, 1, 2], &[0, 1, 2]);
            let first = lab.connect(1);
            lab.connect_often(2);
            assert_eq!(lab.memory(), [lab.remembered(1, first)]);
            assert_eq!(lab.connect_often(1), [first].into());
        });
    }

    #[test]
    fn deleting_from_a_map_needs_a_register_for_its_value() {
        for_each_family("value", |family| {
            let mut lab = Lab::new(family, LONG, 100);
            let layout = lab.layout(1);
            lab.nft.ensure(&layout).expect("written");
            let [client, service, list, endpoint] = lab.registers();
            let mut check = |data, refused| {
                let element = DynamicElement {
                    set: "affinity".into(),
                    key: client,
                    data,
                    timeout: None,
                };
                let rule = Rule::new("forget")
                    .load(KeyField::SourceAddress(family), client)
                    .load_all(&[KeyField::Number(SERVICE), KeyField::Number(LIST)], service)
                    .load_all(
                        &[KeyField::SourceAddress(family), KeyField::DestinationPort],
                        endpoint,
                    )
                    .delete_element(element);
                let mut batch = Batch::new(&lab.table());
                batch.add_rule("output", &rule);
                let result = lab.nft.commit(&batch);
                assert_eq!(result.is_err_and(|error| error.is(libc::EINVAL)), refused);
            };
            check(Some(list), false);
            check(None, true);
        });
    }

    #[test]
    fn a_set_with_another_limit_is_made_anew() {
        for_each_family("shape", |family| {
            let mut lab = Lab::new(family, LONG, 100);
            let layout = lab.layout(1);
            assert_eq!(lab.nft.ensure(&layout).expect("written"), Repair::Rebuilt);
            assert_eq!(lab.nft.ensure(&layout).expect("read"), Repair::Unchanged);
            lab.limit = 101;
            let layout = lab.layout(1);
            assert_eq!(lab.nft.ensure(&layout).expect("written"), Repair::Rebuilt);
        });
    }

    #[test]
    fn the_nft_program_can_print_the_table() {
        for_each_family("listing", |family| {
            let mut lab = Lab::new(family, LONG, 100);
            lab.serve(&[0, 1, 2], &[0, 1, 2]);
            lab.connect(1);
            let name = if family == Family::Ip { "ip" } else { "ip6" };
            let text = run(&format!("nft list table {name} cwt"));
            println!("{text}");
            for line in [
                "map affinity {",
                "size 100",
                "flags dynamic,timeout",
                "chain output {",
            ] {
                assert!(text.contains(line), "no {line:?} in\n{text}");
            }
        });
    }
}
