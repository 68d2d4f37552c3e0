//! What the fake reads and writes is what EC2 publishes: `shapes.txt` says it.

use std::collections::BTreeMap;

use fake_vpc::query;
use fake_vpc::request::{Request, Search};
use vpc_eni::ec2::{Action, Amount};

use crate::support::{Element, Http, World};

/// The published members of requests, and elements of replies, each with its type, by action and path.
struct Shapes {
    inputs: BTreeMap<(String, String), (String, bool)>,
    outputs: BTreeMap<(String, String), String>,
}

impl Shapes {
    fn read() -> Self {
        let mut shapes = Self {
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        for line in include_str!("../shapes.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            let words: Vec<&str> = line.split(' ').collect();
            let key = |path: &str| (words[0].to_owned(), path.to_owned());
            match words[..] {
                [_, "in", path, kind, needed] => {
                    shapes
                        .inputs
                        .insert(key(path), (kind.to_owned(), needed == "required"));
                }
                [_, "out", path, kind] => {
                    shapes.outputs.insert(key(path), kind.to_owned());
                }
                _ => panic!("{line}"),
            }
        }
        shapes
    }

    /// What is wrong with the elements of a reply, by path.
    fn faults(&self, action: Action, reply: &Element) -> Vec<String> {
        let mut faults = Vec::new();
        for child in &reply.children {
            // Every reply has the one, and those without a result of their own the other (EC2's reference, "Response
            // Elements"); the published shapes do not speak of them.
            match child.name.as_str() {
                "requestId" if child.children.is_empty() && !child.text.is_empty() => {}
                "return" if child.text == "true" => {}
                _ => self.check(action, &child.name, child, &mut faults),
            }
        }
        faults
    }

    fn check(&self, action: Action, path: &str, element: &Element, faults: &mut Vec<String>) {
        let Some(kind) = self.outputs.get(&(action.to_string(), path.to_owned())) else {
            faults.push(format!("{action}: {path} is not published"));
            return;
        };
        let text = element.text.as_str();
        let is_right = match kind.as_str() {
            "structure" => text.is_empty() && !element.children.is_empty(),
            "list" => text.is_empty() && element.children.iter().all(|child| child.name == "item"),
            "string" => element.children.is_empty(),
            "integer" | "long" => element.children.is_empty() && text.parse::<i64>().is_ok(),
            "double" => element.children.is_empty() && text.parse::<f64>().is_ok(),
            "boolean" => element.children.is_empty() && matches!(text, "true" | "false"),
            "timestamp" => element.children.is_empty() && text.parse::<jiff::Timestamp>().is_ok(),
            other => panic!("the type {other}"),
        };
        if !is_right {
            faults.push(format!("{action}: {path} is no {kind}: {element:?}"));
        }
        for (index, child) in element.children.iter().enumerate() {
            let is_twin = |other: &Element| other.name == child.name;
            if kind == "structure" && element.children[..index].iter().any(is_twin) {
                faults.push(format!("{action}: {path} has {} twice", child.name));
            }
            self.check(action, &format!("{path}/{}", child.name), child, faults);
        }
    }
}

#[test]
fn every_member_that_is_read_is_published() {
    let shapes = Shapes::read();
    for action in Action::ALL {
        for member in query::members(action) {
            let published = shapes.inputs.get(&(action.to_string(), (*member).to_owned()));
            let (kind, _) = published.unwrap_or_else(|| panic!("{action}: {member} is not published"));
            assert!(
                !matches!(kind.as_str(), "structure" | "list"),
                "{action}: {member} has members itself"
            );
        }
    }
}

#[test]
fn every_member_that_ec2_wants_is_read() {
    let shapes = Shapes::read();
    let lacking: Vec<&(String, String)> = shapes
        .inputs
        .iter()
        .filter(|((action, path), (kind, is_required))| {
            let action = Action::ALL
                .into_iter()
                .find(|one| one.to_string() == *action)
                .unwrap();
            let reads = |member: &&str| *member == path || member.starts_with(&format!("{path}."));
            // Within a structure that is not wanted nothing is.
            let is_top = !path.contains('.');
            *is_required && is_top && kind != "structure" && !query::members(action).iter().any(reads)
        })
        .map(|(key, _)| key)
        .collect();
    assert_eq!(lacking, Vec::<&(String, String)>::new());
}

/// Replies to all actions, each as full as it gets.
async fn replies() -> Vec<(Action, Element)> {
    let world = World::new();
    let http = Http::new(&world.cloud);
    let mut replies = Vec::new();
    for request in crate::calls::life(&world) {
        let action = request.action();
        let reply = http
            .call(&request)
            .await
            .unwrap_or_else(|error| panic!("{request:?}: {error:?}"));
        assert_eq!(reply.name, format!("{action}Response"));
        assert_eq!(
            reply.attributes,
            r#"xmlns="http://ec2.amazonaws.com/doc/2016-11-15/""#
        );
        replies.push((action, reply));
    }
    // A page that is not the last, and an instance that is over.
    for _ in 0..5 {
        world.make(world.new_eni(Amount::PrefixesV6(1)));
    }
    world.cloud.terminate(&world.instance).unwrap();
    let page = || Search {
        max_results: Some(5),
        ..Search::default()
    };
    for request in [
        Request::DescribeNetworkInterfaces(Search {
            max_results: Some(5),
            ..Search::default()
        }),
        Request::DescribeInstances(page()),
        Request::DescribeInstanceTypes(page()),
    ] {
        replies.push((request.action(), http.call(&request).await.unwrap()));
    }
    replies
}

#[tokio::test]
async fn every_reply_is_of_the_published_shape() {
    let shapes = Shapes::read();
    let replies = replies().await;
    let faults: Vec<String> = replies
        .iter()
        .flat_map(|(action, reply)| shapes.faults(*action, reply))
        .collect();
    assert_eq!(faults, Vec::<String>::new());
    let answered: std::collections::BTreeSet<Action> = replies.iter().map(|(action, _)| *action).collect();
    assert_eq!(answered, Action::ALL.into_iter().collect(), "all of them");
    let has_more =
        |(_, reply): &&(Action, Element)| reply.children.iter().any(|child| child.name == "nextToken");
    let pages: Vec<Action> = replies
        .iter()
        .filter(has_more)
        .map(|(action, _)| *action)
        .collect();
    assert_eq!(pages, [Action::DescribeInstanceTypes]);
}

#[test]
fn a_reply_of_another_shape_is_found_out() {
    let shapes = Shapes::read();
    let declared =
        |body: &str| crate::support::parse(&format!(r#"<?xml version="1.0" encoding="UTF-8"?>{body}"#));
    for (reply, fault) in [
        ("<R><colour>blue</colour></R>", "colour is not published"),
        (
            "<R><subnetSet><member></member></subnetSet></R>",
            "subnetSet is no list",
        ),
        (
            "<R><subnetSet><item><subnetId><a></a></subnetId></item></subnetSet></R>",
            "subnetId is no string",
        ),
        (
            "<R><subnetSet><item><availableIpAddressCount>many</availableIpAddressCount></item></subnetSet></R>",
            "availableIpAddressCount is no integer",
        ),
        (
            "<R><subnetSet><item><defaultForAz>yes</defaultForAz></item></subnetSet></R>",
            "defaultForAz is no boolean",
        ),
        (
            "<R><subnetSet><item><state>a</state><state>b</state></item></subnetSet></R>",
            "subnetSet/item has state twice",
        ),
        (
            "<R><subnetSet><item>text</item></subnetSet></R>",
            "item is no structure",
        ),
    ] {
        let faults = shapes.faults(Action::DescribeSubnets, &declared(reply));
        assert!(
            faults.iter().any(|found| found.contains(fault)),
            "{reply}: {faults:?}"
        );
    }
}
