//! One rule, in one spelling.
//!
//! What a restart reads back is compared with what would be written. Programs and versions print the same rule with
//! its options in different orders and with defaults spelt out or left away, so both sides are brought to one spelling
//! first; that spelling is also what is written.

use std::fmt;
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use model::{IpFamily, Protocol};

use crate::plan::{FrontendAddress, FrontendKey};

/// A rule without its chain, for example `-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule(Box<str>);

/// Options that every rule may have, whatever it matches, in the order of `iptables-save`.
const COMMON: [&str; 5] = ["-s", "-d", "-i", "-o", "-p"];

impl Rule {
    /// Brings a rule to its one spelling.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let tokens = tokens(text);
        let mut common = Vec::new();
        let mut groups: Vec<Vec<Opt<'_>>> = Vec::new();
        for option in options(&tokens) {
            match option.name {
                name if COMMON.contains(&name) => common.push(option),
                "-m" | "-j" | "-g" => groups.push(vec![option]),
                _ => match groups.last_mut() {
                    Some(group) => group.push(option),
                    None => common.push(option),
                },
            }
        }
        common.retain(|option| !option.says_nothing());
        common.sort_by_key(|option| COMMON.iter().position(|name| *name == option.name));
        for group in &mut groups {
            group.retain(|option| !option.says_nothing());
            if let [_, options @ ..] = group.as_mut_slice() {
                options.sort();
            }
        }
        groups.sort_by_key(|group| !group.first().is_some_and(Opt::is_comment_match));
        let mut text = String::new();
        for option in common.iter().chain(groups.iter().flatten()) {
            option.write(&mut text);
        }
        Self(text.into())
    }

    /// The chain or the built-in target that it leads to.
    #[must_use]
    pub fn target(&self) -> Option<String> {
        let tokens = tokens(&self.0);
        let target = options(&tokens).find(|option| matches!(option.name, "-j" | "-g"))?;
        target.values.first().map(|value| value.text.clone())
    }

    /// Options with their values, for a test that walks rules as the kernel does.
    #[cfg(test)]
    pub(super) fn parts(&self) -> Vec<(bool, String, String)> {
        let tokens = tokens(&self.0);
        let part = |option: Opt<'_>| {
            let value = option.values.first().map(|value| value.text.clone());
            (option.negated, option.name.to_owned(), value.unwrap_or_default())
        };
        options(&tokens).map(part).collect()
    }

    /// The frontend that a dispatching rule takes packets of; by node port when it names no address.
    #[must_use]
    pub fn frontend(&self, family: IpFamily) -> Option<FrontendKey> {
        let tokens = tokens(&self.0);
        let value = |name| {
            let option = options(&tokens).find(|option| option.name == name && !option.negated)?;
            option.values.first().map(|value| value.text.as_str())
        };
        let port: NonZeroU16 = value("--dport")?.parse().ok()?;
        let protocol = match value("-p")? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let address = match value("-d") {
            Some(network) => FrontendAddress::Service(network.parse::<IpNetwork>().ok()?.ip()),
            None => FrontendAddress::EveryNodeAddress(family),
        };
        Some(FrontendKey {
            address,
            port,
            protocol,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An option with its values.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Opt<'a> {
    name: &'a str,
    negated: bool,
    values: &'a [Token],
}

impl Opt<'_> {
    /// A network that everything is in, or the mask under which `recent` keeps addresses whole.
    fn says_nothing(&self) -> bool {
        let [value] = self.values else { return false };
        let network = || value.text.parse::<IpNetwork>().ok();
        match self.name {
            "-s" | "-d" => !self.negated && network().is_some_and(|network| network.prefix() == 0),
            "--mask" => network().is_some_and(|mask| match mask {
                IpNetwork::V4(mask) => mask.ip().to_bits() == u32::MAX,
                IpNetwork::V6(mask) => mask.ip().to_bits() == u128::MAX,
            }),
            _ => false,
        }
    }

    fn is_comment_match(&self) -> bool {
        self.name == "-m" && self.values.first().is_some_and(|value| value.text == "comment")
    }

    fn write(&self, text: &mut String) {
        let mut word = |word: &str| {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
        };
        if self.negated {
            word("!");
        }
        word(self.name);
        for value in self.values {
            let network = value.text.parse::<IpNetwork>();
            match network.ok().filter(|_| matches!(self.name, "-s" | "-d")) {
                Some(network) => word(&network.to_string()),
                None => word(&quoted(&value.text)),
            }
        }
    }
}

fn options(tokens: &[Token]) -> impl Iterator<Item = Opt<'_>> {
    let mut rest = tokens;
    std::iter::from_fn(move || {
        let negated = rest.first()?.is("!");
        rest = rest.get(usize::from(negated)..)?;
        let (name, after) = rest.split_first()?;
        let is_next = |token: &Token| token.is("!") || token.is_option();
        let length = after.iter().position(is_next).unwrap_or(after.len());
        let (values, after) = after.split_at(length);
        rest = after;
        Some(Opt {
            name: &name.text,
            negated,
            values,
        })
    })
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Token {
    text: String,
    quoted: bool,
}

impl Token {
    fn is(&self, word: &str) -> bool {
        !self.quoted && self.text == word
    }

    fn is_option(&self) -> bool {
        !self.quoted && self.text.starts_with('-')
    }
}

/// Words, as `iptables-restore` takes them apart: between double quotes, and behind a backslash there, everything is
/// text.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.peek() {
        if first.is_whitespace() {
            characters.next();
            continue;
        }
        let mut token = Token {
            text: String::new(),
            quoted: false,
        };
        let mut inside = false;
        while let Some(character) = characters.next_if(|next| inside || !next.is_whitespace()) {
            match character {
                '"' => {
                    inside = !inside;
                    token.quoted = true;
                }
                '\\' if inside => token.text.extend(characters.next()),
                other => token.text.push(other),
            }
        }
        tokens.push(token);
    }
    tokens
}

