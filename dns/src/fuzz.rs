//! What holds for every input, whoever makes it up: the fuzz targets of `dns/fuzz`, and the noise of the tests here.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures::executor::block_on;
use model::Snapshot;

use crate::answer::{Opt, fit, followed_answers, hide_ad};
use crate::cache::{self, Cache};
use crate::chain::{Arrived, Block, Client, Outcome, Route, Server, Worker, limit};
use crate::corefile::{Corefile, plugins};
use crate::feed::Source;
use crate::forward::believed;
use crate::metrics::{Answerer, Registry, Transport, ZoneLabel};
use crate::name::Name;
use crate::question::{HEADER, Query, Record, expand_name, flag, flags_of, query_packet, rtype, set_flags};
use crate::reply::Reply;
use crate::samples;
use crate::zone::Table;

/// Every plugin that needs no network.
const COREFILE: &str = r#"
. {
    loadbalance
    any
    rewrite name suffix .svc.old .svc.cluster.local answer auto
    rewrite name regex ^odd(.*)[.]test[.]$ {1}.
    rewrite ttl suffix .short.test 1-5
    template IN A alias.test {
        answer "{{ .Name }} 7 IN CNAME svc1.testns.svc.cluster.local"
    }
    template IN TXT made.test {
        answer "{{ .Name }} 7 IN TXT {{ .Name }}"
    }
    hosts /dev/null {
        192.0.2.1 hosted.test *.wild.test
        2001:db8::1 hosted.test
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    aaaa off
    cache
    whoami
}
minimal.test {
    minimal
    acl {
        block type TXT
        filter type MX
    }
    whoami
}
"#;

static SERVER: LazyLock<Server> = LazyLock::new(server);

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(worker());
}

fn server() -> Server {
    let source = Arc::new(Source::default());
    let table = Table::default().updated(&Snapshot::default(), &samples::crowded(), 1);
    source.table.store(Arc::new(table));
    let corefile = Corefile::parse("Corefile", COREFILE, &|_| None).expect("invariant: it is right");
    let routes = corefile.blocks.iter().flat_map(|config| {
        let source = config.kubernetes.as_ref().map(|_| Arc::clone(&source));
        let block = Arc::new(Block::new(config, source, None));
        config.keys.iter().map(move |key| Route {
            zone: key.zone.clone(),
            block: Arc::clone(&block),
            counters: 0,
        })
    });
    Server::new(routes.collect(), 0)
}

fn worker() -> Worker {
    let label = ZoneLabel {
        server: "dns://:53".to_owned(),
        zone: ".".to_owned(),
    };
    Worker::new(Registry::new(vec![label]).shard())
}

/// A client's packet: nothing panics, only what is no query gets no answer, and the answer echoes id and question,
/// holds what its header says, and is not longer than the client can take.
///
/// # Panics
/// When one of these does not hold.
pub fn packet(bytes: &[u8]) {
    let stranger = SocketAddr::from(([192, 0, 2, 1], 4000));
    let own = SocketAddr::from(([127, 0, 0, 1], 4000));
    for (address, transport) in [(stranger, Transport::Udp), (own, Transport::Tcp)] {
        let client = Client { address, transport };
        let mut out = Vec::new();
        let arrived = Arrived::now(bytes, client);
        match WORKER.with_borrow_mut(|worker| SERVER.answer_now(arrived, worker, &mut out)) {
            Outcome::Silence => {
                assert!(bytes.len() < HEADER || flags_of(bytes) & flag::QR != 0, "silence");
                continue;
            }
            Outcome::Reply => {}
            Outcome::Later(denial) => {
                let shard = WORKER.with_borrow(|worker| Arc::clone(&worker.shard));
                let waited = block_on(SERVER.answer(arrived, denial, &shard));
                out = waited.expect("an answer to what was let in");
            }
        }
        check_answer(&out, bytes, transport);
    }
}

