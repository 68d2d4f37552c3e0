//! Takes out of a text what opens a door, should it have got into a log or an error: tokens, keys, passwords in addresses.
//! Nothing of the kind is collected; this is the second lock. What only looks like one goes too, rather than the reverse.
//!
//! Each pattern runs over the text once, so that a long log takes as long as it is long.

use std::ops::Range;

use serde_json::Value;

/// What stands in its place.
const LEFT_OUT: &str = "<left out>";

/// A private key or certificate as PEM, and as base64 of it.
const PEM: &str = "-----BEGIN";
const PEM_END: &str = "-----END";
const DASHES: &str = "-----";
const PEM_AS_BASE64: &str = "LS0tLS1CRUdJTi";
/// How a token of JSON begins (`{"` in base64).
const TOKEN: &str = "eyJ";
/// Shorter ones are words, where nothing in front says what they are.
const SHORTEST_TOKEN: usize = 20;
/// What stands in front of a password or token: the end of a name, in any case.
const NAMES: [&str; 9] = [
    "apikey",
    "api-key",
    "api_key",
    "authorization",
    "passphrase",
    "passwd",
    "password",
    "secret",
    "token",
];
/// As much of a name is looked at.
const LONGEST_NAME: usize = 64;
/// Of HTTP's authorization (RFC 9110 §11.1).
const SCHEMES: [&str; 2] = ["bearer ", "basic "];
/// Of a bootstrap token: its id and its secret (`kubeadm token`).
const BOOTSTRAP: (usize, usize) = (6, 16);

/// The text without it. Lines that are JSON stay so.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut plain = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some(object) = object(line) {
            clean += &redact_plain(&text[plain..at]);
            plain = at + line.len();
            let safe = redact_value(object.clone());
            if safe == object {
                clean += line;
            } else {
                clean += &safe.to_string();
                clean += &line[line.trim_end().len()..];
            }
        }
        at += line.len();
    }
    clean + &redact_plain(&text[plain..])
}

/// The value with each of its strings without it.
#[must_use]
pub fn redact_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact(&text)),
        Value::Array(values) => values.into_iter().map(redact_value).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| match value {
                Value::String(text) if is_secrets_field(&name) && !text.is_empty() => (name, LEFT_OUT.into()),
                value => (name, redact_value(value)),
            });
            fields.collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn object(line: &str) -> Option<Value> {
    let is_one = line.starts_with('{') && line.trim_end().ends_with('}');
    is_one.then(|| serde_json::from_str(line).ok())?
}

fn redact_plain(text: &str) -> String {
    let mut secrets = [
        pems(text),
        encoded_pems(text),
        tokens(text),
        bootstrap_tokens(text),
        credentials(text),
        named(text),
        userinfos(text),
    ]
    .concat();
    secrets.sort_unstable_by_key(|secret| secret.start);
    let mut clean = String::with_capacity(text.len());
    let mut done = 0;
    for secret in secrets {
        if secret.start > done || done == 0 {
            clean += &text[done..secret.start];
            clean += LEFT_OUT;
        }
        done = done.max(secret.end);
    }
    clean + &text[done..]
}

fn is_of_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '=' | '+' | '/' | '~')
}

/// How far characters of a kind go.
fn run(text: &str, is_of_it: impl Fn(char) -> bool) -> usize {
    text.find(|character| !is_of_it(character)).unwrap_or(text.len())
}

fn word(text: &str) -> usize {
    run(text, |character| !character.is_whitespace())
}

fn pems(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(PEM).map(|place| at + place) {
        let body = &text[start..];
        // Of one that is cut off nothing is left in its string.
        let ends = body.match_indices(['"', '-']);
        let mut ends = ends.filter(|(place, mark)| *mark == "\"" || body[*place..].starts_with(PEM_END));
        let length = match ends.next() {
            Some((place, "\"")) => body[..place].trim_end_matches('\\').len(),
            Some((place, _)) => {
                let tail = place + PEM_END.len();
                let label = run(&body[tail..], |character| !matches!(character, '\n' | '"' | '-'));
                let dashes = body[tail + label..].starts_with(DASHES);
                tail + label + if dashes { DASHES.len() } else { 0 }
            }
            None => body.len(),
        };
        at = start + length;
        found.push(start..at);
    }
    found
}

