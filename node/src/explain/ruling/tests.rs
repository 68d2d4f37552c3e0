use netlink::Vxlan;

use super::super::tests::link;
use super::*;

const THERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn address(last: u8) -> IpAddr {
    [172, 30, 0, last].into()
}

fn tunnel() -> Link {
    let kind = LinkKind::Vxlan(Vxlan {
        vni: 1,
        local: Some(address(11)),
        device: None,
        port: 8472,
        learning: false,
        udp_csum: false,
        gbp: false,
        collect_metadata: false,
    });
    link(4, "flannel.1", 1450, kind)
}

fn way() -> Way {
    Way::Tunnel {
        device: "flannel.1".to_owned(),
        mtu: model::Mtu(1450),
        subnet: "10.244.2.0/24".parse().expect("a network"),
        vtep: [10, 244, 2, 0].into(),
        mac: THERE,
        public_ip: address(12),
    }
}

fn wraps(destination: IpAddr, vni: u32) -> Verdict {
    Verdict::Sends {
        device: 2,
        there: THERE,
        wrapping: Some(Wrapping {
            source: address(11),
            destination,
            port: 8472,
            vni,
        }),
    }
}

#[test]
fn the_programs_verdict_is_evidence_or_a_finding() {
    let hop = ebpf::abi::pods::Hop {
        ifindex: 4,
        mtu: 1450,
        there: THERE.0,
        here: [2, 0, 0, 0, 0, 1],
    };
    let found = Found::Remote(hop, address(12));
    let told = |verdict| {
        let program = Program {
            id: 9,
            before: Vec::new(),
        };
        Ok(Some(Told { program, verdict }))
    };
    let elsewhere = Verdict::Sends {
        device: 3,
        there: MacAddr([2, 0, 0, 0, 0, 9]),
        wrapping: None,
    };
    let by_device = Verdict::Sends {
        device: 3,
        there: THERE,
        wrapping: None,
    };
    let rows = [
        (Some(found), told(wraps(address(12), 1)), false, [None, None]),
        (
            Some(found),
            told(wraps(address(12), 77)),
            false,
            [Some("flannel.1 is of network 1"), None],
        ),
        (
            Some(found),
            told(wraps(address(13), 1)),
            false,
            [Some("its node is 172.30.0.12"), None],
        ),
        (
            Some(found),
            told(elsewhere),
            false,
            [Some("the receiver's MAC address is 02:00:00:00:00:02"), None],
        ),
        (
            Some(found),
            told(by_device),
            false,
            [Some("flannel.1 is device 4"), None],
        ),
        (Some(found), told(Verdict::Drops), false, [Some("drops it"), None]),
        (
            Some(found),
            told(Verdict::Stack("no_pod".to_owned())),
            true,
            [None, Some("leaves it to the stack (no_pod)")],
        ),
        (
            None,
            told(Verdict::Stack("no_pod".to_owned())),
            true,
            [None, None],
        ),
        (
            None,
            told(wraps(address(12), 1)),
            false,
            [None, Some("its pinned maps have nothing for it")],
        ),
        (
            Some(found),
            Ok(None),
            true,
            [None, Some("no program of ours looks at what comes by cw1")],
        ),
        (Some(found), told(Verdict::Silent), false, [None, None]),
        (Some(found), Err("EPERM".to_owned()), false, [None, None]),
    ];
    for (found, told, is_left, [problem, difference]) in rows {
        let mut step = step([10, 244, 2, 6].into());
        let said = format!("{told:?}");
        let left = compare(&mut step, "cw1", found, told, &way(), Some(&tunnel()));
        assert_eq!(left, is_left, "{said}");
        for (lines, part) in [(&step.problems, problem), (&step.differences, difference)] {
            match part {
                Some(part) => assert!(lines.iter().any(|line| line.contains(part)), "{said}: {lines:?}"),
                None => assert!(lines.is_empty(), "{said}: {lines:?}"),
            }
        }
    }
}