fn check_answer(answer: &[u8], asked: &[u8], transport: Transport) {
    let Ok(query) = Query::parse(asked) else {
        check_echo(answer, asked, HEADER);
        assert_eq!(answer.len(), HEADER, "a header alone");
        return;
    };
    check_echo(answer, asked, query.question_end);
    assert!(answer.len() <= limit(&query, transport), "{} bytes", answer.len());
    let mut at = query.question_end;
    for _ in 0..record_count(answer) {
        assert!(expand_name(answer, at).is_some(), "an owner that is a name");
        (_, at) = Record::read(answer, at).expect("a whole record");
    }
    assert_eq!(at, answer.len(), "nothing behind the last record");
}

fn check_echo(answer: &[u8], asked: &[u8], question_end: usize) {
    assert_eq!(answer.get(..2), asked.get(..2), "the id");
    assert_eq!(
        answer.get(HEADER..question_end),
        asked.get(HEADER..question_end),
        "the question"
    );
    assert!(flags_of(answer) & flag::QR != 0, "a response");
}

fn record_count(packet: &[u8]) -> usize {
    let counts = [6, 8, 10].map(|at| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]])));
    counts.iter().sum()
}

/// What an upstream sends, once as it is, and once with flags, counts and records of its own behind the question: what
/// is believed becomes an answer with the client's id and question, of the client's length, also out of the cache.
///
/// # Panics
/// When that does not hold.
pub fn upstream_reply(bytes: &[u8]) {
    let name = Name::parse("www.example").expect("invariant: a name");
    let plain = query_packet(4711, name.wire(), rtype::A);
    let mut with_opt = plain.clone();
    let opt = Opt {
        udp_size: 1232,
        ..Opt::default()
    };
    opt.add_to(&mut with_opt);
    for asked in [&plain, &with_opt] {
        let query = Query::parse(asked).expect("invariant: a query");
        check_reply(bytes.to_vec(), &query);
        if let Some((own, records)) = bytes.split_first_chunk::<8>() {
            let question = &query.head()[HEADER..];
            let mut head = [&[0, 0, own[0], own[1], 0, 1], &own[2..], question].concat();
            set_flags(&mut head, flag::QR | flag::OPCODE, flag::QR);
            check_reply([&head, records].concat(), &query);
        }
    }
}

fn check_reply(response: Vec<u8>, query: &Query<'_>) {
    let Some(mut answer) = believed(response, query) else {
        return;
    };
    let limit = query.udp_limit();
    let cache = Cache::new(cache::Options::default());
    cache.store(query, &mut answer, Instant::now());
    let mut kept = Vec::new();
    cache.answer(query, limit, Instant::now(), &mut kept);
    hide_ad(&mut answer, query);
    fit(&mut answer, query, limit);
    let corefile = Corefile::parse("Corefile", ". {\n minimal\n loadbalance\n}", &|_| None);
    let corefile = corefile.expect("invariant: it is right");
    let block = Block::new(&corefile.blocks[0], None, None);
    for mut answer in [answer, kept] {
        if answer.is_empty() {
            // Nothing was kept.
            continue;
        }
        let _ = followed_answers(&answer);
        if let Some(reply) = Reply::read(&answer, query) {
            let mut again = Vec::new();
            reply.write(query, limit, &mut again);
            check_answer(&again, query.packet(), Transport::Udp);
        }
        for rotation in [0, 1, usize::MAX] {
            block.trim(query, Answerer::Forward, rotation, &mut answer);
            check_echo(&answer, query.packet(), query.question_end);
            assert!(answer.len() <= limit, "{} bytes", answer.len());
        }
    }
}

/// A Corefile: it is read the same each time, or what is wrong is said with a line that there is.
///
/// # Panics
/// When it is not.
pub fn corefile(text: &str) {
    let read = || Corefile::look_over_text("Corefile", text, &|_| None, false);
    let (corefile, errors) = read();
    let lines = text.lines().count() as u32;
    for error in &errors {
        assert!(error.file != "Corefile" || error.line <= lines, "{error}");
        assert!(!error.message.is_empty(), "{error:?}");
    }
    for plugin in corefile.blocks.iter().flat_map(|block| block.plugins()) {
        assert!(plugins::KNOWN.contains(&plugin), "{plugin}");
    }
    assert_eq!(read(), (corefile, errors));
}

#[cfg(test)]
mod tests;
