//! What is kept, for how long, and what comes back.

use super::*;
use crate::answer::{Owner, Section, Writer, put_soa};
use crate::question::query_packet;

fn question(name: &str) -> Vec<u8> {
    query_packet(1, Name::parse(name).expect("name").wire(), rtype::A)
}

fn response(packet: &[u8], code: u16, ttl: Option<u32>) -> Vec<u8> {
    let query = Query::parse(packet).expect("query");
    let mut out = Vec::new();
    let mut writer = Writer::start(&mut out, &query, 512);
    match ttl {
        Some(ttl) if code == rcode::NOERROR => {
            writer.address(Section::Answer, Owner::QUESTION, [1, 2, 3, 4].into(), ttl);
        }
        Some(ttl) => {
            put_soa(
                &mut writer,
                Section::Authority,
                query.packet_offset(1),
                1,
                900,
                ttl,
            );
        }
        None => {}
    }
    writer.finish(code, true);
    out
}

#[test]
fn responses_are_kept_for_their_lifetime_and_come_back_as_the_asker_wrote() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    for (what, code, ttl, kept_for) in [
        ("an answer", rcode::NOERROR, Some(60), Some(minutes(1))),
        (
            "an answer with a TTL of zero",
            rcode::NOERROR,
            Some(0),
            Some(Duration::from_secs(5)),
        ),
        (
            "an answer with a TTL of a day",
            rcode::NOERROR,
            Some(86_400),
            Some(minutes(60)),
        ),
        (
            "a denial",
            rcode::NXDOMAIN,
            Some(30),
            Some(Duration::from_secs(30)),
        ),
        ("a denial without SOA", rcode::NXDOMAIN, None, None),
        ("an answer without records", rcode::NOERROR, None, None),
        ("a failure", rcode::SERVFAIL, None, Some(Duration::from_secs(5))),
        ("a refusal", rcode::REFUSED, None, None),
    ] {
        let cache = Cache::new(Options::default());
        let asked = question("a.example");
        let query = Query::parse(&asked).expect("query");
        let start = Instant::now();
        cache.store(&query, &mut response(&asked, code, ttl), start);

        let mut again = question("a.example");
        again[0..2].copy_from_slice(&[7, 7]);
        again[13] = b'A';
        let query = Query::parse(&again).expect("query");
        let mut out = Vec::new();
        let Some(kept_for) = kept_for else {
            assert_eq!(
                cache.answer(&query, 512, start, &mut out),
                Found::Nothing,
                "{what} is not kept"
            );
            continue;
        };
        let just_before = start + kept_for - Duration::from_millis(1);
        assert_eq!(
            cache.answer(&query, 512, just_before, &mut out),
            Found::Fresh,
            "{what} is kept"
        );
        assert_eq!(
            (&out[..2], out[13], flags_of(&out) & flag::AA),
            (&[7, 7][..], b'A', 0),
            "{what}"
        );
        assert_eq!(
            cache.answer(&query, 512, start + kept_for, &mut out),
            Found::Nothing,
            "{what} ends"
        );
    }
}

#[test]
fn what_was_said_to_another_kind_of_question_is_nobody_elses() {
    let now = Instant::now();
    // RD, nothing, and a NOTIFY.
    let kinds = [1, 0, 4 << 3].map(|third| {
        let mut packet = question("a.example");
        packet[2] = third;
        packet
    });
    for kept in &kinds {
        let cache = Cache::new(Options::default());
        let query = Query::parse(kept).expect("query");
        cache.store(&query, &mut response(kept, rcode::SERVFAIL, None), now);
        for asked in &kinds {
            let query = Query::parse(asked).expect("query");
            let found = cache.answer(&query, 512, now, &mut Vec::new());
            let expected = if asked == kept {
                Found::Fresh
            } else {
                Found::Nothing
            };
            assert_eq!(found, expected, "{kept:?} {asked:?}");
        }
    }
}

