use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

type State = BTreeMap<Bytes, Bytes>;

fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put(Put {
        key: key.into(),
        value: Some(value.into()),
        lease: LeaseChange::Set(None),
        prev_kv: false,
    })
}

fn delete(key: &'static str, range_end: &'static str) -> Op {
    Op::Delete(Delete {
        keys: KeyRange::from_protocol(key, range_end),
        prev_kv: false,
    })
}

fn txn(success: Vec<Op>) -> Op {
    Op::Txn(Txn {
        success,
        ..Txn::default()
    })
}

fn grant(seconds: i64) -> Grant {
    let holder = Holder::Administrator;
    Grant { seconds, holder }
}

fn everything() -> KeyRange {
    KeyRange::from_protocol("\0", "\0")
}

/// The keys and values at a revision.
fn state(keyspace: &Keyspace, revision: Revision) -> Result<State, Error> {
    let range = Range {
        revision: Some(revision),
        ..Range::all(everything())
    };
    let found = keyspace.range(&range, keyspace.revision())?;
    Ok(found
        .entries
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.clone()))
        .collect())
}

/// What a watch of everything from `from` on sees: revision, key, value.
fn watched(keyspace: &Keyspace, from: Revision) -> Result<Vec<(Revision, Bytes, Option<Bytes>)>, Error> {
    let batch = keyspace.watch(&everything(), from, keyspace.revision(), usize::MAX, false)?;
    let simple = |watched: WatchedEvent| {
        let Event { id, key, entry } = watched.event;
        (id.revision, key, entry.map(|entry| entry.value.clone()))
    };
    Ok(batch.events.into_iter().map(simple).collect())
}

/// A put, a delete of a key or of a range, or a transaction of both, all on five keys.
fn random_op(random: &mut StdRng) -> Op {
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    const VALUES: [&str; 3] = ["x", "y", "z"];
    let first = random.random_range(0..KEYS.len());
    let second = random.random_range(0..KEYS.len());
    let value = VALUES[random.random_range(0..VALUES.len())];
    match random.random_range(0..6) {
        0..3 => put(KEYS[first], value),
        3 => delete(KEYS[first], ""),
        4 => delete(KEYS[first], KEYS[second]),
        _ if first == second => txn(vec![put(KEYS[first], value)]),
        _ => txn(vec![put(KEYS[first], value), delete(KEYS[second], "")]),
    }
}

fn model_apply(model: &mut State, op: &Op) {
    match op {
        Op::Put(put) => {
            model.insert(put.key.clone(), put.value.clone().unwrap_or_default());
        }
        Op::Delete(delete) => model.retain(|key, _| !delete.keys.contains(key)),
        Op::Txn(txn) => txn.success.iter().for_each(|op| model_apply(model, op)),
        Op::Range(_) => {}
    }
}

/// A key space after random operations and compactions, the state at each revision, and every event there was.
fn random_history(seed: u64) -> (Keyspace, Vec<State>, Vec<Event>) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut keyspace, mut leases) = (Keyspace::default(), Leases::default());
    let mut states = vec![State::new(); 2];
    let mut events = Vec::new();
    for _ in 0..200 {
        let op = random_op(&mut random);
        let before = keyspace.revision();
        let after = keyspace
            .apply(&op, &mut leases)
            .expect("an operation that cannot fail")
            .revision;
        events.extend(keyspace.events_after(before).cloned());
        let mut model = states.last().expect("a first state").clone();
        model_apply(&mut model, &op);
        if after > before {
            states.push(model);
        }
        if random.random_range(0..40) == 0 {
            let _ = keyspace.compact(random.random_range(1..=after));
        }
    }
    (keyspace, states, events)
}

#[track_caller]
fn check_states(keyspace: &Keyspace, states: &[State]) {
    let compacted = keyspace.compacted().unwrap_or(0);
    for (revision, expected) in (0..).zip(states).skip(1) {
        let expected = if revision < compacted {
            Err(Error::Compacted)
        } else {
            Ok(expected.clone())
        };
        assert_eq!(state(keyspace, revision), expected, "at revision {revision}");
    }
}

#[test]
fn every_revision_since_the_compaction_reads_as_it_was() {
    for seed in 0..50 {
        let (keyspace, states, _) = random_history(seed);
        check_states(&keyspace, &states);
    }
}