/// Also those that are wrapped into lines.
fn encoded_pems(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(PEM_AS_BASE64).map(|place| at + place) {
        at = start + run(&text[start..], is_of_token);
        while let Some(line) = next_line(&text[at..]) {
            at += line;
        }
        found.push(start..at);
    }
    found
}

/// How far a line goes that has base64 and nothing else, with the break before it.
fn next_line(text: &str) -> Option<usize> {
    let breaks = ["\r\n", "\n", "\\r\\n", "\\n"];
    let begin = breaks.iter().find(|begin| text.starts_with(**begin))?.len();
    let begin = begin + run(&text[begin..], |character| matches!(character, ' ' | '\t'));
    let length = run(&text[begin..], is_of_token);
    let is_whole = text[begin + length..]
        .chars()
        .next()
        .is_none_or(|next| matches!(next, '\r' | '\n' | '\\' | '"' | '\''));
    (length > 0 && is_whole).then_some(begin + length)
}

fn tokens(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut done = 0;
    for (start, _) in text.match_indices(TOKEN) {
        let before = text[..start].chars().next_back();
        let is_inside = before.is_some_and(|before| before != '=' && is_of_token(before));
        if start < done || is_inside {
            continue;
        }
        done = start + run(&text[start..], is_of_token);
        if done - start >= SHORTEST_TOKEN {
            found.push(start..done);
        }
    }
    found
}

fn bootstrap_tokens(text: &str) -> Vec<Range<usize>> {
    let (id, secret) = BOOTSTRAP;
    let is_of_one = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_of_name =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_');
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(is_of_name).map(|place| at + place) {
        let length = run(&text[start..], is_of_name);
        let name = text[start..start + length].trim_end_matches('.');
        let parts = name.split_once('.');
        // Without a digit it is a name of DNS.
        let is_token = parts.is_some_and(|(front, back)| {
            is_of_one(front, id) && is_of_one(back, secret) && back.bytes().any(|byte| byte.is_ascii_digit())
        });
        if is_token {
            found.push(start..start + name.len());
        }
        at = start + length;
    }
    found
}

/// `Bearer …` and `Basic …`, also without a name in front.
fn credentials(text: &str) -> Vec<Range<usize>> {
    // No character is longer or shorter for it.
    let lower = text.to_ascii_lowercase();
    let places = SCHEMES.iter().flat_map(|scheme| lower.match_indices(scheme));
    let found = places.filter_map(|(place, scheme)| {
        let start = place + scheme.len();
        let length = run(&text[start..], is_of_token);
        let is_word = length < SHORTEST_TOKEN
            && text[start..start + length]
                .trim_end_matches('.')
                .bytes()
                .all(|byte| byte.is_ascii_lowercase());
        (!is_word).then_some(start..start + length)
    });
    found.collect()
}

/// Whether a value of this name is a secret.
fn is_secrets_name(name: &str) -> bool {
    let tail = |end: &str| name.len().checked_sub(end.len()).and_then(|at| name.get(at..));
    NAMES
        .iter()
        .any(|end| tail(end).is_some_and(|tail| tail.eq_ignore_ascii_case(end)))
}

/// The same of a field of JSON: where objects are fields by their names, those are `namespace/name`.
fn is_secrets_field(name: &str) -> bool {
    is_secrets_name(name) && name.chars().all(is_of_field)
}

fn is_of_field(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
}