#[test]
fn a_full_cache_makes_room_and_disabled_zones_are_not_kept() {
    let mut options = Options::default();
    options.success.capacity = SHARDS;
    options
        .success
        .disabled
        .push(Name::parse("private.example").expect("name"));
    let cache = Cache::new(options);
    let now = Instant::now();
    for index in 0..1000 {
        let asked = question(&format!("n{index}.example"));
        cache.store(
            &Query::parse(&asked).expect("query"),
            &mut response(&asked, 0, Some(60)),
            now,
        );
    }
    assert!(cache.len() <= SHARDS, "{} entries", cache.len());
    let before = cache.len();
    let asked = question("x.private.example");
    cache.store(
        &Query::parse(&asked).expect("query"),
        &mut response(&asked, 0, Some(60)),
        now,
    );
    assert_eq!(cache.len(), before);
    let query = Query::parse(&asked).expect("query");
    assert_eq!(cache.answer(&query, 512, now, &mut Vec::new()), Found::Nothing);
}

/// A cache, a question for it, and the response that is kept at `start`.
struct Kept {
    cache: Cache,
    asked: Vec<u8>,
    start: Instant,
}

impl Kept {
    fn new(options: Options, ttl: u32) -> Self {
        let kept = Self {
            cache: Cache::new(options),
            asked: question("a.example"),
            start: Instant::now(),
        };
        kept.store(rcode::NOERROR, ttl, Duration::ZERO);
        kept
    }

    fn store(&self, code: u16, ttl: u32, after: Duration) {
        let query = Query::parse(&self.asked).expect("query");
        let mut response = response(&self.asked, code, Some(ttl));
        self.cache.store(&query, &mut response, self.start + after);
    }

    /// What is found after a while, and the TTL of the answer.
    fn after(&self, after: Duration) -> (Found, u32) {
        let query = Query::parse(&self.asked).expect("query");
        let mut out = Vec::new();
        let found = self.cache.answer(&query, 512, self.start + after, &mut out);
        (found, ttl_of(&out, &query))
    }

    fn stale_after(&self, after: Duration) -> (bool, u32) {
        let query = Query::parse(&self.asked).expect("query");
        let mut out = Vec::new();
        let found = self.cache.answer_stale(&query, 512, self.start + after, &mut out);
        (found, ttl_of(&out, &query))
    }
}

