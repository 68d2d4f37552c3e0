//! What must be so whatever happened before, and wherever a crash came.

use super::*;

/// What must be so whatever happened before.
struct Model {
    /// Who has which address.
    assigned: BTreeMap<String, IpAddr>,
    came_back: BTreeMap<IpAddr, SystemTime>,
    withdrawn: BTreeSet<IpNetwork>,
    blocks: Vec<(&'static str, u32)>,
}

const BLOCKS: [(&str, u32); 7] = [
    ("10.0.0.1/32", 0),
    ("10.0.0.2/32", 0),
    ("10.0.0.16/29", 0),
    ("10.0.1.1/32", 1),
    ("10.0.1.16/29", 1),
    ("10.0.2.1/32", 2),
    ("10.0.2.16/30", 2),
];

impl Model {
    fn add(&mut self, pods: &PodNetwork, container: &str, now: Now) {
        let answer = pods.add(&attachment(container));
        let plan = match answer {
            Ok(plan) => plan,
            refused => {
                none_now(refused);
                assert_eq!(self.free(now), Vec::<IpAddr>::new(), "there was a free one");
                return;
            }
        };
        let [network] = plan.addresses.as_slice() else {
            panic!("{plan:?}")
        };
        let address = network.ip();
        if self.assigned.get(container) == Some(&address) && self.is_in_a_block(address) {
            return;
        }
        if let Some(before) = self.assigned.remove(container) {
            self.came_back.insert(before, now.wall);
        }
        assert!(self.free(now).contains(&address), "{address} is not free");
        self.assigned.insert(container.to_owned(), address);
        self.came_back.remove(&address);
    }

    fn is_in_a_block(&self, address: IpAddr) -> bool {
        self.blocks
            .iter()
            .any(|(text, _)| network(text).contains(address))
    }

    fn free(&self, now: Now) -> Vec<IpAddr> {
        let given = self
            .blocks
            .iter()
            .map(|(text, _)| network(text))
            .filter(|block| !self.withdrawn.contains(block));
        let cools = |address: &IpAddr| {
            let came_back = self.came_back.get(address);
            came_back.is_some_and(|at| *at + COOL_DOWN > now.wall)
        };
        let each = given.flat_map(|block| block.iter());
        each.filter(|address| !cools(address) && self.assigned.values().all(|used| used != address))
            .collect()
    }

    fn withdraw(&mut self, pods: &PodNetwork, text: &str, now: Now) {
        let block = network(text);
        let told = pods.withdraw(&[block]).expect("a pool");
        let in_use = self
            .assigned
            .values()
            .filter(|address| block.contains(**address))
            .count();
        let cooling = self.came_back.iter();
        let cooling = cooling
            .filter(|(address, at)| block.contains(**address) && **at + COOL_DOWN > now.wall)
            .count();
        if in_use + cooling > 0 {
            let refused = Busy {
                network: block,
                assigned: in_use,
                cooling,
            };
            assert_eq!((told.withdrawn, told.refused), (vec![], vec![refused]));
        } else {
            assert_eq!((told.withdrawn, told.refused), (vec![block], vec![]));
            if self.blocks.iter().any(|(of, _)| *of == text) {
                self.withdrawn.insert(block);
            }
        }
    }
}

#[test]
fn no_address_is_given_twice_or_before_it_cooled_down_or_of_a_block_that_is_withdrawn() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let node = Node::new(&format!("random{seed}"));
        let mut model = Model {
            assigned: BTreeMap::new(),
            came_back: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            blocks: BLOCKS.to_vec(),
        };
        let mut pods = node.serving(&model.blocks);
        for _ in 0..150 {
            let now = *node.now.lock().expect("no panic");
            let container = format!("c{}", random.random_range(0..20));
            let (block, _) = *BLOCKS.choose(&mut random).expect("some");
            match random.random_range(0..14) {
                0..5 => model.add(&pods, &container, now),
                5..8 => {
                    let gone = pods.remove(&key(&container)).expect("writable");
                    let expected = model.assigned.remove(&container);
                    assert_eq!(gone.and_then(|gone| gone.addresses().v4), expected);
                    if let Some(address) = expected {
                        model.came_back.insert(address, now.wall);
                    }
                }
                8 | 9 => model.withdraw(&pods, block, now),
                10 => {
                    pods.restore(&[network(block)]).expect("a pool");
                    model.withdrawn.remove(&network(block));
                }
                11 => {
                    model.blocks = BLOCKS.into_iter().filter(|_| random.random_bool(0.8)).collect();
                    pods.serve_pool(pool(&model.blocks));
                    let has =
                        |block: &IpNetwork| model.blocks.iter().any(|(text, _)| network(text) == *block);
                    model.withdrawn.retain(has);
                }
                12 => node.pass(random.random_range(1..20)),
                _ => {
                    drop(pods);
                    pods = node.serving(&model.blocks);
                    model.withdrawn.clear();
                }
            }
            let have: BTreeMap<String, IpAddr> = pods
                .list()
                .into_iter()
                .filter_map(|assigned| Some((assigned.key.container_id.clone(), assigned.addresses().v4?)))
                .collect();
            assert_eq!(have, model.assigned, "seed {seed}");
            let free: usize = pods
                .census()
                .expect("a pool")
                .blocks
                .iter()
                .filter(|count| !count.is_withdrawn)
                .map(|count| count.free)
                .sum();
            let now = *node.now.lock().expect("no panic");
            assert_eq!(free, model.free(now).len(), "seed {seed}");
        }
    }
}