#[test]
fn a_watch_sees_every_event_since_the_compaction_once_and_in_order() {
    for seed in 0..50 {
        let (keyspace, _, events) = random_history(seed);
        let from = keyspace.compacted().unwrap_or(1);
        let expected: Vec<_> = events
            .into_iter()
            .filter(|event| event.id.revision >= from)
            .map(|event| {
                (
                    event.id.revision,
                    event.key,
                    event.entry.map(|entry| entry.value.clone()),
                )
            })
            .collect();
        assert_eq!(watched(&keyspace, from), Ok(expected), "seed {seed}");
        if from > 1 {
            assert_eq!(watched(&keyspace, from - 1), Err(Error::Compacted), "seed {seed}");
        }
    }
}

#[test]
fn a_key_space_comes_back_from_its_events_also_if_a_crash_left_stale_ones() {
    for seed in 0..50 {
        let (keyspace, states, events) = random_history(seed);
        let (with_stale, stale) = Keyspace::restore(keyspace.compacted(), events.clone());
        let kept = events.into_iter().filter(|event| !stale.contains(&event.id));
        let (clean, none) = Keyspace::restore(keyspace.compacted(), kept);
        assert_eq!(none, [], "seed {seed}");
        let from = keyspace.compacted().unwrap_or(1);
        for restored in [with_stale, clean] {
            assert_eq!(restored.revision(), keyspace.revision(), "seed {seed}");
            check_states(&restored, &states);
            assert_eq!(watched(&restored, from), watched(&keyspace, from), "seed {seed}");
        }
    }
}

#[test]
fn compacting_names_exactly_the_events_that_are_not_needed_any_more() {
    let (mut keyspace, mut leases) = (Keyspace::default(), Leases::default());
    // revisions 2, 3, 4, 5 and 6
    for op in [
        put("a", "1"),
        put("a", "2"),
        put("b", "1"),
        delete("b", ""),
        put("c", "1"),
    ] {
        keyspace
            .apply(&op, &mut leases)
            .expect("an operation that cannot fail");
    }
    let id = |revision| EventId { revision, sub: 0 };
    let rows = [
        (2, Ok(vec![])),
        (3, Ok(vec![id(2)])),
        (3, Err(Error::Compacted)),
        (7, Err(Error::FutureRevision)),
        (5, Ok(vec![id(4)])),
        (6, Ok(vec![id(5)])),
    ];
    for (revision, expected) in rows {
        assert_eq!(keyspace.compact(revision), expected, "at {revision}");
    }
}

#[test]
fn a_watch_stops_at_its_budget_but_never_within_a_revision() {
    let (mut keyspace, mut leases) = (Keyspace::default(), Leases::default());
    for op in [
        put("a", "0123456789"),
        txn(vec![put("b", "0123456789"), put("c", "0123456789")]),
        put("a", "1"),
    ] {
        keyspace
            .apply(&op, &mut leases)
            .expect("an operation that cannot fail");
    }
    let rows = [
        (1, 2, vec![2], 3),
        (15, 2, vec![2, 3, 3], 4),
        (1, 3, vec![3, 3], 4),
        (1, 4, vec![4], 5),
        (1, 5, vec![], 5),
    ];
    for (budget, from, expected, next) in rows {
        let batch = keyspace
            .watch(&everything(), from, keyspace.revision(), budget, false)
            .expect("not compacted");
        let revisions: Vec<_> = batch
            .events
            .iter()
            .map(|watched| watched.event.id.revision)
            .collect();
        assert_eq!(
            (revisions, batch.next),
            (expected, next),
            "budget {budget} from {from}"
        );
    }
}

#[test]
fn a_reader_sees_only_what_is_published_to_it() {
    let (mut keyspace, mut leases) = (Keyspace::default(), Leases::default());
    for op in [put("a", "1"), put("a", "2")] {
        keyspace
            .apply(&op, &mut leases)
            .expect("an operation that cannot fail");
    }
    let range = Range::all(KeyRange::single("a"));
    let values = [1, 2, 3].map(|now| {
        let found = keyspace.range(&range, now).expect("not compacted");
        found.entries.first().map(|entry| entry.value.clone())
    });
    assert_eq!(values, [None, Some("1".into()), Some("2".into())]);
    let ahead = Range {
        revision: Some(3),
        ..range
    };
    assert_eq!(keyspace.range(&ahead, 2), Err(Error::FutureRevision));
}