fn ttl_of(out: &[u8], query: &Query<'_>) -> u32 {
    Record::read(out, query.question_end).map_or(0, |(record, _)| record.ttl)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn ttls_count_down_unless_they_are_to_stay() {
    for (keeps_ttl, expected) in [(false, 40), (true, 60)] {
        let kept = Kept::new(
            Options {
                keeps_ttl,
                ..Options::default()
            },
            60,
        );
        assert_eq!(kept.after(secs(20)), (Found::Fresh, expected));
    }
}

#[test]
fn what_is_wanted_is_asked_for_again_before_it_ends_and_only_once() {
    let prefetch = |amount, pause, percentage| Options {
        prefetch: Some(Prefetch {
            amount,
            pause: secs(pause),
            percentage,
        }),
        ..Options::default()
    };
    for (what, options, times, expected) in [
        // 10% of 100 s is left from 90 s on.
        (
            "two queries",
            prefetch(2, 60, 10),
            &[50, 89, 90, 91][..],
            &[Found::Fresh, Found::Fresh, Found::Aging, Found::Fresh][..],
        ),
        (
            "more than half is left",
            prefetch(1, 60, 50),
            &[49, 50],
            &[Found::Fresh, Found::Aging],
        ),
        (
            "a long pause between",
            prefetch(2, 10, 10),
            &[50, 95, 96],
            &[Found::Fresh, Found::Fresh, Found::Aging],
        ),
        (
            "no answer comes",
            prefetch(1, 60, 10),
            &[92, 94, 98],
            &[Found::Aging, Found::Fresh, Found::Aging],
        ),
        (
            "never wanted",
            Options::default(),
            &[95, 99],
            &[Found::Fresh, Found::Fresh],
        ),
    ] {
        let kept = Kept::new(options, 100);
        let found: Vec<Found> = times.iter().map(|after| kept.after(secs(*after)).0).collect();
        assert_eq!(found, expected, "{what}");
        let aging = expected.iter().filter(|found| **found == Found::Aging).count();
        assert_eq!(kept.cache.counts().prefetches, aging as u64, "{what}");
    }
    // What came instead goes on being wanted.
    let kept = Kept::new(prefetch(3, 60, 10), 100);
    let found: Vec<Found> = [60, 80, 95].map(|after| kept.after(secs(after)).0).into();
    assert_eq!(found, [Found::Fresh, Found::Fresh, Found::Aging]);
    kept.store(rcode::NOERROR, 10, secs(96));
    assert_eq!(kept.after(secs(105)).0, Found::Aging);
}

#[test]
fn what_is_beyond_its_end_is_served_where_that_is_wanted() {
    let stale = |verifies| Options {
        stale: Some(Stale {
            beyond: secs(100),
            verifies,
        }),
        ..Options::default()
    };
    let immediate = Kept::new(stale(false), 60);
    for (after, expected) in [
        (59, (Found::Fresh, 1)),
        (60, (Found::Aging, 0)),
        (61, (Found::Fresh, 0)),
        (70, (Found::Aging, 0)),
        (160, (Found::Nothing, 0)),
    ] {
        assert_eq!(immediate.after(secs(after)), expected, "after {after} s");
    }
    let verified = Kept::new(stale(true), 60);
    assert_eq!(verified.after(secs(61)), (Found::Nothing, 0));
    assert_eq!(verified.stale_after(secs(61)), (true, 0));
    assert_eq!(verified.stale_after(secs(160)), (false, 0));
    assert_eq!(
        Kept::new(Options::default(), 60).stale_after(secs(61)),
        (false, 0)
    );

    // A failure takes no place that something good has, and is never served beyond its end.
    verified.store(rcode::SERVFAIL, 0, secs(62));
    assert_eq!(verified.stale_after(secs(63)), (true, 0));
    verified.store(rcode::SERVFAIL, 0, secs(161));
    assert_eq!(verified.after(secs(165)).0, Found::Fresh);
    assert_eq!(verified.stale_after(secs(167)), (false, 0));
    let counts = verified.cache.counts();
    assert_eq!(
        (counts.entries, counts.hits, counts.served_stale),
        ([0, 1], [0, 1], 2)
    );
}

#[test]
fn a_flood_of_denials_takes_no_place_of_answers() {
    let mut options = Options::default();
    (options.success.capacity, options.denial.capacity) = (SHARDS, SHARDS);
    let cache = Cache::new(options);
    let now = Instant::now();
    let store = |name: &str, code| {
        let asked = question(name);
        let query = Query::parse(&asked).expect("query");
        cache.store(&query, &mut response(&asked, code, Some(60)), now);
    };
    store("kept.example", rcode::NOERROR);
    for index in 0..1000 {
        store(&format!("n{index}.example"), rcode::NXDOMAIN);
    }
    let counts = cache.counts();
    assert_eq!((counts.entries[0], counts.evictions[0]), (1, 0));
    assert!(counts.entries[1] <= SHARDS as u64, "{counts:?}");
    assert_eq!(counts.entries[1] + counts.evictions[1], 1000);
    // The same name in the other half is one entry.
    store("kept.example", rcode::NXDOMAIN);
    assert_eq!(cache.counts().entries[0], 0);
}

#[test]
fn the_first_client_and_the_later_ones_see_a_ttl_of_the_time_that_is_left() {
    for (ttl, max_ttl, first, later) in [(300, 30, 30, 20), (30, 300, 30, 20), (5, 30, 5, 0)] {
        let mut options = Options::default();
        options.success.max_ttl = max_ttl;
        let cache = Cache::new(options);
        let asked = question("a.example");
        let query = Query::parse(&asked).expect("query");
        let (mut response, start) = (response(&asked, rcode::NOERROR, Some(ttl)), Instant::now());
        cache.store(&query, &mut response, start);
        assert_eq!(ttl_of(&response, &query), first, "{ttl} of at most {max_ttl}");
        let mut out = Vec::new();
        let found = cache.answer(&query, 512, start + secs(10), &mut out);
        assert_eq!(found == Found::Fresh, later > 0, "{ttl} of at most {max_ttl}");
        assert_eq!(ttl_of(&out, &query), later, "{ttl} of at most {max_ttl}");
    }
}

#[test]
fn large_answers_take_the_room_of_several() {
    let cache = Cache::new(Options::default());
    let now = Instant::now();
    for index in 0..500 {
        let asked = question(&format!("n{index}.example"));
        let query = Query::parse(&asked).expect("query");
        let mut large = Vec::new();
        let mut writer = Writer::start(&mut large, &query, 65_535);
        while writer.address(Section::Answer, Owner::QUESTION, [1, 2, 3, 4].into(), 60) {}
        writer.finish(rcode::NOERROR, false);
        // What does not fit into it is not there.
        set_flags(&mut large, flag::TC, 0);
        cache.store(&query, &mut large, now);
        let found = cache.answer(&query, 65_535, now, &mut Vec::new());
        assert_eq!(found, Found::Fresh, "the newest is kept");
    }
    let (counts, most) = (cache.counts(), 9984 * (BYTES_PER_ENTRY + 32));
    assert!((most / 2..=most).contains(&counts.bytes[0]), "{counts:?}");
    assert_eq!(counts.entries[0] + counts.evictions[0], 500);
    // Small ones are as many as ever.
    let cache = Cache::new(Options::default());
    for index in 0..20_000 {
        let asked = question(&format!("n{index}.example"));
        let query = Query::parse(&asked).expect("query");
        cache.store(&query, &mut response(&asked, rcode::NOERROR, Some(60)), now);
    }
    assert!(cache.counts().entries[0] > 9800, "{:?}", cache.counts());
}

#[test]
fn a_denial_behind_aliases_lasts_as_long_as_its_own_zone_and_each_alias_says() {
    const ALIAS: (&str, u32, &str) = ("a.example", 300, "b.test");
    for (what, code, aliases, soas, kept_for) in [
        (
            "no data behind an alias",
            rcode::NOERROR,
            &[ALIAS][..],
            &[("test", 60, 40)][..],
            Some(40),
        ),
        (
            "no name behind an alias",
            rcode::NXDOMAIN,
            &[ALIAS],
            &[("test", 30, 40)],
            Some(30),
        ),
        (
            "a short alias",
            rcode::NXDOMAIN,
            &[("a.example", 10, "b.test")],
            &[("test", 60, 40)],
            Some(10),
        ),
        (
            "two aliases",
            rcode::NXDOMAIN,
            &[ALIAS, ("b.test", 20, "c.org")],
            &[("org", 60, 40), ("test", 7, 7)],
            Some(20),
        ),
        (
            "the SOA of the alias's zone alone",
            rcode::NXDOMAIN,
            &[ALIAS],
            &[("example", 60, 40)],
            None,
        ),
        (
            "aliases that the upstream did not follow",
            rcode::NOERROR,
            &[ALIAS],
            &[],
            Some(300),
        ),
        ("no alias", rcode::NOERROR, &[], &[("example", 60, 40)], Some(40)),
        ("another's SOA", rcode::NOERROR, &[], &[("org", 60, 40)], None),
    ] {
        let wire = |name: &str| Name::parse(name).expect("name").wire().to_vec();
        let asked = question("a.example");
        let query = Query::parse(&asked).expect("query");
        let mut denial = Vec::new();
        let mut writer = Writer::start(&mut denial, &query, 512);
        for (owner, ttl, target) in aliases {
            writer.name(
                Section::Answer,
                Owner::Literal(&wire(owner)),
                rtype::CNAME,
                *ttl,
                &wire(target),
            );
        }
        for (zone, ttl, minimum) in soas {
            let owner = wire(zone);
            writer.record(
                Section::Authority,
                Owner::Literal(&owner),
                rtype::SOA,
                *ttl,
                |out| {
                    out.extend([&[0; 18][..], &u32::to_be_bytes(*minimum)].concat());
                },
            );
        }
        writer.finish(code, false);
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.store(&query, &mut denial, start);
        let found = |after| cache.answer(&query, 512, start + secs(after), &mut Vec::new()) == Found::Fresh;
        let expected = kept_for.map_or([false; 2], |_| [true, false]);
        let end = kept_for.unwrap_or(1);
        assert_eq!([found(end - 1), found(end)], expected, "{what}");
    }
}