/// `token=…`, `password: …`, `"client-secret":"…"`.
fn named(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut done = 0;
    for (mark, _) in text.match_indices([':', '=']) {
        let before = text[..mark].trim_end_matches(' ');
        let before = before.strip_suffix(['"', '\'']).unwrap_or(before);
        let before = before.trim_end_matches('\\');
        let name = before.bytes().rev().take(LONGEST_NAME);
        let name = before.len() - name.take_while(|byte| is_of_field(char::from(*byte))).count();
        let is_path = before[..name].ends_with('/') || before[..name].ends_with("::");
        if mark < done || is_path || !is_secrets_name(&before[name..]) {
            continue;
        }
        let after = &text[mark + 1..];
        // A path of Rust, a comparison.
        if after.starts_with([':', '=']) {
            continue;
        }
        let start = mark + 1 + run(after, |character| character == ' ');
        if let Some(value) = value(&text[start..]) {
            done = start + value.end;
            found.push(start + value.start..done);
        }
    }
    found
}

/// Where a value lies in what begins with it: in its quotes, or up to white space; behind its scheme.
fn value(text: &str) -> Option<Range<usize>> {
    let escapes = run(text, |character| character == '\\');
    let quote = text[escapes..]
        .chars()
        .next()
        .filter(|first| matches!(first, '"' | '\''));
    let begin = quote.map_or(0, |quote| escapes + quote.len_utf8());
    let scheme = SCHEMES.iter().find(|scheme| {
        let front = text.get(begin..begin + scheme.len());
        front.is_some_and(|front| front.eq_ignore_ascii_case(scheme))
    });
    let start = begin + scheme.map_or(0, |scheme| scheme.len());
    let rest = &text[start..];
    let length = match quote {
        Some(quote) => quoted(rest, quote, escapes),
        None => rest[..word(rest)]
            .trim_end_matches(['"', '\'', '\\', ')', '}', ']', ',', ';', '.', ':'])
            .len(),
    };
    (length > 0 && !rest.starts_with(LEFT_OUT)).then_some(start..start + length)
}

/// Up to the quote that has as many backslashes in front as the one that it began with, or to the end of the line.
fn quoted(text: &str, quote: char, escapes: usize) -> usize {
    let mut before = 0;
    for (at, character) in text.char_indices() {
        match character {
            '\\' => before += 1,
            '\n' => return at,
            _ if character == quote && before <= escapes => return at - before,
            _ => before = 0,
        }
    }
    text.len()
}