#[test]
fn what_was_asked_once_is_told_by_pod_by_subnet_and_of_nobody() {
    let stack = Verdict::Stack("no_pod".to_owned());
    let program = Program {
        id: 9,
        before: Vec::new(),
    };
    let pod: IpAddr = [10, 244, 1, 3].into();
    let subnet: IpAddr = [10, 244, 2, 0].into();
    let recorded = Recorded {
        verdicts: vec![Verdict::Drops, wraps(address(12), 1), stack.clone()],
        senders: vec![
            Sender {
                device: "cw1".to_owned(),
                source: [10, 244, 1, 2].into(),
                program: Some(program.clone()),
                to: [(pod, 0), (subnet, 1), (NOBODY[0], 2)].into(),
                missing: None,
            },
            Sender {
                device: "cw2".to_owned(),
                source: pod,
                program: None,
                to: BTreeMap::new(),
                missing: None,
            },
        ],
    };
    let text = serde_json::to_string(&recorded).expect("written");
    assert_eq!(serde_json::from_str::<Recorded>(&text).expect("read"), recorded);
    let told = |device: &str, source: IpAddr, to: IpAddr, subnet| {
        let opening = Opening {
            device,
            source,
            mac: THERE,
            to,
            port: 80,
        };
        let told = recorded.told(&opening, subnet);
        told.map(|told| told.map(|told| told.verdict))
    };
    let client = [10, 244, 1, 2].into();
    let far = [10, 244, 2, 6].into();
    assert_eq!(told("cw1", client, pod, None), Ok(Some(Verdict::Drops)));
    assert_eq!(
        told("cw1", client, far, Some(subnet)),
        Ok(Some(wraps(address(12), 1)))
    );
    assert_eq!(told("cw1", client, far, None), Ok(Some(stack)));
    assert_eq!(told("cw2", pod, far, None), Ok(None));
    assert!(told("cw3", client, far, None).is_err());
}

#[test]
fn a_sender_whose_program_does_not_run_is_told_and_the_others_are_recorded() {
    let pod = |device: &str, last| PodHere {
        name: None,
        addresses: vec![[10, 244, 1, last].into()],
        node: "node-1".into(),
        device: device.to_owned(),
        mac: Some(THERE),
    };
    let pods = [pod("cw1", 1), pod("cw2", 2), pod("cw3", 3), pod("cw4", 4)];
    let far: IpAddr = [10, 244, 2, 6].into();
    let receivers = [(NOBODY[0], NOBODY[0]), (far, far)].into();
    let program = Program {
        id: 9,
        before: Vec::new(),
    };
    let recorded = Recorded::of(&pods, &receivers, |device| {
        let program = program.clone();
        match device {
            "cw1" => Err("no such device".to_owned()),
            "cw2" => Ok(Some((
                program,
                Box::new(move |opening| {
                    let is_far = opening.to == far;
                    is_far.then_some(Verdict::Drops).ok_or_else(|| "EPERM".to_owned())
                }),
            ))),
            "cw3" => Ok(None),
            _ => Ok(Some((program, Box::new(|_| Ok(Verdict::Drops))))),
        }
    });
    let text = serde_json::to_string(&recorded).expect("written");
    let recorded: Recorded = serde_json::from_str(&text).expect("read");
    let told = pods.each_ref().map(|pod| {
        let told = recorded.told(
            &Opening {
                device: &pod.device,
                source: pod.addresses[0],
                mac: THERE,
                to: far,
                port: 80,
            },
            None,
        );
        told.map(|told| told.map(|told| told.verdict))
    });
    assert_eq!(
        told,
        [
            Err("no such device".to_owned()),
            Err("EPERM".to_owned()),
            Ok(None),
            Ok(Some(Verdict::Drops))
        ]
    );
    assert_eq!(
        recorded.missing().as_deref(),
        Some("10.244.1.1 at cw1: no such device; 10.244.1.2 at cw2: EPERM")
    );
    assert_eq!(Recorded::default().missing(), None);
}
