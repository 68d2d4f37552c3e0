//! Pods of other nodes by their addresses: an agent knows its own pods by name, and those that are endpoints of Services.

use std::net::IpAddr;

use model::ObjectName;

use crate::ends::{Name, Subject};

/// The same command line, where pods of which this knows an address are named by that; `namespace` is that of names
/// without one. Ends stand in words of their own, in one word with an arrow, or behind `--to=`.
#[must_use]
pub fn addressed(
    words: &[String],
    namespace: &str,
    address_of: impl Fn(&ObjectName) -> Option<IpAddr>,
) -> Vec<String> {
    let end = |text: &str| {
        let name = Name::parse_in(namespace, text).ok()?;
        let Subject::Pod(pod) = &name.subject else {
            return None;
        };
        let subject = Subject::Address(address_of(pod)?);
        Some(Name { subject, ..name }.to_string())
    };
    let words = words.iter().map(|word| {
        let (option, text) = match word.split_once('=') {
            Some((option, text)) if option.starts_with("--") => (format!("{option}="), text),
            _ => (String::new(), word.as_str()),
        };
        let spaced = text.replace("->", " -> ");
        let tokens: Vec<&str> = spaced.split_whitespace().collect();
        if !tokens.iter().any(|token| end(token).is_some()) {
            return word.clone();
        }
        let tokens = tokens
            .into_iter()
            .map(|token| end(token).unwrap_or_else(|| token.to_owned()));
        option + &tokens.collect::<Vec<_>>().join(" ")
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_other_nodes_are_named_by_their_addresses() {
        let address_of = |pod: &ObjectName| match pod.to_string().as_str() {
            "default/far" => Some("10.244.2.3".parse().expect("an address")),
            "shop/six" => Some("fd00::2:3".parse().expect("an address")),
            _ => None,
        };
        let rows: [(&[&str], &[&str]); 6] = [
            (
                &["explain", "pod/near", "pod/far:80"],
                &["explain", "pod/near", "10.244.2.3:80"],
            ),
            (
                &["trace", "pod/near->pod/far:53/udp"],
                &["trace", "pod/near -> 10.244.2.3:53/udp"],
            ),
            (
                &["trace", "pod/far -> svc/web:80"],
                &["trace", "10.244.2.3 -> svc/web:80"],
            ),
            (
                &["capture", "pod/near", "--to=pod/shop/six:80"],
                &["capture", "pod/near", "--to=[fd00::2:3]:80"],
            ),
            (
                &["capture", "pod/default/far", "-w", "pod"],
                &["capture", "10.244.2.3", "-w", "pod"],
            ),
            (
                &["trace", "any  svc/far:80", "--for=1s"],
                &["trace", "any  svc/far:80", "--for=1s"],
            ),
        ];
        for (words, expected) in rows {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(addressed(&words, "default", address_of), expected);
        }
        let words = ["explain", "pod/six", "pod/default/far"].map(str::to_owned);
        let expected = ["explain", "fd00::2:3", "10.244.2.3"];
        assert_eq!(addressed(&words, "shop", address_of), expected);
    }
}
