//! The rows; `script` explains the words.

/// What is run, on an empty key space, and what it shows.
pub struct Row {
    /// What both servers have in common.
    pub claim: &'static str,
    /// The operations.
    pub script: &'static str,
    /// Where our store rightly answers otherwise than etcd 3.4 (Debian's).
    pub differs: Option<Differs>,
}

/// Why the answers differ, and what ours are.
pub struct Differs {
    /// The reason.
    #[expect(dead_code, reason = "it is for the reader")]
    pub why: &'static str,
    /// Our transcript.
    pub ours: &'static str,
}

const fn row(claim: &'static str, script: &'static str) -> Row {
    Row {
        claim,
        script,
        differs: None,
    }
}

/// The table.
pub const ROWS: &[Row] = &[
    // --- put and get
    row("a key that is not there is an empty answer", "get a"),
    row(
        "a put creates, then changes, a key",
        "put a 1\nget a\nput a 2\nget a",
    ),
    row(
        "a put returns the version before if asked",
        "put a 1 prev\nput a 2 prev\nput a 3",
    ),
    row("an empty value is a value", "put a -\nget a"),
    row("no key is an error", "put - 1\nget -\ndel -"),
    row(
        "a put can keep the value",
        "put a 1\nput a - keep-value prev\nget a",
    ),
    row(
        "a put that keeps the value of nothing is an error",
        "put a - keep-value\nget a",
    ),
    row(
        "a put that keeps the value brings none",
        "put a 1\nput a 2 keep-value",
    ),
    row(
        "a put that keeps the lease brings none",
        "put a 1\nput a 2 keep-lease lease=7",
    ),
    row(
        "a put that keeps the lease of nothing is an error",
        "put a 1 keep-lease",
    ),
    row("a value of a mebibyte is taken", "put a @1048576\nget a"),
    row(
        "a request of more than one and a half mebibytes is refused",
        "put a @1700000\ntxn { } { put a @1000000 ; put b @1000000 } { }\nget a from",
    ),
    row(
        "a key keeps its creation until it is deleted",
        "put a 1\nput a 2\ndel a\nput a 3\nget a",
    ),
    // --- ranges
    row(
        "a prefix is a range",
        "put a 1\nput a/x 2\nput a/y 3\nput b 4\nget a/ prefix\nget a prefix",
    ),
    row(
        "a range excludes its end",
        "put a 1\nput b 2\nput c 3\nget a end=c\nget b end=b\nget c end=a",
    ),
    row(
        "from a key on",
        "put a 1\nput b 2\nput c 3\nget b from\nget d from",
    ),
    row(
        "the count is not cut by the limit",
        "put a 1\nput b 2\nput c 3\nget a from limit=2\nget a from limit=3\nget a from limit=9",
    ),
    row(
        "only the count",
        "put a 1\nput b 2\nget a from count\nget a from count limit=1\nget x count",
    ),
    row("only the keys", "put a 1\nput b 2\nget a from keys"),
    row(
        "a negative limit is none",
        "put a 1\nput b 2\nget a from limit=-1",
    ),
    row(
        "an old revision",
        "put a 1\nput a 2\nput b 1\ndel a\nget a rev=+1\nget a rev=+2\nget a from rev=+2\nget a rev=+4\nget a from rev=+3",
    ),
    row("a future revision", "put a 1\nget a rev=+2\nget a rev=+9"),
    row("a negative revision is the newest", "put a 1\nget a rev=-1"),
    row(
        "bounds of the modification",
        "put a 1\nput b 2\nput c 3\nget a from minmod=+2\nget a from maxmod=+2\nget a from minmod=+2 maxmod=+2",
    ),
    row(
        "bounds of the creation",
        "put a 1\nput b 2\nput a 3\nget a from mincreate=+2\nget a from maxcreate=+1",
    ),
    row(
        "bounds leave the count alone, and are taken before the limit",
        "put a 1\nput b 2\nput c 3\nget a from minmod=+2 limit=1",
    ),
    row(
        "sorted by key",
        "put b 1\nput a 2\nget a from sort=key:desc\nget a from sort=key:asc\nget a from sort=key:none",
    ),
    row(
        "sorted by value",
        "put a 3\nput b 1\nput c 2\nget a from sort=value:asc\nget a from sort=value:desc",
    ),
    row(
        "sorted by version",
        "put a 1\nput a 2\nput b 1\nput c 1\nput c 2\nput c 3\nget a from sort=version:asc\nget a from sort=version:desc",
    ),
    row(
        "sorted by creation",
        "put b 1\nput a 2\nput b 3\nget a from sort=create:asc\nget a from sort=create:desc",
    ),
    row(
        "sorted by modification",
        "put b 1\nput a 2\nput b 3\nget a from sort=mod:asc\nget a from sort=mod:desc",
    ),
    row(
        "sorted before it is cut",
        "put a 3\nput b 2\nput c 1\nget a from sort=value:asc limit=2\nget a from sort=value:desc limit=1",
    ),
    row(
        "without an order cut before it is sorted",
        "put a 3\nput b 2\nput c 1\nget a from sort=value:none limit=1",
    ),
    // --- delete
    row("a delete counts", "put a 1\ndel a\ndel a\nget a"),
    row(
        "a delete returns what it deleted if asked",
        "put a 1\nput b 2\ndel a from prev\ndel a from prev",
    ),
    row(
        "a delete of a range is one revision",
        "put a 1\nput b 2\nput c 3\ndel a end=c\nget a from",
    ),
    row(
        "a delete of a prefix",
        "put a/1 1\nput a/2 2\nput b 3\ndel a/ prefix\nget a from",
    ),
    row("a delete of nothing is no revision", "put a 1\ndel x\nget a"),
    // --- transactions
    row(
        "create if absent",
        "txn { create a = 0 } { put a 1 } { get a }\ntxn { create a = 0 } { put a 2 } { get a }",
    ),
    row(
        "change if unchanged",
        "put a 1\ntxn { mod a = +1 } { put a 2 } { get a }\ntxn { mod a = +1 } { put a 3 } { get a }",
    ),
    row(
        "delete if unchanged",
        "put a 1\ntxn { mod a = +1 } { del a prev } { get a }\ntxn { mod a = +1 } { del a } { get a }",
    ),
    row(
        "every field can be compared",
        "put a 1\nput a 2\ntxn { version a = 2 ; create a = +1 ; mod a = +2 ; value a = 2 ; lease a = 0 } { get a } { }",
    ),
    row(
        "every relation, on versions",
        "put a 1\nput a 2\ntxn { version a > 1 ; version a < 3 ; version a != 1 } { get a } { }\ntxn { version a > 2 } { } { get a }\ntxn { version a < 2 } { } { get a }\ntxn { version a != 2 } { } { get a }",
    ),
    row(
        "every relation, on values",
        "put a m\ntxn { value a > l ; value a < n ; value a != x } { get a } { }\ntxn { value a > m } { } { get a }",
    ),
    row(
        "an absent key has version 0, but no value",
        "txn { version a = 0 ; mod a < 1 } { put b 1 } { }\ntxn { value a = - } { } { put c 1 }\ntxn { value a != x } { } { put d 1 }",
    ),
    row("no comparison holds", "txn { } { put a 1 } { put a 2 }\nget a"),
    row(
        "an empty transaction is no revision",
        "put a 1\ntxn { } { } { }\nget a",
    ),
    row(
        "a transaction that only reads is no revision",
        "put a 1\ntxn { } { get a ; get b } { }\nget a",
    ),
    row(
        "a transaction that deletes nothing is no revision",
        "put a 1\ntxn { } { del x ; get a } { }\nget a",
    ),
    row(
        "a transaction is one revision",
        "txn { } { put a 1 ; put b 2 ; put c 3 } { }\nget a from",
    ),
    row(
        "a transaction sees its own writes",
        "put a 0\ntxn { } { get a ; put a 1 ; get a ; del b ; put b 2 prev } { }\nput b 2\ntxn { } { get a from ; put a 1 ; get a from ; del b prev ; get a from } { }",
    ),
    row(
        "a put twice in one transaction is refused",
        "txn { } { put a 1 ; put a 2 } { }\nget a",
    ),
    row(
        "a put twice in the branch that does not run is refused too",
        "txn { } { } { put a 1 ; put a 2 }",
    ),
    row(
        "a put and a delete of the same key are refused",
        "txn { } { put a 1 ; del a } { }\ntxn { } { del a ; put a 1 } { }\ntxn { } { del a end=c ; put b 1 } { }",
    ),
    row(
        "deletes may overlap",
        "put a 1\nput b 2\ntxn { } { del a from ; del b prev ; del a } { }\nget a from",
    ),
    row(
        "a delete beside a put is accepted",
        "put a 1\nput b 1\ntxn { } { del a end=b ; put b 2 } { }\nget a from",
    ),
    row(
        "comparing a range means every key of it",
        "put a/1 x\nput a/2 x\ntxn { value a/ prefix = x } { get a/ prefix } { }\nput a/2 y\ntxn { value a/ prefix = x } { } { get a/ prefix }\ntxn { version b prefix = 0 } { put b 1 } { }\ntxn { mod a/1 end=a/3 > 0 } { put c 1 } { }",
    ),
    row(
        "a nested transaction",
        "put a 1\ntxn { value a = 1 } { txn { value a = 2 } { put b then } { put b else ; get a } ; put c 1 } { }\nget a from",
    ),
    row(
        "nested comparisons see the state before the outermost writes",
        "put a 1\ntxn { } { put a 2 ; txn { value a = 1 } { put b before } { put b after } } { }\nget a from",
    ),
    row(
        "the two branches of a nested transaction may put the same key",
        "txn { } { txn { version a = 0 } { put a 1 } { put a 2 } } { }\nget a",
    ),
    row(
        "a put beside one in a nested transaction is refused",
        "txn { } { put a 1 ; txn { } { put a 2 } { } } { }\ntxn { } { txn { } { put a 1 } { } ; txn { } { put a 2 } { } } { }\ntxn { } { del a ; txn { } { put a 2 } { } } { }\ntxn { } { txn { } { del a } { } ; put a 1 } { }",
    ),
    row(
        "a key that is not given in a transaction is refused",
        "txn { version - = 0 } { } { }\ntxn { } { put - 1 } { }\ntxn { } { get - } { }\ntxn { } { } { del - }",
    ),
    row(
        "a transaction with an error does nothing",
        "put a 1\ntxn { } { put b 1 ; get a rev=+9 } { }\ntxn { } { put b 1 ; put c - keep-value } { }\ntxn { } { put b 1 lease=4711 } { }\nget a from",
    ),
    row(
        "an old revision in a transaction",
        "put a 1\nput a 2\ntxn { } { put a 3 ; get a rev=+1 ; get a rev=+2 } { }\ntxn { } { get a rev=+4 } { }",
    ),
    row(
        "a put keeps value and lease in a transaction",
        "grant l 60\nput a 1 lease=l\ntxn { } { put a 2 keep-lease prev } { }\ntxn { } { put a - keep-value prev } { }\nget a\nttl l keys",
    ),
    // --- compaction
    row(
        "what is compacted is gone",
        "put a 1\nput a 2\nput a 3\ncompact +2\nget a rev=+1\nget a rev=+2\nget a",
    ),
    row(
        "a compaction goes only forward",
        "put a 1\nput a 2\ncompact +2\ncompact +2\ncompact +1\nput a 3\ncompact +3",
    ),
    row("a compaction of the future is refused", "put a 1\ncompact +2"),
    row(
        "a physical compaction",
        "put a 1\nput a 2\nput b 1\ndel a\ncompact +4 physical\nget a from\nget a rev=+3",
    ),
    row(
        "a deleted key is not in the compacted state",
        "put a 1\nput b 1\ndel a\nput c 1\ncompact +4\nget a from rev=+4\nput a 2\nget a",
    ),
    row(
        "a transaction cannot read what is compacted",
        "put a 1\nput a 2\nput a 3\ncompact +3\ntxn { } { get a rev=+2 } { }\ntxn { } { get a rev=+3 } { }",
    ),
    // --- leases
    row(
        "a lease is given and told",
        "grant l 60\nttl l\nttl l keys\nleases",
    ),
    row(
        "a lease of a chosen number",
        "grant l 60 id=4711\nttl 4711\ngrant m 60 id=4711\nrevoke l\ngrant l 30 id=4711",
    ),
    row(
        "a lease has a shortest time",
        "grant l 1\nttl l\ngrant m 0\nttl m",
    ),
    row(
        "a lease has a longest time",
        "grant l 9000000001\ngrant m 9000000000\nttl m",
    ),
    row(
        "a lease that is not there",
        "ttl 4711\nttl 4711 keys\nrevoke 4711\nkeepalive 4711\nput a 1 lease=4711\nget a",
    ),
    row("no lease is not a lease", "revoke 0\nttl 0"),
    row(
        "a lease knows its keys",
        "grant l 60\nput b 1 lease=l\nput a 1 lease=l\nget a from\nttl l keys\nput a 2\nttl l keys\nget a",
    ),
    row(
        "a deleted key is on no lease",
        "grant l 60\nput a 1 lease=l\nput b 1 lease=l\ndel a\nttl l keys",
    ),
    row(
        "a key moves to another lease",
        "grant l 60\ngrant m 60\nput a 1 lease=l\nput a 2 lease=m\nttl l keys\nttl m keys\nrevoke l\nget a\nrevoke m\nget a",
    ),
    row(
        "a key stays on its lease if that is asked",
        "grant l 60\nput a 1 lease=l\nput a 2 keep-lease\nttl l keys\nget a",
    ),
    row(
        "a lease's end deletes its keys in one revision",
        "grant l 60\nput a 1 lease=l\nput b 1 lease=l\nput c 1\nrevoke l\nget a from\nrevoke l\nleases",
    ),
    row(
        "a lease without keys ends without a revision",
        "put a 1\ngrant l 60\nrevoke l\nget a",
    ),
    row("a lease is renewed", "grant l 60\nkeepalive l\nttl l"),
    row(
        "a lease can be compared",
        "grant l 60\nput a 1 lease=l\ntxn { lease a = l } { get a } { }\ntxn { lease a = 0 } { } { get a }\ntxn { lease a > 0 } { get a } { }",
    ),
    row(
        "a lease that ends by itself deletes its keys",
        "grant l 2\nput a 1 lease=l\nput b 1 lease=l\nput c 1\nwatch w a from rev=+3\nevents w 3\nget a from\nttl l",
    ),
    // --- watches
    row(
        "a watch sees what comes",
        "watch w a\nput a 1\nput b 1\nput a 2\ndel a\nevents w 3",
    ),
    row(
        "a watch of a prefix",
        "watch w a/ prefix\nput a/1 1\nput b 1\nput a/2 2\ndel a/ prefix\nevents w 4",
    ),
    row(
        "a watch from a key on",
        "watch w b from\nput a 1\nput b 1\nput z 1\nevents w 2",
    ),
    row(
        "a watch of a range",
        "watch w b end=d\nput a 1\nput b 1\nput d 1\nput c 1\nevents w 2",
    ),
    row(
        "a watch from an old revision on",
        "put a 1\nput a 2\nput b 1\nput a 3\nwatch w a rev=+2\nevents w 2\nput a 4\nevents w 1",
    ),
    row(
        "a watch from the first revision on",
        "put a 1\nput a 2\ndel a\nwatch w a rev=+1\nevents w 3",
    ),
    row(
        "a watch from a future revision on",
        "watch w a rev=+3\nput a 1\nput a 2\nput a 3\nput a 4\nevents w 2",
    ),
    row(
        "a watch tells the version before if asked",
        "put a 1\nwatch w a prev rev=+1\nput a 2\ndel a\nput a 3\nevents w 4",
    ),
    row(
        "a watch without puts",
        "watch w a noput\nput a 1\nput a 2\ndel a\nput a 3\ndel a\nevents w 2",
    ),
    row(
        "a watch without deletes",
        "watch w a nodelete\nput a 1\ndel a\nput a 2\nevents w 2",
    ),
    row(
        "a transaction's events come in its order",
        "watch w a from\ntxn { } { put c 1 ; put a 2 ; put b 3 } { }\ntxn { } { del b ; put z 1 ; del a } { }\nevents w 6",
    ),
    row(
        "a deleted range comes in the order of its keys",
        "put c 1\nput a 1\nput b 1\nwatch w a from\ndel a from\nevents w 3",
    ),
    row(
        "several watches on a stream",
        "watch w a\nwatch x b on=w\nput a 1\nput b 1\nput a 2\nevents w 3",
    ),
    row(
        "a watch's number can be chosen",
        "watch w a id=7\nwatch x b on=w\nwatch y c on=w id=7\nput a 1\nput b 1\nevents w 2",
    ),
    row(
        "a watch is cancelled",
        "watch w a\nwatch x b on=w\ncancel w 0\nresponse w\nput a 1\nput b 1\nevents w 1",
    ),
    row(
        "a watch that is not there is cancelled without a word",
        "watch w a\ncancel w 99\nput a 1\nevents w 1",
    ),
    row(
        "an empty range cannot be watched",
        "watch w b end=a\nwatch x a on=w\nput a 1\nevents w 1",
    ),
    row(
        "a watch from a compacted revision on is cancelled",
        "put a 1\nput a 2\nput a 3\ncompact +3\nwatch w a rev=+1\nresponse w\nwatch x a on=w rev=+3\nevents w 1",
    ),
    row(
        "a watch does not tell a compacted version before",
        "put a 1\nput a 2\nput a 3\ncompact +2\nwatch w a rev=+2 prev\nevents w 2",
    ),
    row(
        "an idle watch tells its progress when asked",
        "put a 1\nwatch w x\nprogress w",
    ),
    row(
        "a watch in fragments",
        "watch w a from fragment\nput a @1000000\nput b @1000000\nevents w 2",
    ),
    row(
        "a lease's end is seen as deletes",
        "grant l 60\nput a 1 lease=l\nput b 1 lease=l\nwatch w a from prev\nrevoke l\nevents w 2",
    ),
    row(
        "a lease that changes is seen",
        "grant l 60\nwatch w a\nput a 1 lease=l\nput a 1\nevents w 2",
    ),
    // --- maintenance
    row("there is one member", "members"),
    row("the member leads", "put a 1\nstatus"),
    row("a snapshot has its sum", "put a 1\nsnapshot"),
    row(
        "a defragmentation changes nothing that is seen",
        "put a 1\nput a 2\ndefragment\nget a\nget a rev=+1",
    ),
    row(
        "a hash is of a revision that is not compacted",
        "put a 1\nput b 2\nput c 3\ncompact +2\nhash 0\nhash +3\nhash +2\nhash +1\nhash +9",
    ),
    row("no alarm", "alarm\nalarm clear\nalarm"),
    row(
        "the alarm NOSPACE stops what puts, and nothing else",
        "put a 1\ngrant l 60\nput b 1 lease=l\nalarm raise\nalarm\nput c 1\ntxn { } { put c 1 } { }\n\
         txn { version a = 0 } { put c 1 } { del a }\ntxn { } { del a prev } { }\ngrant m 60\nkeepalive l\n\
         revoke l\nget a from\ncompact +3\nstatus\nalarm clear\nalarm clear\nalarm\nput c 1\nstatus",
    ),
    Row {
        claim: "there are no users",
        script: "users",
        differs: Some(Differs {
            why: "who a client is says its certificate",
            ours: "error Unimplemented: etcdserver: Auth (clients are known by their certificates) is not supported by \
                   this single-node store",
        }),
    },
    // --- locks and elections
    row(
        "a lock is a key on a lease",
        "grant l 60 id=7\nlock a lease=l\nlocked a\nget a prefix\nttl l keys\nunlock a/7\nget a prefix\nunlock a/7",
    ),
    row(
        "who holds a lock gets it again",
        "grant l 60 id=7\nlock a lease=l\nlocked a\nput b 1\nlock a lease=l\nlocked a\nget a prefix",
    ),
    row(
        "a lock without a lease has one of its own",
        "lock a\nlocked a\nget a prefix count",
    ),
    row(
        "a lock waits until the one before it is free",
        "grant l 60 id=7\ngrant m 60 id=255\nlock a lease=l\nlocked a\nwatch w a/ prefix\nlock a lease=m\n\
         events w 1\nget a/ prefix\nunlock a/7\nlocked a\nget a/ prefix",
    ),
    row(
        "a lock that ends with its lease is free",
        "grant l 60 id=7\ngrant m 60 id=8\nlock a lease=l\nlocked a\nwatch w a/ prefix\nlock a lease=m\nevents w 1\n\
         revoke l\nlocked a\nget a/ prefix",
    ),
    row(
        "who waits no longer stands in nobody's way",
        "grant l 60 id=7\ngrant m 60 id=8\nlock a lease=l\nlocked a\nwatch w a/ prefix\nlock a lease=m\nevents w 1\n\
         give-up a\nevents w 1\nget a/ prefix",
    ),
    row(
        "locks and keys beside them are different queues",
        "grant l 60 id=7\nput a 1\nput ab/1 1\nlock a lease=l\nlocked a\nlock ab/1 lease=l\nlocked ab/1",
    ),
    row(
        "a lock on a lease that is not there",
        "lock a lease=99\nlocked a\nget a prefix",
    ),
    row("a lock without a key", "unlock -"),
    row("nobody leads", "leader e\nproclaim e/7 1\nresign e/7"),
    row(
        "who is elected leads, proclaims and resigns",
        "grant l 60 id=7\ncampaign e one lease=l\nelected e\nleader e\nproclaim e/7 two\nleader e\nget e/ prefix\n\
         resign e/7\nleader e\nproclaim e/7 three\nresign e/7",
    ),
    row(
        "who campaigns again proclaims",
        "grant l 60 id=7\ncampaign e one lease=l\nelected e\ncampaign e one lease=l\nelected e\n\
         campaign e two lease=l\nelected e\nleader e",
    ),
    row(
        "the next is elected when the leader resigns",
        "grant l 60 id=7\ngrant m 60 id=8\ncampaign e one lease=l\nelected e\nwatch w e/ prefix\n\
         campaign e two lease=m\nevents w 1\nleader e\nresign e/7\nelected e\nleader e",
    ),
    row(
        "who leads is observed",
        "grant l 60 id=7\ngrant m 60 id=8\nobserve e\ncampaign e one lease=l\nelected e\nnext-leader e\n\
         proclaim e/7 two\nnext-leader e\nwatch w e/ prefix\ncampaign e three lease=m\nevents w 1\nresign e/7\n\
         elected e\nnext-leader e",
    ),
    row(
        "an observer begins with who leads",
        "grant l 60 id=7\ncampaign e one lease=l\nelected e\nobserve e\nnext-leader e",
    ),
    row(
        "an election on a lease that is not there",
        "campaign e one lease=99\nelected e\nleader e",
    ),
    Row {
        claim: "a put beside a delete without an end is refused",
        script: "txn { } { del a from ; put b 1 } { }",
        differs: Some(Differs {
            why: "etcd's check takes the zero byte, which means no end, for an end, and lets a transaction write a key twice",
            ours: "error InvalidArgument: etcdserver: duplicate key given in txn request",
        }),
    },
    Row {
        claim: "a deletion in the compacted revision itself is still watched",
        script: "put a 1\ndel a\nput b 1\ncompact +2\nwatch w a from rev=+2\nevents w 2",
        differs: Some(Differs {
            why: "etcd kept no deletions at all in a compaction until 3.4.36 and 3.5.19, and lost this event",
            ours: "put @+1 before nothing\ndeleted @+2 1 []\nput @+3 before nothing\ncompacted @+3\n\
                   watch 0 @+3 created \"\" compacted 0\nwatch 0: DELETE a= 0/+2 v0 before nothing\n\
                   watch 0: PUT b=1 +3/+3 v1 before nothing",
        }),
    },
];
