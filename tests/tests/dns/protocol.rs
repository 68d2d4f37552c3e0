//! The protocol around the records: sizes, EDNS, opcodes, and packets that are no question.

use std::time::Duration;

use hickory_proto::op::Message;

use crate::message::{ask_tcp, ask_udp, header, opt, query, wire};
use crate::subject::{Config, Subject};

const WAIT: Duration = Duration::from_secs(5);
/// How long nothing is waited for.
const SILENCE: Duration = Duration::from_millis(300);
const NAME: &str = "svc1.testns.svc.cluster.local.";
const TYPE_A: &[u8] = &[0, 1, 0, 1];

/// What is seen of an answer whatever it is about: its code, how many records of each section, its OPT record.
fn outline(answer: Option<Vec<u8>>) -> String {
    let Some(answer) = answer else {
        return "silence".to_owned();
    };
    if answer.len() == 12 {
        return format!("header, code {}, opcode {}", answer[3] & 15, answer[2] >> 3 & 15);
    }
    let message = Message::from_vec(&answer).expect("hickory reads it");
    let metadata = &message.metadata;
    let edns = message.edns.as_ref().map_or(String::new(), |edns| {
        let dnssec = if edns.flags().dnssec_ok { " DO" } else { "" };
        format!(", OPT {}{dnssec}", edns.max_payload())
    });
    let flags = [
        (metadata.truncation, " TC"),
        (metadata.recursion_desired, " RD"),
        (metadata.checking_disabled, " CD"),
        (metadata.authentic_data, " AD"),
    ];
    let flags: String = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    // hickory joins the OPT record's part to the header's.
    let code = u16::from(metadata.response_code);
    format!("code {code}, {} answers{flags}{edns}", message.answers.len())
}

/// A question for `NAME A` behind a header of one's own.
fn packet(flags: u16, counts: [u16; 4], behind: &[&[u8]]) -> Vec<u8> {
    let question = [&wire(NAME)[..], TYPE_A].concat();
    [header(7, flags, counts), question, behind.concat()].concat()
}

fn raw(flags: u16, counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
    [header(7, flags, counts), body.concat()].concat()
}