/// What a start must find: who has which address by which name, and what is given to nobody for how many seconds.
type Found = (Vec<(String, String, String)>, Vec<(IpAddr, u64)>);

fn found(node: &Node) -> Found {
    let pods = node.serving(&[("10.0.0.0/29", 0)]);
    let have = |assigned: Assigned| {
        let name = wiring::host_ifname(&assigned);
        let addresses: Vec<String> = assigned
            .each_address()
            .map(|address| address.to_string())
            .collect();
        (assigned.key.container_id, addresses.join(" "), name)
    };
    let list = pods.list().into_iter().map(have).collect();
    let now = *node.now.lock().expect("no panic");
    let state = pods.lock();
    let mut cooling: Vec<(IpAddr, u64)> = state
        .addresses
        .came_back()
        .filter_map(|address| {
            let until = state.addresses.cools_until(address, COOL_DOWN, now)?;
            Some((address, until.duration_since(now.steady).as_secs()))
        })
        .collect();
    cooling.sort_unstable();
    (list, cooling)
}

#[test]
fn a_crash_at_any_byte_of_the_log_leaves_what_was_answered_for_or_the_step_after_it() {
    let node = Node::new("crash");
    let named = |container: &str| Attachment {
        pod: Some(ObjectName::new("default", "web-0")),
        ..attachment(container)
    };
    let elsewhere = Attachment {
        wishes: Wishes {
            ips: vec![ip("10.0.0.5")],
            ..Wishes::default()
        },
        ..named("a")
    };
    let steps: [&dyn Fn(&PodNetwork); 7] = [
        &|pods| drop(pods.add(&named("a")).expect("an address")),
        &|pods| drop(pods.add(&named("b")).expect("an address")),
        &|pods| removed(pods, "b"),
        // Another address: the one before comes back by the same step.
        &|pods| drop(pods.add(&elsewhere).expect("an address")),
        &|pods| drop(pods.add(&attachment("c")).expect("an address")),
        &|pods| removed(pods, "c"),
        &|pods| removed(pods, "a"),
    ];
    // After each step: how long the log is, and what stands in it.
    let mut answered: Vec<(usize, Found)> = Vec::new();
    let began = *node.now.lock().expect("no panic");
    for step in 0..=steps.len() {
        let _ = fs::remove_dir_all(&node.place.0);
        *node.now.lock().expect("no panic") = began;
        let pods = node.serving(&[("10.0.0.0/29", 0)]);
        for happens in steps.iter().take(step) {
            node.pass(1);
            happens(&pods);
        }
        drop(pods);
        let length = fs::read(node.log()).expect("a log").len();
        *node.now.lock().expect("no panic") = began.after(Duration::from_secs(10));
        answered.push((length, found(&node)));
    }
    let bytes = fs::read(node.log()).expect("a log");
    assert_eq!(answered.last().map(|(length, _)| *length), Some(bytes.len()));
    for length in 0..=bytes.len() {
        fs::write(node.log(), bytes.get(..length).expect("shorter")).expect("tear");
        *node.now.lock().expect("no panic") = began.after(Duration::from_secs(10));
        let (_, expected) = answered
            .iter()
            .rev()
            .find(|(at, _)| *at <= length)
            .expect("the first is empty");
        let (list, mut cooling) = found(&node);
        if list != expected.0 {
            // Between the two records of one step it is not known when the address came back: now.
            let (_, next) = answered
                .iter()
                .find(|(at, _)| *at > length)
                .expect("the last is whole");
            assert_eq!(list, next.0, "torn at {length}");
            for (address, rest) in &mut cooling {
                if *address == ip("10.0.0.0") {
                    assert_eq!(*rest, 30, "torn at {length}");
                    *rest = 24;
                }
            }
            assert_eq!(cooling, next.1, "torn at {length}");
        } else {
            assert_eq!(cooling, expected.1, "torn at {length}");
        }
    }
}
