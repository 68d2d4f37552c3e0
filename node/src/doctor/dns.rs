//! The node's DNS server, by a question whose answer is known: which Service has the server's own address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dns::client::{Question, Reply, ask};
use model::{Snapshot, with_causes};
use tokio::time::timeout;

use super::finding;
use crate::explain::names::addresses_of;
use crate::findings::Finding;

/// A server of the same node answers within a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

const PORT: u16 = 53;

/// What is wrong with who answers at the address. `own_answers`: this node's own server says that it does.
pub async fn look(address: IpAddr, own_answers: bool, snapshot: &Snapshot) -> Option<Finding> {
    let reply = match question(address).await {
        // What is on its way when a server is exchanged.
        Err(_) => question(address).await,
        answered => answered,
    };
    let evidence = evidence(own_answers, reply.as_ref(), owner(address, snapshot).as_deref())?;
    Some(finding(
        "dns-server",
        format!("DNS server at {address}"),
        evidence,
        "see that the DNS process of this node runs and what its log says; causeway dns query asks it",
    ))
}

async fn question(address: IpAddr) -> Result<Reply, String> {
    let question = Question::parse(&address.to_string(), None).map_err(|error| with_causes(&error))?;
    match timeout(PATIENCE, ask(SocketAddr::new(address, PORT), &question)).await {
        Ok(reply) => reply.map_err(|error| with_causes(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// How the name of the Service with that address begins.
fn owner(address: IpAddr, snapshot: &Snapshot) -> Option<String> {
    let mut services = snapshot.services.iter();
    let (name, _) = services.find(|(_, service)| addresses_of(service).any(|own| own == address))?;
    Some(format!("{}.{}.svc.", name.name, name.namespace))
}

fn evidence(own_answers: bool, reply: Result<&Reply, &String>, owner: Option<&str>) -> Option<String> {
    match (own_answers, reply) {
        (true, Err(error)) => Some(format!("this node's own server does not answer: {error}")),
        (false, Err(error)) => Some(format!(
            "this node's own server does not answer, and no other does in its place: {error}"
        )),
        (false, Ok(_)) => {
            Some("this node's own server does not answer; servers of other nodes do in its place".to_owned())
        }
        (true, Ok(reply)) => {
            let owner = owner?;
            let is_told = reply.answers.iter().any(|answer| answer.contains(owner));
            (!is_told).then(|| {
                format!(
                    "asked for the name of its own address it says {} and no {owner}…: it does not know the cluster",
                    reply.code
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(answers: &[&str]) -> Reply {
        Reply {
            code: "NOERROR".to_owned(),
            answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            bytes: 100,
            microseconds: 100,
            explanation: None,
        }
    }

    #[test]
    fn who_does_not_answer_or_answers_in_whose_place_is_told() {
        let right = reply(&["10.0.96.10.in-addr.arpa. 5 IN PTR kube-dns.kube-system.svc.cluster.local."]);
        let wrong = reply(&[]);
        let silent = "no answer within 1 s".to_owned();
        let owner = Some("kube-dns.kube-system.svc.");
        let rows = [
            (true, Ok(&right), owner, None),
            (true, Ok(&wrong), owner, Some("it does not know the cluster")),
            (true, Ok(&wrong), None, None),
            (
                true,
                Err(&silent),
                owner,
                Some("own server does not answer: no answer"),
            ),
            (false, Ok(&right), owner, Some("servers of other nodes do")),
            (false, Err(&silent), owner, Some("no other does in its place")),
        ];
        for (own_answers, reply, owner, expected) in rows {
            let told = evidence(own_answers, reply, owner);
            match expected {
                None => assert_eq!(told, None),
                Some(part) => assert!(told.as_ref().is_some_and(|told| told.contains(part)), "{told:?}"),
            }
        }
    }
}