#[track_caller]
fn check(rows: &[(&str, Vec<u8>, &str)]) {
    let subject = Subject::start("");
    let mut wrong = Vec::new();
    for (rule, packet, expected) in rows {
        let timeout = if *expected == "silence" { SILENCE } else { WAIT };
        let found = outline(ask_udp(subject.address, packet, timeout));
        if found != *expected {
            wrong.push(format!("{rule}\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    // Whatever came, the next client is served.
    assert_eq!(subject.ask("svc1.testns.svc A", 5), "NOERROR A 10.0.0.1");
}

#[test]
fn packets_that_are_no_question_get_an_error_or_silence() {
    let name = wire(NAME);
    let one = [1, 0, 0, 0];
    let formerr = "header, code 1, opcode 0";
    let label_of_64 = [&[64][..], &[b'a'; 64], &[0]].concat();
    let long_name = [&[63][..], &[b'a'; 63]].concat().repeat(4);
    check(&[
        ("RFC 1035 §4.1.1: no header, no answer", vec![0; 11], "silence"),
        ("an empty datagram", vec![], "silence"),
        (
            "a response is never answered",
            packet(0x8100, one, &[]),
            "silence",
        ),
        (
            "twelve zero bytes are a query without a question",
            vec![0; 12],
            formerr,
        ),
        ("no question", raw(0x0100, [0; 4], &[]), formerr),
        (
            "two questions (RFC 9619)",
            packet(0x0100, [2, 0, 0, 0], &[&name, TYPE_A]),
            formerr,
        ),
        (
            "more questions than there are",
            packet(0x0100, [9, 0, 0, 0], &[]),
            formerr,
        ),
        (
            "a name that ends with the packet",
            raw(0x0100, one, &[b"\x05abc"]),
            formerr,
        ),
        ("a name without its end", raw(0x0100, one, &[b"\x01a"]), formerr),
        (
            "a question without a class",
            raw(0x0100, one, &[&name, &[0, 1, 0]]),
            formerr,
        ),
        (
            "a pointer to itself",
            raw(0x0100, one, &[&[0xc0, 12], TYPE_A]),
            formerr,
        ),
        (
            "a pointer into the header",
            raw(0x0100, one, &[&[0xc0, 4], TYPE_A]),
            formerr,
        ),
        (
            "pointers in a circle",
            raw(0x0100, one, &[&[0xc0, 14, 0xc0, 12], TYPE_A]),
            formerr,
        ),
        (
            "a label of a reserved kind",
            raw(0x0100, one, &[&[0x80, 0, 0], TYPE_A]),
            formerr,
        ),
        (
            "a label of 64 bytes",
            raw(0x0100, one, &[&label_of_64, TYPE_A]),
            formerr,
        ),
        (
            "a name of 257 bytes",
            raw(0x0100, one, &[&long_name, &[0], TYPE_A]),
            formerr,
        ),
        (
            "an OPT record that is promised",
            packet(0x0100, [1, 0, 0, 1], &[]),
            formerr,
        ),
        (
            "an OPT record that is cut",
            packet(0x0100, [1, 0, 0, 1], &[&[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 9, 1]]),
            formerr,
        ),
    ]);
}

#[test]
fn opcodes_and_classes_that_are_not_served_are_refused() {
    let one = [1, 0, 0, 0];
    let chaos = raw(0x0100, one, &[&wire("version.bind."), &[0, 16, 0, 3]]);
    let any_class = raw(0x0100, one, &[&wire(NAME), &[0, 1, 0, 255]]);
    check(&[
        (
            "opcode IQUERY",
            packet(1 << 11, one, &[]),
            "header, code 4, opcode 1",
        ),
        (
            "opcode STATUS",
            packet(2 << 11, one, &[]),
            "header, code 4, opcode 2",
        ),
        (
            "opcode UPDATE",
            packet(5 << 11, one, &[]),
            "header, code 4, opcode 5",
        ),
        (
            "an opcode of nobody",
            packet(9 << 11, one, &[]),
            "header, code 4, opcode 9",
        ),
        (
            "NOTIFY is answered like a query, as by CoreDNS",
            packet(4 << 11, one, &[]),
            "code 0, 1 answers",
        ),
        ("class CH", chaos, "code 5, 0 answers RD"),
        ("class ANY", any_class, "code 5, 0 answers RD"),
    ]);
}

#[test]
fn flags_and_edns_come_back_as_they_were_sent() {
    let one = [1, 0, 0, 0];
    let with_opt = [1, 0, 0, 1];
    let two_options: &[u8] = &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0xfd, 0xe9, 0, 1, 9];
    check(&[
        ("RD is copied", packet(0x0100, one, &[]), "code 0, 1 answers RD"),
        ("and so is its absence", packet(0, one, &[]), "code 0, 1 answers"),
        (
            "CD and AD are copied",
            packet(0x0130, one, &[]),
            "code 0, 1 answers RD CD AD",
        ),
        (
            "RFC 6891 §6.1.1: an OPT record is answered with one, in the client's size",
            packet(0, with_opt, &[&opt(1232, 0, 0, &[])]),
            "code 0, 1 answers, OPT 1232",
        ),
        (
            "RFC 3225: DO is copied",
            packet(0, with_opt, &[&opt(1232, 0, 0x80, &[])]),
            "code 0, 1 answers, OPT 1232 DO",
        ),
        (
            "options that are not known are overlooked, and cookies are not known",
            packet(0, with_opt, &[&opt(1232, 0, 0, two_options)]),
            "code 0, 1 answers, OPT 1232",
        ),
        (
            "RFC 6891 §6.1.3: another version is BADVERS",
            packet(0, with_opt, &[&opt(1232, 1, 0, &[])]),
            "code 16, 0 answers, OPT 1232",
        ),
        (
            "two OPT records are tolerated",
            packet(0, [1, 0, 0, 2], &[&opt(1232, 0, 0, &[]), &opt(1100, 0, 0, &[])]),
            "code 0, 1 answers, OPT 1100",
        ),
        (
            "bytes behind the last record are tolerated",
            packet(0, one, &[b"whatever"]),
            "code 0, 1 answers",
        ),
    ]);
}

#[test]
fn a_long_answer_holds_what_the_client_can_take() {
    let subject = Subject::with(Config {
        plugins: "bufsize 4096",
        ..Config::default()
    });
    let question = "hdls-200.testns.svc A";
    for (udp_size, answers, truncated) in [
        (None, 28, true),
        (Some(0), 28, true),
        (Some(511), 28, true),
        (Some(512), 28, true),
        (Some(1232), 73, true),
        (Some(4096), 200, false),
        (Some(65_535), 200, false),
    ] {
        let answer = ask_udp(subject.address, &query(question, udp_size), WAIT).expect("an answer");
        let limit = udp_size.map_or(512, |size| usize::from(size.max(512)));
        assert!(answer.len() <= limit, "{} bytes for {udp_size:?}", answer.len());
        let message = Message::from_vec(&answer).expect("whole records");
        assert_eq!(message.metadata.truncation, truncated, "{udp_size:?}");
        if subject.is_ours {
            // Names are compressed, so that more fit than with CoreDNS.
            assert_eq!(message.answers.len(), answers, "{udp_size:?}");
        }
    }
    let whole = Message::from_vec(&ask_tcp(subject.address, &query(question, None))).expect("an answer");
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
}

/// Longer packets are lost on some paths (DNS flag day 2020): they are sent only where the Corefile says so. CoreDNS
/// wants to be told of the bound.
#[test]
fn no_answer_is_longer_than_1232_bytes_where_the_corefile_does_not_say_so() {
    let subject = Subject::start("");
    if !subject.is_ours {
        tests::skipped(
            "the default bufsize",
            "CoreDNS sends what the client takes unless it says bufsize",
        );
        return;
    }
    let answer =
        ask_udp(subject.address, &query("hdls-200.testns.svc A", Some(4096)), WAIT).expect("an answer");
    assert!(answer.len() <= 1232, "{} bytes", answer.len());
    let message = Message::from_vec(&answer).expect("whole records");
    assert_eq!((message.answers.len(), message.metadata.truncation), (73, true));
}

#[test]
fn what_does_not_fit_beside_the_answers_is_left_out_without_a_word() {
    let subject = Subject::start("");
    // Eleven SRV records fit into 512 bytes, and no address beside them (RFC 2181 §9).
    let packet = query("hdls1.testns.svc SRV", None);
    let answer = ask_udp(subject.address, &packet, WAIT).expect("an answer");
    assert!(answer.len() <= 512);
    let message = Message::from_vec(&answer).expect("whole records");
    assert_eq!((message.answers.len(), message.metadata.truncation), (6, false));
    let whole = Message::from_vec(&ask_tcp(subject.address, &packet)).expect("an answer");
    assert!(message.additionals.len() < whole.additionals.len());
}