/// A word as it must be written: quoted where `iptables-restore` would read something else.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:,+[]".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from('"');
    for character in word.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

/// A comment's match. The kernel keeps 255 bytes (`XT_MAX_COMMENT_LEN`); what would end a line is no part of a name.
pub(super) fn comment(text: &str) -> String {
    let text: String = text.chars().filter(|character| !character.is_control()).collect();
    let length = text.floor_char_boundary(255);
    format!(
        "-m comment --comment {}",
        quoted(text.get(..length).unwrap_or_default())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let rule = Rule::new(text);
        assert_eq!(rule.to_string(), expected);
        assert_eq!(Rule::new(expected), rule, "its own spelling is left alone");
    }

    #[test]
    fn one_rule_has_one_spelling() {
        check(
            "-m comment --comment \"ns/a:p cluster IP\" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j KUBE-SVC-A",
            "-d 10.0.0.1/32 -p tcp -m comment --comment \"ns/a:p cluster IP\" -m tcp --dport 80 -j KUBE-SVC-A",
        );
        check(
            "-m recent --rcheck --seconds 10 --reap --name A --mask 255.255.255.255 --rsource -j A",
            "-m recent --name A --rcheck --reap --rsource --seconds 10 -j A",
        );
        check(
            "-m recent --set --name A --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource",
            "-m recent --name A --rsource --set",
        );
        check(
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        );
        check(
            "! -i veth+ -d ::/0 ! -s FD00::0001",
            "! -s fd00::1/128 ! -i veth+",
        );
        check(
            "-m tcp --dport 1 -m comment --comment \"a -j \\\"b\\\" ! c\" -j D",
            "-m comment --comment \"a -j \\\"b\\\" ! c\" -m tcp --dport 1 -j D",
        );
        check(
            "-m comment --comment \"plain\" -j A",
            "-m comment --comment plain -j A",
        );
    }

    #[test]
    fn a_comment_stays_on_its_line() {
        assert_eq!(comment("a\nCOMMIT"), "-m comment --comment aCOMMIT");
        let long = comment(&"ä ".repeat(200));
        assert_eq!(long.len(), "-m comment --comment \"\"".len() + 255);
    }

    #[test]
    fn a_rule_tells_its_frontend_and_its_target() {
        let rule = Rule::new("-d fd00::1 -p udp -m udp --dport 53 -j KUBE-SVC-A");
        let key = rule.frontend(IpFamily::V6).expect("a frontend");
        assert_eq!(key.to_string(), "[fd00::1]:53/UDP");
        assert_eq!(rule.target().as_deref(), Some("KUBE-SVC-A"));
        let rule = Rule::new("-p tcp -m tcp --dport 30080 -j KUBE-EXT-A");
        let key = rule.frontend(IpFamily::V4).expect("a frontend");
        assert_eq!(key.to_string(), "node port 30080/TCP");
        assert_eq!(
            Rule::new("! -d 127.0.0.0/8 -j KUBE-NODEPORTS").frontend(IpFamily::V4),
            None
        );
    }
}