#[test]
fn a_transaction_is_refused_for_its_size_or_for_writing_a_key_twice() {
    let puts = |count: usize| vec![put("a", "1"); count];
    let nested = |outer: usize, inner: usize| {
        let mut success = vec![delete("x", ""); outer - 1];
        success.push(txn(vec![delete("x", ""); inner]));
        success
    };
    let rows = [
        (puts(1), Ok(())),
        (puts(2), Err(Error::DuplicateKey)),
        (puts(5), Err(Error::TooManyOps)),
        (nested(2, 2), Ok(())),
        (nested(2, 3), Err(Error::TooManyOps)),
        (nested(4, 0), Ok(())),
        (vec![put("a", "1"), delete("a", "")], Err(Error::DuplicateKey)),
        (vec![put("a", "1"), delete("b", "\0")], Ok(())),
        (vec![put("c", "1"), delete("b", "\0")], Err(Error::DuplicateKey)),
        (
            vec![put("a", "1"), txn(vec![put("a", "1")])],
            Err(Error::DuplicateKey),
        ),
        (vec![txn(vec![put("a", "1")]), txn(vec![put("b", "1")])], Ok(())),
    ];
    for (success, expected) in rows {
        let txn = Txn {
            success,
            ..Txn::default()
        };
        assert_eq!(check_txn(&txn, 4), expected, "{txn:?}");
    }
}

#[test]
fn a_lease_lives_its_time_from_the_last_renewal_on() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let [short, long] = [1, 2].map(|number| LeaseId::from_protocol(number).expect("not 0"));
    let mut leases = Leases::default();
    assert_eq!(leases.grant(short, grant(5), at(0)), Ok(grant(5)));
    assert_eq!(leases.grant(long, grant(8), at(0)), Ok(grant(8)));
    assert_eq!(leases.expired(at(4)), []);
    assert_eq!(leases.time_to_live(short, at(4)), Some((5, 1)));
    assert_eq!(leases.expired(at(9)), [short, long]);
    assert_eq!(leases.renew(long, at(7)), Some(8));
    assert_eq!(
        leases.renew(short, at(7)),
        None,
        "what has ended cannot be renewed"
    );
    assert_eq!(leases.expired(at(9)), [short]);
    assert_eq!(leases.ids().collect::<Vec<_>>(), [short, long]);
    assert_eq!(leases.expired(at(15)), [short, long]);
}

#[test]
fn a_transaction_has_a_bound_on_all_that_is_nested_in_it() {
    let inner = || txn(vec![delete("a", "b"); 30]);
    let rows = [(15, Ok(())), (17, Err(Error::TooManyOps))];
    for (nested, expected) in rows {
        let outer = Txn {
            success: std::iter::repeat_with(inner).take(nested).collect(),
            ..Txn::default()
        };
        assert_eq!(check_txn(&outer, 128), expected, "{nested} times 30");
    }
}

/// Everything that can be seen of a key space and its leases.
fn sight(keyspace: &Keyspace, leases: &Leases) -> String {
    let events: Vec<_> = keyspace.events().collect();
    let log: Vec<_> = keyspace.events_after(1).collect();
    let keys: Vec<_> = leases
        .grants()
        .map(|(id, grant)| (id, grant, leases.keys(id).collect::<Vec<_>>()))
        .collect();
    let order: Vec<_> = leases.ids().collect();
    format!("{} {events:?} {log:?} {keys:?} {order:?}", keyspace.revision())
}

#[test]
fn what_is_taken_back_has_never_been() {
    let now = Instant::now();
    let ids: Vec<LeaseId> = (1..5).filter_map(LeaseId::from_protocol).collect();
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut keyspace, mut leases) = (Keyspace::default(), Leases::default());
        let step = |random: &mut StdRng, keyspace: &mut Keyspace, leases: &mut Leases| {
            let id = ids[random.random_range(0..ids.len())];
            match random.random_range(0..8) {
                0 => drop(leases.grant(id, grant(60), now)),
                1 => drop(keyspace.revoke(id, leases)),
                2..4 => {
                    let put = Put {
                        key: ["a", "b", "c"][random.random_range(0..3)].into(),
                        value: Some("on a lease".into()),
                        lease: LeaseChange::Set(Some(id)),
                        prev_kv: false,
                    };
                    drop(keyspace.apply(&Op::Put(put), leases));
                }
                _ => drop(keyspace.apply(&random_op(random), leases)),
            }
        };
        for _ in 0..20 {
            for _ in 0..random.random_range(0..10) {
                step(&mut random, &mut keyspace, &mut leases);
            }
            if random.random_bool(0.3) && keyspace.revision() > 3 {
                let _ = keyspace.compact(keyspace.revision() - random.random_range(0..3));
            }
            leases.settle();
            let (revision, before) = (keyspace.revision(), sight(&keyspace, &leases));
            for _ in 0..random.random_range(0..10) {
                step(&mut random, &mut keyspace, &mut leases);
            }
            keyspace.take_back(revision, &mut leases);
            assert_eq!(sight(&keyspace, &leases), before, "seed {seed}");
        }
    }
}