/// `https://user:password@host`, also where the password is not escaped, and `https://token@host`.
fn userinfos(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find("://").map(|place| at + place + 3) {
        let authority = &text[start..][..word(&text[start..])];
        if let Some(at) = authority.rfind('@').filter(|length| *length > 0) {
            found.push(start..start + at);
        }
        at = start + authority.len();
    }
    found
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_keys_and_passwords_go_and_the_rest_stays() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl-_x";
        for (text, expected) in [
            ("nothing to hide", "nothing to hide"),
            (&format!("401 for {token}: wrong"), "401 for <left out>: wrong"),
            (
                &format!("a {{\"token\":\"{token}\"}} b {token}"),
                "a {\"token\":\"<left out>\"} b <left out>",
            ),
            (
                "Authorization: Bearer abcdefghij0123456789abcdef end",
                "Authorization: Bearer <left out> end",
            ),
            ("the bearer of news", "the bearer of news"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\nafter",
                "<left out>\nafter",
            ),
            (
                "cut off -----BEGIN RSA PRIVATE KEY-----\nMHc",
                "cut off <left out>",
            ),
            (
                "{\"error\":\"-----BEGIN RSA PRIVATE KEY-----\\nMHc\",\"node\":\"a\"}",
                "{\"error\":\"<left out>\",\"node\":\"a\"}",
            ),
            ("key: LS0tLS1CRUdJTiBFQyBQUklWQVRF rest", "key: <left out> rest"),
            (
                "dial https://root:s3cret@10.0.0.1:2379/v3 and https://10.0.0.1:2379/a@b:c",
                "dial https://<left out>@10.0.0.1:2379/v3 and https://<left out>@b:c",
            ),
            (
                "dial https://10.0.0.1:2379/v3, a@b",
                "dial https://10.0.0.1:2379/v3, a@b",
            ),
            (
                "dial https://root:a/b?c#d\"e@10.0.0.1: refused",
                "dial https://<left out>@10.0.0.1: refused",
            ),
            (
                "clone https://ghp0123@example.org/x",
                "clone https://<left out>@example.org/x",
            ),
            (
                "{\"url\":\"https://10.0.0.1/\",\"by\":\"a@b\"}",
                "{\"url\":\"https://10.0.0.1/\",\"by\":\"a@b\"}",
            ),
            ("sent Basic cm9vdDpzM2NyZXQ= there", "sent Basic <left out> there"),
            (
                "authorization: bearer short.",
                "authorization: bearer <left out>.",
            ),
            (
                "{\"authorization\": \"Bearer abc\"} \"x\"",
                "{\"authorization\": \"Bearer <left out>\"} \"x\"",
            ),
            (
                "GET /x?token=opaque1 and password: hunter2, client-secret='a b' end",
                "GET /x?token=<left out> and password: <left out>, client-secret='<left out>' end",
            ),
            (
                "body=\"{\\\"token\\\":\\\"opaque\\\",\\\"a\\\":1}\"",
                "body=\"{\\\"token\\\":\\\"<left out>\\\",\\\"a\\\":1}\"",
            ),
            (
                "{\"db_password\":\"hunter\",\"default/token\":\"a\"}\nnext",
                "{\"db_password\":\"<left out>\",\"default/token\":\"a\"}\nnext",
            ),
            (
                "Service default/token:80 of causeway::token: kept, passwordFile: /etc/p",
                "Service default/token:80 of causeway::token: kept, passwordFile: /etc/p",
            ),
            ("joined by abcdef.0123456789abcdef.", "joined by <left out>."),
            (
                "node worker.exampleexamplee and abcdef.0123456789abcdef.svc",
                "node worker.exampleexamplee and abcdef.0123456789abcdef.svc",
            ),
            (
                "key: LS0tLS1CRUdJTiBFQyBQUklWQVRF\n  IEtFWS0tLS0tCk1IY0NBUUVF\n  SU9jd3Q=\nnext: line",
                "key: <left out>\nnext: line",
            ),
            (
                "body=\"{\\\"key\\\":\\\"-----BEGIN KEY-----\\nMHc\\\"}\"",
                "body=\"{\\\"key\\\":\\\"<left out>\\\"}\"",
            ),
            (
                "{\"error\":\"said \\\"-----BEGIN KEY-----\\nMHc\\\"\",\"node\":\"a\"}",
                "{\"error\":\"said \\\"<left out>\\\"\",\"node\":\"a\"}",
            ),
            (
                "heyJude-the-fourth-of-its-name-is-no-token",
                "heyJude-the-fourth-of-its-name-is-no-token",
            ),
        ] {
            assert_eq!(redact(text), expected, "{text}");
            assert_eq!(redact(expected), expected, "{text}");
        }
    }

    #[test]
    fn strings_of_json_go_each_for_itself() {
        let value = json!({
            "seen": ["said \"-----BEGIN KEY-----\nMHc\"", "https://10.0.0.1", "a@b", 7],
            "token": "opaque",
            "password": null,
        });
        let expected = json!({
            "seen": ["said \"<left out>\"", "https://10.0.0.1", "a@b", 7],
            "token": "<left out>",
            "password": null,
        });
        assert_eq!(redact_value(value), expected);
    }

    #[test]
    fn a_long_log_takes_as_long_as_it_is_long() {
        for piece in [
            "dial https://root:s3cret@10.0.0.1 ",
            "https://10.0.0.1",
            "=eyJ",
            "token=\"",
            "-----BEGIN-----END",
            "LS0tLS1CRUdJTi\n",
        ] {
            // A second each, and hours where each hit looks through the rest.
            let _ = redact(&piece.repeat((1 << 20) / piece.len()));
        }
    }
}
